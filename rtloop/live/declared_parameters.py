"""Declared parameters: their types, limits and units, and the conversion of values to the bytes of a set."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rtloop.data.dtypes import as_items
from rtloop.errors import ConfigError
from rtloop.units import show

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["TYPES", "Declaration", "Parameter", "element", "merge", "parse_name", "parse_type", "parse_unit"]

Number = bool | int | float

#: Types of a number, as NumPy names them without the byte order, in the order of RT_PARAMETER_... of parameters.h.
TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")
_RULE = (
    "must be a bool, an integer of 1 to 8 bytes, f4 or f8, in this machine's byte order, or an array of them such as "
    "'3f8'"
)
#: The same types for struct, and by the kind of a NumPy type the Python type of its plain numbers.
_FORMATS = dict(zip(TYPES, ("=?", "=b", "=h", "=i", "=q", "=B", "=H", "=I", "=Q", "=f", "=d"), strict=True))
_PLAIN: dict[str, type[Any]] = {"b": bool, "i": int, "u": int, "f": float}
_LONGEST_NAME = 64
_LONGEST_UNIT = 32


class Parameter(NamedTuple):
    """One declared parameter.

    Attributes
    ----------
    name : str
        Name, an identifier.
    dtype : numpy.dtype
        Type of a number.
    shape : tuple of int
        Shape of an array, ``()`` for a number.
    offset : int
        Place in a set of all parameters, bytes.
    low, high : bool, int or float or None
        Lowest and highest allowed value; None: the limit of the type.
    unit : str
        Unit, or an empty string.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    low: Number | None = None
    high: Number | None = None
    unit: str = ""

    @property
    def kind(self) -> str:
        """Type of a number without the byte order: ``"f8"``."""
        return self.dtype.str[1:]

    @property
    def numbers(self) -> int:
        """Count of its numbers."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return self.numbers * self.dtype.itemsize

    @property
    def bounds(self) -> tuple[Number, Number]:
        """Lowest and highest value; those of the type if no limit is set."""
        if self.dtype.kind == "b":
            return False, True
        info: Any = np.finfo(self.dtype) if self.dtype.kind == "f" else np.iinfo(self.dtype)
        kind = float if self.dtype.kind == "f" else int
        low = kind(info.min) if self.low is None else self.low
        return low, kind(info.max) if self.high is None else self.high

    def pack(self, value: Any) -> bytes:
        """Return the bytes of a value.

        Raises
        ------
        ConfigError
            If it has another shape or type, is not finite, or is outside of the limits.
        """
        packed = self._pack_plain(value)
        if packed is not None:
            return packed
        try:
            array = as_items(value, self.dtype)
        except ConfigError as error:
            raise ConfigError(f"{self.name}={show(value)}: {error}") from None
        if array.shape != self.shape:
            want = f"an array of the shape {self.shape}" if self.shape else "a single number"
            raise ConfigError(f"{self.name}={show(value)} must be {want}, but has the shape {array.shape}")
        if self.dtype.kind == "b" and not np.array_equal(array, np.asarray(value)):
            raise ConfigError(f"{self.name}={show(value)} must be True or False")
        if self.dtype.kind == "f" and not np.isfinite(array).all():
            raise ConfigError(f"{self.name}={show(value)} is not finite")
        low, high = self.bounds
        for number in array.ravel().tolist():
            if not low <= number <= high:
                unit = f" {self.unit}" if self.unit else ""
                limits = f"outside of its limits, {low} to {high}"
                if self.low is None or self.high is None:
                    limits = f"below its limit, {low}" if number < low else f"above its limit, {high}"
                raise ConfigError(f"{self.name}={show(value)} is {limits}{unit}")
        return array.tobytes()

    def _pack_plain(self, value: Any) -> bytes | None:
        """Return the bytes of a plain number that can be set; None for all else. An array would take much longer."""
        if self.shape or type(value) is not _PLAIN[self.dtype.kind]:
            return None
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            return None
        if self.dtype.kind == "f" and not math.isfinite(value):
            return None
        try:
            return struct.pack(_FORMATS[self.kind], value)
        except (struct.error, OverflowError):
            return None

    def unpack(self, values: bytes | bytearray) -> Any:
        """Return the value in a set: a Python number, or an array."""
        found = np.frombuffer(values, self.dtype, self.numbers, self.offset)
        return found.reshape(self.shape).copy() if self.shape else found[0].item()

    def unpack_bytes(self, values: bytes | bytearray) -> bytes:
        """Return the bytes of the value in a set."""
        return bytes(values[self.offset : self.offset + self.size])

    def to_dict(self) -> dict[str, Any]:
        """Return the description as a dict that JSON can hold."""
        return {
            "name": self.name,
            "type": self.kind,
            "shape": list(self.shape),
            "offset": self.offset,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Parameter:
        """Read an untrusted description.

        Raises
        ------
        ValueError
            If no loop can have written it.
        """
        try:
            if values["type"] not in TYPES:
                raise ConfigError(f"type={show(values['type'])} is unknown")
            made = cls(
                parse_name(values["name"]),
                *parse_type((values["type"], tuple(values["shape"])), "its type"),
                operator.index(values["offset"]),
            )
            low, high = made.parse_limits(values["low"], values["high"])
            return made._replace(low=low, high=high, unit=parse_unit(values["unit"]))
        except (ConfigError, KeyError, TypeError, OverflowError, AttributeError) as error:
            raise ValueError(f"the description of a parameter is invalid: {error}") from None

    def parse_limits(self, low: Any, high: Any) -> tuple[Number | None, Number | None]:
        """Check limits; None is that of the type.

        Raises
        ------
        ConfigError
            If they are not values of the type, or in the wrong order.
        """
        if self.dtype.kind == "b" and not (low is None and high is None):
            raise ConfigError(f"{self.name} is a bool, which has no limits")
        free = self._replace(shape=(), offset=0, low=None, high=None)
        pair = []
        for word, limit in (("low", low), ("high", high)):
            try:
                # Rounded to the type, so that the limit itself is a value within it.
                pair.append(None if limit is None else free.unpack(free.pack(limit)))
            except ConfigError as error:
                raise ConfigError(
                    f"limits of {self.name}: {word}={show(limit)} is not a {self.kind}: {error}"
                ) from None
        if pair[0] is not None and pair[1] is not None and pair[0] > pair[1]:
            raise ConfigError(f"limits of {self.name}: low={show(low)} is above high={show(high)}")
        return pair[0], pair[1]


class Declaration:
    """A parameter that was just declared, to add limits and a unit: ``.limits(0, 50).unit("V/rad")``.

    Parameters
    ----------
    parameter : Parameter
        As declared.
    change : callable
        Called with the parameter that has the new limits or unit. It raises ConfigError if the present value is outside
        of the limits, and StateError while the loop runs.
    """

    def __init__(self, parameter: Parameter, change: Callable[[Parameter], None]) -> None:
        self._parameter = parameter
        self._change = change

    def limits(self, low: Number | None, high: Number | None) -> Declaration:
        """Set the lowest and the highest allowed value; None: only the limit of the type applies.

        Raises
        ------
        ConfigError
            If a limit is not a value of the type, or the present value is outside of the limits.
        StateError
            While the loop runs.
        """
        pair = self._parameter.parse_limits(low, high)
        return self._with(self._parameter._replace(low=pair[0], high=pair[1]))

    def unit(self, text: str) -> Declaration:
        """Set the unit, for display: ``"V/rad"``.

        Raises
        ------
        ConfigError
            If it is not a short text.
        StateError
            While the loop runs.
        """
        return self._with(self._parameter._replace(unit=parse_unit(text)))

    def _with(self, parameter: Parameter) -> Declaration:
        self._change(parameter)
        self._parameter = parameter
        return self

    def __repr__(self) -> str:
        return f"<parameter {self._parameter.name!r} of type {self._parameter.kind}>"


def merge(declared: Mapping[str, Parameter], values: bytes, changes: Mapping[str, bytes]) -> bytes:
    """Return a set with the packed values of some parameters changed."""
    merged = bytearray(values)
    for name, packed in changes.items():
        one = declared[name]
        merged[one.offset : one.offset + one.size] = packed
    return bytes(merged)


def parse_name(value: object) -> str:
    """Check the name of a parameter or a signal: an identifier, as in ``update(kp=5)``."""
    if not isinstance(value, str) or not value.isidentifier() or len(value) > _LONGEST_NAME:
        raise ConfigError(f"name={show(value)} must be an identifier of at most {_LONGEST_NAME} characters: 'kp'")
    return value


def parse_unit(value: object) -> str:
    """Check a unit."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST_UNIT:
        raise ConfigError(f"unit={show(value)} must be a str of at most {_LONGEST_UNIT} printable characters")
    return value


def element(base: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of the parts of a complex number, and that of any other number itself."""
    return np.dtype(f"f{base.itemsize // 2}") if base.kind == "c" else base


def parse_type(
    dtype: DTypeLike, what: str, types: Sequence[str] = TYPES, rule: str = _RULE
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the type of a number and the shape of a dtype: a number of these types, or an array of a fixed shape.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    try:
        item = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: dtype={show(dtype)} is not a NumPy dtype: {error}") from None
    base, shape = item.subdtype or (item, ())
    if base.str[1:] not in types or not base.isnative:
        raise ConfigError(f"{what}: dtype={show(dtype)} {rule}")
    if 0 in shape:
        raise ConfigError(f"{what}: dtype={show(dtype)} has no elements")
    return base, tuple(shape)
