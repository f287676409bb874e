"""Reading the small texts that the kernel offers."""

from __future__ import annotations

__all__ = ["read_text"]


def read_text(path: str) -> str:
    """Return the content of a file; unlike pathlib, this costs an import of rtloop nothing."""
    with open(path) as file:
        return file.read()
