"""The latency benchmark's parsing, arithmetic and output. No latency is judged."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("latency")


def test_what_jitterdebugger_measured_is_read(latency: ModuleType) -> None:
    text = '{"version": 3, "cpu": {"0": {"histogram": {"27167": 1, "30000": 3}, "count": 4}}}'
    histogram = latency.parse_jitterdebugger(text)
    assert (histogram.count, histogram.min, histogram.max) == (4, 27_167, 30_000)
    with pytest.raises(ValueError, match="0 CPUs, not one"):
        latency.parse_jitterdebugger("{}")


def test_each_row_is_compared_with_the_cyclictest_that_had_its_company(latency: ModuleType) -> None:
    def runs(*p50: int) -> list[dict[str, int]]:
        return [{"p50": ns, "p99": 2 * ns, "max": 3 * ns} for ns in p50]

    found = {
        latency.PEER: runs(10_000, 90_000, 20_000),
        latency.PEER_HOG: runs(5_000, 5_000, 5_000),
        latency.OTHER: runs(10_000, 10_000, 10_000),
        latency.LABELS["rtloop"]: runs(12_000, 90_000, 30_000),
        latency.LABELS["spin-hog"]: runs(10, 20, 30),
    }
    found_claims = latency.make_claims(found)
    claims = {(claim.name, claim.peer_name): claim for claim in found_claims}
    assert len(found_claims) == 6, "50 % and 99 % of the two rows that ran, and of the first beside jitterdebugger"
    ours = claims["rtloop, 50 %", latency.PEER]
    assert (ours.ours, ours.peer, ours.unit) == (30, 20, "us") and ours.ratio == pytest.approx(1.2)
    assert ours.verdict == "MISSED" and ours.spread == "1.1..1.35"
    assert claims["rtloop, 50 %", latency.OTHER].ratio == 3
    spin = claims['rtloop, spin="auto", busy thread, 50 %', latency.PEER_HOG]
    assert spin.ratio == pytest.approx(0.004) and spin.verdict == "met"
    assert spin._replace(ratio=0.021).verdict == "MISSED"
    rows = latency.make_rows(found)
    assert rows[3] == ["rtloop", "30 us", "12 us", "90 us", "60 us", "90 us", "-"]


@pytest.mark.parametrize(
    ("ns", "text"),
    [(13, "13 ns"), (999, "999 ns"), (1000, "1 us"), (52_735, "52.7 us"), (2.5e9, "2500 ms")],
)
def test_a_duration_has_the_unit_that_fits(latency: ModuleType, ns: float, text: str) -> None:
    assert latency.format_ns(ns) == text


@pytest.mark.parametrize(
    "arguments",
    [["--pairs", "0"], ["--cpu", "4096"], ["--seconds", "nan"], ["--interval", "1"], ["--rows", "x"],
     ["--json", "/no/x.json"]],
)  # fmt: skip
def test_a_wrong_option_is_exit_code_2_and_is_named(
    latency: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        latency.parse_options(arguments)
    assert exit_.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_a_file_or_stdout_for_the_figures(latency: ModuleType, tmp_path: Path) -> None:
    assert latency.parse_options(["--json", "-"]).json == "-"
    assert latency.parse_options(["--json", str(tmp_path / "out.json")]).rows == list(latency.LABELS)


def test_without_cyclictest_it_says_how_to_get_it() -> None:
    command = [sys.executable, BENCHMARKS / "latency.py"]
    environment = {**os.environ, "PATH": "/nonexistent"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "apt install rt-tests" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_a_run_has_cycles_enough_for_the_warm_up(latency: ModuleType) -> None:
    def cycles(seconds: float, interval: int) -> int:
        return int(latency.count_cycles(argparse.Namespace(seconds=seconds, interval=interval)))

    assert cycles(10.0, 1000) == 10_000 and cycles(0.5, 250) == 2000 and cycles(0.001, 1000) == 20
