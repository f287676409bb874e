"""Short waits of threads that are not real-time, under any seccomp filter."""

from __future__ import annotations

import _thread

__all__ = ["nap"]


def nap(seconds: float) -> None:
    """Wait as time.sleep does, but with futex(2), which every thread needs.

    time.sleep raises a PermissionError if a seccomp filter forbids clock_nanosleep(2). Signal handlers of Python run
    during the wait, and their exceptions end it.
    """
    lock = _thread.allocate_lock()
    lock.acquire()
    lock.acquire(timeout=max(0.0, seconds))
