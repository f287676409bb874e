"""Calls to make when the program ends, in stages that do not depend on the order of imports.

A library can notice four kinds of end. The interpreter ends (atexit). A process of `multiprocessing` ends, which does
without atexit if it was forked. The main thread has ended while other threads keep the interpreter alive, which the
keeper notices. A signal ends the process (:mod:`rtloop.process.ending_signals`).
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from rtloop.process.signal_shield import keep_looking, look_with, shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

__all__ = [
    "LOOPS",
    "RECORDERS",
    "WeakObjects",
    "at_end",
    "at_exit",
    "ending",
    "go_on",
    "is_making_calls",
    "make_calls",
    "watch",
]

#: Loops end first, so that recorders still get everything that they have pushed.
LOOPS = 0
RECORDERS = 1

#: Before the finalizers of `multiprocessing` itself, whose queues and managers a loop or a recorder may still use.
_PRIORITY = 1000

_calls: dict[int, list[Callable[[], str]]] = {LOOPS: [], RECORDERS: []}
_active: list[Callable[[], bool]] = []
_at_exit: list[Callable[[], object]] = []
_has_hook = False
_T = TypeVar("_T")
_turn = threading.Lock()
_holder = 0
_cause = ""


class WeakObjects(Generic[_T]):
    """Objects to close when the program ends, as long as others hold them.

    Any threads may add and discard while another one goes through them: an iteration is over the objects at its
    beginning. (A WeakSet would raise an exception.)
    """

    def __init__(self) -> None:
        self._objects: weakref.WeakValueDictionary[int, _T] = weakref.WeakValueDictionary()

    def add(self, one: _T) -> None:
        """Add an object."""
        self._objects[id(one)] = one

    def discard(self, one: _T) -> None:
        """Remove an object, if it is there."""
        self._objects.pop(id(one), None)

    def __contains__(self, one: _T) -> bool:
        return self._objects.get(id(one)) is one

    def __iter__(self) -> Iterator[_T]:
        return iter([one for ref in self._objects.valuerefs() if (one := ref()) is not None])

    def __bool__(self) -> bool:
        return any(True for _ in self)


def at_end(stage: int, call: Callable[[], str | None], is_active: Callable[[], bool] = lambda: False) -> None:
    """Make a call when the program ends.

    Parameters
    ----------
    stage : int
        LOOPS or RECORDERS.
    call : callable
        Function that must not raise. It returns a sentence about what it did, if there is anything to report.
    is_active : callable
        Function that returns True while there is anything to end; see :func:`watch`.
    """
    _calls[stage].append(lambda: call() or "")
    _active.append(is_active)


def at_exit(call: Callable[[], object]) -> None:
    """Make a call when the interpreter ends, or a process of `multiprocessing`; later ones are made first."""
    _at_exit.append(call)
    atexit.register(call)


def ending() -> str:
    """Return the reason that the program is ending, after which nothing may be started; "" if it is not."""
    return _cause or ("" if _is_main_alive() else "the main thread has ended")


def _is_main_alive() -> bool:
    """Return True if the main thread is alive, and does not wait for the workers of `concurrent.futures` to end.

    Those are waited for before the thread counts as ended, and one of them may run a loop.
    On the main thread without a call of is_alive(): before Python 3.13, an exception of a signal handler in that call
    marks the thread as ended.
    """
    main = threading.main_thread()
    return main.ident == threading.get_ident() or (main.is_alive() and not getattr(threading, "_SHUTTING_DOWN", False))


def make_calls(cause: str, *, must_wait: bool = True) -> list[str]:
    """Make all calls, stage by stage. Returns their sentences.

    Parameters
    ----------
    cause : str
        Result of :func:`ending` from now on; "" leaves it unchanged.
    must_wait : bool
        True to wait for another thread that is making the calls now.
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
    """Return True if this thread is making the calls now."""
    return _holder == threading.get_ident()


def go_on() -> None:
    """Allow loops to be started again, because the program has not ended."""
    global _cause
    _cause = ""


def _take_turn(must_wait: bool) -> bool:
    while True:
        try:
            return _turn.acquire(blocking=must_wait)
        except BaseException:  # a signal handler's: this is the end already
            continue


def watch() -> None:
    """Make the keeper check for the main thread's end as long as anything is active; active objects call this."""
    keep_looking()


def _look() -> bool:
    """End everything active if the main thread has ended. Returns True if anything is still active."""
    is_any_active = any(is_active() for is_active in _active)
    if is_any_active and not _is_main_alive():
        make_calls("", must_wait=False)
        is_any_active = any(is_active() for is_active in _active)
    return is_any_active


def _reset_after_fork() -> None:
    """Forget calls that another thread was making, because a forked child has no copy of that thread."""
    global _cause, _holder, _turn
    _turn, _holder, _cause = threading.Lock(), 0, ""


def _end() -> None:
    """Make all calls at the exit of the program.

    On the keeper's thread, so that exceptions of signal handlers on the main thread wait until everything has ended.
    A KeyboardInterrupt has nothing to end by then, and Python would print its traceback.
    """
    with suppress(KeyboardInterrupt):
        shielded(partial(make_calls, ""))


def _follow_multiprocessing() -> None:
    """Make the exit calls at the end of the children of `multiprocessing`, this process and later ones, if it is used.

    A forked child, also one of its "forkserver", ends with os._exit, after the finalizers of `multiprocessing`.
    """
    global _has_hook
    util = sys.modules.get("multiprocessing.util")
    if util is None or _has_hook:
        return
    _has_hook = True
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        _finalize_with(util)
    util.register_after_fork(util, _finalize_with)


def _finalize_with(util: ModuleType) -> None:
    util.Finalize(None, _make_exit_calls, exitpriority=_PRIORITY)


def _make_exit_calls() -> None:
    for call in reversed(_at_exit):
        call()


_follow_multiprocessing()
os.register_at_fork(before=_follow_multiprocessing, after_in_child=_reset_after_fork)
look_with(_look)
at_exit(_end)
