"""Private trace of the kernel, stopped at the moment of an event. See the kernel's ftrace.rst."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rtloop.errors import RtloopError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["KernelTrace"]

_ROOTS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
#: Events that explain a late wake-up: switches, wake-ups, interrupts, timers.
_EVENTS = ("sched/sched_switch", "sched/sched_waking", "irq", "irq_vectors", "timer/hrtimer_expire_entry", "hrtimer")


class KernelTrace:
    """An instance of ftrace for the time of a ``with`` statement; other traces are left alone.

    Attributes
    ----------
    fd : int
        Of ``tracing_on``: writing "0" stops it.

    Raises
    ------
    RtloopError
        If there is no tracefs, or this user may not use it.
    """

    fd = -1

    def __init__(self) -> None:
        roots = [root for root in map(Path, _ROOTS) if (root / "tracing_on").exists()]
        if not roots:
            raise RtloopError(
                "tracefs is not mounted, or hidden from this user; fix: sudo mount -t tracefs none /sys/kernel/tracing"
            )
        self._folder = roots[0] / "instances" / f"rtloop-{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            _remove_stale(self._folder.parent)
            self._folder.mkdir()
            (self._folder / "trace_clock").write_text("mono")  # the loops' own clock
            for event in _EVENTS:
                with suppress(OSError):  # this kernel lacks it, or names it differently
                    (self._folder / "events" / event / "enable").write_text("1")
            self.fd = os.open(self._folder / "tracing_on", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            self.__exit__(None, None, None)
            raise RtloopError(f"{error.filename or self._folder}: {error.strerror}: tracing needs root") from error
        return self

    def save(self, path: Path) -> None:
        """Stop, and write the trace as text."""
        (self._folder / "tracing_on").write_text("0")
        with (self._folder / "trace").open(errors="replace") as source, path.open("w") as target:
            while piece := source.read(1 << 20):
                target.write(piece)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with suppress(OSError):
            self._folder.rmdir()


def _remove_stale(instances: Path) -> None:
    """Remove instances left by killed processes: each holds kernel memory for every CPU."""
    for folder in instances.glob("rtloop-*"):
        pid = folder.name.partition("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with suppress(OSError):
                folder.rmdir()
