"""Compilers that turn a .pyx into an extension module: finding and calling them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rtloop.compiler.diagnostics import Diagnostic, read_compiler, read_cython, tell
from rtloop.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DIRECTIVES", "Extras", "Toolchain", "compile_module", "find_toolchain", "read_extras"]

#: A check in a step would take the GIL to raise. A comment in the file, `# cython: ...`, takes precedence.
DIRECTIVES = {"boundscheck": False, "wraparound": False, "cdivision": True, "initializedcheck": False}
#: Line numbers serve debuggers and guards, which report a violation's line in the .pyx. No aliasing by type, because a
#: struct that Cython declares and that of a header are the same bytes under two names.
_FLAGS = ("-O3", "-g1", "-DNDEBUG", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-pthread", "-w")
#: Symbols are bound at load time; otherwise the first call runs the dynamic linker, and faults, in a cycle.
_LINK_FLAGS = ("-shared", "-Wl,-z,now", "-Wl,-z,relro")
#: Environment variables that a compiler reads.
_VARIABLES = ("CPPFLAGS", "CFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH")
_NO_COMPILER = "sudo apt install {} python3-dev, or your system's equivalent, or set {} to a compiler"
_LISTS = {
    "libraries": "-l", "library_dirs": "-L", "include_dirs": "-I", "define_macros": "-D", "extra_compile_args": "",
    "extra_link_args": "", "extra_objects": "", "sources": "",
}  # fmt: skip
_OF_FILES = ("library_dirs", "include_dirs", "extra_objects", "sources")


class Extras(NamedTuple):
    """Options from the comments at the head of a .pyx, such as `# distutils: libraries = m`.

    Attributes
    ----------
    is_cpp : bool
        True to compile as C++.
    include : tuple of str
        Folders of headers and of .pxd files.
    flags : tuple of str
        For the compiler, before the sources.
    sources : tuple of str
        More files to compile.
    libraries : tuple of str
        For the linker, after the sources.
    """

    is_cpp: bool = False
    include: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


class Toolchain(NamedTuple):
    """Compilers with their versions, which are part of a cached module's key."""

    cython: str
    compiler: tuple[str, ...]
    compiler_version: str

    @property
    def identity(self) -> list[str]:
        """Everything besides its own files that a module depends on."""
        flags = [os.environ.get(name, "") for name in _VARIABLES]
        python = [sys.version, str(sysconfig.get_config_var("EXT_SUFFIX")), sysconfig.get_path("include")]
        return [self.cython, *self.compiler, self.compiler_version, *flags, *python, *_FLAGS, *_LINK_FLAGS]


def read_extras(source: Path) -> Extras:
    """Read the `# distutils:` comments before the first line of code.

    Raises
    ------
    BuildError
        If one cannot be understood.
    """
    found: dict[str, list[str]] = {name: [] for name in _LISTS}
    language = "c"
    with source.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                break
            match = re.match(r"\s*#\s*distutils\s*:\s*(\w+)\s*=(.*)", line)
            if match is None:
                continue
            name, value = match[1], match[2].strip()
            if name == "language":
                language = value.lower()
                if language not in ("c", "c++"):
                    text = f"# distutils: language = {value} is not known here"
                    raise _broken(source, (Diagnostic(str(source), number, 0, text, "there are c and c++"),))
                continue
            if name == "depends":  # those that matter are found by themselves
                continue
            if name not in _LISTS:
                text = f"# distutils: {name} is not known here"
                fix = f"there are language, {', '.join(_LISTS)}"
                raise _broken(source, (Diagnostic(str(source), number, 0, text, fix),))
            try:
                items = shlex.split(value.strip("[]").replace(",", " "))
            except ValueError as error:
                fix = "put both quotes, or none: # distutils: libraries = m"
                raise _broken(source, (Diagnostic(str(source), number, 0, f"{error}", fix),)) from None
            if name in _OF_FILES:
                items = [str(source.parent / item) for item in items]
            found[name] += [_LISTS[name] + item for item in items]
    return Extras(
        language == "c++",
        tuple(item.removeprefix("-I") for item in found["include_dirs"]),
        tuple(found["define_macros"] + found["extra_compile_args"]),
        tuple(found["sources"]),
        tuple(found["extra_objects"] + found["library_dirs"] + found["libraries"] + found["extra_link_args"]),
    )


def find_toolchain(*, is_cpp: bool = False) -> Toolchain:
    """Find Cython and a compiler.

    Raises
    ------
    BuildError
        If one is missing, with its installation.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        cython = version("Cython")
    except PackageNotFoundError:
        raise BuildError(
            f"Cython is not installed for {sys.executable}; fix: {sys.executable} -m pip install 'rtloop[build]'"
        ) from None
    if int(cython.partition(".")[0]) < 3:
        raise BuildError(f"Cython {cython} is too old; fix: {sys.executable} -m pip install 'cython>=3.1,<4'")
    variable = "CXX" if is_cpp else "CC"
    asked = os.environ.get(variable, "")
    names = [asked] if asked else [str(sysconfig.get_config_var(variable) or "")]
    names += [] if asked else ["c++", "g++", "clang++"] if is_cpp else ["cc", "gcc", "clang"]
    for name in names:
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            # Only the program: Python's own flags, such as those of a profiling build, do not fit other modules.
            command = command if asked else command[:1]
            return Toolchain(cython, tuple(command), _ask_version(command))
    what = f"no {'C++' if is_cpp else 'C'} compiler was found"
    looked = f"{variable}={asked!r} is not on the PATH" if asked else f"looked for {', '.join(filter(None, names[1:]))}"
    raise BuildError(f"{what} ({looked}); fix: {_NO_COMPILER.format('g++' if is_cpp else 'gcc', variable)}")


def _ask_version(command: Sequence[str]) -> str:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"the compiler {shlex.join(command)} cannot be started: {error.strerror}") from None
    if done.returncode:
        raise BuildError(f"the compiler {shlex.join(command)} does not work: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _broken(source: Path, diagnostics: tuple[Diagnostic, ...]) -> BuildError:
    return BuildError(tell(source, diagnostics), diagnostics=diagnostics, path=str(source))


def compile_module(
    source: Path, name: str, folder: Path, chain: Toolchain, extras: Extras, include: Sequence[str], flags: list[str]
) -> tuple[Path, set[str], tuple[Diagnostic, ...]]:
    """Compile a .pyx in `folder`, an empty one.

    Returns
    -------
    module : Path
        The extension module.
    inputs : set of str
        Every file that Cython and the compiler read, except those of the system.
    hints : tuple of Diagnostic
        Cython's warnings.

    Raises
    ------
    BuildError
        If the code is wrong.
    """
    generated = folder / f"{name}.{'cpp' if extras.is_cpp else 'c'}"
    folders = [f"-I{path}" for path in (*include, *extras.include)]
    command = [sys.executable, "-P", "-m", "cython", "-3", "--line-directives", "-M", "--module-name", name]
    command += ["--cplus"] if extras.is_cpp else []
    for directive, value in DIRECTIVES.items():
        command += ["-X", f"{directive}={value}"]
    done = _call([*command, *folders, str(source), "-o", str(generated)], folder)
    hints = read_cython(done.stderr, is_error=False)
    if done.returncode:
        errors = read_cython(done.stderr, is_error=True)
        if not errors:
            raise BuildError(f"Cython failed on {source}:\n{_tail(done)}{_advise(done.stderr)}", path=str(source))
        raise _broken(source, errors)
    module = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [*chain.compiler, *_FLAGS, "-MMD", *_split("CPPFLAGS"), *_split("CFLAGS"), *extras.flags]
    command += [f"-fdebug-prefix-map={folder}={source.parent}"]  # debuggers look for the .pyx
    command += [*folders, f"-I{sysconfig.get_path('include')}", *_numpy_headers(generated), str(generated)]
    command += [*_as_c(extras), "-o", str(module), *_LINK_FLAGS, *_split("LDFLAGS"), *extras.libraries, *flags]
    done = _call(command, folder)
    if done.returncode:
        errors = read_compiler(done.stderr, source)
        if not errors:
            raise BuildError(f"the compiler failed on {source}:\n{_tail(done)}{_advise(done.stderr)}", path=str(source))
        raise _broken(source, errors)
    inputs = {str(source), *extras.sources, *_linked([*extras.libraries, *flags])}
    for file in (*folder.glob("*.d"), *folder.glob("*.dep")):
        inputs |= _read_inputs(file, folder)
    own = {str(folder), sysconfig.get_path("include")}
    read = {path for path in inputs if os.path.isfile(path) and not any(path.startswith(f"{x}/") for x in own)}
    return module, read, hints


def _linked(arguments: Sequence[str]) -> set[str]:
    """Return the objects and libraries on a linker's command line, because it does not list what it reads."""
    named = {argument for argument in arguments if os.path.isabs(argument)}
    for folder in (argument[2:] for argument in arguments if argument.startswith("-L/")):
        for library in (argument[2:] for argument in arguments if argument.startswith("-l")):
            named |= {f"{folder}/lib{library}.so", f"{folder}/lib{library}.a"}
    return {os.path.normpath(path) for path in named}


def _as_c(extras: Extras) -> list[str]:
    """Return the further sources; a C++ compiler would compile a .c as C++, and mangle its names."""
    if not extras.is_cpp:
        return list(extras.sources)
    marked = [["-x", "c", file, "-x", "none"] if file.endswith(".c") else [file] for file in extras.sources]
    return [argument for arguments in marked for argument in arguments]


def _split(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def _call(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
            errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error.strerror}") from None


def _numpy_headers(generated: Path) -> list[str]:
    """Return the flag for NumPy's headers if the generated C includes them."""
    if "numpy/" not in generated.read_text(encoding="utf-8", errors="replace"):
        return []
    import numpy as np

    return [f"-I{np.get_include()}"]


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((done.stderr or done.stdout).strip().splitlines()[-20:])


def _advise(output: str) -> str:
    """Return the fix for a fault of the machine rather than of the code."""
    if "Python.h" in output:
        return "\nfix: sudo apt install python3-dev, or the headers of this Python as your system has them"
    if "No space left" in output:
        import tempfile

        return f"\nfix: make room in {tempfile.gettempdir()}, or set TMPDIR to another folder"
    library = re.search(r"cannot find -l([^\s:]+)", output)
    advice = "\nfix: install the library {}, or name its folder with # distutils: library_dirs = FOLDER"
    return advice.format(library[1]) if library else ""


def _read_inputs(file: Path, folder: Path) -> set[str]:
    """Read a compiler's dependency file for make: ``target: file file ...``, with make's escapes."""
    text = file.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    names = re.findall(r"(?:\\.|\S)+", text.partition(": ")[2])
    plain = (re.sub(r"\\(.)", r"\1", name).replace("$$", "$") for name in names)
    return {os.path.normpath(folder / name) for name in plain}
