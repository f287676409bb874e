"""Draw each overrun policy as a time line of a simulated run: docs/images/overrun-*.svg.

    python docs/draw_overruns.py

One cycle takes 27 ms instead of 4 ms, at a period of 10 ms. The drawings show the records of `RTLoop.simulate`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import rtloop

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERIOD = 10  # ms
EXECUTION = [4, 4, 27, 4, 4, 4, 4, 4, 4, 4]  # ms, cycle by cycle
END = 90  # ms
POLICIES = ("skip", "catch-up", "shift", "stop")
IMAGES = Path(__file__).parent / "images"

_BLUE, _ORANGE, _RED, _GREY = "#0072B2", "#D55E00", "#C00000", "#888888"


class Line(NamedTuple):
    """A time line, in ms since the first release."""

    release: list[float]  # of the cycles that ran
    start: list[float]
    end: list[float]
    missed: list[float]  # releases that were dropped
    grid: list[float]  # releases as they were first planned
    error: str


def time_line(policy: str) -> Line:
    """Simulate a loop with one long step, and return the fate of each release."""
    loop = rtloop.RTLoop(f"{PERIOD}ms", overrun=policy, warmup=0, name=policy)
    error = ""
    try:
        loop.simulate(f"{END}ms", execution=[f"{ms}ms" for ms in EXECUTION])
    except rtloop.OverrunError as failure:
        error = type(failure).__name__
    records = loop.stats.records
    first = records["release"][0]
    release, start, end = (((records[name] - first) / 1e6).tolist() for name in ("release", "start", "end"))
    gaps = [(a, b) for a, b in itertools.pairwise(release) if b - a > PERIOD]
    missed = [] if policy == "shift" else [a + PERIOD * k for a, b in gaps for k in range(1, round((b - a) / PERIOD))]
    if error:
        missed = [release[-1] + PERIOD * k for k in range(1, loop.stats.missed + 1)]
    if len(missed) != loop.stats.missed:
        raise SystemExit(f"{policy}: {len(missed)} releases are drawn as missed, but {loop.stats.missed} were")
    return Line(release, start, end, missed, [float(t) for t in range(0, END, PERIOD)], error)


def draw(axes: Axes, policy: str) -> None:
    """Draw a time line: a box from start to end of each cycle, an arrow at each release."""
    line = time_line(policy)
    for t in line.grid:
        axes.axvline(t, ymax=0.82, color=_GREY, linewidth=0.6, linestyle=(0, (3, 3)), zorder=0)
    for release, start, end in zip(line.release, line.start, line.end, strict=True):
        late = end > release + PERIOD
        axes.broken_barh([(start, end - start)], (0, 1), facecolor=_ORANGE if late else _BLUE, edgecolor="white")
    for t in line.release:
        axes.annotate("", (t, 1.55), (t, 0), arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1})
    for t in line.missed:
        axes.plot(t, 1.3, "x", color=_RED, markersize=8, markeredgewidth=2)
    if line.error:
        axes.text(line.end[-1] + 1.5, 0.35, f"{line.error}: the loop has failed", color=_RED, fontsize=9)
    axes.set_xlim(-2, END)
    axes.set_ylim(-0.05, 1.6)
    axes.set_yticks([])
    axes.set_xticks(line.grid)
    axes.set_xlabel("ms")
    axes.set_title(f'overrun="{policy}"', loc="left", fontsize=10, family="monospace")
    axes.spines[["left", "right", "top"]].set_visible(False)


def main() -> None:
    """Write a picture for each policy."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "rtloop", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    for policy in POLICIES:
        figure, axes = plt.subplots(figsize=(8, 1.7), layout="constrained")
        draw(axes, policy)
        figure.savefig(IMAGES / f"overrun-{policy}.svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
