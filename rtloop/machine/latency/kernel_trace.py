"""Private trace of the kernel, stopped at the moment of an event. See the kernel's ftrace.rst."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rtloop.culprit.tracefs import TraceInstance
from rtloop.errors import RtloopError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["KernelTrace"]

#: Events that explain a late wake-up: switches, wake-ups, interrupts, timers.
_EVENTS = ("sched/sched_switch", "sched/sched_waking", "irq", "irq_vectors", "timer/hrtimer_expire_entry", "hrtimer")
#: The kernel's own default.
_CPU_KB = 1408


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

    def __enter__(self) -> Self:
        try:
            self._instance = TraceInstance("latency", dict.fromkeys(_EVENTS, ""), None, _CPU_KB, is_read=False)
            try:
                self.fd = self._instance.open_switch()
            except OSError:
                self._instance.close()
                raise
        except OSError as error:
            raise RtloopError(f"{error.filename or 'tracefs'}: {error.strerror}: tracing needs root") from error
        return self

    def save(self, path: Path) -> None:
        """Stop, and write the trace as text."""
        self._instance.save(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        self.fd = -1
        self._instance.close()
