"""Private instances of the kernel's trace, in tracefs (Documentation/trace/ftrace.rst); other traces are left alone."""

from __future__ import annotations

import errno
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rtloop.errors import RtloopError
from rtloop.process.nap import nap
from rtloop.process.signal_shield import ShieldedLock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MOUNT", "TraceInstance", "find_root", "remove_stale"]

_ROOTS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
MOUNT = "sudo mount -t tracefs none /sys/kernel/tracing"
#: How an event is written as text: an instance begins with the options that somebody has set for the main trace.
_OPTIONS = {
    "context-info": 1, "irq-info": 1, "overwrite": 1, "record-cmd": 1, "raw": 0, "hex": 0, "bin": 0, "fields": 0,
    "latency-format": 0, "verbose": 0, "pause-on-trace": 0,
}  # fmt: skip
#: A program that is being started keeps the inherited file of an instance until its exec, s.
_EXEC_S = 0.1
#: Space of one read: the kernel returns whole lines of at most two pages.
_READ_BYTES = 1 << 17


def find_root() -> Path:
    """Return the folder of tracefs.

    Raises
    ------
    RtloopError
        If tracefs is not mounted, or hidden from this user.
    """
    for root in map(Path, _ROOTS):
        if (root / "tracing_on").exists():
            return root
    raise RtloopError(f"tracefs is not mounted, or hidden from this user; fix: {MOUNT}")


def remove_stale(root: Path) -> None:
    """Remove instances left by killed processes: each holds kernel memory for every CPU.

    One that is in use cannot be removed, though its process may have another number here. One that has the number of
    this process, and is none of its own, is of an earlier process with the same number.
    """
    own = {instance.name for instance in list(TraceInstance._open)}
    for folder in (root / "instances").glob("rtloop-*"):
        pid = folder.name.split("-")[1]
        is_left = folder.name not in own if pid == str(os.getpid()) else not Path("/proc", pid).exists()
        if pid.isdigit() and is_left:
            with suppress(OSError):
                folder.rmdir()


class TraceInstance:
    """Instance of the kernel's trace, for one owner in this process.

    Parameters
    ----------
    name : str
        Its name, after the number of the process.
    events : mapping
        Events to be traced, "sched/sched_switch" or a whole system, with their filters; "" for none. The kernel may
        lack some.
    cpus : iterable of int
        CPUs to be traced; None: all.
    size_kb : int
        Size of the ring of each of them.
    is_read : bool
        True if it is read while it is written: its files are then open until :meth:`close`.

    Attributes
    ----------
    name : str
        Name of its folder.
    missing : list of str
        Events that this kernel lacks.

    Raises
    ------
    OSError
        If this user may not use tracefs.
    RtloopError
        If there is no tracefs.
    """

    _open: ClassVar[weakref.WeakSet[TraceInstance]] = weakref.WeakSet()
    _lock: ClassVar[ShieldedLock] = ShieldedLock()

    def __init__(
        self, name: str, events: Mapping[str, str], cpus: Iterable[int] | None, size_kb: int, *, is_read: bool = True
    ) -> None:
        root = find_root()
        self.name = f"rtloop-{os.getpid()}-{name}"
        self.missing: list[str] = []
        self._folder = root / "instances" / self.name
        self._fd = -1
        with self._lock:
            remove_stale(root)
            self._folder.mkdir()
            self._open.add(self)
        try:
            self._set_up(events, None if cpus is None else set(cpus), size_kb)
            if is_read:
                self._fd = os.open(self._folder / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._write("tracing_on", "1")
        except BaseException:
            self.close()
            raise

    def _set_up(self, events: Mapping[str, str], cpus: set[int] | None, size_kb: int) -> None:
        folder = self._folder
        self._write("tracing_on", "0")
        self._write("trace_clock", "mono")
        for one in folder.glob("per_cpu/cpu*"):
            number = one.name.removeprefix("cpu")
            wanted = size_kb if cpus is None or (number.isdigit() and int(number) in cpus) else 4
            self._write(f"per_cpu/{one.name}/buffer_size_kb", str(wanted))
        if cpus is not None:
            self._write("tracing_cpumask", _mask(cpus))
        for option, value in _OPTIONS.items():
            with suppress(OSError):  # some kernels lack some
                self._write(f"options/{option}", str(value))
        for event, condition in events.items():
            try:
                if condition:
                    self._write(f"events/{event}/filter", condition)
                self._write(f"events/{event}/enable", "1")
            except OSError:
                self.missing.append(event)  # this kernel lacks it, or names it differently

    def _write(self, name: str, text: str) -> None:
        fd = os.open(self._folder / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def read(self) -> bytes:
        """Read the next part of the text, which is removed from the ring; empty if there is no more for now."""
        try:
            return os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return b""

    def open_switch(self) -> int:
        """Return a descriptor of ``tracing_on``: writing "0" stops the trace."""
        return os.open(self._folder / "tracing_on", os.O_WRONLY | os.O_CLOEXEC)

    def save(self, path: Path) -> None:
        """Stop, and write the trace as text."""
        self._write("tracing_on", "0")
        with (self._folder / "trace").open(errors="replace") as source, path.open("w") as target:
            while piece := source.read(1 << 20):
                target.write(piece)

    def close(self) -> None:
        """Remove the instance. A second call does nothing; neither does one in a forked child."""
        if self not in self._open:
            return
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        until = time.monotonic() + _EXEC_S
        while True:
            try:
                self._folder.rmdir()
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < until:
                    nap(0.002)
                    continue
            break
        self._open.discard(self)

    @classmethod
    def close_in_child(cls) -> None:
        """Close the inherited files in a forked child: the parent could not remove an instance in use."""
        for instance in list(cls._open):
            fd, instance._fd = instance._fd, -1
            if fd >= 0:
                os.close(fd)
        cls._open.clear()
        cls._lock = ShieldedLock()


def _mask(cpus: Iterable[int]) -> str:
    """Format a mask of CPUs as the kernel reads it: words of 32 bits, the highest first."""
    bits = sum(1 << cpu for cpu in cpus)
    words: list[str] = []
    while bits or not words:
        words.append(f"{bits & 0xFFFFFFFF:08x}")
        bits >>= 32
    return ",".join(reversed(words))


os.register_at_fork(after_in_child=TraceInstance.close_in_child)
