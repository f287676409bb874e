"""Loops of other processes: a list of those that run, and their Stats, read without disturbing them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rtloop.errors import AttachError, AttachPrivilegeError, ConfigError, StateError
from rtloop.settings import CLOCKS, format_policy
from rtloop.stats.figures import StackUse
from rtloop.stats.stats import Stats
from rtloop.system.grant import Grant
from rtloop.system.time_sync import tai_offset_s
from rtloop.telemetry import description
from rtloop.telemetry.assemble import assemble_stats, machine
from rtloop.telemetry.block import Snapshot
from rtloop.telemetry.foreign import ForeignBlock
from rtloop.telemetry.live_grants import LiveGrants
from rtloop.telemetry.procfs import (
    BlockFile,
    Budget,
    Task,
    block_files,
    describe_denied,
    describe_denied_count,
    describe_skipped,
    find_task,
    open_block_file,
    processes,
    user_of,
)
from rtloop.units import as_index, format_rate, show

__all__ = ["LoopReader", "Scan", "attach", "running", "scan"]

_CLOCK_NAMES = {number: name for name, number in CLOCKS.items()}
#: Records that are copied of another user's loop: that user may have made the block up, of nothing but holes.
MOST_FOREIGN_RECORDS = 1 << 20


class LoopReader:
    """Reader of a running loop, usually of another process; made by :func:`running`.

    Reading copies what the loop writes anyway: the loop neither waits nor makes a system call for it. The figures can
    still be read after the loop has ended, until :meth:`close`.

    Attributes
    ----------
    pid, tid : int
        Process and thread of the loop, as numbered here; in a container their numbers may differ.
    name : str
        Name of the loop.
    settings : dict
        Settings of the loop, as in ``Stats.settings``.
    grants : tuple of Grant
        Requests to the kernel, and what it granted.
    policy : str
        Policy and priority of the thread: ``"fifo 80"``.
    started_ns : int
        Time of its start, ns since 1970; 0 if unknown.
    """

    def __init__(self, file: BlockFile, block: ForeignBlock, task: Task) -> None:
        header, said = block.header, description.read(block.text())
        name = bytes(header["name"]).partition(b"\0")[0].decode(errors="replace")
        period, clock, policy = header["period_ns"], header["clock"], header["policy"]
        if not isinstance(period, int) or period <= 0 or clock not in _CLOCK_NAMES:
            raise ValueError("its period or its clock is invalid")
        self.file, self.pid, self.tid = file, task.pid, task.tid
        self._block: ForeignBlock | None = block
        self._task = task
        self._host = {**machine(), **said.host}
        self._settings: dict[str, Any] = {
            "name": description.clean(name),
            **said.settings,
            "period_ns": period,
            "phase_ns": header["phase_ns"],
            "clock": _CLOCK_NAMES[clock],
        }
        self.grants: tuple[Grant, ...] = said.grants
        self._live = LiveGrants(said.grants, task.pid, task.tid)
        self.started_ns = said.started_ns
        self.policy = format_policy(policy, header["priority"])  # type: ignore[arg-type]
        self._read_grants()

    def _read_grants(self) -> None:
        """Read the grants again; those of a thread that has ended stay as they were seen last."""
        if self._task.is_alive:
            self.grants = self._live.now()
            self.policy = next((str(grant.granted) for grant in self.grants if grant.name == "policy"), self.policy)

    @property
    def name(self) -> str:
        """Name of the loop, on one line."""
        return str(self._settings["name"]).replace("\n", "\N{REPLACEMENT CHARACTER}")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the loop."""
        return dict(self._settings)

    @property
    def is_foreign(self) -> bool:
        """True if its process belongs to another user than this one."""
        return self.file.uid != os.geteuid()

    @property
    def last_cpu(self) -> int | None:
        """CPU that the thread ran on last; None if it has ended."""
        return self._task.last_cpu

    @property
    def state(self) -> str:
        """``"running"``, ``"stopped"``, ``"failed"``, or ``"died"`` if its process or thread was killed."""
        block = self._opened()
        if not block.has_ended:
            if self._task.is_alive:
                return "running"
            if not block.has_ended:  # it may have ended between the two checks
                return "died"
        return "failed" if block.has_failed else "stopped"

    @property
    def stats(self) -> Stats:
        """Present statistics of the loop: a consistent snapshot that does not delay it."""
        return self.read()

    def read(self, *, records: bool | int = True) -> Stats:
        """Return the present statistics of the loop.

        `forks` and the use of the stack are None, because only its own process knows them.

        Parameters
        ----------
        records : bool or int
            Copy the timestamps of the last cycles, too; an int limits their number. Of another user's loop at most the
            last 2**20 are copied.

        Raises
        ------
        AttachError
            If the block is damaged, or the loop was killed while writing it.
        StateError
            After :meth:`close`.
        """
        block = self._opened()
        if self.is_foreign and records is not False:
            records = MOST_FOREIGN_RECORDS if records is True else min(records, MOST_FOREIGN_RECORDS)
        try:
            snapshot: Snapshot = block.snapshot(records=records)
            state = self.state
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise AttachError(f"the telemetry of {self.name} (process {self.pid}) cannot be read: {reason}") from error
        self._read_grants()
        stack = StackUse(int(self._settings.get("stack_bytes", 0)), None)
        return assemble_stats(
            self.settings,
            state,
            self.grants,
            snapshot,
            stack=stack,
            forks=None,
            host={**self._host, "tai_offset_s": tai_offset_s()},
        )

    def close(self) -> None:
        """Unmap the loop's memory. A second call does nothing."""
        self._block = None
        self._task.close()

    def _opened(self) -> ForeignBlock:
        if self._block is None:
            raise StateError(f"this reader of {self.name} is closed")
        return self._block

    def __enter__(self) -> LoopReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._block is None else self.state
        return (
            f"<LoopReader of {self.name!r} in process {self.pid}, {format_rate(self._settings['period_ns'])}, {state}>"
        )


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
    for file in known:
        budget.take_block(file.uid)
    for candidate in candidates:
        uid = user_of(candidate)
        budget.enter(uid)
        try:
            files = list(_bounded(candidate, uid, budget, known))
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


def _bounded(pid: int, uid: int, budget: Budget, known: Collection[BlockFile]) -> Iterator[BlockFile]:
    """Yield the files of a process that are not known, until there are too many."""
    for file in block_files(pid, budget, uid):
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


def running(pid: int | None = None, name: str | None = None) -> list[LoopReader]:
    """Return the loops that run on this machine now, of all processes that may be inspected.

    Those are the processes of the same user without greater privileges, or all for root and with CAP_SYS_PTRACE.

    Parameters
    ----------
    pid : int, optional
        Process to search.
    name : str, optional
        Name of the loops to return.

    Returns
    -------
    list of LoopReader
        Ordered by name. Each keeps its loop's telemetry mapped until it is closed or deleted.

    Raises
    ------
    AttachPrivilegeError
        If the process `pid` may not be inspected.
    """
    return list(_matching(_checked(pid), name, scan(pid)))


def _checked(pid: int | None) -> int | None:
    number = None if pid is None or isinstance(pid, bool) else as_index(pid)
    if pid is not None and (number is None or number < 1):
        raise ConfigError(f"pid={show(pid)} must be the number of a process")
    return number


def _matching(pid: int | None, name: str | None, found: Scan) -> Iterator[LoopReader]:
    if pid is not None and found.denied:
        raise AttachPrivilegeError(describe_denied(pid))
    return (loop for loop in found.loops if name is None or loop.name == name)


def attach(pid: int | None = None, name: str | None = None) -> Stats:
    """Return the statistics of a loop that runs in another process, or in this one.

    Reading copies what the loop writes anyway, without making it wait.

    Parameters
    ----------
    pid : int, optional
        Process of the loop; needed if loops of several processes have the name.
    name : str, optional
        Name of the loop; needed if the process runs several loops. Without both, only one loop may be running.

    Returns
    -------
    Stats
        The present statistics. Use the readers of :func:`running` for repeated reading.

    Raises
    ------
    AttachError
        If no running loop matches, or more than one; the message lists those that run.
    AttachPrivilegeError
        If the process may not be inspected; also a PermissionError.

    Examples
    --------
    >>> print(rtloop.attach(name="Controller-1"))
    """
    with _closed(scan(_checked(pid))) as found:
        matching = list(_matching(pid, name, found))
        if len(matching) != 1:
            raise AttachError(_explain(pid, name, matching, found))
        return matching[0].stats


@contextmanager
def _closed(found: Scan) -> Iterator[Scan]:
    try:
        yield found
    finally:
        for loop in found.loops:
            loop.close()


def _explain(pid: int | None, name: str | None, matching: list[LoopReader], found: Scan) -> str:
    """Return the reason why not exactly one loop matches."""
    asked = ", ".join(f"{key}={value!r}" for key, value in (("pid", pid), ("name", name)) if value is not None)
    if matching:
        listed = ", ".join(_label(loop) for loop in matching)
        return f"{asked or 'attach()'}: {len(matching)} loops match, {listed}: choose one with pid= and name="
    if pid is not None and not os.path.exists(f"/proc/{pid}"):
        return f"pid={pid}: there is no such process"
    text = f"{asked}: no such loop runs" if asked else "no loop runs"
    where = "in that process" if pid is not None else "here"
    if found.loops:
        text += f"; {where} there run {', '.join(_label(loop) for loop in found.loops)}"
    elif asked:
        text += f", and no other {where}"
    if found.faulty:
        file, fault = next(iter(found.faulty.items()))
        text += f"; {file.path} looks like a loop's telemetry, but {fault}"
    if found.denied:
        text += f"; {describe_denied_count(len(found.denied))}"
    text += "".join(f"; {describe_skipped(uid)}" for uid in found.skipped)
    return text


def _label(loop: LoopReader) -> str:
    return f"{loop.name!r} in process {loop.pid}"
