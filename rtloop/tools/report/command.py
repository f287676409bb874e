"""``rtloop report``: one run, or several side by side, on one page of HTML."""

from __future__ import annotations

from pathlib import Path

import click

from rtloop.tools.saved_runs import load_runs, write_output

__all__ = ["report"]


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN.npz...")
@click.option("-o", "--output", metavar="FILE", default=None,
              help="File to write; - is standard output. By default RUN.html in the current folder.")  # fmt: skip
@click.option(
    "--worst", type=click.IntRange(0, 1000), default=10, show_default=True, help="Number of worst cycles to list."
)
def report(runs: tuple[str, ...], output: str | None, worst: int) -> None:
    """Make an HTML page from saved stats.

    stats.save("run.npz") saves them. The page shows the findings, the figures, the histograms, the time line, the worst
    cycles, the grants, the settings, and facts about the machine. The page is one file that loads nothing else and runs
    no script: it can be mailed, archived and printed. Several runs are shown side by side. An existing FILE is replaced
    as a whole.

    \b
    Examples:
      rtloop report run.npz -o report.html
      rtloop report before.npz after.npz -o compared.html
      rtloop report run.npz -o - | ssh desk 'cat > report.html'
    """  # noqa: D301 - the backslash is for click
    from rtloop.tools.report.page import make_page

    target = output or f"{Path(runs[0]).stem}.html"
    write_output(target, make_page(load_runs(runs), worst=worst))
    if target != "-":
        click.echo(f"wrote {target}", err=True)
