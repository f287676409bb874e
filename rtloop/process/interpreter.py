"""The Python interpreter of this program: its path for child processes, and the context of its warnings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from rtloop.errors import RtloopError

__all__ = ["python", "search_path", "with_filters_of_caller"]


def python() -> str:
    """Return the path of the Python interpreter.

    Every child process that runs Python code is started by this path. In a frozen program ``sys.executable`` is the
    program itself, so that a child would be another copy of it, which would start another child, and so on.

    Raises
    ------
    RtloopError
        If this program is frozen (PyInstaller, cx_Freeze, Nuitka), or embeds Python.
    """
    path = sys.executable
    name = os.path.basename(path or "").lower()
    if getattr(sys, "frozen", False):
        why = f"this program is frozen, and sys.executable={path!r} is the program itself"
    elif not path:
        why = "sys.executable is not set, because Python is embedded in another program"
    elif not any(word in f"{name} {os.path.basename(os.path.realpath(path)).lower()}" for word in ("python", "pypy")):
        why = f"sys.executable={path!r} is not a Python interpreter, but a program that embeds one"
    elif not os.path.exists(path):  # not os.access(), which judges by the real user and without capabilities
        why = f"sys.executable={path!r} does not exist"
    else:
        return path
    raise RtloopError(f"a child process needs a Python interpreter, but {why}; fix: do this with an installed Python")


def search_path() -> list[str]:
    """Return ``sys.path`` for a child process: folders only, with the present one by its name unless it was removed."""
    path = [os.fsdecode(entry) for entry in sys.path if isinstance(entry, (str, bytes, os.PathLike))]
    if "" in path:
        try:
            here = [os.getcwd()]
        except FileNotFoundError:
            here = []
        path = [entry for name in path for entry in ([name] if name else here)]
    return path


def with_filters_of_caller(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls the given one with the present warnings filters of the caller, on any thread.

    In a free-threaded Python 3.14 or newer, or with ``-X context_aware_warnings=1``, ``warnings.catch_warnings``
    applies to one context (contextvars), and so not to the threads that rtloop starts. Two threads must not call the
    returned function at the same time.
    """
    if getattr(sys.flags, "context_aware_warnings", False):
        return partial(copy_context().run, function)
    return function
