"""Reports of real-time threads that break the rules of the kernel's monitor `rtapp`, by two judges.

One is the monitor itself (`CONFIG_RV`, Documentation/trace/rv of the kernel). The other reads the kernel's trace and
applies the same rules, on any kernel with trace events, x86-64:

- `pagefault`: a real-time thread faults a page in.
- `sleep`: a real-time thread sleeps in another call than clock_nanosleep with TIMER_ABSTIME and not CLOCK_REALTIME, a
  wait for a futex, or epoll_wait; or it sleeps there and is woken by a softirq or a thread of lower priority.
- `wakeup`: a softirq or a thread of lower priority wakes a real-time thread, unless that locks a PI futex, or waits for
  a lock of the kernel that lends its priority (traced from Linux 5.19 on).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TRACING = Path("/sys/kernel/tracing")
RV = TRACING / "rv"

#: Numbers of system calls on x86-64.
_FUTEX, _CLOCK_NANOSLEEP, _EPOLL_WAIT, _SCHED_SETSCHEDULER = 202, 230, 232, 144
_TIMER_ABSTIME, _CLOCK_REALTIME = 1, 0
#: Operations of futex(2), without their flags: waits, and locks with priority inheritance.
_WAITS, _PI_LOCKS, _OPERATION = {0, 9, 11}, {6, 13}, 0x7F
#: Least priority, as trace events have it, of a thread that is not a real-time thread.
_ORDINARY = 100

_LINE = re.compile(r"\s*(?P<comm>.*)-(?P<pid>\d+) +\[\d+\] (?P<flags>\S+) +[\d.]+: (?P<event>\w+): (?P<rest>.*)")
_SWITCH = re.compile(
    r"prev_comm=.* prev_pid=(\d+) prev_prio=(\d+) prev_state=(\S+) ==> next_comm=.* next_pid=(\d+) next_prio=(\d+)"
)
_WAKING = re.compile(r"comm=.* pid=(\d+) prio=(\d+) target_cpu")
_ENTER = re.compile(r"NR (\d+) \((.*)\)")


class Report(NamedTuple):
    """A report of a monitor: its name, the thread (0 for a monitor of a CPU), and the line of the trace."""

    monitor: str
    tid: int
    text: str


class _Judge:
    """A trace instance of its own."""

    name = ""

    def __init__(self) -> None:
        self.instance = TRACING / "instances" / f"rtloop-{self.name}-{os.getpid()}"
        self.instance.mkdir()
        (self.instance / "trace_clock").write_text("mono")

    def lines(self) -> list[str]:
        """Stop, and return the lines of the trace, which has to be complete."""
        (self.instance / "tracing_on").write_text("0")  # or the reading of it is traced, without an end
        for path in self.instance.glob("per_cpu/cpu*/stats"):
            lost = re.search(r"^overrun: (\d+)", path.read_text(), re.MULTILINE)
            assert lost is not None and not int(lost[1]), f"the trace lost events: {path}"
        return (self.instance / "trace").read_text(errors="replace").splitlines()

    def reports(self) -> list[Report]:
        """Stop, and return all reports."""
        raise NotImplementedError

    def of(self, tids: Iterable[int]) -> list[Report]:
        """Return the reports of some threads."""
        wanted = {*tids}
        return [report for report in self.reports() if report.tid in wanted]

    def counts(self, tid: int) -> dict[str, int]:
        """Return the number of reports of a thread by monitor."""
        return dict(Counter(report.monitor for report in self.of({tid})))

    def close(self) -> None:
        """Remove the instance."""
        self.instance.rmdir()


class Monitors(_Judge):
    """The kernel's own monitors, by name: `rtapp`, `sched`, `deadline`."""

    name = "monitors"

    def __init__(self, *names: str) -> None:
        super().__init__()
        for event in (self.instance / "events" / "rv").glob("error_*"):
            (event / "enable").write_text("1")
        (RV / "enabled_monitors").write_text("")  # none, so that each knows only the threads of this run
        for name in names:
            # One more monitor for each write; mode "a" would seek, which this file refuses.
            with open(RV / "enabled_monitors", "r+b", buffering=0) as file:
                file.write(name.encode())
        (RV / "monitoring_on").write_text("1")

    @staticmethod
    def available() -> set[str]:
        """Return the names of the monitors and their groups."""
        path = RV / "available_monitors"
        return {word.partition(":")[0] for word in path.read_text().split()} if path.exists() else set()

    def reports(self) -> list[Report]:
        found = []
        for line in self.lines():
            if match := re.search(r": error_(?:env_)?(\w+): (.*)", line):
                tid = re.match(r".*?\[(\d+)\]: violation|(\d+): event", match[2])
                found.append(Report(match[1], int(tid[1] or tid[2]) if tid else 0, line.strip()))
        return found

    def close(self) -> None:
        (RV / "enabled_monitors").write_text("")
        super().close()


class Trace(_Judge):
    """The rules of `rtapp`, applied to the trace of this process and of the threads that it starts."""

    name = "trace"
    EVENTS = (
        "sched/sched_switch", "sched/sched_waking", "raw_syscalls/sys_enter", "raw_syscalls/sys_exit",
        "exceptions/page_fault_user", "exceptions/page_fault_kernel",
    )  # fmt: skip

    #: These came with Linux 5.19.
    LOCKS = ("lock/contention_begin", "lock/contention_end")

    def __init__(self) -> None:
        super().__init__()
        (self.instance / "options" / "event-fork").write_text("1")
        (self.instance / "set_event_pid").write_text(" ".join(os.listdir("/proc/self/task")))
        (self.instance / "buffer_size_kb").write_text("8192")
        for event in (*self.EVENTS, *self.LOCKS):
            if (path := self.instance / "events" / event / "enable").exists():
                path.write_text("1")

    @staticmethod
    def available() -> bool:
        """Return whether this kernel has the events, and this process may read them."""
        events = (TRACING / "events" / event / "enable" for event in Trace.EVENTS)
        return os.uname().machine == "x86_64" and all(os.access(path, os.W_OK) for path in events)

    def reports(self) -> list[Report]:
        return list(apply_rules(self.lines()))


def apply_rules(lines: Iterable[str]) -> Iterator[Report]:
    """Yield a report for each violation in the lines of a trace."""
    priorities: dict[int, int] = {}
    calls: dict[int, tuple[int, list[int]]] = {}  # the system call that a thread is in
    valid: set[int] = set()  # threads that sleep for a reason that is allowed
    blocked: set[int] = set()  # threads that wait for a lock of the kernel that lends its priority
    traced: set[int] = set()  # those whose system calls are in the trace; of others there are only switches
    for line in lines:
        if (match := _LINE.match(line)) is None:
            continue
        current, event, rest = int(match["pid"]), match["event"], match["rest"]
        if not event.startswith("sched_"):
            traced.add(current)
        if event == "sys_enter" and (entered := _ENTER.match(rest)):
            call = int(entered[1]), [int(word, 16) for word in entered[2].split(", ")]
            calls[current] = call
            if call[0] == _SCHED_SETSCHEDULER:
                policy = call[1][1] & 0xFF
                priorities[call[1][0] or current] = 0 if policy in (os.SCHED_FIFO, os.SCHED_RR) else 120
        elif event == "sys_exit":
            calls.pop(current, None)
        elif event == "contention_begin" and re.search(r"flags=\S*\bRT\b", rest):
            blocked.add(current)
        elif event == "contention_end":
            blocked.discard(current)
        elif event.startswith("page_fault") and priorities.get(current, _ORDINARY) < _ORDINARY:
            yield Report("pagefault", current, line.strip())
        elif event == "sched_switch" and (switch := _SWITCH.match(rest)):
            before, priority, state, after, next_priority = switch.groups()
            priorities[int(before)], priorities[int(after)] = int(priority), int(next_priority)
            valid.discard(int(after))
            if state.startswith("S") and int(priority) < _ORDINARY and int(before) in traced:
                if may_sleep(*calls.get(int(before), (-1, []))):
                    valid.add(int(before))
                else:
                    yield Report("sleep", int(before), line.strip())
        elif event == "sched_waking" and (waking := _WAKING.match(rest)):
            woken, priority = int(waking[1]), int(waking[2])
            number, arguments = calls.get(woken, (-1, []))
            if (
                priority >= _ORDINARY
                or woken not in traced
                or (number == _FUTEX and arguments[1] & _OPERATION in _PI_LOCKS)
            ):
                continue
            if not is_safe_waker(match["flags"], priorities.get(current, 120), priority):
                yield Report("wakeup", woken, line.strip())
                if woken in valid:
                    yield Report("sleep", woken, line.strip())


def may_sleep(number: int, arguments: list[int]) -> bool:
    """Return whether a real-time thread may sleep in a system call."""
    if number == _CLOCK_NANOSLEEP:
        return arguments[1] == _TIMER_ABSTIME and arguments[0] != _CLOCK_REALTIME
    if number == _FUTEX:
        return arguments[1] & _OPERATION in _WAITS | _PI_LOCKS
    return number == _EPOLL_WAIT


def is_safe_waker(flags: str, waker: int, woken: int) -> bool:
    """Return whether a context may wake a real-time thread, by the flags of the trace's line and both priorities."""
    context = flags[2]  # h, H: a hard interrupt; s: a softirq; z, Z: an NMI; otherwise a thread
    return context in "hHzZ" or (context != "s" and waker <= woken)
