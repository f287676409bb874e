"""Runs of ``rtloop latency``: a loop on each CPU, with a load beside them."""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.errors import RtloopError, RTSetupWarning
from rtloop.machine.latency.breakpoint import BreakpointLoop
from rtloop.process.nap import nap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from rtloop.machine.latency.load import Load
    from rtloop.stats.stats import Stats

__all__ = ["Run", "run_loops"]

_LOOK_S = 0.1


class Run(NamedTuple):
    """Result of one measurement.

    Attributes
    ----------
    stats : list of Stats
        Of each loop.
    hits : list of int
        The wake-up latency, nanoseconds, that stopped each loop; 0 if none did.
    interrupt : KeyboardInterrupt or None
        The Ctrl-C or signal that ended it.
    """

    stats: list[Stats]
    hits: list[int]
    interrupt: KeyboardInterrupt | None

    @property
    def is_interrupted(self) -> bool:
        """True if Ctrl-C or a signal ended it."""
        return self.interrupt is not None


def run_loops(
    cpus: Sequence[Any],
    *,
    period_ns: int,
    duration_ns: int,
    limit_ns: int = 0,
    trace_fd: int = -1,
    load: Load | None = None,
    progress: Callable[[float, list[Stats]], None] | None = None,
    starting: AbstractContextManager[Any] | None = None,
    **settings: Any,
) -> Run:
    """Run one loop on each of `cpus` until the time is over, a loop is late, or the user interrupts.

    Parameters
    ----------
    cpus : sequence
        The `cpu` of each loop.
    period_ns, duration_ns : int
        Of every loop.
    limit_ns : int
        The wake-up latency that ends everything; 0: none.
    trace_fd : int
        As of :class:`~rtloop.machine.latency.breakpoint.BreakpointLoop`.
    load : Load, optional
        A load that must keep running.
    progress : callable, optional
        Called now and then with the seconds passed and the statistics so far.
    starting : context manager, optional
        Entered for the start of the loops, for their warnings; by default these are ignored.
    **settings
        Of every loop.

    Raises
    ------
    RtloopError
        If a loop cannot start or fails, or the load ends.
    """
    loops = [
        BreakpointLoop(
            period_ns, limit_ns=limit_ns, trace_fd=trace_fd, cpu=cpu, strict=False,
            name="latency" if len(cpus) == 1 else f"latency-{cpu}", **settings,
        )
        for cpu in cpus
    ]  # fmt: skip
    interrupt = None
    with ExitStack() as stack:
        for loop in loops:
            stack.callback(loop.stop)  # each of them, even if stopping another one fails
        try:
            _run(loops, duration_ns, load, progress, starting)
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is None:
        for loop in loops:
            loop.join()
    return Run([loop.stats for loop in loops], [loop.hit_ns for loop in loops], interrupt)


def _run(
    loops: Sequence[BreakpointLoop],
    duration_ns: int,
    load: Load | None,
    progress: Callable[[float, list[Stats]], None] | None,
    starting: AbstractContextManager[Any] | None,
) -> None:
    with warnings.catch_warnings(), starting or nullcontext():
        if starting is None:
            warnings.simplefilter("ignore", RTSetupWarning)  # reported once, at the end
        for loop in loops:
            loop.start()
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < duration_ns * 1e-9 and all(x.state == "running" for x in loops):
        if load is not None and not load.is_running:
            raise RtloopError(f"the load {load.kind!r} has ended by itself: the measurement was not made under it")
        if progress is not None:
            progress(passed, [loop.stats for loop in loops])
        nap(min(_LOOK_S, max(0.0, duration_ns * 1e-9 - passed)))
