"""Conventions of all compiled classes: public names, versioned interfaces, no copies, one initialisation."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest

import rtloop

CLASSES = {
    "data.buffer": (rtloop.HugeBuffer, (4096,), {"backing": "pages"}),
    "data.latest": (rtloop.Latest, ("f8",), {}),
    "data.pool": (rtloop.Pool, (64, 4), {}),
    "data.ring": (rtloop.Ring, ("f8", 4), {}),
    "data.signals": (rtloop.SignalLog, (), {}),
    "loop.loop": (rtloop.RTLoop, ("1ms",), {}),
}
every_class = pytest.mark.parametrize(
    ("module", "kind", "arguments", "keywords"),
    [pytest.param(module, *of, id=of[0].__name__) for module, of in CLASSES.items()],
)
pytestmark = pytest.mark.filterwarnings("ignore::rtloop.RTSetupWarning")


@every_class
def test_a_class_is_known_by_the_name_that_its_users_import(
    module: str, kind: Any, arguments: Any, keywords: Any
) -> None:
    assert kind.__module__ == "rtloop" and getattr(rtloop, kind.__name__) is kind
    assert str(kind) == f"<class 'rtloop.{kind.__name__}'>"


@every_class
def test_an_object_is_neither_copied_nor_pickled(module: str, kind: Any, arguments: Any, keywords: Any) -> None:
    made = kind(*arguments, **keywords)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=f"{kind.__name__} cannot be pickled or copied, because it is a? ?"):
            duplicate(made)


@every_class
def test_a_subclass_has_its_own_name_in_the_refusal(module: str, kind: Any, arguments: Any, keywords: Any) -> None:
    class Derived(kind):
        pass

    with pytest.raises(TypeError, match="Derived cannot be pickled"):
        pickle.dumps(Derived(*arguments, **keywords))


@every_class
def test_another_interface_is_refused_and_other_names_are_unknown(
    module: str, kind: Any, arguments: Any, keywords: Any
) -> None:
    home = importlib.import_module(f"rtloop.{module}")
    text = f"interface 99 of rtloop's {kind.__name__}, and the installed rtloop has interface [0-9]+: recompile"
    with pytest.raises(ImportError, match=text):
        getattr(home, f"_{kind.__name__}_99")
    for name in ("nonsense", f"_{kind.__name__}_", f"_{kind.__name__}_1x"):
        with pytest.raises(AttributeError, match=f"module 'rtloop.{module}' has no attribute '{name}'"):
            getattr(home, name)
