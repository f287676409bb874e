"""Descriptions of a watched loop for the page: what it has, and how it does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rtloop.tools.scope.tuning import describe_parameters
from rtloop.tools.scope.view import name_swap
from rtloop.units import format_rate

if TYPE_CHECKING:
    from rtloop.stats.histogram import Histogram
    from rtloop.tools.scope.samples.watch import Watch

__all__ = ["describe_loop", "describe_status"]


def describe_loop(watch: Watch, keep_s: float) -> dict[str, Any]:
    """Return what does not change in a run: name, rate, channels and parameters."""
    channels = [
        {"name": channel.name, "unit": channel.unit, "feed": name}
        for name, feed in watch.feeds.items()
        for channel in feed.history.channels.values()
    ]
    return {
        "name": watch.name,
        "pid": watch.pid,
        "period": watch.timing.period if watch.signals is None else watch.signals.period,
        "rate": format_rate(watch.period_ns),
        "keep": keep_s,
        "channels": channels,
        "parameters": describe_parameters(watch.connection.parameters),
        "problem": watch.problem,
    }


def describe_status(watch: Watch, recording: str | None) -> dict[str, Any]:
    """Return what changes: the state, the figures of the run, and the newest value of each channel."""
    stats, latest = watch.stats, {}
    for feed in watch.feeds.values():
        history = feed.history
        if history.count > history.first:
            for name, channel in history.channels.items():
                value = float(channel.values(history.records(history.count - 1, history.count))[0])
                latest[name] = value if math.isfinite(value) else str(value)
    return {
        "state": watch.state,
        "problem": watch.problem,
        "lost": watch.lost,
        "recording": recording,
        "swaps": None
        if not watch.swap_count or not watch.swaps
        else {"count": watch.swap_count, "cycle": watch.swaps[-1].cycle, "name": name_swap(watch.swaps[-1])},
        "latest": latest,
        "figures": None
        if stats is None
        else {
            "cycles": stats.cycles,
            "overruns": stats.overruns,
            "missed": stats.missed,
            "latency": _figures(stats.latency),
            "execution": _figures(stats.execution),
        },
    }


def _figures(histogram: Histogram) -> dict[str, float] | None:
    """Return median, 99th percentile and maximum, µs."""
    if not histogram.count:
        return None
    return {
        "p50": histogram.percentile(50) / 1e3,
        "p99": histogram.percentile(99) / 1e3,
        "max": histogram.max / 1e3,
    }
