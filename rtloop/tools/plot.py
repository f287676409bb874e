"""``rtloop plot``: pictures of saved stats, several runs over each other."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rtloop.tools.saved_runs import load_runs, write_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from rtloop.tools.saved_runs import Run

__all__ = ["draw_runs", "plot"]

_LABELS = {
    "latency": "wake-up latency",
    "execution": "execution time",
    "response": "response time",
    "interval": "interval",
}
_KINDS = ("main", "histograms", "time", *_LABELS, "schedule")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN.npz...")
@click.option("-o", "--output", metavar="FILE", default=None,
              help="File to write; its suffix is the format (.png, .svg, .pdf); - is a PNG on standard output."
                   " By default RUN.png in the current folder.")  # fmt: skip
@click.option("--kind", type=click.Choice(_KINDS), default=None,
              help="Kind of picture; by default main for one run, histograms for several.")  # fmt: skip
@click.option("--at", metavar="TIME", default=None,
              help="For schedule: last (the default), worst, or a time after the origin: 1.5s.")  # fmt: skip
@click.option("--duration", metavar="TIME", default=None, help="For schedule: how long, instead of a hyperperiod.")
def plot(runs: tuple[str, ...], output: str | None, kind: str | None, at: str | None, duration: str | None) -> None:
    """Draw saved stats.

    stats.save("run.npz") saves them.

    \b
    main        histograms and the time lines of the last cycles, of one run
    histograms  latency, execution and response, each with all runs drawn over each other
    time        the time line of the wake-up latency, or of the interval, of each run
    latency, execution, response, interval
                that histogram alone, all runs drawn over each other
    schedule    a hyperperiod of loops that ran together, as a Gantt chart

    A FILE that exists is replaced, as a whole.

    \b
    Examples:
      rtloop plot run.npz
      rtloop plot before.npz after.npz -o compared.svg
      rtloop plot before.npz after.npz --kind latency -o latency.pdf
      rtloop plot current.npz velocity.npz plan.npz --kind schedule --at worst
    """  # noqa: D301 - the backslash is for click
    import matplotlib.figure

    target = output or f"{Path(runs[0]).stem}.png"
    form = "png" if target == "-" else Path(target).suffix.lstrip(".").lower()
    if form not in matplotlib.figure.Figure().canvas.get_supported_filetypes():
        raise click.BadParameter(f"{target}: the name must end in .png, .svg or .pdf", param_hint="--output")
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError("a PNG cannot be shown in a terminal: name a file with -o, or redirect the output")
    if kind == "main" and len(runs) > 1:
        raise click.UsageError("--kind main takes one run; histograms and the others take several")
    if kind != "schedule" and (at, duration) != (None, None):
        raise click.UsageError("--at and --duration are for --kind schedule")
    loaded = load_runs(runs)
    if kind == "schedule":
        from rtloop.stats.gantt import choose_window, draw_schedule

        every = [replace(run.stats, name=run.label) for run in loaded]
        figure = draw_schedule(every, choose_window(every, at or "last", duration))
    else:
        figure = draw_runs(loaded, kind or ("main" if len(runs) == 1 else "histograms"))
    picture = BytesIO()
    figure.savefig(picture, format=form, dpi=150)
    write_output(target, picture.getvalue())
    if target != "-":
        click.echo(f"wrote {target}", err=True)


def draw_runs(runs: Sequence[Run], kind: str) -> Figure:
    """Return the picture of one of the kinds."""
    from rtloop.stats.plots import draw_histograms, draw_stats, draw_time, mark_period, new_figure
    from rtloop.stats.records import period_of

    if kind == "main":
        return draw_stats(runs[0].stats)
    if kind == "time":
        figure = new_figure(9, 1.2 + 2.6 * len(runs))
        rows = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
        for number, (axes, run) in enumerate(zip(rows, runs, strict=True)):
            draw_time(axes, run.stats, name=run.label if len(runs) > 1 else "", number=number)
        return figure
    own = all(run.stats.has_own_wait for run in runs)
    shown = ("interval", "execution") if own else ("latency", "execution", "response")
    series = shown if kind == "histograms" else (kind,)
    # A line of the legend a run: the more there are, the higher.
    figure = new_figure(9, 0.3 + (2.8 + 0.2 * len(runs)) * len(series))
    periods = {period_of(run.stats) for run in runs}
    for axes, name in zip(figure.subplots(len(series), 1, squeeze=False)[:, 0], series, strict=True):
        histograms = {run.label: getattr(run.stats, name) for run in runs}
        draw_histograms(axes, histograms)
        if len(periods) == 1 and name != "execution":
            mark_period(axes, next(iter(periods)), max(histogram.max for histogram in histograms.values()))
        axes.set_title(_LABELS[name].capitalize(), loc="left")
    return figure
