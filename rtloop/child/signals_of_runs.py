"""Signals of a ProcessLoop: the samples of all its runs, each of which writes them in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rtloop.live.signals import SignalReader, Signals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.live.signals import SignalSource

__all__ = ["SignalsOfRuns"]


class Run:
    """Place of a run's samples among those of all runs; the first one stands for the time before the first start.

    Attributes
    ----------
    before : int
        Number of samples that were written in former runs.
    signals : Signals or None
        Samples of the run; None if there are none, or if they are no longer kept.
    next : Run or None
        The next run, once it has been started.
    """

    def __init__(self, before: int, signals: Signals | None) -> None:
        self.before, self.signals = before, signals
        self.next: Run | None = None

    @property
    def written(self) -> int:
        """Number of samples that were written in this run and the former ones."""
        signals = self.signals
        return self.before + (0 if signals is None else signals.written)


class ReaderOfRuns(SignalReader):
    """Reader that goes on with the next run when it has read the samples of one."""

    def __init__(self, source: SignalSource, runs: SignalsOfRuns, start: Literal["now", "oldest", "begin"]) -> None:
        super().__init__(source, start)
        self._runs, self._run = runs, runs.present
        self._lost = self._run.before if start == "begin" else 0
        self._reader: SignalReader | None = None
        self._open(start)

    def _open(self, start: Literal["now", "oldest", "begin"]) -> None:
        signals = self._run.signals
        self._reader = None if signals is None else signals.reader(start)

    @property
    def written(self) -> int:
        """Number of samples that the loop has written, in all its runs."""
        return self._runs.present.written

    @property
    def position(self) -> int:
        """Number of the sample that is read next."""
        return self._run.before + (0 if self._reader is None else self._reader.position)

    @property
    def lost(self) -> int:
        """Number of samples that were overwritten before this reader reached them."""
        return self._lost + (0 if self._reader is None else self._reader.lost)

    def read(self, most: int | None = None) -> NDArray[Any]:
        """Return the samples since the last read, oldest first; see :meth:`SignalReader.read`."""
        parts: list[NDArray[Any]] = []
        left = most
        while True:
            following = self._run.next  # read first: the run is over then, and this part is its last
            part = np.zeros(0, self.dtype) if self._reader is None else self._reader.read(left)
            parts.append(part)
            left = None if left is None else max(0, left - len(part))
            if following is None or left == 0:
                break
            # Samples of a run that is no longer kept, and that this reader has not begun, are lost.
            self._lost = self.lost + following.before - self.position
            self._run = following
            self._open("begin")
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __repr__(self) -> str:
        return f"<SignalReader of {self._name!r}: {self.written - self.position} to read, {self.lost} lost>"


class SignalsOfRuns(Signals):
    """Signals of a ProcessLoop. Readers go on from one run to the next; the last two runs are kept.

    Parameters
    ----------
    model : SignalSource
        The declared signals, before the first run.

    Attributes
    ----------
    present : Run
        The present run, or the last one.
    """

    def __init__(self, model: SignalSource) -> None:
        super().__init__(model)
        self.present = self._former = Run(0, None)

    def add_run(self, signals: Signals | None) -> None:
        """Go on with the samples of a run that is starting."""
        run = Run(self.present.written, signals)
        self.present.next = run
        self._former, former = self.present, self._former
        self.present = run
        if former is not self._former:
            former.signals = None  # a reader that has begun with them keeps them

    @property
    def _own(self) -> SignalReader:
        found = self._readers.get("own")
        return found if found is not None else self._readers.setdefault("own", self.reader("begin"))

    def latest(self) -> dict[str, Any]:
        """Return the newest sample of the present run or of the last one; see :meth:`Signals.latest`."""
        signals = self.present.signals
        return {} if signals is None else signals.latest()

    def reader(self, start: Literal["now", "oldest", "begin"] = "now") -> SignalReader:
        """Return another reader; see :meth:`Signals.reader`."""
        return ReaderOfRuns(self._source, self, start)
