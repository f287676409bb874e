"""Exchanges that are found by their names through ``/proc``: those of the processes of one user.

Two processes may create the same name at the same time. Each creates its file, marked as unfinished, and then looks for
other files of the name. If there is a finished one, it uses that file. Of two unfinished ones, the process with the
greater inode withdraws, and the other waits until it has. A process that has withdrawn, or that finds an unfinished
file at first, waits without a file of its own until the unfinished one is finished or gone. So at most one file is
finished, without a lock that a stopped process could keep.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rtloop.errors import AttachError, StateError
from rtloop.process.nap import nap
from rtloop.sharing.block_files import BlockFile, block_files, open_block_file, processes, user_of
from rtloop.sharing.exchange_file import (
    ExchangeFile,
    Header,
    Plan,
    check_kind,
    check_same,
    claim_role,
    create_file,
    finish_file,
    memfd_name,
    parse_file,
    printable,
)
from rtloop.system.fileio import read_text

__all__ = ["PATIENCE_S", "Found", "find_exchanges", "open_by_proc", "share_by_proc"]

#: Longest wait for a process that is creating an exchange, which takes milliseconds; it may have been stopped.
PATIENCE_S = 30.0


@dataclass
class Found:
    """An exchange of this machine, and the files that lead to it, one for each process that has it open."""

    header: Header
    files: list[BlockFile] = field(default_factory=list)


def _files(name: str | None, uid: int | None, denied: list[int]) -> Iterator[BlockFile]:
    """Yield the files that may be exchanges of a name and of a user; None stands for any name, or any user."""
    link = "/memfd:" + memfd_name(name or "")
    for pid in processes(threaded=False):
        owner = user_of(pid)
        if uid is not None and owner != uid:
            continue
        try:
            yield from block_files(pid, uid=owner, link=link)
        except PermissionError:
            denied.append(pid)


def find_exchanges(
    name: str | None = None, *, every_user: bool = False, faulty: dict[int, str] | None = None,
    denied: list[int] | None = None,
) -> dict[int, Found]:  # fmt: skip
    """Find the exchanges of this user, finished or not, by inode.

    Parameters
    ----------
    name : str, optional
        Only those of this name.
    every_user : bool
        Also those of other users that this process may inspect.
    faulty : dict, optional
        Filled with the faults of files that are not exchanges, by process.
    denied : list, optional
        Filled with the processes that could not be inspected.
    """
    found: dict[int, Found] = {}
    uid = None if every_user else os.geteuid()
    try:
        files = list(_files(name, uid, denied if denied is not None else []))
    except OSError as error:
        raise AttachError(f"exchanges are found through /proc, which cannot be read: {error}") from error
    for file in files:
        if file.inode in found:
            found[file.inode].files.append(file)
            continue
        try:
            fd, size = open_block_file(file)
        except OSError:
            continue  # it has ended, or has been closed
        except ValueError as error:
            if faulty is not None:
                faulty[file.pid] = str(error)
            continue
        try:
            # Another user may give a file the same name, which is then not the exchange of this user.
            if uid is None or os.fstat(fd).st_uid == uid:
                header = parse_file(fd, size)
                if name is None or header.name == name:
                    found[file.inode] = Found(header, [file])
        except ValueError as error:
            if faulty is not None:
                faulty[file.pid] = str(error)
        finally:
            os.close(fd)
    return found


def _join(found: Found, role: str) -> ExchangeFile | None:
    """Open an exchange and take a role in it; None if it no longer exists."""
    for file in found.files:
        try:
            fd, size = open_block_file(file, is_writable=True)
        except (OSError, ValueError):
            continue
        try:
            header = parse_file(fd, size)
            return ExchangeFile(header, fd, role, claim_role(fd, header, role))
        except BaseException:
            os.close(fd)
            raise
    return None


def share_by_proc(name: str, plan: Plan, role: str) -> ExchangeFile | None:
    """Create an exchange, or take a role in the one of this name; None while another process is creating it.

    Raises
    ------
    ConfigError
        If there is one of this name that differs.
    StateError
        If other processes have the role.
    OSError
        If there is no memory, or memfd_create(2) is refused.
    """
    there = find_exchanges(name).values()
    if not there:
        return _create_first(name, plan, role)
    # The creator of an unfinished file waits until there is no other file, so none is created here meanwhile.
    for one in [one for one in there if one.header.is_finished]:
        check_same(one.header, plan)
        joined = _join(one, role)
        if joined is not None:
            return joined
    return None


def _create_first(name: str, plan: Plan, role: str) -> ExchangeFile | None:
    """Create an exchange; None if another process has done so, or is doing it."""
    fd, header = create_file(name, plan)
    inode = os.fstat(fd).st_ino
    deadline = time.monotonic() + PATIENCE_S
    try:
        # Two searches in a row: a process that ends during the first may have passed a file to a process that was
        # inspected before.
        alone = 0
        while alone < 2:
            others = [(number, one) for number, one in find_exchanges(name).items() if number != inode]
            if any(one.header.is_finished or number < inode for number, one in others):
                os.close(fd)
                return None
            alone = 0 if others else alone + 1
            if others:
                if time.monotonic() > deadline:
                    raise StateError(
                        f"process {others[0][1].files[0].pid} is creating the exchange {name!r}, and has not finished "
                        "it in time"
                    )
                nap(0.0005)
        slot = claim_role(fd, header, role)
        finish_file(fd)
    except BaseException:
        os.close(fd)
        raise
    return ExchangeFile(header._replace(is_finished=True), fd, role, slot, is_new=True)


def _program(pid: int) -> str:
    try:
        return printable(read_text(f"/proc/{pid}/comm").strip())
    except OSError:
        return "ended"


def _describe_denied(pids: list[int]) -> str:
    """Return the end of a message that lists the processes of this user that could not be inspected; may be empty."""
    if not pids:
        return ""
    shown = [f"{pid} ({_program(pid)})" for pid in pids[:3]]
    more = "" if len(pids) <= len(shown) else f" and {len(pids) - len(shown)} others"
    return (
        f". Not inspected, because they have privileges that this process lacks (ptrace(2)): {', '.join(shown)}{more}; "
        "if one of them has the exchange open, give this process the same capabilities"
    )


def open_by_proc(name: str, kind: str, role: str, dtype: np.dtype[Any] | None = None) -> ExchangeFile:
    """Take a role in an existing exchange.

    Raises
    ------
    AttachError
        If this user has none of this name.
    ConfigError
        If it is of another kind, or `dtype` is given and differs.
    StateError
        If other processes have the role.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        denied: list[int] = []
        there = find_exchanges(name, denied=denied)
        for one in there.values():
            if one.header.is_finished:
                check_kind(one.header, kind, dtype)
                joined = _join(one, role)
                if joined is not None:
                    return joined
        if not there or time.monotonic() > deadline:
            names = sorted(one.header.name for one in find_exchanges().values())
            raise AttachError(
                f"there is no shared exchange {name!r} of this user; there are: {', '.join(names) or 'none'}"
                f"{_describe_denied(denied)}"
            )
        nap(0.002)
