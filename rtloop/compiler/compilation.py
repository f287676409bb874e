"""Compilation of one .pyx, with the C files that it names, into an extension module."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rtloop.compiler.c_compiler import as_started, cache_variables
from rtloop.compiler.comments import Extras, read_extras
from rtloop.compiler.cython_process import run_cython
from rtloop.compiler.diagnostics import Diagnostic, format_errors, read_compiler, read_cython
from rtloop.compiler.packages import add_packages
from rtloop.compiler.plain_paths import Places
from rtloop.compiler.toolchain import DIRECTIVES, FLAGS, LINK_FLAGS, Toolchain
from rtloop.errors import BuildError
from rtloop.layouts import Layouts, find_take_overs, read_layouts
from rtloop.process.environment import copy_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Compiled", "Job", "compile_module"]

#: Arguments of a user that also matter to a compiler that does not link.
_FOR_COMPILER = ("-D", "-U", "-I", "-O", "-f", "-m", "-g", "-std", "-pthread")


class Job(NamedTuple):
    """Order to compile one module.

    Attributes
    ----------
    source : pathlib.Path
        The .pyx.
    name : str
        The module's name.
    folder : pathlib.Path
        An empty folder with a plain path.
    chain : Toolchain
        The compilers.
    extras : Extras
        The options at the head of the source.
    include : sequence of str
        Folders of headers and .pxd files.
    flags : sequence of str
        More arguments of the compiler.
    examine : callable or None
        Called with the C that Cython has generated, before it is compiled.
    """

    source: Path
    name: str
    folder: Path
    chain: Toolchain
    extras: Extras
    include: Sequence[str]
    flags: Sequence[str]
    examine: Callable[[str], None] | None = None


class Compiled(NamedTuple):
    """Result of a compilation.

    Attributes
    ----------
    module : pathlib.Path
        The extension module, or an object.
    inputs : set of str
        Every file that Cython and the compiler read, except those of the system.
    hints : tuple of Diagnostic
        Cython's warnings.
    lost : set of str
        Inputs that Cython or the compiler named and that do not exist under that name.
    layouts : Layouts or None
        The structs of its classes, and its casts of a former step; None for an object file.
    """

    module: Path
    inputs: set[str]
    hints: tuple[Diagnostic, ...]
    lost: set[str]
    layouts: Layouts | None = None


def compile_module(job: Job, keep: Callable[[str, list[str], Callable[[], Compiled]], Compiled]) -> Compiled:
    """Compile a .pyx and the C files that it names.

    Parameters
    ----------
    job : Job
        The order.
    keep : callable
        Returns the object of a further source: called with its path, the compiler's command, and a function that
        compiles it.

    Raises
    ------
    BuildError
        If the code is wrong.
    """
    source, name, chain = job.source, job.name, job.chain
    work = job.folder / "work"
    work.mkdir()
    places = Places(job.folder / "places")
    generated = work / f"{name}.{'cpp' if job.extras.is_cpp else 'c'}"
    folders = [f"-I{places.of_folder(path)}" for path in (*job.include, *job.extras.include)]
    arguments = ["-3", "--line-directives", "-M", "--module-name", name, *(["--cplus"] if job.extras.is_cpp else [])]
    for directive, value in DIRECTIVES.items():
        arguments += ["-X", f"{directive}={value}"]
    done = _call_cython([*arguments, *folders, places.of_file(str(source)), "-o", str(generated)], work, places)
    hints = read_cython(done.stderr, is_error=False)
    if done.returncode:
        errors = read_cython(done.stderr, is_error=True)
        if not errors:
            raise BuildError(f"Cython failed on {source}:\n{_tail(done)}{_advise(done.stderr)}", path=str(source))
        raise BuildError(format_errors(source, errors), diagnostics=errors, path=str(source))
    text = generated.read_text(encoding="utf-8", errors="replace")
    if job.examine is not None:
        job.examine(text)
    read = {path for file in work.glob("*.dep") for path in places.read_dependencies(file, work)}
    extras = job.extras
    for path in sorted(path for path in read if path.endswith(".pxd") and os.path.isfile(path)):
        extras = extras.with_transitive(add_packages(read_extras(Path(path), is_transitive=True), Path(path)))
    module = work / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    headers = [
        f"-I{places.of_folder(folder)}" for folder in (*job.include, *extras.include, *_system_headers(generated))
    ]
    flags = [places.of_flag(flag) for flag in (*_split("CPPFLAGS"), *_split("CFLAGS"), *extras.flags)]
    last = [places.of_flag(flag) for flag in job.flags]
    compiler = [*chain.command, *FLAGS, "-MMD", *flags, *headers]
    of_compiler = [*compiler, *(flag for flag in last if flag.startswith(_FOR_COMPILER))]
    key = [places.real(f"{word}/") for word in of_compiler]
    objects = [keep(file, key, partial(_compile_source, job, file, of_compiler, places)) for file in extras.sources]
    command = [*compiler, "-MF", str(work / "module.d")]  # zig writes none by itself if it links, too
    command += [f"-fdebug-prefix-map={work}={source.parent}", *places.debug_flags(), str(generated)]
    command += [*(str(one.module) for one in objects), "-o", str(module), *LINK_FLAGS, *_split("LDFLAGS")]
    _compile([*command, *extras.libraries, *last], source, work, places)
    for file in work.glob("*.d"):
        read |= places.read_dependencies(file, work)
    read.add(str(source))
    for one in objects:
        read |= one.inputs | one.lost
    inputs, lost = _sorted_out(read, work)
    inputs |= {path for path in _linked([*extras.libraries, *job.flags]) if os.path.isfile(path)}
    take_overs = find_take_overs(source.read_text(encoding="utf-8", errors="replace"))
    return Compiled(module, inputs, hints, lost, Layouts(name, source.name, read_layouts(text), take_overs))


def _compile_source(job: Job, file: str, compiler: Sequence[str], places: Places) -> Compiled:
    """Compile one of the further sources; a C++ compiler would compile a .c as C++, and mangle its names."""
    work = job.folder / f"object-{len(list(job.folder.iterdir()))}"
    work.mkdir()
    target = work / "further.o"
    language = ["-x", "c"] if job.extras.is_cpp and file.endswith(".c") else []
    command = [*compiler, *language, "-c", places.of_file(file), "-o", str(target)]
    _compile([*command, *places.debug_flags()], job.source, work, places)
    read = {path for one in work.glob("*.d") for path in places.read_dependencies(one, work)}
    inputs, lost = _sorted_out(read | {file}, work)
    return Compiled(target, inputs, (), lost)


def _compile(command: Sequence[str], source: Path, work: Path, places: Places) -> None:
    """Call the compiler; raise what it says."""
    done = _call(command, work, places)
    if done.returncode:
        errors = read_compiler(done.stderr, source)
        if not errors:
            raise BuildError(f"the compiler failed on {source}:\n{_tail(done)}{_advise(done.stderr)}", path=str(source))
        raise BuildError(format_errors(source, errors), diagnostics=errors, path=str(source))


def _sorted_out(read: set[str], work: Path) -> tuple[set[str], set[str]]:
    """Return the inputs that exist, except generated files and Python's headers, and those that do not exist."""
    own = (f"{work}/", f"{sysconfig.get_path('include')}/")
    inputs = {path for path in read if not path.startswith(own)}
    lost = {path for path in inputs if not os.path.isfile(path)}
    return inputs - lost, lost


def _linked(arguments: Sequence[str]) -> set[str]:
    """Return the objects and libraries on a linker's command line, because it does not list what it reads."""
    named = {argument for argument in arguments if os.path.isabs(argument)}
    for folder in (argument[2:] for argument in arguments if argument.startswith("-L/")):
        for library in (argument[2:] for argument in arguments if argument.startswith("-l")):
            exact = library.startswith(":")
            files = [library[1:]] if exact else [f"lib{library}.so", f"lib{library}.a"]
            named |= {f"{folder}/{file}" for file in files}
    return {os.path.normpath(path) for path in named}


def _split(variable: str) -> list[str]:
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError:  # a quotation that does not end, or a backslash at the end
        raise BuildError(f"{variable}={text!r} has a quotation that does not end; fix: end or remove it") from None


def _call_cython(arguments: Sequence[str], folder: Path, places: Places) -> subprocess.CompletedProcess[str]:
    try:
        done = run_cython(arguments, folder, copy_environment(LC_ALL="C", PYTHONIOENCODING="utf-8"))
    except OSError as error:
        raise BuildError(f"Cython cannot be started: {error.strerror}") from None
    done.stdout, done.stderr = places.real(done.stdout), places.real(done.stderr)
    return done


def _call(command: Sequence[str], folder: Path, places: Places) -> subprocess.CompletedProcess[str]:
    environment = copy_environment(LC_ALL="C", PYTHONIOENCODING="utf-8") | cache_variables(command)
    try:
        done = subprocess.run(
            as_started(command), cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error.strerror}") from None
    done.stdout, done.stderr = places.real(done.stdout), places.real(done.stderr)
    return done


def _system_headers(generated: Path) -> list[str]:
    """Return the folders of Python's headers, and of NumPy's if the generated C includes them."""
    folders = [sysconfig.get_path("include")]
    if "numpy/" in generated.read_text(encoding="utf-8", errors="replace"):
        import numpy as np

        folders.append(np.get_include())
    return folders


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
