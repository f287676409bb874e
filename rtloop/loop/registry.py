"""The loops of this process that run now, and what the process owes them: a look at their ends, a fork, its exit."""

from __future__ import annotations

import os
import sys
import time
import warnings
from typing import Protocol

from rtloop.errors import RTSetupWarning, StateError, StopTimeoutError
from rtloop.guard.preload import refuse_while
from rtloop.system.exit_hooks import LOOPS, at_end, ending
from rtloop.system.signal_shield import look_with

__all__ = ["EXIT_TIMEOUT_NS", "check_not_ending", "loops", "reap_finished", "simulations"]

#: How long the thread of a watchdog, or of a loop that has been found stuck, is waited for.
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
#: Loops that run in virtual time: they hold nothing, but their leave() is due as well.
simulations: set[_Control] = set()
_has_warned_of_fork = False


def reap_finished() -> bool:
    """Give back what loops hold that ended by themselves. Returns whether any loop is left."""
    for control in list(loops):
        try:
            control.reap()
        except Exception as error:
            _tell(error)
    return bool(loops)


def check_not_ending(name: str) -> None:
    """Refuse a start while the program is ending, because nobody would stop the loop.

    Raises
    ------
    StateError
        With the reason.
    """
    if cause := ending():
        raise StateError(f"{name} cannot be started: {cause}, and with it every loop ends")


def _stop_all() -> str:
    """Ask all loops to end, then wait for each, as long as its `leave_timeout`. Returns what was done."""
    every = [*loops, *simulations]
    begin = time.monotonic_ns()
    for control in every:
        control.request_stop()
    for control in every:
        try:
            control.stop(control.leave_timeout_ns, begin)
        except BaseException as error:  # also what a signal handler raises: the others must stop, too
            _tell(error)
    count = sum(not control.is_helper for control in every)
    return f"stopped {count} loop{'s' * (count != 1)}" if count else ""


def _is_any_left() -> bool:
    return bool(loops) or bool(simulations)


def _tell(error: BaseException) -> None:
    """Report what nobody is there to catch."""
    print(f"rtloop: {error}" if isinstance(error, StopTimeoutError) else f"rtloop: {error!r}", file=sys.stderr)


def _before_fork() -> None:
    global _has_warned_of_fork
    if loops and not _has_warned_of_fork:
        _has_warned_of_fork = True
        warnings.warn(
            "this process forks while a real-time loop runs: every private page becomes copy-on-write, and the loop "
            "pays for the first write to each. Use multiprocessing's 'spawn' or 'forkserver', and no preexec_fn in "
            "subprocess",
            RTSetupWarning,
            stacklevel=2,
        )


def _forget() -> None:
    loops.clear()
    simulations.clear()


at_end(LOOPS, _stop_all, _is_any_left)
refuse_while(reap_finished)
look_with(reap_finished)
os.register_at_fork(before=_before_fork, after_in_child=_forget)
