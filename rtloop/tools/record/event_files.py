"""EventFiles: a file for each event of a flight recorder; only the newest files are kept."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtloop.data.record_clock import read_clocks
from rtloop.data.record_files import check_record_path, open_record_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EventFiles"]

#: Formats without room for the description of an event, which goes into a JSON file beside them.
_BARE = (".npy", ".csv")


class EventFiles:
    """Files with names that sort: ``event-20261129T191429.123Z-0001.npz``, by the UTC time of the event.

    Parameters
    ----------
    output : path
        Name from which the names of the files are formed.
    loop : str
        Name of the loop.
    clock : str
        Clock of its releases.
    keep : int
        Number of files to keep; an older one is removed before the next is written.
    most : int, optional
        Number of files after which no more are to be written.

    Raises
    ------
    ConfigError, FileNotFoundError, ImportError
        As :func:`check_record_path`.
    """

    def __init__(
        self, output: str | os.PathLike[str], loop: str, clock: str, keep: int, most: int | None = None
    ) -> None:
        self._target = Path(output)
        check_record_path(self._target)
        self._loop, self._clock, self._keep, self._most = loop, clock, keep, most
        self._number = 0
        self.kept: list[dict[str, Any]] = []

    @property
    def written(self) -> int:
        """Number of files that were written."""
        return self._number

    @property
    def are_complete(self) -> bool:
        """True if as many files were written as there are to be."""
        return self._most is not None and self._number >= self._most

    @property
    def removed(self) -> int:
        """Number of files that were removed to keep only the newest."""
        return self._number - len(self.kept)

    def write(self, records: NDArray[Any], release: int, about: dict[str, Any]) -> Path:
        """Write the samples around an event, and its description. `release` is the release of its cycle."""
        self._remove_oldest()
        path = self._path(release)
        file = open_record_file(path, records.dtype, f"/{self._loop}")
        try:
            file.append(records)
            file.close(about)
        except BaseException:
            file.abandon()
            raise
        if path.suffix in _BARE:
            path.with_suffix(".json").write_text(json.dumps(about, indent=1))
        self._number += 1
        self.kept.append({"path": str(path), "records": len(records), "release": release})
        return path

    def _path(self, release: int) -> Path:
        now = read_clocks()
        at_ns = max(0, now["realtime"] - now[self._clock] + release)
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(at_ns // 1_000_000_000))
        stamp = f"{moment}.{at_ns // 1_000_000 % 1000:03}Z-{self._number + 1:04}"
        return self._target.with_name(f"{self._target.stem}-{stamp}{self._target.suffix}")

    def _remove_oldest(self) -> None:
        while len(self.kept) >= self._keep:
            path = Path(self.kept.pop(0)["path"])
            path.unlink(missing_ok=True)
            if path.suffix in _BARE:
                path.with_suffix(".json").unlink(missing_ok=True)
