"""One change of the machine: its value before, the value that is asked for, and how to write either.

A step is text throughout, so that a journal can hold it, and a later process can undo it.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rtloop.machine.isolation.kernel import Kernel
from rtloop.process.nap import nap
from rtloop.system.cpu import format_cpu_list, parse_cpu_list

__all__ = [
    "ABSENT", "PRESENT", "Step", "is_satisfied", "put", "read", "script", "thread_target", "undo_order", "vanishes",
]  # fmt: skip

#: Values of a control group.
ABSENT, PRESENT = "absent", "present"
#: A thread that is on its way out of a control group, or has just begun in it, is waited for, this many times.
_TRIES, _PAUSE_S = 400, 0.005
#: Passes in which threads that were created meanwhile are moved as well.
_PASSES = 20
#: Files that hold a mask of CPUs, in hexadecimal digits, and those that hold a list.
_MASKS = ("/cpumask", "/default_smp_affinity")
_LISTS = ("/smp_affinity_list", "/cpuset.cpus", "/cpuset.mems", "/watchdog_cpumask")


@dataclass
class Step:
    """One change.

    Attributes
    ----------
    topic : str
        The row of the report that it belongs to: ``"partition"``, ``"interrupts"`` and so on.
    kind : str
        ``"write"``: a file. ``"controller"``: cpuset in a ``cgroup.subtree_control``. ``"group"``: a control group.
        ``"affinity"``, ``"scheduler"``: CPUs or policy of a thread. ``"tasks"``: the threads of a cpuset of version 1,
        moved to another. ``"note"``: no change, only a remark.
    target : str
        A path; ``tid:start`` for a thread; two paths with a colon between for ``"tasks"``.
    label : str
        The thing that is changed, for people.
    before, wanted : str
        The value before, and the one that is asked for.
    after : str or None
        The value that was read back; None until then.
    why : str
        The reason for a refusal.
    is_essential : bool
        True if there is no isolation without it.
    sequence : int
        Position among the steps of all isolations of the machine.
    """

    topic: str
    kind: str
    target: str
    label: str
    before: str
    wanted: str
    after: str | None = None
    why: str = ""
    is_essential: bool = False
    sequence: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """The thing that is changed, the same for every isolation that changes it."""
        return self.kind, self.target

    @property
    def is_granted(self) -> bool:
        """True if the value that was read back is what was asked for."""
        return self.after is not None and is_satisfied(self, self.after)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


class _Kind(NamedTuple):
    """Functions that read and write one kind of thing, and the shell's words for writing it."""

    read: Callable[[Kernel, Step], str | None]
    put: Callable[[Kernel, Step, str], None]
    script: Callable[[Step, str], list[str]]


def read(kernel: Kernel, step: Step) -> str | None:
    """Return the value now; None if the thing no longer exists."""
    return _KINDS[step.kind].read(kernel, step)


def put(kernel: Kernel, step: Step, value: str) -> None:
    """Write a value.

    Raises
    ------
    OSError
        If the kernel refuses it.
    """
    _KINDS[step.kind].put(kernel, step, value)


def script(step: Step, value: str) -> list[str]:
    """Return the lines of shell that write a value, for a shell of root."""
    return _KINDS[step.kind].script(step, value)


def is_satisfied(step: Step, value: str) -> bool:
    """Return whether a value is the one that is asked for, in whatever way the kernel writes it."""
    if step.kind == "controller":
        return step.wanted.lstrip("+") in value.split()
    found, wanted = value.strip(), step.wanted.strip()
    if found == wanted:
        return True
    with suppress(ValueError):
        if step.target.endswith(_MASKS):
            return int(found.replace(",", ""), 16) == int(wanted.replace(",", ""), 16)
        if step.kind == "affinity" or step.target.endswith(_LISTS):
            return parse_cpu_list(found) == parse_cpu_list(wanted)
    return False


def undo_order(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that can be undone, in that order: backwards, but the CPUs of threads last.

    A thread gets its CPUs back when it may have them again, after all other steps.
    """
    backwards = [step for step in reversed(steps) if step.kind not in ("affinity", "note")]
    return backwards + [step for step in steps if step.kind == "affinity"]


def vanishes(step: Step, steps: Sequence[Step]) -> bool:
    """Return whether a step writes a file in a control group that one of these steps has created."""
    folders = [other.target for other in steps if other.kind == "group" and other.before == ABSENT]
    return step.kind == "write" and any(step.target.startswith(f"{folder}/") for folder in folders)


def thread_target(tid: int, start: int) -> str:
    """Return the target of a step for a thread."""
    return f"{tid}:{start}"


def _tid(kernel: Kernel, step: Step) -> int:
    """Return the number of a step's thread; 0 if it has ended, even if another has its number now."""
    tid, _, start = step.target.partition(":")
    return int(tid) if tid.isdigit() and kernel.start_of(int(tid)) == int(start) else 0


def _living(kernel: Kernel, step: Step) -> int:
    if not (tid := _tid(kernel, step)):
        raise OSError(errno.ESRCH, "no such thread")
    return tid


# Files.


def _write_script(step: Step, value: str) -> list[str]:
    return [f"echo {shlex.quote(value.strip())} > {shlex.quote(step.target)}"]


def _put_controller(kernel: Kernel, step: Step, value: str) -> None:
    name = step.wanted.lstrip("+")
    kernel.write(step.target, f"+{name}" if value == step.wanted or name in value.split() else f"-{name}")


def _controller_script(step: Step, value: str) -> list[str]:
    name = step.wanted.lstrip("+")
    sign = "+" if value == step.wanted or name in value.split() else "-"
    return [f"echo {sign}{name} > {step.target}"]


# Control groups.


def _read_group(kernel: Kernel, step: Step) -> str:
    return PRESENT if kernel.exists(step.target) else ABSENT


def _put_group(kernel: Kernel, step: Step, value: str) -> None:
    if value == PRESENT:
        kernel.make_group(step.target)
    else:
        _remove_group(kernel, step)


def _remove_group(kernel: Kernel, step: Step) -> None:
    """Remove a control group, whose processes move to its parent."""
    for count in range(_TRIES):
        for pid in kernel.text(f"{step.target}/cgroup.procs").split():
            with suppress(OSError):  # it has ended meanwhile
                kernel.write(f"{os.path.dirname(step.target)}/cgroup.procs", pid)
        # The kernel ends the partition of a removed group later, and would then change masks that are restored by now.
        with suppress(OSError):
            kernel.write(f"{step.target}/cpuset.cpus.partition", "member")
        try:
            kernel.remove_group(step.target)
        except OSError as error:
            if error.errno != errno.EBUSY or count == _TRIES - 1:
                raise
        else:
            return
        nap(_PAUSE_S)


def _group_script(step: Step, value: str) -> list[str]:
    path = shlex.quote(step.target)
    if value == PRESENT:
        return [f"mkdir {path}"]
    parent = shlex.quote(os.path.dirname(step.target))
    partition = f"{path}/cpuset.cpus.partition"
    return [
        f"for p in $(cat {path}/cgroup.procs); do echo $p > {parent}/cgroup.procs; done",
        f"if [ -f {partition} ]; then echo member > {partition}; fi",
        f"rmdir {path}",
    ]


# Threads of a cpuset of version 1.


def _read_tasks(kernel: Kernel, step: Step) -> str:
    _, _, inner = step.target.partition(":")
    return "moved" if kernel.text(f"{inner}/tasks") else "here"


def _put_tasks(kernel: Kernel, step: Step, value: str) -> None:
    outer, _, inner = step.target.partition(":")
    is_moved = value == "moved"  # else all have to come back, and those that cannot yet are waited for
    origin, goal = (outer, inner) if is_moved else (inner, outer)
    stuck: set[str] = set()
    for _ in range(_PASSES if is_moved else _TRIES):
        tids = [tid for tid in kernel.text(f"{origin}/tasks").split() if tid not in stuck]
        if not tids:
            return
        for tid in tids:
            try:
                kernel.write(f"{goal}/tasks", tid)
            except OSError as error:
                if is_moved and error.errno != errno.ESRCH:
                    stuck.add(tid)  # a thread of the kernel that is bound to its CPU
        if not is_moved:
            nap(_PAUSE_S)


def _tasks_script(step: Step, value: str) -> list[str]:
    outer, _, inner = step.target.partition(":")
    origin, goal = (outer, inner) if value == "moved" else (inner, outer)
    return [f"for t in $(cat {origin}/tasks); do echo $t > {goal}/tasks; done 2>/dev/null   # some are bound"]


# Threads.


def _read_affinity(kernel: Kernel, step: Step) -> str | None:
    return format_cpu_list(kernel.affinity(tid)) if (tid := _tid(kernel, step)) else None


def _put_affinity(kernel: Kernel, step: Step, value: str) -> None:
    kernel.set_affinity(_living(kernel, step), parse_cpu_list(value))


def _affinity_script(step: Step, value: str) -> list[str]:
    return [f"taskset -pc {value} {step.target.partition(':')[0]} >/dev/null   # {step.label}"]


def _read_scheduler(kernel: Kernel, step: Step) -> str | None:
    return kernel.scheduler(tid) or None if (tid := _tid(kernel, step)) else None


def _put_scheduler(kernel: Kernel, step: Step, value: str) -> None:
    kernel.set_scheduler(_living(kernel, step), value)


def _scheduler_script(step: Step, value: str) -> list[str]:
    policy, _, priority = value.partition(" ")
    tid = step.target.partition(":")[0]
    if not tid.isdigit():  # threads that do not exist before the commands above
        return [f"for t in $(pgrep '^{tid}'); do chrt --{policy} -p {priority} $t; done"]
    return [f"chrt --{policy} -p {priority} {tid}   # {step.label}"]


_KINDS = {
    "write": _Kind(
        lambda kernel, step: kernel.read(step.target),
        lambda kernel, step, value: kernel.write(step.target, value),
        _write_script,
    ),
    "controller": _Kind(lambda kernel, step: kernel.read(step.target), _put_controller, _controller_script),
    "group": _Kind(_read_group, _put_group, _group_script),
    "tasks": _Kind(_read_tasks, _put_tasks, _tasks_script),
    "affinity": _Kind(_read_affinity, _put_affinity, _affinity_script),
    "scheduler": _Kind(_read_scheduler, _put_scheduler, _scheduler_script),
    "note": _Kind(lambda kernel, step: step.before, lambda kernel, step, value: None, lambda step, value: []),
}
