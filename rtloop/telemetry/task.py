"""Threads of other processes, found and read through ``/proc/PID/task``."""

from __future__ import annotations

import os

from rtloop.system.fileio import parse_fields, read_text
from rtloop.telemetry.thread_usage import thread_usage

__all__ = ["Task", "find_task"]


class Task:
    """A thread of a process, held by its folder in ``/proc``, so that a later one of the same number is not taken.

    Attributes
    ----------
    cpu_at_usage : int or None
        CPU that it had run on last when :meth:`usage` was called.
    was_alive : bool
        True if it existed then.
    """

    def __init__(self, pid: int, tid: int) -> None:
        self.pid, self.tid, self._folder = pid, tid, -1
        self.cpu_at_usage: int | None = None
        self.was_alive = False
        self._folder = os.open(f"/proc/{pid}/task/{tid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the folder."""
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    __del__ = close

    def read(self, name: str) -> str:
        """Return the content of one of its files; raise OSError if it has ended."""
        if self._folder < 0:
            raise ProcessLookupError("closed")
        return read_text(name, self._folder)

    def usage(self) -> tuple[int, int, int, int]:
        """Return minor and major page faults, voluntary and involuntary context switches."""
        stat, status = self.read("stat"), self.read("status")
        self.cpu_at_usage, self.was_alive = _cpu(stat), _is_alive(stat)
        return thread_usage(stat, status)

    @property
    def last_cpu(self) -> int | None:
        """CPU that it ran on last; None if it has ended."""
        try:
            return _cpu(self.read("stat"))
        except (OSError, IndexError):
            return None

    @property
    def is_alive(self) -> bool:
        """True if it still exists."""
        try:
            return _is_alive(self.read("stat"))
        except (OSError, IndexError):
            return False


def _cpu(stat: str) -> int:
    return int(stat.rpartition(")")[2].split()[36])


def _is_alive(stat: str) -> bool:
    return stat.rpartition(")")[2].split()[0] not in "ZXx"


def find_task(pid: int, inner_pid: int, inner_tid: int) -> Task | None:
    """Find a thread of a process by its numbers in its own pid namespace, such as that of a container.

    Returns None where the process calls itself otherwise (a forked child keeps its parent's files), or has no such
    thread.
    """
    try:
        if _innermost(f"/proc/{pid}/status", "NSpid", pid) != inner_pid:
            return None
        for name in [str(inner_tid)] if inner_pid == pid else os.listdir(f"/proc/{pid}/task"):
            if _innermost(f"/proc/{pid}/task/{name}/status", "NSpid", int(name)) == inner_tid:
                return Task(pid, int(name))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def _innermost(status: str, key: str, default: int) -> int:
    values = parse_fields(read_text(status)).get(key)
    return int(values.split()[-1]) if values else default
