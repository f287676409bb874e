"""Page of ``rtloop report``: its sections, for one run or several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.stats import guard_summary
from rtloop.stats.findings import find
from rtloop.stats.records import find_missed, find_overruns, first_index, period_of
from rtloop.stats.table import HEAD, ROWS, cells_of, facts_of, headline, notes_of
from rtloop.tools.report.charts import draw_histogram_chart, draw_time_line
from rtloop.tools.report.markup import Markup, join, tag
from rtloop.tools.report.style import STYLE
from rtloop.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rtloop.stats.stats import Stats
    from rtloop.tools.saved_runs import Run

__all__ = ["make_page"]

#: The browser, too, prevents loading and scripts, whatever a file contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_TITLES = {name: label for name, label, _ in ROWS}


def make_page(runs: Sequence[Run], *, worst: int = 10) -> str:
    """Return the page as HTML: it needs no other file, no network and no script.

    Parameters
    ----------
    runs : sequence of Run
        One run, or several to be shown side by side.
    worst : int
        Number of worst cycles to list for each.
    """
    from rtloop import __version__

    names = ", ".join(run.label for run in runs)
    heading = f"{runs[0].label}: timing of the run" if len(runs) == 1 else f"{len(runs)} runs side by side"
    body = _one(runs[0], worst) if len(runs) == 1 else _several(runs, worst)
    foot = tag(
        "footer", f"Made by rtloop {__version__} from saved stats. Durations are in the unit written; 1 us = 1000 ns."
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{names} - rtloop report"),
        Markup(f"<style>{STYLE}</style>"),
    )
    page = tag("html", head, tag("body", tag("h1", heading), *body, foot), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _one(run: Run, worst: int) -> Iterable[Markup]:
    stats = run.stats
    yield tag("p", headline(stats), class_="lead")
    yield _section("What to look at", _findings(stats))
    yield _section(
        "Figures", _figures(stats), *(tag("p", note, class_="note") for note in notes_of(stats)), _facts(stats)
    )
    yield _section("Histograms", _histograms([run]))
    yield _section("Time line", *_time_lines(run, 0))
    yield from _details(run, worst)


def _several(runs: Sequence[Run], worst: int) -> Iterable[Markup]:
    heads = [tag("th", _key(number), run.label) for number, run in enumerate(runs)]
    yield _scroll(
        _comparison(runs, heads),
        tag(
            "p",
            "The least duration of a row is bold, unless a run is simulated. The runs may differ in length, and so"
            " may their counters.",
            class_="note",
        ),
    )
    yield _section(
        "What to look at",
        *(join(tag("h3", _key(number), run.label), _findings(run.stats)) for number, run in enumerate(runs)),
    )
    yield _section("Histograms", _histograms(runs))
    yield _section(
        "Time lines",
        *(join(tag("h3", _key(number), run.label), *_time_lines(run, number)) for number, run in enumerate(runs)),
    )
    yield _section("Settings that differ", _differences([run.stats.settings for run in runs], heads))
    yield _section("Machines", _differences([run.stats.host for run in runs], heads))
    for number, run in enumerate(runs):
        yield tag("h2", _key(number), run.label, class_="run-name")
        yield tag("p", headline(run.stats), class_="lead")
        yield _section("Figures", _figures(run.stats), *(tag("p", note, class_="note") for note in notes_of(run.stats)))
        yield from _details(run, worst)


def _details(run: Run, worst: int) -> Iterable[Markup]:
    stats = run.stats
    if worst and len(stats.records):
        yield _section("Worst cycles", _worst_cycles(stats, worst))
    if stats.guard:
        yield _section("Guards", tag("p", f"{stats.guard_sentence}."), *_violations(stats.guard))
    yield _section("Grants: requests to the kernel, and its answers", _grants(stats))
    yield _section("Settings", _pairs({key: _with_unit(key, value) for key, value in stats.settings.items()}))
    yield _section("Machine", _pairs(stats.host))


_READING = tag(
    "p",
    "Both axes are logarithmic: a single cycle is as easy to see as a thousand. A triangle marks each greatest value."
    " A deadline has to allow for the values far to the right of the bulk.",
    class_="note",
)


def _section(title: str, *parts: Any) -> Markup:
    return tag("section", tag("h2", title), *parts)


def _scroll(*parts: Any) -> Markup:
    """Make wide content scroll by itself instead of the page."""
    return tag("div", *parts, class_="scroll")


def _key(number: int) -> Markup:
    return tag("span", class_=f"key r{number % 6}")


def _findings(stats: Stats) -> Markup:
    marks = {"bad": "Problem", "note": "Note", "good": "Good"}
    return tag(
        "ul",
        *(tag("li", tag("b", marks[found.level]), " ", found.text, class_=found.level) for found in find(stats)),
        class_="findings",
    )


def _figures(stats: Stats) -> Markup:
    rows = [
        tag(
            "tr", tag("th", label, tag("small", meaning)), *(tag("td", cell) for cell in cells_of(getattr(stats, name)))
        )
        for name, label, meaning in ROWS
    ]
    head = tag("thead", tag("tr", tag("th"), *(tag("th", text) for text in HEAD)))
    return _scroll(tag("table", head, tag("tbody", *rows), class_="figures"))


def _facts(stats: Stats) -> Markup:
    return _pairs(dict(facts_of(stats)))


_VIOLATION_HEAD = ("First in cycle", "Last in cycle", "Times", "What", "Where", "Line", "Through", "Note")


def _violations(guard: dict[str, Any]) -> Iterable[Markup]:
    found = guard_summary.groups(guard)
    if not found:
        return
    rows = (
        tag(
            "tr",
            tag("td", f"{v['cycle']:,}"),
            tag("td", f"{v['last_cycle']:,}"),
            tag("td", f"{v['count']:,}"),
            tag("td", f"{v['kind']} {v['detail']}"),
            tag("td", v["symbol"] or "-"),
            tag("td", f"{v['file']}:{v['line']}" if v["line"] else "-"),
            tag("td", " \N{RIGHTWARDS ARROW} ".join(v["through"]) or "-"),
            tag("td", v["note"] or "-"),
        )
        for v in found
    )
    head = tag("thead", tag("tr", *(tag("th", text) for text in _VIOLATION_HEAD)))
    yield _scroll(tag("table", head, tag("tbody", *rows)))
    missing = guard_summary.unlisted(guard)
    if missing:
        yield tag("p", f"Counted at other places, which are not listed: {', '.join(missing)}.", class_="note")


def _pairs(values: dict[str, Any]) -> Markup:
    if not values:
        return tag("p", "None.", class_="note")
    rows = (tag("tr", tag("th", key), tag("td", _value(value))) for key, value in values.items())
    return _scroll(tag("table", tag("tbody", *rows), class_="pairs"))


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _with_unit(key: str, value: Any) -> Any:
    """Format a setting in nanoseconds."""
    if key.endswith("_ns") and isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,} ({format_duration(value)})" if value else "0"
    return value


def _histograms(runs: Sequence[Run]) -> Markup:
    names = [name for name, _, _ in ROWS if name != "interval" or any(run.stats.has_own_wait for run in runs)]
    periods = {period_of(run.stats) for run in runs}
    period = periods.pop() if len(periods) == 1 else 0
    charts = []
    for name in names:
        rows = [(run.label, getattr(run.stats, name)) for run in runs]
        if any(histogram.count for _, histogram in rows):
            charts.append(draw_histogram_chart(_TITLES[name], rows, period=period if name != "execution" else 0))
    if not charts:
        return tag("p", "No cycle was measured.", class_="note")
    keys = tag("p", *(tag("span", _key(n), run.label, class_="legend") for n, run in enumerate(runs)))
    return join(keys if len(runs) > 1 else None, tag("div", *charts, class_="charts"), _READING)


def _time_lines(run: Run, number: int) -> Iterable[Markup]:
    stats, records, period = run.stats, run.stats.records, period_of(run.stats)
    if len(records) <= stats.has_own_wait:
        yield tag("p", "No cycle was recorded.", class_="note")
        return
    release, start, end = (records[name] for name in ("release", "start", "end"))
    if stats.has_own_wait:
        t = (start - start[0]) * 1e-9
        yield _scroll(draw_time_line("interval", t[1:], np.diff(start), colour=number, period=period))
        yield _scroll(draw_time_line("execution time", t, end - start, colour=number))
    else:
        t = (release - release[0]) * 1e-9
        yield _scroll(draw_time_line("wake-up latency", t, start - release, colour=number))
        overruns, missed = find_overruns(stats), find_missed(stats)
        line = draw_time_line(
            "response time", t, end - release, colour=number, period=period, overruns=overruns, missed=missed
        )
        yield _scroll(line)
    yield tag(
        "p",
        f"The last {len(records):,} cycles. Each column of the picture reaches from the least to the greatest value"
        " in it: no cycle is left out.",
        class_="note",
    )


def _worst_cycles(stats: Stats, count: int) -> Markup:
    records, own, period = stats.records, stats.has_own_wait, period_of(stats)
    first = first_index(stats)
    head = ["cycle", "at"] + (
        ["interval before", "execution"] if own else ["latency", "execution", "response", "overrun"]
    )
    rows = []
    for place in stats.worst_places(count).tolist():
        release, start, end = (int(records[place][name]) for name in ("release", "start", "end"))
        cells = [f"{first + place:,}", f"{(start - int(records['start'][0])) * 1e-9:.6f} s"]
        if own:
            before = _duration(start - int(records["start"][place - 1])) if place else "-"
            cells += [before, _duration(end - start)]
        else:
            late = end - release - period
            overrun = f"{_duration(late)} too late" if period and late > 0 else ""
            cells += [_duration(start - release), _duration(end - start), _duration(end - release), overrun]
        rows.append(tag("tr", *(tag("td", cell) for cell in cells)))
    what = "the longest interval before them" if own else "the greatest wake-up latency"
    table = tag(
        "table", tag("thead", tag("tr", *(tag("th", text) for text in head))), tag("tbody", *rows), class_="figures"
    )
    note = f"The recorded cycles with {what}; the time is from the first recorded one on."
    return join(_scroll(table), tag("p", note, class_="note"))


def _duration(ns: int) -> str:
    return format_duration(float(f"{ns:.4e}"))


def _grants(stats: Stats) -> Markup:
    if not stats.grants:
        return tag("p", "None: the loop was not started, or was simulated.", class_="note")
    head = ("", "asked for", "granted", "", "how it was read back, or the cause; the fix")
    rows = []
    for grant in stats.grants:
        fix = tag("pre", grant.fix) if grant.fix else None
        mark = tag("td", "yes" if grant.ok else "NOT GRANTED", class_="good" if grant.ok else "bad")
        cells = [tag("th", grant.name), tag("td", _value(grant.requested)), tag("td", _value(grant.granted)), mark]
        rows.append(tag("tr", *cells, tag("td", grant.detail, fix)))
    return _scroll(
        tag("table", tag("thead", tag("tr", *(tag("th", text) for text in head))), tag("tbody", *rows), class_="grants")
    )


def _comparison(runs: Sequence[Run], heads: Sequence[Markup]) -> Markup:
    """Make a table of the main figures, side by side."""
    counters = (("cycles", "cycles"), ("overruns", "overruns"), ("missed", "missed releases"), ("late", "late cycles"))
    rows = [tag("tr", tag("th", "run"), *heads)]
    for name, label in counters:
        numbers = [getattr(run.stats, name) for run in runs]
        rows.append(_row(label, [f"{n:,}" for n in numbers]))
    rows.append(
        _row("period", [format_duration(period_of(run.stats)) if period_of(run.stats) else "-" for run in runs])
    )
    for name, label, _ in ROWS:
        histograms = [getattr(run.stats, name) for run in runs]
        is_a_race = name != "interval" and not any(run.stats.is_simulated for run in runs)
        texts = [cells_of(histogram) for histogram in histograms]
        for column, head in enumerate(HEAD):
            if head not in ("50 %", "99 %", "99.9 %", "max"):
                continue
            q = 100.0 if head == "max" else float(head.split()[0])
            values = [
                float(h.percentile(q)) if t[column] != "-" else np.inf for h, t in zip(histograms, texts, strict=True)
            ]
            rows.append(_row(f"{label}, {head}", [text[column] for text in texts], values if is_a_race else None))
    return tag("table", tag("tbody", *rows), class_="figures compare")


def _row(label: str, texts: Sequence[str], values: Sequence[float] | None = None) -> Markup:
    least = min(values) if values and min(values) < max(values) else None
    cells = [
        tag("td", tag("b", text) if least is not None and values is not None and values[i] == least else text)
        for i, text in enumerate(texts)
    ]
    return tag("tr", tag("th", label), *cells)


def _differences(each: Sequence[dict[str, Any]], heads: Sequence[Markup]) -> Markup:
    keys = list(dict.fromkeys(key for values in each for key in values))
    differing = [key for key in keys if len({_value(values.get(key)) for values in each}) > 1]
    if not differing:
        return tag("p", "All are the same.", class_="note")
    rows = [
        tag("tr", tag("th", key), *(tag("td", _value(_with_unit(key, values.get(key)))) for values in each))
        for key in differing
    ]
    return _scroll(tag("table", tag("tbody", tag("tr", tag("th"), *heads), *rows), class_="pairs compare"))
