"""Shared exchanges of the machine, their users and counters, read without a role and without a mapping."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rtloop.errors import AttachError
from rtloop.sharing.block_files import open_block_file
from rtloop.sharing.exchange_file import Header, Holder, holder
from rtloop.sharing.found_exchanges import Found, find_exchanges
from rtloop.sharing.socket_exchanges import look_at_socket

__all__ = ["ExchangeState", "list_exchanges"]

_CLOCKS = {"monotonic": 1, "boottime": 7, "tai": 11, "realtime": 0}
#: Offsets in the data: `newest` and `written_at` of shared_latest.h; `tail`, `head`, `high_water` and `dropped` of
#: ring.h, whose first cache line is not in the file.
_LATEST = struct.Struct("<Q56xq")
_RING = struct.Struct("<Q56xQ56x8xQQ")


@dataclass(frozen=True)
class ExchangeState:
    """An exchange at one moment.

    Attributes
    ----------
    inode : int
        Number of its file, which tells it from others of its name.
    writer : Holder or None
        The process that writes, by its own account.
    readers : list of Holder
        The processes that read.
    pids : list of int
        All processes that have it open and are visible here.
    written : int
        Number of values written, or of items ever put in.
    fill, dropped, high_water : int
        Of a ring.
    age_ns : int or None
        Time since the newest value with a stamp was written; None if there is none, and of a ring.
    """

    header: Header
    inode: int
    writer: Holder | None
    readers: list[Holder]
    pids: list[int]
    written: int
    fill: int = 0
    dropped: int = 0
    high_water: int = 0
    age_ns: int | None = None
    time_ns: int = field(default_factory=time.monotonic_ns)


def list_exchanges(
    denied: list[int] | None = None, faulty: dict[int, str] | None = None, sockets: Iterable[str] = ()
) -> list[ExchangeState]:
    """Return the exchanges of all users whose processes may be inspected, in the order of their names.

    Parameters
    ----------
    denied, faulty
        As for :func:`~rtloop.sharing.found_exchanges.find_exchanges`.
    sockets : iterable of str
        Names of sockets, for exchanges whose processes cannot be inspected.

    Raises
    ------
    AttachError
        If ``/proc`` cannot be read, or no process has the exchange of one of the sockets.
    """
    states = []
    for inode, found in find_exchanges(every_user=True, denied=denied, faulty=faulty).items():
        state = _read(inode, found) if found.header.is_finished else None
        if state is not None:
            states.append(state)
    for name in sockets:
        looked = look_at_socket(name)
        if looked is None:
            raise AttachError(f"no process has the exchange {name!r} open")
        fd, header = looked
        try:
            inode = os.fstat(fd).st_ino
            if all(state.inode != inode for state in states):
                states.append(_state(fd, header, inode, []))
        finally:
            os.close(fd)
    return sorted(states, key=lambda state: (state.header.name, state.inode))


def _read(inode: int, found: Found) -> ExchangeState | None:
    for file in found.files:
        try:
            fd, _ = open_block_file(file)
        except (OSError, ValueError):
            continue  # this process has ended
        try:
            return _state(fd, found.header, inode, sorted({file.pid for file in found.files}))
        except (OSError, struct.error):
            continue
        finally:
            os.close(fd)
    return None


def _state(fd: int, header: Header, inode: int, pids: list[int]) -> ExchangeState:
    plan = header.plan
    form = _LATEST if plan.kind == "latest" else _RING
    numbers = form.unpack(os.pread(fd, form.size, header.offset))
    users = [holder(fd, slot) for slot in range(1 + plan.readers)]
    readers = [one for one in users[1:] if one is not None]
    if plan.kind == "latest":
        newest, written_at = numbers
        age = None
        if written_at and plan.clock in _CLOCKS:
            age = max(0, time.clock_gettime_ns(_CLOCKS[plan.clock]) - written_at)
        return ExchangeState(header, inode, users[0], readers, pids, newest >> 8, age_ns=age)
    tail, head, high_water, dropped = numbers
    fill = min((tail - head) % 2**64, plan.capacity)  # a push may have come between the two loads
    high_water = min(high_water, plan.capacity)
    return ExchangeState(header, inode, users[0], readers, pids, tail, fill, dropped, high_water)
