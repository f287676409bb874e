"""``rtloop latency``: what it claims of a tail, what it shows, and how it ends. No latency is looked at."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner
from rich.console import Console

from rtloop import Histogram, RtloopError
from rtloop.tools import cyclictest, latency_show, tail
from rtloop.tools.latency import HIT, latency
from rtloop.tools.load import LOADS, Load

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
    by_rate = {claim.rate_hz: claim for claim in tail.claims(histogram)}
    assert (by_rate[1000].late, by_rate[500].late, by_rate[100].late) == (2, 1, 0)
    assert by_rate[100].fraction == pytest.approx(3 / 100, rel=0.01)


def test_the_conclusion_names_rate_confidence_and_how_long_for_more() -> None:
    text = tail.conclude(Histogram.from_values([20_000] * 59_999 + [312_000]), 1_000_000)
    assert "60,000 wake-ups in 60 s" in text and "312 us late" in text and "1 kHz" in text
    assert "95%" in text and "one in 20,0" in text and "one in 1,000,000, measure for 50 min" in text
    assert "60,000 wake-ups in 30 s" in tail.conclude(Histogram.from_values([20_000] * 60_000), 1_000_000, loops=2)
    assert "does not carry even 50 Hz" in tail.conclude(Histogram.from_values([20_000_000] * 100), 1_000_000)
    assert "No cycle" in tail.conclude(Histogram.empty(), 1_000_000)


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


def test_the_json_document_has_everything(tmp_path: Path) -> None:
    result = run("--json", "--cpus", "all", "--plot", str(tmp_path / "late.svg"))
    document = json.loads(result.stdout)
    assert [loop["cpu"] for loop in document["loops"]] == [[cpu] for cpu in sorted(os.sched_getaffinity(0))]
    for loop in document["loops"]:
        assert loop["cycles"] + loop["missed"] >= 100 and loop["breakpoint_ns"] == 0
    assert document["asked"]["period_ns"] == 2_000_000 and document["asked"]["load"] == "none"
    assert [claim["rate_hz"] for claim in document["claims"]][:2] == [10_000, 8_000]
    assert document["confidence"] == 0.95 and "wake-ups" in document["conclusion"]
    assert (tmp_path / "late.svg").read_text().startswith("<?xml")


def test_a_breakpoint_ends_it_with_the_records_before() -> None:
    result = run("--breakpoint", "0.001")
    assert result.return_value == HIT, result.output
    assert (
        "The last cycles, the late one at the end" in result.output and "the measurement ended there" in result.output
    )


def test_a_breakpoint_that_is_not_hit_changes_nothing() -> None:
    result = run("--breakpoint", "10000000")
    assert result.return_value == 0 and "ended there" not in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cpus", "4711"), "may run on"), (("--cpus", "x"), "give numbers"), (("--breakpoint", "0"), "breakpoint"),
        (("--trace", "x.txt"), "give --breakpoint"), (("--compare", "--breakpoint", "5"), "--compare"),
        (("--load", "rain"), "rain"), (("--duration", "5"), "duration"), (("--rate", "-1"), "rate"),
        (("--priority", "100"), "100"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(latency, [*FAST, *options])
    assert result.exit_code == 2 and words in result.output


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
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) >= 5


@pytest.mark.parametrize("kind", ["cpu", "io", "hackbench", "stress-ng"])
def test_a_load_ends_with_the_process_that_wanted_it(kind: str, tmp_path: Path) -> None:
    """However that ends: everything of its sessions, the programs of others too, and there is no file left."""
    is_foreign = kind in ("hackbench", "stress-ng")
    if is_foreign and shutil.which(kind) is None:
        pytest.skip(f"needs {kind}: apt install rt-tests stress-ng")
    before = {*Path(tempfile.gettempdir()).iterdir(), *Path("/var/tmp").iterdir()}
    program = f"import os; from rtloop.tools.load import Load; load = Load({kind!r}).__enter__()\n" \
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
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) in sessions and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


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
    document = latency_show.print_comparison(out, [(flat(10), flat(20)), (flat(30), flat(20)), (flat(20), flat(20))])
    assert document["ratios"]["p50"] == pytest.approx(1.0, rel=0.02)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "rtloop" in text and "cyclictest" in text and "1.00 at 50 %" in text
    assert all(len(line) <= 80 for line in text.splitlines())
