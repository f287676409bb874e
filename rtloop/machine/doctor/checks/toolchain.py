"""Checks of the tools that build and run loops: Python, Cython, a C compiler."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

from rtloop.compiler.c_compiler import describe_command, find_command
from rtloop.system.checks import Check
from rtloop.system.fixes import compiler_fix, headers_fix

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
    prefix : str
        Folder that Python is installed in.
    """

    python: str
    is_free_threaded: bool
    is_gil_enabled: bool
    is_debug: bool
    cython: str
    compiler: str
    has_headers: bool
    prefix: str = "/usr"


def read_toolchain() -> Toolchain:
    """Examine the Python that runs this."""
    import platform

    try:
        from importlib.metadata import version

        cython = version("Cython")
    except ImportError:
        cython = ""
    command = find_command()
    return Toolchain(
        f"{platform.python_implementation()} {platform.python_version()}",
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        getattr(sys, "_is_gil_enabled", lambda: True)(),
        hasattr(sys, "gettotalrefcount"),
        cython,
        describe_command(command) if command else "",
        os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
        sys.base_prefix,
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
    version = ".".join(found.python.split()[-1].split(".")[:2])
    fixes = [] if found.compiler else [f"{compiler_fix(distribution)}   # or: pip install 'rtloop[compiler]'"]
    fixes += [] if found.has_headers else [headers_fix(version, found.prefix, distribution)]
    yield Check("python", "C compiler", " and ".join(missing), source, "note", why, "\n".join(fixes))


def _python(found: Toolchain) -> Check:
    text = f"{found.python}, {'free-threaded' if found.is_free_threaded else 'with the GIL'}"
    if found.is_free_threaded:
        text += ", GIL on" if found.is_gil_enabled else ", GIL off"
    why = "a compiled step needs no GIL in either build; code that takes it waits for every Python thread"
    if found.is_debug:
        return Check("python", "Python", text + ", a debug build", "sysconfig, sys", "note", why)
    return Check("python", "Python", text, "sysconfig, sys", "ok", why)
