"""Plugin for pytest: test controllers in virtual time, and briefly in real time.

Switch it on in the top-level ``conftest.py``, or with ``-p rtloop.pytest``; it is not loaded automatically, so that
unrelated test suites are not affected::

    pytest_plugins = ["rtloop.pytest"]

Then a test is::

    from rtloop.pytest import assert_clean

    def test_it_settles(rt_simulate):
        servo = Servo("1kHz")
        rt_simulate(servo, "5s")
        assert abs(servo.angle - 1) < 1e-3

    @pytest.mark.rt
    def test_it_is_clean_in_real_time(rt_run):
        assert_clean(rt_run(Servo("1kHz"), "500ms"))
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from rtloop.errors import RtloopError, RTSetupWarning, SetupError
from rtloop.process.nap import nap
from rtloop.settings import parse_run_duration
from rtloop.stats import findings, guard_summary
from rtloop.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rtloop.loop.loop import RTLoop
    from rtloop.stats.stats import Stats

__all__ = ["Run", "Simulate", "assert_clean"]

_MODES = ("auto", "require", "skip")
_SHOWN = 10


class Run(Protocol):
    """The fixture `rt_run`."""

    def __call__(self, loop: RTLoop, duration: Any = "300ms", *, cycles: int | None = None) -> Stats:
        """Run a loop for a duration or some cycles; a loop that hangs or fails fails the test."""
        ...


class Simulate(Protocol):
    """The fixture `rt_simulate`."""

    def __call__(self, loop: RTLoop, duration: Any = None, **options: Any) -> Stats:
        """Simulate a loop as ``loop.simulate`` does; an account that does not add up fails the test."""
        ...


def assert_clean(stats: Stats, *, overruns: int | None = None, missed: int | None = None, page_faults: int = 0) -> str:
    """Fail the test unless a run kept the promises of a clean loop.

    The promises: it ran and did not fail; ``cycles + missed`` are the releases elapsed on the grid; each cycle is in
    each histogram, and none started before its release; no page fault since the warm-up, and nothing that a guard
    found. Lateness on a shared machine is not a fault of the code: overruns and missed releases are counted, and judged
    only if a limit is given.

    Parameters
    ----------
    stats : Stats
        Stats of a run, real or simulated.
    overruns, missed : int, optional
        The most that are accepted; any number by default.
    page_faults : int
        The most that are accepted, of both kinds.

    Returns
    -------
    str
        A sentence with the counts, and with whatever could not be checked here.

    Raises
    ------
    AssertionError
        With every fault.
    """
    __tracebackhide__ = True
    wrong: list[str] = []
    unknown: list[str] = []
    if stats.state in ("failed", "died"):
        wrong.append(f"the loop {stats.state}")
    if not stats.cycles:
        wrong.append("it ran no cycle, so nothing was tested")
    elif stats.cycles <= stats.warmup:
        unknown.append("what follows the warm-up, because the run did not get beyond it")
    wrong += _unbalanced(stats, unknown)
    for name, count, limit in (("overruns", stats.overruns, overruns), ("missed releases", stats.missed, missed)):
        if limit is not None and count > limit:
            wrong.append(f"{count:,} {name}; {limit:,} are accepted")
    faults = None if None in stats.page_faults else sum(x or 0 for x in stats.page_faults)
    if stats.is_simulated or faults is None:
        unknown.append("page faults")
    elif faults > page_faults:
        minor, major = stats.page_faults
        wrong.append(f"{minor:,} minor and {major:,} major page faults in the loop's thread since the warm-up")
    found = guard_summary.count(stats.guard)
    if found:
        listed = [
            f"  {one['count']:,} times {guard_summary.when(one)}: {guard_summary.describe(one)}"
            if one["count"] > 1
            else f"  {guard_summary.when(one)}: {guard_summary.describe(one)}"
            for one in guard_summary.groups(stats.guard)[:_SHOWN]
        ]
        wrong += [f"the guards found: {stats.guard_sentence}", *listed]
    if not stats.guard:
        unknown.append("system calls and allocations (guard='off')")
    done = f"{stats.cycles:,} cycles, {stats.overruns:,} overruns, {stats.missed:,} missed releases"
    if faults is not None and not stats.is_simulated:
        done += f", {faults:,} page faults"
    done += f"; guards: {stats.guard_sentence}" if stats.guard else ""
    done += f"; not checked: {', '.join(unknown)}" if unknown else ""
    if wrong:
        refused = [f"{grant.name} was not granted: {grant.detail}" for grant in stats.grants if not grant.ok]
        raise AssertionError("\n  ".join([f"{stats.name} was not clean:", *wrong, *refused, f"({done})"]))
    return done


def _unbalanced(stats: Stats, unknown: list[str]) -> list[str]:
    """Return the faults in the account of the cycles; add what cannot be checked to `unknown`."""
    wrong = []
    measured = stats.cycles - stats.warmup
    held = (
        {"execution": measured} if stats.has_own_wait else dict.fromkeys(("latency", "execution", "response"), measured)
    )
    for name, count in held.items():
        if getattr(stats, name).count != count:
            wrong.append(f"the histogram of {name} has {getattr(stats, name).count:,} of {count:,} cycles")
    if not 0 <= measured - stats.interval.count <= 1:
        wrong.append(f"the histogram of interval has {stats.interval.count:,} of {measured:,} cycles")
    records = stats.records
    if stats.has_own_wait or not len(records):
        unknown.append("the grid")
        return wrong
    if (records["start"] < records["release"]).any() or (records["end"] < records["start"]).any():
        wrong.append("a cycle started before its release, or ended before its start")
    elapsed = findings.elapsed_releases(stats)
    if elapsed is None:
        unknown.append("the grid, which was shifted")
    elif not elapsed[0] <= stats.cycles + stats.missed <= elapsed[1]:
        wrong.append(
            f"{stats.cycles:,} cycles and {stats.missed:,} missed releases are not the {elapsed[0]:,} that elapsed"
        )
    return wrong


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--rt``."""
    parser.getgroup("rtloop").addoption(
        "--rt",
        choices=_MODES,
        default="auto",
        help="tests marked rt: auto runs them if a loop is granted all that it asks for, and else skips them with the"
        " reason; require fails them in that case; skip never runs them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "rt(**settings): runs a loop in real time; skipped, with the reason, if a loop with these settings (by"
        " default the loop's own defaults) is not granted all that it asks for",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a marked test if its requests are refused."""
    marker = item.get_closest_marker("rt")
    if marker is None:
        return
    if marker.args:
        pytest.fail(f"pytest.mark.rt{marker.args}: give keywords of RTLoop, such as lock_memory='off'", pytrace=False)
    mode = item.config.getoption("--rt")
    if mode == "skip":
        pytest.skip("--rt=skip: no test in real time")
    reason = _refusal(dict(marker.kwargs))
    if reason and mode == "require":
        pytest.fail(f"--rt=require: {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


_refusals: dict[str, str] = {}


def _refusal(settings: dict[str, Any]) -> str:
    """Return why a loop's requests are refused here, or nothing; tried once per session."""
    from rtloop.loop.loop import RTLoop

    key = repr(sorted(settings.items()))
    if key not in _refusals:
        try:
            RTLoop("1ms", **{"name": "rt-marker", **settings, "strict": True}).run(cycles=1)
            _refusals[key] = ""
        except SetupError as error:
            _refusals[key] = f"a loop in real time is refused here:\n{error}\nSee also: rtloop doctor"
        except (RtloopError, TypeError) as error:
            pytest.fail(f"pytest.mark.rt({settings}): {error}", pytrace=False)
    return _refusals[key]


@pytest.fixture
def rt_simulate() -> Simulate:
    """Simulate a loop in virtual time, and check that its account adds up: ``rt_simulate(loop, "10s")``."""

    def simulate(loop: RTLoop, duration: Any = None, **options: Any) -> Stats:
        __tracebackhide__ = True
        stats = loop.simulate(duration, **options)
        wrong = _unbalanced(stats, [])
        if wrong:
            raise AssertionError("\n  ".join([f"{stats.name}: the account does not add up:", *wrong]))
        return stats

    return simulate


@pytest.fixture
def rt_run() -> Iterator[Run]:
    """Run a loop for real, and stop it whatever happens: ``rt_run(loop, "300ms")``.

    A step that never returns fails the test instead of hanging it.
    """
    started: list[RTLoop] = []

    def run(loop: RTLoop, duration: Any = "300ms", *, cycles: int | None = None) -> Stats:
        __tracebackhide__ = True
        seconds = parse_run_duration(duration, loop.settings.period_ns) * 1e-9
        if cycles is not None:
            seconds = 10 + 10 * cycles * loop.settings.period_ns * 1e-9
        started.append(loop)
        loop.start()
        has_lasted = _wait(
            lambda: loop.state != "running" or (cycles is not None and loop.stats.cycles >= cycles), seconds
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RTSetupWarning)  # join() raises the loop's failure
                loop.stop("5s")
        except RtloopError as error:
            what = f"the step of {loop.name} has not returned for 5 s"
            raise AssertionError(f"{what}, after {format_duration(seconds * 1e9)} of running: {error}") from None
        loop.join()  # raises the loop's failure
        stats = loop.stats
        if cycles is not None and stats.cycles < cycles:
            how = f"in {seconds:.0f} s" if has_lasted else "and ended by itself: its step returned RT_STOP"
            raise AssertionError(f"{loop.name} ran {stats.cycles:,} of {cycles:,} cycles {how}")
        return stats

    yield run
    for loop in started:
        if loop.state == "running":
            loop.stop("5s")


def _wait(is_over: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is over; return whether it timed out."""
    end = time.monotonic() + seconds
    while not is_over():
        left = end - time.monotonic()
        if left <= 0:
            return True
        nap(min(0.005, left))
    return False
