"""The C compiler of this machine: the system's, or the one of the Python package ziglang."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from rtloop.compiler.cache import private_cache
from rtloop.errors import BuildError
from rtloop.process.environment import copy_environment
from rtloop.system.fixes import compiler_fix, headers_fix

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CCompiler",
    "as_started",
    "ask_version",
    "cache_variables",
    "describe_command",
    "find_command",
    "find_compiler",
    "identify",
    "missing_header",
    "project_variables",
]

#: Programs that are looked for, in this order; the package ziglang comes last.
_NAMES = {False: ("cc", "gcc", "clang"), True: ("c++", "g++", "clang++")}
#: Zig compiles for the CPU of this machine by default, so that a module of a shared cache could not run on another
#: machine, and products and sums would be fused, with other results than gcc's. Checks of undefined behaviour, its
#: default at -O0, would end the process.
_ZIG_FLAGS = ("-mcpu=baseline", "-fno-sanitize=undefined")
#: Programs that start the compiler named after them, as in `ccache gcc`.
_LAUNCHERS = ("buildcache", "ccache", "distcc", "icecc", "sccache")


#: Programs that are the compiler themselves, and not a script or a launcher that may call another one.
_DRIVER = re.compile(r"(.+-)?(gcc|g\+\+|clang|clang\+\+)(-[\d.]+)?")
_ELF = b"\x7fELF"


class CCompiler(NamedTuple):
    """A compiler that was found.

    Attributes
    ----------
    command : tuple of str
        The program, and the arguments that every call begins with.
    version : str
        Everything that it prints about its version.
    label : str
        Its name and version for people, such as ``"gcc 14.2.0"`` or ``"zig cc 0.17.1"``.
    """

    command: tuple[str, ...]
    version: str
    label: str


def find_command(*, is_cpp: bool = False) -> tuple[str, ...]:
    """Return the command of the C or C++ compiler; empty if there is none.

    The first of these is taken: ``CC`` (``CXX``) if it is set, the compiler that Python was built with, cc, gcc, clang
    (c++, g++, clang++), and zig of the Python package ziglang, which the extra ``rtloop[compiler]`` installs.
    """
    variable = "CXX" if is_cpp else "CC"
    if asked := os.environ.get(variable, ""):
        command: list[str] = []
        with suppress(ValueError):  # a quotation that does not end
            command = shlex.split(asked)
        return tuple(command) if command and shutil.which(command[0]) else ()
    of_python = _programs(str(sysconfig.get_config_var(variable) or ""))
    for programs in (of_python, *((name,) for name in _NAMES[is_cpp])):
        if programs and all(map(shutil.which, programs)):
            return programs
    zig = _find_zig()
    return (zig, "c++" if is_cpp else "cc", *_ZIG_FLAGS) if zig else ()


def _programs(command: str) -> tuple[str, ...]:
    """Return the compiler that Python was built with, after its launcher, such as ccache, if it has one.

    Python's own flags, such as those of a profiling build, do not fit other modules.
    """
    words = shlex.split(command)
    count = 2 if words and os.path.basename(words[0]) in _LAUNCHERS else 1
    return tuple(words[:count]) if len(words) >= count else ()


def find_compiler(*, is_cpp: bool = False) -> CCompiler:
    """Find the C or C++ compiler, and ask for its version.

    Raises
    ------
    BuildError
        If there is none, or it does not work, with the fix.
    """
    command = find_command(is_cpp=is_cpp)
    if command:
        version = ask_version(command)
        return CCompiler(command, version, _label(command, version))
    variable = "CXX" if is_cpp else "CC"
    asked = os.environ.get(variable, "")
    what = f"no {'C++' if is_cpp else 'C'} compiler was found"
    names = f"looked for {', '.join(_NAMES[is_cpp])}, and the Python package ziglang"
    looked = f"{variable}={asked!r} is not on the PATH" if asked else names
    fix = f"{shlex.quote(sys.executable)} -m pip install 'rtloop[compiler]', or {compiler_fix(is_cpp=is_cpp)}"
    raise BuildError(f"{what} ({looked}); fix: {fix}, or set {variable} to a compiler")


def identify(command: Sequence[str]) -> str:
    """Return a text that another compiler, or another version of this one, does not have.

    For gcc and clang it is made of their file, because the start of a compiler takes 10 ms. Anything else may call a
    compiler of which its own file says nothing, such as a script or ccache, and is asked for its version.

    Raises
    ------
    BuildError
        If it has to be asked, and cannot be started, or fails.
    """
    path = os.path.realpath(shutil.which(command[0]) or command[0])
    if len(command) == 1 and _DRIVER.fullmatch(os.path.basename(path)):
        with suppress(OSError), open(path, "rb") as file:
            if file.read(len(_ELF)) == _ELF:
                about = os.fstat(file.fileno())
                return f"{path} of {about.st_size} bytes, {about.st_mtime_ns}"
    return ask_version(command)


def missing_header() -> str:
    """Return a sentence with the fix if this Python's C headers are not installed; otherwise an empty text."""
    path = os.path.join(sysconfig.get_path("include"), "Python.h")
    if os.path.exists(path):
        return ""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    fix = headers_fix(version, sys.base_prefix)
    return f"the C headers of Python {version} are not installed ({path} does not exist); fix: {fix}"


def as_started(command: Sequence[str]) -> list[str]:
    """Return a compiler's command with the absolute path of the program.

    It is started in a folder of its own, where a relative path, of ``CC`` or on the ``PATH``, is another one, and gcc
    finds its parts without a ``PATH`` from this path only.
    """
    found = shutil.which(command[0])
    return [os.path.abspath(found) if found else command[0], *command[1:]]


def describe_command(command: Sequence[str]) -> str:
    """Return a compiler's command for people: the path of the program, and what it calls, without options."""
    path = shutil.which(command[0]) or command[0]
    return " ".join([path, *takewhile(lambda word: not word.startswith("-"), command[1:])])


def project_variables() -> dict[str, str]:
    """Return the environment variables that a build by meson needs to find the compiler; none for the system's."""
    command = find_command()
    if not _is_zig(command):
        return {}
    return {"CC": shlex.join(command), "AR": shlex.join([command[0], "ar"])}


def cache_variables(command: Sequence[str]) -> dict[str, str]:
    """Return variables for a call of the compiler: a cache for zig that it would not find, such as without ``HOME``.

    It is the user's, or a private one if that cannot be written to.
    """
    if not _is_zig(command) or os.environ.get("ZIG_GLOBAL_CACHE_DIR"):
        return {}
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(base, "zig")
    with suppress(OSError):
        if os.path.isabs(folder):  # a user without an entry in the user database may have no home
            os.makedirs(folder, exist_ok=True)
            if os.access(folder, os.W_OK):
                is_found = os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME")
                return {} if is_found else {"ZIG_GLOBAL_CACHE_DIR": folder}
    (cache,) = private_cache(make=True)
    return {"ZIG_GLOBAL_CACHE_DIR": str(cache.folder / "zig")}


def ask_version(command: Sequence[str]) -> str:
    """Return what a compiler prints about its version.

    Raises
    ------
    BuildError
        If it cannot be started, or fails.
    """
    import subprocess  # here, because `rtloop run` of a compiled file has to be quick

    try:
        environment = copy_environment() | cache_variables(command)
        done = subprocess.run(
            [*as_started(command), "--version"], env=environment, capture_output=True, encoding="utf-8",
            errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"the compiler {shlex.join(command)} cannot be started: {error.strerror}") from None
    if done.returncode:
        raise BuildError(f"the compiler {shlex.join(command)} does not work: {(done.stderr or done.stdout).strip()}")
    return f"{done.stdout}{_zig_version()}" if _is_zig(command) else done.stdout


def _find_zig() -> str:
    """Return the path of zig in the Python package ziglang; empty if that is not installed."""
    from importlib.util import find_spec

    spec = find_spec("ziglang")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    paths = [os.path.join(folder, "zig") for folder in folders]
    return next((path for path in paths if shutil.which(path)), "")


def _is_zig(command: Sequence[str]) -> bool:
    return os.path.basename(command[0]) == "zig" if command else False


def _zig_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    with suppress(PackageNotFoundError):
        return version("ziglang")
    return ""


def _label(command: Sequence[str], version: str) -> str:
    if _is_zig(command):
        return " ".join(filter(None, ("zig", command[1], _zig_version())))
    number = re.search(r"\b\d+\.\d+(\.\d+)?", re.sub(r"\(.*?\)", "", version.partition("\n")[0]))
    kind = "clang" if "clang" in version else "gcc" if "Free Software Foundation" in version else ""
    return " ".join(filter(None, (kind or os.path.basename(command[0]), number[0] if number else "")))
