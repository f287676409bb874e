"""Grants of a running loop as the kernel has them now: what can be read again is read again at each snapshot.

Everything here runs on the thread that asks, and reads what the kernel offers of a task: the loop pays nothing for it.
"""

from __future__ import annotations

import copy
import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from rtloop.guard.guard_block import has_signal
from rtloop.memory import kernel
from rtloop.settings import POLICIES, format_policy
from rtloop.stats.guard_summary import GRANTS, UNAVAILABLE
from rtloop.system.cpu import format_cpu_list, mask_to_cpus, parse_cpu_list
from rtloop.system.fileio import parse_field, read_text
from rtloop.system.grant import Grant
from rtloop.system.syscalls import number_of
from rtloop.units import format_size

__all__ = ["LiveGrants", "Now"]

#: A grant read again: its value, True if it satisfies the request, and the cause if it is known; None if not readable.
Now = tuple[str, bool] | tuple[str, bool, str] | None

_DMA_LATENCY = "/dev/cpu_dma_latency"
#: Grants that the report of a thread that has ended decides.
_OF_REPORT = ("policy", "cpu", "timer_slack")
#: Age up to which what was read ahead is used: a stop waits for the next release, which is seldom later.
_AHEAD_NS = 20_000_000
_FIX = "something outside of the loop has changed it: keep that from doing so, and start the loop again"


class _Ahead(NamedTuple):
    """Grants that were read shortly before the end of a thread: by name, and those that appeared during the run."""

    at_ns: int
    grants: dict[str, Grant]
    more: tuple[Grant, ...]


class LiveGrants:
    """The grants of one run of a loop, read again by :meth:`now`.

    Parameters
    ----------
    grants : tuple of Grant
        As they were at the start.
    pid, tid : int
        The process and the loop's thread, as they are numbered here.
    ranges : mapping, optional
        Of a loop of this process: the address and the size of what each grant of kind ``"lock"`` has locked. Without
        it the loop is of another process.
    readers : mapping, optional
        Functions that read a grant again, by its name, in the process that holds it.
    descriptors : mapping, optional
        Numbers of the files that the process holds open for a grant, by its name.
    find_more : callable, optional
        Returns additional grants, for what appeared during the run.
    """

    def __init__(
        self,
        grants: tuple[Grant, ...],
        pid: int,
        tid: int,
        ranges: Mapping[str, tuple[int, int]] | None = None,
        readers: Mapping[str, Callable[[Grant], Grant]] | None = None,
        descriptors: Mapping[str, int] | None = None,
        find_more: Callable[[], list[Grant]] = list,
    ) -> None:
        self._readers, self._descriptors, self._find_more = readers or {}, descriptors or {}, find_more
        self._start = {grant.name: grant for grant in grants}
        self._grants = grants
        self._pid, self._tid, self._ranges = pid, tid, ranges
        self._warned: dict[str, object] = {}
        self._ended: tuple[str, tuple[int, ...]] | None = None
        self._files: dict[str, str] = {}
        self._ahead: _Ahead | None = None

    def now(
        self,
        report: Mapping[str, Any] | None = None,
        is_held: Callable[[], bool] = lambda: True,
        files: dict[str, str] | None = None,
    ) -> tuple[Grant, ...]:
        """Return the grants as the kernel has them now.

        Parameters
        ----------
        report : mapping, optional
            Report of the thread (rt_thread_report_t) once it has ended; the thread itself has read it again then.
        is_held : callable
            Returns False if another thread has begun to release what the grants are about. The grants are then those
            that were read before, because what is released would look lost.
        files : dict, optional
            Content by path of files in ``/proc`` that belong to a whole process. Those that are read are added, for the
            next loop of the same process.
        """
        ahead = self._ahead
        if report is None or ahead is None or time.monotonic_ns() - ahead.at_ns > _AHEAD_NS:
            ahead = None
        reader = copy.copy(self)  # several threads may ask at once
        reader._ended, reader._files = None, {} if files is None else files
        if report is not None and report["attr"]["size"]:
            attr = report["attr"]
            times = attr["sched_runtime"], attr["sched_deadline"], attr["sched_period"]
            text = format_policy(attr["sched_policy"], attr["sched_priority"], times)
            reader._ended = text, mask_to_cpus(report["cpus"])
        grants = reader._read(ahead)
        if is_held():
            self._grants = grants
            if report is None:  # what was read ahead is older than this
                self._ahead = None
        return self._grants

    def read_ahead(self, is_held: Callable[[], bool]) -> None:
        """Read, while a thread runs its last cycle, what its report does not decide, for the :meth:`now` that has it.

        That call then takes a third of the time. It reads anew what is older than 20 ms.

        Parameters
        ----------
        is_held : callable
            As of :meth:`now`.
        """
        reader = copy.copy(self)
        reader._ended, reader._files = None, {}
        at_ns, grants = time.monotonic_ns(), reader._read(None)
        if is_held():
            known = {grant.name: grant for grant in grants if grant.name in self._start}
            self._ahead = _Ahead(at_ns, known, tuple(grant for grant in grants if grant.name not in known))

    def _read(self, ahead: _Ahead | None) -> tuple[Grant, ...]:
        """Return the grants read again, but for those that were read ahead."""
        known = {} if ahead is None else ahead.grants
        grants = tuple(
            known[grant.name] if grant.name in known and grant.name not in _OF_REPORT else self._again(grant)
            for grant in self._grants
            if grant.name in self._start
        )
        return grants + (tuple(self._find_more()) if ahead is None else ahead.more)

    def with_step(
        self, former: Iterable[str], grants: Iterable[Grant], ranges: Mapping[str, tuple[int, int]]
    ) -> LiveGrants:
        """Return the grants of the same run with another step.

        Parameters
        ----------
        former : iterable of str
            Names of the grants of the former step, which is released.
        grants : iterable of Grant
            Those of the new step.
        ranges : mapping
            What the grants of the new step have locked.
        """
        made = copy.copy(self)
        made._ahead = None
        gone, new = set(former), tuple(grants)
        made._grants = tuple(grant for grant in self._grants if grant.name not in gone) + new
        made._start = {name: grant for name, grant in self._start.items() if name not in gone}
        made._start |= {grant.name: grant for grant in new}
        made._ranges = {name: place for name, place in (self._ranges or {}).items() if name not in gone} | dict(ranges)
        return made

    def unreported(self) -> list[Grant]:
        """Return the lost grants that this has not returned yet."""
        mine = object()  # of several threads that ask at once, one gets each grant
        lost = [grant for grant in self._grants if grant.lost is not None]
        return [grant for grant in lost if self._warned.setdefault(grant.name, mine) is mine]

    def _again(self, last: Grant) -> Grant:
        start = self._start[last.name]
        if start.name in self._readers:
            return self._judge(self._readers[start.name](start), start, last)
        read = _READERS.get(start.name) or (_READERS["lock"] if start.kind == "lock" else None)
        if read is None or (start.name == "telemetry" and start.kind != "lock"):
            return last
        try:
            found = read(self, start)
        except (OSError, ValueError):  # the task has ended, or may not be looked at
            return last
        if found is None:
            return last
        granted, is_ok, *causes = found
        detail = causes[0] if causes else ""
        if is_ok or not start.ok:
            detail = detail or (f"was {start.granted} at the start" if is_ok else start.detail)
        return self._judge(start._replace(granted=granted, ok=is_ok, detail=detail), start, last)

    @staticmethod
    def _judge(now: Grant, start: Grant, last: Grant) -> Grant:
        """Return the grant as read now, the one of the start if they agree, or a lost one."""
        if now.granted == start.granted and now.ok == start.ok:
            return start
        if now.ok or not start.ok:
            return now
        granted, causes = now.granted, [now.detail] if now.detail else []
        lost = last.lost if last.lost is not None else time.time_ns()
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(lost // 10**9))
        detail = "; ".join([f"lost: was {start.granted}, is now {granted}", *causes, f"first seen {since}"])
        return start._replace(granted=granted, ok=False, detail=detail, fix=_FIX, lost=lost)

    def _file(self, name: str) -> str:
        """Return the content of a file of the process, read once for all grants."""
        path = f"/proc/{self._pid}/{name}"
        text = self._files.get(path)
        if text is None:
            text = self._files[path] = read_text(path)
        return text

    def _limit(self, name: str) -> str | None:
        """Return a soft limit of the process, None if this kernel does not have it."""
        rest = f"\n{self._file('limits')}".partition(f"\n{name} ")[2]
        return rest.split(maxsplit=1)[0] if rest else None

    def _policy(self, start: Grant) -> Now:
        if self._ended is not None:
            text = self._ended[0]
        else:
            policy = os.sched_getscheduler(self._tid) & ~os.SCHED_RESET_ON_FORK
            is_deadline = policy == POLICIES["deadline"]
            times = _deadline_times(self._tid) if is_deadline else ()
            if times is None:
                return None
            text = format_policy(policy, os.sched_getparam(self._tid).sched_priority, times)
        return text, text == start.requested

    def _cpu(self, start: Grant) -> Now:
        cpus = tuple(sorted(os.sched_getaffinity(self._tid))) if self._ended is None else self._ended[1]
        if not cpus:
            return None
        # One that was inherited has been changed by somebody since, but nobody asked for it.
        text = format_cpu_list(cpus)
        is_pinned = start.requested not in ("auto", "inherited")
        return text, cpus == parse_cpu_list(str(start.requested)) if is_pinned else True

    def _lock(self, start: Grant) -> Now:
        lost = f"{str(start.granted).removesuffix(', not locked').removesuffix(', locked')}, not locked"
        if start.name == "memory_lock":
            lost = "nothing"
        locked = parse_field(self._file("status"), "VmLck")
        if locked is None:
            return None
        if locked == "0 kB" and start.requested != "own":
            return lost, False
        if self._ranges is None:
            return str(start.granted), start.ok
        if start.name == "memory_lock":
            if "current" in str(start.requested) or start.requested == "own" or not start.ok:
                return None
            return (str(start.granted), True) if kernel.future_lock() else ("present memory only", False)
        address, size = self._ranges.get(start.name, (0, 0))
        if not size or not start.ok:
            return None
        return (str(start.granted), True) if kernel.is_range_locked(address, size) else (lost, False)

    def _dma_latency(self, start: Grant) -> Now:
        folder, number = f"/proc/{self._pid}/fd", self._descriptors.get(start.name)
        names = os.listdir(folder) if number is None else [str(number)]
        for name in names:
            with suppress(FileNotFoundError):
                if os.readlink(f"{folder}/{name}") == _DMA_LATENCY:
                    return str(start.granted), start.ok
        return "nothing", False

    def _core_dumps(self, start: Grant) -> Now:
        limit = self._limit("Max core file size")
        return None if limit is None else ("off" if limit == "0" else limit, limit == "0")

    def _memlock_limit(self, start: Grant) -> Now:
        limit = self._limit("Max locked memory")
        if limit is None:
            return None
        if limit == "unlimited":
            return limit, True
        return format_size(int(limit)), start.value is not None and 0 <= start.value <= int(limit)

    def _guard_system_calls(self, start: Grant) -> Now:
        if self._ranges is None or start.granted == UNAVAILABLE:
            return None
        if has_signal():
            return str(start.granted), start.ok
        return UNAVAILABLE, False, "other code has set a handler of SIGSYS, and takes the system calls of the step"

    def _rt_time(self, start: Grant) -> Now:
        limit = self._limit("Max realtime timeout")
        if limit is None:
            return None
        is_enough = limit == "unlimited" or int(limit) > int(str(start.requested).split()[0])
        return "unlimited" if limit == "unlimited" else f"{limit} us without blocking", is_enough

    def _timer_slack(self, start: Grant) -> Now:
        if self._ended is not None:
            return None
        slack = int(read_text(f"/proc/{self._tid}/timerslack_ns"))
        return f"{slack} ns", slack == 1


def _deadline_times(tid: int) -> tuple[int, int, int] | None:
    """Return the runtime, the deadline and the period of a thread, ns (sched_getattr(2)); None if unreadable."""
    size = 48
    attr = ctypes.create_string_buffer(size)
    if ctypes.CDLL(None).syscall(number_of("sched_getattr"), tid, attr, size, 0):
        return None
    runtime, deadline, period = struct.unpack_from("=3Q", attr, 24)
    return runtime, deadline, period


_READERS: dict[str, Callable[[LiveGrants, Grant], Now]] = {
    "policy": LiveGrants._policy,
    "cpu": LiveGrants._cpu,
    "lock": LiveGrants._lock,
    "dma_latency": LiveGrants._dma_latency,
    "core_dumps": LiveGrants._core_dumps,
    "memlock_limit": LiveGrants._memlock_limit,
    GRANTS["system_calls"]: LiveGrants._guard_system_calls,
    "rt_time": LiveGrants._rt_time,
    "timer_slack": LiveGrants._timer_slack,
}
