"""SignalSet: the signals of a loop of this process, and the block that its runs write them to."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rtloop.errors import ConfigError, StateError
from rtloop.live.declared_parameters import parse_name, parse_type, parse_unit
from rtloop.live.signal_block import OwnSignals
from rtloop.process.signal_shield import ShieldedLock
from rtloop.units import show

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from rtloop.settings import Settings

__all__ = ["HEAD", "Layout", "Signal", "SignalDeclaration", "SignalSet", "parse_layout"]

#: Fields of every record before the signals.
HEAD = (("cycle", "<u8"), ("release", "<i8"), ("start", "<i8"))
_HEAD_BYTES = 24
#: Types of a signal, or of the items of an array, as NumPy names them without the byte order.
_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
_RULE = "is not a bool or a number of up to 16 bytes in this machine's byte order, nor an array of them such as '3f8'"
_MOST = 1024
_MOST_BYTES = 8192


class Signal(NamedTuple):
    """One declared signal.

    Attributes
    ----------
    name : str
        Name, an identifier.
    dtype : numpy.dtype
        Type of a number.
    shape : tuple of int
        Shape of an array, ``()`` for a number.
    unit : str
        Unit, or an empty string.
    low, high : float or None
        Limits of its normal range; None if there is none. Values outside of them are sampled as well.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    unit: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def word(self) -> int:
        """Largest word that divides its size: 8, 4, 2 or 1 bytes."""
        return next(word for word in (8, 4, 2, 1) if self.size % word == 0)


class Layout(NamedTuple):
    """Signals of a loop, and their places in a record of its block.

    Attributes
    ----------
    signals : tuple of Signal
        The signals, in the order of their declaration.
    order : tuple of int
        Their indices, in the order of the fields of a record in the block.
    stored : numpy.dtype
        Type of a record in the block.
    dtype : numpy.dtype
        Type of a record for the user: all fields in the order of the declaration, without gaps.
    """

    signals: tuple[Signal, ...]
    order: tuple[int, ...]
    stored: np.dtype[Any]
    dtype: np.dtype[Any]

    def arrange(self, stored: np.ndarray) -> np.ndarray:
        """Return records of the block as records for the user."""
        if self.stored == self.dtype:
            return stored
        arranged = np.empty(stored.shape, self.dtype)
        for name in self.dtype.names or ():
            arranged[name] = stored[name]
        return arranged


def order_signals(signals: Sequence[Signal], addresses: Mapping[str, int]) -> tuple[int, ...]:
    """Return indices of signals in the order that sampler.h copies with the fewest instructions.

    Signals of larger words come first. Of those of 8 bytes, it copies two at a time if they follow each other in memory
    and in the record, from its beginning on. So runs of an even number of words come first, and then a longer run
    before a shorter one: only one of an odd number can be in pairs, but for its last word.
    """
    runs: list[list[int]] = []
    end = None
    for i in sorted(range(len(signals)), key=lambda i: addresses[signals[i].name]):
        if signals[i].word == 8:
            begin = addresses[signals[i].name]
            if begin != end:
                runs.append([])
            runs[-1].append(i)
            end = begin + signals[i].size

    def words(run: list[int]) -> int:
        return sum(signals[i].size for i in run) // 8

    runs.sort(key=lambda run: (words(run) % 2, -words(run), min(run)))
    smaller = sorted((i for i, one in enumerate(signals) if one.word < 8), key=lambda i: -signals[i].word)
    return (*(i for run in runs for i in run), *smaller)


def make_layout(signals: tuple[Signal, ...], order: tuple[int, ...]) -> Layout:
    """Return the layout of signals whose fields are in an order."""
    fields: list[tuple[str, Any, tuple[int, ...]]] = [(name, kind, ()) for name, kind in HEAD]
    stored: dict[str, list[Any]] = {"names": [], "formats": [], "offsets": []}
    offset = 0
    everything = [*fields, *((signals[i].name, signals[i].dtype, signals[i].shape) for i in order)]
    for name, dtype, shape in everything:
        stored["names"].append(name)
        stored["formats"].append((dtype, shape))
        stored["offsets"].append(offset)
        offset += np.dtype((dtype, shape)).itemsize
    return Layout(
        signals,
        order,
        np.dtype({**stored, "itemsize": -(-offset // 8) * 8}),  # type: ignore[call-overload]
        np.dtype([*fields, *((one.name, one.dtype, one.shape) for one in signals)]),
    )


def describe_layout(layout: Layout, settings: Settings) -> bytes:
    """Return the description of a loop's signals for other processes."""
    import json  # here, because importing rtloop has to be quick

    content = {
        "loop": settings.name,
        "period_ns": settings.period_ns,
        "clock": settings.clock,
        "every": settings.signals_every,
        "signals": [
            {
                "name": one.name,
                "type": one.dtype.str[1:],
                "shape": list(one.shape),
                "unit": one.unit,
                "low": one.low,
                "high": one.high,
            }
            for one in layout.signals
        ],
        "order": layout.order,
    }
    return json.dumps(content).encode()


def parse_layout(text: bytes, record_bytes: int) -> Layout:
    """Read an untrusted description.

    Raises
    ------
    ValueError
        If no loop can have written it, or it contradicts the size of a record.
    """
    import json  # here, because importing rtloop has to be quick

    try:
        content = json.loads(text)
        signals = tuple(_parse_signal(values) for values in content["signals"])
        order = tuple(content["order"])
        if any(type(i) is not int for i in order) or sorted(order) != list(range(len(signals))):
            raise ValueError("their order is not one of all signals")
    except (ConfigError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"its signals are described wrongly: {error}") from None
    names = {one.name for one in signals}
    if len(names | {name for name, _ in HEAD}) != len(signals) + len(HEAD):
        raise ValueError("its signals are described wrongly: a name occurs twice")
    if not signals or sum(one.size for one in signals) + _HEAD_BYTES > record_bytes:
        raise ValueError("its signals are described wrongly: they do not fit into a record")
    layout = make_layout(signals, order)
    if layout.stored.itemsize != record_bytes:
        raise ValueError("its signals are described wrongly: they are not a record")
    return layout


def _parse_signal(values: Any) -> Signal:
    name, kind, unit = values["name"], values["type"], values["unit"]
    shape = tuple(values["shape"])
    if kind not in _TYPES or not all(type(length) is int and 0 < length <= _MOST_BYTES for length in shape):
        raise ConfigError("the type of a signal is not that of a number")
    if len(shape) > 8:
        raise ConfigError("a signal has too many dimensions")
    made = Signal(parse_name(name), np.dtype(kind), shape, parse_unit(unit))
    return _with_limits(made, values["low"], values["high"])


def _with_limits(signal: Signal, low: object, high: object) -> Signal:
    """Check the limits of a signal, and return it with them."""
    if (low, high) != (None, None) and signal.dtype.kind not in "iuf":
        raise ConfigError(f"{signal.name} is of type {signal.dtype.str[1:]}, which has no limits")
    for limit in (low, high):
        is_number = isinstance(limit, (int, float, np.integer, np.floating)) and not isinstance(limit, bool)
        if limit is not None and not (is_number and math.isfinite(float(limit))):  # type: ignore[arg-type]
            raise ConfigError(f"limits of {signal.name}: {show(limit)} is not a finite number")
    pair = [None if limit is None else float(limit) for limit in (low, high)]  # type: ignore[arg-type]
    if pair[0] is not None and pair[1] is not None and pair[0] > pair[1]:
        raise ConfigError(f"limits of {signal.name}: low={show(low)} is above high={show(high)}")
    return signal._replace(low=pair[0], high=pair[1])


class SignalDeclaration:
    """A signal that was just declared, to add a unit and limits: ``.unit("rad").limits(-3, 3)``."""

    def __init__(self, signal: Signal, change: Callable[[Signal], None]) -> None:
        self._signal = signal
        self._change = change

    def unit(self, text: str) -> SignalDeclaration:
        """Set the unit, for display: ``"rad"``.

        Raises
        ------
        ConfigError
            If it is not a short text.
        StateError
            Once the loop has run, or its signals were read.
        """
        return self._with(self._signal._replace(unit=parse_unit(text)))

    def limits(self, low: float | None, high: float | None) -> SignalDeclaration:
        """Set the limits of the normal range, None if there is none on that side.

        Limits have no effect on the loop, which samples every value. ``rtloop record --trigger limit`` writes a file
        whenever the signal leaves its limits. A value that is not a number counts as outside.

        Raises
        ------
        ConfigError
            If a limit is not a finite number, `low` is above `high`, or the signal is a bool or a complex number.
        StateError
            Once the loop has run, or its signals were read.
        """
        return self._with(_with_limits(self._signal, low, high))

    def _with(self, changed: Signal) -> SignalDeclaration:
        if changed != self._signal:
            self._change(changed)
            self._signal = changed
        return self

    def __repr__(self) -> str:
        return f"<signal {self._signal.name!r} of type {self._signal.dtype.str[1:]}>"


class SignalSet:
    """The signals of a loop of this process.

    Attributes
    ----------
    declared : dict
        The signals by name.
    held : list
        Owners of the memory that signals are read from, besides the loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.declared: dict[str, Signal] = {}
        self.held: list[Any] = []
        self._settings = settings
        self._addresses: dict[str, int] = {}
        self._block: OwnSignals | None = None
        self._layout: Layout | None = None
        self._lock = ShieldedLock()

    @property
    def name(self) -> str:
        """Name of the loop."""
        return self._settings.name

    def declare(self, name: str, address: int, dtype: DTypeLike = "f8") -> SignalDeclaration:
        """Add a signal, which the loop reads from an address after each step.

        A signal that setup() declares again in every run, in the same way, stays as it is.

        Raises
        ------
        ConfigError
            If the name, the type or the address is invalid.
        StateError
            Once the loop has run, or its signals were read: the fields of a record are fixed then.
        """
        parse_name(name)
        made = Signal(name, *_parse_type(dtype, name))
        if not address:
            raise ConfigError(f"the address of the signal {name!r} is NULL: give that of a field, such as &self.angle")
        with self._lock:
            former = self.declared.get(name)
            if former is not None and (former[:3], self._addresses[name]) == (made[:3], address):
                return SignalDeclaration(former, self._change)
            if former is not None or name in dict(HEAD):
                raise ConfigError(f"name={name!r} is already the name of another field of the record")
            self._check_open(name)
            total = sum(one.size for one in self.declared.values()) + made.size
            if len(self.declared) == _MOST or total > _MOST_BYTES:
                raise ConfigError(
                    f"the signal {name!r} does not fit: a loop can have at most {_MOST} signals of {_MOST_BYTES} bytes "
                    "in all"
                )
            self.declared[name] = made
            self._addresses[name] = address
        return SignalDeclaration(made, self._change)

    def _change(self, signal: Signal) -> None:
        with self._lock:
            self._check_open(signal.name)
            self.declared[signal.name] = signal

    def _check_open(self, name: str) -> None:
        if self._block is not None:
            raise StateError(
                f"the signal {name!r} of {self.name} cannot be declared now: the fields of a record are fixed once the "
                "loop has run, or its signals have been read; declare it in __init__"
            )

    def floats(self) -> tuple[list[int], list[int], list[int]]:
        """Return the addresses of all doubles, all floats and all half floats, including parts of complex numbers."""
        found: dict[int, list[int]] = {8: [], 4: [], 2: []}
        for name, one in self.declared.items():
            bytes_ = {"f2": 2, "f4": 4, "c8": 4, "f8": 8, "c16": 8}.get(one.dtype.str[1:])
            if bytes_ is not None:
                first = self._addresses[name]
                found[bytes_] += range(first, first + one.size, bytes_)
        return found[8], found[4], found[2]

    @property
    def layout(self) -> Layout:
        """The signals and their places in a record."""
        return self._layout or self._arrange()

    def _arrange(self) -> Layout:
        signals = tuple(self.declared.values())
        return make_layout(signals, order_signals(signals, self._addresses))

    @property
    def block(self) -> OwnSignals:
        """The block, made when it is first needed.

        Raises
        ------
        StateError
            If the loop has no signals.
        ConfigError
            If a record would be too large.
        OSError
            If there is no memory.
        """
        with self._lock:
            if self._block is None or self._block.pid != os.getpid():  # a forked child shares the parent's memory
                if not self.declared:
                    raise StateError(f"{self.name} has no signals: declare one with self.signal(name, address)")
                layout = self._arrange()
                ordered = [layout.signals[i] for i in layout.order]
                settings = self._settings
                self._block = OwnSignals(
                    self.name,
                    [(self._addresses[one.name], one.size) for one in ordered],
                    settings.signals_every,
                    settings.signals_capacity,
                    describe_layout(layout, settings),
                )
                self._layout = layout
            return self._block


def _parse_type(dtype: DTypeLike, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    base, shape = parse_type(dtype, f"the signal {name!r}", _TYPES, _RULE)
    if len(shape) > 8:
        raise ConfigError(f"the signal {name!r}: dtype={show(dtype)} has too many dimensions")
    return base, shape
