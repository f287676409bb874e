"""Sliders for parameters in a notebook: what the user moves is set, and what is refused is shown. Without a browser."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import PyLoop

ipywidgets = pytest.importorskip("ipywidgets", reason="the widgets of a notebook: pip install 'rtloop[notebook]'")

FIELDS = [
    ("kp", "f8"),
    ("free", "f8"),
    ("mode", "i4"),
    ("big", "u8"),
    ("on", "?"),
    ("gains", "f8", (3,)),
    ("wide", "f8"),
]
LIMITS = {
    "kp": (0, 50, "V/rad"), "free": (0, None), "mode": (0, 3), "big": (None, None), "on": (None, None),
    "gains": (-1, 1), "wide": (-1e308, 1e308),
}  # fmt: skip


@pytest.fixture
def loop(ordinary: dict[str, Any]) -> PyLoop:
    data = np.zeros((), FIELDS)
    return PyLoop(lambda cycle: None, "1ms", name="motor", data=data, parameters=LIMITS, **ordinary)


def rows(box: Any) -> dict[str, Any]:
    """The widgets by name."""
    return {row.children[0].description: row.children[0] for row in box.children[:-1]}


def test_each_type_has_its_widget_and_sets_its_parameter(loop: PyLoop) -> None:
    box = loop.parameters.sliders()
    found = rows(box)
    kinds = {name: type(widget).__name__ for name, widget in found.items()}
    assert kinds == {
        "kp": "FloatSlider", "free": "FloatText", "mode": "IntSlider", "big": "Text", "on": "Checkbox",
        "gains": "Text", "wide": "FloatText",
    }  # fmt: skip
    assert (found["kp"].min, found["kp"].max, found["kp"].step) == (0, 50, 0.1)
    assert [row.children[1].value for row in box.children[:2]] == ["V/rad", "at least 0"]
    moved = {"kp": 12.5, "free": 7.0, "mode": 2, "big": "18446744073709551615", "on": True, "gains": "[0.5, 0, -1]"}
    for name, value in moved.items():
        found[name].value = value
    assert loop.parameters["gains"].tolist() == [0.5, 0, -1]
    values = {name: loop.parameters[name] for name in moved if name != "gains"}
    assert values == {"kp": 12.5, "free": 7, "mode": 2, "big": 2**64 - 1, "on": True}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("free", -1.0, "free=-1.0 is below its limit"), ("gains", "[2, 0, 0]", "outside"), ("big", "x", "Expecting value"),
     ("gains", "[1]", "shape"), ("free", float("nan"), "not finite")],
)  # fmt: skip
def test_what_is_refused_is_shown_and_the_widget_returns(loop: PyLoop, name: str, value: Any, words: str) -> None:
    box = loop.parameters.sliders(name)
    (widget,) = rows(box).values()
    before, message = widget.value, box.children[-1].children[1]
    widget.value = value
    assert words in message.value and widget.value == before
    widget.value = {"free": 3.0, "big": "3", "gains": "[0, 0, 1]"}[name]
    assert message.value == "" and np.asarray(loop.parameters[name]).ravel()[-1] in (1, 3)


def test_read_again_shows_what_others_have_set_and_sets_nothing(loop: PyLoop) -> None:
    box = loop.parameters.sliders("kp", "gains")
    loop.parameters.update(kp=3, gains=[0, 0, 0.25])
    button = box.children[-1].children[0]
    button.click()
    assert [widget.value for widget in rows(box).values()] == [3, "[0.0, 0.0, 0.25]"]


def test_a_group_and_an_unknown_name(loop: PyLoop) -> None:
    group = rtloop.LoopGroup([loop])
    (widget,) = rows(group.parameters.sliders("motor.kp")).values()
    widget.value = 4
    assert loop.parameters["kp"] == 4
    for parameters, name in ((loop.parameters, "x"), (group.parameters, "motor.x")):
        with pytest.raises(KeyError, match="x"):
            parameters.sliders(name)


def test_without_ipywidgets_the_error_names_the_extra(loop: PyLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"rtloop\[notebook\]"):
        loop.parameters.sliders()
