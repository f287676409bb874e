"""Blocks of parameters: that of a loop's run, and that of another process. See include/rtloop/parameters.h."""

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid

from rtloop._os cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from rtloop.headers.atomics cimport rt_load_acquire
from rtloop.headers.live cimport (
    RT_PARAMETER_F4,
    RT_PARAMETER_F8,
    RT_PARAMETER_I1,
    RT_PARAMETER_I8,
    RT_PARAMETERS_MAX,
    RT_PARAMETERS_MAX_BYTES,
    RT_PARAMETERS_MAX_TEXT,
    rt_live_t,
    rt_live_use_parameters,
    rt_parameter_t,
    rt_parameters_begin,
    rt_parameters_prepare,
    rt_parameters_block_t,
    rt_parameters_bytes,
    rt_parameters_copy_records,
    rt_parameters_end,
    rt_parameters_is_sound,
    rt_parameters_open,
    rt_parameters_publish,
    rt_parameters_read_asked,
    rt_parameters_read_shown,
    rt_parameters_read_used,
    rt_parameters_record_bytes,
    rt_parameters_record_t,
    rt_parameters_t,
    rt_parameters_text,
    rt_parameters_writer_t,
)
from rtloop.headers.memory cimport rt_memory_is_sealed, rt_memory_map, rt_memory_map_shared, rt_memory_prefault

import errno
import os
from contextlib import suppress
from typing import NamedTuple

from rtloop.live.declared_parameters import TYPES as _TYPES
from rtloop.live.write_lock import close_file

#: The most parameters of a loop, and bytes of their values.
MOST, MOST_BYTES = RT_PARAMETERS_MAX, RT_PARAMETERS_MAX_BYTES
cdef int _TRIES = 10_000
#: Memory for the record of a run, and the fewest and the most sets that it holds.
cdef uint64_t _RECORD_BYTES = 1 << 20
cdef uint64_t _LEAST_RECORDS = 64
cdef uint64_t _MOST_RECORDS = 4096


class Writer(NamedTuple):
    """The writer of a set, by its own account, which nothing verifies."""

    pid: int
    tid: int
    time_ns: int
    host: str
    program: str


class Asked(NamedTuple):
    """The set that was published last."""

    number: int
    values: bytes
    writer: Writer


class Used(NamedTuple):
    """The set that the loop uses, the first cycle that used it, and the number of refused sets."""

    number: int
    cycle: int
    refused: int
    values: bytes


cdef class ParameterView:
    """The mapped block of a loop's parameters, of this process or of another.

    Attributes
    ----------
    size : int
        Bytes of the block.
    fd : int
        Its file, for the lock of the writers; -1 if no other process can write it.
    name : str
        Name of the loop.
    """

    def __cinit__(self):
        self.fd = -1

    @property
    def has_ended(self):
        """True if the run is over."""
        return rt_load_acquire(&_block(self).has_ended) != 0

    def publish(self, bytes values not None, writer):
        """Publish a set for the loop. The caller holds the writers' lock.

        Raises
        ------
        OSError
            EAGAIN if somebody keeps writing without the lock.
        """
        cdef bytes place = pack_place(writer, values)
        cdef const char *begin = place
        cdef int rc
        if len(values) != <object>_checked(self).set_bytes:
            raise ValueError(f"a set has {self.view.set_bytes} bytes, not {len(values)}")
        with nogil:
            rc = rt_parameters_publish(&self.view, begin)
        if rc:
            raise OSError(-rc, f"the parameters of {self.name}: a writer that does not take the lock interferes")

    def asked(self):
        """Return the set that was published last. Anybody may have written it, so its values may be invalid."""
        cdef uint64_t number = 0
        cdef size_t size = sizeof(rt_parameters_writer_t) + _checked(self).set_bytes
        cdef char *place = <char *>malloc(size)
        cdef int rc
        if place is NULL:
            raise MemoryError
        try:
            with nogil:
                rc = rt_parameters_read_asked(&self.view, place, &number, _TRIES)
            if rc:
                raise _busy(self)
            values = place[sizeof(rt_parameters_writer_t):size]
            return Asked(number, values, _writer(<rt_parameters_writer_t *>place))
        finally:
            free(place)

    def used(self):
        """Return the set that the loop uses, as the loop shows it to other processes."""
        cdef uint64_t[3] about
        cdef size_t size = _checked(self).set_bytes
        cdef char *values = <char *>malloc(size + 1)
        cdef int rc
        if values is NULL:
            raise MemoryError
        try:
            with nogil:
                rc = self._read_used(values, about)
            if rc:
                raise _busy(self)
            return Used(about[0], about[1], about[2], values[:size])
        finally:
            free(values)

    cdef int _read_used(self, char *values, uint64_t *about) noexcept nogil:
        return rt_parameters_read_shown(&self.view, values, about, _TRIES)

    def close(self):
        """Close the file. The block stays mapped as long as this object exists."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_file(fd)


cdef class ForeignParameters(ParameterView):
    """ForeignParameters(fd, size, is_writable, name)

    The block of another process, or of this one, through its file, which this object closes. Nothing in it is trusted.

    Raises
    ------
    ValueError
        If it is not a block, is damaged, or is of another version.
    OSError
        If it cannot be mapped.
    """

    def __init__(self, int fd, size_t size, bint is_writable, str name):
        cdef void *address
        if self._address is not NULL:
            raise RuntimeError("this block has been mapped before")
        self.name = name
        if size == 0 or size > rt_parameters_bytes(RT_PARAMETERS_MAX_BYTES, RT_PARAMETERS_MAX_TEXT):
            raise ValueError(f"it has {size} bytes, which is not the size of a block of parameters")
        address = mmap(NULL, size, PROT_READ | PROT_WRITE if is_writable else PROT_READ, MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            raise OSError(c_errno, f"mapping {size} bytes: {os.strerror(c_errno)}")
        self._address, self.size = address, size
        rc = rt_parameters_open(&self.view, address, size)
        if rc:
            self.view.block = NULL
            raise ValueError(
                "they are of another version of rtloop: use the one that runs the loop" if rc == -errno.ENOTSUP else
                "it does not begin like a block of parameters, or its sizes are impossible"
            )
        self.fd = fd

    def __dealloc__(self):
        if self._address is not NULL:
            munmap(self._address, self.size)

    @property
    def set_bytes(self):
        """Bytes of a set."""
        return _checked(self).set_bytes

    def text(self):
        """Return the description that the loop wrote."""
        return rt_parameters_text(_checked(self))[:self.view.text_bytes]


cdef class ParameterRun(ParameterView):
    """ParameterRun(items, values, writer, text, name, *, is_shared, is_tunable, is_later)

    The parameters of one run of a loop: the block that others see, and the private memory that the loop trusts.

    Parameters
    ----------
    items : sequence of (Parameter, int)
        The parameters with the addresses of their fields.
    values : bytes
        The set to begin with.
    writer : Writer
        The writer of that set.
    text : bytes
        Description for other processes.
    name : str
        Name of the loop.
    is_shared : bool
        True if other processes may read the block.
    is_tunable : bool
        True if they may write it as well.
    is_later : bool
        True if the loop runs already, and sets the fields itself when it takes the step over.

    Raises
    ------
    OSError
        If there is no memory, or memfd_create(2) is refused.
    """

    def __init__(
        self, items, bytes values not None, writer, bytes text not None, str name, *, is_shared, is_tunable, is_later
    ):
        cdef void *address = NULL
        cdef int fd = -1
        cdef int rc
        cdef bytes place = pack_place(writer, values)
        cdef uint64_t set_bytes = len(values)
        cdef rt_parameters_t *own
        if self._address is not NULL:
            raise RuntimeError("this block has been mapped before")
        self.name = name
        self.size = rt_parameters_bytes(set_bytes, len(text))
        file_name = b"rtloop-parameters:" + name.encode()[:200]
        if is_shared:
            rc = rt_memory_map_shared(file_name, self.size, is_tunable, &address, &fd)
            if rc == 0 and not is_tunable and not rt_memory_is_sealed(fd):  # before Linux 5.1
                munmap(address, self.size)
                os.close(fd)
                fd = -1
                rc = rt_memory_map(&address, self.size)
        else:
            rc = rt_memory_map(&address, self.size)
        if rc:
            raise OSError(-rc, f"block of parameters of {self.size} bytes: {os.strerror(-rc)}")
        self._address, self.fd, self._pid = address, fd, getpid()
        if fd >= 0:
            self._inode = os.fstat(fd).st_ino
        own = self._map_own(items, set_bytes)
        own.view.block, own.view.set_bytes, own.view.text_bytes = <rt_parameters_block_t *>address, set_bytes, len(text)
        self.view = own.view
        rt_memory_prefault(address, self.size)
        memcpy(rt_parameters_text(&own.view), <const char *>text, len(text))
        if is_later:
            rt_parameters_prepare(own, place, self._pid)
        else:
            rt_parameters_begin(own, place, self._pid)

    cdef rt_parameters_t *_map_own(self, items, uint64_t set_bytes) except NULL:
        """Map the private memory: the state, the descriptors, a copy of a place, the set in use, the records."""
        cdef void *address = NULL
        cdef uint64_t capacity = _MOST_RECORDS
        cdef uint64_t record_bytes = rt_parameters_record_bytes(set_bytes)
        cdef rt_parameter_t *item
        cdef char *at
        cdef size_t value
        while capacity > _LEAST_RECORDS and capacity * record_bytes > _RECORD_BYTES:
            capacity //= 2
        self.own_bytes = (
            sizeof(rt_parameters_t) + len(items) * sizeof(rt_parameter_t) + sizeof(rt_parameters_writer_t)
            + 2 * set_bytes + capacity * record_bytes
        )
        rc = rt_memory_map(&address, self.own_bytes)
        if rc:
            raise OSError(-rc, f"{self.own_bytes} bytes for parameters: {os.strerror(-rc)}")
        rt_memory_prefault(address, self.own_bytes)
        self.own = <rt_parameters_t *>address
        item = <rt_parameter_t *>(<char *>address + sizeof(rt_parameters_t))
        self.own.items, self.own.count, self.own.capacity = item, len(items), capacity
        for parameter, field in items:
            value = field
            item.address, item.offset, item.bytes = <void *>value, parameter.offset, parameter.size
            item.count, item.type = parameter.numbers, _TYPES.index(parameter.kind)
            low, high = parameter.bounds
            _set_limits(item, low, high)
            item += 1
        at = <char *>item
        self.own.staged = at
        at += sizeof(rt_parameters_writer_t) + set_bytes
        self.own.used = <uint64_t *>at
        self.own.records = at + set_bytes
        return self.own

    def __dealloc__(self):
        if self._address is not NULL:
            munmap(self._address, self.size)
        if self.own is not NULL:
            munmap(self.own, self.own_bytes)

    @property
    def inode(self):
        """The file's inode, by which other processes find it; None if there is no file."""
        return self._inode

    @property
    def is_wiped(self):
        """True in a forked child if no other process can see the block: nothing of it is left there."""
        return self._inode is None and self.is_inherited

    @property
    def is_inherited(self):
        """True in a forked child of the process that made the block."""
        return self._pid != getpid()

    @property
    def pid(self):
        """PID of the process that made the block."""
        return self._pid

    @property
    def ranges(self):
        """Addresses and sizes of the block and of the private memory."""
        return (<size_t>self._address, self.size), (<size_t>self.own, self.own_bytes)

    def attach(self, size_t live):
        """Give the parameters to the loop whose rt_live_t is at this address. Before its thread exists."""
        _checked(self)
        rt_live_use_parameters(<rt_live_t *>live, self.own)

    def is_sound(self, bytes values not None):
        """Return True if the loop would accept a set."""
        cdef const char *begin = values
        if len(values) != <object>_checked(self).set_bytes:
            return False
        return rt_parameters_is_sound(self.own.items, self.own.count, begin) != 0

    cdef int _read_used(self, char *values, uint64_t *about) noexcept nogil:
        return rt_parameters_read_used(self.own, values, about, _TRIES)

    def records(self):
        """Return the applied sets as (first cycle, writer, values), oldest first, and the number of lost ones."""
        cdef uint64_t first = 0
        cdef size_t record_bytes = rt_parameters_record_bytes(_checked(self).set_bytes)
        cdef uint64_t most = self.own.capacity
        cdef char *copied = <char *>malloc(most * record_bytes)
        cdef rt_parameters_record_t *record
        cdef uint64_t count, i
        if copied is NULL:
            raise MemoryError
        try:
            with nogil:
                count = rt_parameters_copy_records(self.own, 0, copied, most, &first)
            found = []
            for i in range(count):
                record = <rt_parameters_record_t *>(copied + i * record_bytes)
                values = (<char *>record)[sizeof(rt_parameters_record_t):record_bytes]
                found.append((record.cycle, _writer(&record.writer), values))
            return found, first
        finally:
            free(copied)

    def end(self):
        """Mark the run as over. After the loop's thread."""
        rt_parameters_end(_block(self))

    def close(self):
        """Close the file, unless the program has closed it. The memory stays as long as this object exists."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):  # a program that became a daemon may have closed all files
                if os.fstat(fd).st_ino == self._inode:  # and the number may belong to another file by now
                    close_file(fd)


def assign(size_t address, bytes value not None):
    """Write the bytes of a value to a field of a loop that does not run."""
    memcpy(<void *>address, <const char *>value, len(value))


cdef rt_parameters_view_t *_checked(ParameterView self) except NULL:
    if self.view.block is NULL:
        raise RuntimeError("this block has not been mapped")
    return &self.view


cdef rt_parameters_block_t *_block(ParameterView self) except NULL:
    return _checked(self).block


cdef object _busy(ParameterView self):
    reason = "they change too fast to be read, or the loop was stopped in the middle of a change"
    return OSError(errno.EAGAIN, f"the parameters of {self.name}: {reason}")


cdef int _set_limits(rt_parameter_t *item, low, high) except -1:
    if item.type in (RT_PARAMETER_F4, RT_PARAMETER_F8):
        item.low.real, item.high.real = low, high
    elif RT_PARAMETER_I1 <= item.type <= RT_PARAMETER_I8:
        item.low.whole, item.high.whole = low, high
    else:
        item.low.natural, item.high.natural = low, high
    return 0


def pack_place(writer, bytes values not None):
    """Return the bytes of a place: a writer and a set."""
    cdef rt_parameters_writer_t head
    memset(&head, 0, sizeof(head))
    head.pid, head.tid, head.time = writer.pid, writer.tid, writer.time_ns
    _put(head.host, sizeof(head.host), writer.host)
    _put(head.program, sizeof(head.program), writer.program)
    return (<char *>&head)[:sizeof(head)] + values


cdef int _put(char *to, size_t size, str text) except -1:
    """Write a text that ends with a 0; if it is too long, cut it between two characters."""
    cdef bytes cut = text.encode(errors="replace")[:size - 1].decode(errors="ignore").encode()
    memcpy(to, <const char *>cut, len(cut))
    return 0


cdef object _writer(const rt_parameters_writer_t *writer):
    host, program = writer.host[:sizeof(writer.host)], writer.program[:sizeof(writer.program)]
    return Writer(writer.pid, writer.tid, writer.time, _text(host), _text(program))


def _text(raw):
    """Return an untrusted text without control characters, which a terminal would obey."""
    text = raw.partition(b"\0")[0].decode(errors="replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
