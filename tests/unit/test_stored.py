"""Saved stats from strangers: refused with a message, or shown like any other."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import Grant, Histogram, RTLoop, Stats
from rtloop.stats import validation

pytest.importorskip("click", reason="the command line needs rtloop[cli]")

from rtloop.tools.cli import main
from rtloop.tools.export.csv import histograms_to_csv, records_to_csv
from rtloop.tools.export.trace import to_trace
from rtloop.tools.report.page import make_page
from rtloop.tools.saved_runs import Run

HOSTILE: list[Any] = [-1, 2**63, 10**400, None, "<b>", {}, [[1]], float("nan"), True]


GUARD: dict[str, Any] = {
    "mode": "count", "cycles": 3, "page_faults": {"minor": 1, "major": 0}, "system_calls": 1, "allocations": None,
    "unavailable": {"allocations": "not loaded"}, "unlisted": {"system call": 3},
    "violations": [{
        "cycle": 1, "last_cycle": 2, "count": 2,
        "kind": "system call", "detail": "getppid", "address": 4096, "symbol": "servo.Servo.step",
        "through": ["getppid"], "file": "servo.pyx", "line": 3, "note": "",
    }],
}  # fmt: skip


def make() -> Stats:
    records = np.zeros(3, dtype=[("release", "<i8"), ("start", "<i8"), ("end", "<i8")])
    records["release"] = np.arange(3) * 1_000_000
    records["start"], records["end"] = records["release"] + 1000, records["release"] + 3000
    values = Histogram.from_values([1000, 1000, 2000])
    return replace(
        RTLoop("1ms", name="arm").stats,
        cycles=3,
        records=records,
        latency=values,
        execution=values,
        response=values,
        interval=values,
        grants=(Grant("memory_lock", "all", "own", False, "why", "fix", 1),),
        guard=GUARD,
    )


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, the tables and lists themselves too."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def planted(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    place: Any = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def show(stats: Stats) -> None:
    str(stats), repr(stats), stats._repr_html_(), stats.to_json(records=True)
    records_to_csv(stats), histograms_to_csv(stats), to_trace([Run("a", stats)])
    make_page([Run("a", stats)]), make_page([Run("a", stats), Run("b", make())])


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:8])
def test_whatever_stands_anywhere_it_is_refused_or_can_be_shown(value: Any) -> None:
    stats = make()
    document = json.loads(stats.to_json())
    refused = 0
    for path in leaves(document):
        try:
            loaded = Stats._from_dict(planted(document, path, value), stats.records)
        except (ValueError, KeyError, TypeError, OverflowError):  # what load() turns into its own error
            refused += 1
            continue
        try:
            show(loaded)
        except Exception as error:
            pytest.fail(f"{'.'.join(map(str, path))} = {value!r} was let in: {error!r}")
    assert refused > 20


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("cycles",), -3, "cycles is -3, which is not a count"),
        (("name",), "\x1b[2J", "name is '\\x1b[2J', which is not a printable text"),
        (("settings", "clock"), 7, "clock is 7, which is not a setting"),
        (("settings", "period_ns"), "<b>", "period_ns is '<b>', which is not a period"),
        (("latency", "counts"), [2**63, 2**63], "latency is {"),
        (
            ("page_faults", "minor"),
            "many",
            "page_faults is {'minor': 'many', 'major'",
        ),
        (("guard", "violations", 0, "symbol"), "\x1b[2J", "which is not a summary of guards"),
        (("guard", "system_calls"), -1, "which is not a summary of guards"),
        (("guard", "unlisted", "system call"), -1, "which is not a summary of guards"),
        (("guard", "violations", 0, "count"), "many", "which is not a summary of guards"),
    ],
)
def test_the_error_names_the_field(path: tuple[Any, ...], value: Any, text: str, tmp_path: Path) -> None:
    stats = make()
    document = planted(json.loads(stats.to_json()), path, value)
    np.savez(tmp_path / "run.npz", stats=np.array(json.dumps(document)), records=stats.records)
    with pytest.raises(rtloop.ConfigError) as caught:
        Stats.load(tmp_path / "run.npz")
    assert text in str(caught.value) and "damaged" in str(caught.value)


def test_a_small_file_that_unpacks_to_more_than_memory_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make().save(tmp_path / "run.npz")
    monkeypatch.setattr(validation, "_MAX_BYTES", 8 << 20)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.npy", bytes(9 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(rtloop.ConfigError, match="unpacked it would take 9 MiB"):
        Stats.load(path)


def test_a_recording_is_told_from_stats(tmp_path: Path) -> None:
    ring = rtloop.Ring("f8", 16)
    with rtloop.Recorder(ring, tmp_path / "run.npz"):
        ring.push(1.0)
    with pytest.raises(rtloop.ConfigError, match=r"signals of a Recorder, which numpy\.load reads"):
        Stats.load(tmp_path / "run.npz")


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_full_standard_output_is_an_exit_code_and_a_line(form: str, tmp_path: Path, script: Any) -> None:
    path = make().save(tmp_path / "run.npz")
    done = script(
        f"""
        import os, sys
        from rtloop.tools.cli import main
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        main(["export", {str(path)!r}, "-f", {form!r}])
    """
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == ["Error: cannot write to standard output: No space left on device"]


def test_a_simulated_run_is_called_one_wherever_it_is_shown() -> None:
    stats = make()
    stats = replace(
        stats, settings=stats.settings | {"simulation": {"latency": "0 ns", "execution": "2 us"}}, grants=()
    )
    page = make_page([Run("arm", stats)])
    assert "Simulated: nothing was measured" in page and "the loop can see" not in page
    both = make_page([Run("arm", stats), Run("real", make())])
    assert "<td><b>" not in both  # a model wins no race
    assert "<td><b>" in make_page([Run("a", make()), Run("b", replace(make(), latency=Histogram.from_values([7])))])


def test_the_picture_of_a_simulated_run_says_so() -> None:
    pytest.importorskip("matplotlib", reason="pictures need rtloop[plot]")
    stats = make()
    stats = replace(stats, settings=stats.settings | {"simulation": {"latency": "0 ns", "execution": "2 us"}})
    assert "simulated" in stats.plot().axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--interval", "10", "'10' is not a duration: its unit is missing; write it with a unit, such as 250us"),
        ("--interval", "-1s", "'-1s' is negative; write it with a unit"),
    ],
)
def test_the_command_line_names_no_types_of_python(
    option: str, value: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["top", option, value])
    error = " ".join(capsys.readouterr().err.split())
    assert text in error and "timedelta" not in error
