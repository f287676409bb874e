"""Files: reading small text files of the kernel, and writing a file completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["parse_fields", "parse_sizes", "read_text", "replaced"]


def read_text(path: str) -> str:
    """Return the content of a file, without pathlib, whose import is slow.

    Names of threads, mapped files and control groups may hold any bytes; invalid UTF-8 is replaced. Split such text
    at newlines, not with ``splitlines``, because the kernel escapes no other separator.
    """
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        return file.read()


def parse_fields(text: str) -> dict[str, str]:
    """Return lines of ``key: value``, as in ``/proc/self/status`` and ``/proc/meminfo``; the first of a key counts."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def parse_sizes(text: str) -> dict[str, int]:
    """Return the fields whose value is in kB, such as VmLck of ``/proc/self/status``, in bytes."""
    sizes = {key: value.split() for key, value in parse_fields(text).items()}
    return {key: int(words[0]) << 10 for key, words in sizes.items() if len(words) == 2 and words[1] == "kB"}


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
