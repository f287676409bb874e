"""Event that a signal handler may set and wait for, whatever it has interrupted."""

from __future__ import annotations

import _thread
import time
from contextlib import suppress

__all__ = ["Occasion"]

#: Interval at which a waiting thread looks at the flag.
_SLICE_S = 0.05


class Occasion:
    """Event that happens once.

    A :class:`threading.Event` has a lock that is not reentrant: a handler that has interrupted its ``set`` or ``wait``
    would wait for ever.
    """

    def __init__(self) -> None:
        self._has_come = False
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let it happen. A further call does nothing."""
        self._has_come = True
        with suppress(RuntimeError):  # released before
            self._lock.release()

    def is_set(self) -> bool:
        """Return True if it has happened."""
        return self._has_come

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for it. Returns True if it has happened."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._has_come:
            left = _SLICE_S if until is None else min(_SLICE_S, until - time.monotonic())
            if left <= 0:
                return False
            # Not without a limit: whoever holds the lock for a moment may be interrupted by a signal handler.
            if self._lock.acquire(timeout=left):
                with suppress(RuntimeError):  # released by another one
                    self._lock.release()
        return True
