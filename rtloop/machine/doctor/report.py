"""Reports of the doctor: a table for a terminal, Markdown for an issue, a JSON document for a script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rtloop.machine.doctor.issue import Section, gather_facts, remove_private
from rtloop.machine.doctor.references import references
from rtloop.machine.doctor.run_all import TOPICS
from rtloop.system.checks import VERDICTS, Check, worst

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rtloop.machine.doctor.machine_files import Machine

__all__ = ["count", "exit_code", "make_document", "make_markdown", "print_page", "remedies"]

_STYLES = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "bold red"}
_MEANINGS = {
    "fail": "a loop with the default settings does not start here, or will be stopped",
    "warn": "this costs latency",
    "note": "worth knowing",
}


def exit_code(checks: Iterable[Check], *, strict: bool) -> int:
    """Return 1 if a check fails, with `strict` also if one warns; else 0."""
    return int(VERDICTS.index(worst(checks)) >= VERDICTS.index("warn" if strict else "fail"))


def count(checks: Iterable[Check]) -> dict[str, int]:
    """Return the number of checks with each verdict, the worst verdict first."""
    verdicts = [check.verdict for check in checks]
    return {verdict: verdicts.count(verdict) for verdict in reversed(VERDICTS)}


def summary(checks: Sequence[Check]) -> str:
    """Summarise the machine in one line."""
    counts = count(checks)
    figures = ", ".join(f"{counts[verdict]} {verdict}" for verdict in counts)
    conclusion = {
        "fail": "a loop with the default settings does not work here",
        "warn": "a loop works here, but wakes up later than it could",
        "note": "nothing was found that delays a loop",
        "ok": "nothing was found that delays a loop",
    }[worst(checks)]
    return f"{figures}: {conclusion}."


def remedies(checks: Iterable[Check]) -> list[tuple[list[Check], str]]:
    """Return the checks that are not ok, grouped by fix, the worst first, each group with its fix.

    A fix whose lines are all in another one is merged into it. Checks without a fix come last in their verdict.
    """
    found: dict[str, list[Check]] = {}
    alone: list[tuple[list[Check], str]] = []
    for check in sorted(checks, key=_severity):
        if check.verdict == "ok":
            continue
        if not check.fix:
            alone.append(([check], ""))
            continue
        same = next((fix for fix in found if _is_part(check.fix, fix) or _is_part(fix, check.fix)), check.fix)
        together = found.pop(same, [])
        found[max(same, check.fix, key=len)] = [*together, check]
    groups = [(together, fix) for fix, together in found.items()] + alone
    return sorted(groups, key=lambda group: (_severity(group[0][0]), not group[1]))


def _severity(check: Check) -> int:
    return -VERDICTS.index(check.verdict)


def _is_part(less: str, more: str) -> bool:
    return more == less or more.startswith(less + "\n")


def print_page(console: Console, checks: Sequence[Check], *, verbose: bool = False) -> None:
    """Print the tables, then the fixes, the worst first.

    Parameters
    ----------
    console : Console
        Destination.
    checks : sequence of Check
        In the order of their topics.
    verbose : bool
        True to show why each check matters and where it was read, and to list the fixes of notes.
    """
    from rich.markup import escape

    width = max((len(check.name) for check in checks), default=0)
    for topic, group in groupby(checks, lambda check: check.topic):
        console.print(f"\n[bold]{TOPICS[topic]}[/]")
        console.print(_table(list(group), width, verbose=verbose))
    shown = ("fail", "warn", "note") if verbose else ("fail", "warn")
    for verdict, groups in groupby(remedies(checks), lambda group: group[0][0].verdict):
        if verdict not in shown:
            continue
        console.print(f"\n[{_STYLES[verdict]}]{verdict.upper()}[/]: {_MEANINGS[verdict]}", highlight=False)
        for together, fix in groups:
            console.print()
            for check in together:
                text = f"[{_STYLES[check.verdict]}]{escape(check.name)}[/]: {escape(check.found)}"
                console.print(f"{text} [dim]({escape(check.source)})[/]", highlight=False)
            console.print(together[0].why, highlight=False, markup=False)
            for line in fix.splitlines():
                # Commands to paste must not be wrapped.
                console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"\n{summary(checks)}", highlight=False)
    if not verbose and any(check.verdict == "note" and check.fix for check in checks):
        console.print("--verbose also lists the notes, with their reasons, sources and fixes.", style="dim")


def _table(checks: Sequence[Check], width: int, *, verbose: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, int(verbose), 0))
    table.add_column(width=4)
    table.add_column(width=width, overflow="fold")
    table.add_column(overflow="fold")
    for check in checks:
        found = Text(check.found)
        if verbose:
            found.append(f"\n{check.source}\n{check.why}", "dim")
            for reference in references(check.name)[:1]:
                found.append(f"\n{reference['item']}: {reference['url']}", "dim")
        table.add_row(Text(check.verdict, _STYLES[check.verdict]), Text(check.name), found)
    return table


def make_document(checks: Sequence[Check], measured: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the document that ``--json`` prints."""
    from rtloop import __version__
    from rtloop.system.host import host_facts

    document: dict[str, Any] = {
        "rtloop": __version__,
        "command": "doctor",
        "verdict": worst(checks),
        "counts": count(checks),
        "host": host_facts(),
        "checks": [check.to_dict() | {"references": references(check.name)} for check in checks],
    }
    return document if measured is None else document | {"measured": measured}


def make_markdown(checks: Sequence[Check], machine: Machine | None = None) -> str:
    """Return the report as Markdown, to paste into an issue.

    With a machine, it also contains what a maintainer asks for first: the latency, the kernel, its configuration and
    command line, the hardware, CPUs, interrupts and settings. Private data are removed.
    """
    from rtloop import __version__

    lines = [f"## rtloop doctor ({__version__})", "", summary(checks)]
    if machine is not None:
        lines += _latency(checks)
        for section in gather_facts(machine):
            lines += _section(section)
        lines += ["", "## Checks"]
    for topic, group in groupby(checks, lambda check: check.topic):
        lines += ["", f"### {TOPICS[topic]}", "", "| | check | found | read from |", "|---|---|---|---|"]
        for check in group:
            verdict = check.verdict if check.verdict in ("ok", "note") else f"**{check.verdict}**"
            lines.append(f"| {verdict} | " + " | ".join(map(_cell, (check.name, check.found, check.source))) + " |")
    lines += ["", "### What to do"]
    for together, fix in remedies(checks):
        if fix:
            names = ", ".join(_cell(check.name) for check in together)
            lines += ["", f"**{together[0].verdict}: {names}**. {_cell(together[0].why)}."]
            lines += ["", "```", *fix.splitlines(), "```"]
    text = "\n".join(lines)
    return text if machine is None else remove_private(text, machine)


def _latency(checks: Sequence[Check]) -> list[str]:
    lines = ["", "### Latency", ""]
    measured = [check for check in checks if check.topic == "measured"]
    if not measured:
        command = "rtloop doctor --markdown --measure --duration 10m"
        return [*lines, f"Not measured. `{command}` adds it; `rtloop latency --breakpoint` records a trace of a spike."]
    return [*lines, *(f"{_cell(check.name)}: {_cell(check.found)} ({_cell(check.source)})" for check in measured)]


def _section(section: Section) -> list[str]:
    lines = ["", f"### {section.title}", ""]
    if section.lines:
        return [*lines, "```", *section.lines, "```"]
    lines += [f"| {' | '.join(section.head)} |", "|" + "---|" * len(section.head)]
    return lines + [f"| {' | '.join(map(_cell, row))} |" for row in section.rows]


def _cell(text: str) -> str:
    """Escape a text for Markdown and HTML."""
    for mark in ("\\", "|", "<", "*", "_", "`", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
