"""Checks for known problems of certain kernels, each with its versions and a link to their record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.checks.kernel import is_preempt_rt
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.system.checks import Check

__all__ = ["PROBLEMS", "Problem", "corrected_in", "examine"]

_CVE = "https://www.cve.org/CVERecord?id="
_COMMIT = "https://git.kernel.org/torvalds/c/"


class Problem(NamedTuple):
    """A problem of certain kernels.

    Attributes
    ----------
    name : str
        Short name.
    since : tuple of int
        The first version that has it.
    mainline : tuple of int
        The first version without it.
    stable : dict
        By series, the first stable version without it. Series that are not listed were never corrected.
    is_rt : bool
        True if only PREEMPT_RT kernels have it.
    only : str
        Condition under which it matters; empty for always. One of ``"deadline"``, ``"epoll"``, ``"quota"`` and
        ``"capacity"``.
    text : str
        What happens.
    url : str
        Address of the record that lists the versions.
    """

    name: str
    since: tuple[int, int]
    mainline: tuple[int, int]
    stable: Mapping[tuple[int, int], int]
    is_rt: bool
    only: str
    text: str
    url: str


PROBLEMS = (
    Problem(
        "stall of a quota", (5, 14), (6, 18), {}, True, "quota",
        "if a CPU quota stops a thread that holds a kernel lock, the timer threads of its CPU can stall",
        "https://gitlab.com/redhat/centos-stream/src/kernel/centos-stream-9/-/merge_requests/3293",
    ),
    Problem(
        "fair server's time", (6, 12), (6, 16), {(6, 12): 39, (6, 15): 7}, False, "capacity",
        "the fair server scales its runtime by the CPU's speed, so it can hold up real-time threads on slow CPUs for "
        "seconds",
        f"{_COMMIT}fc975cfb36393db1db517fbbe366e550bcdcff14",
    ),
    Problem(
        "wait by epoll", (5, 4), (6, 18), {(6, 1): 159, (6, 6): 114, (6, 12): 54, (6, 17): 4}, True, "epoll",
        "an ordinary thread that uses the same epoll object can hold up a real-time thread for an unlimited time",
        f"{_COMMIT}0c43094f8cc9",
    ),
    Problem(
        "clocksource watchdog", (5, 14), (6, 14),
        {(5, 15): 179, (6, 1): 129, (6, 6): 79, (6, 12): 16, (6, 13): 4}, True, "",
        "the watchdog of an unstable clocksource may sleep in atomic context",
        f"{_CVE}CVE-2025-21767",
    ),
    Problem(
        "deletion of a timer", (5, 4), (6, 5),
        {(5, 10): 188, (5, 15): 121, (6, 1): 39, (6, 3): 13, (6, 4): 4}, True, "",
        "a real-time thread that deletes an expiring POSIX timer may spin forever",
        f"{_CVE}CVE-2023-53815",
    ),
    Problem(
        "boosted deadline thread", (4, 15), (6, 13), {(6, 6): 66, (6, 12): 5}, True, "deadline",
        "SCHED_DEADLINE sets up a thread with an inherited priority twice when it changes its CPU",
        f"{_CVE}CVE-2024-56583",
    ),
    Problem(
        "leak of deadline threads", (5, 10), (6, 10), {(6, 9): 10}, False, "deadline",
        "a throttled SCHED_DEADLINE thread that wakes up early leaks kernel memory",
        f"{_CVE}CVE-2024-41023",
    ),
    Problem(
        "borrowed runtime", (0, 0), (5, 10), {}, False, "",
        "a real-time thread that never sleeps borrows the runtime of other CPUs and starves the kernel's own threads",
        f"{_COMMIT}2586af1ac187f6b3a50930a4e33497074e81762d",
    ),
)  # fmt: skip


def examine(machine: Machine) -> Iterator[Check]:
    """Yield a check for each known problem of this kernel, or one check if there is none."""
    name, source = "known problems", "/proc/sys/kernel/osrelease, version"
    why = "later kernels have corrected these problems"
    version = parse.kernel_release(machine.release, machine.text("/proc/sys/kernel/version"))
    if version is None:
        yield Check("kernel", name, unread(), source, "note", why)
        return
    series, stable = version[:2], version[2]
    matches = [problem for problem in PROBLEMS if _is_there(problem, series, stable) and _concerns(machine, problem)]
    for problem in matches:
        is_sure = stable is not None  # a distribution's kernel may have any correction
        found = problem.text
        if not is_sure:
            found += "; the release does not show whether this kernel has the correction"
        verdict = "warn" if is_sure and _matters(machine, problem) else "note"
        yield Check("kernel", f"known problem: {problem.name}", found, problem.url, verdict, why, _fix(problem))
    if not matches:
        found = f"none of the {len(PROBLEMS)} listed problems applies to {machine.release}"
        yield Check("kernel", name, found, source, "ok", why)


def _is_there(problem: Problem, series: tuple[int, int], stable: int | None) -> bool:
    if not problem.since <= series < problem.mainline:
        return False
    corrected = problem.stable.get(series)
    return corrected is None or stable is None or stable < corrected


def _concerns(machine: Machine, problem: Problem) -> bool:
    return not problem.is_rt or is_preempt_rt(machine)


def _matters(machine: Machine, problem: Problem) -> bool:
    """Return True if the condition of a problem holds here; SCHED_DEADLINE and epoll depend on the program."""
    if problem.only == "quota":
        limits = (parse.cpu_max(machine.text(f"{folder}/cpu.max")) for folder in _groups(machine))
        return any(limit is not None and limit[0] >= 0 for limit in limits)
    if problem.only == "capacity":
        folder = "/sys/devices/system/cpu"
        return any((machine.number(f"{folder}/cpu{cpu}/cpu_capacity") or 1024) < 1024 for cpu in machine.online)
    return problem.only == ""


def _groups(machine: Machine) -> Iterator[str]:
    for controllers, path in parse.cgroups(machine.text("/proc/self/cgroup")):
        if not controllers:
            parts = [part for part in path.split("/") if part]
            for count in range(len(parts), -1, -1):
                yield "/".join(["/sys/fs/cgroup", *parts[:count]])


def corrected_in(problem: Problem) -> str:
    """Return the first kernel versions without a problem."""
    names = [f"{major}.{minor}.{stable}" for (major, minor), stable in sorted(problem.stable.items())]
    return ", ".join([*names, "{}.{} or later".format(*problem.mainline)])


def _fix(problem: Problem) -> str:
    return f"a kernel with the correction: {corrected_in(problem)}"
