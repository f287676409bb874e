"""ChildMember: a ProcessLoop as a loop of a group, as a Control is for a loop of this process."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rtloop.child.child_process import Membership
from rtloop.loop.overdue import Overdue
from rtloop.loop.thread import LoopThread, state_bytes
from rtloop.process import ending_signals

if TYPE_CHECKING:
    from rtloop.child.child_process import ChildProcess
    from rtloop.settings import Settings
    from rtloop.telemetry.foreign_block import ForeignBlock

__all__ = ["ChildMember", "Files"]


class _ProcessLoop(Protocol):
    """Parts of a ProcessLoop that its member uses."""

    _starting: ChildProcess | None
    _child: ChildProcess | None

    @property
    def settings(self) -> Settings: ...
    @property
    def state(self) -> str: ...
    def foreign_block(self) -> ForeignBlock: ...
    def join(self, timeout: Any = None) -> bool: ...
    def _claim(self, run: Any, settings: Settings) -> None: ...
    def _launch(self, cycles: int | None, duration_ns: int | None, membership: Membership | None) -> None: ...
    def _release(self) -> None: ...
    def _abandon(self) -> None: ...
    def _stop(self, timeout_ns: int) -> None: ...
    def _settle(self) -> None: ...
    def _unreported(self) -> BaseException | None: ...


class Files(NamedTuple):
    """Files that become ready when the loop fails or its process ends, and the events of poll(2) to wait for.

    Attributes
    ----------
    failure : int
        Readable when the loop has failed.
    end, end_events : int
        Shows that the process has ended.
    """

    failure: int
    end: int
    end_events: int


class ChildMember:
    """Member of a group that stands for a ProcessLoop.

    The state of the loop is in memory that both processes map, so a group sets the origin, sends commands and watches
    the loop as if it ran in this process.

    Parameters
    ----------
    loop : ProcessLoop
        The loop.

    Attributes
    ----------
    thread : LoopThread
        The state of the present or last run; its thread is in the other process.
    run : object or None
        Run of the group that the present or last run belongs to.
    """

    def __init__(self, loop: _ProcessLoop) -> None:
        self._loop = loop
        self._files: list[int] = []
        self.run: Any = None
        self.thread = LoopThread(loop.settings)

    @property
    def settings(self) -> Settings:
        """The settings of the current run, or of the last one."""
        return self._loop.settings

    @property
    def leave_timeout_ns(self) -> int:
        """Time that an end waits for the present step and for leave."""
        return self._loop.settings.leave_timeout_ns

    @property
    def state(self) -> str:
        """``"new"``, ``"running"``, ``"stopped"`` or ``"failed"``."""
        return self._loop.state

    @property
    def telemetry(self) -> ForeignBlock:
        """Telemetry of the present run, as mapped in this process.

        Raises
        ------
        AttachError
            If this process may not read it.
        """
        return self._loop.foreign_block()

    @property
    def is_idle(self) -> bool:
        """True if it is neither being started nor running."""
        return self._child() is None or not self.is_under_way()

    def _child(self) -> ChildProcess | None:
        return self._loop._starting or self._loop._child

    def is_under_way(self) -> bool:
        """Return True if the process exists and was not reaped."""
        child = self._child()
        return child is not None and not child.look()

    def is_on_own_thread(self) -> bool:
        """Return False, because no callback runs in this process."""
        return False

    def settle_change(self) -> None:
        """Do nothing, because a step in another process cannot be swapped."""

    def claim(self, run: Any, settings: Settings) -> None:
        """Begin a start as a part of a group's run, with these settings.

        Raises
        ------
        StateError
            If the loop is not idle, or closed, or may not be started here.
        """
        self._loop._claim(run, settings)

    def prepare(self, owner: _ProcessLoop, cycles: int | None = None, duration_ns: int | None = None) -> None:
        """Start the process, which does everything except releasing its thread; :meth:`withdraw` undoes it."""
        self._close_files()
        self.thread = LoopThread(self._loop.settings)
        state = os.memfd_create("rtloop-state", os.MFD_CLOEXEC)
        try:
            os.ftruncate(state, state_bytes())
            self.thread.share_state(state)
            failure = os.eventfd(0, os.EFD_CLOEXEC)
            self._files = [failure]
            membership = Membership(self.run.name, self._loop.settings, state, failure)
            owner._launch(cycles, duration_ns, membership)
        finally:
            os.close(state)

    def take_files(self) -> Files:
        """Return the files that become ready at a failure and at the end of the process. The caller closes them."""
        child = self._child()
        assert child is not None
        end, events = child.end_file()
        (failure,), self._files = self._files, []
        return Files(failure, end, events)

    def release_thread(self) -> None:
        """Let the other process release its thread."""
        self._loop._release()

    def withdraw(self) -> None:
        """Undo a start at any stage."""
        try:
            if self._loop._starting is not None:
                self._loop._abandon()
            else:
                self._loop._stop(self.leave_timeout_ns)
        finally:
            self._close_files()

    def _close_files(self) -> None:
        files, self._files = self._files, []
        for file in files:
            os.close(file)

    def make_overdue(self) -> Overdue:
        """Make a judge that finds nothing, because the loop's own process judges it, and reports it as its failure."""
        return Overdue(lambda: None, self.leave_timeout_ns)

    def request_stop(self) -> None:
        """Ask the loop to end, without waiting for it."""
        child = self._child()
        if child is not None:
            child.request_stop()

    def end_run(self, timeout_ns: int, interrupts: list[BaseException], must_reap: bool = True) -> bool:
        """Ask the loop to end and wait for the end of its process. Returns True if it has ended."""
        child = self._child()
        if child is None or child.is_in_child():
            return True
        armed = ending_signals.arm()
        try:
            return child.end_run(timeout_ns, interrupts)
        finally:
            ending_signals.disarm(armed)

    def wait(self, timeout_ns: int | None = None) -> bool:
        """Wait for the end of the process. Returns True if it has ended."""
        child = self._child()
        return child is None or child.wait(None if timeout_ns is None else time.monotonic_ns() + timeout_ns)

    def reap(self) -> bool:
        """Keep the results of a run that has ended. Returns True if the run has not ended."""
        self._loop._settle()
        return self.is_under_way()

    def join(self, timeout_ns: int | None = None) -> bool:
        """Wait for the end, and raise the reason if the loop failed. Returns True if it has ended."""
        return self._loop.join(timeout_ns)

    def unreported_error(self) -> BaseException | None:
        """Return the exception of a failed run once, if nothing has raised it; otherwise None."""
        return self._loop._unreported()
