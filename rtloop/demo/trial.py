"""Run of the demo: a plant, a hog, and a controller of one of three kinds."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from rtloop.demo.hog import Hog
from rtloop.demo.plant import PlantProcess, Report

if TYPE_CHECKING:
    from rtloop.stats.histogram import Histogram
    from rtloop.system.grant import Grant

__all__ = ["KINDS", "Trial", "run_trial"]

KINDS = {"plain": "plain Python", "rtloop": "rtloop", "spin": 'rtloop, spin="auto"'}

WARMUP = 10
_POLL_S = 0.2
# The plant's observation ends this much before the controller stops answering.
_MARGIN_NS = 50_000_000

Progress = Callable[[float, float, float], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """Result of one run.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    period_ns, duration_s : int, float
        The requested period, and the duration of the run.
    cycles, missed, overruns : int
        Cycles run, releases without a cycle, cycles that ended after the next release.
    latency : Histogram
        Wake-up latency, start - release, without the warm-up cycles.
    page_faults : tuple of int
        Minor and major, of the loop's thread, after the warm-up cycles.
    hog_rounds : int
        Rounds of the busy thread meanwhile.
    pole : Report
        The plant's report.
    grants : tuple of Grant
        The kernel's grants; empty for plain Python, which asks for nothing.
    """

    kind: str
    period_ns: int
    duration_s: float
    cycles: int
    missed: int
    overruns: int
    latency: Histogram
    page_faults: tuple[int, int]
    hog_rounds: int
    pole: Report
    grants: tuple[Grant, ...]

    @property
    def label(self) -> str:
        """The run's name for a person."""
        return KINDS[self.kind]

    @property
    def releases(self) -> int:
        """Releases of the run, missed ones included."""
        return self.cycles + self.missed

    @property
    def rate_hz(self) -> float:
        """Cycles per second, averaged over the releases."""
        return self.cycles / self.releases / (self.period_ns / 1e9)

    @property
    def refused(self) -> tuple[Grant, ...]:
        """The grants that the kernel refused."""
        return tuple(grant for grant in self.grants if not grant.ok)

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as a dict that JSON can hold."""
        latency = self.latency
        figures = {f"p{q}".replace(".", "_"): latency.percentile(q) for q in (50, 90, 99, 99.9, 99.99)}
        figures |= {"max": latency.max, "mean": latency.mean}
        return {
            "kind": self.kind,
            "label": self.label,
            "period_ns": self.period_ns,
            "duration_s": self.duration_s,
            "rate_hz": self.rate_hz,
            "cycles": self.cycles,
            "missed": self.missed,
            "overruns": self.overruns,
            # JSON has no NaN, and a loop that did not get beyond its warm-up has no latency.
            "latency_ns": {name: float(value) if latency.count else None for name, value in figures.items()},
            "latency": latency.to_dict(),
            "page_faults": dict(zip(("minor", "major"), self.page_faults, strict=True)),
            "hog_rounds": self.hog_rounds,
            "pole": {
                "stood": self.pole.stood,
                "fell_at_s": self.pole.fell_at_s,
                "worst_angle_deg": self.pole.worst_angle_deg,
                "oldest_state_ms": self.pole.oldest_state_ms,
                "observed_s": self.pole.observed_s,
                "states_sent": self.pole.states_sent,
                "forces_received": self.pole.forces_received,
                "trace": self.pole.trace,
            },
            "grants": [grant.to_dict() for grant in self.grants],
        }


def run_trial(kind: str, *, period_ns: int, duration_ns: int, seed: int, progress: Progress | None = None) -> Trial:
    """Run the controller once, beside the hog, against a plant of its own.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    period_ns, duration_ns : int
        The loop's period, and the duration of the run.
    seed : int
        Seed of the pushes that the plant gives the pole.
    progress : callable, optional
        Called a few times a second with the seconds gone, the pole's angle in radians and the largest wake-up latency
        in seconds.
    """
    observed_ns = max(duration_ns - _MARGIN_NS, period_ns)
    run = _run_plain if kind == "plain" else _run_rtloop
    with PlantProcess(observed_ns, seed, min(period_ns, 1_000_000)) as plant, Hog() as hog:
        outcome = run(kind, plant.address, period_ns, duration_ns, progress or (lambda *_: None))
        return Trial(kind=kind, period_ns=period_ns, hog_rounds=hog.rounds, pole=plant.finish(), **outcome)


def _run_beside(run: Callable[[], object], stop: Callable[[], None], show: Callable[[float], None]) -> None:
    """Call `run` in its own thread and show its progress; raise whatever interrupts it, or `run` raises."""
    failure: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as error:  # passed to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=target, name="controller")
    begin = time.monotonic()
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            show(time.monotonic() - begin)
    finally:
        stop()
        thread.join()
    if failure:
        raise failure[0]


def _run_plain(
    kind: str, address: tuple[str, int], period_ns: int, duration_ns: int, progress: Progress
) -> dict[str, Any]:
    from rtloop.demo.plain import PlainCartPole
    from rtloop.stats.histogram import Histogram

    loop = PlainCartPole(period_ns, plant=address, warmup=WARMUP)
    _run_beside(
        lambda: loop.run(duration_ns / 1e9), loop.stop, lambda gone: progress(gone, loop.angle, loop.worst_latency)
    )
    measured = loop.records[WARMUP:]
    return {
        "duration_s": loop.duration,
        "cycles": len(loop.records),
        "missed": loop.missed,
        "overruns": loop.overruns,
        "latency": Histogram.from_values([round((start - release) * 1e9) for release, start, _ in measured]),
        "page_faults": loop.page_faults,
        "grants": (),
    }


def _run_rtloop(
    kind: str, address: tuple[str, int], period_ns: int, duration_ns: int, progress: Progress
) -> dict[str, Any]:
    from rtloop import RTSetupWarning
    from rtloop.demo.cartpole import CartPole

    loop = CartPole(
        period_ns, plant=address, spin="auto" if kind == "spin" else 0, strict=False, warmup=WARMUP, name="cartpole"
    )

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RTSetupWarning)  # the demo shows the grants itself
            loop.run(duration=duration_ns)  # its own thread counts the releases and stops on time

    _run_beside(run, loop.stop, lambda gone: progress(gone, loop.angle, loop.stats.latency.max / 1e9))
    stats = loop.stats
    loop.close()
    return {
        "duration_s": stats.duration,
        "cycles": stats.cycles,
        "missed": stats.missed,
        "overruns": stats.overruns,
        "latency": stats.latency,
        "page_faults": cast("tuple[int, int]", tuple(stats.page_faults)),  # known once the loop has ended
        "grants": stats.grants,
    }
