"""SignalSet: the signals of a loop of this process, and the block that its runs write them to."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

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
_WORD = 8
#: A record of up to this many bytes may consist mostly of those around small signals.
_SPARSE_BYTES = 512
#: Types of a signal, or of the items of an array, as NumPy names them without the byte order.
_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
_RULE = "is not a bool or a number of up to 16 bytes in this machine's byte order, nor an array of them such as '3f8'"
_MOST = 1024
_MOST_BYTES = 8192


#: Addresses of the first byte, and of the first one behind the end, of memory that may be read as a whole. None: only
#: the signal may be read.
Memory: TypeAlias = tuple[int, int] | None


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


class Layout(NamedTuple):
    """Signals of a loop, and their places in a record of its block.

    Attributes
    ----------
    signals : tuple of Signal
        The signals, in the order of their declaration.
    places : tuple of int
        Offset of each of them in a record of the block, in bytes.
    stored : numpy.dtype
        Type of a record in the block.
    dtype : numpy.dtype
        Type of a record for the user: all fields in the order of the declaration, without gaps.
    """

    signals: tuple[Signal, ...]
    places: tuple[int, ...]
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


class Piece(NamedTuple):
    """Memory that is copied into a record as a whole.

    Attributes
    ----------
    begin, end : int
        Addresses of its first byte, and of the first one behind its end.
    within : (int, int) or None
        Memory around it that may be read as well.
    signals : tuple of int
        Indices of the signals in it.
    """

    begin: int
    end: int
    within: Memory
    signals: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.end - self.begin

    @property
    def word(self) -> int:
        """Largest word that divides its size: 8, 4, 2 or 1 bytes."""
        return math.gcd(self.size, _WORD)

    @property
    def words(self) -> int:
        """Number of such words."""
        return self.size // self.word

    def follows(self, other: Piece) -> bool:
        """Test whether both consist of aligned words of 8 bytes, and this one begins within the other or at its end."""
        is_aligned = all(size % _WORD == 0 for size in (self.size, other.size, self.begin - other.begin))
        return is_aligned and self.begin <= other.end


def find_pieces(signals: Sequence[Signal], addresses: Sequence[int], memory: Sequence[Memory]) -> list[Piece]:
    """Find the memory to copy for signals, in the order that sampler.h copies with the fewest instructions.

    Words of 8 bytes cost least. So if a signal is in memory that may be read as a whole, all aligned words that contain
    it are copied. If all gaps between these words are of one word, the gaps are copied as well, because words that all
    follow each other cost least of all. If that makes too many words for a record, or a large record of which less than
    a quarter is signals, only the signals are copied.

    Pieces of larger words come first. Of those of 8 bytes, the sampler copies two at a time if they follow each other
    in memory and in the record, from its beginning on. So pieces of an even number of words come first. Of those of an
    odd number the longest comes first, because the pairs end with it: its last word has no partner.

    Parameters
    ----------
    signals : sequence of Signal
        The signals.
    addresses : sequence of int
        Address of each of them.
    memory : sequence of (int, int) or None
        Memory around each of them that may be read as well.

    Returns
    -------
    list of Piece
        Pieces in the order of the record.
    """
    found = []
    for i, (signal, begin, within) in enumerate(zip(signals, addresses, memory, strict=True)):
        end = begin + signal.size
        low, high = begin // _WORD * _WORD, -(-end // _WORD) * _WORD
        is_whole = within is not None and within[0] <= low and high <= within[1]
        found.append(Piece(low, high, within, (i,)) if is_whole else Piece(begin, end, None, (i,)))
    found.sort(key=lambda piece: (piece.begin, piece.end))
    joined = found[:1]
    for piece in found[1:]:
        last = joined[-1]
        if piece.follows(last):
            within = last.within if last.within == piece.within else None
            joined[-1] = Piece(last.begin, max(last.end, piece.end), within, last.signals + piece.signals)
        else:
            joined.append(piece)
    if (
        joined
        and joined[0].within is not None
        and joined[-1].end - joined[0].begin <= _MOST * _WORD
        and all(
            after.within == joined[0].within and after.begin == before.end + _WORD
            for before, after in itertools.pairwise(joined)
        )
    ):
        indices = tuple(i for piece in joined for i in piece.signals)
        joined = [Piece(joined[0].begin, joined[-1].end, joined[0].within, indices)]
    size, least = sum(piece.size for piece in joined), sum(one.size for one in signals)
    is_sparse = size > _SPARSE_BYTES and size > 4 * least
    if any(memory) and (is_sparse or sum(piece.words for piece in joined) > _MOST):
        return find_pieces(signals, addresses, [None] * len(signals))
    joined.sort(key=lambda piece: (-piece.word, piece.words % 2, -piece.words, min(piece.signals)))
    return joined


def place_signals(pieces: Sequence[Piece], addresses: Sequence[int]) -> tuple[int, ...]:
    """Return the offset of each signal in a record of these pieces, in bytes."""
    places, begin = [0] * len(addresses), _HEAD_BYTES
    for piece in pieces:
        for i in piece.signals:
            places[i] = begin + addresses[i] - piece.begin
        begin += piece.size
    return tuple(places)


def make_layout(signals: tuple[Signal, ...], places: tuple[int, ...], record_bytes: int) -> Layout:
    """Return the layout of signals at these offsets in a record, in bytes."""
    names = [name for name, _ in HEAD] + [one.name for one in signals]
    formats = [kind for _, kind in HEAD] + [(one.dtype, one.shape) for one in signals]
    stored = {"names": names, "formats": formats, "offsets": [0, 8, 16, *places], "itemsize": record_bytes}
    return Layout(
        signals,
        places,
        np.dtype(stored),  # type: ignore[call-overload]
        np.dtype(list(zip(names, formats, strict=True))),
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
        "places": layout.places,
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
        places = tuple(content["places"])
    except (ConfigError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"its signals are described wrongly: {error}") from None
    names = {one.name for one in signals}
    if len(names | {name for name, _ in HEAD}) != len(signals) + len(HEAD):
        raise ValueError("its signals are described wrongly: a name occurs twice")
    if not signals or len(places) != len(signals):
        raise ValueError(f"its signals are described wrongly: {len(signals)} signals have {len(places)} places")
    # They may overlap, so the size of a record does not bound them.
    if len(signals) > _MOST or sum(one.size for one in signals) > _MOST_BYTES:
        raise ValueError("its signals are described wrongly: there are too many")
    for one, place in zip(signals, places, strict=True):
        if type(place) is not int or not _HEAD_BYTES <= place <= record_bytes - one.size:
            raise ValueError(f"its signals are described wrongly: {one.name} is outside of the record")
    return make_layout(signals, places, record_bytes)


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
        self._memory: dict[str, Memory] = {}
        self._block: OwnSignals | None = None
        self._layout: Layout | None = None
        self._lock = ShieldedLock()

    @property
    def name(self) -> str:
        """Name of the loop."""
        return self._settings.name

    def declare(
        self, name: str, address: int, dtype: DTypeLike = "f8", memory: Memory = None,
        check: Callable[[Signal, int], None] | None = None,
    ) -> SignalDeclaration:  # fmt: skip
        """Add a signal, which the loop reads from an address after each step.

        A signal that setup() declares again in every run, in the same way, stays as it is.

        Parameters
        ----------
        name : str
            Name, an identifier.
        address : int
            Address of its value.
        dtype : data-type, optional
            Type of a number, or of an array of numbers.
        memory : (int, int), optional
            Memory around it that may be read as well. By default no other byte is read, because reading the register
            next to it may change a device.
        check : callable, optional
            May refuse the signal and its address.

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
            if check is not None:
                check(made, address)
            self.declared[name] = made
            self._addresses[name], self._memory[name] = address, memory
        return SignalDeclaration(made, self._change)

    def places(self) -> list[tuple[Signal, int]]:
        """Return the signals with their addresses."""
        addresses = self._addresses.copy()  # without the lock, which a thread that declares holds
        return [(self.declared[name], address) for name, address in addresses.items()]

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
        return self._layout or self._arrange()[0]

    def _arrange(self) -> tuple[Layout, list[Piece]]:
        signals = tuple(self.declared.values())
        addresses = [self._addresses[name] for name in self.declared]
        pieces = find_pieces(signals, addresses, [self._memory[name] for name in self.declared])
        record_bytes = _HEAD_BYTES + sum(piece.size for piece in pieces)
        record_bytes += -record_bytes % _WORD
        return make_layout(signals, place_signals(pieces, addresses), record_bytes), pieces

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
                layout, pieces = self._arrange()
                settings = self._settings
                self._block = OwnSignals(
                    self.name,
                    [(piece.begin, piece.size) for piece in pieces],
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
