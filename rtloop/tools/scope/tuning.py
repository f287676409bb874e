"""Tuning: parameters of a watched loop as the page shows them, changed in sets that can be undone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from rtloop.errors import ConfigError
from rtloop.live.value_text import plain_value
from rtloop.tools.parameters import parse_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtloop.live.parameters import Parameters

__all__ = ["Tuning", "describe_parameters", "plain", "present_values"]

#: Changes that can be undone.
_MOST_UNDONE = 200


def describe_parameters(parameters: Parameters) -> list[dict[str, Any]]:
    """Return name, type, shape, limits and unit of each parameter."""
    found = []
    for name, one in parameters.declared.items():
        kind = {"b": "bool", "f": "float"}.get(one.dtype.kind, "int")
        found.append(
            {
                "name": name,
                "type": kind,
                "shape": list(one.shape),
                "low": one.low,
                "high": one.high,
                "unit": one.unit,
            }
        )
    return found


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: an array as a list, and an integer that a browser would round as a text."""
    value = plain_value(value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, int) and abs(value) > 1 << 53:
        return str(value)
    return value if not isinstance(value, float) or math.isfinite(value) else None


def present_values(parameters: Parameters) -> dict[str, Any]:
    """Return the values that were set last, as JSON holds them."""
    return {name: plain(parameters[name]) for name in parameters}


class Tuning:
    """Changes of a loop's parameters that one page has made."""

    def __init__(self) -> None:
        self._undo: list[tuple[str | None, dict[str, Any]]] = []

    def __len__(self) -> int:
        return len(self._undo)

    def change(self, parameters: Parameters, values: Mapping[str, Any], gesture: str | None = None) -> None:
        """Set several parameters before the same step.

        Parameters
        ----------
        parameters : Parameters
            Those of the loop.
        values : mapping
            Name to value: a number, a bool, a list, or any of them as a text.
        gesture : str, optional
            Changes of the same gesture, such as the drag of a slider, are undone together.

        Raises
        ------
        KeyError, ConfigError, StateError
            As `Parameters.update`; nothing is changed then.
        """
        parsed = {name: self._parse(parameters, name, value) for name, value in values.items()}
        before = {name: parameters[name] for name in parsed}
        parameters.update(parsed)
        if gesture is not None and self._undo and self._undo[-1][0] == gesture:
            self._undo[-1] = gesture, {**before, **self._undo[-1][1]}
        else:
            self._undo.append((gesture, before))
            del self._undo[:-_MOST_UNDONE]

    @staticmethod
    def _parse(parameters: Parameters, name: str, value: Any) -> Any:
        declared = parameters.declared.get(name)
        if declared is None or not isinstance(value, str):
            return value
        try:
            return parse_value(declared, value.strip())
        except click.BadParameter as error:
            raise ConfigError(error.message) from None

    def undo(self, parameters: Parameters) -> dict[str, Any]:
        """Set what the last change replaced, and return it; an empty dict if there is none.

        Raises
        ------
        StateError, ConfigError, KeyError
            As `Parameters.update`; the change can still be undone then.
        """
        if not self._undo:
            return {}
        values = self._undo[-1][1]
        parameters.update(values)
        del self._undo[-1]
        return {name: plain(value) for name, value in values.items()}
