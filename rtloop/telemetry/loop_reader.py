"""LoopReader: the figures of one running loop of another process."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from rtloop.errors import AttachError, StateError
from rtloop.settings import CLOCKS, format_policy
from rtloop.sharing.block_files import BlockFile
from rtloop.stats.figures import StackUse, Swap
from rtloop.stats.stats import Stats
from rtloop.system.grant import Grant
from rtloop.system.time_sync import tai_offset_s
from rtloop.telemetry import description
from rtloop.telemetry.assemble import assemble_stats, machine
from rtloop.telemetry.block import Snapshot
from rtloop.telemetry.foreign_block import ForeignBlock
from rtloop.telemetry.live_grants import LiveGrants
from rtloop.telemetry.task import Task
from rtloop.units import format_rate

__all__ = ["LoopReader"]

_CLOCK_NAMES = {number: name for name, number in CLOCKS.items()}
#: Records that are copied of another user's loop: that user may have made the block up, of nothing but holes.
MOST_FOREIGN_RECORDS = 1 << 20


class LoopReader:
    """Reader of a running loop, usually of another process; made by :func:`~rtloop.running`.

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
    blocks : dict
        Inodes of its further blocks of shared memory, by kind: ``"parameters"`` and the like.
    """

    def __init__(self, file: BlockFile, block: ForeignBlock, task: Task) -> None:
        header, self._text = block.header, block.text()
        said = description.read(self._text)
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
        self.blocks = said.blocks
        self._swaps, self._last_swaps = said.swaps, said.last_swaps
        self._live = LiveGrants(said.grants, task.pid, task.tid, descriptors=said.descriptors)
        self.started_ns = said.started_ns
        self.policy = format_policy(policy, header["priority"])  # type: ignore[arg-type]
        if task.is_alive:
            self._read_grants(None)

    def _read_grants(self, files: dict[str, str] | None) -> None:
        """Read the grants of a thread that is alive again; those of one that has ended stay as they were seen last."""
        self.grants = self._live.now(files=files)
        self.policy = next((str(grant.granted) for grant in self.grants if grant.name == "policy"), self.policy)

    @property
    def name(self) -> str:
        """Name of the loop, on one line."""
        return str(self._settings["name"]).replace("\n", "\N{REPLACEMENT CHARACTER}")

    @property
    def label(self) -> str:
        """Name of the loop, after that of its group: ``"arm/motor"``; of a loop that runs alone, its name."""
        group = self._settings.get("group")
        return self.name if group is None else f"{group}/{self.name}".replace("\n", "\N{REPLACEMENT CHARACTER}")

    def is_called(self, name: str) -> bool:
        """Return True if a user who writes this name may mean the loop: its name, with its group's or without."""
        return name in (self.name, self.label)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the loop."""
        return dict(self._settings)

    @property
    def is_described(self) -> bool:
        """True if the loop had written its description when this reader was made: which it does last in a start."""
        return self.started_ns != 0

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

    @property
    def swaps(self) -> tuple[int, int]:
        """Number of swaps in this run, and the first cycle of the present step, read at each use.

        Raises
        ------
        AttachError
            If the loop's description is damaged.
        """
        text = self._opened().text()
        if text and text != self._text:  # empty while it is being written
            try:
                said = description.read(text)
            except ValueError as error:
                raise self._unreadable(error) from error
            self._text, self._swaps, self._last_swaps = text, said.swaps, said.last_swaps
        return self._swaps

    @property
    def last_swaps(self) -> tuple[Swap, ...]:
        """Last swaps of this run, at most eight, the newest last, read at each use.

        Raises
        ------
        AttachError
            If the loop's description is damaged.
        """
        return self._last_swaps if self.swaps[0] else ()

    def snapshot(self, records: int) -> Snapshot:
        """Return the raw figures, with a limited number of records, for callers that read them many times a second.

        Raises
        ------
        AttachError, StateError
            As :meth:`read`.
        """
        try:
            return self._opened().snapshot(records=min(records, MOST_FOREIGN_RECORDS))
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError | ValueError) -> AttachError:
        reason = error.strerror if isinstance(error, OSError) else error
        return AttachError(f"the telemetry of {self.name} (process {self.pid}) cannot be read: {reason}")

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
        return self._read(records, None)

    def sample(self, records: int, files: dict[str, str]) -> tuple[Stats, int | None]:
        """Return the statistics as :meth:`read` does, and the CPU that the thread ran on last.

        For callers that read many loops.

        Parameters
        ----------
        records : int
            As of :meth:`read`.
        files : dict
            Content of files of processes, by path, which are read once for all their loops: new for each round.

        Raises
        ------
        AttachError, StateError
            As :meth:`read`.
        """
        return self._read(records, files), self._task.cpu_at_usage

    def _read(self, records: bool | int, files: dict[str, str] | None) -> Stats:
        block = self._opened()
        if self.is_foreign and records is not False:
            records = MOST_FOREIGN_RECORDS if records is True else min(records, MOST_FOREIGN_RECORDS)
        try:
            self._task.was_alive = False
            snapshot: Snapshot = block.snapshot(records=records)
            # Unless the run has ended, the snapshot has just looked at the thread.
            state = "running" if self._task.was_alive and not block.has_ended else self.state
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if state == "running":
            self._read_grants(files)
        stack = StackUse(int(self._settings.get("stack_bytes", 0)), None)
        return assemble_stats(
            self.settings,
            state,
            self.grants,
            snapshot,
            {**self._host, "tai_offset_s": tai_offset_s()},
            stack=stack,
            forks=None,
            live={"parameter_changes": None, "swaps": None},
        )

    def close(self) -> None:
        """Unmap the loop's memory. A second call does nothing."""
        self._block = None
        self._task.close()

    @property
    def block(self) -> ForeignBlock:
        """The loop's telemetry; it stays mapped as long as the caller keeps it."""
        return self._opened()

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
