"""``rtloop export``: conversion of saved stats to the formats of other tools."""

from __future__ import annotations

import click

from rtloop.tools.export.csv import histograms_to_csv, records_to_csv
from rtloop.tools.saved_runs import Run, load_runs, write_output
from rtloop.units import format_size

__all__ = ["export"]

_SUFFIXES = {
    ".csv": "csv",
    ".trace.json": "perfetto",
    ".perfetto.json": "perfetto",
    ".trace": "perfetto",
    ".json": "json",
    ".hlog": "hdr",
    ".hdr": "hdr",
}


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
    csv       the last cycles, one per row, or the histograms (--table); times in ns
    json      everything, the last cycles' timestamps too
    hdr       an HdrHistogram log: a tagged line for latency, execution, response
              and interval; needs the extra `export`
    perfetto  a trace for https://ui.perfetto.dev or chrome://tracing: each cycle a
              slice, releases, overruns, missed releases and swaps as instants, each
              run a process; those of a LoopGroup (group.save) on one time line

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
        content = records_to_csv(stats) if table == "records" else histograms_to_csv(stats)
    elif form == "json":
        content = stats.to_json(records=True, indent=1) + "\n"
    elif form == "hdr":
        from rtloop.tools.export.hdr import to_hdr

        content = to_hdr(loaded)
    else:
        from rtloop.tools.export.trace import to_trace

        content = to_trace(loaded)
    write_output(output, content)
    if output != "-":
        click.echo(f"wrote {output}: {_contents(loaded, form, table, content)}", err=True)


def _contents(loaded: list[Run], form: str, table: str, content: str | bytes) -> str:
    """Describe what was written: the runs, the cycles, and the size."""
    recorded = sum(len(run.stats.records) for run in loaded)
    cycles = sum(run.stats.cycles for run in loaded)
    what = f"the last {recorded:,} of {cycles:,} cycles" if recorded < cycles else f"{cycles:,} cycles"
    if form == "hdr" or (form, table) == ("csv", "histograms"):
        what = f"histograms of {cycles:,} cycles"
    runs = "" if len(loaded) == 1 else f"{len(loaded)} runs, "
    return f"{runs}{what}, {format_size(len(content))}"
