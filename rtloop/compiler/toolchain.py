"""Cython and the C compiler with which a .pyx is compiled, and the options that they get."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from typing import NamedTuple

from rtloop.compiler.c_compiler import CCompiler, find_compiler, missing_header
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
#: Environment variables that a compiler reads.
_VARIABLES = ("CPPFLAGS", "CFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH")


class Toolchain(NamedTuple):
    """Cython's version and the C compiler, which are part of a cached module's key."""

    cython: str
    compiler: CCompiler

    @property
    def identity(self) -> list[str]:
        """Everything besides its own files that a module depends on."""
        flags = [os.environ.get(name, "") for name in _VARIABLES]
        python = [sys.version, str(sysconfig.get_config_var("EXT_SUFFIX")), sysconfig.get_path("include")]
        return [self.cython, *self.compiler.command, self.compiler.version, *flags, *python, *FLAGS, *LINK_FLAGS]


def find_toolchain(*, is_cpp: bool = False) -> Toolchain:
    """Find Cython and a compiler.

    Raises
    ------
    BuildError
        If one is missing, or Python's headers are, with the installation.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        python()  # which runs Cython
    except RtloopError as error:
        raise BuildError(f"a .pyx cannot be compiled here: {error}") from None
    try:
        cython = version("Cython")
    except PackageNotFoundError:
        raise BuildError(
            f"Cython is not installed for {sys.executable}; fix: {sys.executable} -m pip install 'rtloop[build]'"
        ) from None
    if tuple(map(int, re.findall(r"\d+", cython)[:2])) < (3, 1):
        raise BuildError(f"Cython {cython} is too old; fix: {sys.executable} -m pip install 'cython>=3.1,<4'")
    found = find_compiler(is_cpp=is_cpp)
    if missing := missing_header():
        raise BuildError(missing)
    return Toolchain(cython, found)
