"""Types of the items of plain memory, and the conversion of values to them."""

from __future__ import annotations

from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import ConfigError
from rtloop.units import show

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["as_items", "plain_dtype"]


def plain_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return a dtype whose items are plain bytes, without references.

    Raises
    ------
    ConfigError
        If it is not a dtype, has no size, refers to Python objects, or is itself an array.
    """
    try:
        item = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"dtype={show(dtype)} is not a NumPy dtype: {error}") from None
    if item.hasobject:
        raise ConfigError(
            f"dtype={dtype!r} has Python objects, which plain memory cannot hold; give numbers, or a struct of them"
        )
    if item.subdtype is not None:
        base, shape = item.subdtype
        raise ConfigError(
            f"dtype={dtype!r} is an array of {shape}; make it a struct, [('values', {base.str!r}, {shape})], or "
            f"give {base} and the shape where a shape is a separate argument"
        )
    if not item.itemsize:
        raise ConfigError(f"dtype={dtype!r} has items of 0 bytes; give it a size, as in 'S8'")
    return item


def as_items(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a value as a contiguous array of items; one item becomes an array without dimensions.

    An array that already has the dtype is returned without a copy.

    Raises
    ------
    ConfigError
        If the dtype cannot hold it, or would lose its decimals.
    """
    try:
        if isinstance(value, (np.ndarray, np.generic)):
            if value.dtype == dtype:
                return np.asarray(value, order="C")
            _check_array(value, dtype)
            with np.errstate(all="ignore"):
                array = np.array(value, dtype, order="C")
            _check_range(array, value)
            return array
        if dtype.names is not None:
            value = _in_order(value, dtype)
        with np.errstate(all="ignore"):  # the result is checked below
            array = np.array(value, dtype, order="C")
        if dtype.names is not None:
            # Converted once more with the objects themselves, to compare.
            fields: Any = dtype.fields
            given = np.array(value, [(name, object, fields[name][0].shape) for name in dtype.names])
            for name in dtype.names:
                _check_leaf(array[name], given[name])
        else:
            _check_leaf(array, np.array(value, object))
        return array
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{show(value)} is not an item of {dtype}: {error}") from None


def _in_order(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return the values of a struct in the order of its fields; a dict must have all of them."""
    names: Any = dtype.names
    if isinstance(value, dict):
        if value.keys() != set(names):
            raise TypeError(f"give each of its fields: {', '.join(names)}")
        fields: Any = dtype.fields
        kinds = [fields[name][0] for name in names]
        return tuple(
            _in_order(value[name], kind) if kind.names and isinstance(value[name], dict) else value[name]
            for name, kind in zip(names, kinds, strict=True)
        )
    if not isinstance(value, (tuple, list)):
        raise TypeError("a struct is made from a tuple or a dict of its fields")
    return value


def _check_array(value: Any, dtype: np.dtype[Any]) -> None:
    if value.dtype.names != dtype.names:
        raise TypeError(f"its fields are {value.dtype.names}, in this order")
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise TypeError(f"{value.dtype} is not converted implicitly; convert it with astype()")


def _check_range(array: NDArray[Any], value: Any) -> None:
    """Refuse an array whose values have changed, other than by the rounding of a float."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            _check_range(array[name], np.asarray(value[name]))
    elif array.dtype.kind in "iub" or array.dtype.kind in "SU":
        if not np.array_equal(array, value):
            raise OverflowError("it does not fit")
    elif array.dtype.kind in "fc" and not np.array_equal(np.isfinite(array), np.isfinite(value)):
        raise OverflowError("it does not fit")


def _check_leaf(array: NDArray[Any], given: NDArray[Any]) -> None:
    """Compare a field with the objects that it was made from."""
    kind = array.dtype.kind
    objects = given.ravel().tolist() if given.dtype == object else [given]
    if kind in "iub" and not all(isinstance(x, (int, np.integer, np.bool_)) for x in objects):
        raise TypeError("it is not a whole number")
    if kind in "iu" and any(a != x for a, x in zip(array.ravel().tolist(), objects, strict=True)):
        raise OverflowError(f"out of bounds for {array.dtype}")  # NumPy before 2 keeps the lowest bits
    if kind in "fc" and not all(isinstance(x, (Number, np.number, np.bool_)) for x in objects):
        raise TypeError("it is not a number")
    if kind == "f" and not all(np.isfinite(a) or not np.isfinite(float(x))
                               for a, x in zip(array.ravel().tolist(), objects, strict=True)):  # fmt: skip
        raise OverflowError("it does not fit")
    if kind in "SU" and any(len(x) > array.dtype.itemsize // (1 if kind == "S" else 4) for x in objects):
        raise OverflowError("it does not fit")
