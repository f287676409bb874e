"""Busy Python thread: it never rests, so the GIL is never free, and it allocates all the time."""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ["Hog"]


class Hog:
    """Ordinary Python work without a pause, in a daemon thread; a context manager.

    One round resembles logging, parsing or a user interface: it makes, uses and drops a few thousand small objects. No
    call holds the GIL on purpose; Python decides when the thread yields it.

    Attributes
    ----------
    rounds : int
        Rounds done so far.
    """

    def __init__(self) -> None:
        self.rounds = 0
        self._stop = False
        self._thread = threading.Thread(target=self._work, name="hog", daemon=True)

    def _work(self) -> None:
        while not self._stop:
            table = {f"key {number}": [number] * 16 for number in range(1000)}
            sum(len(row) for row in table.values())
            self.rounds += 1

    def __enter__(self) -> Hog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop = True
        self._thread.join()
