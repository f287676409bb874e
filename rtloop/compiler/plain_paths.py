"""Paths for compilers: plain names for folders with odd ones, and the files of dependencies that name them."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["Places", "is_plain", "plain_temporary_folder"]

_PLAIN = re.compile(r"[A-Za-z0-9_./+@=~,-]+")


def is_plain(path: str) -> bool:
    """Return whether every tool, in every locale, reads and writes a path alike: no blank, colon, backslash or accent.

    Make's dependency files escape some of these, Cython's are in UTF-8 whatever the locale is, and neither can hold all
    file names.
    """
    return _PLAIN.fullmatch(path) is not None


def plain_temporary_folder() -> str:
    """Return a folder for temporary files with a plain path, if there is one."""
    import tempfile  # here, because `rtloop run` of a compiled file has to be quick

    usual = tempfile.gettempdir()
    others = [folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if os.access(folder, os.W_OK)]
    return next(filter(is_plain, [usual, *others]), usual)


class Places:
    """Plain names, as symbolic links in one folder, for folders whose paths are not plain.

    Parameters
    ----------
    folder : pathlib.Path
        An own folder with a plain path; it is made when the first link is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}

    def of_folder(self, path: str) -> str:
        """Return a plain path for a folder."""
        if is_plain(path):
            return path
        if path not in self._names:
            self._folder.mkdir(exist_ok=True)
            link = self._folder / str(len(self._names))
            link.symlink_to(path)
            self._names[path] = str(link)
        return self._names[path]

    def of_file(self, path: str) -> str:
        """Return a path for a file in a folder with a plain one."""
        folder, name = os.path.split(path)
        return os.path.join(self.of_folder(folder), name)

    def of_flag(self, flag: str) -> str:
        """Return a compiler's flag, with a plain path if it is an absolute folder of headers."""
        return f"-I{self.of_folder(flag[2:])}" if flag.startswith("-I/") else flag

    def real(self, text: str) -> str:
        """Return a text with the real paths in place of the plain ones."""
        for path, name in self._names.items():
            text = text.replace(f"{name}/", f"{path}/")
        return text

    def debug_flags(self) -> list[str]:
        """Return the flags that put the real paths into debug information."""
        return [f"-fdebug-prefix-map={name}={path}" for path, name in self._names.items()]

    def read_dependencies(self, file: Path, folder: Path) -> set[str]:
        """Read a dependency file for make, ``target: file file ...``; names in it are bytes, with make's escapes.

        Parameters
        ----------
        file : pathlib.Path
            The file.
        folder : pathlib.Path
            Folder that relative names in it start from.
        """
        text = os.fsdecode(file.read_bytes()).replace("\\\n", " ")
        names = re.findall(r"(?:\\.|\S)+", text.partition(": ")[2])
        plain = (re.sub(r"\\(.)", r"\1", name).replace("$$", "$") for name in names)
        # Cython names files from the folder that it runs in: a link has to be found before ".." is taken away.
        whole = (os.path.join(folder, name).replace(f"{folder}/../", f"{folder.parent}/") for name in plain)
        return {os.path.normpath(self.real(path)) for path in whole}
