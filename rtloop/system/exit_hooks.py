"""Calls to make when the program ends: by its main thread's end, by the interpreter's, or by a signal.

They are made in stages, whoever was imported first. A program can end in three ways that a library can see: the
interpreter ends (atexit); the main thread has ended, while other threads keep the interpreter from ending, which the
keeper finds; a signal ends the process (:mod:`rtloop.system.ending_signals`).
"""

from __future__ import annotations

import atexit
import threading
from functools import partial
from typing import TYPE_CHECKING

from rtloop.system.signal_shield import keep_looking, look_with, shielded

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOOPS", "RECORDERS", "at_end", "ending", "go_on", "is_making_calls", "make_calls", "watch"]

#: Loops end first: what they have pushed by then is recorded.
LOOPS = 0
RECORDERS = 1

_calls: dict[int, list[Callable[[], str]]] = {LOOPS: [], RECORDERS: []}
_active: list[Callable[[], bool]] = []
_turn = threading.Lock()
_holder = 0
_cause = ""


def at_end(stage: int, call: Callable[[], str | None], is_active: Callable[[], bool] = lambda: False) -> None:
    """Make a call when the program ends.

    Parameters
    ----------
    stage : int
        LOOPS or RECORDERS.
    call : callable
        Must not raise. Returns a sentence about what it did, if there is anything to report.
    is_active : callable
        Whether there is anything to end now; see :func:`watch`.
    """
    _calls[stage].append(lambda: call() or "")
    _active.append(is_active)


def ending() -> str:
    """Return why the program is ending, so that nothing may be started any more; "" if it is not."""
    return _cause or ("" if threading.main_thread().is_alive() else "the main thread has ended")


def make_calls(cause: str, *, must_wait: bool = True) -> list[str]:
    """Make all calls, stage by stage. Returns their sentences.

    Parameters
    ----------
    cause : str
        What :func:`ending` returns from now on; "" leaves it.
    must_wait : bool
        Whether to wait for another thread that is making the calls now.
    """
    global _cause, _holder
    if not _take_turn(must_wait):
        return []
    _cause, _holder = cause or _cause, threading.get_ident()
    try:
        return [said for stage in sorted(_calls) for call in list(_calls[stage]) if (said := call())]
    finally:
        _holder = 0
        _turn.release()


def is_making_calls() -> bool:
    """Whether this thread is making the calls now."""
    return _holder == threading.get_ident()


def go_on() -> None:
    """Let loops be started again: the program has not ended."""
    global _cause
    _cause = ""


def _take_turn(must_wait: bool) -> bool:
    while True:
        try:
            return _turn.acquire(blocking=must_wait)
        except BaseException:  # a signal handler's: this is the end already
            continue


def watch() -> None:
    """Have the keeper look for the main thread's end as long as anything is active; to be called by what is."""
    keep_looking()


def _look() -> bool:
    """End what is active when the main thread has ended. Returns whether anything is active."""
    is_any_active = any(is_active() for is_active in _active)
    if is_any_active and not threading.main_thread().is_alive():
        make_calls("", must_wait=False)
        is_any_active = any(is_active() for is_active in _active)
    return is_any_active


look_with(_look)
# On the keeper's thread: what signal handlers raise on the main thread comes when all has ended.
atexit.register(shielded, partial(make_calls, ""))
