"""Output of ``rtloop isolate``: the table of changes, the script of a dry run, and what was restored."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from rtloop.machine.isolation.step import ABSENT, Step, is_satisfied, script, undo_order, vanishes
from rtloop.system.cpu import format_cpu_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from rtloop.machine.isolation.isolation import Isolation
    from rtloop.machine.isolation.restore import Restored

__all__ = ["Row", "enter_command", "make_remarks", "make_rows", "make_script", "print_restored", "print_table"]

_SHOWN_REFUSALS = 6


class Row(NamedTuple):
    """Line of the table: the thing, the values asked for, before and now, and the verdict."""

    what: str
    asked: str
    was: str
    now: str
    verdict: str


def make_rows(steps: Iterable[Step]) -> list[Row]:
    """Return a row for each topic."""
    topics: dict[str, list[Step]] = {}
    for step in steps:
        if step.kind != "note":
            topics.setdefault(step.topic, []).append(step)
    return [_make_row(topic, group) for topic, group in topics.items()]


def _make_row(topic: str, steps: list[Step]) -> Row:
    refused = [step for step in steps if not step.is_granted]
    if topic == "partition":
        main = next((step for step in steps if step.target.endswith("cpuset.cpus.partition")), None)
        was = "none" if any(step.before == ABSENT for step in steps) else "shared"
        return Row(topic, "isolated", was, "isolated" if not refused else _flat(main.after if main else ""),
                   "refused" if refused else "granted")  # fmt: skip
    if len(steps) == 1:
        (step,) = steps
        return Row(topic, _flat(step.wanted), _flat(step.before), _flat(step.after),
                   "granted" if step.is_granted else "refused")  # fmt: skip
    granted = len(steps) - len(refused)
    verdict = "granted" if not refused else "in part" if granted else "refused"
    return Row(topic, _common(step.wanted for step in steps), _common(step.before for step in steps),
               f"{granted} of {len(steps)}", verdict)  # fmt: skip


def make_remarks(steps: Sequence[Step]) -> list[str]:
    """Return a line for each refusal, with its reason, and for each remark."""
    refused = [step for step in steps if step.kind != "note" and not step.is_granted]
    lines = [f"refused: {step.label}: {step.why}" for step in refused[:_SHOWN_REFUSALS]]
    if len(refused) > _SHOWN_REFUSALS:
        lines.append(f"refused: {len(refused) - _SHOWN_REFUSALS} more; --json lists them")
    return lines + [f"note: {step.label}: {step.why}" for step in steps if step.kind == "note"]


def _flat(text: str | None) -> str:
    return " ".join((text or "").split()) or "-"


def _common(values: Iterable[str]) -> str:
    found = sorted({_flat(value) for value in values})
    return found[0] if len(found) == 1 else f"{len(found)} values" if len(found) > 2 else ", ".join(found)


def print_table(console: Console, isolation: Isolation) -> None:
    """Print the changes: asked for, before, read back."""
    from rich.table import Table

    cpus = format_cpu_list(isolation.cpus)
    rest = format_cpu_list(isolation.request.housekeeping)
    console.print(
        f"CPU {cpus} is isolated as {isolation.group}; all other work runs on {rest}", highlight=False, soft_wrap=True
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "asked", "was", "now", ""):
        table.add_column(name, overflow="fold")
    for row in make_rows(isolation.steps):
        table.add_row(*row)
    console.print(table)
    for line in make_remarks(isolation.steps):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def enter_command(isolation: Isolation, program: Sequence[str]) -> list[str]:
    """Return the command that joins the control group and becomes a program."""
    group = f"{isolation.kernel.root}{isolation.group}/cgroup.procs"
    return ["sh", "-c", 'echo $$ > "$1" && shift && exec "$@"', "rtloop", group, *program]


def make_script(isolation: Isolation, program: Sequence[str], steps: Sequence[Step]) -> str:
    """Return the commands that isolate, run the program and undo it, for a shell of root."""
    lines = [f"# Isolate CPU {format_cpu_list(isolation.cpus)}. For a shell of root: sudo -s"]
    topic = ""
    for step in steps:
        if step.topic != topic:
            topic = step.topic
            lines.append(f"# {topic}")
        if step.kind == "note":
            lines.append(f"#   {step.label}: {step.why}")
        else:
            lines += [] if is_satisfied(step, step.before) else script(step, step.wanted)
    lines += ["# Run the program inside", shlex.join(enter_command(isolation, program)), "# Undo it"]
    for step in undo_order(steps):
        has_value = step.before or step.kind == "controller"
        if has_value and not is_satisfied(step, step.before) and not vanishes(step, steps):
            lines += script(step, step.before)
    return "\n".join(lines)


def print_restored(console: Console, restored: Sequence[Restored]) -> None:
    """Print how many settings were restored, and each that was not."""
    count = sum(result.verdict in ("restored", "unchanged", "gone") for result in restored)
    console.print(f"undone: {count} of {len(restored)} settings are as before", highlight=False)
    for result in restored:
        if result.verdict in ("kept", "refused", "left"):
            line = f"  {result.label}: {result.verdict}: {result.why}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
