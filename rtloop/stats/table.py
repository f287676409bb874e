"""Table of a Stats, as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html
import os
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from rtloop.stats import guard_summary
from rtloop.stats.histogram import Histogram
from rtloop.system.cpu import format_cpu_list, parse_cpu_list
from rtloop.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from rtloop.stats.figures import Figures
    from rtloop.system.grant import Grant

__all__ = [
    "HEAD",
    "ROWS",
    "cells_of",
    "collections_of",
    "describe_refusal",
    "facts_of",
    "format_percentile",
    "headline",
    "is_supported",
    "notes_of",
    "to_html",
    "to_text",
]

_PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
ROWS = (
    ("latency", "wake-up latency", "start - release"),
    ("execution", "execution time", "end - start"),
    ("response", "response time", "end - release"),
    ("interval", "interval", "start - previous start"),
)
HEAD = ("min", *(f"{q:g} %" for q in _PERCENTILES), "max", "mean", "std")
_LABEL, _CELL = 18, 10
#: Width of the table with a row for each quantity; a narrower terminal gets a column for each.
_WIDE = _LABEL + _CELL * len(HEAD)
_COLUMN = 15
_VIOLATIONS = 5
_NARROWEST = 80
_NOTE = 'Percentiles are upper bin edges, so they never underestimate; "-" means too few cycles.'
_OWN_WAIT = (
    "Paced by its own wait(): there is no planned time to be late against, so wake-up latency and response time are not"
    " measured. Overruns, missed releases and late cycles refer to the nominal period."
)
_ESTIMATE = "Standard deviations are estimates from the bins, because the file was written by an older rtloop."
_FIX = "The warning about it and each grant's `fix` contain the commands that fix it."
_TIE = "\N{NO-BREAK SPACE}"
_SCALES = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))


def format_percentile(histogram: Histogram, q: float) -> str:
    """Format a percentile, or ``"-"`` if there are too few values for one to lie beyond it."""
    if not is_supported(histogram, q):
        return "-"
    return format_duration(histogram.percentile(q))


def is_supported(histogram: Histogram, q: float) -> bool:
    """Return whether there are enough values for one to lie beyond a percentile."""
    count = histogram.count
    return count > 0 and count * (100 - q) >= 100 - 1e-6


def _cell(ns: float) -> str:
    """Format a duration with three significant digits, which a bin resolves, and a unit of two columns."""
    rounded = float(f"{ns:.2e}")  # before the unit is chosen: 999.6 us is 1.00 ms
    scale, unit = next((pair for pair in _SCALES if abs(rounded) >= pair[0]), _SCALES[-1])
    value = rounded / scale
    exponent = int(f"{value:.2e}".partition("e")[2])
    decimals = 0 if unit == "ns" and rounded.is_integer() else max(0, 2 - exponent)
    return f"{value:.{decimals}f} {unit:>2}"


def cells_of(histogram: Histogram) -> list[str]:
    """Return the figures of a quantity as text, in the order of `HEAD`."""
    if not histogram.count:
        return ["-"] * len(HEAD)
    return [
        _cell(histogram.min),
        *(_cell(histogram.percentile(q)) if is_supported(histogram, q) else "-" for q in _PERCENTILES),
        *(_cell(ns) for ns in (histogram.max, histogram.mean)),
        _cell(histogram.std) if histogram.count > 1 else "-",
    ]


def headline(stats: Figures) -> str:
    """Return one line on the run: name, rate, scheduling, length and final state."""
    settings, granted = stats.settings, {grant.name: grant for grant in stats.grants}
    period = settings.get("period_ns", 0)
    nominal = ", own wait" if stats.has_own_wait else ""
    parts = [f"{format_rate(period)} ({format_duration(period)}){nominal}"] if period else []
    asked = str(settings.get("policy") or "")
    if asked in ("fifo", "rr"):
        asked = f"{asked} {settings.get('priority', '')}".strip()
    policy = granted.get("policy")
    if stats.is_simulated:
        parts.append("SIMULATED, in virtual time")
    else:
        if policy is None:
            parts += [asked] if asked else []
        else:
            parts.append(str(policy.granted) + ("" if policy.ok else f" instead of {policy.requested}"))
        parts.append(_where(granted["cpu"], stats.host.get("cpus")) if "cpu" in granted else "any CPU")
    parts += [f"{stats.cycles:,} cycles in {format_duration(stats.duration_ns)}", stats.state]
    return f"{stats.name}: {', '.join(parts)}"


def _where(grant: Grant, machine_cpus: object) -> str:
    """Write where the thread may run."""
    try:
        cpus = parse_cpu_list(str(grant.granted))
    except ValueError:
        return "CPU not known"
    return "any CPU" if is_any_cpu(grant, machine_cpus) else f"CPU {format_cpu_list(cpus)}"


def is_any_cpu(grant: Grant, machine_cpus: object) -> bool:
    """Return whether the thread may run on every CPU of the machine; False if that is not known."""
    try:
        return len(parse_cpu_list(str(grant.granted))) == machine_cpus
    except ValueError:
        return False


def _share(part: int, whole: int) -> str:
    """Format a part of a whole in per cent, never rounding a few down to none."""
    if part == 0 or whole == 0:
        return ""
    percent = 100 * part / whole
    return f" ({percent:.2g} %)" if percent < 10 else f" ({percent:.0f} %)"


def _escape(text: str) -> str:
    return html.escape(text)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def facts_of(stats: Figures) -> list[tuple[str, str]]:
    """Return the counters as pairs of label and text, the most asked for first."""
    cycles = stats.cycles
    nominal = " (nominal)" if stats.has_own_wait else ""
    facts = []
    if stats.device_missed is not None:
        whole = stats.device_missed + (stats.device_cycles or 0)
        facts.append(("missed (device)", f"{stats.device_missed:,}{_share(stats.device_missed, whole)}"))
    facts += [
        ("overruns", f"{stats.overruns:,}{_share(stats.overruns, cycles)}"),
        (f"missed{nominal or ' releases'}", f"{stats.missed:,}{_share(stats.missed, cycles + stats.missed)}"),
        ("late cycles", f"{stats.late:,}{_share(stats.late, cycles)}"),
        ("stalls over 1 s", f"{stats.stalls:,}"),
    ]
    if stats.waiting.count:
        facts.append(
            (
                "waited in step",
                f"{format_duration(round(stats.waiting.mean))} on average, {format_duration(stats.waiting.max)} at"
                f" most, in {stats.waiting.count:,} cycles; not execution time",
            )
        )
    if stats.swaps:
        last = stats.swaps[-1]
        more = f"{len(stats.swaps):,}, the last {'back ' if last.reason else ''}to" if len(stats.swaps) > 1 else "to"
        why = f", because {last.former} failed its trial: {last.reason}" if last.reason else ""
        facts.append(("swaps", f"{more} {last.successor}, in place since cycle {last.cycle:,}{why}"))
    if stats.clock_steps:
        sizes = ", ".join(f"{'+' if ns > 0 else ''}{format_duration(ns)}" for ns in stats.clock_step_sizes[-4:])
        more = "the last by " if stats.clock_steps > 4 else "by "
        facts.append(("clock was set", f"{stats.clock_steps:,} times, {more}{sizes}"))
    if stats.shifted_ns or (stats.settings.get("overrun") == "shift" and stats.shifted_ns is not None):
        share = _share(abs(stats.shifted_ns), stats.duration_ns)
        back = " back" if stats.shifted_ns < 0 else ""
        facts.append(("grid moved", f"{format_duration(abs(stats.shifted_ns))}{back}{share}"))
    if not stats.is_simulated and "last_ns" not in stats.settings:
        faults, switches = stats.page_faults, stats.context_switches
        facts += [
            ("page faults", f"{_number(faults.minor)} minor, {_number(faults.major)} major"),
            (
                "context switches",
                f"{_number(switches.voluntary)} voluntary, {_number(switches.involuntary)} involuntary",
            ),
        ]
        collections, longest, missed = collections_of(stats)
        if collections or missed:
            noun = "collection" if collections == 1 else "collections"
            longest_text = f", the longest {format_duration(float(f'{longest:.2e}'))}" if collections else ""
            missed_text = f"; {missed:,} more not measured" if missed else ""
            facts.append(
                (
                    "garbage collector",
                    f"{collections:,} {noun} in the process{longest_text}{missed_text}",
                )
            )
    if stats.guard:
        facts.append(("guards", stats.guard_sentence))
    if stats.stack.size and stats.stack.high_water is not None:
        facts.append(("stack", f"{format_size(stats.stack.high_water)} used of {format_size(stats.stack.size)}"))
    if stats.forks:
        facts.append(("forks", f"{stats.forks:,} in the life of the process"))
    if stats.warmup:
        facts.append(("warm-up", f"the first {stats.warmup:,} cycles are not in the figures above"))
    return facts


def collections_of(stats: Figures) -> tuple[int, int, int]:
    """Return the garbage collections that a step in Python may have waited for; zeros for a step without the GIL.

    They may come from an untrusted file or process.

    Returns
    -------
    tuple of int
        Number of measured collections; the longest of them, ns; number of unmeasured ones.
    """
    found = [stats.host.get(name, 0) for name in ("gc_collections", "gc_longest_ns", "gc_missed")]
    takes_gil = any(grant.name == "gil" for grant in stats.grants)
    if not takes_gil or not all(type(value) is int and 0 <= value < 1 << 63 for value in found):
        return 0, 0, 0
    return found[0], found[1], found[2]


def violations_of(stats: Figures) -> list[tuple[str, str]]:
    """Return the findings of the guards, a line for each of the first places."""
    found = guard_summary.groups(stats.guard)
    lines = []
    for v in found[:_VIOLATIONS]:
        when, what = guard_summary.when(v), guard_summary.describe(v)
        times = v["count"]
        lines.append((f"  {when}", what) if times == 1 else (f"  {times:,} times", f"{when}: {what}"))
    if len(found) > _VIOLATIONS:
        lines.append(("  ...", f"{len(found) - _VIOLATIONS:,} more places: see stats.guard, or rtloop report"))
    missing = guard_summary.unlisted(stats.guard)
    if found and missing:
        lines.append(("  elsewhere", f"{', '.join(missing)}, whose places are not listed"))
    return lines


def _terminal_width() -> int:
    """Return the number of columns to print in; those of the wide table if standard output is not a terminal."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (AttributeError, OSError, ValueError):  # not a terminal, or not even a file
        return _WIDE
    return min(max(columns, _NARROWEST), _WIDE) if columns else _WIDE


def _figures(stats: Figures, width: int) -> list[str]:
    """Return the lines of the figures: a row for each quantity, or a column if that is too wide."""
    if width >= _WIDE:
        lines = [" " * _LABEL + "".join(text.rjust(_CELL) for text in HEAD)]
        for name, label, _ in ROWS:
            lines.append(f"{label:<{_LABEL}}" + "".join(cell.rjust(_CELL) for cell in cells_of(getattr(stats, name))))
        return lines
    lines = [" " * _LABEL + "".join(label.rjust(_COLUMN) for _, label, _ in ROWS)]
    columns = [cells_of(getattr(stats, name)) for name, _, _ in ROWS]
    for number, text in enumerate(HEAD):
        lines.append(f"{text:<{_LABEL}}" + "".join(column[number].rjust(_COLUMN) for column in columns))
    return lines


def _wrap(text: str, width: int, *, label: str = "", indent: str = "") -> list[str]:
    """Wrap a text beside its label, without breaking words."""
    first = f"{label:<{_LABEL}}" if label else ""
    indent = " " * _LABEL if label else indent
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return [line.replace(_TIE, " ") for line in lines]


def notes_of(stats: Figures) -> list[str]:
    """Return the notes below the figures."""
    notes = []
    if stats.is_simulated:
        models = stats.settings["simulation"]
        text = f"Simulated: wake-up latency is {models['latency']}, execution time {models['execution']}."
        notes.append(f"{text} Nothing was measured.")
    elif stats.has_own_wait:
        notes.append(_OWN_WAIT)
    if "last_ns" in stats.settings:
        notes.append(f"Cycles of the last {format_duration(stats.settings['last_ns'])}, as far as they were recorded.")
    if not all(getattr(stats, name).has_exact_std for name, _, _ in ROWS):
        notes.append(_ESTIMATE)
    return [*notes, _NOTE]


def to_text(stats: Figures, width: int | None = None) -> str:
    """Return the table as plain text.

    Parameters
    ----------
    stats : Figures
        Figures to print.
    width : int, optional
        Columns to fit in, at least 80; those of the terminal by default.
    """
    width = _terminal_width() if width is None else width
    lines = [*_wrap(headline(stats), width, indent="  "), "", *_figures(stats, width)]
    for note in notes_of(stats):
        lines += _wrap(note, width)
    lines.append("")
    for label, text in facts_of(stats):
        lines += _wrap(text, width, label=label)
        if label == "guards":
            for place, violation in violations_of(stats):
                lines += _wrap(violation, width, label=place)
    if stats.grants:
        lines += ["", *_grant_lines(stats, width)]
    return "\n".join(lines)


def _grant_lines(stats: Figures, width: int) -> list[str]:
    """Return the grants as lines: a paragraph of those that were given in full, and one for each of the others."""
    # A line does not break within a grant.
    granted = "; ".join(f"{grant.name} {grant.granted}".replace(" ", _TIE) for grant in stats.grants if grant.ok)
    lines = _wrap(granted, width, label="granted") if granted else []
    refused = sorted((grant for grant in stats.grants if not grant.ok), key=lambda grant: grant.lost is None)
    for grant in refused:
        lines += _wrap(describe_refusal(grant), width, label="NOT GRANTED" if grant.lost is None else "LOST")
    if any(grant.fix for grant in refused):
        lines += _wrap(_FIX, width, label=" ")
    return lines


def describe_refusal(grant: Grant) -> str:
    """Return a sentence on a refused grant: the request, what was granted, and the reason."""
    if grant.lost is not None:
        return f"{grant.name}, {grant.detail.removeprefix('lost: ')}"
    reason = f" ({grant.detail})" if grant.detail else ""
    return f"{grant.name}: asked for {grant.requested}, granted {grant.granted}{reason}"


def _sparkline(histogram: Histogram) -> str:
    """Draw a histogram on logarithmic axes as a small inline SVG in the colour of the text."""
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
    title = _escape(f"{format_duration(low)} to {format_duration(high)}, logarithmic")
    return (
        '<svg width="120" height="18" viewBox="0 0 120 18" fill="currentColor" fill-opacity="0.7" role="img">'
        f"<title>{title}</title>{shapes}</svg>"
    )


def _time_sparkline(stats: Figures) -> str:
    """Draw the latency of the last cycles over time as a small inline SVG, logarithmic, the worst of each column.

    For a loop with its own wait it is the interval. A dashed line is the period, if it is within the picture.
    """
    records, width, height = stats.records, 480, 40
    start = records["start"]
    values = np.diff(start) if stats.has_own_wait else start - records["release"]
    if len(values) < 2:
        return ""
    columns = min(width // 2, len(values))
    first = np.arange(columns) * len(values) // columns
    worst = np.maximum(np.maximum.reduceat(values, first), 1).astype(np.float64)
    low, high = float(worst.min()) / 1.1, float(worst.max()) * 1.1
    tops = height - 2 - (height - 4) * np.log(worst / low) / np.log(high / low)
    x = (np.arange(columns) + 0.5) * width / columns
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, tops, strict=True))
    period, line = stats.settings.get("period_ns") or 0, ""
    if low < period < high:
        y = height - 2 - (height - 4) * np.log(period / low) / np.log(high / low)
        line = f'<path d="M0,{y:.1f}H{width}" stroke="#e0523f" stroke-dasharray="4 3"/>'
    what = "interval" if stats.has_own_wait else "wake-up latency"
    title = f"{what} of the last {len(values):,} cycles, the worst of each column, up to {_cell(float(values.max()))}"
    return (
        f'<div style="padding:4px 8px"><small>{_escape(title)}</small><br/>'
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" fill="none" stroke="currentColor"'
        f' role="img" style="max-width:100%"><title>{_escape(title)}</title>{line}'
        f'<polyline points="{points}" stroke-width="1.2" stroke-opacity="0.75"/></svg></div>'
    )


def to_html(stats: Figures) -> str:
    """Return the table as self-contained HTML that follows the page's colours, dark or light."""
    cell = 'style="text-align:right;padding:2px 8px;white-space:nowrap;font-variant-numeric:tabular-nums"'
    left = 'style="text-align:left;padding:2px 8px"'
    # Of medium lightness, legible on white and on black.
    red = 'style="text-align:left;padding:2px 8px;color:#e0523f;font-weight:bold"'
    head = "".join(f"<th {cell}>{_escape(text)}</th>" for text in HEAD)
    rows = []
    for name, label, meaning in ROWS:
        histogram: Histogram = getattr(stats, name)
        cells = "".join(f"<td {cell}>{_escape(text)}</td>" for text in cells_of(histogram))
        heading = f'<th {left} title="{_escape(meaning)}">{_escape(label)}</th>'
        rows.append(f"<tr>{heading}{cells}<td {left}>{_sparkline(histogram)}</td></tr>")
    facts = facts_of(stats) + violations_of(stats)
    granted = "; ".join(f"{grant.name} {grant.granted}" for grant in stats.grants if grant.ok)
    if granted:
        facts.append(("granted", granted))
    below = [f"<tr><th {left}>{_escape(k)}</th><td {left}>{_escape(v)}</td></tr>" for k, v in facts]
    below += [
        f"<tr><th {red}>not granted</th>"
        f'<td {left} title="{_escape(grant.fix)}">{_escape(describe_refusal(grant))}</td></tr>'
        for grant in stats.grants
        if not grant.ok
    ]
    return (
        f"<div><b>{_escape(headline(stats))}</b>"
        f"<table><thead><tr><th></th>{head}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"<small>{_escape(' '.join(notes_of(stats)))}</small>{_time_sparkline(stats)}"
        f"<table><tbody>{''.join(below)}</tbody></table></div>"
    )
