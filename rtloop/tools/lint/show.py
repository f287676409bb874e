"""Reports of the lint on a terminal, grouped by kind, so that each reason and fix appears once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from rtloop.linter.lint import Finding, LintReport

__all__ = ["show_report", "verdict"]

_WIDTH = 100


def show_report(console: Console, report: LintReport) -> None:
    """Print the findings in one file, and the verdict last."""

    def put(*parts: str | tuple[str, str]) -> None:
        console.print(Text.assemble(*parts), soft_wrap=True)

    for kind in dict.fromkeys(finding.kind for finding in report.findings):
        group = [finding for finding in report.findings if finding.kind == kind]
        put((kind, "bold red"), ": ", group[0].why)
        for finding in group:
            _show_finding(put, finding)
        put(("  fix  ", "green"), group[0].fix, "\n")
    if report.not_examined:
        put(("not examined", "bold yellow"), ": it is not known whether these calls are safe on the loop's thread")
        for finding in report.not_examined:
            lines = ", ".join(_place(file, line) for file, line in finding.called_at[:4])
            more = len(finding.called_at) - 4
            lines += f" and {more} more" * (more > 0)
            put("  ", (", ".join(finding.names), "bold"), f"  {finding.why}, called at {lines}")
        for fix in dict.fromkeys(finding.fix for finding in report.not_examined):
            put(("  fix  ", "green"), fix)
        put()
    if report.accepted:
        put(("accepted", "bold"))
        for finding in report.accepted:
            what = ", ".join(finding.names) or finding.kind
            put("  ", (_place(finding.file, finding.line), "cyan"), f"  {what}: {finding.reason}")
        put()
    places = {(finding.file, finding.line) for finding in report.findings}
    for file, line, text in report.hints:
        if (file, line) in places:
            continue  # reported above in more detail
        put(("Cython", "bold"), " ", (_place(file, line), "cyan"), f"  {text}")
    for file, line, names in report.unused:
        put(("note", "bold"), " ", (_place(file, line), "cyan"), f"  nothing to accept here: allow {names}")
    put(*verdict(report))


def _show_finding(put, finding: Finding) -> None:  # type: ignore[no-untyped-def]
    source = finding.source if len(finding.source) <= _WIDTH else finding.source[: _WIDTH - 3] + "..."
    put("  ", (_place(finding.file, finding.line), "cyan"), "  ", (source, "bold"))
    way = " > ".join(finding.chain) or "-"
    names = f": {', '.join(finding.names[:4])}" if finding.names else ""
    if finding.kind == "missing-noexcept":
        names = ", called at " + ", ".join(_place(file, line) for file, line in finding.called_at[:4])
    if finding.chain:
        put((f"      in {way}{names}", "dim"))


def _place(file: str, line: int) -> str:
    """Return a place in a form that editors and terminals link, relative if that is shorter."""
    return f"{min(file, os.path.relpath(file), key=len) if os.path.isabs(file) else file}:{line}"


def verdict(report: LintReport) -> Iterable[str | tuple[str, str]]:
    """Return the sentence that ends a report, as parts with styles."""
    if not report.functions:
        what = "no class in it is a subclass of RTLoop" if not report.loops else "its loops override nothing"
        yield (f"{report.path}: nothing examined, because {what}", "yellow")
        return
    loops = ", ".join(report.loops) or "no loop"
    yield (f"{report.path}", "bold")
    yield f" ({loops}): "
    count = len(report.functions)
    examined = f"{count} function{'s' * (count != 1)} examined"
    if report.findings:
        found = len(report.findings)
        yield (f"{found} finding{'s' * (found != 1)}", "bold red")
        yield f", {examined}"
    elif report.not_examined:
        yield ("nothing found", "bold green")
        yield f" in what could be examined, {examined}"
    else:
        yield ("clean", "bold green")
        yield f", {examined}"
    if report.accepted:
        yield f", {len(report.accepted)} accepted"
    if report.not_examined:
        calls = len(report.not_examined)
        yield (f", {calls} callee{'s' * (calls != 1)} not examined", "yellow")
