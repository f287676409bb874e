"""HdrHistogram log of histograms, the format of its Java, C, Go and Python readers."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtloop.stats.histogram import Histogram
    from rtloop.tools.saved_runs import Run

__all__ = ["to_hdr"]

_SERIES = ("latency", "execution", "response", "interval")
#: rtloop's bins are 0.8 % wide; three digits resolve 0.1 %, so that no two of them fall together.
_DIGITS = 3
_TRACKABLE = 1 << 41


def to_hdr(runs: Sequence[Run]) -> str:
    """Return the log: a line for each series, tagged with its name, and with that of the run if there are several.

    Values are nanoseconds. Interval_Max is in milliseconds, as all readers assume of nanoseconds. The start time is
    that of the first run's first recorded release on CLOCK_REALTIME, and 0 on other clocks, which do not tell the time
    of day. Every value of a bin is written as the largest of the bin, but no more than the maximum, as
    `Histogram.percentile` does; one is written as the smallest value, which is exact. Negative latencies are written as
    0, because the format has none. Empty series have no line.

    Raises
    ------
    ImportError
        If the package hdrhistogram is missing.
    """
    lines = [
        "#[Histogram log format version 1.2]",
        "#[rtloop: values in nanoseconds, Interval_Max in milliseconds; times in seconds since the first release]",
        _start_time(runs),
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for run in runs:
        prefix = f"{_tag(run.label)}." if len(runs) > 1 else ""
        for series in _SERIES:
            histogram: Histogram = getattr(run.stats, series)
            if histogram.count:
                seconds, longest = run.stats.duration_ns * 1e-9, max(0, histogram.max) * 1e-6
                lines.append(f"Tag={prefix}{series},0.000,{seconds:.9f},{longest:.9f},{_encode(histogram)}")
    return "\n".join(lines) + "\n"


def _start_time(runs: Sequence[Run]) -> str:
    """Return the line with the beginning of the first run, in the form of HdrHistogram's own writers."""
    stats = runs[0].stats if runs else None
    seconds = 0.0
    if stats is not None and stats.settings.get("clock") == "realtime" and len(stats.records):
        seconds = int(stats.records["release"][0]) * 1e-9
    date = time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(seconds))
    return f"#[StartTime: {seconds:.3f} (seconds since epoch), {date}]"


def _tag(name: str) -> str:
    """Return a name as a tag, without commas, blanks and line breaks, which would end it."""
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII) or "_"


def _encode(histogram: Histogram) -> str:
    """Return the histogram in the compressed V2 encoding, as base64."""
    from hdrh.histogram import HdrHistogram

    target = HdrHistogram(1, max(_TRACKABLE, histogram.max), _DIGITS)
    used = np.flatnonzero(histogram.counts)
    counts = histogram.counts[used].tolist()
    # The largest integer of each bin; that of the last one must not exceed what was measured.
    greatest = np.minimum(histogram.edges[used + 1], 2.0**62).astype(np.int64) - 1
    values = np.clip(greatest, max(0, histogram.min), max(0, histogram.max)).tolist()
    if histogram.count > 1:
        counts[0] -= 1
        target.record_value(max(0, histogram.min), 1)
    for value, count in zip(values, counts, strict=True):
        if count:
            target.record_value(value, count)
    encoded: bytes = target.encode()
    return encoded.decode("ascii")
