"""Picture of ``rtloop demo``: the latencies, and the pole's angle over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtloop.stats.plots import COLOURS, draw_histograms, new_figure, save_figure, tidy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rtloop.demo.trial import Trial

__all__ = ["draw_trials"]


def draw_trials(trials: Sequence[Trial], path: Path) -> None:
    """Draw the runs into a file.

    Parameters
    ----------
    trials : sequence of Trial
        The runs, drawn in this order.
    path : Path
        File to write; its suffix chooses the format.
    """
    figure = new_figure(9.6, 8.4)
    upper, lower = figure.subplots(2, 1)
    draw_histograms(upper, {trial.label: trial.latency for trial in trials})
    upper.set_title("Wake-up latency beside a busy Python thread", loc="left")

    for number, trial in enumerate(trials):
        color = COLOURS[number % len(COLOURS)]
        style = "-" if number < 2 else (0, (5, 4))  # both stay visible where two curves agree
        trace = trial.pole.trace
        times = [index * trace["interval_s"] for index in range(len(trace["angle_deg"]))]
        lower.plot(times, trace["angle_deg"], color=color, linewidth=1.6, linestyle=style, label=trial.label)
        if trial.pole.fell_at_s is not None:
            angle = 45.0 if trace["angle_deg"][-1] > 0 else -45.0
            lower.plot(trial.pole.fell_at_s, angle, marker="x", markersize=11, markeredgewidth=3, color=color, zorder=9)
            lower.annotate(
                f"fell at {trial.pole.fell_at_s:.2f} s", (trial.pole.fell_at_s, angle), xytext=(10, 0),
                textcoords="offset points", va="center", color=color, weight="bold", zorder=9,
            )  # fmt: skip
    limit = 1.15 * max(8.0, *(min(trial.pole.worst_angle_deg, 50.0) for trial in trials))
    lower.set_ylim(-limit, limit)
    lower.set_xlim(0, max(trial.pole.observed_s for trial in trials))
    lower.set_xlabel("time since the hand let go (s)")
    lower.set_ylabel("angle of the pole from upright (°)")
    lower.set_title("The pole, pushed every half second", loc="left")
    tidy(lower)
    lower.legend(loc="upper right", fontsize="small", frameon=False)
    save_figure(figure, path)
