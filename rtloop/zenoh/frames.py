"""Frames: records of one type as self-describing bytes, for peers in any language.

A frame is ``RTLB``, one byte of version (1), three zero bytes, four bytes of the header's length (little-endian), the
header, JSON in UTF-8 filled up with blanks so that what follows begins at a multiple of 8, and the records one after
the other, little-endian. ``dtype`` in the header is NumPy's description of a record, ``count`` how many there are.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtloop.data.dtypes import plain_dtype
from rtloop.errors import ConfigError, PayloadError

__all__ = ["VERSION", "Frame", "describe_dtype", "find_fault", "little", "pack", "parse_dtype", "split", "unpack"]

VERSION = 1
_HEAD = struct.Struct("<4sB3xI")
_MAGIC = b"RTLB"
_MAX_HEADER_BYTES = 1 << 16
_MAX_ITEM_BYTES = 1 << 24
_MAX_DEPTH = 8
_SCALAR = re.compile(r"[<|][fiubcSUV][0-9]{1,8}|<[mM]8(\[[a-zA-Z0-9]{1,8}\])?")


@dataclass(frozen=True)
class Frame:
    """Content of a frame.

    Attributes
    ----------
    records : structured or plain array
        A copy.
    about : dict
        The header's other entries.
    """

    records: NDArray[Any]
    about: dict[str, Any] = field(default_factory=dict)


def little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type with its bytes in the order of the wire."""
    return dtype.newbyteorder("<")


def describe_dtype(dtype: np.dtype[Any]) -> Any:
    """Return NumPy's description of a type, as JSON holds it: a str, or a list of ``[name, type]``, with a shape."""
    return _as_lists(np.lib.format.dtype_to_descr(little(dtype)))


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def parse_dtype(described: Any) -> np.dtype[Any]:
    """Return the type of a received description.

    Raises
    ------
    PayloadError
        If it is not a type, or has Python objects.
    """
    try:
        dtype = np.lib.format.descr_to_dtype(_as_descr(described, 0))
        if 0 < dtype.itemsize <= _MAX_ITEM_BYTES:
            return plain_dtype(dtype)
        raise ValueError(f"items of {dtype.itemsize} bytes")
    except (TypeError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise PayloadError(f"its dtype cannot be: {str(error)[:200]}") from None


def _as_descr(value: Any, depth: int) -> Any:
    if isinstance(value, str) and _SCALAR.fullmatch(value):
        return value
    if not isinstance(value, list) or not 0 < len(value) <= 1024 or depth > _MAX_DEPTH:
        raise ValueError(f"{str(value)[:80]!r} is not a description of a type")
    fields = []
    for one in value:
        if not isinstance(one, list) or len(one) not in (2, 3) or not isinstance(one[0], str):
            raise ValueError(f"{str(one)[:80]!r} is not a field")
        shape = one[2] if len(one) == 3 else []
        if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 1 << 24 for n in shape):
            raise ValueError(f"{str(shape)[:80]!r} is not a shape")
        fields.append((one[0], _as_descr(one[1], depth + 1), *([tuple(shape)] if shape else [])))
    return fields


def pack(records: Any, dtype: Any = None, **about: Any) -> bytes:
    """Return records as a frame.

    Parameters
    ----------
    records : array, or what becomes one
        One record, or several in one dimension.
    dtype : dtype, optional
        Their type; that of `records` by default.
    **about
        Further entries of the header, which JSON can hold.

    Raises
    ------
    ConfigError
        On a type with Python objects, or a value that does not fit it.

    Examples
    --------
    >>> session.put("rtloop/pi/servo/setpoints/angle", rtloop.zenoh.pack(0.5, "f8"))
    """
    kind = plain_dtype(dtype if dtype is not None else np.asarray(records).dtype)
    try:
        array = np.ascontiguousarray(records, little(kind)).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{str(records)[:80]!r} is not a record of {kind}: {error}") from None
    text = json.dumps({"dtype": describe_dtype(kind), "count": len(array), **about}, separators=(",", ":")).encode()
    text += b" " * (-(_HEAD.size + len(text)) % 8)
    return _HEAD.pack(_MAGIC, VERSION, len(text)) + text + array.tobytes()


def split(payload: bytes) -> tuple[bytes, int]:
    """Return a frame's header, still JSON, and where its records begin.

    Raises
    ------
    PayloadError
        If it is not a frame of this version.
    """
    if len(payload) < _HEAD.size or not payload.startswith(_MAGIC):
        raise PayloadError("it is not a frame: it does not begin with RTLB")
    _, version, length = _HEAD.unpack_from(payload)
    if version != VERSION:
        raise PayloadError(f"it is of version {version}, and this rtloop reads version {VERSION}")
    if length > _MAX_HEADER_BYTES or _HEAD.size + length > len(payload):
        raise PayloadError(f"its header of {length} bytes is longer than it may be, or than the payload")
    return payload[_HEAD.size : _HEAD.size + length], _HEAD.size + length


def parse_header(text: bytes) -> tuple[np.dtype[Any], int, dict[str, Any]]:
    """Return the type, the number of records, and the header's other entries.

    Raises
    ------
    PayloadError
        If it is not a header.
    """
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"its header is not JSON: {str(error)[:200]}") from None
    if not isinstance(about, dict) or "dtype" not in about or type(about.get("count")) is not int or about["count"] < 0:
        raise PayloadError("its header has no dtype, or no count")
    return parse_dtype(about.pop("dtype")), about.pop("count"), about


def unpack(payload: bytes) -> Frame:
    """Return the content of a frame.

    Raises
    ------
    PayloadError
        If it is not a frame, or its length does not match its header.
    """
    text, begin = split(payload)
    dtype, count, about = parse_header(text)
    if len(payload) - begin != count * dtype.itemsize:
        raise PayloadError(
            f"{count} records of {dtype.itemsize} bytes are not the {len(payload) - begin} that are there"
        )
    return Frame(np.frombuffer(payload, dtype, count, begin).copy(), about)


def find_fault(array: NDArray[Any]) -> str:
    """Return a fault in values that a controller must not get: NaN, infinity, an invalid bool; "" if none."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            fault = find_fault(array[name])
            if fault:
                return f"{name}: {fault}"
    elif array.dtype.kind in "fc":
        return "" if bool(np.isfinite(array).all()) else "it is not finite"
    elif array.dtype.kind == "b":
        return "" if bool((array.view(np.uint8) <= 1).all()) else "a bool is neither 0 nor 1"
    return ""
