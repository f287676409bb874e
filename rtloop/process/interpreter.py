"""The Python interpreter of this program, for the child processes that rtloop starts."""

from __future__ import annotations

import os
import sys

from rtloop.errors import RtloopError

__all__ = ["python"]


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
