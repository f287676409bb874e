"""Signals: the samples of a loop's signals, and independent readers of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rtloop.errors import ConfigError
from rtloop.live.signal_block import Cursor, SignalBlock
from rtloop.live.value_text import format_limits, format_value, html_table
from rtloop.units import show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rtloop.live.signal_set import Layout

__all__ = ["SignalReader", "SignalSource", "Signals"]

_STARTS = ("now", "oldest", "begin")


class SignalSource(Protocol):
    """Source of the readers' samples: a loop of this process, or of another."""

    @property
    def name(self) -> str:
        """Name of the loop."""

    @property
    def layout(self) -> Layout:
        """The signals and their places in a record."""

    @property
    def block(self) -> SignalBlock:
        """The block that the loop writes."""


class SignalReader:
    """A reader of a loop's samples, with a position of its own.

    Made by :meth:`Signals.reader`. Any number of readers, in any processes, read the same samples. None of them can
    delay the loop or another reader. A reader that falls behind loses the oldest samples, and counts them.

    Use a reader on one thread at a time.
    """

    def __init__(self, source: SignalSource, start: Literal["now", "oldest", "begin"] = "now") -> None:
        if start not in _STARTS:
            raise ConfigError(f"start={show(start)} must be one of {', '.join(_STARTS)}")
        self._cursor = Cursor(source.block, start)
        self._layout = source.layout
        self._name = source.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a record: ``cycle``, ``release`` and ``start``, and the signals."""
        return self._layout.dtype

    @property
    def capacity(self) -> int:
        """Number of samples that this reader may fall behind without losing any."""
        return self._cursor.capacity

    @property
    def written(self) -> int:
        """Number of samples that the loop has written, in all its runs."""
        return self._cursor.written

    @property
    def position(self) -> int:
        """Number of the sample that is read next."""
        return self._cursor.position

    @property
    def lost(self) -> int:
        """Number of samples that were overwritten before this reader reached them."""
        return self._cursor.lost

    def read(self, most: int | None = None) -> NDArray[Any]:
        """Return the samples since the last read, oldest first.

        Parameters
        ----------
        most : int, optional
            Return at most this many; the next read returns the rest.

        Returns
        -------
        numpy.ndarray
            Structured array of `dtype`.
        """
        count = self._cursor.available if most is None else most
        return self._layout.arrange(self._cursor.read(self._layout.stored, max(0, count)))

    def __repr__(self) -> str:
        return f"<SignalReader of {self._name!r}: {self._cursor.available} to read, {self.lost} lost>"


class Signals:
    """Samples of a loop's signals, during a run and after it.

    The loop samples all its signals after each step, or after each n-th step with ``signals_every=n``. The last
    ``signals_capacity`` samples are kept.

    `read` uses a reader of this object, which begins with the first sample. Call `reader` for more readers, for example
    in other threads.
    """

    def __init__(self, source: SignalSource, start: Literal["now", "oldest", "begin"] = "begin") -> None:
        self._source = source
        self._start = start
        self._readers: dict[str, SignalReader] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the signals, in the order of their declaration."""
        return tuple(one.name for one in self._source.layout.signals)

    @property
    def units(self) -> Mapping[str, str]:
        """Unit of each signal; an empty string if it has none."""
        return MappingProxyType({one.name: one.unit for one in self._source.layout.signals})

    @property
    def limits(self) -> Mapping[str, tuple[float | None, float | None]]:
        """Lowest and highest normal value of each signal that has limits; None if it has none on that side."""
        listed = self._source.layout.signals
        return MappingProxyType(
            {one.name: (one.low, one.high) for one in listed if (one.low, one.high) != (None, None)}
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a record: ``cycle``, ``release`` and ``start``, and the signals."""
        return self._source.layout.dtype

    @property
    def lost(self) -> int:
        """Number of samples that were overwritten before `read` reached them."""
        return self._own.lost

    @property
    def written(self) -> int:
        """Number of samples that the loop has written, in all its runs."""
        return self._own.written

    @property
    def _own(self) -> SignalReader:
        found = self._readers.get("own")
        return found if found is not None else self._readers.setdefault("own", SignalReader(self._source, self._start))

    def latest(self) -> dict[str, Any]:
        """Return the newest sample: `cycle`, `release`, `start` and the signals, all of the same cycle, by name.

        Empty before the first sample. Does not move a reader.
        """
        layout = self._source.layout
        found = Cursor(self._source.block, "now").latest(layout.stored)
        if found is None:
            return {}
        record = layout.arrange(found.reshape(1))[0]
        return {name: _plain(record[name]) for name in layout.dtype.names or ()}

    def read(self, most: int | None = None) -> NDArray[Any]:
        """Return the samples since the last read, oldest first; see :meth:`SignalReader.read`."""
        return self._own.read(most)

    def reader(self, start: Literal["now", "oldest", "begin"] = "now") -> SignalReader:
        """Return another reader.

        Parameters
        ----------
        start : {"now", "oldest", "begin"}
            Begin with the next sample; with the oldest that is kept; or with the first sample ever, so that those that
            are no longer kept count as lost.

        Raises
        ------
        StateError
            If the loop has no signals.
        """
        return SignalReader(self._source, start)

    def __len__(self) -> int:
        return len(self._source.layout.signals)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        return f"<Signals of {self._source.name!r}: {', '.join(self.names) or 'none'}>"

    def _repr_html_(self) -> str:
        latest = self.latest()
        units, limits = self.units, self.limits
        at = f" in cycle {latest['cycle']:,}" if latest else ""
        return html_table(
            f"signals of {self._source.name}{at}",
            ("name", "value", "unit", "limits"),
            [
                (name, format_value(latest.get(name, "")), units[name], format_limits(*limits.get(name, (None, None))))
                for name in self.names
            ],
        )


def _plain(value: Any) -> Any:
    """Return a number as a Python one, and an array as a copy of its own."""
    return value.copy() if getattr(value, "shape", ()) else value.item()
