"""The short measurement of ``--measure``: the wake-up latency of an empty loop, and what to think of it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from rtloop.system.checks import Check
from rtloop.units import format_duration

if TYPE_CHECKING:
    from rtloop.errors import RtloopError
    from rtloop.stats.stats import Stats

__all__ = ["judge", "run_measurement", "tell_failure"]


def run_measurement(period_ns: int, duration_ns: int) -> Stats:
    """Run an empty loop, on the terms that this session gets."""
    import rtloop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rtloop.RTSetupWarning)  # what is missing stands in the other checks
        loop = rtloop.RTLoop(period_ns, strict=False, name="doctor")
        return loop.run(duration=duration_ns)


def tell_failure(error: RtloopError) -> Check:
    """Tell of a measurement that was not to be had."""
    why = "a loop that does not run here has no latency"
    return Check("measured", "wake-up latency", f"the loop failed: {' '.join(str(error).split())}", "an empty loop",
                 "fail", why, "see what fails among the other checks")  # fmt: skip


def judge(stats: Any, period_ns: int) -> Check:
    """Judge the wake-up latency of an empty loop by its period.

    The largest one within a tenth of the period is ok, within half of it a note, within the whole a warning.
    """
    name, source = "wake-up latency", f"an empty loop, {stats.cycles} cycles of {format_duration(period_ns)}"
    why = "how late the loop was there, on this machine, in this session, now; a longer run finds larger ones"
    latency = stats.latency
    if not latency.count:
        return Check("measured", name, "no cycle was run", source, "fail", why)
    found = (
        f"p50 {format_duration(latency.percentile(50), 1)}, p99 {format_duration(latency.percentile(99), 1)}, "
        f"max {format_duration(latency.max, 1)}; {stats.missed} releases missed"
    )
    refused = [grant.name for grant in stats.grants if not grant.ok]
    if refused:
        found += f"; without {', '.join(refused)}"
    worst = latency.max
    if stats.missed or worst > period_ns:
        verdict = "warn"
    else:
        verdict = "ok" if worst <= period_ns / 10 else "note" if worst <= period_ns / 2 else "warn"
    fix = "see the warnings among the other checks; then rtloop doctor --measure again" if verdict == "warn" else ""
    return Check("measured", name, found, source, verdict, why, fix)
