"""Functions that another process imports: named by "module:function", or pickled by reference."""

from __future__ import annotations

import importlib
import os
import pickle
import runpy
import sys
import types
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

from rtloop.errors import ConfigError
from rtloop.units import show

__all__ = ["MainScript", "check_target", "find_target", "main_script", "pack", "run_main_script"]

_ADVICE = "define it with def at the top level of a module, or give its place: 'module:function'"


class MainScript(NamedTuple):
    """The script of this process: its name as a module (``python -m``) or its path."""

    module: str | None
    path: str | None


def check_target(target: object, keyword: str) -> None:
    """Check that a target names a function, or that it is one that another process can import.

    Raises
    ------
    TypeError
        If it is neither.
    ConfigError
        If no other process can import it.
    """
    if isinstance(target, str):
        module, colon, name = target.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
            raise ConfigError(f"{keyword}={show(target)} must have the form 'module:function'")
    elif not callable(target):
        raise TypeError(f"{keyword}={show(target)} must be a function, or its place as 'module:function'")
    else:
        pack(target, keyword)


def pack(value: object, keyword: str) -> bytes:
    """Pickle a value for another process.

    Raises
    ------
    ConfigError
        If it cannot be pickled, or the other process could not import a function or class that it refers to.
    """
    try:
        data = pickle.dumps(value)
    except Exception as error:
        reason = f"it cannot be pickled: {error}"
        advice = _ADVICE if callable(value) else "pass only objects that can be pickled, and open the rest in setup"
        raise ConfigError(
            f"{keyword}={show(value)} cannot be sent to the loop's process, {reason}; {advice}"
        ) from error
    if b"__main__" in data and main_script() is None:
        raise ConfigError(
            f"{keyword}={show(value)} is defined in an interactive session or on the command line, which the loop's "
            f"process cannot import; {_ADVICE}"
        )
    return data


def main_script() -> MainScript | None:
    """Return the script of this process, None if another process cannot run it, as in an interactive session."""
    main = sys.modules["__main__"]
    module = getattr(getattr(main, "__spec__", None), "name", None)
    if module is not None:
        return MainScript(module, None)
    path = getattr(main, "__file__", None)
    if path is None or not os.path.exists(path):
        return None
    return MainScript(None, os.path.abspath(path))


def run_main_script(script: MainScript) -> None:
    """Run the script of the parent as the module ``__mp_main__``, as multiprocessing does, to define its functions."""
    module = types.ModuleType("__mp_main__")
    if script.module is not None:
        content = runpy.run_module(script.module, run_name="__mp_main__", alter_sys=True)
    else:
        assert script.path is not None
        content = runpy.run_path(script.path, run_name="__mp_main__")
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def find_target(target: str | Callable[..., Any], keyword: str) -> Callable[..., Any]:
    """Import the function that a target names.

    Raises
    ------
    ConfigError
        If there is no such module, or it has no such function.
    """
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    try:
        found = reduce(getattr, name.split("."), importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but imports another one that does not
        raise ConfigError(
            f"{keyword}={target!r}: there is no module {error.name!r} on the path of the loop's process, {sys.path}"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{keyword}={target!r}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{keyword}={target!r} is {show(found)}, which is not a function")
    return found
