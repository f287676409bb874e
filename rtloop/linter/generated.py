"""C that Cython generates for a module, with Cython's remarks."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rtloop.compiler.comments import read_extras
from rtloop.compiler.cython_process import run_cython
from rtloop.compiler.diagnostics import format_errors, read_cython
from rtloop.errors import BuildError, LintError
from rtloop.linter.c_source import Unit, read_unit
from rtloop.process.environment import copy_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Generated", "Remark", "generate", "read_generated", "with_sources"]

_REMARK = re.compile(r"^(performance hint|warning): (.+?):(\d+):\d+: (.*)$", re.MULTILINE)
_CPLUSPLUS = re.compile(r"^#\s*distutils:\s*language\s*=\s*c\+\+\s*$", re.MULTILINE)
_LINE = re.compile(r"^#line .*\n", re.MULTILINE)
_SECONDS = 600


class Remark(NamedTuple):
    """A performance hint or a warning of Cython's."""

    file: str
    line: int
    text: str


class Generated(NamedTuple):
    """Output of Cython.

    Attributes
    ----------
    unit : Unit
        The C.
    headers : list of Unit
        The included headers of the project and of rtloop, and C sources that the module names.
    remarks : list of Remark
        Cython's hints and warnings.
    folders : list of Path
        Folders searched for included and cimported files.
    """

    unit: Unit
    headers: list[Unit]
    remarks: list[Remark]
    folders: list[Path]


def generate(
    source: Path, include: Sequence[str | os.PathLike[str]], directives: Mapping[str, object], name: str = ""
) -> Generated:
    """Run Cython on a module, whose name is by default that of its file and packages.

    Raises
    ------
    LintError
        If the file cannot be read, or Cython does not compile it.
    ModuleNotFoundError
        If Cython is not installed.
    """
    import Cython.Compiler  # noqa: F401 - here for its error: a missing Cython names the extra

    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise LintError(f"{source} cannot be read: {reason}") from None
    folders = _folders(include)
    with tempfile.TemporaryDirectory(prefix="rtloop-lint-") as target:
        out = Path(target, "module.c")
        command = ["-3", str(source), "-o", str(out)]
        command += ["--module-name", name] if name else []
        command += ["--cplus"] if _CPLUSPLUS.search(text) else []
        command += [word for folder in folders for word in ("-I", str(folder))]
        command += [word for name, value in directives.items() for word in ("-X", f"{name}={value}")]
        try:
            done = run_cython(command, os.getcwd(), copy_environment(), _SECONDS)
        except subprocess.TimeoutExpired:
            raise LintError(f"Cython did not finish {source} within {_SECONDS} s") from None
        said = done.stdout + done.stderr
        if done.returncode or not out.exists():
            diagnostics = read_cython(said, is_error=True)
            text = format_errors(source, diagnostics) if diagnostics else f"Cython fails on {source}:\n{_shorten(said)}"
            raise LintError(text)
        text = out.read_text(encoding="utf-8", errors="replace")
    remarks = [Remark(file, int(line), words) for _, file, line, words in _REMARK.findall(said)]
    return read_generated(source, text, include)._replace(remarks=list(dict.fromkeys(remarks)))


def read_generated(source: Path, text: str, include: Sequence[str | os.PathLike[str]]) -> Generated:
    """Read the C that Cython has generated for a module, with or without #line directives; without its remarks."""
    folders = _folders(include)
    unit = read_unit(source, _LINE.sub("", text))
    return Generated(unit, _headers([unit], [source.parent, *folders], source), [], folders)


def with_sources(generated: Generated, source: Path) -> Generated:
    """Add the C files that a module names (``# distutils: sources = FILE.c``), and the headers that these include.

    A file that is missing is left out, and so is a function that several of the files define: it is not known which of
    them is called. Calls of these are then listed as not examined.
    """
    try:
        paths = [Path(path) for path in read_extras(source).sources if path.endswith(".c")]
    except BuildError:  # a file that is still to be generated, or a comment that the build reports
        return generated
    units = [read_unit(path, path.read_text(encoding="utf-8", errors="replace")) for path in paths if path.is_file()]
    counts = Counter(name for unit in units for name in unit.functions)
    for unit in units:
        unit.functions = {name: function for name, function in unit.functions.items() if counts[name] == 1}
    headers = _headers(units, [source.parent, *generated.folders], source)
    known = {unit.path.resolve() for unit in generated.headers}
    more = [unit for unit in headers if unit.path.resolve() not in known]
    return generated._replace(headers=[*units, *more, *generated.headers])


def _folders(include: Sequence[str | os.PathLike[str]]) -> list[Path]:
    from rtloop import get_include

    return [*map(Path, include), Path(get_include()), Path()]


def _shorten(text: str) -> str:
    """Keep the lines that describe the fault: Cython repeats itself, and prints its usage on a wrong command line."""
    lines = text.strip().splitlines()
    return "\n".join(lines if len(lines) <= 40 else [*lines[:36], f"... and {len(lines) - 36} lines more"])


def _headers(units: list[Unit], folders: list[Path], main: Path) -> list[Unit]:
    """Read the included files that are in one of the folders, and those that they include."""
    found: dict[Path, Unit] = {}
    waiting = list(units)
    while waiting:
        one = waiting.pop()
        beside = [one.path.parent] if one.path != main else []
        for name in one.includes:
            for folder in [*beside, *folders]:
                path = Path(os.path.normpath(folder / name))
                if path.is_file() and path.resolve() not in found:
                    found[path.resolve()] = header = read_unit(path, path.read_text(encoding="utf-8", errors="replace"))
                    waiting.append(header)
                if path.is_file():
                    break
    return list(found.values())
