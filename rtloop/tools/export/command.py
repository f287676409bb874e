"""``rtloop export``: conversion of saved stats to the formats of other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import numpy as np

from rtloop.stats.records import find_overruns, first_index
from rtloop.tools.saved_runs import load_runs, write_output

if TYPE_CHECKING:
    from rtloop.stats.stats import Stats

__all__ = ["export", "to_csv"]

_SUFFIXES = {
    ".csv": "csv",
    ".trace.json": "perfetto",
    ".perfetto.json": "perfetto",
    ".trace": "perfetto",
    ".json": "json",
    ".hlog": "hdr",
    ".hdr": "hdr",
}
_SERIES = ("latency", "execution", "response", "interval")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN.npz...")
@click.option("-f", "--format", "form", type=click.Choice(["csv", "json", "hdr", "perfetto"]),
              help="The format; by default that of FILE's suffix: .csv, .json, .hlog, .trace.json.")  # fmt: skip
@click.option("-o", "--output", metavar="FILE", default="-", show_default=True, help="File; - is standard output.")
@click.option("--table", type=click.Choice(["records", "histograms"]), default="records", show_default=True,
              help="Rows of a CSV: one per recorded cycle, or one per histogram bin.")  # fmt: skip
def export(runs: tuple[str, ...], form: str | None, output: str, table: str) -> None:
    """Write saved stats in the format of another tool.

    \b
    csv       the last cycles, one a row, or the histograms (--table); times in ns
    json      everything, the last cycles' timestamps too
    hdr       an HdrHistogram log: a tagged line for latency, execution, response
              and interval; needs the extra `export`
    perfetto  a trace for https://ui.perfetto.dev or chrome://tracing: each cycle a
              slice, releases, overruns and missed releases as instants, each run a
              process; those of a LoopGroup (group.save) on one time line

    hdr and perfetto take several runs. A FILE that exists is replaced, as a whole.

    \b
    Examples:
      rtloop export run.npz -o run.csv
      rtloop export run.npz -f csv --table histograms | column -ts,
      rtloop export run.npz -f json | jq .latency.max_ns
      rtloop export run.npz -o run.hlog
      rtloop export arm.npz leg.npz -o both.trace.json
    """  # noqa: D301 - the backslash is for click
    form = form or next((name for suffix, name in _SUFFIXES.items() if output.endswith(suffix)), None)
    if form is None:
        given = "standard output" if output == "-" else output
        raise click.UsageError(f"the format cannot be derived from {given}: give one, such as -f csv")
    if len(runs) > 1 and form in ("csv", "json"):
        raise click.UsageError(f"{form} takes one run, not {len(runs)}; hdr and perfetto take several")
    loaded = load_runs(runs)
    stats = loaded[0].stats
    if form == "csv":
        content = to_csv(stats) if table == "records" else histograms_to_csv(stats)
    elif form == "json":
        content = stats.to_json(records=True, indent=1) + "\n"
    elif form == "hdr":
        from rtloop.tools.export.hdr import to_hdr

        content = to_hdr(loaded)
    else:
        from rtloop.tools.export.trace import to_trace

        content = to_trace(loaded)
    write_output(output, content)


def to_csv(stats: Stats) -> str:
    """Return a row for each recorded cycle.

    For a loop with its own wait, latency, response and overrun are empty, because there was no planned time.
    """
    records = stats.records
    release, start, end = (records[name] for name in ("release", "start", "end"))
    index = np.arange(len(records)) + first_index(stats)
    header = "index,release_ns,start_ns,end_ns,latency_ns,execution_ns,response_ns,overrun"
    columns = [index, release, start, end, start - release, end - start, end - release, find_overruns(stats)]
    if stats.has_own_wait:
        rows = [f"{i},{r},{s},{e},,{x},," for i, r, s, e, _, x, *_ in zip(*_lists(columns), strict=True)]
    else:
        rows = [",".join(str(int(value)) for value in row) for row in zip(*_lists(columns), strict=True)]
    return "\n".join([header, *rows]) + "\n"


def _lists(columns: list[np.ndarray]) -> list[list[int]]:
    return [column.tolist() for column in columns]


def histograms_to_csv(stats: Stats) -> str:
    """Return a row for each bin that is not empty: its values are ``lower_ns <= value < upper_ns``."""
    rows = ["series,lower_ns,upper_ns,count"]
    for series in _SERIES:
        histogram = getattr(stats, series)
        for i in np.flatnonzero(histogram.counts).tolist():
            upper = histogram.edges[i + 1]
            above = f"{int(upper)}" if np.isfinite(upper) else ""  # the overflow bin has no upper edge
            rows.append(f"{series},{int(histogram.edges[i])},{above},{int(histogram.counts[i])}")
    return "\n".join(rows) + "\n"
