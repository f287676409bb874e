"""The benchmark of page faults runs, and tells faults from none. Its figures are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_benchmark_of_page_faults_counts_each_kind(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, BENCHMARKS / "page_faults.py", "--pages", "64", "--pairs", "2", "--json", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    for kind in ("resident", "minor fault", "first touch", "copy on write"):
        assert written["figures"][kind]["count"] == 128
        assert kind in done.stdout
    assert {"kernel", "cpu", "load", "time"} <= set(written["facts"])


def test_a_claim_is_the_median_of_the_pairs_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    made = common.claim("x", "ns", [10, 30, 20], "peer", [10, 10, 40], target=1.0)
    assert (made.ours, made.peer, made.ratio, made.verdict) == (20, 10, 1.0, "met")
    assert made._replace(ratio=1.01).verdict == "MISSED"
    assert common.claim("x", "ns", [1], "peer", [2]).verdict == "-"


def test_a_missing_peer_ends_the_benchmark_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    with pytest.raises(SystemExit, match="sudo apt install some-package"):
        common.need("no-such-program-here", "some-package")


def test_a_missing_module_is_a_peer_too_and_a_broken_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(tmp_path)
    import common

    assert common.need_module("json", "-") is json
    with pytest.raises(SystemExit, match="pip install some-package"):
        common.need_module("no_such_module_here", "some-package")
    (tmp_path / "broken_peer.py").write_text("import no_such_module_here")
    with pytest.raises(ModuleNotFoundError):
        common.need_module("broken_peer", "some-package")


def test_the_file_gives_a_claim_by_its_names_and_with_its_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    made = common.claim("x", "ns", [3], "peer", [2], target=1.0)
    common.write_json(str(tmp_path / "out.json"), claims=[made], runs={"a": (1, 2)})
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["claims"] == [made._asdict() | {"verdict": "MISSED"}] and written["runs"] == {"a": [1, 2]}


def test_a_claim_of_ours_alone_is_printed_without_a_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    common.print_claims("title", [common.claim("x", "us", [0.5], target=1.0)])
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row == ["x", "[us]", "0.5", "-", "-", "-", "-", "1", "us", "met"], "a single value has no quartiles either"


@pytest.mark.parametrize("wrong", [["--pairs", "0"], ["--json", "/no/folder/x.json"], ["--json", "/"]])
def test_what_cannot_be_done_is_refused_before_the_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    with pytest.raises(SystemExit) as exit_:
        common.parser("").parse_args(wrong)
    assert exit_.value.code == 2 and wrong[0] in capsys.readouterr().err


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) or len(order) for name in ("a", "b")}
    assert common.alternate(sides, 2) == {"a": [1, 3], "b": [2, 4]}
