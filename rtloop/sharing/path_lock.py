"""Lock of a path: one process at a time creates, replaces or removes the file there."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rtloop.errors import StateError
from rtloop.process.nap import nap

__all__ = ["is_locked", "locked"]


@contextmanager
def locked(path: str, mode: int, patience_s: float) -> Iterator[None]:
    """Hold the lock of a path: a flock(2) of a file next to it, which exists only as long as a process holds the lock.

    The kernel releases the lock when its holder ends. If the holder is killed, the file remains, and the next holder
    uses it.

    Parameters
    ----------
    path : str
        Path of a file, which need not exist.
    mode : int
        Permissions of the file, which other users need to take the lock.
    patience_s : float
        Longest wait for another process.

    Raises
    ------
    StateError
        If another process holds the lock for longer than that.
    OSError
        If the folder does not exist, or this user may not write to it.
    """
    file = _file(path)
    deadline = time.monotonic() + patience_s
    fd = _take(file, mode)
    while fd is None:
        if time.monotonic() > deadline:
            raise StateError(
                f"another process, which may have been stopped, is creating or removing {path}: it has locked {file}"
            )
        nap(0.002)
        fd = _take(file, mode)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(file)  # before the unlock: a process that has opened the file meanwhile then finds it removed
        fcntl.flock(fd, fcntl.LOCK_UN)  # explicitly, because a child that is being forked may have the file open
        os.close(fd)


def is_locked(path: str) -> bool:
    """Return whether a process may hold the lock of a path; also True if its holder was killed."""
    return os.path.lexists(_file(path))


def _file(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.lock")


def _take(file: str, mode: int) -> int | None:
    """Take the lock. Returns the descriptor that holds it, None if it has to be tried again."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    is_new = False
    try:
        fd = os.open(file, flags)
    except FileNotFoundError:
        try:
            fd = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o600)
            is_new = True
        except FileExistsError:
            return None
    except PermissionError:
        if os.path.lexists(file):
            return None  # another user has just created it, or allows fewer users; that user's process removes it
        raise
    try:
        if is_new:
            os.fchmod(fd, mode)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, f"{file} is not a lock file")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.lstat(file)
        if (there.st_dev, there.st_ino) == (os.fstat(fd).st_dev, os.fstat(fd).st_ino):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass  # another process has it, or has just removed it
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None
