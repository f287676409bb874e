"""Output of ``rtloop run``: the console, and a live line while the loop runs."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

from rtloop.units import format_duration

if TYPE_CHECKING:
    from rich.console import Console

    from rtloop.loop.loop import RTLoop
    from rtloop.stats.stats import Stats

__all__ = ["LiveLine", "Silence", "describe_progress", "make_console"]

_INTERVAL_S = 0.25
#: Drawing takes the GIL, which a step in Python needs.
_GIL_INTERVAL_S = 1.0
#: Time without a cycle that is shown.
_SILENCE_S = 2.0
#: A narrower terminal gets only the main figures.
_WIDE = 100


def make_console() -> Console:
    """Return a console on stderr; without a terminal, one that imports rich only if it is used, which takes long."""
    if sys.stderr.isatty() or {"FORCE_COLOR", "TTY_COMPATIBLE"} & os.environ.keys():
        return _make_console()
    return cast("Console", _LateConsole())


def _make_console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class _LateConsole:
    """Console on a stderr that is not a terminal. Not for what rich draws live, which needs a real one."""

    is_terminal = False

    def __init__(self) -> None:
        self._console: Console | None = None

    def __getattr__(self, name: str) -> Any:
        if self._console is None:
            self._console = _make_console()
        return getattr(self._console, name)


class LiveLine:
    """Live line with the figures so far, drawn by its own thread; nothing without a terminal.

    Parameters
    ----------
    console : rich.console.Console
        Console to draw on.
    loop : RTLoop
        The loop; reading its statistics does not disturb it.
    seconds : float or None
        Duration of the run; None: until it is stopped.
    """

    def __init__(self, console: Console, loop: RTLoop, seconds: float | None) -> None:
        self._loop, self._seconds = loop, seconds
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._console = console
        if console.is_terminal and (seconds is None or seconds > 1):
            # A daemon thread does not delay the process's exit.
            self._thread = threading.Thread(target=self._draw, name="rtloop-live", daemon=True)

    def __enter__(self) -> LiveLine:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _draw(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        known = self._seconds is not None
        is_brief = self._console.width < _WIDE
        columns: list[Any] = [BarColumn(bar_width=8 if is_brief else 20) if known else SpinnerColumn()]
        columns += [TimeRemainingColumn() if known else TimeElapsedColumn(), TextColumn("{task.fields[note]}")]
        begin = time.monotonic()
        with Progress(
            *columns, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
        ) as bars:
            task = bars.add_task("", total=self._seconds, note="starting" if known else "starting; Ctrl-C stops it")
            bars.refresh()
            interval, silence = _INTERVAL_S, Silence(self._loop.settings.period_ns)
            while not self._is_over.wait(interval):
                stats = self._loop.stats
                passed = stats.duration if stats.is_simulated else time.monotonic() - begin
                note = describe_progress(stats, is_brief)
                if silent := silence.look(stats.cycles, time.monotonic()):
                    note += f", [red]{silent}[/]"
                bars.update(task, completed=min(passed, self._seconds or passed), note=note)
                bars.refresh()
                if any(grant.name == "gil" for grant in stats.grants):
                    interval = _GIL_INTERVAL_S


class Silence:
    """Finder of loops that complete no cycles, by looks at their number.

    Parameters
    ----------
    period_ns : int
        Period of the loop. Three periods are not yet silence, and neither are two seconds.
    """

    def __init__(self, period_ns: int) -> None:
        self._least_s = max(_SILENCE_S, 3e-9 * period_ns)
        self._cycles, self._since = -1, 0.0

    def look(self, cycles: int, now: float) -> str:
        """Return for how long no cycle has ended at the time `now`, in s; empty if that is not long."""
        if cycles != self._cycles:
            self._cycles, self._since = cycles, now
        silent = now - self._since
        return f"no cycle for {silent:.0f} s" if silent > self._least_s else ""


def describe_progress(stats: Stats, is_brief: bool = False) -> str:
    """Return the figures so far as rich markup, short enough for a line."""
    parts = [f"{stats.cycles:,} cycles"]
    if stats.latency.count and not stats.is_simulated:
        median = "" if is_brief else f"latency {format_duration(stats.latency.percentile(50), 1)}, "
        parts.append(f"{median}max {format_duration(stats.latency.max, 1)}")
    for name, count in (("overrun", stats.overruns), ("missed", stats.missed)):
        if count:
            plural = "s" if name == "overrun" and count != 1 else ""
            parts.append(f"[red]{count:,} {name}{plural}[/]")
    if any(not grant.ok for grant in stats.grants):
        parts.append("[yellow]degraded[/]")
    return ", ".join(parts)
