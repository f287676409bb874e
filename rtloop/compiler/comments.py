"""Comments ``# distutils:`` at the head of a .pyx or .pxd, read as Cython's own tools read them.

One more comment is rtloop's own: ``# rtloop: packages = mujoco`` names Python packages whose headers and libraries the
file uses.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import NamedTuple

from rtloop.compiler.diagnostics import Diagnostic, format_errors
from rtloop.errors import BuildError

__all__ = ["Extras", "read_extras", "rpath"]

#: Comments that hold a list, with the option of the compiler or linker for each item.
_LISTS = {
    "sources": "", "include_dirs": "", "define_macros": "-D", "undef_macros": "-U", "extra_compile_args": "",
    "extra_objects": "", "library_dirs": "-L", "runtime_library_dirs": "", "libraries": "-l", "extra_link_args": "",
}  # fmt: skip
_OF_FILES = ("sources", "include_dirs", "extra_objects", "library_dirs", "runtime_library_dirs")
#: Comments that a .pxd passes on to the modules that cimport it.
_TRANSITIVE = ("include_dirs", "library_dirs", "runtime_library_dirs", "libraries", "extra_compile_args",
               "extra_link_args")  # fmt: skip
#: Comments without an effect here: dependencies are found by themselves, and the others are for other systems.
_IGNORED = ("depends", "export_symbols")
_ITEM = re.compile(r"""(?:"[^"]*"|'[^']*'|[^"'\s])+""")
_ITEM_IN_BRACKETS = re.compile(r"""(?:"[^"]*"|'[^']*'|[^"',])+""")


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
    packages : tuple of str
        Python packages whose headers and libraries are used.
    """

    is_cpp: bool
    include: tuple[str, ...]
    flags: tuple[str, ...]
    sources: tuple[str, ...]
    libraries: tuple[str, ...]
    packages: tuple[str, ...] = ()

    def with_transitive(self, other: Extras) -> Extras:
        """Add what a cimported .pxd passes on."""
        return Extras(
            self.is_cpp,
            tuple(dict.fromkeys(self.include + other.include)),
            self.flags + tuple(flag for flag in other.flags if flag not in self.flags),
            self.sources,
            self.libraries + tuple(one for one in other.libraries if one not in self.libraries),
            tuple(dict.fromkeys(self.packages + other.packages)),
        )


def rpath(folder: str) -> tuple[str, ...]:
    """Return the linker's arguments for a folder that libraries are found in at run time; it may have commas."""
    return ("-Xlinker", "-rpath", "-Xlinker", folder)


def read_extras(source: Path, *, is_transitive: bool = False) -> Extras:
    """Read the `# distutils:` comments before the first line of code, or of a .pxd only those that it passes on.

    As in Cython's own tools a list is separated by blanks, or in brackets by commas; an item with blanks is quoted; a
    comma outside brackets belongs to its item, as in ``-Wl,-rpath,DIR``; and the last comment of a name counts.
    A source may be a pattern, such as ``generated/*.c``, or ``generated/**/*.c``, which includes subfolders.

    Raises
    ------
    BuildError
        If one cannot be understood.
    """
    found: dict[str, list[str]] = {name: [] for name in _LISTS}
    language = "c"
    packages: list[str] = []
    with source.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                break
            named = re.match(r"\s*#\s*rtloop\s*:\s*packages\s*=(.*)", line)
            if named is not None:
                packages = _items(source, number, "packages", named[1].strip())
            match = re.match(r"\s*#\s*distutils\s*:\s*(\w+)\s*=(.*)", line)
            if match is None or match[1] in _IGNORED:
                continue
            name, value = match[1], match[2].strip()
            if name == "language":
                language = value.lower()
                if language not in ("c", "c++"):
                    text = f"# distutils: language = {value} is not supported"
                    raise _broken(source, number, text, "use c or c++")
            elif name not in _LISTS:
                text = f"# distutils: {name} is not supported"
                raise _broken(source, number, text, f"the supported names are language, {', '.join(_LISTS)}")
            elif not is_transitive or name in _TRANSITIVE:
                found[name] = _items(source, number, name, value)
    of_linker = [f"{_LISTS[name]}{item}" for name in ("extra_objects", "library_dirs") for item in found[name]]
    of_linker += [argument for folder in found["runtime_library_dirs"] for argument in rpath(folder)]
    of_linker += [f"-l{item}" for item in found["libraries"]] + found["extra_link_args"]
    return Extras(
        language == "c++",
        tuple(found["include_dirs"]),
        tuple(
            f"{_LISTS[name]}{item}"
            for name in ("define_macros", "undef_macros", "extra_compile_args")
            for item in found[name]
        ),
        tuple(found["sources"]),
        tuple(of_linker),
        tuple(packages),
    )


def _items(source: Path, number: int, name: str, value: str) -> list[str]:
    is_bracketed = value.startswith("[") and value.endswith("]")
    text = value[1:-1] if is_bracketed else value
    if re.sub(r"""("[^"]*"|'[^']*')""", "", text).count('"') + re.sub(r"""("[^"]*"|'[^']*')""", "", text).count("'"):
        raise _broken(source, number, "No closing quotation", "put both quotes, or none: # distutils: libraries = m")
    words = (_ITEM_IN_BRACKETS if is_bracketed else _ITEM).findall(text)
    items = [re.sub(r"""(["'])(.*?)\1""", r"\2", word.strip()) for word in words if word.strip()]
    if name in ("libraries", "library_dirs", "include_dirs", "sources", "packages") and not is_bracketed:
        wrong = next((item for item in items if item.endswith(",")), None)
        if wrong is not None:
            text = f"{wrong!r} ends in a comma, which separates items only in brackets"
            kind = "rtloop" if name == "packages" else "distutils"
            raise _broken(source, number, text, f"# {kind}: {name} = {' '.join(x.rstrip(',') for x in items)}")
    if name not in _OF_FILES:
        return items
    # A module lies in the cache, not beside its source: $ORIGIN is the folder of the source.
    folder = str(source.parent)
    paths = [os.path.join(folder, re.sub(r"\$(ORIGIN\b|\{ORIGIN\})", lambda _: folder, item)) for item in items]
    return [file for path in paths for file in _files(source, number, path)] if name == "sources" else paths


def _files(source: Path, number: int, path: str) -> list[str]:
    """Return the files of a pattern, sorted; a path that exists, or has no wildcard, is itself."""
    if not glob.has_magic(path) or os.path.exists(path):
        return [path]
    folder = str(source.parent)  # its own name may have brackets
    pattern = glob.escape(folder) + path[len(folder) :] if path.startswith(f"{folder}{os.sep}") else path
    files = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    if not files:
        raise _broken(source, number, f"no file matches {path}", "generate the files first, or correct the pattern")
    return files


def _broken(source: Path, number: int, text: str, fix: str) -> BuildError:
    diagnostics = (Diagnostic(str(source), number, 0, text, fix),)
    return BuildError(format_errors(source, diagnostics), diagnostics=diagnostics, path=str(source))
