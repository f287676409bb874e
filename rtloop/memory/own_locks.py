"""Locks of a loop's own memory: its stack, state, telemetry and guards, each with a Grant, held until the loop ends.

`lock_memory` is the loop's keyword of that name; ``"off"`` locks nothing.
"""

from __future__ import annotations

from contextlib import ExitStack

from rtloop.memory import process_lock
from rtloop.memory.lock_grant import range_lock_grant
from rtloop.system.grant import Grant

__all__ = ["lock_range", "lock_ranges", "own_grant"]


def own_grant(lock_memory: str, name: str, what: str, size: int, rc: int) -> Grant:
    """Return the grant for locking a range of the loop's own; `rc` is 0 or the negative errno of mlock(2)."""
    return range_lock_grant(name, size, rc, detail=what, is_asked=lock_memory != "off")


def lock_range(
    lock_memory: str, stack: ExitStack, name: str, what: str, address: int, size: int, is_own: bool
) -> Grant:
    """Lock a range until the loop ends; `is_own` is False for the user's memory."""
    rc = 0
    if lock_memory != "off" and size:
        rc = process_lock.memory_lock.acquire_range(address, size, **({} if is_own else {"is_own": False}))
        if rc == 0:  # a lock that the user holds on the same range stays
            stack.callback(process_lock.memory_lock.release_range, address, size)
    return own_grant(lock_memory, name, what, size, rc)


def lock_ranges(lock_memory: str, stack: ExitStack, ranges: tuple[tuple[int, int], ...]) -> int:
    """Lock the parts of a thread's stack until its loop ends. Returns 0 or the first negative errno."""
    rc = 0
    if lock_memory != "off":
        for address, size in ranges:
            rc = rc or process_lock.memory_lock.acquire_range(address, size, is_copied=True)
            stack.callback(process_lock.memory_lock.release_range, address)
    return rc
