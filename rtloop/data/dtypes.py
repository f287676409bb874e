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
        raise ConfigError(
            f"dtype={dtype!r} is an array of {shape}; make it a struct, [('values', {base.str!r}, {shape})], or where "
            f"a shape is asked for give {base} and the shape"
        )
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
            _check_array(value, dtype)
            with np.errstate(all="ignore"):
                array = np.array(value, dtype, order="C")
            _check_range(array, value)
            return array
        if dtype.names is not None:
            value = _in_order(value, dtype)
        with np.errstate(all="ignore"):  # what has become of it is looked at below
            array = np.array(value, dtype, order="C")
        if dtype.names is not None:
            # The same with the objects themselves, to see what became of them.
            fields: Any = dtype.fields
            given = np.array(value, [(name, object, fields[name][0].shape) for name in dtype.names])
            for name in dtype.names:
                _check_leaf(array[name], given[name])
        else:
            _check_leaf(array, np.array(value, object))
        return array
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{value!r} is no item of {dtype}: {error}") from None


def _in_order(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return the values of a struct in the order of its fields: of a dict that has all of them."""
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
        raise TypeError("a struct is made of a tuple or a dict of its fields")
    return value


def _check_array(value: Any, dtype: np.dtype[Any]) -> None:
    if value.dtype.names != dtype.names:
        raise TypeError(f"its fields are {value.dtype.names}, in this order")
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise TypeError(f"{value.dtype} does not become it by itself; convert it: astype()")


def _check_range(array: NDArray[Any], value: Any) -> None:
    """Refuse what has become another value; digits of a float may go."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            _check_range(array[name], np.asarray(value[name]))
    elif array.dtype.kind in "iub" or array.dtype.kind in "SU":
        if not np.array_equal(array, value):
            raise OverflowError("it does not fit")
    elif array.dtype.kind in "fc" and not np.array_equal(np.isfinite(array), np.isfinite(value)):
        raise OverflowError("it does not fit")


def _check_leaf(array: NDArray[Any], given: NDArray[Any]) -> None:
    """Compare a field with the objects that were given for it."""
    kind = array.dtype.kind
    objects = given.ravel().tolist() if given.dtype == object else [given]
    if kind in "iub" and not all(isinstance(x, (int, np.integer, np.bool_)) for x in objects):
        raise TypeError("it is no whole number")
    if kind in "fc" and not all(isinstance(x, (int, float, complex, np.number, np.bool_)) for x in objects):
        raise TypeError("it is no number")
    if kind == "f" and not all(np.isfinite(a) or not np.isfinite(float(x))
                               for a, x in zip(array.ravel().tolist(), objects, strict=True)):  # fmt: skip
        raise OverflowError("it does not fit")
    if kind in "SU" and any(len(x) > array.dtype.itemsize // (1 if kind == "S" else 4) for x in objects):
        raise OverflowError("it does not fit")
