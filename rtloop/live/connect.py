"""rtloop.connect: read and tune a running loop of another process."""

from __future__ import annotations

import time
from types import TracebackType

from rtloop.errors import StateError
from rtloop.live.foreign_parameters import ForeignParameterSet, NoParameters, open_parameters
from rtloop.live.foreign_signals import open_signals
from rtloop.live.parameters import Parameters
from rtloop.live.signals import Signals
from rtloop.process.nap import nap
from rtloop.stats.stats import Stats
from rtloop.telemetry.attach import find_loop
from rtloop.telemetry.loop_reader import LoopReader

__all__ = ["Connection", "connect"]

#: Longest wait for a loop that is being started to write its description.
_PATIENCE_S = 2.0


class Connection:
    """A running loop of another process, or of this one; made by :func:`rtloop.connect`.

    Attributes
    ----------
    parameters : Parameters
        Its parameters, to read and to change; an empty mapping if it has none.
    """

    def __init__(self, reader: LoopReader) -> None:
        self._reader = reader
        self._signals: dict[str, Signals] = {}
        inode = reader.blocks.get("parameters")
        self._parameters: ForeignParameterSet | NoParameters = (
            NoParameters(reader.name)
            if inode is None
            else open_parameters(reader.pid, reader.name, inode, lambda: reader.state == "running")
        )
        self.parameters = Parameters(self._parameters)
        self._is_closed = False

    @property
    def name(self) -> str:
        """Name of the loop."""
        return self._reader.name

    @property
    def label(self) -> str:
        """Name of the loop, after that of its group: ``"arm/motor"``; of a loop that runs alone, its name."""
        return self._reader.label

    @property
    def pid(self) -> int:
        """Process of the loop."""
        return self._reader.pid

    @property
    def period_ns(self) -> int:
        """Period of the loop, ns."""
        return int(self._reader.settings["period_ns"])

    @property
    def clock(self) -> str:
        """Clock of its releases: ``"monotonic"`` and the like."""
        return str(self._reader.settings["clock"])

    @property
    def state(self) -> str:
        """``"running"``, ``"stopped"``, ``"failed"``, or ``"died"`` if its process was killed."""
        return self._reader.state

    @property
    def telemetry(self) -> LoopReader:
        """Reader of the loop's statistics."""
        return self._reader

    @property
    def stats(self) -> Stats:
        """Present statistics of the loop: a consistent snapshot that does not delay it."""
        return self._reader.stats

    def read(self, *, records: bool | int = True) -> Stats:
        """Return the present statistics, with all records of the last cycles or with at most a number of them."""
        return self._reader.read(records=records)

    @property
    def signals(self) -> Signals:
        """Samples of the loop's signals. The first ``read()`` begins with the oldest that is kept.

        Raises
        ------
        StateError
            If the loop has no signals, or after :meth:`close`.
        AttachError
            If they cannot be read.
        """
        if self._is_closed:
            raise StateError(f"the connection to {self.name} is closed")
        found = self._signals.get("own")
        return found if found is not None else self._signals.setdefault("own", open_signals(self._reader))

    def _map_signals(self) -> None:
        """Map the loop's signals, if it has any, so that they can still be read after the end of its process."""
        if "signals" in self._reader.blocks:
            self._signals.setdefault("own", open_signals(self._reader))

    @property
    def _mapped_signals(self) -> Signals | None:
        """The loop's signals; None if they have not been mapped."""
        return self._signals.get("own")

    def close(self) -> None:
        """Unmap the loop's memory; readers of its signals can still read. A second call does nothing."""
        self._is_closed = True
        self._signals.clear()
        self._parameters.close()
        self._reader.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Connection to {self.name!r} in process {self.pid}>"


def connect(name: str | None = None, pid: int | None = None) -> Connection:
    """Connect to a running loop, usually of another process, to read its statistics and change its parameters.

    Whoever may trace the process (ptrace(2)) may connect: root, and the same user if the process has no greater
    privileges. A loop that was made with ``tunable=False`` refuses changes. A connection costs the loop nothing. A
    program that is killed in the middle of a change leaves the loop as it was.

    Parameters
    ----------
    name : str, optional
        Name of the loop. If neither is given, exactly one loop must be running. In a group its name may begin with that
        of the group: ``"arm/motor"``.
    pid : int, optional
        Process of the loop; needed if loops of several processes have the name.

    Returns
    -------
    Connection
        With ``parameters``, ``signals``, ``stats`` and ``close()``; a context manager.

    Raises
    ------
    AttachError
        If no running loop matches, or more than one; the message lists those that run.
    AttachPrivilegeError
        If the process may not be inspected; also a PermissionError.

    Examples
    --------
    ::

        with rtloop.connect("motor") as motor:
            motor.parameters.update(kp=8, kd=0.1)
            print(motor.signals.latest()["angle"])
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        reader = find_loop(pid, name, "connect()")
        # A loop writes its description last in a start; one whose description did not fit has none.
        if reader.is_described or time.monotonic() > deadline:
            break
        reader.close()
        nap(0.001)
    try:
        return Connection(reader)
    except BaseException:
        reader.close()
        raise
