"""Statistics of a run: its figures are copied at once, and made into Stats later, on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rtloop.guard.violations import list_violations
from rtloop.live.live import add_figures
from rtloop.memory.forks import fork_count
from rtloop.system.grant_errors import import_errors
from rtloop.system.time_sync import tai_offset_s

if TYPE_CHECKING:
    from rtloop.loop.thread import LoopThread
    from rtloop.settings import Settings
    from rtloop.stats.stats import Stats

__all__ = ["collect", "empty", "import_maker", "import_modules"]


def collect(
    thread: LoopThread, state: str, simulation: dict[str, Any] | None, *, is_last: bool
) -> Callable[[], Stats] | None:
    """Copy the figures of the run. Returns a function that makes Stats of them, and looks up symbols.

    None if another thread has just released the run. With `is_last`, the last late cycles are explained first.
    """
    # Those two first: the thread that reaps may release them at any time, and they stay readable.
    block, guard, stack = thread.block, thread.guard, thread.stack_use()
    settings = thread.settings
    if block is None:
        return None
    tracer = thread.tracer
    grants = thread.read_grants()
    snapshot, forks = block.snapshot(), fork_count()
    has_own_wait = thread.has_own_wait
    tai = None if simulation is not None else (thread.tai_offset_s, tai_offset_s())
    live = _live_figures(thread)
    if tracer is not None:
        if is_last:
            tracer.finish()
        live["explanations"] = tracer.explanations
    make = import_maker()
    return lambda: make(
        settings,
        state,
        grants,
        snapshot,
        stack=stack,
        forks=forks,
        has_own_wait=has_own_wait,
        simulation=simulation,
        tai_offsets_s=tai,
        live=live,
        violations=list_violations(guard, has_lines=state != "running"),
    )


def _live_figures(thread: LoopThread) -> dict[str, Any]:
    """Return the part of the Stats that is about parameters, of all steps that the run has had, and about swaps."""
    present = {} if thread.live is None else thread.live.figures()
    return add_figures(thread.former_figures, present) | {"swaps": thread.swaps}


def empty(thread: LoopThread, state: str, simulation: dict[str, Any] | None) -> Stats:
    """Return the statistics of a run without a cycle."""
    return import_maker()(thread.settings, state, thread.grants, None, simulation=simulation)


def import_maker() -> Callable[..., Stats]:
    """Return make_stats, imported when a loop is first created, because `import rtloop` has to be quick."""
    from rtloop.telemetry.assemble import make_stats

    return make_stats


def import_modules(settings: Settings) -> None:
    """Import whatever a run and the reports about it need: now, because later no file descriptor may be free.

    Raises
    ------
    SetupError
        If none is free now.
    """
    with import_errors(settings.name):
        import json  # noqa: F401 - of the description in the telemetry

        import rtloop.stats.guard_summary

        import_maker()
        if settings.guard != "off":
            import rtloop.guard.symbols
        if settings.explain_ns is not None:
            import rtloop.culprit.acquire
            import rtloop.telemetry.attach  # noqa: F401
