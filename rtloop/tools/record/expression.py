"""Expressions of signals, such as ``abs(error) > 0.1``, evaluated for whole arrays of samples."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import ConfigError
from rtloop.units import show

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Expression"]

_LONGEST = 1000
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "abs": (np.abs, 1), "sqrt": (np.sqrt, 1), "isfinite": (np.isfinite, 1), "min": (np.minimum, 2),
    "max": (np.maximum, 2),
}  # fmt: skip


class Expression:
    """A condition on the fields of a record.

    It is not evaluated by Python: only the operators and functions below exist, so that the text may come from anybody.
    They are ``< <= > >= == !=``, ``and or not``, ``+ - * / % **`` (an exponent is a number of at most 100), numbers,
    ``True False``, the names of fields, ``third[0]`` for an item of an array, and ``abs min max sqrt isfinite``.

    Parameters
    ----------
    text : str
        The condition.
    dtype : numpy.dtype
        Type of the records.
    others : sequence of str, optional
        Names of columns beside the records, such as ``overrun``. If a field has the same name, ``loop.overrun`` is the
        column.

    Raises
    ------
    ConfigError
        If there is anything else in it, or no such field.
    """

    def __init__(self, text: str, dtype: np.dtype[Any], others: Sequence[str] = ()) -> None:
        self.text = text
        self._dtype = dtype
        self._columns: Mapping[str, NDArray[Any]] = {name: np.zeros(1) for name in others}
        if len(text) > _LONGEST:
            raise ConfigError(f"the expression has {len(text)} characters; at most {_LONGEST} are allowed")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{show(text)} is not an expression: {getattr(error, 'msg', error)}") from None
        self.test(np.zeros(1, dtype), self._columns)

    def test(self, records: NDArray[Any], columns: Mapping[str, NDArray[Any]] = MappingProxyType({})) -> NDArray[Any]:
        """Return for each record whether the condition holds. A value that is not a number is never true.

        `columns` are the columns beside the records, by name.
        """
        self._columns = columns
        with np.errstate(all="ignore"):
            try:
                found = np.asarray(self._value(self._tree, records))
                holds: NDArray[np.bool_] = np.broadcast_to((found != 0) & (found == found), (len(records),))
                return holds
            except ConfigError:
                raise
            except RecursionError:
                raise self._refused("it is nested too deeply") from None
            except (TypeError, ValueError, OverflowError) as error:
                raise self._refused(str(error)) from None

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(f"{show(self.text)} cannot be used: {why}")

    def _value(self, node: ast.AST, records: NDArray[Any]) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            return np.float64(node.value)
        if isinstance(node, ast.Name):
            return self._field(node.id, records)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "loop":
            if node.attr in self._columns:
                return self._columns[node.attr]
            raise self._refused(f"there is no event {node.attr}; there are {', '.join(self._columns)}")
        if isinstance(node, ast.Subscript):
            return self._item(node, records)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.UAdd)):
            value = self._value(node.operand, records)
            return np.equal(value, 0) if isinstance(node.op, ast.Not) else _OPERATORS[type(node.op)](value)
        if isinstance(node, ast.BoolOp):
            combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            values = [np.not_equal(self._value(part, records), 0) for part in node.values]
            return combine.reduce(np.broadcast_arrays(*values)) if len(values) > 1 else values[0]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            exponent = node.right.value if isinstance(node.right, ast.Constant) else None
            if isinstance(node.op, ast.Pow) and not (isinstance(exponent, (int, float)) and exponent <= 100):
                raise self._refused("an exponent must be a number of at most 100")
            return _OPERATORS[type(node.op)](self._value(node.left, records), self._value(node.right, records))
        if isinstance(node, ast.Compare) and all(type(one) in _OPERATORS for one in node.ops):
            sides = [self._value(side, records) for side in (node.left, *node.comparators)]
            if any(np.iscomplexobj(side) for side in sides):
                raise self._refused(f"{ast.unparse(node)} compares complex numbers: compare their abs()")
            found: Any = np.True_
            for number, one in enumerate(node.ops):
                found = np.logical_and(found, _OPERATORS[type(one)](sides[number], sides[number + 1]))
            return found
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            function, count = _FUNCTIONS.get(node.func.id, (None, 0))
            if function is not None and len(node.args) == count:
                return function(*(self._value(argument, records) for argument in node.args))
        raise self._refused(f"{ast.unparse(node)} is not one of the allowed operators and functions")

    def _field(self, name: str, records: NDArray[Any]) -> Any:
        if name not in (self._dtype.names or ()):
            if name in self._columns:
                return self._columns[name]
            known = ", ".join(self._dtype.names or ())
            events = f", and the events {', '.join(self._columns)}" if self._columns else ""
            raise self._refused(f"there is no signal {name}; there are {known}{events}")
        if records[name].ndim != 1:
            raise self._refused(f"{name} is an array: choose an item, such as {name}[0]")
        return _as_float(records[name])

    def _item(self, node: ast.Subscript, records: NDArray[Any]) -> Any:
        index = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if not isinstance(node.value, ast.Name) or node.value.id not in (self._dtype.names or ()):
            raise self._refused(f"{ast.unparse(node)} is not an item of a signal")
        numbers = [one.value for one in index if isinstance(one, ast.Constant) and type(one.value) is int]
        field = records[node.value.id]
        if len(numbers) != len(index) or len(index) != field.ndim - 1:
            if field.ndim == 1:
                raise self._refused(f"{node.value.id} is not an array: leave out the index")
            shape = " x ".join(map(str, field.shape[1:]))
            count = "a whole number" if field.ndim == 2 else f"{field.ndim - 1} whole numbers"
            raise self._refused(f"{ast.unparse(node)}: the index of {shape} items must be {count} from 0 on")
        if any(number >= length for number, length in zip(numbers, field.shape[1:], strict=True)):
            raise self._refused(f"{ast.unparse(node)} is outside of the array")
        where: Any = (slice(None), *numbers)
        return _as_float(field[where])


def _as_float(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as float64, because the difference of two unsigned ones may be negative."""
    return values if values.dtype.kind == "c" else values.astype(np.float64)
