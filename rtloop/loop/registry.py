"""Registry of the running loops of this process: reaps them, and handles forks and the end of the program."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from contextlib import suppress
from typing import Protocol

from rtloop.errors import RTSetupWarning, StateError, StopTimeoutError
from rtloop.guard.preload import refuse_while
from rtloop.process.exit_hooks import LOOPS, at_end, ending
from rtloop.process.helper_thread import call_aside
from rtloop.process.signal_shield import look_with

__all__ = ["EXIT_TIMEOUT_NS", "check_not_ending", "leave", "loops", "reap_finished", "report_error", "simulations"]

#: Longest wait for the thread of a watchdog, or of a loop that was found stuck.
EXIT_TIMEOUT_NS = 2_000_000_000


class _Control(Protocol):
    @property
    def is_helper(self) -> bool: ...
    @property
    def leave_timeout_ns(self) -> int: ...
    def reap(self) -> bool: ...
    def request_stop(self) -> None: ...
    def stop(self, timeout_ns: int, begin_ns: int | None = None) -> None: ...


loops: set[_Control] = set()
#: Loops in virtual time: they hold no resources, but their leave() has to run as well.
simulations: set[_Control] = set()
_has_warned_of_fork = False
#: Loops that :func:`_stop_all` is stopping, and the number of those that a signal has ended before it began.
_stopping: set[_Control] = set()
_ended_before = 0


def leave(control: _Control, has_signal_come: bool) -> None:
    """Remove a loop that has ended. If a signal has told it to end, the report of the end counts it."""
    global _ended_before
    loops.discard(control)
    if has_signal_come and not control.is_helper and control not in _stopping:
        _ended_before += 1


def reap_finished() -> bool:
    """Release the resources of loops that have ended. Returns True if any loop is left."""
    for control in list(loops):
        try:
            control.reap()
        except Exception as error:
            report_error(error)
    return bool(loops)


def check_not_ending(name: str) -> None:
    """Refuse a start while the program is ending, because nobody would stop the loop.

    Raises
    ------
    StateError
        With the reason.
    """
    if cause := ending():
        raise StateError(f"{name} cannot be started: {cause}, so the program is ending")


def _stop_all() -> str:
    """Ask all loops to end, then wait for each up to its `leave_timeout`. Returns a sentence about it."""
    global _ended_before
    _stopping.update(loops, simulations)  # first, so that a loop that ends meanwhile is counted once
    every = list(_stopping)
    begin = time.monotonic_ns()
    for control in every:
        control.request_stop()
    for control in every:
        try:
            control.stop(control.leave_timeout_ns, begin)
        except BaseException as error:  # even one of a signal handler, because the other loops must stop as well
            report_error(error)
    count = sum(not control.is_helper for control in every) + _ended_before
    _stopping.clear()
    _ended_before = 0
    return f"stopped {count} loop{'s' * (count != 1)}" if count else ""


def _is_any_left() -> bool:
    return bool(loops) or bool(simulations)


def report_error(error: BaseException) -> None:
    """Report an exception that has no caller to catch it, if stderr can still be written to.

    A thread that a signal handler may wait for does not wait for stderr, whose lock an interrupted print() may hold.
    """
    text = f"rtloop: {error}\n" if isinstance(error, StopTimeoutError) else f"rtloop: {error!r}\n"
    if threading.get_ident() == threading.main_thread().ident:
        _write(text)
    else:
        call_aside(_write, text)


def _write(text: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # of a closed terminal or file, or None
        sys.stderr.write(text)
        sys.stderr.flush()


def _before_fork() -> None:
    global _has_warned_of_fork
    if loops and not _has_warned_of_fork:
        _has_warned_of_fork = True
        warnings.warn(
            "this process forks while a real-time loop runs: every private page becomes copy-on-write, and the loop's "
            "first write to each is a page fault. Use multiprocessing's 'spawn' or 'forkserver', and no preexec_fn in "
            "subprocess",
            RTSetupWarning,
            stacklevel=2,
        )


def _forget() -> None:
    global _ended_before
    for every in (loops, simulations, _stopping):
        every.clear()
    _ended_before = 0


at_end(LOOPS, _stop_all, _is_any_left)
refuse_while(reap_finished)
look_with(reap_finished)
os.register_at_fork(before=_before_fork, after_in_child=_forget)
