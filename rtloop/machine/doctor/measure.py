"""Short measurement for ``--measure``: the wake-up latency of an empty loop, and its verdict."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from rtloop.system.checks import Check
from rtloop.units import format_duration

if TYPE_CHECKING:
    from rtloop.errors import RtloopError
    from rtloop.stats.stats import Stats

__all__ = ["failed_measurement", "judge", "run_measurement"]


def run_measurement(period_ns: int, duration_ns: int) -> Stats:
    """Run an empty loop with whatever this session is granted."""
    import rtloop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rtloop.RTSetupWarning)  # the other checks report what is missing
        loop = rtloop.RTLoop(period_ns, strict=False, name="doctor")
        return loop.run(duration=duration_ns)


def failed_measurement(error: RtloopError) -> Check:
    """Return the check for a measurement that failed."""
    why = "without a running loop there is no latency to measure"
    return Check("measured", "wake-up latency", f"the loop failed: {' '.join(str(error).split())}", "an empty loop",
                 "fail", why, "see what fails among the other checks")  # fmt: skip


def judge(stats: Any, period_ns: int) -> Check:
    """Judge the wake-up latency of an empty loop by its period.

    A maximum within a tenth of the period is ok, within half of it a note. A longer one, or a missed release, is a
    warning.
    """
    name, source = "wake-up latency", f"an empty loop, {stats.cycles} cycles of {format_duration(period_ns)}"
    why = "how late the loop woke up on this machine, in this session, now; a longer run finds larger values"
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
    verdict = "warn" if stats.missed or worst > period_ns / 2 else "ok" if worst <= period_ns / 10 else "note"
    fix = "see the warnings among the other checks; then rtloop doctor --measure again" if verdict == "warn" else ""
    return Check("measured", name, found, source, verdict, why, fix)
