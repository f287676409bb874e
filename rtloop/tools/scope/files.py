"""Files that the page asks for: recordings of a loop, and saved captures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtloop.data.record_files import open_record_file
from rtloop.data.recorder import Recorder
from rtloop.errors import ConfigError

if TYPE_CHECKING:
    from rtloop.live.connect import Connection
    from rtloop.tools.scope.samples.history import History
    from rtloop.zenoh.connection import RemoteConnection

__all__ = ["FORMATS", "free_path", "save_history", "start_recorder"]

#: Formats that the page offers. The page chooses the format, never the folder or the name.
FORMATS = ("mcap", "npz")


def free_path(folder: Path, loop: str, kind: str, suffix: str) -> Path:
    """Return the path of a new file: ``motor-capture-20260131-140501.npz``.

    Raises
    ------
    ConfigError
        If the format is not one of those that are offered.
    """
    if suffix not in FORMATS:
        raise ConfigError(f"format={suffix!r} must be one of {', '.join(FORMATS)}")
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in loop).strip(".") or "loop"
    stem = f"{safe[:60]}{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    path = folder / f"{stem}.{suffix}"
    while path.exists() or path.with_name(path.name + ".part.npy").exists():
        number += 1
        path = folder / f"{stem}-{number}.{suffix}"
    return path


def start_recorder(connection: Connection | RemoteConnection, path: Path) -> Recorder:
    """Record a loop's signals from now on, on a thread of its own, until the recorder is closed.

    Raises
    ------
    StateError
        If the loop has no signals.
    OSError
        If the file cannot be created.
    """
    return Recorder(connection.signals, path, topic=f"/{connection.name}")


def save_history(history: History, path: Path, about: dict[str, Any]) -> int:
    """Write all samples of a history, as the loop has written them, and return their number.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    records = history.records(history.first, history.count)
    file = open_record_file(path, history.dtype, f"/{about['loop']}")
    try:
        file.append(records)
        file.close({**about, "written": len(records)})
    except BaseException:
        file.abandon()
        raise
    return len(records)
