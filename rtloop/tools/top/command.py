"""``rtloop top``: running real-time loops, live."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from rtloop.tools.options import as_json_option, config_option, say_if_slow, to_duration

if TYPE_CHECKING:
    from rtloop.tools.top.sampler import Sample, Sampler

__all__ = ["make_document", "top"]


@click.command()
@click.option(
    "--interval", metavar="DURATION", callback=to_duration, default="1s", show_default=True,
    help="Time between two refreshes; at least 0.1s.",
)  # fmt: skip
@click.option("--pid", type=click.IntRange(1), help="Only the loops of this process.")
@click.option("--name", help="Only the loops of this name.")
@click.option(
    "--zenoh", "keys", is_flag=False, flag_value="rtloop/**", metavar="[KEYS]",
    help="Show the loops of all hosts whose bridges' keys match, instead of this machine's.",
)  # fmt: skip
@config_option
@as_json_option("with all figures, and exit")
def top(interval: int, pid: int | None, name: str | None, keys: str | None, config: str | None, as_json: bool) -> None:
    """Show all running loops, live.

    These are the loops of this machine, or with --zenoh of all hosts. A loop needs no preparation, and is not
    disturbed. You see the loops of your own processes; root sees all. The Enter key shows one loop: its signals, its
    parameters, its histograms and the time line of its last cycles. Enter on a parameter changes it. The key h lists
    all keys.

    If the output is not a terminal, the table is printed once, without the figures since the last refresh.
    """
    from rtloop.tools.top.sampler import Sampler

    if keys is None and config is not None:
        raise click.UsageError("--config belongs to --zenoh: give --zenoh KEYS as well")
    if keys is not None and pid is not None:
        raise click.UsageError("--pid selects a process of this machine: with --zenoh use --name")
    if interval < 100_000_000:
        raise click.BadParameter("must be at least 0.1s", param_hint="--interval")
    sampler = Sampler(pid, name)
    if keys is not None:
        from rtloop.tools.top.remote_sampler import RemoteSampler

        sampler = RemoteSampler(keys, config, name)
    if not as_json and _is_terminal():
        from rtloop.tools.top.app import TopApp

        TopApp(sampler, interval / 1e9).run()
        return
    try:
        with nullcontext() if keys is None else say_if_slow(f"waiting for bridges to answer for {keys}"):
            sample = sampler.sample()
        if as_json:
            click.echo(json.dumps(make_document(sample), indent=1))
        else:
            _print_table(sample, sampler)
    finally:
        sampler.close()
    if not sample.rows and (pid is not None or name is not None or keys is not None):
        raise click.exceptions.Exit(1)


def _is_terminal() -> bool:
    # The screen is drawn on stderr.
    return all(file.isatty() for file in (sys.stdin, sys.stdout, sys.stderr)) and os.environ.get("TERM") != "dumb"


def make_document(sample: Sample) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    from rtloop import __version__

    return {
        "rtloop": __version__,
        "command": "top",
        "loops": [row.to_dict() for row in sample.rows],
        "not_readable": sample.denied,
        "faulty": sample.faulty,
        "warnings": sample.warnings,
    }


def _print_table(sample: Sample, sampler: Sampler) -> None:
    from rich.console import Console

    from rtloop.tools.top.view import make_table, notes

    width = None if sys.stdout.isatty() else 200  # the table in a file is not cut at 80 columns
    Console(width=width, markup=False).print(make_table(sample.rows) if sample.rows else sampler.describe_none())
    for line in notes(sample):
        print(line, file=sys.stderr)
    print("The output is not a terminal, so the table was printed once. Programs read --json.", file=sys.stderr)
