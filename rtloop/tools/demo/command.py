"""``rtloop demo``: one control law in three loops beside a busy Python thread, and a pole that stands or falls."""

from __future__ import annotations

import json
from contextlib import nullcontext
from math import degrees
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rtloop.tools.options import check_picture, make_out, to_duration, to_period
from rtloop.units import format_duration, format_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.table import Table

    from rtloop.demo.trial import Trial

__all__ = ["conclude", "demo", "make_document", "make_table"]


@click.command()
@click.option(
    "--duration",
    metavar="DURATION",
    callback=to_duration,
    default="10s",
    show_default=True,
    help="Duration of each run.",
)
@click.option(
    "--rate",
    metavar="RATE",
    callback=to_period,
    default="1kHz",
    show_default=True,
    help="Rate of the loop, or its period.",
)
@click.option("--seed", type=click.IntRange(0, 2**32), default=1, show_default=True, help="Seed of the pushes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the table.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE",
    help="Draw the latencies and the pole's angle into FILE (.png, .svg, .pdf).",
)  # fmt: skip
def demo(duration: int, rate: int, seed: int, as_json: bool, plot: Path | None) -> None:
    """Keep a pole upright next to a busy Python thread.

    A separate process simulates a pole of 10 cm on a cart, in real time, and pushes it every half second. It sends
    its state over UDP, and receives a force. A delay of 4 ms does not matter; with a longer delay the pole sways,
    and at 35 ms it falls. The same control law runs three times: from a plain Python loop (time.perf_counter and
    time.sleep), from an RTLoop, and from an RTLoop with spin="auto". In the controller's process a Python thread
    computes and allocates without a pause. All three runs get the same plant, the same pushes and the same busy
    thread.
    """
    from rich.console import Console

    from rtloop.demo.trial import KINDS, run_trial

    if duration < 4 * rate:
        raise click.BadParameter(f"{format_duration(duration)} is less than four cycles", param_hint="--duration")
    if plot is not None:
        check_picture(plot)
    out, err = make_out(), Console(stderr=True)
    if not as_json:
        out.print(
            f"Three times {format_duration(duration)} at {format_rate(rate)}: a pole of 10 cm on a cart in another"
            " process, and a busy Python thread in this one.\n",
            highlight=False,
        )
    trials = []
    with _Progress(err, duration) as progress:
        for kind, label in KINDS.items():
            trials.append(
                run_trial(kind, period_ns=rate, duration_ns=duration, seed=seed, progress=progress.begin(label))
            )
            progress.end(trials[-1])
    if as_json:
        click.echo(json.dumps(make_document(trials, seed), indent=1))
    else:
        out.print(make_table(trials, duration))
        out.print()
        out.print(conclude(trials), highlight=False)
        _print_refused(out, trials)
    if plot is not None:
        from rtloop.tools.demo.plot import draw_trials

        draw_trials(trials, plot)
        err.print(f"wrote {plot}", highlight=False, soft_wrap=True)


class _Progress:
    """A bar for each run, with the pole's angle and the worst latency; without a terminal, a line."""

    def __init__(self, console: Console, duration_ns: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._seconds = duration_ns / 1e9
        self._bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,  # a refresh thread would be another load on the GIL; the trial polls anyway
        )
        self._task = self._bars.add_task("", visible=False, note="")
        self._live = self._bars if console.is_terminal else nullcontext()

    def __enter__(self) -> _Progress:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def begin(self, label: str) -> Callable[[float, float, float], None]:
        """Add a bar and return the function that moves it."""
        self._task = self._bars.add_task(label, total=self._seconds, note="")

        def update(seconds: float, angle: float, worst: float) -> None:
            note = f"angle {degrees(angle):+6.1f}°   worst latency {_duration(worst * 1e9 if worst > 0 else None):>8}"
            self._bars.update(self._task, completed=min(seconds, self._seconds), note=note)
            if self._console.is_terminal:
                self._bars.refresh()

        return update

    def end(self, trial: Trial) -> None:
        """Finish the bar."""
        note = f"{_fate(trial)}, worst latency {_duration(_worst(trial))}"
        self._bars.update(self._task, completed=self._seconds, note=note)
        if self._console.is_terminal:
            self._bars.refresh()
        else:
            self._console.print(f"{trial.label}: {note}", highlight=False, soft_wrap=True)


def make_table(trials: Sequence[Trial], duration_ns: int) -> Table:
    """Make a table of the runs, side by side."""
    from rich.table import Table

    table = Table(
        title=f"{format_rate(trials[0].period_ns)}, {format_duration(duration_ns)} each", title_justify="left"
    )
    table.add_column("")
    for trial in trials:
        table.add_column(trial.label, justify="right")

    def row(name: str, cell: Callable[[Trial], str], *, end_section: bool = False) -> None:
        table.add_row(name, *(cell(trial) for trial in trials), end_section=end_section)

    row("rate reached", lambda t: f"{t.rate_hz:,.1f} Hz")
    row("releases", lambda t: f"{t.releases:,}")
    row("cycles run", lambda t: f"{t.cycles:,}")
    row("missed releases", lambda t: f"{t.missed:,}")
    row("overruns", lambda t: f"{t.overruns:,}", end_section=True)
    for q in (50, 99, 99.9):
        row(
            f"wake-up latency, p{q:g}",
            lambda t, q=q: _duration(t.latency.percentile(q) if t.latency.count else None),  # type: ignore[misc]
        )
    row("wake-up latency, max", lambda t: _duration(_worst(t)))
    row("page faults, minor+major", lambda t: f"{t.page_faults[0]:,} + {t.page_faults[1]:,}", end_section=True)
    row("oldest state acted on", lambda t: f"{t.pole.oldest_state_ms:,.1f} ms")
    row("worst angle", lambda t: f"{t.pole.worst_angle_deg:.1f}°")
    row("the pole", lambda t: f"[{'green' if t.pole.stood else 'red'}]{_fate(t)}[/]")
    return table


def conclude(trials: Sequence[Trial]) -> str:
    """Summarise the figures in a few sentences, whatever the result."""
    plain, *others = trials
    asked = f"{1e9 / plain.period_ns:,.2f}".rstrip("0").rstrip(".")
    text = (
        f"Next to a busy Python thread the plain loop reached {plain.rate_hz:,.0f} of {asked} Hz,"
        f" {_lateness(plain)} and {_outcome(plain)}."
    )
    for trial in others:
        missed = f"missed {trial.missed:,} of {trial.releases:,} releases" if trial.missed else "missed nothing"
        text += f" {trial.label}: {missed}, {_lateness(trial)} and {_outcome(trial)}."
    if not any(trial.pole.stood for trial in others):
        text += " This machine, as configured now, cannot hold the pole at this rate either way."
    elif all(plain.pole.stood and plain.pole.worst_angle_deg < 1.1 * trial.pole.worst_angle_deg for trial in others):
        text += " For this pole and this run the plain loop was good enough."
    return text


def make_document(trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    from rtloop import __version__
    from rtloop.demo.cartpole import GAINS
    from rtloop.demo.physics import PARAMETERS

    return {
        "rtloop": __version__,
        "command": "demo",
        "seed": seed,
        "plant": PARAMETERS,
        "gains": list(GAINS),
        "runs": [trial.to_dict() for trial in trials],
        "conclusion": conclude(trials),
    }


def _print_refused(out: Console, trials: Sequence[Trial]) -> None:
    """Print the refused grants and their fixes."""
    from rtloop.system.grant import describe_refused

    refused = {grant.name: grant for trial in trials for grant in trial.refused}
    if refused:
        out.print("\n[yellow]rtloop ran degraded.[/] What is missing:", highlight=False)
        for grant in refused.values():
            refusal, _, fix = describe_refused(grant).partition("\n")
            out.print(refusal, highlight=False, markup=False)
            out.print(fix, highlight=False, markup=False, soft_wrap=True)  # commands to paste must not be wrapped


def _outcome(trial: Trial) -> str:
    if trial.pole.stood:
        return f"held the pole within {trial.pole.worst_angle_deg:.1f}°"
    return f"dropped the pole after {trial.pole.fell_at_s:.2f} s"


def _lateness(trial: Trial) -> str:
    worst = _worst(trial)
    return "hardly ran at all" if worst is None else f"woke up to {_duration(worst)} late"


def _fate(trial: Trial) -> str:
    return "stood" if trial.pole.stood else f"fell at {trial.pole.fell_at_s:.2f} s"


def _worst(trial: Trial) -> float | None:
    """Return the largest wake-up latency; None if the loop did not get beyond its warm-up."""
    return trial.latency.max if trial.latency.count else None


def _duration(ns: float | None) -> str:
    return "-" if ns is None else format_duration(ns, 1)
