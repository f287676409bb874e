"""``rtloop record --zenoh``: signals of several hosts in one file."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any

import click

from rtloop.tools.options import say_once

__all__ = ["record_hosts"]


def record_hosts(keys: str, output: str, duration: int | None, config: str | None, strict: bool, as_json: bool) -> None:
    """Record until Ctrl-C, or for a duration, ns, and print what was recorded."""
    from rtloop.zenoh.recording import Recording

    def warn(text: str) -> None:
        print(f"{chr(10) if shown and sys.stderr.isatty() else ''}warning: {text}.", file=sys.stderr, flush=True)

    shown = 0
    recording = Recording(keys, output, config=config, on_wait=say_once(), on_problem=warn)

    def show() -> None:
        nonlocal shown
        if sys.stderr.isatty() and recording.records != shown:
            shown = recording.records
            print(f"\r{shown:,} records of {len(recording.channels)} signals", end="", file=sys.stderr, flush=True)

    try:
        with recording, suppress(KeyboardInterrupt):
            recording.run(None if duration is None else duration / 1e9, on_turn=show)
    except KeyboardInterrupt:  # a second one, while Zenoh closes
        if not recording.closed:
            raise
    if shown:
        print(file=sys.stderr)
    document = _document(recording)
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        _print(document)
    # Those reported meanwhile are repeated at the end, where they are read.
    problems = document["problems"]
    if not as_json:
        for text in problems:
            print(f"warning: {text}.", file=sys.stderr)
    if strict and problems and recording.records:
        raise click.exceptions.Exit(3)
    if not recording.records:
        print(f"No bridge of {keys} has published a record.", file=sys.stderr)
        raise click.exceptions.Exit(1)


def _document(recording: Any) -> dict[str, Any]:
    from rtloop import __version__

    return {
        "rtloop": __version__,
        "command": "record",
        "path": str(recording.path),
        "refused": recording.refused,
        "last_reason": recording.reason,
        "clocks": recording.clocks.to_dict(),
        "problems": recording.problems,
        "signals": {
            key: {"records": one.records, "lost": one.lost, "dropped": one.dropped}
            for key, one in sorted(recording.channels.items())
        },
    }


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rtloop.telemetry.description import clean

    table = Table("signal", box=None)
    for head in ("records", "lost", "dropped"):
        table.add_column(head, justify="right")
    for key, one in document["signals"].items():
        table.add_row(Text(clean(key)), *(f"{one[name]:,}" for name in ("records", "lost", "dropped")))
    if document["signals"]:
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    print(f"{document['path']}: {sum(one['records'] for one in document['signals'].values()):,} records")
    if document["refused"]:
        print(f"{document['refused']} payloads refused; the last: {clean(document['last_reason'])}", file=sys.stderr)
