"""``rtloop latency``: its claims about a tail, its output and its ends. No latency is judged."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rtloop_test_processes as processes

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner
from rich.console import Console

from rtloop import Histogram, RTLoop, RtloopError
from rtloop.machine.latency import cyclictest, tail
from rtloop.machine.latency.load import LOADS, Load
from rtloop.system.grant import Grant
from rtloop.tools.latency import command as latency_command
from rtloop.tools.latency import show
from rtloop.tools.latency.command import HIT, latency

FAST = ("--policy", "other", "--rate", "500Hz", "--duration", "300ms")


def run(*options: str) -> Any:
    return CliRunner().invoke(latency, [*FAST, *options], standalone_mode=False)


@pytest.mark.parametrize(
    ("late", "count", "expected"),
    [
        (0, 3000, 0.9986e-3),  # the rule of three
        (1, 1000, 4.744e-3), (5, 10_000, 1.0513e-3),  # half of the chi-squared quantile of 2 (late + 1) degrees
        (0, 1, 1.0), (0, 0, 1.0),
    ],
)  # fmt: skip
def test_the_bound_of_a_probability_is_that_of_the_tables(late: int, count: int, expected: float) -> None:
    assert tail.bound(late, count) == pytest.approx(expected, rel=1e-3)


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Draw runs with a known probability: the bound is above it in at least 95 of 100."""
    rng = np.random.default_rng(7)
    probability, count = 2e-3, 2000
    held = [tail.bound(int(late), count) >= probability for late in rng.binomial(count, probability, 2000)]
    assert np.mean(held) > 0.94


def test_what_is_late_is_counted_and_never_understated() -> None:
    histogram = Histogram.from_values([10_000] * 98 + [600_000, 3_000_000])
    assert tail.late_than(histogram, 500_000) == 2
    assert tail.late_than(histogram, 1_000_000) == 1
    assert tail.late_than(histogram, 3_000_000) == 0
    assert tail.late_than(Histogram.empty(), 1) == 0
    by_rate = {claim.rate_hz: claim for claim in tail.claims([tail.Tail(histogram)])}
    assert (by_rate[1000].late, by_rate[500].late, by_rate[100].late) == (2, 1, 0)
    assert by_rate[100].fraction == pytest.approx(3 / 100, rel=0.01)


def test_a_release_that_was_missed_for_a_late_wake_up_was_late_too() -> None:
    """Else a stall of 50 ms at 10 kHz would count as one late wake-up, of 500."""
    stalled = tail.Tail(Histogram.from_values([10_000] * 99_500 + [50_000_000]), missed=499)
    by_rate = {claim.rate_hz: claim for claim in tail.claims([stalled])}
    assert by_rate[10_000].late == 500 and 500 / 100_000 < by_rate[10_000].fraction < 550 / 100_000
    harmless = tail.Tail(Histogram.from_values([10_000] * 99_500 + [500_000]), missed=4)
    by_rate = {claim.rate_hz: claim for claim in tail.claims([harmless])}
    assert (by_rate[1000].late, by_rate[2000].late) == (0, 5), "none waited longer than the late one"


def test_what_is_claimed_of_several_cpus_holds_on_each() -> None:
    """A loop runs on one of them: the good ones' many wake-ups say nothing of the bad one's."""
    good, bad = Histogram.from_values([10_000] * 9000), Histogram.from_values([10_000] * 990 + [700_000] * 10)
    (claim,) = [claim for claim in tail.claims([tail.Tail(good), tail.Tail(bad)]) if claim.rate_hz == 1000]
    assert claim.late == 10 and claim.fraction == pytest.approx(tail.bound(10, 1000)) and claim.fraction > 0.01
    text = tail.conclude([tail.Tail(good), tail.Tail(good)], 1_000_000)
    assert "on any one of these CPUs" in text and "one in 3,00" in text and "18,000 wake-ups in 9 s" in text


@pytest.mark.parametrize("probability", [1e-4, 4e-4, 1e-3, 5e-3])
def test_the_conclusion_is_true_as_often_as_it_says(probability: float) -> None:
    """Draw runs of a machine whose wake-ups are known, and take each conclusion at its word: 95 of 100 are true."""
    rng = np.random.default_rng(11)
    limits = np.array([60e3, 90e3, 110e3, 200e3])  # between the budgets, each rarer by ten than the one before
    true = 0
    for _ in range(400):
        late = rng.random(2000)[:, None] < probability / 10.0 ** np.arange(4)
        values = np.where(late, limits, 20e3).max(axis=1).astype(np.int64)
        (carried, *_) = [c for c in tail.claims([tail.Tail(Histogram.from_values(values.tolist()))]) if c.late == 0]
        exceeding = limits > carried.budget_ns
        true += not exceeding.any() or probability / 10.0 ** np.argmax(exceeding) <= carried.fraction
    assert true >= 0.93 * 400


def test_the_conclusion_names_rate_confidence_and_how_long_for_more() -> None:
    def conclude(*values: int) -> str:
        return tail.conclude([tail.Tail(Histogram.from_values(values))], 1_000_000)

    text = conclude(*[20_000] * 59_999, 312_000)
    assert "60,000 wake-ups in 60 s" in text and "312 us late" in text and "1 kHz" in text
    assert "95%" in text and "one in 20,0" in text and "one in 1,000,000, measure for 50 min" in text
    assert "take more than 62.5 us" in conclude(*[62_400] * 1000), "not less than what was looked at"
    assert "does not support even 50 Hz" in conclude(*[20_000_000] * 100)
    assert "No cycle" in tail.conclude([tail.Tail(Histogram.empty())], 1_000_000)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.3, "0.3 s"), (30, "30 s"), (3000, "50 min"), (50_000, "14 h"), (260_000, "3 days")]
)
def test_times_that_a_person_waits(seconds: float, text: str) -> None:
    assert tail.format_time(seconds) == text


def test_a_short_run_has_a_table_and_a_conclusion() -> None:
    result = run("--histogram")
    assert result.exception is None and result.return_value == 0, result.output
    assert "500 Hz for 300 ms" in result.output and "Wake-up latency" in result.output
    assert "wake-ups in" in result.output and "█" in result.output


def test_the_picture_that_is_asked_for_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need rtloop[plot]")
    assert run("--plot", str(tmp_path / "late.svg")).exception is None
    assert (tmp_path / "late.svg").read_text().startswith("<?xml")


def test_the_json_document_has_everything() -> None:
    result = run("--json", "--cpus", "all")
    document = json.loads(result.stdout)
    assert [loop["cpu"] for loop in document["loops"]] == [[cpu] for cpu in sorted(os.sched_getaffinity(0))]
    periods = [loop["cycles"] + loop["missed"] for loop in document["loops"]]
    assert min(periods) > 0 and max(periods) >= 100, "a busy machine may let one of them begin late"
    assert all(loop["breakpoint_ns"] == 0 for loop in document["loops"])
    assert document["asked"]["period_ns"] == 2_000_000 and document["asked"]["load"] == "none"
    assert [claim["rate_hz"] for claim in document["claims"]][:2] == [10_000, 8_000]
    assert document["confidence"] == 0.95
    assert document["conclusion"].startswith(("The worst of ", "No cycle was measured"))  # the machine decides which


def test_a_breakpoint_ends_it_with_the_records_before() -> None:
    result = run("--breakpoint", "0.0001")  # less than a nanosecond is a nanosecond, and not none
    assert result.return_value == HIT, result.output
    assert (
        "The last cycles, the late one at the end" in result.output and "the measurement ended there" in result.output
    )


def test_the_wake_ups_of_the_warm_up_are_marked_before_a_breakpoint() -> None:
    result = CliRunner().invoke(latency, [*FAST, "--breakpoint", "0.0001"], standalone_mode=False)
    lines = [line for line in result.output.splitlines() if line.startswith("  release ")]
    assert len(lines) > 1 and all(line.endswith("(warm-up, which cannot stop the run)") for line in lines[:-1])
    assert lines[-1].endswith(" late"), "the one that stopped it is after the warm-up"


def test_a_breakpoint_that_is_not_hit_changes_nothing() -> None:
    result = run("--breakpoint", "10000000")
    assert result.return_value == 0 and "ended there" not in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cpus", "4711"), "may run only"), (("--cpus", "x"), "give numbers"), (("--breakpoint", "0"), "breakpoint"),
        (("--trace", "x.txt"), "give --breakpoint"), (("--compare", "--breakpoint", "5"), "--compare"),
        (("--load", "rain"), "rain"), (("--duration", "5"), "duration"), (("--rate", "-1"), "rate"),
        (("--priority", "100"), "100"), (("--duration", "20ms"), "less than 20 cycles"),
        (("--cpus", "0-9999999999"), "give numbers"), (("--cpus", "4711"), "CPU 4711 does not exist; online: "),
        (("--spin", "long"), "such as 250us"), (("--breakpoint", "5", "--trace", "/nowhere/x"), "/nowhere"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(latency, [*FAST, *options])
    assert result.exit_code == 2 and words in result.output


def test_an_isolated_cpu_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process begins on one, so that none is in its affinity: there of all places loops are meant to run."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr(latency_command, "usable_isolated_cpus", lambda: (3,))
    for value, cpus in (("3", [3]), ("2-3", [2, 3]), ("all", [0, 1, 2, 3])):
        assert latency_command.to_cpus(None, None, value) == cpus  # type: ignore[arg-type]
    with pytest.raises(click.BadParameter, match="may run only on CPUs 0-3"):
        latency_command.to_cpus(None, None, "4")  # type: ignore[arg-type]


def test_ranges_of_cpus() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    result = run("--json", "--cpus", f"{cpus[0]},{cpus[0]}-{cpus[0]}")
    assert len(json.loads(result.stdout)["loops"]) == 1


@pytest.mark.parametrize("kind", [kind for kind in LOADS if kind not in ("none", "gil", "stress-ng", "hackbench")])
def test_a_load_works_and_leaves_nothing_behind(kind: str) -> None:
    with Load(kind) as load:
        pids = [process.pid for process in load._processes]
        assert len(pids) == len(os.sched_getaffinity(0))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not all(_has_worked(pid) for pid in pids):
            time.sleep(0.02)
        assert load.is_running and all(_has_worked(pid) for pid in pids)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _has_worked(pid: int) -> bool:
    """Whether a process has used 50 ms, its dead children included: more than it takes to begin."""
    return sum(map(int, processes.stat(pid)[11:15])) >= 5


@pytest.mark.parametrize("kind", ["cpu", "io", "hackbench", "stress-ng"])
def test_a_load_ends_with_the_process_that_wanted_it(kind: str, tmp_path: Path) -> None:
    """However that ends: everything of its sessions, the programs of others too, and there is no file left."""
    is_foreign = kind in ("hackbench", "stress-ng")
    if is_foreign and shutil.which(kind) is None:
        pytest.skip(f"needs {kind}: apt install rt-tests stress-ng")
    before = {*Path(tempfile.gettempdir()).iterdir(), *Path("/var/tmp").iterdir()}
    program = f"import os; from rtloop.machine.latency.load import Load; load = Load({kind!r}).__enter__()\n" \
              "print(*[p.pid for p in load._processes], flush=True); input(); os._exit(0)"  # fmt: skip
    owner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    sessions = {int(pid) for pid in owner.stdout.readline().split()}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(_living(sessions)) < 1 + 2 * is_foreign:
        time.sleep(0.02)
    assert _living(sessions)
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 20
    while _living(sessions) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _living(sessions)
    after = {*Path(tempfile.gettempdir()).iterdir(), *Path("/var/tmp").iterdir()}
    assert not [path for path in after - before if "load" in path.name]


def _living(sessions: set[int]) -> list[int]:
    """The processes of these sessions that have not ended."""
    found = ((process, processes.stat(process)) for process in processes.process_ids())
    return [process for process, stat in found if stat and int(stat[3]) in sessions and stat[0] not in "ZX"]


def test_a_load_is_ordinary_whatever_the_measurement_runs_at() -> None:
    """Under ``chrt --fifo 90`` above all, where it would hold up everything; here a policy that harms nobody."""
    program = """
import os, time
from rtloop.machine.latency.load import Load
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
with Load("cpu") as load:
    deadline = time.monotonic() + 10
    while any(os.sched_getscheduler(p.pid) for p in load._processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    print([os.sched_getscheduler(p.pid) for p in load._processes])
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and {*json.loads(done.stdout)} == {os.SCHED_OTHER}, done.stderr


def test_a_load_that_ends_by_itself_is_told() -> None:
    with Load("cpu") as load:
        load._processes[0].kill()
        load._processes[0].wait()
        assert not load.is_running


def test_a_program_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RtloopError, match="sudo apt install stress-ng"), Load("stress-ng"):
        pass
    with pytest.raises(RtloopError, match="sudo apt install rt-tests"):
        cyclictest.find_cyclictest()
    with pytest.raises(RtloopError, match="rt-tests"):
        cyclictest.run_cyclictest(period_ns=1_000_000, cycles=10, priority=80, cpu=0)


def test_cyclictest_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "cyclictest"
    for body, words in (("echo no privilege >&2; exit 7", "no privilege"), ("echo hello", "no histogram")):
        broken.write_text(f"#!/bin/sh\n{body}\n")
        broken.chmod(0o755)
        with pytest.raises(RtloopError, match=words):
            cyclictest.run_cyclictest(period_ns=1_000_000, cycles=10, priority=80, cpu=0, program=str(broken))


def test_a_comparison_is_the_median_of_the_pairs_ratios() -> None:
    def flat(us: int) -> Histogram:
        return Histogram.from_values([us * 1000] * 1000)

    out = Console(file=io.StringIO(), width=80)
    document = show.print_comparison(out, [(flat(10), flat(20)), (flat(30), flat(20)), (flat(20), flat(20))])
    assert document["ratios"]["p50"] == pytest.approx(1.0, rel=0.02)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "rtloop" in text and "cyclictest" in text and "1.00 at 50 %" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "degraded" not in text and document["refused"] == []


def test_a_comparison_that_is_not_of_like_with_like_says_so() -> None:
    """Ours without real time, and theirs with: then the ratio tells nothing of either."""
    histogram = Histogram.from_values([20_000] * 1000)
    stats = RTLoop("1ms", policy="other", lock_memory="off", dma_latency=None).run(cycles=20)
    refused = Grant("policy", "fifo 80", "other", ok=False, detail="sched_setattr: Operation not permitted")
    stats = dataclasses.replace(stats, grants=(refused,))
    out = Console(file=io.StringIO(), width=80)
    document = show.print_comparison(out, [(histogram, histogram)], [stats, stats], histogram=True)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("asked for fifo 80") == 1 and [grant["name"] for grant in document["refused"]] == ["policy"]
    assert "rtloop: cycles by" in text and "cyclictest: cycles by" in text


def test_a_comparison_gives_the_histogram_and_the_picture_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="pictures need rtloop[plot]")
    fake = tmp_path / "cyclictest"
    fake.write_text("#!/bin/sh\necho '20000 300'; echo '# Max Latencies: 20'; echo '# Histogram Overflows: 0'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    command = [*FAST, "--policy", "fifo", "--compare", "--histogram", "--plot", str(tmp_path / "both.svg")]
    result = CliRunner().invoke(latency, command, standalone_mode=False)
    assert result.exception is None, result.output
    assert "rtloop: cycles by" in result.output and "cyclictest: cycles by" in result.output
    assert "cyclictest" in (tmp_path / "both.svg").read_text()


def test_in_a_narrow_window_no_figure_loses_its_unit() -> None:
    out = Console(file=io.StringIO(), width=50)
    histogram = Histogram.from_values([22_800] * 99_999 + [101_600])
    show.print_comparison(out, [(histogram, histogram)])
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and text.count("us") >= 2 * 5 and "101.6" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_signal_ends_it_the_loads_end_first(number: signal.Signals, tmp_path: Path) -> None:
    """As `timeout`, a closed terminal and Ctrl-C do; SIGTERM alone would leave its children and its trace behind."""
    command = [sys.executable, "-P", "-m", "rtloop", "latency", *FAST[:4], "--duration", "60s", "--load", "cpu"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        loads = processes.children(process.pid)
        deadline = time.monotonic() + 60
        while len(loads) < len(os.sched_getaffinity(0)) and time.monotonic() < deadline:
            time.sleep(0.05)
            loads = processes.children(process.pid)
        time.sleep(0.3)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert loads and not [pid for pid in loads if Path(f"/proc/{pid}").exists()]
