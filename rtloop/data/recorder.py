"""Recorder: a thread of ordinary priority that drains a ring to disk, so that the loop never waits for the disk."""

from __future__ import annotations

import _thread
import errno
import os
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from rtloop.data.ownership import claim_reader, release_reader
from rtloop.errors import ConfigError, RecorderError, RTSetupWarning, StateError
from rtloop.process.exit_hooks import RECORDERS, WeakObjects, at_end, watch
from rtloop.process.interpreter import with_filters_of_caller
from rtloop.process.nap import nap
from rtloop.process.signal_shield import become_ordinary, start_thread
from rtloop.system import refusal_cause
from rtloop.units import parse_duration

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from rtloop.data.record_files import RecordFile

__all__ = ["Recorder", "record_source"]

# Small, because it may be locked; NumPy and file compression need no more.
_STACK_BYTES = 1 << 20


class _Ring(Protocol):
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def capacity(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    def drain(self, count: int | None = None, /) -> NDArray[Any]: ...


class _Log(Protocol):
    @property
    def ring(self) -> _Ring: ...


class _Reader(Protocol):
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def capacity(self) -> int: ...
    @property
    def lost(self) -> int: ...
    def read(self, most: int | None = None) -> NDArray[Any]: ...


class _Signals(Protocol):
    def reader(self) -> _Reader: ...


class SignalFeed:
    """The samples of a loop's signals from now on, with the methods of a ring."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self.dtype = reader.dtype
        self.capacity = reader.capacity

    @property
    def dropped(self) -> int:
        """Number of samples that were overwritten before they were drained."""
        return self._reader.lost

    def drain(self, most: int | None = None) -> NDArray[Any]:
        """Return the next samples."""
        return self._reader.read(most)


def record_source(source: Any) -> _Ring:
    """Return the source of the records: a ring, that of a SignalLog, or a new reader of a loop's signals."""
    if hasattr(source, "reader"):
        return SignalFeed(source.reader())
    found: _Ring = source.ring if hasattr(source, "ring") else source
    return found


class Recorder:
    """Write a loop's signals, or the items of a ring, to a file, in a background thread, until it is closed.

    The thread runs under SCHED_OTHER on the CPUs of the process's main thread, whichever thread starts it. Every
    `interval` it empties the ring and writes the items as one piece, so that a process that is killed loses at most the
    last one. It then leaves an ``.npy`` file that is readable as it is (``run.npz.part.npy`` for ``run.npz``), or an
    ``.mcap`` file without its index, which ``mcap recover`` adds. A machine that loses power may lose what the kernel
    had not written.

    Parameters
    ----------
    ring : Signals, Ring or SignalLog
        Source of the records: ``loop.signals``, which it reads from now on, as one of any number of readers; or a ring,
        of which it is the only consumer until it is closed.
    path : path
        Output file. The suffix chooses the format: ``.npy``, an array of records; ``.npz``, the same compressed on
        close, with information on the recording (`about`: JSON with ``written``, ``lost``, ``begun_ns``, ``ended_ns``,
        ``tai_offset_start_s``, ``tai_offset_s``, and all clocks at both moments, which place times of any clock in
        UTC); ``.mcap``, JSON messages with a schema, for Foxglove and the like, with the same information as its
        metadata ``rtloop``; ``.csv``, a line of names and a line for each record. An existing file is replaced.
    interval : int or str or timedelta
        Time between two drains. The ring must be able to hold what comes in the meantime, and in the pauses that other
        Python threads and the disk force upon this one. Room for a second of records is a good size.
    topic : str
        Name of the channel in an ``.mcap`` file.

    Raises
    ------
    ConfigError
        On any other suffix.
    OSError
        If the file cannot be created.

    Examples
    --------
    >>> with rtloop.Recorder(loop.signals, "run.npy") as recorder:
    ...     loop.run("10s")
    >>> print(recorder.written, recorder.lost)
    """

    def __init__(
        self,
        ring: _Ring | _Log | _Signals,
        path: str | os.PathLike[str],
        *,
        interval: Any = "50ms",
        topic: str = "/rtloop",
    ) -> None:
        from rtloop.data.record_files import open_record_file

        self._interval = parse_duration(interval, "interval", minimum=1_000_000) * 1e-9
        self._ring: _Ring = record_source(ring)
        if not all(hasattr(self._ring, name) for name in ("drain", "dropped", "dtype")):
            raise ConfigError(f"{ring!r} cannot be recorded; give loop.signals, a Ring or a SignalLog")
        self._dropped_before = self._ring.dropped
        self._taken = 0
        self._error: Exception | None = None
        self._is_told = False
        self._pid = os.getpid()
        # Bare locks and flags: a signal handler may call this without a deadlock.
        self._wake = _thread.allocate_lock()  # released to request a drain now
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
            watch()
            # Unlike a threading.Thread, it is not joined at the interpreter's end before it could be closed.
            self._start_thread()
            is_started = True
        except BaseException:  # of a signal handler, or because there is no room for a thread
            self._is_closing = True
            self._kick()
            if not is_started:
                release_reader(self._ring)
                self._is_ended = True
                self._file.abandon()
            raise

    def _start_thread(self) -> None:
        try:
            start_thread(with_filters_of_caller(self._work), (), _STACK_BYTES, "rtloop-recorder")
        except RuntimeError as error:
            if "thread" not in str(error):  # of a signal handler
                raise
            text = refusal_cause.describe_thread_failure(f"{self.path}: {error}; ", errno.EAGAIN)
            raise RecorderError(errno.EAGAIN, text) from error

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._file.path

    @property
    def written(self) -> int:
        """Number of records in the file."""
        return self._file.count

    @property
    def lost(self) -> int:
        """Number of records that are not in the file: dropped by a full ring, or refused by the disk."""
        if self._pid != os.getpid():
            return 0
        unwritten: int = self._taken - self.written if self._error is not None else 0
        return self._ring.dropped - self._dropped_before + unwritten

    @property
    def error(self) -> Exception | None:
        """Error that ended the recording, or None. :meth:`flush` raises it, else :meth:`close`."""
        return self._error

    @property
    def closed(self) -> bool:
        """True if the recording has ended."""
        return self._is_ended or self._pid != os.getpid()

    def flush(self, timeout: Any = "10s") -> None:
        """Wait until everything that was in the ring at the time of the call is in the file.

        The last messages of an ``.mcap`` file, less than 32 KiB, are written when their chunk is full.

        Raises
        ------
        RecorderError
            If the disk refused it.
        TimeoutError
            If the disk takes longer.
        StateError
            After close(), and in a forked child.
        """
        if self.closed:
            raise StateError(f"the recording to {self.path} has ended")
        limit = time.monotonic() + parse_duration(timeout, "timeout") * 1e-9
        wanted = self._rounds + 2  # the round that is under way may have begun before
        while self._rounds < wanted and not self._is_ended:
            self._kick()
            nap(0.001)
            if limit < time.monotonic():
                raise TimeoutError(f"{self.path}: writing has taken longer than {timeout}")
        self._raise()

    def close(self) -> None:
        """Drain the ring once more and complete the file. A second call does nothing.

        Raises
        ------
        RecorderError
            If the disk refused a write and :meth:`flush` has not raised it; what was written before stays.
        """
        if self._pid != os.getpid():
            return  # the thread, the file and the ring are the parent's
        self._is_closing = True
        self._kick()
        while not self.closed:  # which it is in a child of a fork meanwhile
            nap(0.002)
        _recorders.discard(self)
        if not self._is_told:
            self._is_told = True
            self._raise()

    def _kick(self) -> None:
        with suppress(RuntimeError):  # released before
            self._wake.release()

    def _raise(self) -> None:
        if self._error is not None:
            self._is_told = True
            number = getattr(self._error, "errno", None) or 0
            raise RecorderError(number, self._describe(self._error)) from self._error

    def _describe(self, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or repr(error)
        return (
            f"{self.path}: {reason}: recording ended after {self.written} records. The loop was not disturbed; later "
            "records are counted in `lost`"
        )

    def _work(self) -> None:
        try:
            self._tid = _thread.get_native_id()
            become_ordinary()
            is_last = False
            while not is_last:
                self._wake.acquire(timeout=self._interval)
                is_last = self._is_closing  # read first, so that the last drain finds all earlier items
                try:
                    self._drain()
                except BufferError:
                    is_last = False  # a view of the ring is open: next time
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
        """End the recording: the file stays as it is, and the ring is still drained so that it does not fill up."""
        if self._error is not None:
            return
        self._error = error
        self._file.abandon()
        # Warned at once, because a run may go on for hours, and on this thread, not the loop's.
        with suppress(Exception):  # a program may have turned warnings into errors
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
            error.add_note(f"the recorder failed, too: {own}")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "recording"
        return f"<Recorder to {self.path}, {state}: {self.written} written, {self.lost} lost>"


_recorders: WeakObjects[Recorder] = WeakObjects()


def _close_all() -> None:
    """Complete the files at the interpreter's end, after the loops."""
    for recorder in _recorders:
        try:
            recorder.close()
        except RecorderError as error:
            with suppress(Exception):
                warnings.warn(str(error), RTSetupWarning, stacklevel=1)


at_end(RECORDERS, _close_all, lambda: any(not recorder.closed for recorder in _recorders))
