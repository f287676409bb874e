"""Station: the watched loops, recordings and presets that all pages share."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtloop.errors import RtloopError, StateError
from rtloop.tools.scope.files import free_path, start_recorder
from rtloop.tools.scope.samples.watch import Watch
from rtloop.tools.scope.sources import Machine

if TYPE_CHECKING:
    from rtloop.data.recorder import Recorder
    from rtloop.tools.scope.presets import Presets
    from rtloop.tools.scope.sources import Source

__all__ = ["Station"]

#: Time between two searches for running loops, s.
_SEARCH_S = 1.0


class Station:
    """State that all pages share.

    Parameters
    ----------
    presets : Presets
        Named sets of parameters.
    folder : Path
        Folder of recordings and captures.
    keep_s : float
        Time for which samples are kept, s.
    source : Source, optional
        Source of the loops; by default this machine.

    Attributes
    ----------
    loops : list of dict
        The running loops.
    note : str
        Why loops may be missing in it; usually empty.
    """

    def __init__(self, presets: Presets, folder: Path, keep_s: float, source: Source | None = None) -> None:
        self.presets, self.keep_s = presets, keep_s
        self.loops: list[dict[str, Any]] = []
        self.note = ""
        self._folder = folder
        self._source: Source = source or Machine()
        self._watches: dict[Watch, int] = {}  # and the number of pages that show it
        self._opening = asyncio.Lock()
        self._ending = asyncio.Lock()
        self._recorders: dict[Watch, tuple[Recorder, Path, int]] = {}  # with the number of swaps at the start
        self._searched = -_SEARCH_S

    @property
    def is_recording(self) -> bool:
        """True if a loop is being recorded."""
        return bool(self._recorders)

    def poll(self) -> None:
        """Read what is new of all watched loops."""
        for watch in tuple(self._watches):
            watch.poll()

    async def search(self) -> None:
        """Look for running loops, once a second."""
        if time.monotonic() - self._searched < _SEARCH_S:
            return
        self._searched = time.monotonic()
        self.loops, self.note = await asyncio.to_thread(self._source.search)
        for watch, (_, _, swap_count) in tuple(self._recorders.items()):
            if watch.has_ended or watch.swap_count != swap_count:
                await self.stop_recording(watch)

    def look_soon(self) -> None:
        """Search again at the next opportunity."""
        self._searched = -_SEARCH_S

    def successor_of(self, watch: Watch) -> tuple[str, int] | None:
        """Return the next run of a loop that has ended: of the same name, in the same process or in only one other."""
        same = [one for one in self.loops if one["name"] == watch.name]
        same = [one for one in same if one["pid"] == watch.pid] or same
        return (same[0]["name"], same[0]["pid"]) if len(same) == 1 else None

    async def open(self, name: str, pid: int) -> Watch:
        """Return the watch of a running loop, which pages share; call `release` for it later.

        Raises
        ------
        AttachError, BridgeError
            If there is no such loop.
        """
        async with self._opening:
            for watch in self._watches:
                if (watch.name, watch.pid) == (name, pid) and not watch.has_ended:
                    watch.poll()
                    if not watch.has_ended:
                        self._watches[watch] += 1
                        return watch
            made = await asyncio.to_thread(Watch.open, self._source, name, pid, self.keep_s)
            self._watches[made] = 1
            return made

    async def release(self, watch: Watch) -> None:
        """Close the watch if no page shows it and nothing is recorded from it."""
        if watch in self._watches:
            self._watches[watch] -= 1
            await self._close_unused(watch)

    async def _close_unused(self, watch: Watch) -> None:
        if watch in self._watches and self._watches[watch] <= 0 and watch not in self._recorders:
            del self._watches[watch]
            await watch.close()

    def free_path(self, loop: str, kind: str, suffix: str) -> Path:
        """Return the path of a new file in the folder of recordings."""
        return free_path(self._folder, loop, kind, suffix)

    def recording_of(self, watch: Watch) -> str | None:
        """Return the path that a loop is recorded to, None if it is not."""
        found = self._recorders.get(watch)
        return None if found is None else str(found[1])

    def start_recording(self, watch: Watch, suffix: str) -> Path:
        """Record the signals of a loop until it ends, its step is swapped, or `stop_recording`; also without a page.

        Raises
        ------
        StateError
            If the loop is being recorded, or has no signals.
        ConfigError, OSError
            If the format is unknown, or the file cannot be created.
        """
        if watch in self._recorders:
            raise StateError(f"{watch.name} is being recorded to {self._recorders[watch][1]}")
        path = self.free_path(watch.name, "", suffix)
        self._recorders[watch] = start_recorder(watch.connection, path), path, watch.swap_count
        return path

    async def stop_recording(self, watch: Watch) -> str | None:
        """End a recording, and return the sentence on it; None if there is none.

        It counts as a recording until its file is complete.
        """
        async with self._ending:
            found = self._recorders.get(watch)
            if found is None:
                return None
            recorder, path, _ = found
            try:
                await asyncio.to_thread(recorder.close)
            finally:
                del self._recorders[watch]
                await self._close_unused(watch)
        lost = f", {recorder.lost:,} lost" if recorder.lost else ""
        return f"{recorder.written:,} samples recorded to {path}{lost}."

    async def close(self) -> list[str]:
        """End all recordings and close all connections; return the sentences on the recordings."""
        said = []
        for watch in tuple(self._recorders):
            try:
                done = await self.stop_recording(watch)
            except (RtloopError, OSError) as error:
                done = str(error)
            said += [done] if done else []
        for watch in tuple(self._watches):
            del self._watches[watch]
            await watch.close()
        await asyncio.to_thread(self._source.close)
        return said
