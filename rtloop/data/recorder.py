"""Recorder: a thread at ordinary priority that drains a ring to disk, so that the loop never waits for one."""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Protocol, cast

from rtloop.errors import RecorderError, RTSetupWarning, StateError
from rtloop.units import parse_duration

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from rtloop.data.files import RecordFile

__all__ = ["Recorder"]

# Little to lock where all memory is locked; NumPy and a packer of files need no more.
_STACK_BYTES = 1 << 20


class _Ring(Protocol):
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def dropped(self) -> int: ...
    def drain(self) -> NDArray[Any]: ...


class _Log(Protocol):
    @property
    def ring(self) -> _Ring: ...


class Recorder:
    """Write what comes out of a ring to a file, in a background thread, until it is closed.

    The thread runs under SCHED_OTHER on the CPUs of the process's main thread, whoever starts it. It empties the ring
    every `interval` and writes what it found as one piece: a process that is killed loses at most the last one. The
    file that is left is readable as it is (for ``.npz`` a ``.npy`` of the same name). A machine that loses power may
    lose what the kernel had not written yet.

    Parameters
    ----------
    ring : Ring or SignalLog
        What to drain; the recorder is its one consumer until it is closed.
    path : path
        Where to. The suffix chooses the format: ``.npy``, an array of records; ``.npz``, the same, compressed when it
        is closed, with what is known of the recording; ``.mcap``, for Foxglove and the like, JSON messages with a
        schema. An existing file is replaced.
    interval : int or str or timedelta
        How often to drain. The ring must be able to hold what comes in the meantime, and in the pauses that other
        Python threads and the disk force upon this one: a second's worth is a good size.
    topic : str
        The channel's name in an ``.mcap`` file.

    Raises
    ------
    ConfigError
        On a suffix that is none of these.
    OSError
        Where the file cannot be made.

    Examples
    --------
    >>> with rtloop.Recorder(loop.log, "run.npy") as recorder:
    ...     loop.run("10s")
    >>> print(recorder.written, recorder.lost)
    """

    def __init__(
        self, ring: _Ring | _Log, path: str | os.PathLike[str], *, interval: Any = "50ms", topic: str = "/rtloop"
    ) -> None:
        from rtloop.data.files import open_record_file

        self._interval = parse_duration(interval, "interval", minimum=1_000_000) * 1e-9
        self._ring: _Ring = cast("_Log", ring).ring if hasattr(ring, "ring") else ring
        self._dropped_before = self._ring.dropped
        self._taken = 0
        self._error: Exception | None = None
        self._is_told = False
        self._pid = os.getpid()
        self._wake = threading.Event()  # somebody wants a drain now
        self._drained = threading.Condition()
        self._rounds = 0
        self._is_closing = self._is_ended = False
        self._file: RecordFile = open_record_file(path, self._ring.dtype, topic)
        former = _thread.stack_size(_STACK_BYTES)
        try:
            # A daemon, or the interpreter's end would wait for it before anybody could close it.
            self._thread = threading.Thread(target=self._work, name="rtloop-recorder", daemon=True)
            self._thread.start()
        except BaseException:
            self._file.abandon()
            raise
        finally:
            _thread.stack_size(former)
        _recorders.add(self)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def written(self) -> int:
        """How many records are in the file."""
        return self._file.count

    @property
    def lost(self) -> int:
        """How many records are not: those the full ring dropped, and those taken from it that could not be written."""
        unwritten = self._taken - self.written if self._error is not None else 0
        return self._ring.dropped - self._dropped_before + unwritten

    @property
    def error(self) -> Exception | None:
        """What went wrong, and ended the recording. :meth:`flush` or :meth:`close` raises it, once."""
        return self._error

    @property
    def closed(self) -> bool:
        """Whether the recording has ended."""
        return self._is_ended or self._pid != os.getpid()

    def flush(self, timeout: Any = "10s") -> None:
        """Wait until everything that was in the ring at the time of the call is in the file.

        Of an ``.mcap`` file the last messages, less than 32 KiB, wait for their chunk to be full.

        Raises
        ------
        RecorderError
            Where the disk refused it.
        TimeoutError
            Where the disk takes longer.
        StateError
            After close(), and in a forked child.
        """
        if self.closed:
            raise StateError(f"the recording to {self.path} has ended")
        limit = time.monotonic() + parse_duration(timeout, "timeout") * 1e-9
        with self._drained:
            wanted = self._rounds + 2  # the round that is under way may have begun before
            while self._rounds < wanted and not self._is_ended:
                self._wake.set()
                if not self._drained.wait(min(0.05, max(0.0, limit - time.monotonic()))) and limit < time.monotonic():
                    raise TimeoutError(f"{self.path}: the disk has taken longer than {timeout} to write")
        self._raise()

    def close(self) -> None:
        """Drain the ring once more, complete the file, and end. A second call does nothing.

        Raises
        ------
        RecorderError
            Where the disk refused anything, and :meth:`flush` has not said so; what was written before stays.
        """
        if self._pid != os.getpid():
            return  # the thread, the file and the ring are the parent's
        self._is_closing = True
        self._wake.set()
        while self._thread.is_alive():
            self._thread.join(0.05)
        _recorders.discard(self)
        if not self._is_told:
            self._is_told = True
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            self._is_told = True
            number = getattr(self._error, "errno", None) or 0
            raise RecorderError(number, self._describe(self._error)) from self._error

    def _describe(self, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or repr(error)
        return (
            f"{self.path}: {reason}: recording ended after {self.written} records. The loop was not disturbed; what "
            "came later is counted in `lost`"
        )

    def _work(self) -> None:
        try:
            _become_ordinary()
            is_last = False
            while not is_last:
                self._wake.wait(self._interval)
                self._wake.clear()
                is_last = self._is_closing  # read first: what comes after it is in the ring already
                self._drain()
                with self._drained:
                    self._rounds += 1
                    self._drained.notify_all()
            if self._error is None:
                self._complete()
        finally:
            with self._drained:
                self._is_ended = True
                self._drained.notify_all()

    def _drain(self) -> None:
        records = self._ring.drain()
        if not len(records):
            return
        self._taken += len(records)
        if self._error is not None:
            return
        try:
            self._file.append(records)
        except Exception as error:  # whatever a disk, a codec or the memory comes up with
            self._fail(error)

    def _complete(self) -> None:
        try:
            self._file.close({"written": self._taken, "lost": self.lost})
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End the recording: what is in the file stays, and the ring is emptied for as long as anybody fills it."""
        self._error = error
        self._file.abandon()
        # Now, for a run may go on for hours, and from here: the loop must not hear of it.
        warnings.warn(self._describe(error), RTSetupWarning, stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RecorderError as own:
            if error is None:
                raise
            error.add_note(f"and the recorder failed: {own}")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "recording"
        return f"<Recorder to {self.path}, {state}: {self.written} written, {self.lost} lost>"


def _become_ordinary() -> None:
    """Leave the policy and the CPUs of a real-time thread that may have made this one."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _close_all() -> None:
    """At the interpreter's end: complete the files. The loops' own end comes later, for it was asked for earlier."""
    for recorder in list(_recorders):
        try:
            recorder.close()
        except RecorderError as error:
            warnings.warn(str(error), RTSetupWarning, stacklevel=1)


atexit.register(_close_all)
