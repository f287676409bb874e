"""A Stats as text that a control engineer understands at once, and as HTML for a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from rtloop.data.histogram import Histogram
from rtloop.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from rtloop.loop.stats import Stats

__all__ = ["format_percentile", "to_html", "to_text"]

_PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
_ROWS = (
    ("latency", "wake-up latency", "start - release"),
    ("execution", "execution time", "end - start"),
    ("response", "response time", "end - release"),
    ("interval", "interval", "start - previous start"),
)
_WIDTH = 10


def format_percentile(histogram: Histogram, q: float) -> str:
    """Write a percentile, or ``"-"`` where there are too few values for one to lie beyond it."""
    count = histogram.count
    if count == 0 or count * (100 - q) < 100 - 1e-6:
        return "-"
    return format_duration(histogram.percentile(q))


def _cells(histogram: Histogram) -> list[str]:
    if not histogram.count:
        return ["-"] * (len(_PERCENTILES) + 4)
    return [
        format_duration(histogram.min),
        *(format_percentile(histogram, q) for q in _PERCENTILES),
        format_duration(histogram.max),
        format_duration(histogram.mean),
        format_duration(histogram.std),
    ]


_HEAD = ["min", *(f"{q:g} %" for q in _PERCENTILES), "max", "mean", "std"]


def _headline(stats: Stats) -> str:
    s = stats.settings
    granted = {grant.name: grant for grant in stats.grants}
    policy = str(granted["policy"].granted) if "policy" in granted else s.get("policy", "")
    cpu = f"CPU {granted['cpu'].granted}" if "cpu" in granted else "any CPU"
    period = s.get("period_ns", 0)
    rate = f"{format_rate(period)} ({format_duration(period)})" if period else ""
    return f"{stats.name}: {rate}, {policy}, {cpu}, {stats.state}"


def _share(part: int, whole: int) -> str:
    """Write a part of a whole, never rounding a few down to none."""
    if part == 0 or whole == 0:
        return ""
    percent = 100 * part / whole
    return f" ({percent:.2g} %)" if percent < 10 else f" ({percent:.0f} %)"


def _facts(stats: Stats) -> list[tuple[str, str]]:
    """Return the counters, in the order in which they are asked for."""
    duration = format_duration(stats.duration_ns)
    releases = stats.cycles + stats.missed
    facts = [
        ("cycles", f"{stats.cycles:,} in {duration}, the first {stats.warmup} not in the figures above"),
        ("overruns", f"{stats.overruns:,}{_share(stats.overruns, stats.cycles)}"),
        ("missed releases", f"{stats.missed:,}{_share(stats.missed, releases)}"),
    ]
    if stats.late:
        facts.append(("late cycles", f"{stats.late:,}"))
    if stats.stalls:
        facts.append(("stalls over 1 s", f"{stats.stalls:,}"))
    facts += [
        ("page faults", f"{stats.page_faults.minor:,} minor, {stats.page_faults.major:,} major"),
        (
            "context switches",
            f"{stats.context_switches.voluntary:,} voluntary, {stats.context_switches.involuntary:,} involuntary",
        ),
    ]
    if stats.stack.size:
        facts.append(("stack", f"{format_size(stats.stack.high_water)} used of {format_size(stats.stack.size)}"))
    if stats.forks:
        facts.append(("forks", f"{stats.forks:,} in the life of the process"))
    return facts


def to_text(stats: Stats) -> str:
    """Return the table as plain text."""
    lines = [_headline(stats), ""]
    lines.append(" " * 17 + "".join(text.rjust(_WIDTH + 1) for text in _HEAD))
    for name, label, _ in _ROWS:
        cells = _cells(getattr(stats, name))
        lines.append(f"{label:<17}" + "".join(cell.rjust(_WIDTH + 1) for cell in cells))
    lines.append("")
    lines += [f"{label:<17} {text}" for label, text in _facts(stats)]
    if stats.grants:
        lines += ["", *_grant_lines(stats)]
    return "\n".join(lines)


def _grant_lines(stats: Stats) -> list[str]:
    granted = [f"{grant.name} {grant.granted}" for grant in stats.grants if grant.ok]
    lines = []
    text, line = "granted", f"{'granted':<17} "
    for i, item in enumerate(granted):
        item += "; " if i + 1 < len(granted) else ""
        if len(line) + len(item) > 118 and line.strip() != text:
            lines.append(line.rstrip())
            line = " " * 18
        line += item
    if granted:
        lines.append(line.rstrip())
    for grant in stats.grants:
        if not grant.ok:
            reason = f": {grant.detail}" if grant.detail else ""
            lines.append(f"{'NOT GRANTED':<17} {grant.name} {grant.requested}, but {grant.granted}{reason}")
    return lines


def _sparkline(histogram: Histogram) -> str:
    """Draw a histogram on a logarithmic axis as a tiny inline SVG."""
    used = np.flatnonzero(histogram.counts)
    if used.size == 0:
        return ""
    low = max(1.0, float(histogram.edges[used[0]]))
    high = max(low * 1.01, float(histogram.max))
    position = np.log(np.maximum(histogram.edges[used], low) / low) / np.log(high / low)
    bars = np.bincount(np.minimum((position * 40).astype(int), 39), histogram.counts[used].astype(float), 40)
    heights = np.log1p(bars) / np.log1p(bars.max()) * 16
    shapes = "".join(
        f'<rect x="{3 * i}" y="{17 - h:.1f}" width="2.4" height="{h + 1:.1f}"/>' for i, h in enumerate(heights) if h > 0
    )
    title = html.escape(f"{format_duration(low)} to {format_duration(high)}, logarithmic")
    return f'<svg width="120" height="18" fill="currentColor" role="img"><title>{title}</title>{shapes}</svg>'


def to_html(stats: Stats) -> str:
    """Return the table as HTML that needs nothing else and follows the page's colours."""
    cell = 'style="text-align:right;padding:2px 8px"'
    left = 'style="text-align:left;padding:2px 8px"'
    head = "".join(f"<th {cell}>{html.escape(text)}</th>" for text in _HEAD)
    rows = []
    for name, label, meaning in _ROWS:
        histogram: Histogram = getattr(stats, name)
        cells = "".join(f"<td {cell}>{html.escape(text)}</td>" for text in _cells(histogram))
        rows.append(f'<tr><th {left} title="{meaning}">{label}</th>{cells}<td>{_sparkline(histogram)}</td></tr>')
    facts = "".join(f"<tr><th {left}>{k}</th><td {left}>{html.escape(v)}</td></tr>" for k, v in _facts(stats))
    refused = "".join(
        f"<tr><th {left}>&#9888; {html.escape(g.name)}</th><td {left}>asked for {html.escape(str(g.requested))}, "
        f"granted {html.escape(str(g.granted))}. {html.escape(g.detail)}</td></tr>"
        for g in stats.grants
        if not g.ok
    )
    return (
        f"<div><b>{html.escape(_headline(stats))}</b>"
        f"<table><thead><tr><th></th>{head}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"<table><tbody>{facts}{refused}</tbody></table></div>"
    )
