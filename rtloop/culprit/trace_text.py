"""Parse the text of the kernel's trace_pipe into events; one that cannot be read counts as lost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOST", "Event", "first_time", "last_time", "parse"]

#: Name of the event that stands for those that a CPU's buffer had no room for.
LOST = "lost"
#: The largest time that is taken seriously, s: a century.
_MAX_S = 3_200_000_000

_HEAD = re.compile(
    r"^ *(.{0,64})-(\d{1,10}) +(?:\([ \d-]{1,20}\) +)?\[(\d{3,5})\] +(\S{4,12}) +(\d{1,10})\.(\d{6}):"
    r" (\w{1,64}): ?(.*)$",
    re.ASCII,
)
_LOST = re.compile(r"^CPU:(\d{1,5}) \[LOST[^\]]*\]$", re.ASCII)
_TIME = re.compile(rb"\] +\S{4,12} +(\d{1,10})\.(\d{6}): \w")
#: Fields that matter, by event; the last greedy name in a pattern ends at the last place where the rest matches.
_FIELDS = {
    "sched_switch": re.compile(
        r"prev_comm=(?P<prev_comm>.*) prev_pid=(?P<prev_pid>\d+) prev_prio=(?P<prev_prio>-?\d+)"
        r" prev_state=(?P<prev_state>\S+) ==> next_comm=(?P<next_comm>.*) next_pid=(?P<next_pid>\d+)"
        r" next_prio=(?P<next_prio>-?\d+)$"
    ),
    "sched_waking": re.compile(r"comm=(?P<comm>.*) pid=(?P<pid>\d+) prio=(?P<prio>-?\d+).* target_cpu=(?P<cpu>\d+)$"),
    "sched_migrate_task": re.compile(
        r"comm=(?P<comm>.*) pid=(?P<pid>\d+) prio=(?P<prio>-?\d+) orig_cpu=(?P<orig>\d+) dest_cpu=(?P<cpu>\d+)$"
    ),
    "sched_stat_runtime": re.compile(r"comm=(?P<comm>.*) pid=(?P<pid>\d+) runtime=(?P<runtime>\d+) \[ns\]"),
    "irq_handler_entry": re.compile(r"irq=(?P<irq>\d+) name=(?P<name>.+)$"),
    "irq_handler_exit": re.compile(r"irq=(?P<irq>\d+) "),
    "softirq_entry": re.compile(r"vec=(?P<vec>\d+) \[action=(?P<name>\w+)\]"),
    "softirq_exit": re.compile(r"vec=(?P<vec>\d+) \[action=(?P<name>\w+)\]"),
    "workqueue_execute_start": re.compile(r"work struct (?P<work>\w+): function (?P<function>\S+)"),
    "workqueue_execute_end": re.compile(r"work struct (?P<work>\w+)"),
    "cpu_idle": re.compile(r"state=(?P<state>\d+) cpu_id=(?P<cpu>\d+)"),
    "signal_generate": re.compile(r"sig=(?P<sig>\d+) .*comm=(?P<comm>.*) pid=(?P<pid>\d+) grp="),
    "hrtimer_expire_entry": re.compile(r".*function=(?P<function>\S+)"),
}
_TEXTS = {"prev_comm", "next_comm", "comm", "prev_state", "name", "function", "work"}


class Event(NamedTuple):
    """One event of the trace.

    Attributes
    ----------
    t : int
        Time, ns on the clock of the trace; for :data:`LOST` that of the next event.
    cpu : int
        CPU that it happened on.
    pid : int
        Thread that was current there; 0: the idle task.
    comm : str
        Name of that thread.
    flags : str
        The flags of the line: ``h`` for a hard interrupt, ``s`` for a softirq, ``H`` for both.
    name : str
        Name of the event.
    fields : dict
        Its fields.
    """

    t: int
    cpu: int
    pid: int
    comm: str
    flags: str
    name: str
    fields: dict[str, Any]


def parse(text: str) -> Iterator[Event]:
    """Yield the events of a text, in its order.

    An event that matters and cannot be read, such as a switch to a thread with a line break in its name, is a loss:
    without it, the time after it would be taken for that of the thread before.
    """
    losses: list[int] = []
    t = 0
    for line in text.split("\n"):
        if head := _HEAD.match(line):
            comm, pid, cpu, flags, seconds, micros, name, rest = head.groups()
            if int(seconds) > _MAX_S:
                continue
            t = int(seconds) * 10**9 + int(micros) * 1000
            fields = _fields(name, rest)
            if fields is None:
                losses.append(int(cpu))
            yield from _lost(losses, t)
            losses = []
            if fields is not None:
                yield Event(t, int(cpu), int(pid), comm, flags, name, fields)
        elif lost := _LOST.match(line):
            losses.append(int(lost[1]))
    yield from _lost(losses, t)


def _fields(event: str, text: str) -> dict[str, Any] | None:
    """Return the fields of an event that matter; None if they cannot be read."""
    pattern = _FIELDS.get(event)
    if pattern is None:
        return {}
    found = pattern.match(text)
    if found is None:
        return None
    return {key: value if key in _TEXTS else int(value[:20]) for key, value in found.groupdict().items()}


def _lost(cpus: list[int], t: int) -> Iterator[Event]:
    for cpu in cpus:
        yield Event(t, cpu, -1, "", "", LOST, {})


def first_time(text: bytes) -> int | None:
    """Return the time of the first line of a text that has one."""
    found = _TIME.search(text)
    return None if found is None else _ns(found)


def last_time(text: bytes) -> int | None:
    """Return the time of the last line of a text that has one."""
    last = None
    for found in _TIME.finditer(text, max(0, len(text) - 2048)):
        last = found
    return None if last is None else _ns(last)


def _ns(found: re.Match[bytes]) -> int:
    return int(found[1]) * 10**9 + int(found[2]) * 1000
