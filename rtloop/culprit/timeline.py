"""Timelines of a trace: the user of a CPU at each moment, and the state of a loop's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtloop.culprit.trace_text import LOST, Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Piece", "State", "Stolen", "Task", "find_states", "occupants", "stolen_times"]

#: Between two runs of one interrupt, a shorter time is spent on entering and leaving it, ns.
_ENTRY_NS = 3000
#: Threads whose time is looked at are woken with this event; sched_wakeup would come after the CPU was told.
_SLEEPS = {"T": "stopped", "t": "traced", "D": "blocked"}


class Task(NamedTuple):
    """Thread on a CPU. `prio` is the kernel's, 0 to 98 for real-time threads; None if it is not known."""

    pid: int
    comm: str
    prio: int | None


class Piece(NamedTuple):
    """Time in which nothing changed on a CPU.

    Attributes
    ----------
    begin, end : int
        Its limits, ns.
    task : Task
        Thread that was current.
    context : str
        ``"interrupt"`` or ``"softirq"`` if the CPU was in one, else empty.
    name : str
        Name of the interrupt or softirq.
    work : str
        Function of the workqueue that the thread was in; empty for none.
    switched : int
        Time of the switch to that thread; 0 if it was before the trace.
    idle : int
        The idle state that the CPU was in; -1: none.
    """

    begin: int
    end: int
    task: Task
    context: str
    name: str
    work: str
    switched: int
    idle: int


class State(NamedTuple):
    """Time in which the state of a loop's thread did not change.

    Attributes
    ----------
    begin, end : int
        Its limits, ns.
    kind : str
        ``"running"``, ``"runnable"``, ``"sleeping"``, ``"blocked"``, ``"stopped"`` or ``"traced"``.
    cpu : int
        CPU that it ran on, or waited for.
    waker : Event or None
        Event that ended a sleep.
    """

    begin: int
    end: int
    kind: str
    cpu: int
    waker: Event | None


class Stolen(NamedTuple):
    """Time between two looks at a thread's CPU time, `missing` ns of which the kernel has given to nobody."""

    begin: int
    end: int
    missing: int


def occupants(events: Iterable[Event], cpu: int) -> list[Piece]:
    """Return the users of a CPU, in order. Times before the first event, and after a loss of events, are omitted."""
    pieces: list[Piece] = []
    task: Task | None = None
    since = switched = 0
    idle = -1
    stacks: dict[int, list[tuple[str, str]]] = {}
    works: dict[int, str] = {}
    for event in events:
        if event.cpu != cpu:
            continue
        if event.name == LOST:
            task, switched, idle = None, 0, -1
            stacks.clear()
            works.clear()
            continue
        if task is None or task.pid != event.pid:
            if task is not None:
                switched, idle = 0, -1  # a switch that the trace does not have
            task, since = Task(event.pid, event.comm, None), event.t
        stack = stacks.setdefault(task.pid, [])
        if event.t > since:
            context, name = stack[-1] if stack else ("", "")
            pieces.append(Piece(since, event.t, task, context, name, works.get(task.pid, ""), switched, idle))
            since = event.t
        fields = event.fields
        if event.name == "sched_switch":
            _add_priority(pieces, fields["prev_pid"], fields["prev_comm"], fields["prev_prio"])
            stacks[task.pid] = [one for one in stack if one[0] == "softirq"]  # a preempted softirq of PREEMPT_RT
            task = Task(fields["next_pid"], fields["next_comm"], fields["next_prio"])
            switched, idle = event.t, -1
        elif event.name == "cpu_idle":
            idle = fields["state"] if fields["state"] < 1 << 16 else -1
        elif event.name == "workqueue_execute_start":
            works[task.pid] = fields["function"]
        elif event.name == "workqueue_execute_end":
            works.pop(task.pid, None)
        else:
            _follow_interrupt(stack, event)
    return _merge_entries(pieces)


def _add_priority(pieces: list[Piece], pid: int, comm: str, prio: int) -> None:
    """Complete the last pieces, of a thread that was current before the trace began."""
    for place in range(len(pieces) - 1, -1, -1):
        task = pieces[place].task
        if task.pid != pid or task.prio is not None:
            break
        pieces[place] = pieces[place]._replace(task=Task(pid, comm, prio))


def _follow_interrupt(stack: list[tuple[str, str]], event: Event) -> None:
    """Enter or leave an interrupt or a softirq."""
    base, _, phase = event.name.rpartition("_")
    if phase not in ("entry", "exit") or base == "hrtimer_expire":
        return
    if base == "softirq":
        context, name = "softirq", event.fields["name"]
    elif base == "irq_handler":
        context, name = "interrupt", str(event.fields["irq"])
        if phase == "entry":
            name += f" {event.fields['name']}"
    else:
        context, name = "interrupt", base
    if phase == "entry":
        stack.append((context, name))
        return
    for place in range(len(stack) - 1, -1, -1):
        if stack[place][0] == context and stack[place][1].split(" ")[0] == name.split(" ")[0]:
            del stack[place:]
            return


def _merge_entries(pieces: list[Piece]) -> list[Piece]:
    """Count the short times between two runs of one interrupt as the interrupt's."""
    merged = list(pieces)
    for i in range(1, len(pieces) - 1):
        before, here, after = pieces[i - 1 : i + 2]
        is_same = before.name == after.name and before.context == after.context == "interrupt"
        if is_same and not here.context and here.end - here.begin <= _ENTRY_NS:
            merged[i] = here._replace(context="interrupt", name=before.name)
    return merged


def find_states(events: Iterable[Event], tid: int) -> list[State]:
    """Return the states of a thread, in order. Times before it is first seen, and after a loss of events, are left out.

    The events of all CPUs have to be there, ordered by time.
    """
    states: list[State] = []
    kind, cpu, since = "", -1, 0

    def change(event: Event, to: str, to_cpu: int, waker: Event | None = None) -> None:
        nonlocal kind, cpu, since
        if kind and event.t >= since:
            states.append(State(since, event.t, kind, cpu, waker))
        kind, cpu, since = to, to_cpu, event.t

    for event in events:
        fields = event.fields
        if event.name == LOST:
            kind = "" if cpu in (event.cpu, -1) else kind
        elif event.name == "sched_switch":
            if fields["prev_pid"] == tid:
                letter = fields["prev_state"][:1]
                change(event, "runnable" if letter == "R" else _SLEEPS.get(letter, "sleeping"), event.cpu)
            if fields["next_pid"] == tid:
                change(event, "running", event.cpu)
        elif event.name == "sched_waking" and fields["pid"] == tid:
            if kind not in ("running", "runnable"):
                change(event, "runnable", fields["cpu"], event)
        elif event.name == "sched_migrate_task" and fields["pid"] == tid and kind == "runnable":
            change(event, "runnable", fields["cpu"])
    if kind:
        states.append(State(since, 1 << 62, kind, cpu, None))
    return states


def stolen_times(
    events: Sequence[Event], cpu: int, pieces: Sequence[Piece], *, counts_interrupts: bool
) -> list[Stolen]:
    """Return the times in which a thread was current and got less CPU time than has passed.

    The kernel's clock of CPU time stands still while a hypervisor runs something else (and, if `counts_interrupts`,
    in interrupts, whose traced times are subtracted).
    """
    found = []
    pid, begin = -1, 0
    for event in events:
        if event.cpu != cpu:
            continue
        if event.name == LOST:
            pid = -1
        elif event.name == "sched_switch":
            pid, begin = event.fields["next_pid"], event.t
        elif event.name == "sched_stat_runtime" and event.fields["pid"] == event.pid:
            if pid == event.pid:
                missing = event.t - begin - event.fields["runtime"]
                if counts_interrupts and missing > 0:
                    missing -= sum(
                        max(0, min(piece.end, event.t) - max(piece.begin, begin)) for piece in pieces if piece.context
                    )
                found.append(Stolen(begin, event.t, max(0, missing)))
            pid, begin = event.pid, event.t
    return found
