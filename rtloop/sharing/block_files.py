"""Discovery of shared memory through ``/proc``: telemetry blocks of running loops, and other kinds of block.

A block is a sealed memfd that its process keeps open: ``/proc/PID/fd/N`` leads to it, and the kernel
removes it when the process ends, however it ends. Nothing is configured, and nothing is left behind.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from rtloop.system.fileio import read_text

__all__ = [
    "BlockFile",
    "Budget",
    "block_files",
    "check_sealed",
    "find_block_file",
    "open_block_file",
    "processes",
    "user_of",
]

_LINK = "/memfd:rtloop:"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_WRITE_SEALS = fcntl.F_SEAL_WRITE | 0x0010  # F_SEAL_FUTURE_WRITE, which Python 3.11 does not define
#: Bounds of one scan for the processes of another user, and of all others: files are free, and CPU time of this thread.
MOST_BLOCKS, MOST_BLOCKS_IN_ALL = 256, 1024
MOST_CPU_S, MOST_CPU_S_IN_ALL = 0.25, 1.0
_CHECK_EVERY = 64


@dataclass
class Budget:
    """Bound on what other users' files may cost in a scan; those of this user cost nothing.

    CPU time is counted, not elapsed time: on a busy machine nobody's loops are skipped.

    Attributes
    ----------
    blocks : dict
        Blocks by user, known ones included.
    seconds : dict
        CPU time of this thread by user.
    skipped : set of int
        Users of whom files were skipped.
    """

    blocks: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    _uid: int = -1
    _since: float = 0.0

    def enter(self, uid: int) -> None:
        """Count the CPU time from now on as caused by a user."""
        self._uid, self._since = uid, time.thread_time()

    def is_spent(self) -> bool:
        """Count the CPU time until now; True if the user's bound, or that of all, is reached."""
        if self._uid == os.geteuid():
            return False
        now = time.thread_time()
        self.seconds[self._uid] = self.seconds.get(self._uid, 0.0) + now - self._since
        self._since = now
        if self.seconds[self._uid] < MOST_CPU_S and sum(self.seconds.values()) < MOST_CPU_S_IN_ALL:
            return False
        self.skipped.add(self._uid)
        return True

    def take_block(self, uid: int) -> bool:
        """Count a block; False if it has to be skipped."""
        if uid == os.geteuid():
            return True
        if self.blocks.get(uid, 0) >= MOST_BLOCKS or sum(self.blocks.values()) >= MOST_BLOCKS_IN_ALL:
            self.skipped.add(uid)
            return False
        self.blocks[uid] = self.blocks.get(uid, 0) + 1
        return True


class BlockFile(NamedTuple):
    """A file of a process of user `uid` that may be a telemetry block; `inode` tells one from another."""

    pid: int
    fd: int
    inode: int
    uid: int = -1

    @property
    def path(self) -> str:
        """Path through ``/proc``."""
        return f"/proc/{self.pid}/fd/{self.fd}"

    def is_open(self) -> bool:
        """Return whether the process still has it under this number."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    # Its process may duplicate the file under another number at any time: it is still the same file.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockFile) and (self.pid, self.inode) == (other.pid, other.inode)

    def __hash__(self) -> int:
        return hash((self.pid, self.inode))


def processes(*, threaded: bool = True) -> Iterator[int]:
    """Yield the processes that can have a running loop: those with more than one thread; all unless `threaded`.

    Raises
    ------
    FileNotFoundError
        Where there is no ``/proc``.
    """
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                threads = os.stat(f"/proc/{name}/task").st_nlink - 2 if threaded else 2
            except OSError:
                continue  # it has ended
            if threads != 1:
                yield int(name)


def user_of(pid: int) -> int:
    """Return the user whom a process belongs to; -1 if it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def find_block_file(pid: int, kind: str, inode: int) -> BlockFile | None:
    """Find a further block of a loop, ``"parameters"`` for one, by the inode that its description names.

    Raises
    ------
    PermissionError
        If the process may not be inspected.
    """
    return next((file for file in block_files(pid, link=f"/memfd:rtloop-{kind}:") if file.inode == inode), None)


def block_files(
    pid: int,
    budget: Budget | None = None,
    uid: int | None = None,
    *,
    link: str | None = None,
    known: Mapping[int, int] | None = None,
) -> Iterator[BlockFile]:
    """Yield the files of a process that have the name of a telemetry block, each once, until a budget is spent.

    `link` is the beginning of the name of another kind of block. `known` has inodes by the number of the file; a file
    that still has the number and the inode is left out.

    Raises
    ------
    PermissionError
        If the process may not be inspected.
    """
    seen = set()
    link = link or _LINK
    uid = user_of(pid) if uid is None else uid
    for number, name in enumerate(_descriptors(pid)):
        if budget is not None and not number % _CHECK_EVERY and budget.is_spent():
            return
        path = f"/proc/{pid}/fd/{name}"
        try:
            inode = known.get(int(name)) if known else None
            if inode is not None and os.stat(path).st_ino == inode:
                continue
            # Any file can have this name: the kernel is asked for its mount before the file is opened.
            if os.readlink(path).startswith(link) and _mount_id(f"/proc/{pid}/fdinfo/{name}") == _memfd_mount_id():
                inode = os.stat(path).st_ino
                if inode not in seen:
                    seen.add(inode)
                    yield BlockFile(pid, int(name), inode, uid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has been closed


def _descriptors(pid: int) -> Iterator[str]:
    """Yield the numbers of a process's open files, without a list of them: there may be a million."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                yield entry.name
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended


def _mount_id(fdinfo: str) -> int | None:
    for line in read_text(fdinfo).splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    return None


@cache
def _memfd_mount_id() -> int | None:
    """Return the mount of all memfds, which no path leads to."""
    fd = os.memfd_create("rtloop-probe")
    try:
        return _mount_id(f"/proc/self/fdinfo/{fd}")
    finally:
        os.close(fd)


def open_block_file(file: BlockFile, *, is_writable: bool = False) -> tuple[int, int]:
    """Open the file of a block, for reading unless `is_writable`. Returns the descriptor and the size.

    Raises
    ------
    ValueError
        Where it could be shrunk while it is read, which would kill the reader.
    OSError
        Where it is gone, or may not be opened.
    """
    mode = os.O_RDWR if is_writable else os.O_RDONLY
    fd = os.open(file.path, mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_ino != file.inode:
            raise FileNotFoundError(f"{file.path} is another file now")
        check_sealed(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, info.st_size


def check_sealed(fd: int, *, is_written: bool = False) -> None:
    """Raise a ValueError if a file could be shrunk while it is read, which would kill the reader.

    Also if it is to be written, and is sealed against that. The descriptor may be one that cannot be read (O_PATH).
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # another kind of file
        seals = 0
    if seals & _SEALS != _SEALS:
        raise ValueError("it is not sealed against shrinking and growing")
    if is_written and seals & _WRITE_SEALS:
        raise ValueError("it is sealed against writing")
