"""Search of the machine for running loops, bounded in what the files of other users may cost."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from rtloop.errors import AttachError
from rtloop.sharing.block_files import BlockFile, Budget, block_files, open_block_file, processes, user_of
from rtloop.telemetry.foreign_block import ForeignBlock
from rtloop.telemetry.loop_reader import LoopReader
from rtloop.telemetry.task import Task, find_task

__all__ = ["Scan", "scan"]


@dataclass
class Scan:
    """Result of a scan: loops, processes that could not be inspected, damaged blocks, and users with skipped files."""

    loops: list[LoopReader] = field(default_factory=list)
    denied: list[int] = field(default_factory=list)
    faulty: dict[BlockFile, str] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)


def scan(pid: int | None = None, *, known: Collection[BlockFile] = ()) -> Scan:
    """Find the running loops of one process or of all, except those in `known`.

    The work is bounded for the files of other users: the number of blocks and the CPU time, per user and in all.

    Raises
    ------
    AttachError
        If ``/proc`` cannot be read.
    """
    found = Scan()
    try:
        candidates = list(processes()) if pid is None else [pid]
    except OSError as error:
        raise AttachError(f"running loops are found through /proc, which cannot be read: {error}") from error
    budget = Budget()
    numbers: dict[int, dict[int, int]] = {}
    for file in known:
        budget.take_block(file.uid)
        numbers.setdefault(file.pid, {})[file.fd] = file.inode
    for candidate in candidates:
        uid = user_of(candidate)
        budget.enter(uid)
        try:
            files = list(_bounded(candidate, uid, budget, known, numbers.get(candidate)))
        except PermissionError:
            found.denied.append(candidate)
            continue
        for file in files:
            if not budget.is_spent():
                try:
                    loop = _open(file)
                except PermissionError:
                    found.denied.append(candidate)
                except FileNotFoundError:
                    pass  # it has ended in the meantime
                except (OSError, ValueError) as error:
                    found.faulty[file] = str(error)
                else:
                    found.loops += [] if loop is None else [loop]
    found.loops.sort(key=lambda loop: (loop.name, loop.pid, loop.tid))
    found.skipped = sorted(budget.skipped)
    return found


def _bounded(
    pid: int, uid: int, budget: Budget, known: Collection[BlockFile], numbers: Mapping[int, int] | None
) -> Iterator[BlockFile]:
    """Yield the files of a process that are not known, by itself or under this number, until there are too many."""
    for file in block_files(pid, budget, uid, known=numbers):
        if file not in known:
            if not budget.take_block(uid):
                return
            yield file


def _open(file: BlockFile) -> LoopReader | None:
    """Map the block of a loop that runs in this process; None for a forked child, which has its parent's files."""
    tasks: list[Task] = []
    fd, size = open_block_file(file)
    try:
        block = ForeignBlock(fd, size, lambda: tasks[0].usage())
    finally:
        os.close(fd)
    header = block.header
    if block.has_ended or not header["tid"]:
        return None
    task = find_task(file.pid, header["pid"], header["tid"])  # type: ignore[arg-type]
    if task is None:
        return None
    tasks.append(task)
    return LoopReader(file, block, task)
