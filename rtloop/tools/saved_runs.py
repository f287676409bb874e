"""Input and output of the commands that read saved stats."""

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
    """Saved stats with a label that is unique in the call."""

    label: str
    stats: Stats


def load_runs(paths: Sequence[str]) -> list[Run]:
    """Load files of ``Stats.save``; a run's label is its loop's name, with the file's if names repeat.

    Raises
    ------
    click.ClickException
        If a file cannot be read.
    ConfigError
        If rtloop did not write it, or it is damaged.
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
    """Prevent a second error at the interpreter's end, from output that is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_output(path: str, content: str | bytes) -> None:
    """Write a result to standard output (``-``) or to a file, which is replaced as a whole or not at all.

    Raises
    ------
    click.ClickException
        If it cannot be written.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    if path == "-":
        stream: Any = sys.stdout
        try:
            stream.flush()
            stream.buffer.write(data)
            stream.flush()
        except BrokenPipeError:  # the reader, such as head, has closed the pipe
            _close_output()
        except OSError as error:
            _close_output()
            raise click.ClickException(f"cannot write to standard output: {error.strerror or error}") from None
        return
    target = Path(path)
    try:
        target = target.resolve()  # a link is kept, and its target is replaced
        if target.exists() and not target.is_file():  # a device or a pipe is written to, never replaced
            with target.open("wb") as file:
                file.write(data)
            return
        with replaced(target) as file:
            file.write(data)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from None
