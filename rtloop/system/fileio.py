"""Files: reading the small texts that the kernel offers, and writing one as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_text", "replaced"]


def read_text(path: str) -> str:
    """Return the content of a file; unlike pathlib, this costs an import of rtloop nothing.

    Names of threads, mapped files and control groups in it may hold any bytes; what is no UTF-8 is replaced.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


@contextmanager
def replaced(target: Path) -> Iterator[BinaryIO]:
    """Write a file that takes the place of `target` once it is complete and on the disk; else nothing changes."""
    # A name of its own, in the same folder, and a mode that follows the umask: what tempfile cannot give.
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
