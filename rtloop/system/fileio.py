"""Files: reading small text files of the kernel, writing a file completely or not at all, and who may replace one."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["parse_field", "parse_fields", "parse_sizes", "public_folder", "read_text", "replaced"]


_FIELD = re.compile(r"^([^:\n]*):(.*)$", re.MULTILINE)
_SIZE = re.compile(r"^([^:\n]*):[ \t]*([0-9]+)[ \t]+kB[ \t]*$", re.MULTILINE)


def read_text(path: str, folder: int | None = None) -> str:
    """Return the content of a file, without pathlib, whose import is slow.

    `folder` is the descriptor of the folder that a relative path begins at.

    Names of threads, mapped files and control groups may hold any bytes; invalid UTF-8 is replaced. Split such text
    at newlines, not with ``splitlines``, because the kernel escapes no other separator.
    """
    # An object has the descriptor from the first moment: the exception of a signal handler would leave a bare one open.
    # Takes two thirds of the time of open(), and a start reads twenty files.
    with FileIO(path, opener=None if folder is None else partial(os.open, dir_fd=folder)) as file:
        pieces = []
        while piece := file.read(1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode("utf-8", "replace")


def parse_fields(text: str) -> dict[str, str]:
    """Return lines of ``key: value``, as in ``/proc/self/status`` and ``/proc/meminfo``; the first of a key counts."""
    return {key.strip(): value.strip() for key, value in reversed(_FIELD.findall(text))}


def parse_sizes(text: str) -> dict[str, int]:
    """Return the fields whose value is in kB, such as VmLck of ``/proc/self/status``, in bytes."""
    return {key.strip(): int(value) << 10 for key, value in reversed(_SIZE.findall(text))}


def parse_field(text: str, key: str) -> str | None:
    """Return the value that :func:`parse_fields` finds for a key, in a tenth of the time; None if it is missing."""
    _, found, rest = f"\n{text}".partition(f"\n{key}:")
    return rest.partition("\n")[0].strip() if found else None


@contextmanager
def replaced(target: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces `target` once it is complete and on the disk. On an exception nothing changes."""
    # Unlike tempfile, this gives the file a mode that follows the umask.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def public_folder(path: str, trusted: Collection[int]) -> str | None:
    """Return the first folder of a path in which any user may have put the next part; None if there is none.

    In a sticky folder, such as ``/tmp``, nobody can rename or remove what belongs to one of the `trusted` users.

    Raises
    ------
    OSError
        If a part of it does not exist, or may not be looked at.
    """
    here = "/"
    for part in path.strip("/").split("/"):
        entry = os.path.join(here, part)
        folder, info = os.stat(here), os.lstat(entry)
        if folder.st_mode & stat.S_IWOTH and not (folder.st_mode & stat.S_ISVTX and info.st_uid in trusted):
            return here
        if stat.S_ISLNK(info.st_mode):
            target = public_folder(os.path.realpath(entry), trusted)
            if target is not None:
                return target
        here = entry
    return None
