"""Files of saved stats in, and a result out, for the commands that look at a run afterwards."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rtloop.stats.stats import Stats
from rtloop.system.fileio import replaced

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Run", "load_runs", "write_output"]


class Run(NamedTuple):
    """Saved stats with a label that no other run of the same call has."""

    label: str
    stats: Stats


def load_runs(paths: Sequence[str]) -> list[Run]:
    """Load what ``Stats.save`` wrote; each run's label is its loop's name, with the file's where names repeat.

    Raises
    ------
    click.ClickException
        Where a file cannot be read.
    ConfigError
        Where it is none of rtloop's, or is damaged.
    """
    loaded = []
    for path in paths:
        try:
            stats = Stats.load(path)
        except OSError as error:
            raise click.ClickException(f"{path}: {error.strerror or error}") from None
        loaded.append(stats)
    names = [stats.name for stats in loaded]
    labels: list[str] = []
    for path, name in zip(paths, names, strict=True):
        label = name if names.count(name) == 1 else f"{name} ({Path(path).stem})"
        labels.append(label if label not in labels else f"{label} #{len(labels) + 1}")
    return [Run(label, stats) for label, stats in zip(labels, loaded, strict=True)]


def _close_output() -> None:
    """Let the interpreter's end not fail once more, on what Python still has in its buffer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_output(path: str, content: str | bytes) -> None:
    """Write a result to standard output (``-``) or to a file, which is replaced as a whole or not at all.

    Raises
    ------
    click.ClickException
        Where it cannot be written.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    if path == "-":
        stream: Any = sys.stdout
        try:
            stream.flush()
            stream.buffer.write(data)
            stream.flush()
        except BrokenPipeError:  # the reader, such as head, has had enough
            _close_output()
        except OSError as error:
            _close_output()
            raise click.ClickException(f"cannot write to standard output: {error.strerror or error}") from None
        return
    target = Path(path)
    try:
        target = target.resolve()  # a link stays one, and what it points to is replaced
        if target.exists() and not target.is_file():  # a device or a pipe is written to, never replaced
            with target.open("wb") as file:
                file.write(data)
            return
        with replaced(target) as file:
            file.write(data)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from None
