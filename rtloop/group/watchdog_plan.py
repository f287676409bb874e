"""Settings of a group's watchdog: its priority, its interval, and the limit of each loop."""

from __future__ import annotations

from collections.abc import Sequence

from rtloop.errors import ConfigError
from rtloop.settings import Settings, make_settings
from rtloop.system.grant import Grant
from rtloop.units import as_index, show

__all__ = ["check_watchdog", "plan"]

#: The watchdog's priority is above every loop's, and below 99, that of the kernel's own threads.
_TOP_PRIORITY = 98
#: Number of checks within the shortest limit, and bounds of their interval.
_CHECKS, _MIN_INTERVAL_NS, _MAX_INTERVAL_NS = 8, 100_000, 10_000_000
_LOCKS = ("off", "own", "onfault", "all")


def check_watchdog(periods: object, every: Sequence[Settings]) -> int | None:
    """Check the number of periods after which a loop is stuck."""
    if periods is None:
        return None
    number = as_index(periods)
    if number is None or not 2 <= number <= 1_000_000:
        raise ConfigError(
            f"watchdog={show(periods)} must be an int of at least 2, the number of periods without a completed cycle "
            "after which a loop is stuck (with 1 any jitter would be a hang), or None"
        )
    if any(settings.name == "watchdog" for settings in every):
        raise ConfigError(
            "a loop is called 'watchdog', the name under which a group lists its watchdog's grants: give the loop "
            "another name="
        )
    return number


def plan(name: str, every: Sequence[Settings], periods: int) -> tuple[Settings, list[int], list[Grant]]:
    """Return a watchdog's settings, the limit of each loop in ns, and a remark if its priority is not the highest."""
    limits = [round(periods * settings.period) for settings in every]
    interval = min(max(min(limits) // _CHECKS, _MIN_INTERVAL_NS), _MAX_INTERVAL_NS)
    highest = max((s.priority for s in every if s.policy in ("fifo", "rr")), default=79)
    remarks = []
    if highest >= _TOP_PRIORITY:
        detail = (
            f"a loop has {highest}, and 99 is for the kernel's own threads: while such a loop spins on the watchdog's "
            "CPU, the watchdog cannot run"
        )
        remarks.append(Grant("priority", f"above {highest}", str(_TOP_PRIORITY), True, detail, kind="priority"))
    settings = make_settings(
        f"{name}'s watchdog",
        interval,
        policy="other" if all(s.policy == "other" for s in every) else "fifo",
        priority=min(highest + 1, _TOP_PRIORITY),
        cpu=None,
        strict=any(s.strict for s in every),
        lock_memory=max((s.lock_memory for s in every), key=_LOCKS.index),
        dma_latency=None,
        record=0,
    )
    return settings, limits, remarks
