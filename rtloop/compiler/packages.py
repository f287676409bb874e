"""Headers and libraries that an installed Python package brings."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import NamedTuple

from rtloop.compiler.comments import rpath
from rtloop.errors import BuildError

__all__ = ["Package", "find_package"]

_LIBRARY = re.compile(r"lib.+\.(so(\.\d+)*|a)")
_LIBRARY_FOLDERS = ("", "lib", "lib64")
_HEADER_FOLDERS = ("include", os.path.join("_core", "include"), os.path.join("core", "include"))


class Package(NamedTuple):
    """Content of a package for a compiler.

    Attributes
    ----------
    include : tuple of str
        Folders of headers.
    libraries : tuple of str
        Arguments of the linker: the libraries, and their folders for run time.
    """

    include: tuple[str, ...]
    libraries: tuple[str, ...]


def find_package(name: str) -> Package:
    """Return the headers and libraries of a Python package, without importing it.

    Headers are in its folder ``include``, libraries (``lib*.so``, with or without a version, or ``lib*.a``) in its own
    folder or in ``lib``.

    Raises
    ------
    BuildError
        If the package is not installed, or brings neither.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise BuildError(f"the Python package {name!r} is not installed here, or is a single module; fix: install it")
    include = [os.path.join(folder, part) for folder in folders for part in _HEADER_FOLDERS]
    include = [folder for folder in include if os.path.isdir(folder)]
    places = [os.path.join(folder, part) if part else folder for folder in folders for part in _LIBRARY_FOLDERS]
    found: dict[str, list[str]] = {}
    for place in places:
        if os.path.isdir(place):
            files = sorted(file for file in os.listdir(place) if _LIBRARY.fullmatch(file))
            # Of libx.so, libx.so.3 and libx.so.3.2 one is enough: the shortest, which links name first.
            stems = {re.split(r"\.(?:so|a)\b", file)[0]: file for file in sorted(files, key=len, reverse=True)}
            found[place] = [os.path.join(place, file) for file in sorted(stems.values())]
    libraries = [file for files in found.values() for file in files]
    if not include and not libraries:
        raise BuildError(
            f"the Python package {name!r} has neither headers (include) nor libraries (lib*.so): {folders[0]}"
        )
    run_time = [argument for place, files in found.items() if files for argument in rpath(place)]
    return Package(tuple(include), tuple(libraries + run_time))
