"""``rtloop record NAME``: signals of a running loop of this machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rtloop.data.record_files import open_record_file
from rtloop.live.connect import Connection, connect
from rtloop.process.nap import nap
from rtloop.telemetry.description import clean
from rtloop.tools.interruption import noted_signals
from rtloop.tools.record.event_recorder import EventRecorder
from rtloop.tools.record.expression import Expression

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from rtloop.live.signals import SignalReader

__all__ = ["record_events", "record_loop"]

#: Time between two reads, s.
_INTERVAL_S = 0.05


class _Progress:
    """A line on the terminal with the number of samples, twice a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_terminal = sys.stderr.isatty()
        self._shown_at = 0.0
        self._begun = time.monotonic()

    def show(self, count: int, lost: int) -> None:
        now = time.monotonic()
        if self._is_terminal and now - self._shown_at > 0.5:
            self._shown_at = now
            missing = f", {lost:,} lost" if lost else ""
            print(
                f"\r{now - self._begun:6.1f} s  {count:,} {self._what}{missing} ", end="", file=sys.stderr, flush=True
            )

    def end(self) -> None:
        if self._shown_at:
            print(file=sys.stderr)


def record_loop(name: str | None, pid: int | None, output: str, duration: int | None, as_json: bool) -> None:
    """Record into a file until Ctrl-C, the end of the loop, or the end of `duration`, ns; print a summary."""
    progress = _Progress("samples")
    with connect(name, pid) as loop:
        reader = loop.signals.reader()
        file = open_record_file(output, reader.dtype, f"/{loop.name}")
        taken = 0

        def take(records: np.ndarray) -> bool:
            nonlocal taken
            file.append(records)
            taken += len(records)
            progress.show(taken, reader.lost)
            return True

        try:
            _follow(loop, reader, duration, take)
            file.close({"loop": loop.name, "written": taken, "lost": reader.lost})
        except BaseException:
            file.abandon()
            raise
        progress.end()
        _report(_document(loop, reader, path=output, records=taken), as_json)
    if not taken:
        print(f"{clean(loop.name)} has written no sample.", file=sys.stderr)
        raise click.exceptions.Exit(1)


def record_events(
    name: str | None,
    pid: int | None,
    output: str,
    duration: int | None,
    trigger: str,
    times: tuple[int, int],
    most: int | None,
    as_json: bool,
) -> None:
    """Write a file for each event: `times` is the time before it and after it, ns."""
    progress = _Progress("samples")
    with connect(name, pid) as loop:
        signals = loop.signals
        expression = Expression(trigger, signals.dtype)
        reader = signals.reader("oldest")
        target = Path(output)
        files: list[dict[str, Any]] = []
        taken = 0

        def write(records: np.ndarray, at: int) -> None:
            path = target.with_name(f"{target.stem}-{len(files) + 1:04}{target.suffix}")
            file = open_record_file(path, reader.dtype, f"/{loop.name}")
            about = {"loop": loop.name, "trigger": trigger, "trigger_release": at, "written": len(records)}
            try:
                file.append(records)
                file.close(about)
            except BaseException:
                file.abandon()
                raise
            files.append({"path": str(path), "records": len(records), "release": at})
            if sys.stderr.isatty():
                print(f"\r{path}: {len(records):,} samples  ", file=sys.stderr)

        recorder = EventRecorder(expression, *times, write)

        def take(records: np.ndarray) -> bool:
            nonlocal taken
            recorder.take(records)
            taken += len(records)
            progress.show(taken, reader.lost)
            return most is None or len(files) < most

        _follow(loop, reader, duration, take)
        recorder.finish()
        progress.end()
        _report(_document(loop, reader, trigger=trigger, records=taken, events=files[:most]), as_json)
    if not files:
        print(f"{trigger} has never become true.", file=sys.stderr)
        raise click.exceptions.Exit(1)


def _follow(loop: Connection, reader: SignalReader, duration: int | None, take: Callable[[np.ndarray], bool]) -> None:
    """Hand over samples until Ctrl-C, the end of the loop or of the duration, or `take` returns False."""
    limit = None if duration is None else time.monotonic_ns() + duration
    with noted_signals() as noted:
        while True:
            is_last = bool(noted) or loop.state != "running" or (limit is not None and time.monotonic_ns() >= limit)
            if not take(reader.read()) or is_last:
                return
            left = _INTERVAL_S if limit is None else min(_INTERVAL_S, (limit - time.monotonic_ns()) / 1e9)
            nap(max(left, 0))


def _document(loop: Connection, reader: SignalReader, **values: Any) -> dict[str, Any]:
    from rtloop import __version__

    return {
        "rtloop": __version__,
        "command": "record",
        "loop": loop.name,
        "pid": loop.pid,
        "state": loop.state,
        **values,
        "lost": reader.lost,
        "signals": list(loop.signals.names),
    }


def _report(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    lost = f", {document['lost']:,} lost" if document["lost"] else ""
    if "path" in document:
        click.echo(f"{document['path']}: {document['records']:,} samples of {len(document['signals'])} signals{lost}")
        return
    for event in document["events"]:
        click.echo(f"{event['path']}: {event['records']:,} samples")
    click.echo(f"{len(document['events'])} events in {document['records']:,} samples{lost}")
