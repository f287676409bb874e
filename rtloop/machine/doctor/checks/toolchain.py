"""Checks of the tools that build and run loops: Python, Cython, a C compiler."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

from rtloop.system.checks import Check

__all__ = ["Toolchain", "examine", "read_toolchain"]


class Toolchain(NamedTuple):
    """Tools to build with.

    Attributes
    ----------
    python : str
        Version and implementation.
    is_free_threaded : bool
        True if it is a build without the GIL.
    is_gil_enabled : bool
        True if the GIL is in use now.
    is_debug : bool
        True if it is a debug build.
    cython : str
        Cython's version; empty if it is missing.
    compiler : str
        The C compiler; empty if it is missing.
    has_headers : bool
        True if Python.h is installed.
    """

    python: str
    is_free_threaded: bool
    is_gil_enabled: bool
    is_debug: bool
    cython: str
    compiler: str
    has_headers: bool


def read_toolchain() -> Toolchain:
    """Examine the Python that runs this."""
    import platform

    try:
        from importlib.metadata import version

        cython = version("Cython")
    except ImportError:
        cython = ""
    compiler = next((path for name in (os.environ.get("CC", ""), "cc", "gcc", "clang")
                     if name and (path := shutil.which(name.split()[0]))), "")  # fmt: skip
    return Toolchain(
        f"{platform.python_implementation()} {platform.python_version()}",
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        getattr(sys, "_is_gil_enabled", lambda: True)(),
        hasattr(sys, "gettotalrefcount"),
        cython,
        compiler,
        os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
    )


def examine(found: Toolchain, distribution: str = "") -> Iterator[Check]:
    """Yield the checks of the tools."""
    yield _python(found)
    why = "a loop's step is written in Cython, and compiled by it"
    source = "importlib.metadata"
    if found.cython:
        old = found.cython.split(".")[0] in ("0", "1", "2")
        fix = "pip install 'cython>=3.1'" if old else ""
        yield Check("python", "Cython", found.cython, source, "warn" if old else "ok", why, fix)
    else:
        yield Check("python", "Cython", "not installed for this Python", source, "note", why, "pip install cython")
    missing = [] if found.compiler else ["no C compiler"]
    missing += [] if found.has_headers else ["no Python.h"]
    why, source = "the C that Cython generates is compiled against Python's headers", "PATH, sysconfig"
    if not missing:
        yield Check("python", "C compiler", f"{found.compiler}, with Python.h", source, "ok", why)
        return
    is_debian = {"debian", "ubuntu"} & set(distribution.split())
    fix = "sudo apt install gcc python3-dev" if is_debian else "install a C compiler and Python's headers"
    yield Check("python", "C compiler", " and ".join(missing), source, "note", why, fix)


def _python(found: Toolchain) -> Check:
    text = f"{found.python}, {'free-threaded' if found.is_free_threaded else 'with the GIL'}"
    if found.is_free_threaded:
        text += ", GIL on" if found.is_gil_enabled else ", GIL off"
    why = "a compiled step needs no GIL in either build; code that takes it waits for every Python thread"
    if found.is_debug:
        return Check("python", "Python", text + ", a debug build", "sysconfig, sys", "note", why)
    return Check("python", "Python", text, "sysconfig, sys", "ok", why)
