"""The file of a shared exchange: its header, its name, and the roles that processes have in it.

An exchange is a sealed memfd that every process that uses it keeps open, so it is there as long as one of them is. It
is found by its name through ``/proc``. Its header is copied and checked before anything in it is used.

A role is a lock of the kernel on one byte of the file, of the open file description (fcntl(2), ``F_OFD_SETLK``).
Claiming it is atomic, and the kernel releases it when its holder ends, however it ends. The holder is also noted in the
header, for people.

Two processes may create the same name at the same time. Each makes its file, marked as unfinished, and then looks for
others of the name. If there is a finished one, it uses that. Of two unfinished ones, the process with the greater inode
withdraws, and the other waits for it. So at most one is finished, without a lock that somebody could keep.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rtloop.errors import AttachError, ConfigError, StateError
from rtloop.process.nap import nap
from rtloop.sharing.block_files import BlockFile, block_files, open_block_file, processes, user_of
from rtloop.sharing.roles import KINDS, MOST_READERS, parse_share_name
from rtloop.system.fileio import read_text
from rtloop.units import format_size

__all__ = [
    "ExchangeFile",
    "Header",
    "Holder",
    "Plan",
    "find_exchanges",
    "holder",
    "open_exchange",
    "share_exchange",
]

_PREFIX = "rtloop-exchange:"
_MAGIC = b"rtExchng"
_VERSION = 1
#: magic, version, is finished, bytes of the text, bytes before the data, bytes of the data.
_HEAD = struct.Struct("<8sIIIIQ")
_FINISHED_AT = 12
#: The holder of a role: process, time of its claim on CLOCK_MONOTONIC, and name of the program.
_HOLDER = struct.Struct("<qq40s8x")
_HOLDERS_AT, _TEXT_AT = 64, 4096
_MOST_TEXT = 1 << 16
_MOST_BYTES = 1 << 46
#: struct flock of a 64-bit Linux.
_FLOCK = "hhqqi"
#: Longest wait for a process that is creating an exchange, which takes milliseconds; it may have been stopped.
_PATIENCE_S = 30.0


class Plan(NamedTuple):
    """Description of an exchange: its kind, the type of its items, and their number."""

    kind: str
    dtype: np.dtype[Any]
    capacity: int
    readers: int
    clock: str
    data_bytes: int

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON can hold it."""
        return {
            "kind": self.kind, "dtype": np.lib.format.dtype_to_descr(self.dtype), "item_bytes": self.dtype.itemsize,
            "capacity": self.capacity, "readers": self.readers, "clock": self.clock,
        }  # fmt: skip


class Header(NamedTuple):
    """The checked header of an exchange."""

    name: str
    plan: Plan
    is_finished: bool
    offset: int


class Holder(NamedTuple):
    """The process that has a role, by its own account."""

    pid: int
    since_ns: int
    program: str

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" ({self.program})" if self.program else "")


@dataclass
class ExchangeFile:
    """An exchange that this process has open, with a role in it.

    Attributes
    ----------
    fd : int
        The file, whose open file description holds the role's lock; -1 after :meth:`close`.
    slot : int
        Number of the role: 0 writes, 1 and above read.
    is_new : bool
        True if this process has created it.
    pid : int
        This process; a forked child has another.
    """

    header: Header
    fd: int
    role: str
    slot: int
    is_new: bool = False
    pid: int = field(default_factory=os.getpid)

    def check_role(self, role: str) -> None:
        """Check that this process may act in a role: it has that one, and the exchange is open.

        Raises
        ------
        StateError
            Otherwise.
        """
        name = self.header.name
        if self.fd < 0 and self.pid == os.getpid():
            raise StateError(f"the exchange {name!r} is closed")
        if self.role != role:
            kind = KINDS[self.header.plan.kind][2]
            raise StateError(
                f"this is the {self.role} of the exchange {name!r}; the {role} is another object, perhaps of another "
                f"process: {kind}.open({name!r}, role={role!r})"
            )

    def peers(self) -> tuple[int, ...]:
        """Return the processes that have the other role."""
        if self.fd < 0:
            return ()
        slots = range(1, 1 + self.header.plan.readers) if self.slot == 0 else range(1)
        return tuple(one.pid for one in (holder(self.fd, slot) for slot in slots) if one is not None)

    def close(self) -> None:
        """Give up the role and the file. A second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        if self.pid == os.getpid():  # a forked child has the same open file description, and would unlock its parent's
            # Closing the file does not unlock it as long as it is mapped.
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, self.slot, 1, 0))
        os.close(fd)


@dataclass
class Found:
    """An exchange of this machine, and the files that lead to it, one for each process that has it open."""

    header: Header
    files: list[BlockFile] = field(default_factory=list)


def _memfd_name(name: str) -> str:
    return os.fsdecode((_PREFIX + name).encode())


def _round_up(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _create(name: str, plan: Plan) -> tuple[int, Header]:
    """Make the file of an exchange, unfinished."""
    try:
        described = plan.describe()
        is_described = _parse_dtype(described["dtype"]) == plan.dtype
    except ValueError:  # NumPy's, of fields that overlap or are out of order
        is_described = False
    if not is_described:
        raise ConfigError(f"dtype={plan.dtype} cannot be described to other processes; give its fields in their order")
    text = json.dumps({"name": name, **described}).encode()
    if len(text) > _MOST_TEXT:
        raise ConfigError(f"the description of the exchange {name!r} has {len(text)} bytes, more than {_MOST_TEXT}")
    offset = _round_up(_TEXT_AT + len(text))
    size = offset + _round_up(plan.data_bytes)
    try:
        fd = os.memfd_create(_memfd_name(name), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise OSError(error.errno, f"the exchange {name!r} cannot be made: memfd_create: {error.strerror}") from None
    try:
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            why = "RLIMIT_FSIZE is lower (ulimit -f)" if error.errno == errno.EFBIG else error.strerror
            raise OSError(error.errno, f"the exchange {name!r} of {format_size(size)} cannot be made: {why}") from None
        os.pwrite(fd, text, _TEXT_AT)
        os.pwrite(fd, _HEAD.pack(_MAGIC, _VERSION, 0, len(text), offset, plan.data_bytes), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd, Header(name, plan, False, offset)


def _parse_dtype(descr: Any) -> np.dtype[Any]:
    """Return the dtype that a description of `numpy.lib.format` means, which anybody may have written.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        dtype = np.lib.format.descr_to_dtype(_as_tuples(descr))
    except Exception as error:  # NumPy raises many kinds
        raise ValueError(f"its dtype cannot be read: {error}") from None
    if dtype.hasobject or dtype.subdtype is not None or not dtype.itemsize:
        raise ValueError("its dtype is not one of plain items")
    return dtype


def _as_tuples(descr: Any) -> Any:
    """Return a description with the tuples that JSON has made lists."""
    if not isinstance(descr, list):
        return descr
    fields = []
    for one in descr:
        if not isinstance(one, (list, tuple)) or not 2 <= len(one) <= 3:
            raise ValueError("a field has a name, a type and perhaps a shape")
        name, kind, *shape = one
        fields.append(
            (tuple(name) if isinstance(name, list) else name, _as_tuples(kind),
             *(tuple(s) if isinstance(s, list) else s for s in shape))
        )  # fmt: skip
    return fields


def _parse(fd: int, size: int) -> Header:
    """Read the header of a file that anybody may have written.

    Raises
    ------
    ValueError
        If no exchange begins like this, or its sizes are impossible.
    """
    head = os.pread(fd, _HEAD.size, 0)
    if len(head) < _HEAD.size or head[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin like an exchange")
    _, version, is_finished, text_bytes, offset, data_bytes = _HEAD.unpack(head)
    if version != _VERSION:
        raise ValueError(f"it is of version {version}, and this rtloop has version {_VERSION}: use the same rtloop")
    if not 0 < text_bytes <= _MOST_TEXT or not 0 < data_bytes <= _MOST_BYTES:
        raise ValueError("its sizes are impossible")
    if offset != _round_up(_TEXT_AT + text_bytes) or size != offset + _round_up(data_bytes):
        raise ValueError(f"its sizes do not add up to its {size} bytes")
    try:
        about = json.loads(os.pread(fd, text_bytes, _TEXT_AT))
        name, kind, clock = about["name"], about["kind"], about["clock"]
        numbers = [about[key] for key in ("item_bytes", "capacity", "readers")]
        if kind not in KINDS or not isinstance(clock, str) or not all(type(n) is int for n in numbers):
            raise ValueError("its description is not that of an exchange")
        item_bytes, capacity, readers = numbers
        plan = Plan(kind, _parse_dtype(about["dtype"]), capacity, readers, clock, data_bytes)
        if plan.dtype.itemsize != item_bytes or not 0 < capacity <= _MOST_BYTES or not 0 < readers <= MOST_READERS:
            raise ValueError("its description contradicts itself")
        return Header(parse_share_name(name), plan, bool(is_finished), offset)
    except (KeyError, TypeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"its description is not that of an exchange: {type(error).__name__}") from None


def _files(name: str | None, uid: int | None, denied: list[int]) -> Iterator[BlockFile]:
    """Yield the files that may be exchanges of a name, of any if it is None, of a user, of all if that is None."""
    link = "/memfd:" + _memfd_name(name or "")
    for pid in processes(threaded=False):
        owner = user_of(pid)
        if uid is not None and owner != uid:
            continue
        try:
            yield from block_files(pid, uid=owner, link=link)
        except PermissionError:
            denied.append(pid)


def find_exchanges(
    name: str | None = None, *, every_user: bool = False, faulty: dict[int, str] | None = None,
    denied: list[int] | None = None,
) -> dict[int, Found]:  # fmt: skip
    """Find the exchanges of this user, by inode; finished ones and others.

    Parameters
    ----------
    name : str, optional
        Only those of this name.
    every_user : bool
        Those of other users as well, as far as this process may inspect them.
    faulty : dict, optional
        Filled with what is wrong with files that are not exchanges, by process.
    denied : list, optional
        Filled with the processes that could not be inspected.
    """
    found: dict[int, Found] = {}
    uid = None if every_user else os.geteuid()
    try:
        files = list(_files(name, uid, denied if denied is not None else []))
    except OSError as error:
        raise AttachError(f"exchanges are found through /proc, which cannot be read: {error}") from error
    for file in files:
        if file.inode in found:
            found[file.inode].files.append(file)
            continue
        try:
            fd, size = open_block_file(file)
        except OSError:
            continue  # it has ended, or has been closed
        except ValueError as error:
            if faulty is not None:
                faulty[file.pid] = str(error)
            continue
        try:
            # Another user may give a file the same name: it is not the exchange that was meant.
            if uid is None or os.fstat(fd).st_uid == uid:
                header = _parse(fd, size)
                if name is None or header.name == name:
                    found[file.inode] = Found(header, [file])
        except ValueError as error:
            if faulty is not None:
                faulty[file.pid] = str(error)
        finally:
            os.close(fd)
    return found


def holder(fd: int, slot: int) -> Holder | None:
    """Return the process that has a role, or None if nobody has it."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
    state = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    if struct.unpack_from(_FLOCK, state)[0] == fcntl.F_UNLCK:
        return None
    pid, since_ns, program = _HOLDER.unpack(os.pread(fd, _HOLDER.size, _HOLDERS_AT + 64 * slot))
    return Holder(pid, since_ns, _printable(program.split(b"\0")[0].decode(errors="replace")))


def _claim(fd: int, header: Header, role: str) -> int:
    """Take a role for this process. Returns its number.

    Raises
    ------
    StateError
        If other processes have it.
    """
    plan = header.plan
    is_writer = role == KINDS[plan.kind][0]
    slots = range(1) if is_writer else range(1, 1 + plan.readers)
    for slot in slots:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            program = read_text("/proc/self/comm").strip().encode()[:40]
            os.pwrite(fd, _HOLDER.pack(os.getpid(), time.monotonic_ns(), program), _HOLDERS_AT + 64 * slot)
            return slot
    others = [str(one) for one in (holder(fd, slot) for slot in slots) if one is not None]
    limit = "one" if len(slots) == 1 else f"{len(slots)}"
    more = "" if is_writer or plan.kind == "ring" else "; make it with readers=N for more"
    raise StateError(
        f"the exchange {header.name!r} has {limit} {role}{'s' * (len(slots) > 1)} already: "
        f"{', '.join(others) or 'another process'}{more}"
    )


def _join(found: Found, role: str) -> ExchangeFile | None:
    """Open an exchange and take a role in it; None if it is gone meanwhile."""
    for file in found.files:
        try:
            fd, size = open_block_file(file, is_writable=True)
        except (OSError, ValueError):
            continue
        try:
            header = _parse(fd, size)
            return ExchangeFile(header, fd, role, _claim(fd, header, role))
        except BaseException:
            os.close(fd)
            raise
    return None


def _check_same(header: Header, plan: Plan) -> None:
    """Raise a ConfigError if an exchange that exists differs from the one that is wanted."""
    there = header.plan
    for what, one, other in (
        ("is", f"a {KINDS[there.kind][2]}", f"a {KINDS[plan.kind][2]}"),
        ("has items of", there.dtype, plan.dtype),
        ("has a capacity of", there.capacity, plan.capacity),
        ("was made with readers =", there.readers, plan.readers),
        ("has time stamps of the clock", there.clock, plan.clock),
    ):
        if one != other:
            raise ConfigError(f"the exchange {header.name!r} exists and {what} {one}, not {other}")
    if there.data_bytes != plan.data_bytes:
        raise ConfigError(f"the exchange {header.name!r} exists and differs in its layout")


def share_exchange(name: str, plan: Plan, role: str) -> ExchangeFile:
    """Create an exchange, or take a role in the one of this name.

    Raises
    ------
    ConfigError
        If there is one of this name that differs.
    StateError
        If other processes have the role.
    OSError
        If there is no memory, or memfd_create(2) is refused.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        finished = [one for one in find_exchanges(name).values() if one.header.is_finished]
        if not finished:
            made = _create_first(name, plan, role)
            if made is not None:
                return made
        for one in finished:
            _check_same(one.header, plan)
            joined = _join(one, role)
            if joined is not None:
                return joined
        if time.monotonic() > deadline:
            raise StateError(f"the exchange {name!r} is being created by another process, which has been stopped")
        nap(0.002)


def _create_first(name: str, plan: Plan, role: str) -> ExchangeFile | None:
    """Create an exchange; None if another process has done so, or is doing it."""
    fd, header = _create(name, plan)
    inode = os.fstat(fd).st_ino
    deadline = time.monotonic() + _PATIENCE_S
    try:
        # Looked for twice in a row: a process that ends during the first may have handed one to a process that was
        # looked at before.
        alone = 0
        while alone < 2:
            others = [(number, one) for number, one in find_exchanges(name).items() if number != inode]
            if any(one.header.is_finished or number < inode for number, one in others):
                os.close(fd)
                return None
            alone = 0 if others else alone + 1
            if others:
                if time.monotonic() > deadline:
                    raise StateError(
                        f"the exchange {name!r} is being created by process {others[0][1].files[0].pid}, which does "
                        "not finish it"
                    )
                nap(0.0005)
        slot = _claim(fd, header, role)
        os.pwrite(fd, struct.pack("<I", 1), _FINISHED_AT)
    except BaseException:
        os.close(fd)
        raise
    return ExchangeFile(header._replace(is_finished=True), fd, role, slot, is_new=True)


def _program(pid: int) -> str:
    try:
        return _printable(read_text(f"/proc/{pid}/comm").strip())
    except OSError:
        return "ended"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _describe_denied(pids: list[int]) -> str:
    """Return the end of a message that lists the processes of this user that could not be inspected; may be empty."""
    if not pids:
        return ""
    shown = [f"{pid} ({_program(pid)})" for pid in pids[:3]]
    more = "" if len(pids) <= len(shown) else f" and {len(pids) - len(shown)} others"
    return (
        f". Not inspected, because they have privileges that this process lacks (ptrace(2)): {', '.join(shown)}{more}; "
        "if one of them has the exchange open, give this process the same capabilities"
    )


def open_exchange(name: str, kind: str, role: str, dtype: np.dtype[Any] | None = None) -> ExchangeFile:
    """Take a role in an exchange that exists.

    Raises
    ------
    AttachError
        If this user has none of this name.
    ConfigError
        If it is of another kind, or `dtype` is given and differs.
    StateError
        If other processes have the role.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        denied: list[int] = []
        there = find_exchanges(name, denied=denied)
        for one in there.values():
            if one.header.is_finished:
                plan = one.header.plan
                if plan.kind != kind:
                    raise ConfigError(
                        f"the exchange {name!r} is a {KINDS[plan.kind][2]}: use {KINDS[plan.kind][2]}.open"
                    )
                if dtype is not None and dtype != plan.dtype:
                    raise ConfigError(f"the exchange {name!r} has items of {plan.dtype}, not {dtype}")
                joined = _join(one, role)
                if joined is not None:
                    return joined
        if not there or time.monotonic() > deadline:
            names = sorted(one.header.name for one in find_exchanges().values())
            raise AttachError(
                f"there is no shared exchange {name!r} of this user; there are: {', '.join(names) or 'none'}"
                f"{_describe_denied(denied)}"
            )
        nap(0.002)
