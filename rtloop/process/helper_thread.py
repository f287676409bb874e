"""Thread that the keeper may wait for, whatever the program's threads hold."""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Callable
from typing import Any

from rtloop.process.occasion import Occasion
from rtloop.process.signal_shield import block_signals, is_keeper, start_thread, waits_for_keeper

__all__ = ["HelperThread", "call_aside"]

#: Interval at which a waiting thread looks at the flag.
_SLICE_S = 0.05
#: Longest wait for a call of the program's own code.
_PATIENCE_S = 1.0
_STACK_BYTES = 1 << 20


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
        self._pid, self._ident, self._end = os.getpid(), 0, Occasion()
        start_thread(self._work, (function,), stack_bytes, name)

    def _work(self, function: Callable[[], object]) -> None:
        self._ident = _thread.get_ident()
        try:
            block_signals()
            function()
        finally:
            self._end.set()

    @property
    def is_current(self) -> bool:
        """True on this thread itself."""
        return self._ident == _thread.get_ident() and self._pid == os.getpid()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the function. Returns True if it has ended, and always in a forked child.

        The keeper does not wait for a function that waits for the keeper: any function may, in a finalizer that the
        collector of garbage runs on its thread.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._end.is_set() and self._pid == os.getpid():
            left = _SLICE_S if until is None else min(_SLICE_S, until - time.monotonic())
            if left <= 0 or (is_keeper() and waits_for_keeper(self._ident)):
                return False
            self._end.wait(left)
        return True


def call_aside(function: Callable[..., object], *arguments: Any) -> None:
    """Call a function of the program on another thread, and wait for it up to a second.

    It may need a lock that a thread holds whose signal handler waits for the caller.

    Raises
    ------
    BaseException
        That of the function, if it has ended in that time.
    """
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function(*arguments)
        except BaseException as error:
            raised.append(error)

    try:
        thread = HelperThread(call, "rtloop-aside", _STACK_BYTES)
    except RuntimeError:  # the interpreter is about to end, and runs no handlers
        call()
    else:
        thread.join(_PATIENCE_S)
    if raised:
        raise raised[0]
