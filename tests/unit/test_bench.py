"""What all benchmarks share, and the program that runs them all. No time is looked at."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rtloop import Histogram

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> object:
    """Import a module of the folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_what_it_is_and_what_it_takes(script: str) -> None:
    done = run(str(FOLDER / f"{script}.py"), "--help")
    assert done.returncode == 0 and "--json" in done.stdout and f"{script}.py" in done.stdout, done.stderr


def test_a_claim_is_the_median_of_the_ratios_of_pairs_with_their_quartiles(load) -> None:
    common: ModuleType = load("common")
    made = common.claim("x", "ns", [10, 20, 90, 40, 50], "peer", [10, 10, 10, 10, 10], 5.0)
    assert (made.ours, made.peer, made.ratio, made.low, made.high) == (40, 10, 4, 2, 5)
    assert made.spread == "2..5" and made.verdict == "met"
    assert made._replace(ratio=5.1).verdict == "MISSED" and made._replace(target=None).verdict == "-"
    alone = common.claim("x", "ns", [3.0], target=2)
    assert alone.spread == "-" and alone.verdict == "MISSED", "one value has no spread, and is judged by itself"


def test_what_the_releases_missed_are_is_told_by_the_latencies(load) -> None:
    rates: ModuleType = load("rates")
    latency = Histogram.from_values([50_000] * 98 + [150_000, 350_000])
    assert rates.missed_share(latency, 100_000) == pytest.approx(4 / 104)
    assert rates.missed_share(latency, 1_000_000) == 0


def test_the_highest_rate_is_the_last_one_that_is_held_for_long_too(load) -> None:
    rates: ModuleType = load("rates")

    def contestant(period_ns: int, cycles: int) -> Histogram:
        """One that holds 10 kHz for a second, and no more than 5 kHz for ten."""
        least = 100_000 if cycles * period_ns <= 1_000_000_000 else 200_000
        return Histogram.from_values([0 if period_ns >= least else 2 * period_ns] * 1000)

    assert rates.highest(contestant, 10, "made up") == 5


def test_a_script_without_its_peer_is_a_row_that_says_so(load, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = run(
        str(FOLDER / "bench.py"), "--quick", "--only", "ring", "instructions", "--json", str(out), PATH="/nowhere"
    )
    assert done.returncode == 1, "not everything was measured"
    written = json.loads(out.read_text())
    assert (
        set(written["missing"]) == {"ring", "instructions"}
        and "valgrind is missing" in written["missing"]["instructions"]
    )
    assert "0 targets met, 0 missed" in done.stdout and "2 scripts not run" in done.stdout
    assert written["facts"]["rtloop"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="this benchmark is compiled by gcc, which is not installed")
def test_a_document_on_stdout_stands_alone_and_the_tables_are_beside_it() -> None:
    done = run(str(FOLDER / "histogram.py"), "--pairs", "2", "--json", "-")
    assert json.loads(done.stdout)["claims"] and "record a duration" in done.stderr


def test_ctrl_c_ends_a_benchmark_without_a_word() -> None:
    command = [sys.executable, str(FOLDER / "bench.py"), "--quick", "--only", "histogram"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stderr is not None and "1 of 1: histogram" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "Traceback" not in out + err


def results(cpu: str, **claims: tuple[float | None, float, float]) -> dict[str, object]:
    """Make the content of a bench.json: a claim is its ratio, None without a peer, and its quartiles."""
    made = [
        {"name": name, "unit": "ns", "ours": low, "peer_name": "" if ratio is None else "peer", "ratio": ratio,
         "low": low, "high": high, "target": 2.0}
        for name, (ratio, low, high) in claims.items()
    ]  # fmt: skip
    facts = {"cpu": cpu, "cpus": 2, "kernel": "6.1", "is_virtual": True, "time": "2026-11-30T01:02:03+00:00"}
    return {"facts": facts, "options": {"quick": False}, "parts": {"pool": made}}


def test_what_got_worse_is_what_lies_above_the_quartiles_of_before(load, capsys: pytest.CaptureFixture[str]) -> None:
    compare: ModuleType = load("compare")
    before = compare.parse(
        results("A", up=(1.0, 0.9, 1.1), same=(1.0, 0.9, 1.2), down=(2, 1.9, 2.1), figure=(None, 5, 6))
    )
    now = compare.parse(results("A", up=(1.3, 1.2, 1.4), same=(1.3, 1.1, 1.4), down=(1, 0.9, 1.1), figure=(None, 9, 9)))
    verdicts = {change.name: change.verdict for change in compare.changes(before, now)}
    assert verdicts == {
        "pool: up / peer": "worse", "pool: same / peer": "", "pool: down / peer": "better", "pool: figure": "worse",
    }  # fmt: skip
    assert compare.print_changes(before, now) == 2
    assert "2 claims got worse, 1 better, 1 are as before" in capsys.readouterr().out
    elsewhere = compare.parse(results("B", up=(1.3, 1.2, 1.4), figure=(None, 9, 9)))
    assert [change.name for change in compare.changes(before, elsewhere)] == ["pool: up / peer"]
    assert compare.print_changes(before, elsewhere) == 1
    said = capsys.readouterr().out
    assert "another machine" in said and "2 are not in this run" in said


def test_the_files_of_several_machines_are_one_table(tmp_path: Path) -> None:
    names = []
    for cpu, ratio in (("Intel X", 0.5), ("AMD Y", 1.3)):
        names.append(str(tmp_path / f"{cpu}.json"))
        Path(names[-1]).write_text(json.dumps(results(cpu, single=(ratio, ratio, ratio))))
    done = run(str(FOLDER / "compare.py"), "--markdown", *names)
    assert "| pool: single | peer | 0.5 | 1.3 | 0.5 to 1.3 | 2 |" in done.stdout
    assert "Intel X (virtual), 2 CPUs, Linux 6.1, 2026-11-30" in done.stdout
    Path(names[0]).write_text("[]")
    done = run(str(FOLDER / "compare.py"), *names)
    assert done.returncode == 1 and "is not a file of `make bench`" in done.stderr


def test_the_tables_of_the_pages_are_those_of_the_files_that_were_sent(load) -> None:
    compare: ModuleType = load("compare")
    files = compare.sent()
    assert files and all(one.claims for one in files)
    for page, text in compare.pages(files).items():
        assert page.read_text() == text, f"{page.name} is stale: python benchmarks/compare.py --write"


def test_a_page_shows_each_machine_and_the_range_over_all(load) -> None:
    compare: ModuleType = load("compare")
    files = [compare.parse(results(cpu, single=(ratio, 1, 2))) for cpu, ratio in (("Intel X", 0.5), ("AMD Y", 1.3))]
    files[1] = files[1]._replace(remark="half of it", facts={**files[1].facts, "load": [3.25, 1, 1]})
    text = compare.section(files)
    assert "1. Intel X (virtual), 2 CPUs, Linux 6.1, 2026-11-30.\n" in text
    assert "2. AMD Y (virtual), 2 CPUs, Linux 6.1, 2026-11-30; load average 3.2; half of it.\n" in text
    assert "| pool: single | peer | 0.5 | 1.3 | 0.5 to 1.3 | 2 |\n" in text
    cycle = {("instructions", "instructions of a cycle", ""): next(iter(files[0].claims.values()))}
    assert "| user-space instructions per cycle | 0.5 | 0.5 | 1 |" in compare.summary([files[0]._replace(claims=cycle)])


def test_the_table_of_culprits_is_that_of_the_figures() -> None:
    (figures,) = (FOLDER / "results" / "culprits").glob("*.json")
    content = json.loads(figures.read_text())
    for row in content["kinds"].values():
        assert row["cycles"] == row["right"] + len(row["unknown"]) >= content["spikes"] and row["wrong"] == []
    page = FOLDER.parent / "docs" / "how-to" / "find-a-spike.md"
    table = run(str(FOLDER / "culprits.py"), "--render", str(figures)).stdout
    assert table.count("\n") > 4 and table in page.read_text(), f"python benchmarks/culprits.py --render {figures}"


def test_a_planted_wait_is_the_time_in_which_a_touch_slept(load) -> None:
    culprits: ModuleType = load("culprits")
    waits, touches = [(0, 10), (20, 40), (50, 60)], [(5, 25), (30, 35), (70, 80)]
    found = culprits.overlaps(*([culprits.Spike(*one) for one in each] for each in (waits, touches)))
    assert found == [(5, 10), (20, 25), (30, 35)]


def test_every_script_with_claims_is_run_by_all(load) -> None:
    bench: ModuleType = load("bench")
    alone = {"bench", "compare", "culprits", "hours", "observers", "page_faults", "scope", "soak"}
    assert set(bench.PARTS) == set(SCRIPTS) - alone, "a soak, a count of names and a table have no claims about speed"


def test_a_script_that_takes_too_long_is_ended_and_named(load) -> None:
    bench: ModuleType = load("bench")
    found = bench.run("function_loop", "", limit=0.001)
    assert found.claims == [] and found.why == "it took longer than 0 s"
