"""Reading the small texts that the kernel offers."""

from __future__ import annotations

__all__ = ["read_text"]


def read_text(path: str) -> str:
    """Return the content of a file; unlike pathlib, this costs an import of rtloop nothing.

    Names of threads, mapped files and control groups in it may hold any bytes; what is no UTF-8 is replaced.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
