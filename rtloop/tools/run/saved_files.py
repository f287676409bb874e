"""Saved files: a source and the other inputs of its build, polled for a change of their content.

They are polled rather than watched by inotify(7), because inotify reports nothing of changes that another host makes on
NFS, or that come into a container through a mount, and it loses a file that an editor replaces by renaming another. A
poll costs a stat(2) for each file.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SavedFiles"]

_INTERVAL_S = 0.1
#: A file is complete when it has not changed for this time.
_SETTLED_S = 0.03
_GONE_S = 1.0
_DECLARED = ("*.pxd", "*.pxi")

_Stamps = dict[str, tuple[int, ...]]


class SavedFiles:
    """A source, the declarations beside it, and the other inputs of its build.

    A file that is replaced by renaming another one, or written in several pieces, counts once it has settled. An empty
    source is about to be written, and counts as missing.

    Parameters
    ----------
    source : pathlib.Path
        The source. Its present content counts as known.
    inputs : iterable of str
        Further files.
    """

    def __init__(self, source: Path, inputs: Iterable[str] = ()) -> None:
        self._source = source.resolve()
        self._others: set[str] = set()
        self._stamps: _Stamps = {}
        self._pending: _Stamps | None = None
        self._polled = time.time()
        self._gone_at: float | None = None
        self._is_told = False
        self.follow(inputs)
        self._digest: str | None = self._read_digest(self._stamps)

    @property
    def interval_s(self) -> float:
        """Time until the next poll, s."""
        return _INTERVAL_S if self._pending is None else _SETTLED_S

    def follow(self, inputs: Iterable[str]) -> None:
        """Set the inputs of the last build. Files that are already known are not read again."""
        self._others = set(inputs) - {str(self._source)}
        self._stamps = {**self._read_stamps(), **self._stamps}

    def poll(self) -> float | None:
        """Look at the files.

        Returns
        -------
        float or None
            Time of the save, as of time.time(), if their content is complete and has changed since it was known.
        """
        stamps = self._read_stamps()
        now = time.time()
        if stamps == self._stamps:
            self._pending, self._polled = None, now
            self._gone_at, self._is_told = None, False
            return None
        if not stamps.get(str(self._source), (0,))[0]:
            self._gone_at = self._gone_at or time.monotonic()
            self._pending = stamps
            return None
        self._gone_at, self._is_told = None, False
        if stamps != self._pending:
            self._pending = stamps
            return None
        digest = self._read_digest(stamps)
        if digest is None:
            return None
        changed = [stamp[1] * 1e-9 for path, stamp in stamps.items() if stamp != self._stamps.get(path)]
        saved = min(max(self._polled, *changed), now) if changed else now
        self._stamps, self._pending, self._polled = stamps, None, now
        if digest == self._digest:
            return None
        self._digest = digest
        return saved

    def is_superseded(self) -> bool:
        """Return True if the content has changed since :meth:`poll`, so that the build in progress is out of date."""
        stamps = self._read_stamps()
        if stamps == self._stamps or self._read_digest(stamps) == self._digest:
            return False
        self._digest = None  # if the same content comes back, it has to be built again
        return True

    def forget(self) -> None:
        """Let the next save count even if it has the same content."""
        self._digest = None

    def is_newly_gone(self) -> bool:
        """Return True, once, if the source has been missing for longer than an editor takes to replace it."""
        is_gone = self._gone_at is not None and time.monotonic() - self._gone_at > _GONE_S
        is_new, self._is_told = is_gone and not self._is_told, self._is_told or is_gone
        return is_new

    def _read_stamps(self) -> _Stamps:
        nearby = (str(file) for kind in _DECLARED for file in self._source.parent.glob(kind))
        stamps: _Stamps = {}
        for path in {str(self._source), *self._others, *nearby}:
            try:
                about = os.stat(path)
            except OSError:
                continue
            stamps[path] = (about.st_size, about.st_ctime_ns, about.st_mtime_ns, about.st_ino)
        return stamps

    def _read_digest(self, stamps: _Stamps) -> str | None:
        """Return the digest of the content of all files; None if one no longer exists."""
        digest = hashlib.sha256()
        try:
            for path in sorted(stamps):
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest() + os.fsencode(path))
        except OSError:
            return None
        return digest.hexdigest()
