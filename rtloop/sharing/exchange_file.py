"""The file of a shared exchange: its header, and the roles that processes have in it.

An exchange is a sealed memfd that every process that uses it keeps open, so it exists as long as one of them. Its
header is copied and checked before anything in it is used. Processes find it by its name: through ``/proc``
(:mod:`rtloop.sharing.found_exchanges`), or through a socket (:mod:`rtloop.sharing.socket_exchanges`).

A role is a lock of the kernel on one byte of the file, of the open file description (fcntl(2), ``F_OFD_SETLK``).
Claiming it is atomic, and the kernel releases it when its holder ends, however it ends, also in another PID namespace.
The holder is also noted in the header, for people. A description that has a role is never given to another process,
which would have the role as well.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import struct
import time
import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from rtloop.errors import ConfigError, StateError
from rtloop.process.pid_namespace import own_pid_namespace
from rtloop.sharing.roles import DEFAULT_MODE, KINDS, MODES, MOST_READERS, parse_share_name
from rtloop.system.fileio import read_text
from rtloop.units import format_size

__all__ = [
    "ExchangeFile",
    "Header",
    "Holder",
    "Plan",
    "check_kind",
    "check_same",
    "claim_role",
    "create_file",
    "finish_file",
    "holder",
    "memfd_name",
    "parse_file",
    "printable",
]

_PREFIX = "rtloop-exchange:"
_MAGIC = b"rtExchng"
_VERSION = 1
#: magic, version, is finished, bytes of the text, bytes before the data, bytes of the data.
_HEAD = struct.Struct("<8sIIIIQ")
_FINISHED_AT = 12
#: The holder of a role: process, time of its claim on CLOCK_MONOTONIC, name of the program, and its PID namespace.
_HOLDER = struct.Struct("<qq40sQ")
_HOLDERS_AT, _TEXT_AT = 64, 4096
_MOST_TEXT = 1 << 16
_MOST_BYTES = 1 << 46
#: struct flock of a 64-bit Linux.
_FLOCK = "hhqqi"


class Plan(NamedTuple):
    """Description of an exchange: its kind, the type of its items, their number, and who may open it."""

    kind: str
    dtype: np.dtype[Any]
    capacity: int
    readers: int
    clock: str
    data_bytes: int
    mode: int = DEFAULT_MODE

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON can hold it."""
        return {
            "kind": self.kind, "dtype": np.lib.format.dtype_to_descr(self.dtype), "item_bytes": self.dtype.itemsize,
            "capacity": self.capacity, "readers": self.readers, "clock": self.clock, "mode": self.mode,
        }  # fmt: skip


class Header(NamedTuple):
    """The checked header of an exchange."""

    name: str
    plan: Plan
    is_finished: bool
    offset: int


class Holder(NamedTuple):
    """The process that has a role, as it describes itself: its id is that in its own PID namespace."""

    pid: int
    since_ns: int
    program: str
    pid_namespace: int = 0

    @property
    def is_elsewhere(self) -> bool:
        """True if its id is not valid here, because it has another PID namespace."""
        return self.pid_namespace not in (0, own_pid_namespace())

    def __str__(self) -> str:
        elsewhere = " of another PID namespace" if self.is_elsewhere else ""
        return f"process {self.pid}{elsewhere}" + (f" ({self.program})" if self.program else "")


class Listener(Protocol):
    """Object that passes an exchange to other processes as long as this one has it open."""

    def close(self) -> None:
        """Stop passing the exchange to other processes."""


@dataclass(eq=False)
class ExchangeFile:
    """An exchange that this process has open, with a role in it, which is closed in a forked child.

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
    listener : Listener or None
        Passes it to other processes, if they find it by a socket.
    """

    header: Header
    fd: int
    role: str
    slot: int
    is_new: bool = False
    pid: int = field(default_factory=os.getpid)
    listener: Listener | None = None

    def __post_init__(self) -> None:
        _open_files.add(self)

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
        """Return the processes that have the other role; 0 stands for one of another PID namespace."""
        if self.fd < 0:
            return ()
        slots = range(1, 1 + self.header.plan.readers) if self.slot == 0 else range(1)
        holders = [one for one in (holder(self.fd, slot) for slot in slots) if one is not None]
        return tuple(0 if one.is_elsewhere else one.pid for one in holders)

    def close(self) -> None:
        """Give up the role and the file. A second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        if self.listener is not None:
            self.listener.close()
        if self.pid == os.getpid():  # a forked child has the same open file description, and would unlock its parent's
            # Closing the file does not unlock it as long as it is mapped.
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, self.slot, 1, 0))
        os.close(fd)


_open_files: weakref.WeakSet[ExchangeFile] = weakref.WeakSet()


def _close_after_fork() -> None:
    """Close the files that the parent's threads were about to map, because the child would keep their roles."""
    for file in list(_open_files):
        file.close()


os.register_at_fork(after_in_child=_close_after_fork)


def memfd_name(name: str) -> str:
    """Return the name of the memfd of an exchange, which is visible in ``/proc``."""
    return os.fsdecode((_PREFIX + name).encode())


def _round_up(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def create_file(name: str, plan: Plan) -> tuple[int, Header]:
    """Create the unfinished file of an exchange.

    Raises
    ------
    ConfigError
        If its type cannot be described to other processes.
    OSError
        If there is no memory, or memfd_create(2) is refused.
    """
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
        fd = os.memfd_create(memfd_name(name), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
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


def finish_file(fd: int) -> None:
    """Mark the file of an exchange as finished, so that other processes may use it."""
    os.pwrite(fd, struct.pack("<I", 1), _FINISHED_AT)


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


def parse_file(fd: int, size: int) -> Header:
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
        mode = about.get("mode", DEFAULT_MODE)
        plan = Plan(kind, _parse_dtype(about["dtype"]), capacity, readers, clock, data_bytes, mode)
        if plan.dtype.itemsize != item_bytes or not 0 < capacity <= _MOST_BYTES or not 0 < readers <= MOST_READERS:
            raise ValueError("its description contradicts itself")
        if type(mode) is not int or mode not in MODES:
            raise ValueError("its mode is not valid for an exchange")
        return Header(parse_share_name(name), plan, bool(is_finished), offset)
    except (KeyError, TypeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"its description is not that of an exchange: {type(error).__name__}") from None


def holder(fd: int, slot: int) -> Holder | None:
    """Return the process that has a role, or None if nobody has it."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
    state = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    if struct.unpack_from(_FLOCK, state)[0] == fcntl.F_UNLCK:
        return None
    pid, since_ns, program, namespace = _HOLDER.unpack(os.pread(fd, _HOLDER.size, _HOLDERS_AT + 64 * slot))
    return Holder(pid, since_ns, printable(program.split(b"\0")[0].decode(errors="replace")), namespace)


def _own_program() -> bytes:
    """Return the name of this program; empty if it cannot be read, for example without a free descriptor."""
    try:
        return read_text("/proc/self/comm").strip().encode()[:40]
    except OSError:
        return b""


def claim_role(fd: int, header: Header, role: str) -> int:
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
            note = _HOLDER.pack(os.getpid(), time.monotonic_ns(), _own_program(), own_pid_namespace())
            os.pwrite(fd, note, _HOLDERS_AT + 64 * slot)
            return slot
    others = [str(one) for one in (holder(fd, slot) for slot in slots) if one is not None]
    limit = "one" if len(slots) == 1 else f"{len(slots)}"
    more = "" if is_writer or plan.kind == "ring" else "; make it with readers=N for more"
    raise StateError(
        f"the exchange {header.name!r} has {limit} {role}{'s' * (len(slots) > 1)} already: "
        f"{', '.join(others) or 'another process'}{more}"
    )


def check_kind(header: Header, kind: str, dtype: np.dtype[Any] | None) -> None:
    """Raise a ConfigError if an exchange is of another kind, or `dtype` is given and differs."""
    name, plan = header.name, header.plan
    if plan.kind != kind:
        raise ConfigError(f"the exchange {name!r} is a {KINDS[plan.kind][2]}: use {KINDS[plan.kind][2]}.open")
    if dtype is not None and dtype != plan.dtype:
        raise ConfigError(f"the exchange {name!r} has items of {plan.dtype}, not {dtype}")


def check_same(header: Header, plan: Plan) -> None:
    """Raise a ConfigError if an exchange that exists differs from the one that is wanted."""
    there = header.plan
    for what, one, other in (
        ("is", f"a {KINDS[there.kind][2]}", f"a {KINDS[plan.kind][2]}"),
        ("has items of", there.dtype, plan.dtype),
        ("has a capacity of", there.capacity, plan.capacity),
        ("was made with readers =", there.readers, plan.readers),
        ("has time stamps of the clock", there.clock, plan.clock),
        ("was made with mode =", f"{there.mode:#o}", f"{plan.mode:#o}"),
    ):
        if one != other:
            raise ConfigError(f"the exchange {header.name!r} exists and {what} {one}, not {other}")
    if there.data_bytes != plan.data_bytes:
        raise ConfigError(f"the exchange {header.name!r} exists and differs in its layout")


def printable(text: str) -> str:
    """Return text of another process without characters that control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
