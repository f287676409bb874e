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
from rtloop.live.signal_set import HEAD
from rtloop.process.nap import nap
from rtloop.telemetry.description import clean
from rtloop.tools.interruption import noted_signals
from rtloop.tools.options import count_of
from rtloop.tools.record.event_files import EventFiles
from rtloop.tools.record.flight_recorder import FlightRecorder
from rtloop.tools.record.sample_stream import SampleStream

if TYPE_CHECKING:
    from collections.abc import Callable

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
        stream = SampleStream(loop)
        file = open_record_file(output, stream.dtype, f"/{loop.name}")
        taken = 0

        def turn() -> bool:
            nonlocal taken
            records = stream.read()
            file.append(records)
            taken += len(records)
            progress.show(taken, stream.lost)
            return not stream.end_reason

        try:
            _follow(lambda: stream.loop.state, duration, turn)
            file.close({"loop": loop.name, "written": taken, "lost": stream.lost})
        except BaseException:
            file.abandon()
            raise
        finally:
            stream.close()
        progress.end()
        _report(_document(loop, stream, path=output, records=taken), as_json)
    if stream.end_reason:
        print(f"The recording ended early: {stream.end_reason}.", file=sys.stderr)
        raise click.exceptions.Exit(1)
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
    keep: int,
    as_json: bool,
) -> None:
    """Write a file for each event: `times` is the time before it and after it, ns."""
    progress = _Progress("samples")

    def tell(path: Path, count: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{path}: {count:,} samples  ", file=sys.stderr)

    loop = connect(name, pid)
    try:
        files = EventFiles(output, loop.name, loop.clock, keep, most)
        recorder = FlightRecorder(loop, trigger, times, files, tell)
    except BaseException:
        loop.close()
        raise

    def turn() -> bool:
        goes_on = recorder.turn() and not files.are_complete
        progress.show(recorder.taken, recorder.lost)
        return goes_on

    try:
        _follow(lambda: recorder.loop.state, duration, turn)
        if not files.are_complete:
            recorder.finish()
        progress.end()
        events = {"events": files.kept, "written": files.written, "removed": files.removed, "counts": recorder.counts}
        document = _document(recorder.loop, recorder, trigger=trigger, records=recorder.taken, **events)
    finally:
        recorder.close()
    _report(document, as_json)
    if recorder.end_reason:
        print(f"The recording ended early: {recorder.end_reason}.", file=sys.stderr)
        raise click.exceptions.Exit(1)
    if not files.written:
        print(f"{trigger} has never become true.", file=sys.stderr)
        raise click.exceptions.Exit(1)


def _follow(state: Callable[[], str], duration: int | None, turn: Callable[[], bool]) -> None:
    """Call the turn repeatedly until Ctrl-C, the end of the loop or of the duration, or until it returns False."""
    limit = None if duration is None else time.monotonic_ns() + duration
    with noted_signals() as noted:
        while True:
            is_last = bool(noted) or state() != "running" or (limit is not None and time.monotonic_ns() >= limit)
            if not turn() or is_last:
                return
            left = _INTERVAL_S if limit is None else min(_INTERVAL_S, (limit - time.monotonic_ns()) / 1e9)
            nap(max(left, 0))


def _document(loop: Connection, reader: SampleStream | FlightRecorder, **values: Any) -> dict[str, Any]:
    from rtloop import __version__

    return {
        "rtloop": __version__,
        "command": "record",
        "loop": loop.name,
        "pid": loop.pid,
        "state": loop.state,
        **values,
        "lost": reader.lost,
        "signals": [name for name in reader.dtype.names or () if name not in dict(HEAD)],
    }


def _report(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    samples = count_of(document["records"], "sample")
    lost = f", {document['lost']:,} lost" if document["lost"] else ""
    if "path" in document:
        click.echo(f"{document['path']}: {samples} of {count_of(len(document['signals']), 'signal')}{lost}")
        return
    for event in document["events"]:
        click.echo(f"{event['path']}: {count_of(event['records'], 'sample')}")
    removed = f", the files of {document['removed']:,} of them removed" if document["removed"] else ""
    click.echo(f"{count_of(document['written'], 'event')}{removed}; {samples} examined{lost}")
    happened = ", ".join(f"{count:,} {name}" for name, count in document["counts"].items() if count)
    if happened:
        click.echo(f"events of the loop: {happened}")
