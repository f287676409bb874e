"""Cython and the C compiler with which a .pyx is compiled, and the options that they get."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
from contextlib import suppress
from typing import NamedTuple

from rtloop.compiler.c_compiler import CCompiler, find_command, find_compiler, identify, missing_header
from rtloop.errors import BuildError, RtloopError
from rtloop.process.interpreter import python

__all__ = ["DIRECTIVES", "FLAGS", "LINK_FLAGS", "Toolchain", "find_toolchain"]

#: A check in a step would take the GIL to raise, and importing a module that does not declare itself compatible would
#: switch on the GIL of a free-threaded Python. A comment in the file, `# cython: ...`, takes precedence.
DIRECTIVES = {
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,
}
#: Line numbers serve debuggers and guards, which report a violation's line in the .pyx. No aliasing by type, because a
#: struct that Cython declares and that of a header are the same bytes under two names.
FLAGS = ("-O3", "-g1", "-DNDEBUG", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-pthread", "-w")
#: Symbols are bound at load time; otherwise the first call runs the dynamic linker, and faults, in a cycle.
LINK_FLAGS = ("-shared", "-Wl,-z,now", "-Wl,-z,relro")
#: Folder with the metadata of an installed Cython.
_INSTALLED = re.compile(r"cython-(\d[^-]*)\.dist-info", re.IGNORECASE)
#: Environment variables that a compiler reads.
_VARIABLES = ("CPPFLAGS", "CFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH")


class Toolchain(NamedTuple):
    """Cython's version and the C compiler, which are part of a cached module's key.

    Attributes
    ----------
    cython : str
        Version of Cython.
    command : tuple of str
        The compiler, and the arguments that every call begins with.
    compiler : str
        What tells this compiler from another one, as :func:`rtloop.compiler.c_compiler.identify` returns it.
    is_cpp : bool
        True for a compiler of C++.
    """

    cython: str
    command: tuple[str, ...]
    compiler: str
    is_cpp: bool

    def find_compiler(self) -> CCompiler:
        """Return the compiler after it has been asked for its version; raise BuildError if it does not work."""
        return find_compiler(is_cpp=self.is_cpp)

    @property
    def identity(self) -> list[str]:
        """Everything besides its own files that a module depends on."""
        flags = [os.environ.get(name, "") for name in _VARIABLES]
        python = [sys.version, str(sysconfig.get_config_var("EXT_SUFFIX")), sysconfig.get_path("include")]
        return [self.cython, *self.command, self.compiler, *flags, *python, *FLAGS, *LINK_FLAGS]


def find_toolchain(*, is_cpp: bool = False) -> Toolchain:
    """Find Cython and a compiler.

    Raises
    ------
    BuildError
        If one is missing, or Python's headers are, with the installation.
    """
    try:
        python()  # which runs Cython
    except RtloopError as error:
        raise BuildError(f"a .pyx cannot be compiled here: {error}") from None
    cython = _cython_version()
    if not cython:
        raise BuildError(
            f"Cython is not installed for {sys.executable}; fix: {sys.executable} -m pip install 'rtloop[build]'"
        )
    if tuple(map(int, re.findall(r"\d+", cython)[:2])) < (3, 1):
        raise BuildError(f"Cython {cython} is too old; fix: {sys.executable} -m pip install 'cython>=3.1,<4'")
    command = find_command(is_cpp=is_cpp)
    compiler = identify(command) if command else find_compiler(is_cpp=is_cpp).version  # which raises
    if missing := missing_header():
        raise BuildError(missing)
    return Toolchain(cython, command, compiler, is_cpp)


def _cython_version() -> str:
    """Return the version of the installed Cython; empty if there is none."""
    spec = importlib.util.find_spec("Cython")
    if spec is not None and spec.origin:
        with suppress(OSError):
            names = os.listdir(os.path.dirname(os.path.dirname(spec.origin)))
            found = [match[1] for match in map(_INSTALLED.fullmatch, names) if match]
            if len(found) == 1:
                return found[0]
    from importlib.metadata import PackageNotFoundError, version  # takes 14 ms to import

    try:
        return version("Cython")
    except PackageNotFoundError:
        return ""
