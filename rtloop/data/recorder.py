"""Recorder: a thread at ordinary priority that drains a ring to disk, so that the loop never waits for one."""

from __future__ import annotations

import _thread
import os
import time
import warnings
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from rtloop.data.ownership import claim_reader, release_reader
from rtloop.errors import ConfigError, RecorderError, RTSetupWarning, StateError
from rtloop.system.exit_hooks import RECORDERS, at_end
from rtloop.units import parse_duration

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from rtloop.data.record_files import RecordFile

__all__ = ["Recorder", "become_ordinary"]

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
    every `interval` and writes what it found as one piece: a process that is killed loses at most the last one. What
    it leaves is an ``.npy`` file that is readable as it is; for ``run.npz`` that is ``run.npz.part.npy``; an ``.mcap``
    file without its index, which ``mcap recover`` adds. A machine that loses power may lose what the kernel had not
    written.

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
        from rtloop.data.record_files import open_record_file

        self._interval = parse_duration(interval, "interval", minimum=1_000_000) * 1e-9
        self._ring: _Ring = cast("_Log", ring).ring if hasattr(ring, "ring") else ring
        if not all(hasattr(self._ring, name) for name in ("drain", "dropped", "dtype")):
            raise ConfigError(f"{ring!r} is nothing to record; give a Ring or a SignalLog, such as loop.log")
        self._dropped_before = self._ring.dropped
        self._taken = 0
        self._error: Exception | None = None
        self._is_told = False
        self._pid = os.getpid()
        # Bare locks and flags: what a signal handler may call has nothing that it could wait for itself on.
        self._wake = _thread.allocate_lock()  # released: somebody wants a drain now
        self._wake.acquire()
        self._rounds = 0
        self._tid = 0
        self._is_closing = self._is_ended = False
        claim_reader(self._ring)
        is_started = False
        try:
            self._file: RecordFile = open_record_file(path, self._ring.dtype, topic)
        except BaseException:
            release_reader(self._ring)
            raise
        try:
            _recorders.add(self)
            with _stack_size:
                former = _thread.stack_size(_STACK_BYTES)
                try:
                    # Nobody waits for such a thread at the interpreter's end, before the recorder could be closed.
                    _thread.start_new_thread(self._work, ())
                    is_started = True
                finally:
                    _thread.stack_size(former)
        except BaseException:  # a signal handler's, or of a process without room for a thread
            self._is_closing = True
            self._kick()
            if not is_started:
                release_reader(self._ring)
                self._is_ended = True
                self._file.abandon()
            raise

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
        if self._pid != os.getpid():
            return 0
        unwritten = self._taken - self.written if self._error is not None else 0
        return self._ring.dropped - self._dropped_before + unwritten

    @property
    def error(self) -> Exception | None:
        """What went wrong, and ended the recording. :meth:`flush` raises it, and :meth:`close` if nothing else has."""
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
        wanted = self._rounds + 2  # the round that is under way may have begun before
        while self._rounds < wanted and not self._is_ended:
            self._kick()
            time.sleep(0.001)
            if limit < time.monotonic():
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
        self._kick()
        while not self._is_ended:
            time.sleep(0.002)
        _recorders.discard(self)
        if not self._is_told:
            self._is_told = True
            self._raise()

    def _kick(self) -> None:
        with suppress(RuntimeError):  # it is released already
            self._wake.release()

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
            self._tid = _thread.get_native_id()
            become_ordinary()
            is_last = False
            while not is_last:
                self._wake.acquire(timeout=self._interval)
                is_last = self._is_closing  # read first: what comes after it is in the ring already
                try:
                    self._drain()
                except BufferError:
                    is_last = False  # somebody looks at the ring's items in place: next time
                except Exception as error:
                    self._fail(error)
                self._rounds += 1
            if self._error is None:
                self._complete()
        finally:
            release_reader(self._ring)
            self._is_ended = True

    def _drain(self) -> None:
        records = self._ring.drain()
        self._taken += len(records)
        if len(records) and self._error is None:
            self._file.append(records)

    def _complete(self) -> None:
        try:
            self._file.close({"written": self._taken, "lost": self.lost})
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End the recording: what is in the file stays, and the ring is emptied for as long as anybody fills it."""
        if self._error is not None:
            return
        self._error = error
        self._file.abandon()
        # Now, for a run may go on for hours, and from here: the loop must not hear of it.
        with suppress(Exception):  # a program may have made warnings errors
            warnings.warn(self._describe(error), RTSetupWarning, stacklevel=2)

    def __enter__(self) -> Self:
        if self.closed:
            raise StateError(f"the recording to {self.path} has ended: make a new Recorder")
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


def become_ordinary() -> None:
    """Leave the policy and the CPUs of a real-time thread that may have made this one."""
    with suppress(OSError):  # SCHED_IDLE is not left without a privilege, and a cpuset may be shrinking
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
_stack_size = _thread.allocate_lock()  # the size for new threads is one for the process


def _close_all() -> None:
    """At the interpreter's end, when the loops have ended: complete the files."""
    for recorder in list(_recorders):
        try:
            recorder.close()
        except RecorderError as error:
            with suppress(Exception):
                warnings.warn(str(error), RTSetupWarning, stacklevel=1)


at_end(RECORDERS, _close_all)
