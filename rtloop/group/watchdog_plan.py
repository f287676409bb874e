"""Settings of a group's watchdog: its priority, its interval, and the limit of each loop."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from rtloop.errors import ConfigError
from rtloop.loop.scheduling import TOP_PRIORITY, priority_above
from rtloop.settings import Settings, make_settings
from rtloop.system.grant import Grant
from rtloop.units import as_index, format_duration, parse_duration, show

__all__ = ["Limit", "check_watchdog", "highest_priority", "plan"]

#: Priority that is assumed of loops that have none.
_USUAL_PRIORITY = 79
#: Number of checks within the shortest limit, and bounds of their interval.
_CHECKS, _MIN_INTERVAL_NS, _MAX_INTERVAL_NS = 8, 100_000, 10_000_000
_LOCKS = ("off", "own", "onfault", "all")


class Limit(NamedTuple):
    """Time without a completed cycle after which a loop is stuck: a number of its periods, or in ns."""

    periods: int | None
    ns: int | None = None

    def of(self, settings: Settings) -> int:
        """Return the limit of a loop, in ns."""
        return round((self.periods or 0) * settings.period) if self.ns is None else self.ns


def check_watchdog(limit: object, every: Sequence[Settings]) -> Limit | None:
    """Check the number of periods, or the time, after which a loop is stuck."""
    if limit is None:
        return None
    found = Limit(as_index(limit))
    if isinstance(limit, str | timedelta):
        found = Limit(None, parse_duration(limit, "watchdog"))
        slow = max(every, key=lambda settings: settings.period)
        if found.of(slow) < 2 * slow.period:
            raise ConfigError(
                f"watchdog={show(limit)} is less than two periods of {slow.name} ({format_duration(slow.period_ns)}): "
                "any jitter would count as a hang; give a longer time"
            )
    elif found.periods is None or not 2 <= found.periods <= 1_000_000:
        raise ConfigError(
            f"watchdog={show(limit)} must be an int from 2 to 1000000, a time such as '200ms', or None. An int is the "
            "number of periods without a completed cycle after which a loop counts as stuck; with 1, any jitter would"
        )
    if any(settings.name == "watchdog" for settings in every):
        raise ConfigError(
            "a loop is called 'watchdog', the name under which a group lists its watchdog's grants: give the loop "
            "another name="
        )
    return found


def highest_priority(every: Sequence[Settings]) -> int | None:
    """Return the highest priority of these loops; None if they have none."""
    return max((settings.priority for settings in every if settings.policy in ("fifo", "rr")), default=None)


def plan(name: str, every: Sequence[Settings], limit: Limit) -> tuple[Settings, list[int], list[Grant]]:
    """Return a watchdog's settings, the limit of each loop in ns, and a remark if its priority is not the highest."""
    limits = [limit.of(settings) for settings in every]
    interval = min(max(min(limits) // _CHECKS, _MIN_INTERVAL_NS), _MAX_INTERVAL_NS)
    priority = highest_priority(every)
    highest = _USUAL_PRIORITY if priority is None else priority
    remarks = []
    if highest >= TOP_PRIORITY:
        detail = (
            f"a loop has {highest}, and 99 is for the kernel's own threads: while such a loop spins on the watchdog's "
            "CPU, the watchdog cannot run"
        )
        remarks.append(Grant("priority", f"above {highest}", str(TOP_PRIORITY), True, detail, kind="priority"))
    settings = make_settings(
        f"{name}'s watchdog",
        interval,
        policy="other" if all(s.policy == "other" for s in every) else "fifo",
        priority=priority_above(highest),
        cpu=None,
        strict=any(s.strict for s in every),
        lock_memory=max((s.lock_memory for s in every), key=_LOCKS.index),
        dma_latency=None,
        record=0,
    )
    return settings, limits, remarks
