"""The pytest plugin: accepted runs, failures, and their messages."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rtloop import RTLoop, Stats
from rtloop.pytest import assert_clean

Suite = Callable[..., tuple[dict[str, int], str]]

ORDINARY = {"policy": "other", "lock_memory": "off", "dma_latency": None}


@pytest.fixture
def suite(tmp_path: Path, probe_path: Path) -> Suite:
    """Run a test module under the plugin; returns how many tests ended how, and what was printed."""

    def run(code: str, *options: str, prefix: tuple[str, ...] = ()) -> tuple[dict[str, int], str]:
        head = "import time, numpy as np, pytest, probes, rtloop\nfrom rtloop.pytest import assert_clean\n"
        head += f"ORDINARY = {ORDINARY!r}\n"
        (tmp_path / "test_it.py").write_text(head + textwrap.dedent(code))
        command = [*prefix, sys.executable, "-P", "-m", "pytest", "-p", "rtloop.pytest", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, "--strict-markers", "-ra", "-q", "test_it.py", *options],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(probe_path)}, capture_output=True, text=True,
            timeout=100,
        )  # fmt: skip
        words = done.stdout.splitlines()[-1].replace(",", "").split() if done.stdout else []
        ends = ("passed", "failed", "skipped", "error", "errors")
        return {word: int(words[i - 1]) for i, word in enumerate(words) if word in ends}, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def simulated(probes: ModuleType) -> Stats:
    stats: Stats = probes.Probe("1ms").simulate("1s")
    return stats


def test_virtual_and_real_time_in_one_module(suite: Suite) -> None:
    ends, said = suite("""
        def test_in_virtual_time(rt_simulate):
            stats = rt_simulate(probes.Probe("1kHz"), "10s", execution="100us")
            assert stats.cycles == 10_000
            assert "not checked: page faults, system calls" in assert_clean(stats, overruns=0, missed=0)

        def test_for_a_moment(rt_run):
            loop = probes.Probe("1kHz", **ORDINARY)
            stats = rt_run(loop, "50ms")
            assert loop.state == "stopped" and stats.cycles > 0
            assert f"{stats.cycles:,} cycles" in assert_clean(stats, page_faults=1000)

        def test_some_cycles(rt_run):
            assert rt_run(probes.Probe("1ms", **ORDINARY), cycles=20).cycles >= 20
    """)
    assert ends == {"passed": 3}, said


def test_what_goes_wrong_in_a_loop_fails_its_test_with_the_reason(suite: Suite) -> None:
    ends, said = suite("""
        def test_a_failing_step(rt_run):
            def step(cycle):
                raise ValueError("no sensor")
            rt_run(rtloop.PyLoop(step, "1ms", **ORDINARY))

        def test_a_step_that_hangs(rt_run):
            rt_run(rtloop.PyLoop(lambda cycle: time.sleep(7), "1ms", **ORDINARY), "50ms")

        def test_the_next_one_is_not_disturbed(rt_simulate):
            rt_simulate(probes.Probe("1ms"), cycles=3)
    """)
    assert ends == {"failed": 2, "passed": 1}, said
    assert "no sensor" in said and "has not returned for 5 s" in said


def test_what_ended_a_loop_is_raised_even_where_warnings_are_errors(suite: Suite) -> None:
    ends, said = suite("""
        def test_a_failing_step(rt_run):
            def step(cycle):
                raise ValueError("no sensor")
            with pytest.raises(ValueError, match="no sensor"):
                rt_run(rtloop.PyLoop(step, "1ms", **ORDINARY), "50ms")
    """, "-W", "error")  # fmt: skip
    assert ends == {"passed": 1}, said


def test_a_loop_that_ends_by_itself_too_early_is_told_from_one_that_is_too_slow(suite: Suite) -> None:
    ends, said = suite("""
        def test_it_ends(rt_run):
            rt_run(rtloop.PyLoop(lambda cycle: cycle.index == 3, "1ms", **ORDINARY), cycles=50)
    """)
    assert ends == {"failed": 1} and "ran 4 of 50 cycles and ended by itself" in said, said


def test_a_duration_without_its_unit_is_refused_as_run_refuses_it(suite: Suite) -> None:
    ends, said = suite("""
        def test_for_one_ns(rt_run):
            rt_run(probes.Probe("1ms", **ORDINARY), 1)
    """)
    assert ends == {"failed": 1} and "did you mean '1s'" in said, said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [('"1kHz"', "give keywords of RTLoop"), ('polcy="other"', "pytest.mark.rt({'polcy': 'other'}): ")],
)
def test_a_marker_that_cannot_be_understood_is_an_error_in_a_sentence(suite: Suite, arguments: str, words: str) -> None:
    ends, said = suite(f"""
        @pytest.mark.rt({arguments})
        def test_real_time():
            pass
    """)
    assert ends == {"error": 1} and words in said and "Traceback" not in said and "def _refusal" not in said, said


def test_a_run_without_a_cycle_shows_nothing(ordinary: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="it ran no cycle"):
        assert_clean(RTLoop("1ms", **ordinary).stats)
    stats = RTLoop("1ms").simulate(cycles=5)
    assert "not checked: what follows the warm-up" in assert_clean(stats)


def test_without_privileges_a_marked_test_is_skipped_with_the_reason_and_the_fix(suite: Suite) -> None:
    code = """
        @pytest.mark.rt(lock_memory="off", dma_latency=None, clock="tai", priority=99, name="x")
        def test_real_time(rt_run):
            assert_clean(rt_run(probes.Probe("1ms", lock_memory="off", dma_latency=None)))

        def test_any():
            pass
    """
    drop: tuple[str, ...] = ()
    if os.geteuid() == 0:
        drop = ("setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice")
        drop = ("prlimit", "--rtprio=0:0", "--", *drop)
    ends, said = suite(code, prefix=drop)
    if os.geteuid() and ends == {"passed": 2}:
        pytest.skip("this user may run real-time threads: there is nothing to refuse")
    assert ends == {"passed": 1, "skipped": 1}, said
    assert "RLIMIT_RTPRIO" in said and "How to fix" in said and "rtloop doctor" in said
    ends, said = suite(code, "--rt=require", prefix=drop)
    # A failed setup is called an error.
    assert ends == {"passed": 1, "error": 1} and "--rt=require" in said, said


def test_marked_tests_may_be_left_out_and_a_wrong_setting_is_no_skip(suite: Suite) -> None:
    code = """
        @pytest.mark.rt(lock_memory="everything")
        def test_real_time():
            pass
    """
    ends, said = suite(code, "--rt=skip")
    assert ends == {"skipped": 1} and "--rt=skip" in said
    ends, said = suite(code)
    assert ends == {"error": 1} and "lock_memory='everything' is not one of" in said


@pytest.mark.rt
def test_a_marked_test_runs_where_it_may(suite: Suite) -> None:
    ends, said = suite("""
        @pytest.mark.rt
        def test_real_time(rt_run):
            print(assert_clean(rt_run(probes.Probe("1ms"), "300ms")))
    """, "--rt=require", "-s")  # fmt: skip
    assert ends == {"passed": 1}, said
    assert "0 page faults" in said


def damaged(stats: Stats, **fields: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_clean(replace(stats, **fields), overruns=0, missed=0)
    return str(caught.value)


def test_every_broken_promise_is_named(simulated: Stats) -> None:
    real = replace(simulated, settings={**simulated.settings, "simulation": None}, page_faults=(0, 0))
    assert "0 page faults" in assert_clean(real)
    assert "it failed" not in damaged(real, state="failed") and "the loop failed" in damaged(real, state="failed")
    assert "1,000 cycles and 1 missed releases are not the 1,000 that elapsed" in damaged(real, missed=1)
    assert "the histogram of latency has 989 of 990" in damaged(
        real, latency=type(real.latency).from_values(np.zeros(989, np.int64))
    )
    assert "the histogram of interval has 988" in damaged(
        real, interval=type(real.interval).from_values(np.ones(988, np.int64))
    )
    assert "2 minor and 1 major page faults" in damaged(real, page_faults=(2, 1))
    assert "3 overruns; 0 are accepted" in damaged(real, overruns=3)
    violation = {"cycle": 7, "last_cycle": 9, "count": 4, "kind": "system call", "detail": "getppid",
                 "address": 4096, "symbol": "servo.Servo.step",
                 "file": "/x/servo.pyx", "line": 12, "through": [], "note": ""}  # fmt: skip
    guard = {"mode": "count", "cycles": 990, "page_faults": {"minor": 0, "major": 0}, "system_calls": 4,
             "allocations": None, "unavailable": {"allocations": "no library"}, "violations": [violation]}  # fmt: skip
    text = damaged(real, guard=guard)
    assert "4 system calls in step; allocations not counted (no library)" in text
    assert "4 times in cycles 7 to 9: system call getppid in servo.Servo.step (servo.pyx:12)" in text
    assert "guards: 990 cycles: 0 page faults, 0 system calls in step; allocations not counted" in assert_clean(
        replace(real, guard={**guard, "system_calls": 0, "violations": []})
    )
    early = real.records.copy()
    early["start"][5] = early["release"][5] - 1
    assert "started before its release" in damaged(real, records=early)


def test_releases_that_only_the_last_cycle_passed_are_no_error(simulated: Stats, probes: ModuleType) -> None:
    """No cycle comes after it, and yet they are missed."""
    late = probes.Probe("1ms").simulate(cycles=20, execution=[0] * 19 + [3_500_000])
    assert late.missed == 3 and "3 missed releases" in assert_clean(late)
    assert "are not the 20 that elapsed" in damaged(late, missed=4)
    assert "are not the 1,000 that elapsed" in damaged(simulated, missed=1)


def test_what_cannot_be_checked_is_said_and_not_called_clean(simulated: Stats) -> None:
    unknown = replace(simulated, settings={**simulated.settings, "simulation": None}, page_faults=(None, None))
    assert "not checked: page faults, system calls and allocations (guard='off')" in assert_clean(unknown)
    assert "page faults;" not in assert_clean(unknown)
    shifted = replace(unknown, records=unknown.records[:-1], page_faults=(0, 0))
    moved = shifted.records.copy()
    for name in ("release", "start", "end"):
        moved[name] += 7
    assert "the grid, which was shifted" in assert_clean(
        replace(shifted, records=moved, duration_ns=shifted.duration_ns + 7)
    )
    assert "the grid" in assert_clean(replace(shifted, records=moved[:0]))
