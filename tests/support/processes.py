"""Processes and threads as /proc lists them: each may end while it is looked at, and is then left out.

pathlib's glob raises ProcessLookupError there (Python 3.11), and a file that was opened in time cannot be read.
"""

from __future__ import annotations

import os


def process_ids() -> list[int]:
    """Return the ids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read(process: int | str, file: str) -> str:
    """Return the content of a file of a process: ``read(1, "cmdline")``; nothing if the process has ended."""
    try:
        with open(f"/proc/{process}/{file}", "rb") as opened:
            return os.fsdecode(opened.read())
    except OSError:
        return ""


def stat(process: int | str) -> list[str]:
    """Return the fields of a process's stat from its state on; none if the process has ended."""
    return read(process, "stat").rpartition(")")[2].split()


def is_alive(process: int) -> bool:
    """Tell whether a process runs: it has not ended, and is not a zombie."""
    return (stat(process) or ["X"])[0] not in "ZX"


def thread_names(process: int | str = "self") -> dict[int, str]:
    """Return the names of a process's threads, by their ids."""
    names = {int(tid): read(process, f"task/{tid}/comm").strip() for tid in list_threads(process)}
    return {tid: name for tid, name in names.items() if name}


def list_threads(process: int | str = "self") -> list[str]:
    """Return the ids of a process's threads; none if the process has ended."""
    try:
        return os.listdir(f"/proc/{process}/task")
    except OSError:
        return []


def children(process: int) -> list[int]:
    """Return the children of a process; none if it has ended."""
    return [int(child) for tid in list_threads(process) for child in read(process, f"task/{tid}/children").split()]


def folder(process: int) -> str:
    """Return the working directory of a process; nothing if it has ended."""
    try:
        return os.readlink(f"/proc/{process}/cwd")
    except OSError:
        return ""
