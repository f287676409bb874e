"""Private instances of the kernel's trace, in tracefs (Documentation/trace/ftrace.rst); other traces are left alone."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rtloop.errors import RtloopError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MOUNT", "TraceInstance", "find_root", "remove_stale"]

_ROOTS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
MOUNT = "sudo mount -t tracefs none /sys/kernel/tracing"
#: Space of one read: the kernel returns whole lines of at most two pages.
_READ_BYTES = 1 << 17


def find_root() -> Path:
    """Return the folder of tracefs.

    Raises
    ------
    RtloopError
        If there is none that this user can see.
    """
    for root in map(Path, _ROOTS):
        if (root / "tracing_on").exists():
            return root
    raise RtloopError(f"tracefs is not mounted, or hidden from this user; fix: {MOUNT}")


def remove_stale(root: Path) -> None:
    """Remove instances left by killed processes: each holds kernel memory for every CPU.

    One that is in use cannot be removed, though its process may have another number here.
    """
    for folder in (root / "instances").glob("rtloop-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with suppress(OSError):
                folder.rmdir()


class TraceInstance:
    """Instance of the kernel's trace that is read while it is written.

    Parameters
    ----------
    name : str
        Its name.
    events : mapping
        Events to be traced, "sched/sched_switch" or a whole system, with their filters; "" for none. The kernel may
        lack some.
    cpus : iterable of int
        CPUs to be traced; None: all.
    size_kb : int
        Size of the ring of each of them.

    Raises
    ------
    OSError
        If this user may not use tracefs.
    RtloopError
        If there is no tracefs.
    """

    _open: ClassVar[weakref.WeakSet[TraceInstance]] = weakref.WeakSet()

    def __init__(self, name: str, events: Mapping[str, str], cpus: Iterable[int] | None, size_kb: int) -> None:
        root = find_root()
        remove_stale(root)
        self._folder = root / "instances" / name
        self._fd = -1
        self.missing: list[str] = []
        self._folder.mkdir()
        try:
            self._set_up(events, None if cpus is None else set(cpus), size_kb)
        except BaseException:
            self.close()
            raise
        self._open.add(self)

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
        for option in ("irq-info", "overwrite"):
            with suppress(OSError):
                self._write(f"options/{option}", "1")
        for event, condition in events.items():
            try:
                if condition:
                    self._write(f"events/{event}/filter", condition)
                self._write(f"events/{event}/enable", "1")
            except OSError:
                self.missing.append(event)  # this kernel lacks it, or names it differently
        self._fd = os.open(folder / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._write("tracing_on", "1")

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

    def close(self) -> None:
        """Remove the instance. A second call does nothing."""
        self._open.discard(self)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        with suppress(OSError):
            self._folder.rmdir()

    @classmethod
    def close_in_child(cls) -> None:
        """Close the inherited files in a forked child: the parent could not remove an instance in use."""
        for instance in list(cls._open):
            fd, instance._fd = instance._fd, -1
            if fd >= 0:
                os.close(fd)
        cls._open.clear()


def _mask(cpus: Iterable[int]) -> str:
    """Format a mask of CPUs as the kernel reads it: words of 32 bits, the highest first."""
    bits = sum(1 << cpu for cpu in cpus)
    words: list[str] = []
    while bits or not words:
        words.append(f"{bits & 0xFFFFFFFF:08x}")
        bits >>= 32
    return ",".join(reversed(words))


os.register_at_fork(after_in_child=TraceInstance.close_in_child)
