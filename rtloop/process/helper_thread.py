"""Thread that the keeper may wait for, whatever the program's threads hold."""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Callable

from rtloop.process.signal_shield import block_signals, start_thread

__all__ = ["HelperThread"]

#: Interval at which a waiting thread looks at the flag.
_SLICE_S = 0.05


class HelperThread:
    """Thread whose start and end take no lock of the module threading.

    A signal handler may interrupt a thread of the program that holds such a lock, and wait for the keeper, which starts
    and joins helper threads: with :class:`threading.Thread` each would wait for the other. The end of the interpreter
    does not wait for this thread.

    Parameters
    ----------
    function : callable
        Called without arguments on the thread. Its exception goes to :func:`sys.unraisablehook`.
    name : str
        Name of the thread in the kernel, up to 15 characters.
    stack_bytes : int
        Size of the stack. All of it may be locked.

    Raises
    ------
    RuntimeError
        If no thread can be created.
    """

    def __init__(self, function: Callable[[], object], name: str, stack_bytes: int) -> None:
        self._pid, self._has_ended = os.getpid(), False
        self._ident = 0
        self._end = _thread.allocate_lock()
        self._end.acquire()
        start_thread(self._work, (function,), stack_bytes, name)

    def _work(self, function: Callable[[], object]) -> None:
        self._ident = _thread.get_ident()
        try:
            block_signals()
            function()
        finally:
            self._has_ended = True
            self._end.release()

    @property
    def is_current(self) -> bool:
        """True on this thread itself."""
        return self._ident == _thread.get_ident() and self._pid == os.getpid()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the function. Returns True if it has ended, and always in a forked child."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._has_ended and self._pid == os.getpid():
            left = _SLICE_S if until is None else min(_SLICE_S, until - time.monotonic())
            if left <= 0:
                return False
            # Not without a limit: whoever holds the lock for a moment may be interrupted by a signal handler.
            if self._end.acquire(timeout=left):
                self._end.release()
        return True
