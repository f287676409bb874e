"""Files: reading small text files of the kernel, and writing a file completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_text", "replaced"]


def read_text(path: str) -> str:
    """Return the content of a file, without pathlib, whose import is slow.

    Names of threads, mapped files and control groups may hold any bytes; invalid UTF-8 is replaced.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


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
