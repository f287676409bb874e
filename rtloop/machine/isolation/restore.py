"""Undoing an isolation from its journal, by whichever process is left to do it.

Each value is written back only if it is still the one that the isolation wrote. A value that somebody else has changed
meanwhile stays, and is reported. If a later isolation has changed the same thing, it is restored when that one ends.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from rtloop.machine.isolation.journal import Journal, journals, locked
from rtloop.machine.isolation.kernel import Kernel
from rtloop.machine.isolation.step import Step, is_satisfied, put, read, undo_order, vanishes
from rtloop.system.cpu import parse_cpu_list

__all__ = ["Restored", "restore", "restore_left"]


@dataclass(frozen=True)
class Restored:
    """Result of undoing one step.

    Attributes
    ----------
    topic, label : str
        The step's.
    verdict : {"restored", "unchanged", "gone", "kept", "left", "refused"}
        ``unchanged``: it has its former value already. ``gone``: the thing no longer exists. ``kept``: somebody else
        has changed it. ``left``: a later isolation will restore it. ``refused``: the kernel refuses the value.
    before, found, now : str or None
        The value before the isolation, that before this restoration, and the one that was read back.
    why : str
        The reason, if it was not restored.
    """

    topic: str
    label: str
    verdict: str
    before: str
    found: str | None
    now: str | None
    why: str = ""


def restore(journal: Journal) -> list[Restored]:
    """Undo all steps of an isolation, and delete its journal unless something was refused.

    Raises
    ------
    OSError
        If the folder of the journals cannot be written.
    """
    with locked(journal.kernel):
        return _restore_all(journal)


def restore_left(journal: Journal) -> list[Restored] | None:
    """Restore what a journal notes, unless a running process will do so; then return None.

    The process that begins an isolation may have entered itself in the journal after the journal was read.

    Raises
    ------
    OSError
        If the folder of the journals cannot be written.
    """
    with locked(journal.kernel):
        return None if Journal.load(journal.kernel, journal.path).is_kept() else _restore_all(journal)


def _restore_all(journal: Journal) -> list[Restored]:
    kernel = journal.kernel
    if not kernel.exists(journal.path):
        return []  # another process has done it
    journal = Journal.load(kernel, journal.path)
    others = [other for other in journals(kernel) if other.path != journal.path]
    _move_home(kernel, journal)
    found = [_restore(kernel, journal, step, others) for step in undo_order(journal.steps)]
    if not any(result.verdict == "refused" for result in found):
        journal.remove()
    return found


def _move_home(kernel: Kernel, journal: Journal) -> None:
    """Move the processes that are still in the isolation's group to the one that it was started from."""
    home = journal.header.get("home")
    group = journal.header.get("group")
    if home and group:
        for pid in kernel.text(f"{group}/cgroup.procs").split():
            with suppress(OSError):  # the process has ended, or the group; then its parent takes the process
                kernel.write(f"{home}/cgroup.procs", pid)


def _restore(kernel: Kernel, journal: Journal, step: Step, others: list[Journal]) -> Restored:
    def result(verdict: str, found: str | None, now: str | None, why: str = "") -> Restored:
        return Restored(step.topic, step.label, verdict, step.before, found, now, why)

    found = read(kernel, step)
    if (later := _later(step, others)) is not None:
        other, its = later
        if its.before == step.after:
            other.take_over(its, step.before)
        return result("left", found, found, f"the isolation of CPU {other.cpus} restores it")
    if found is None:
        return result("gone", found, None)
    if found == step.before:
        return result("unchanged", found, found)
    if vanishes(step, journal.steps):
        return result("gone", found, None, "it is removed with its group")
    if not _is_own(kernel, step, found, others):
        return result("kept", found, found, f"somebody else has changed it to {_show(found)}")
    try:
        put(kernel, step, step.before)
    except OSError as error:
        if (now := read(kernel, step)) is None:
            return result("gone", found, now)
        return result("refused", found, now, error.strerror or str(error))
    now = read(kernel, step)
    if now == step.before or (step.kind == "controller" and "cpuset" not in (now or "").split()):
        return result("restored", found, now)
    return result("refused", found, now, f"it is {_show(now)} after {_show(step.before)} was written")


def _later(step: Step, others: list[Journal]) -> tuple[Journal, Step] | None:
    """Return the next change of the same thing by another isolation, with its journal."""
    after = [
        (its.sequence, other, its)
        for other in others
        for its in other.steps
        if its.key == step.key and its.sequence > step.sequence
    ]
    if not after:
        return None
    _, other, its = min(after, key=lambda item: item[0])
    return other, its


def _is_own(kernel: Kernel, step: Step, found: str, others: list[Journal]) -> bool:
    """Return whether a value is the isolation's; its last write may not have reached the journal."""
    if step.kind in ("group", "tasks", "controller"):
        return True
    if found == step.after or is_satisfied(step, found):
        return True
    if step.kind == "affinity":  # the kernel widens a mask when the partition ends, and an interrupt its thread's
        everywhere = set(kernel.cpus("/sys/devices/system/cpu/online"))
        left = everywhere - {cpu for other in others for cpu in parse_cpu_list(other.cpus)}
        return set(parse_cpu_list(found)) in (everywhere, left) or " irq/" in step.label
    return False


def _show(text: str | None) -> str:
    return repr((text or "").strip())
