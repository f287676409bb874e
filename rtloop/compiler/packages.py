"""Headers and libraries that an installed Python package brings."""

from __future__ import annotations

import filecmp
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from rtloop.compiler.comments import Extras, rpath
from rtloop.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Package", "add_packages", "find_package"]

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


def add_packages(extras: Extras, source: Path) -> Extras:
    """Add the headers and libraries of the packages that `source` names with ``# rtloop: packages``.

    Raises
    ------
    BuildError
        As :func:`find_package`.
    """
    for name in extras.packages:
        try:
            found = find_package(name)
        except BuildError as error:
            raise BuildError(f"{source}: {error} (# rtloop: packages = {name})", path=str(source)) from None
        extras = extras._replace(include=extras.include + found.include, libraries=extras.libraries + found.libraries)
    return extras._replace(packages=())


def find_package(name: str) -> Package:
    """Return the headers and libraries of a Python package, without importing it.

    Headers are in its folder ``include``, libraries (``lib*.so``, with or without a version, or ``lib*.a``) in its own
    folder or in ``lib``. Of links and copies of one library, such as ``libx.so`` and ``libx.so.3``, one is taken.

    Parameters
    ----------
    name : str
        The package, such as ``"mujoco"``, or a part of it (``"onnxruntime.capi"``). The file after a
        colon selects one library: ``"mujoco:libmujoco.so.3.2"``; ``"mujoco:"`` is the headers alone.

    Raises
    ------
    BuildError
        If the package is not installed, has neither headers nor libraries, lacks the named one, or has
        two versions of one.
    """
    name, colon, wanted = name.partition(":")
    first, *parts = name.split(".")  # asked for a whole name, Python would import the first part
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        spec = None
    folders = [os.path.join(folder, *parts) for folder in (spec and spec.submodule_search_locations) or ()]
    folders = [folder for folder in folders if os.path.isdir(folder)]
    if not folders:
        raise BuildError(
            f"the Python package {name!r} is not installed here, or is a single module; fix: install it into the "
            f"environment of {sys.executable}"
        )
    include = [os.path.join(folder, part) for folder in folders for part in _HEADER_FOLDERS]
    include = [folder for folder in include if os.path.isdir(folder)]
    places = [os.path.join(folder, part) if part else folder for folder in folders for part in _LIBRARY_FOLDERS]
    files = [os.path.join(place, file) for place in places if os.path.isdir(place) for file in os.listdir(place)]
    files = sorted(file for file in files if _LIBRARY.fullmatch(os.path.basename(file)))
    if colon:
        libraries = [file for file in files if os.path.basename(file) == wanted][:1]
        if wanted and not libraries:
            what = f"it has {_names(files)}" if files else "it has none"
            raise BuildError(f"the Python package {name!r} has no library {wanted} ({what}); fix: name one of its own")
    else:
        libraries = _one_of_each(name, files)
    if not include and not libraries:
        raise BuildError(
            f"the Python package {name!r} has neither headers (include) nor libraries (lib*.so): {folders[0]}; fix: "
            "name the folders with -I, -L and -l, or # distutils: include_dirs, library_dirs, libraries"
        )
    run_time = [argument for place in dict.fromkeys(map(os.path.dirname, libraries)) for argument in rpath(place)]
    return Package(tuple(include), tuple(libraries + run_time))


def _one_of_each(name: str, files: list[str]) -> list[str]:
    """Return one file of each library, with the shortest name, which links have; refuse two that are different."""
    chosen: dict[str, list[str]] = {}
    for file in sorted(files, key=lambda file: (file.endswith(".a"), len(file))):  # a static one is a second form
        known = chosen.setdefault(re.split(r"\.(?:so|a)\b", os.path.basename(file))[0], [])
        if not known or not (file.endswith(".a") or any(_are_equal(file, other) for other in known)):
            known.append(file)
    for stem, found in chosen.items():
        if len(found) > 1:
            raise BuildError(
                f"the Python package {name!r} has {len(found)} versions of {stem}: {_names(found)}; fix: name one, as "
                f"in {name}:{os.path.basename(found[-1])}"
            )
    return sorted(file for found in chosen.values() for file in found)


def _are_equal(one: str, other: str) -> bool:
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def _names(files: list[str]) -> str:
    return ", ".join(map(os.path.basename, files))
