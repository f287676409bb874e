"""Sliders and fields for a loop's parameters in a notebook: widgets of ipywidgets, which is imported only here."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from rtloop.errors import RtloopError
from rtloop.live.value_text import format_limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Protocol

    from rtloop.live.declared_parameters import Parameter

    class Settable(Protocol):
        """Parameters of a loop or a group."""

        @property
        def declared(self) -> Mapping[str, Parameter]:
            """Type, shape, limits and unit of each."""

        def __getitem__(self, name: str) -> Any: ...

        def __setitem__(self, name: str, value: Any) -> None: ...


__all__ = ["make_sliders"]

#: Steps of a slider from end to end.
_STEPS = 500
#: Whole numbers up to this are exact in a browser; larger ones get a text field.
_EXACT = 1 << 53


def make_sliders(parameters: Settable, names: Iterable[str]) -> Any:
    """Return a box of widgets that set parameters as they are moved.

    Raises
    ------
    ImportError
        If ipywidgets is not installed.
    KeyError
        If there is no such parameter.
    """
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError("sliders need ipywidgets: pip install 'rtloop[notebook]'") from error
    values = {name: parameters[name] for name in names}  # whose KeyError lists the names
    message = ipywidgets.Label()
    rows = [_Row(ipywidgets, parameters, name, message) for name in values]
    button = ipywidgets.Button(description="Read again", tooltip="Show what other programs have set")

    def read(_: Any) -> None:
        message.value = ""
        for row in rows:
            row.show()

    button.on_click(read)
    lines = [ipywidgets.HBox([row.widget, ipywidgets.Label(row.note)]) for row in rows]
    return ipywidgets.VBox([*lines, ipywidgets.HBox([button, message])])


class _Row:
    """One parameter: its widget, and what is beside it."""

    def __init__(self, ipywidgets: Any, parameters: Settable, name: str, message: Any) -> None:
        self._parameters, self._name, self._message = parameters, name, message
        self._one = one = parameters.declared[name]
        self._is_own = False  # the widget changes because of the loop, not because of the user
        self._is_text = bool(one.shape) or (one.dtype.kind in "iu" and max(map(abs, one.bounds)) > _EXACT)
        has_both = one.low is not None and one.high is not None
        self.note = " ".join(part for part in (one.unit, "" if has_both else format_limits(one.low, one.high)) if part)
        self.widget = self._make(ipywidgets, has_both and 0 < one.bounds[1] - one.bounds[0] < math.inf)
        self.show()
        self.widget.observe(self._on_change, "value")

    def _make(self, ipywidgets: Any, is_slider: bool) -> Any:
        one = self._one
        look = {"description": self._name, "style": {"description_width": "8em"}, "layout": {"width": "32em"}}
        if self._is_text:
            return ipywidgets.Text(continuous_update=False, **look)
        if one.dtype.kind == "b":
            return ipywidgets.Checkbox(**look)
        kind = "Float" if one.dtype.kind == "f" else "Int"
        if not is_slider:
            return getattr(ipywidgets, f"{kind}Text")(continuous_update=False, **look)
        low, high = one.bounds
        more = {} if kind == "Int" else {"step": _step(float(high) - float(low)), "readout_format": ".4g"}
        return getattr(ipywidgets, f"{kind}Slider")(min=low, max=high, **more, **look)

    def show(self) -> None:
        """Show the value that was set last."""
        value = self._parameters[self._name]
        self._is_own = True
        try:
            self.widget.value = json.dumps(value.tolist() if self._one.shape else value) if self._is_text else value
        finally:
            self._is_own = False

    def _on_change(self, change: dict[str, Any]) -> None:
        if self._is_own:
            return
        self._message.value = ""
        try:
            self._parameters[self._name] = json.loads(change["new"]) if self._is_text else change["new"]
        except (RtloopError, ValueError, OSError) as error:
            self._message.value = str(error)
            self.show()


def _step(span: float) -> float:
    """Return about a 500th of a span, a power of ten times 1, 2 or 5."""
    raw = span / _STEPS
    size = 10.0 ** math.floor(math.log10(raw))
    return next((factor * size for factor in (1, 2, 5) if factor * size >= raw), 10 * size)
