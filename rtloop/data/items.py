"""Items of plain memory: the types that have a place there, and values that become items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["as_items", "plain_dtype"]


def plain_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return a dtype whose items are bytes and nothing else.

    Raises
    ------
    ConfigError
        Where it is none, has no size, refers to Python objects, or is an array in itself.
    """
    try:
        item = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"dtype={dtype!r} is no NumPy dtype: {error}") from None
    if item.hasobject:
        raise ConfigError(f"dtype={dtype!r} has no place in plain memory; give numbers, or a struct of them")
    if item.subdtype is not None:
        base, shape = item.subdtype
        raise ConfigError(f"dtype={dtype!r} is an array of {shape}; give {base} and a shape, or a struct with a field")
    if not item.itemsize:
        raise ConfigError(f"dtype={dtype!r} has items of 0 bytes; give it a size, as in 'S8'")
    return item


def as_items(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a value as an array of items, in one piece; one item becomes an array without dimensions.

    Raises
    ------
    ConfigError
        Where it has no place in the dtype, or would lose what is behind the decimal point.
    """
    try:
        if isinstance(value, (np.ndarray, np.generic)):
            if not np.can_cast(value.dtype, dtype, "same_kind"):
                raise TypeError(f"{value.dtype} does not become it by itself; convert it: astype()")
        elif dtype.kind in "iub" and np.asarray(value).dtype.kind not in "iub":
            raise TypeError("it is no whole number")
        return np.array(value, dtype, order="C")
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{value!r} is no item of {dtype}: {error}") from None
