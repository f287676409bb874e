"""The runs of ``rtloop latency``: a loop on each CPU, watched from here, with a load beside them."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.demo.breakpoint import BreakpointLoop
from rtloop.errors import RtloopError, RTSetupWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from rtloop.stats.stats import Stats
    from rtloop.tools.latency.load import Load

__all__ = ["Run", "ended_by_signals", "run_loops"]

_LOOK_S = 0.1


class Run(NamedTuple):
    """What came of one measurement.

    Attributes
    ----------
    stats : list of Stats
        Of each loop.
    hits : list of int
        The wake-up latency, nanoseconds, that stopped each loop; 0 where none did.
    is_interrupted : bool
        Whether Ctrl-C ended it.
    """

    stats: list[Stats]
    hits: list[int]
    is_interrupted: bool


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as SystemExit does, so that loads, loops and traces are ended first.

    As of a shell, the exit code is 128 and the signal's number. A signal that is ignored, as under nohup(1), stays so.
    """

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    changed = []
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)
                changed.append(number)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def run_loops(
    cpus: Sequence[Any],
    *,
    period_ns: int,
    duration_ns: int,
    limit_ns: int = 0,
    trace_fd: int = -1,
    load: Load | None = None,
    progress: Callable[[float, list[Stats]], None] | None = None,
    **settings: Any,
) -> Run:
    """Run one loop on each of `cpus` until the time is over, one of them is late, or somebody has had enough.

    Parameters
    ----------
    cpus : sequence
        What `cpu` each loop gets.
    period_ns, duration_ns : int
        Of every loop.
    limit_ns : int
        The wake-up latency that ends everything; 0: none.
    trace_fd : int
        As of :class:`~rtloop.demo.breakpoint.BreakpointLoop`.
    load : Load, optional
        What has to run meanwhile.
    progress : callable, optional
        Called now and then with the seconds passed and the statistics so far.
    **settings
        Of every loop.

    Raises
    ------
    RtloopError
        Where a loop cannot start or fails, or the load ends.
    """
    loops = [
        BreakpointLoop(
            period_ns, limit_ns=limit_ns, trace_fd=trace_fd, cpu=cpu, strict=False,
            name="latency" if len(cpus) == 1 else f"latency-{cpu}", **settings,
        )
        for cpu in cpus
    ]  # fmt: skip
    is_interrupted = False
    with ExitStack() as stack:
        for loop in loops:
            stack.callback(loop.stop)  # each of them, even where another one's end fails
        try:
            _run(loops, duration_ns, load, progress)
        except KeyboardInterrupt:
            is_interrupted = True
    if not is_interrupted:
        for loop in loops:
            loop.join()
    return Run([loop.stats for loop in loops], [loop.hit_ns for loop in loops], is_interrupted)


def _run(
    loops: Sequence[BreakpointLoop],
    duration_ns: int,
    load: Load | None,
    progress: Callable[[float, list[Stats]], None] | None,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RTSetupWarning)  # what is missing is told at the end, once
        for loop in loops:
            loop.start()
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < duration_ns * 1e-9 and all(x.state == "running" for x in loops):
        if load is not None and not load.is_running:
            raise RtloopError(f"the load {load.kind!r} has ended by itself: what was measured is not beside it")
        if progress is not None:
            progress(passed, [loop.stats for loop in loops])
        time.sleep(min(_LOOK_S, max(0.0, duration_ns * 1e-9 - passed)))
