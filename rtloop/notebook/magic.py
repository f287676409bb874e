"""Jupyter magic ``%%rtloop``: compile a cell of Cython as ``rtloop.build`` does, and add its classes to the notebook.

::

    %load_ext rtloop

    %%rtloop
    from rtloop cimport RTLoop, Cycle, RT_CONTINUE
    cdef class Servo(RTLoop):
        ...

``%rtloop servo.pyx`` does the same with a file. With ``--swap motor`` the class becomes the step of the running loop
`motor`.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shlex
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtloop.compiler.build import Built, build_module
from rtloop.compiler.cache import Cache, cache_folder, private_cache
from rtloop.compiler.cython_process import CythonProcess
from rtloop.compiler.diagnostics import show_diagnostic
from rtloop.errors import BuildError, RtloopError
from rtloop.notebook.swap import Cell, Swapping, cells, find_running
from rtloop.revision.examination import Rejected
from rtloop.units import parse_duration

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

__all__ = ["load_ipython_extension"]

_cython: CythonProcess | None = None


def load_ipython_extension(shell: Any) -> None:
    """Add ``%%rtloop`` and ``%rtloop`` to an IPython shell, when ``%load_ext rtloop`` calls it."""

    def rtloop(line: str, cell: str | None = None) -> None:
        run_magic(shell, line, cell)

    rtloop.__doc__ = _parser().format_help()
    shell.register_magic_function(rtloop, "line_cell")


def _parser() -> argparse.ArgumentParser:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise _usage_error(
                f"%%rtloop: {message}; the options are -f, -I, -L, -l, -c, --package, --name, --swap and --trial, "
                "see %%rtloop?"
            )

    parser = Parser(
        prog="%%rtloop", add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compile the cell with Cython, and put its classes and functions into the notebook.\n"
        "%rtloop FILE.pyx compiles that file. Unchanged code is not compiled again.",
    )  # fmt: skip
    parser.add_argument("file", nargs="?", help="a .pyx, for %%rtloop without a cell")
    parser.add_argument("-f", "--force", action="store_true", help="compile even if nothing has changed")
    parser.add_argument("-I", "--include", action="append", default=[], metavar="FOLDER", help="folder of headers")
    parser.add_argument("-c", "--compile-args", action="append", default=[], metavar="ARGS", help="for the C compiler")
    parser.add_argument(
        "-L",
        "--library-dir",
        action="append",
        default=[],
        dest="lib_dirs",
        metavar="FOLDER",
        help="folder of libraries",
    )
    parser.add_argument("-l", "--lib", action="append", default=[], metavar="NAME", help="a library to link")
    parser.add_argument("--package", action="append", default=[], metavar="NAME", help="a Python package to link with")
    parser.add_argument("--name", help="the module's name")
    parser.add_argument(
        "--swap", metavar="LOOP", help="make the cell's loop class the step of this running loop of the notebook"
    )
    parser.add_argument("--trial", metavar="TIME", help="with --swap: go back if the new step fails in this time")
    return parser


def _usage_error(text: str) -> Exception:
    from IPython.core.error import UsageError

    error: Exception = UsageError(text)
    return error


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a quotation that does not end, or a backslash at the end
        raise _usage_error(f"%%rtloop: {text} has a quotation that does not end") from None


def run_magic(shell: Any, line: str, cell: str | None) -> None:
    """Compile a cell, or the file that the line names, and add its names to the notebook.

    Raises
    ------
    BuildError
        If it does not compile; IPython shows it without a traceback.
    """
    words = _words(line)
    for number in range(len(words) - 1, 0, -1):  # argparse would take a flag after -c for its own option
        if words[number - 1] in ("-c", "--compile-args"):
            words[number - 1 : number + 1] = [f"--compile-args={words[number]}"]
    asked = _parser().parse_args(words)
    if cell is None and asked.file is None:
        raise _usage_error("%rtloop needs a file: %rtloop FILE.pyx, or %%rtloop above a cell of Cython")
    if cell is not None and asked.file is not None:
        raise _usage_error(f"%%rtloop compiles the cell, so it takes no file: remove {asked.file}")
    if asked.trial is not None and asked.swap is None:
        raise _usage_error("--trial is for a swap: add --swap with the name of the running loop")
    options: dict[str, Any] = {
        # The notebook's folder comes first: a cell may cimport the .pxd files in it.
        "include": [*asked.include, os.getcwd()],
        "flags": [flag for text in asked.compile_args for flag in _words(text)],
        "library_dirs": asked.lib_dirs,
        "libraries": asked.lib,
        "packages": asked.package,
        "force": asked.force,
    }
    path = Path(asked.file).resolve() if cell is None else _write_cell(cell)
    name = asked.name if cell is None or asked.name else path.stem

    def build(**checks: Any) -> Built:
        return build_module(asked.file if cell is None else path, name=name, **options, **checks)

    if asked.swap is not None:
        built = _swap(shell, asked, Cell(path, options), build, is_file=cell is None)
    else:
        built = _told(build, None if cell is None else path)
    if built.summary:
        _keep_cython_loaded()
    if cell is not None:
        cells[built.module.__name__] = Cell(path, options)
    _hand_over(built.module, shell)


def _keep_cython_loaded() -> None:
    """Start a process for the notebook that loads Cython while the user edits the next cell, if none is running."""
    global _cython
    if _cython is not None and not _cython.is_running:  # after Ctrl-C, or killed for its memory
        atexit.unregister(_cython.close)
        _cython.close()
        _cython = None
    if _cython is None:
        with suppress(OSError, RtloopError):  # Cython is then started for each cell
            _cython = CythonProcess()
            atexit.register(_cython.close)


def _swap(shell: Any, asked: Any, cell: Cell, build: Any, is_file: bool) -> Built:
    """Build, and make the module's class the step of a running loop. Nothing changes if any of it fails."""
    try:
        loop = find_running(asked.swap, shell.user_ns)
        if asked.trial is not None:
            parse_duration(asked.trial, "trial", minimum=1)
        swapping = Swapping(loop, asked.swap, asked.trial, cell)
    except FileNotFoundError as error:
        raise _usage_error(f"there is no file {error.filename}") from None
    except ValueError as error:
        raise _usage_error(f"--swap {asked.swap}: {error}") from None
    shown = None if is_file else cell.source
    try:
        with swapping.examination as one:
            built = _told(lambda: build(examine=one.begin, check=one.check), shown)
        lines = swapping.finish(built)
    except Rejected as error:
        outcome = f"{asked.swap} goes on with its former step: " if loop.state == "running" else ""
        raise Rejected(error.stage, outcome + _rename(str(error), shown)) from None
    print("\n".join(lines), file=sys.stderr)
    return built


def _write_cell(cell: str) -> Path:
    """Write the cell to a file named after its content, where tracebacks and debuggers find it."""
    name = f"_cell_{hashlib.blake2b(cell.encode(), digest_size=6).hexdigest()}"
    text = "\n" + cell  # lines count from that of %%rtloop, as in the notebook
    for make in (False, True):
        for cache in private_cache(make=True) if make else [Cache(cache_folder(None))]:
            path = cache.folder / "cells" / f"{name}.pyx"
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if cache.why_distrusted(path.parent.name):
                    continue
                if not path.is_file() or path.read_text(encoding="utf-8") != text:
                    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
                        file.write(text)
                    os.replace(file.name, path)
            except OSError:
                continue
            return path
    raise BuildError(f"the cell can be written neither to {cache_folder(None)} nor to {tempfile.gettempdir()}")


def _told(build: Any, cell: Path | None = None) -> Built:
    """Build, and print Cython's warnings and the compiler; name a cell as the user knows it, not as its file."""
    try:
        built: Built = build()
    except BuildError as error:
        raise BuildError(_rename(str(error), cell), diagnostics=error.diagnostics, path=error.path) from None
    except FileNotFoundError as error:
        raise _usage_error(f"there is no file {error.filename}") from None
    hints = (show_diagnostic(hint, "hint: ") for hint in built.hints)
    summary = [built.summary] if built.summary else []
    for text in (*hints, *(f"note: {note}" for note in built.notes), *summary):
        print(_rename(text, cell), file=sys.stderr)
    return built


def _rename(text: str, cell: Path | None) -> str:
    """Name a cell as the user knows it, not as its file."""
    for name in () if cell is None else (os.path.relpath(cell), str(cell), cell.name):
        text = text.replace(name, "cell")
    return text


def _hand_over(module: ModuleType, shell: Any) -> None:
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    shell.push({name: getattr(module, name) for name in names})
