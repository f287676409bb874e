"""Threads that a loop's own thread has started in ``enter``, ``step`` or ``wait``: their names, policies and CPUs."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from rtloop.guard.thread_pools import loop_tids
from rtloop.process.python_threads import python_threads
from rtloop.settings import format_policy
from rtloop.system.cpu import format_cpu_list
from rtloop.system.fileio import parse_fields, read_text
from rtloop.system.grant import Grant

__all__ = ["GRANT", "StartedThreads", "starting"]

#: Name of the grant.
GRANT = "started_threads"
#: An item for each thread of rtloop that is being created now, and is not known yet.
starting: list[object] = []
#: Signals that a loop's thread does not block (rt_thread_create), and those that nobody can.
_OPEN = (
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT,
    signal.SIGKILL, signal.SIGSTOP,
)  # fmt: skip
#: The mask that a loop's thread has, and that its children inherit; glibc keeps 32 and 33 for itself.
_BLOCKED = (1 << 64) - 1 - sum(1 << (number - 1) for number in (*_OPEN, 32, 33))
_MOST_NAMED = 4


class StartedThreads:
    """Threads of this process that appear after this object is made, with the signal mask of a loop's thread.

    Only a loop's thread has that mask: everything blocked except what a fault raises. A thread that ends before
    :meth:`grants` is called is not seen.
    """

    def __init__(self) -> None:
        self._before = frozenset(_tasks())
        self._found: dict[int, str] = {}

    def grants(self) -> list[Grant]:
        """Return a grant that names the threads found so far, none if there are none."""
        self._look()
        if not self._found:
            return []
        named = list(self._found.values())
        text = ", ".join(named[:_MOST_NAMED])
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        count = "1 thread" if len(named) == 1 else f"{len(named)} threads"
        detail = (
            "started by a loop's thread, in enter, step or wait: such a thread inherits the loop's CPUs and its "
            "blocked signals, but not its priority (reset on fork), so a step that waits for it waits for everything "
            "else on these CPUs; start it in setup(), or give it a policy and CPUs of its own"
        )
        return [Grant(GRANT, "none", f"{count}: {text}{more}", True, detail, kind="thread", value=len(named))]

    def _look(self) -> None:
        if starting:
            return
        new = set(_tasks()) - self._before - self._found.keys() - python_threads()
        for tid in new - set(loop_tids):
            with suppress(OSError, ValueError, KeyError):  # it may have ended
                status = parse_fields(read_text(f"/proc/self/task/{tid}/status"))
                name = status["Name"]
                if int(status["SigBlk"], 16) != _BLOCKED or name.startswith("rtloop"):
                    continue
                policy = format_policy(os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK,
                                       os.sched_getparam(tid).sched_priority)  # fmt: skip
                cpus = format_cpu_list(sorted(os.sched_getaffinity(tid)))
                if not starting and tid not in loop_tids:  # else it may be the thread of a loop that has just begun
                    self._found[tid] = f"{name} ({policy}, CPU {cpus})"


def _tasks() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return []
