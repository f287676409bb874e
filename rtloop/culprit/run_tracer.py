"""RunTracer: traces the kernel while a loop runs, and explains late cycles while the trace still has them."""

from __future__ import annotations

import _thread
import errno
import itertools
import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.culprit import page_moves
from rtloop.culprit.attribution import Collection, Delay, Machine, explain, unexplained
from rtloop.culprit.lateness import AUTO, Late, find_late, limits_of
from rtloop.culprit.machine import counts_interrupts, idle_state_name, loop_name, policy_text, tick_ns
from rtloop.culprit.page_moves import PageMoves
from rtloop.culprit.trace_text import first_time, last_time, parse
from rtloop.culprit.tracefs import TraceInstance
from rtloop.process.helper_thread import HelperThread
from rtloop.process.signal_shield import ShieldedLock
from rtloop.settings import CLOCKS
from rtloop.stats.explanation import Explanation
from rtloop.telemetry.gc_watch import recent_collections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtloop.culprit.trace_text import Event
    from rtloop.settings import Settings
    from rtloop.telemetry.block import TelemetryBlock

__all__ = ["RunTracer"]

#: Events of the loop's CPUs. They are many, and the ring holds about a second of them.
_CPU_EVENTS = dict.fromkeys(
    (
        "sched/sched_switch", "irq/irq_handler_entry", "irq/irq_handler_exit", "irq/softirq_entry", "irq/softirq_exit",
        "irq_vectors", "workqueue/workqueue_execute_start", "workqueue/workqueue_execute_end", "power/cpu_idle",
    ),
    "",
)  # fmt: skip
#: In a virtual machine, the CPU time of threads tells what was stolen.
_CPU_TIME = "sched/sched_stat_runtime"
#: Rare events, traced on all CPUs.
_RARE_EVENTS = {
    "signal/signal_generate": "sig==18||(sig>=19&&sig<=22)",
    **dict.fromkeys(page_moves.EVENTS, ""),
}
#: And those of the loop's own thread.
_OWN_EVENTS = ("sched/sched_waking", "sched/sched_migrate_task")
_CPU_KB, _RARE_KB = 4096, 128
_LOOK_S = 0.05
_STACK_BYTES = 1 << 20
#: Of the thread that looks: ordinary, but before other ordinary threads, because the ring is overwritten.
_NICE = -15
#: Text that is kept, in case that a later cycle needs it, and the times around a cycle that are looked at.
_MOST_BYTES, _BEFORE_NS, _AFTER_NS = 32 << 20, 5_000_000, 200_000
#: Worst cycles that are kept without a threshold, and most cycles in any case.
_WORST, _MOST = 10, 1000
#: Most cycles that one look explains, the worst, and not for longer than until the next: the ring would be overwritten
#: before it is read. The others wait for theirs.
_MOST_A_LOOK = 10
#: Clocks are compared so often, and the quickest comparison counts: this thread may be preempted between two clocks.
_READINGS = 9
_MOST_RECORDS = 65536
#: Most parts of the text whose events are kept, of about 80 events each.
_MOST_PARSED = 256
#: In the lines of moves of pages.
_OF_MOVES = b" mm_"
#: CPU time for the cycles that still wait at the end of the run, and the longest time on a busy machine, s.
_FINISH_CPU_S, _FINISH_S = 5.0, 20.0


class _Chunk(NamedTuple):
    """Lines of the trace with the times of the first and the last one, and a number of their own."""

    number: int
    first: int
    last: int
    text: bytes


class _Waiting(NamedTuple):
    """Late cycle to be explained: its delay on the clock of the trace, and the time that is looked at."""

    delay: Delay
    before: int
    after: int
    is_overrun: bool


class _Tail:
    """The newest part of an instance's text, and the moves of pages in all of it."""

    def __init__(self, instance: TraceInstance) -> None:
        self.instance = instance
        self.moves = PageMoves(instance.missing)
        self._chunks: deque[_Chunk] = deque()
        self._rest = b""
        self._bytes = 0
        self._numbers = itertools.count()
        self._parsed: dict[int, list[Event]] = {}

    def take(self, until: int) -> None:
        """Take what the kernel has written up to a time; it may write faster than this reads."""
        while (not self._chunks or self._chunks[-1].last < until) and (piece := self.instance.read()):
            text, newline, self._rest = (self._rest + piece).rpartition(b"\n")
            first, last = first_time(text), last_time(text)
            if first is None or last is None:
                self._rest = text + newline + self._rest if len(self._rest) < 1 << 16 else b""
                continue
            self._follow_moves(text)
            self._chunks.append(_Chunk(next(self._numbers), first, last, text))
            self._bytes += len(text)
            while self._bytes > _MOST_BYTES:
                self._bytes -= len(self._chunks.popleft().text)

    def _follow_moves(self, text: bytes) -> None:
        """Follow the moves of pages, of which most parts of the text have none."""
        if b"[LOST " in text:  # at the time of the next line, which it needs
            self.moves.add(parse(text.decode(errors="replace")))
        elif _OF_MOVES in text:
            lines = [line for line in text.split(b"\n") if _OF_MOVES in line]
            self.moves.add(parse(b"\n".join(lines).decode(errors="replace")))

    def events(self, begin: int, end: int) -> list[Event]:
        """Return the events of a time."""
        chunks = [chunk for chunk in self._chunks if chunk.last >= begin and chunk.first <= end]
        return [event for chunk in chunks for event in self._events_of(chunk) if begin <= event.t <= end]

    def _events_of(self, chunk: _Chunk) -> list[Event]:
        """Return the events of a chunk, which late cycles near to each other share."""
        if (events := self._parsed.get(chunk.number)) is None:
            while len(self._parsed) >= _MOST_PARSED:
                del self._parsed[next(iter(self._parsed))]
            self._parsed[chunk.number] = events = list(parse(chunk.text.decode(errors="replace")))
        return events


class RunTracer:
    """Tracer of one run of a loop.

    An ordinary thread looks at the loop's records twenty times a second. The kernel's trace is read only if a cycle
    was late. The loop itself does nothing for it; its tracepoints cost a microsecond or two a cycle.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    block : TelemetryBlock
        Its telemetry.
    tid : int
        Its thread.
    needs_interpreter : bool
        True if its step waits for Python's garbage collector.
    has_own_wait : bool
        True if its class overrides ``wait``.
    is_virtual : bool
        True in a virtual machine.

    Raises
    ------
    OSError, RtloopError
        If the kernel's trace cannot be used.
    """

    _numbers = iter(range(1, 1 << 62))

    def __init__(
        self, settings: Settings, block: TelemetryBlock, tid: int, *, needs_interpreter: bool, has_own_wait: bool,
        is_virtual: bool,
    ) -> None:  # fmt: skip
        self._settings, self._block, self._has_own_wait = settings, block, has_own_wait
        self._needs_interpreter = needs_interpreter
        self._machine = Machine(
            tid, os.getpid(), is_virtual, counts_interrupts(), policy_text, loop_name, idle_state_name, tick_ns
        )
        self._seen = 0
        self._worst: list[Explanation] = []
        self._overruns: dict[int, Explanation] = {}
        self._waiting: list[_Waiting] = []
        self._clock_steps = self._first_record = 0
        name = next(self._numbers)
        self._cpus = sorted(os.sched_getaffinity(tid))
        many = {**_CPU_EVENTS, _CPU_TIME: ""} if is_virtual else _CPU_EVENTS
        rare = {**_RARE_EVENTS, **dict.fromkeys(_OWN_EVENTS, f"pid=={tid}")}
        tails: list[_Tail] = []
        try:
            tails.append(_Tail(TraceInstance(f"{name}-cpus", many, self._cpus, _CPU_KB)))
            tails.append(_Tail(TraceInstance(f"{name}-all", rare, None, _RARE_KB)))
            self._cpu_tail, self._rare_tail = tails
            self.missing = [*tails[0].instance.missing, *tails[1].instance.missing]
            self._is_over = _thread.allocate_lock()  # held until the tracer is stopped
            self._is_over.acquire()
            self._lock = ShieldedLock()
            try:
                self._thread = HelperThread(self._watch, "rtloop-explain", _STACK_BYTES)
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, str(error), "the thread that reads the trace") from error
        except BaseException:
            for tail in tails:
                tail.instance.close()
            raise

    @property
    def explanations(self) -> tuple[Explanation, ...]:
        """Explanations so far, in the order of the cycles."""
        every = {one.cycle: one for one in (*list(self._worst), *list(self._overruns.values()))}
        return tuple(every[cycle] for cycle in sorted(every))

    def finish(self) -> None:
        """Look at the last cycles of a run that has ended."""
        self._stop()
        self._look()
        with self._lock:
            until, used = time.monotonic() + _FINISH_S, time.thread_time() + _FINISH_CPU_S
            while self._waiting and time.monotonic() < until and time.thread_time() < used:
                self._explain_some()
            for one in self._waiting:
                self._keep(one, unexplained(one.delay, "more cycles were late than could be explained meanwhile"))
            self._waiting = []

    def close(self) -> None:
        """End the thread and remove the trace. A second call does nothing."""
        self._stop()
        for tail in (self._cpu_tail, self._rare_tail):
            tail.instance.close()

    def _stop(self) -> None:
        with suppress(RuntimeError):  # it is over already
            self._is_over.release()
        if not self._thread.is_current:
            self._thread.join()

    def _watch(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._is_over.acquire(timeout=_LOOK_S):
            self._look()

    def _look(self) -> None:
        """Explain the late ones of the cycles that have ended since the last look."""
        with self._lock, suppress(OSError, ValueError):
            now = self._cycles()
            if now == self._seen:
                self._explain_some()
                return
            # One record more: the end of the cycle before the first.
            snapshot = self._block.snapshot(records=min(max(now - self._seen, 0) + 64, _MOST_RECORDS))
            if snapshot.counters["first_record"] != self._first_record:  # the statistics were reset
                self._first_record = snapshot.counters["first_record"]
                self._seen, self._worst, self._overruns, self._waiting = 0, [], {}, []
            cycles, records = snapshot.counters["cycles"], snapshot.records
            first = cycles - len(records)
            begin = max(self._seen, first, snapshot.counters["warmup"])
            self._seen = cycles
            if self._has_clock_stepped(snapshot.counters["clock_steps"]) or begin >= cycles:
                return
            limits = limits_of(self._settings.explain_ns or AUTO, *snapshot.histograms[:2])
            found = find_late(
                records[begin - first :], limits, self._settings.period_ns, has_own_wait=self._has_own_wait
            )
            if chosen := self._choose(found):
                until = time.monotonic_ns()
                for tail in (self._cpu_tail, self._rare_tail):
                    tail.take(until)
                offset = self._clock_offset()
                for late in chosen:
                    place = late.place + begin - first
                    self._waiting.append(self._waiting_for(late._replace(place=place), records, first, offset))
            self._explain_some()

    def _cycles(self) -> int:
        count: int = self._block.snapshot(records=0).counters["cycles"]
        return count

    def _has_clock_stepped(self, steps: int) -> bool:
        """Return True if records since the last look are of different settings of the clock."""
        has_stepped, self._clock_steps = steps != self._clock_steps, steps
        return has_stepped

    def _clock_offset(self) -> int:
        """Return what is added to a time of the loop's clock to get one of the trace's."""
        clock = CLOCKS[self._settings.clock]
        if clock == time.CLOCK_MONOTONIC:
            return 0
        readings = []
        for _ in range(_READINGS):
            before, other, after = time.monotonic_ns(), time.clock_gettime_ns(clock), time.monotonic_ns()
            readings.append((after - before, (before + after) // 2 - other))
        return min(readings)[1]

    def _choose(self, found: Sequence[Late]) -> list[Late]:
        """Return those that are worth an explanation: overruns, and the worst."""
        most = _WORST if not self._settings.explain_ns else _MOST
        least = self._worst[-1].delay_ns if len(self._worst) >= most else 0
        worst = [late for late in found if not late.is_overrun and late.ns > least][:most]
        overruns = [late for late in found if late.is_overrun][: max(0, _MOST - len(self._overruns))]
        room = max(0, _MOST - len(self._waiting))
        return sorted(worst + overruns, key=lambda late: -late.ns)[:room]

    def _explain_some(self) -> None:
        """Explain the worst of the cycles that wait for it."""
        self._waiting.sort(key=lambda one: one.delay.ns)
        until = time.monotonic() + _LOOK_S
        for _ in range(min(_MOST_A_LOOK, len(self._waiting))):
            one = self._waiting.pop()
            self._keep(one, self._explain(one))
            if time.monotonic() > until:
                break

    def _keep(self, late: _Waiting, explanation: Explanation) -> None:
        if late.is_overrun:
            self._overruns[explanation.cycle] = explanation
            return
        most = _WORST if not self._settings.explain_ns else _MOST
        self._worst = sorted([*self._worst, explanation], key=lambda one: -one.delay_ns)[:most]

    def _waiting_for(self, late: Late, records: Any, first: int, offset: int) -> _Waiting:
        record = records[late.place]
        release, start, end = (int(record[name]) + offset for name in ("release", "start", "end"))
        former_end = int(records[late.place - 1]["end"]) + offset if late.place else 0
        window = (release, start) if late.what == "start" else (start, end)
        delay = Delay(first + late.place, late.what, release - offset, *window, late.ns, former_end)
        before = min(window[0], former_end or window[0] - self._settings.period_ns) - _BEFORE_NS
        return _Waiting(delay, before, window[1] + _AFTER_NS, late.is_overrun)

    def _explain(self, one: _Waiting) -> Explanation:
        collections = [Collection(*each) for each in recent_collections(one.before)] if self._needs_interpreter else []
        every = [tail.events(one.before, one.after) for tail in (self._cpu_tail, self._rare_tail)]
        return explain(one.delay, every[0], every[1], self._machine, collections, self._rare_tail.moves)
