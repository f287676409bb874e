"""Attribution of a delay to its cause. A culprit is named only if it accounts for most of the delay."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtloop.culprit.page_moves import PageMoves
from rtloop.culprit.timeline import Piece, State, Task, find_states, occupants, stolen_times
from rtloop.stats.explanation import Explanation, Share
from rtloop.units import format_rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rtloop.culprit.timeline import Stolen
    from rtloop.culprit.trace_text import Event

__all__ = ["Collection", "Delay", "Machine", "explain", "unexplained"]

#: Smallest share of the delay for which a culprit is named.
_MOST = 0.6
_MOST_SHARES = 8
#: The loop's thread is seen in the trace within this time after the release, or the trace lacks something, ns.
_SLACK_NS = 20_000
#: A CPU that runs a thread with interrupts on has an event in the trace after so many ticks: the next tick.
_TICKS = 1.5
#: Placeholders in a verb. Names of threads may contain braces, but no control characters that matter here.
_TIME, _CPU = "\x01", "\x02"
#: Flags of an event in an interrupt, a softirq or an NMI.
_IN_INTERRUPT = frozenset("hHszZ")
_NO_INTERRUPTS = "interrupts were off, or firmware or a hypervisor had the CPU"
_STOPS = {19: "SIGSTOP", 20: "SIGTSTP", 21: "SIGTTIN", 22: "SIGTTOU"}


class Delay(NamedTuple):
    """A delay to be explained.

    Attributes
    ----------
    cycle : int
        Index of the cycle.
    what : str
        ``"start"`` or ``"execution"``.
    release : int
        Release of the cycle, on the loop's clock.
    begin, end : int
        Times between which the delay was, on the clock of the trace.
    ns : int
        The delay.
    former_end : int
        End of the cycle before, on the clock of the trace; 0 if it is not known.
    """

    cycle: int
    what: str
    release: int
    begin: int
    end: int
    ns: int
    former_end: int = 0


class Collection(NamedTuple):
    """Collection of Python's garbage: its time on the clock of the trace, its thread and its generation."""

    begin: int
    end: int
    tid: int
    generation: int


class Machine(NamedTuple):
    """Facts that the trace does not contain.

    Attributes
    ----------
    tid, pid : int
        Thread of the loop, and its process.
    is_virtual : bool
        True in a virtual machine.
    counts_interrupts : bool
        True if the CPU time of threads does not contain interrupts (CONFIG_IRQ_TIME_ACCOUNTING).
    policy_of : callable
        Returns the policy of a thread and its priority as text, "FIFO 50", given its id and the kernel's priority.
    loop_of : callable
        Returns the name of the rtloop loop that a thread is, or "".
    idle_state : callable
        Returns the name of a CPU's idle state.
    tick_ns : callable
        Returns the time between two ticks of a CPU that is not idle, ns; 0 if they may stop.
    """

    tid: int
    pid: int
    is_virtual: bool
    counts_interrupts: bool
    policy_of: Callable[[int, int | None], str]
    loop_of: Callable[[int], str]
    idle_state: Callable[[int, int], str]
    tick_ns: Callable[[int], int]


class _Part(NamedTuple):
    """Part of a delay, before parts with the same key are added up."""

    kind: str
    name: str
    ns: int
    verb: str
    cpu: int
    pid: int = -1


def explain(
    delay: Delay, cpu_events: Sequence[Event], rare_events: Sequence[Event], machine: Machine,
    collections: Sequence[Collection] = (), moves: PageMoves | None = None,
) -> Explanation:  # fmt: skip
    """Explain a delay by the events around it.

    Parameters
    ----------
    delay : Delay
        The delay.
    cpu_events : sequence of Event
        All events of the CPUs that the loop may use, from before the cycle's release to after its end.
    rare_events : sequence of Event
        Wake-ups of the loop, and signals, on all CPUs of the machine, for the same time.
    machine : Machine
        Facts that the trace does not have.
    collections : sequence of Collection
        Collections of garbage; only for a loop whose step needs the interpreter.
    moves : PageMoves, optional
        Moves of pages on all CPUs of the machine; they may have begun long before.
    """
    former = min(delay.end, delay.former_end) - delay.begin
    if delay.what == "start" and former >= _MOST * delay.ns:
        text = f"the loop was still in the cycle before it, until {format_rounded(former)} after the release"
        return _known(delay, "step", "the cycle before", text, -1, [Share("step", "the cycle before", former)])
    return _Attribution(delay, cpu_events, rare_events, machine, collections, moves or PageMoves()).explanation()


class _Attribution:
    def __init__(
        self, delay: Delay, cpu_events: Sequence[Event], rare_events: Sequence[Event], machine: Machine,
        collections: Sequence[Collection], moves: PageMoves,
    ) -> None:  # fmt: skip
        self._delay, self._machine, self._collections, self._moves = delay, machine, collections, moves
        self._cpu_events, self._rare = cpu_events, rare_events
        every = sorted([*cpu_events, *rare_events], key=lambda event: event.t)
        self._states = find_states(every, machine.tid)
        prios = (
            event.fields["prio"] for event in every if event.fields.get("pid") == machine.tid and "prio" in event.fields
        )
        self._own_prio: int | None = next(prios, None)
        self._occupants: dict[int, list[Piece]] = {}
        self._stolen: dict[int, list[Stolen]] = {}
        self._parts: list[_Part] = []
        self._ticks: dict[int, int] = {}
        self._policies: dict[tuple[int, int | None], str] = {}
        self._own_ns = 0

    def explanation(self) -> Explanation:
        delay = self._delay
        covered = 0
        for state in self._states:
            begin, end = max(state.begin, delay.begin), min(state.end, delay.end)
            if end > begin:
                covered += end - begin
                self._add_state(state, begin, end)
        gap = delay.end - delay.begin - covered
        if gap > max(_SLACK_NS, (1 - _MOST) * delay.ns / 2):
            return unexplained(delay, "the trace does not contain the whole cycle")
        return self._judge()

    def _pieces(self, cpu: int) -> list[Piece]:
        if cpu not in self._occupants:
            pieces = occupants(self._cpu_events, cpu)
            begin, end = self._delay.begin, self._delay.end
            self._occupants[cpu] = [piece for piece in pieces if piece.end > begin and piece.begin < end]
            self._stolen[cpu] = stolen_times(
                self._cpu_events, cpu, pieces, counts_interrupts=self._machine.counts_interrupts
            )
        return self._occupants[cpu]

    def _add_state(self, state: State, begin: int, end: int) -> None:
        if state.kind in ("running", "runnable"):
            self._add_occupants(state.cpu, begin, end, state)
        elif state.kind in ("stopped", "traced"):
            self._add("signal", self._stopper(state), end - begin, f"stopped the process for {_TIME}", state.cpu)
        elif self._add_collections(state, begin, end):
            pass
        elif state.kind == "blocked":
            self._add_blocked(state, begin, end)
        elif self._delay.what == "start":
            self._add_late_timer(state, begin, end)
        else:
            self._add_sleep(state, begin, end)

    def _add(self, kind: str, name: str, ns: int, verb: str, cpu: int, pid: int = -1) -> None:
        if ns > 0:
            self._parts.append(_Part(kind, name, ns, verb, cpu, pid))

    def _add_occupants(self, cpu: int, begin: int, end: int, state: State) -> None:
        """Attribute the time in which others had the CPU while the loop waited for it, or interrupted the loop."""
        known = 0
        stolen = self._stolen_between(cpu, begin, end)
        self._add("steal", "the hypervisor", stolen, f"had CPU {_CPU} for {_TIME}", cpu)
        for piece in self._pieces(cpu):
            first, last = max(piece.begin, begin), min(piece.end, end)
            if last <= first:
                continue
            known += last - first
            taken = min(last - first, stolen)  # what was stolen was not run
            ns, stolen = last - first - taken, stolen - taken
            if self._is_silent(piece, cpu, taken):
                self._add_silence(piece, ns, cpu)
            elif piece.context or piece.task.pid != self._machine.tid:
                self._blame(piece, ns, cpu, state)
            else:
                self._own_ns += max(0, ns - self._own_collections(first, last, cpu))
        if end - begin - known > _SLACK_NS:
            self._add("unknown", "", end - begin - known, f"the trace of CPU {cpu} has a gap", cpu)

    def _is_silent(self, piece: Piece, cpu: int, stolen: int) -> bool:
        """Return True if a tick was due in a piece and did not come, so that nothing proves who had the CPU.

        A hypervisor or firmware may have had it, and need not tell the kernel. In an interrupt no tick is due, and an
        idle CPU may stop its tick; but in a virtual machine, what lasts so long in either's context proves nothing.
        """
        is_thread = piece.task.pid != 0 and piece.context != "interrupt"
        is_judged = is_thread or (piece.context != "" and self._machine.is_virtual)
        tick = self._tick_ns(cpu) if is_judged else 0
        return tick > 0 and piece.end - piece.begin - stolen > _TICKS * tick

    def _tick_ns(self, cpu: int) -> int:
        """Return the time between two ticks of a CPU that runs a thread; 0 if the trace does not tell of them."""
        if cpu not in self._ticks:
            is_told = any(_is_timer(event) for event in self._cpu_events if event.cpu == cpu)
            self._ticks[cpu] = self._machine.tick_ns(cpu) if is_told else 0
        return self._ticks[cpu]

    def _add_silence(self, piece: Piece, ns: int, cpu: int) -> None:
        how_long, where = format_rounded(piece.end - piece.begin), f"CPU {cpu} was in {_where(piece)}"
        why = f"no tick came for {how_long} while {where}: {_NO_INTERRUPTS}"
        if piece.context == "interrupt" or not piece.task.pid:
            why = f"{where} for {how_long}, or a hypervisor had it"
        self._add("unknown", "", ns, why, cpu)

    def _blame(self, piece: Piece, ns: int, cpu: int, state: State | None) -> None:
        task = piece.task
        if piece.context:
            self._add(piece.context, _where(piece), ns, f"ran {_TIME} on CPU {_CPU}", cpu)
        elif task.pid == 0:
            self._add_idle(piece, ns, cpu)
        elif mover := self._mover(task.pid, piece.begin):
            self._add("compaction", mover, ns, f"ran {_TIME} on CPU {_CPU}", cpu)
        else:
            kind, name, verb = self._describe(task, piece.work)
            if state is not None and state.kind == "runnable" and self._is_less_urgent(task):
                if self._is_passed_over(state):
                    if (
                        self._waker_cpu(state) != cpu
                    ):  # which may have been held up while it put the loop into the queue
                        why = f"CPU {cpu} ran {name}, while CPU {self._waker_cpu(state)} woke the loop"
                        self._add("unknown", "", ns, why, cpu)
                        return
                    verb = f"let {name} run {_TIME} on CPU {_CPU}"
                    self._add("throttling", "the limit on real-time threads", ns, verb, cpu)
                    return
                verb += ", without being preempted"
            self._add(kind, name, ns, verb, cpu, task.pid)

    def _add_idle(self, piece: Piece, ns: int, cpu: int) -> None:
        if self._machine.is_virtual:
            self._add("steal", "the hypervisor", ns, f"left CPU {_CPU} halted for {_TIME}", cpu)
        elif piece.idle >= 0:
            name = self._machine.idle_state(cpu, piece.idle)
            self._add("idle", name, ns, f"took {_TIME} to be left by CPU {_CPU}", cpu)
        else:
            self._add("unknown", "", ns, f"CPU {cpu} was idle, and in no idle state", cpu)

    def _is_passed_over(self, state: State) -> bool:
        """Return True if the CPU switched to a less urgent thread, while the loop was ready to run.

        A switch just after the event that wakes the loop may come before the loop is in the queue.
        """
        return any(
            state.begin + _SLACK_NS < piece.switched < state.end and piece.task.pid and self._is_less_urgent(piece.task)
            for piece in self._pieces(state.cpu)
        )

    def _waker_cpu(self, state: State) -> int:
        wakers = (one.waker for one in self._states if one.end == state.begin and one.waker is not None)
        waker = next(wakers, None)
        return state.cpu if waker is None else waker.cpu

    def _is_less_urgent(self, task: Task) -> bool:
        return self._own_prio is not None and task.prio is not None and task.prio > self._own_prio

    def _describe(self, task: Task, work: str) -> tuple[str, str, str]:
        who = (task.pid, task.prio)
        if who not in self._policies:  # asked once: a thread that ends meanwhile would have two names
            self._policies[who] = self._machine.policy_of(*who)
        policy = self._policies[who]
        comm = _comm(task.comm, task.pid)
        name = f"{comm} ({policy})" if policy else comm
        if loop := self._machine.loop_of(task.pid):
            return "loop", f"the loop {loop} ({policy})" if policy else f"the loop {loop}", f"ran {_TIME} on CPU {_CPU}"
        if work or task.comm.startswith("kworker/"):
            return "worker", name, f"ran {work} for {_TIME} on CPU {_CPU}" if work else f"ran {_TIME} on CPU {_CPU}"
        return "thread", name, f"ran {_TIME} on CPU {_CPU}"

    def _add_late_timer(self, state: State, begin: int, end: int) -> None:
        """Blame whoever kept the CPU of the timer from serving it: only hard interrupts and idleness prove it."""
        waker = state.waker
        if waker is None:
            self._add("unknown", "", end - begin, "nothing in the trace woke the loop", -1)
            return
        cpu = waker.cpu
        if waker.pid and "h" not in waker.flags.lower():
            by = _who(waker.comm, waker.pid)
            self._add("unknown", "", end - begin, f"it waited for {by}, which woke it", cpu)
            return
        known = 0
        for piece in self._pieces(cpu):
            first, last = max(piece.begin, begin), min(piece.end, end)
            if last <= first:
                continue
            known += last - first
            if piece.context == "interrupt" and self._is_silent(piece, cpu, 0):
                self._add_silence(piece, last - first, cpu)
                continue
            if piece.context == "interrupt" or (not piece.context and piece.task.pid == 0):
                self._blame(piece, last - first, cpu, None)
                continue
            missing = min(last - first, self._missing_around(cpu, first, last))
            self._add("steal", "the hypervisor", missing, f"had CPU {_CPU} for {_TIME}", cpu)
            note = f"its timer came late while CPU {cpu} was in {_where(piece)}: {_NO_INTERRUPTS}"
            self._add("unknown", "", last - first - missing, note, cpu)
        if end - begin - known > _SLACK_NS:
            self._add("unknown", "", end - begin - known, f"the trace of CPU {cpu} has a gap", cpu)

    def _stolen_between(self, cpu: int, begin: int, end: int) -> int:
        """Return how much of a time was stolen at least: what is missing may lie outside of it."""
        self._pieces(cpu)
        if not self._machine.is_virtual:
            return 0
        total = 0
        for one in self._stolen[cpu]:
            outside = max(0, begin - one.begin) + max(0, one.end - end)
            if one.end > begin and one.begin < end and one.missing > outside:
                total += one.missing - outside
        return total if total > _SLACK_NS else 0

    def _missing_around(self, cpu: int, begin: int, end: int) -> int:
        """Return the time that is missing in the accounts that overlap a time in which a timer came late."""
        self._pieces(cpu)
        if not self._machine.is_virtual:
            return 0
        total = sum(one.missing for one in self._stolen[cpu] if one.end > begin and one.begin < end)
        return total if total > _SLACK_NS else 0

    def _stopper(self, state: State) -> str:
        """Return the signal that stopped the process, and its sender; other processes may be sent one as well."""
        if state.kind == "traced":
            return "a debugger (ptrace)"
        found, own = "a signal", (self._machine.pid, self._machine.tid)
        for event in self._rare:
            if event.name != "signal_generate" or event.t > state.begin + _SLACK_NS or event.fields["pid"] not in own:
                continue
            if event.fields["sig"] in _STOPS:
                found = f"{_STOPS[event.fields['sig']]} from {_who(event.comm, event.pid)}"
        return found

    def _add_collections(self, state: State, begin: int, end: int) -> bool:
        """Blame collections of garbage during which the loop waited for the interpreter. True if there were any."""
        parts = [
            (min(one.end, end) - max(one.begin, begin), one)
            for one in self._collections
            if one.tid != self._machine.tid and one.end > begin and one.begin < end
        ]
        total = sum(ns for ns, _ in parts)
        for ns, one in parts:
            self._add("collector", _collector(one), ns, f"ran {_TIME}", state.cpu)
        if total and end - begin - total > 0:
            self._add_sleep(state, begin, end - total)
        return total > 0

    def _own_collections(self, begin: int, end: int, cpu: int) -> int:
        """Blame collections on the loop's own thread. Returns their time."""
        total = 0
        for one in self._collections:
            ns = min(one.end, end) - max(one.begin, begin)
            if one.tid == self._machine.tid and ns > 0:
                self._add("collector", _collector(one), ns, f"ran {_TIME} on the loop's own thread", cpu)
                total += ns
        return total

    def _add_blocked(self, state: State, begin: int, end: int) -> None:
        waker = state.waker
        mover = None if waker is None or _is_in_interrupt(waker) else self._mover(waker.pid, waker.t)
        if mover is not None:
            self._add("compaction", mover, end - begin, f"moved pages that the loop needed for {_TIME}", state.cpu)
        else:
            self._add_sleep(state, begin, end)

    def _add_sleep(self, state: State, begin: int, end: int) -> None:
        how = "uninterruptibly " if state.kind == "blocked" else ""
        by = "" if state.waker is None else f", until {_who(state.waker.comm, state.waker.pid)} woke it"
        self._add("unknown", "", end - begin, f"the loop waited {how}in its own thread{by}", state.cpu)

    def _mover(self, pid: int, t: int) -> str | None:
        """Return the thread that was moving pages at a time, if it was."""
        move = self._moves.at(pid, t)
        return None if move is None else f"{move[0]} by {_who(move[1], pid)}"

    def _judge(self) -> Explanation:
        delay = self._delay
        sums: dict[tuple[str, str], list[_Part]] = {}
        for part in self._parts:
            sums.setdefault((part.kind, part.name if part.kind != "unknown" else part.verb), []).append(part)
        order = sorted(sums.values(), key=lambda parts: -sum(part.ns for part in parts))
        shares = [_share(parts) for parts in order]
        own = self._own_ns if delay.what == "start" else self._own_ns - (delay.end - delay.begin - delay.ns)
        if order and sum(part.ns for part in order[0]) >= _MOST * delay.ns:
            parts = order[0]
            if parts[0].kind == "unknown":
                return unexplained(delay, parts[0].verb, parts[0].cpu, shares)
            share = shares[0]
            verb = max(parts, key=lambda part: part.ns).verb
            verb = verb.replace(_TIME, format_rounded(share.ns)).replace(_CPU, str(parts[0].cpu))
            threads = len({part.pid for part in parts} - {-1})
            verb += f", in {threads} threads of that name" if threads > 1 else ""
            is_storm = share.pieces > 2 and share.kind in ("interrupt", "softirq")
            pieces = f", in {share.pieces:,} pieces" if is_storm else ""
            return _known(delay, share.kind, share.name, f"{share.name} {verb}{pieces}", parts[0].cpu, shares)
        cpu = next((state.cpu for state in reversed(self._states) if state.begin < delay.end), -1)
        if own >= _MOST * delay.ns:
            if delay.what == "execution":
                text = f"the step itself ran {format_rounded(self._own_ns)} on CPU {cpu}"
                return _known(delay, "step", "the step", text, cpu, [*shares, Share("step", "the step", own)])
            why = "the loop's thread had the CPU, and nothing in the trace interrupted it"
            return unexplained(delay, why, cpu, shares)
        seen = [f"{share.name} {100 * share.ns / delay.ns:.0f} %" for share in shares if share.name][:4]
        text = f"nothing accounts for most of it ({', '.join(seen)})" if seen else "nothing in the trace explains it"
        return unexplained(delay, text, cpu, shares)


def _share(parts: list[_Part]) -> Share:
    return Share(parts[0].kind, parts[0].name, sum(part.ns for part in parts), len(parts))


def _comm(comm: str, pid: int) -> str:
    """Return the name of a thread; the kernel remembers those of some threads only."""
    return f"thread {pid}" if comm == "<...>" else comm


def _who(comm: str, pid: int) -> str:
    return _comm(comm, pid) if comm == "<...>" else f"{comm} ({pid})"


def _where(piece: Piece) -> str:
    """Return what a CPU was in."""
    if piece.context:
        return f"softirq {piece.name}" if piece.context == "softirq" else _interrupt(piece.name)
    return _who(piece.task.comm, piece.task.pid)


def _is_timer(event: Event) -> bool:
    """Return True if an event is an interrupt of a CPU's timer, as far as its name tells."""
    if event.name == "irq_handler_entry":
        return "timer" in event.fields["name"]
    return event.name == "local_timer_entry"


def _is_in_interrupt(event: Event) -> bool:
    """Return True if an event was in an interrupt or a softirq: then the thread that was current did not cause it."""
    return not _IN_INTERRUPT.isdisjoint(event.flags)


def _interrupt(name: str) -> str:
    number, _, device = name.partition(" ")
    return f"interrupt {number} ({device})" if device else f"interrupt {number}"


def _collector(one: Collection) -> str:
    return f"Python's garbage collector (generation {one.generation})"


def _known(delay: Delay, kind: str, name: str, text: str, cpu: int, shares: list[Share]) -> Explanation:
    return _made(delay, kind, name, text, cpu, shares)


def unexplained(delay: Delay, why: str, cpu: int = -1, shares: Sequence[Share] = ()) -> Explanation:
    """Return the explanation of a delay whose culprit is not proven."""
    return _made(delay, "unknown", "", f"unknown: {why}", cpu, shares)


def _made(delay: Delay, kind: str, name: str, text: str, cpu: int, shares: Sequence[Share]) -> Explanation:
    clean = tuple(share._replace(name=_printable(share.name)) for share in shares[:_MOST_SHARES])
    head = (delay.cycle, delay.what, delay.release, delay.ns, kind)
    return Explanation(*head, _printable(name), _printable(text), cpu, clean)


def _printable(text: str) -> str:
    """Replace control characters: the name of a thread may hold any, and a terminal would obey them."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
