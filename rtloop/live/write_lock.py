"""The lock by which the writers of one block take turns, in all threads and processes.

Among processes it is a record lock on the block's file (fcntl(2)), which the kernel releases when its holder dies. It
belongs to the process, so that the threads of one process need a mutex as well, and a forked child does not have it.
Closing any descriptor of the file would release it: whoever closes one holds the mutex.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rtloop.errors import StateError
from rtloop.process.nap import nap
from rtloop.process.signal_shield import ShieldedLock

__all__ = ["close_file", "write_lock"]

#: Longest wait for another writer. One that holds the lock writes a few hundred bytes; it may have been stopped.
PATIENCE_S = 2.0
_LONGEST_PAUSE_S = 0.001

_mutex = ShieldedLock()
#: The files that this process has locked, of which a signal handler may lock one again.
_locked: list[int] = []


@contextmanager
def write_lock(fd: int, name: str) -> Iterator[None]:
    """Hold the lock of a block; `fd` is its file, open for writing, or -1 if no other process can write it.

    Raises
    ------
    StateError
        If another writer has held it for two seconds, for example because it was stopped.
    """
    deadline = time.monotonic() + PATIENCE_S
    if not _mutex.acquire(PATIENCE_S):
        raise StateError(
            f"the parameters of {name} cannot be changed: another thread has been writing them for {PATIENCE_S:g} s"
        )
    try:
        is_outer = fd >= 0 and fd not in _locked
        if is_outer:
            _lock_file(fd, name, deadline)
            _locked.append(fd)
        try:
            yield
        finally:
            if is_outer:
                _locked.remove(fd)
                with suppress(OSError):  # a signal handler may have ended the run, which closes the file
                    fcntl.lockf(fd, fcntl.LOCK_UN)
    finally:
        _mutex.release()


def _lock_file(fd: int, name: str, deadline: float) -> None:
    pause = 0.00002
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EBADF:
                return  # a signal handler has just ended the run: nobody else reads what is written
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            return
        if time.monotonic() > deadline:
            raise StateError(
                f"the parameters of {name} cannot be changed: another process has been writing them for "
                f"{PATIENCE_S:g} s, and may be suspended (SIGSTOP, a debugger); lslocks(8) shows which process"
            )
        nap(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def close_file(fd: int) -> None:
    """Close a descriptor of a block's file, but not while another thread of this process holds the lock."""
    with _mutex:
        os.close(fd)


def _reset_after_fork() -> None:
    global _mutex
    _mutex = ShieldedLock()
    _locked.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
