"""The loops of this process that run now, and what the process owes them: a look at their ends, a fork, its exit."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Protocol

from rtloop.errors import RTSetupWarning, StopTimeoutError
from rtloop.guard.preload import refuse_while
from rtloop.system.exit_hooks import LOOPS, at_end
from rtloop.system.signal_shield import look_with

__all__ = ["EXIT_TIMEOUT_NS", "loops", "reap_finished"]

#: How long a loop is waited for when the process, or the wait for the loop, is ending.
EXIT_TIMEOUT_NS = 2_000_000_000


class _Control(Protocol):
    def reap(self) -> bool: ...
    def request_stop(self) -> None: ...
    def stop(self, timeout_ns: int) -> None: ...


loops: set[_Control] = set()
_has_warned_of_fork = False


def reap_finished() -> bool:
    """Give back what loops hold that ended by themselves. Returns whether any loop is left."""
    for control in list(loops):
        try:
            control.reap()
        except Exception as error:
            _tell(error)
    return bool(loops)


def _stop_all() -> None:
    """At interpreter exit: ask all loops to end, then wait for each."""
    for control in list(loops):
        control.request_stop()
    for control in list(loops):
        try:
            control.stop(EXIT_TIMEOUT_NS)
        except Exception as error:  # the others must stop, too
            _tell(error)


def _tell(error: Exception) -> None:
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


at_end(LOOPS, _stop_all)
refuse_while(reap_finished)
look_with(reap_finished)
os.register_at_fork(before=_before_fork, after_in_child=loops.clear)
