"""The benchmark of counterparts: what its referees count, without any of them."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a module of the folder."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("counterpart_rows", "counterparts", "common"):
            del sys.modules[name]


def rates_of(answered: list[bool]) -> np.ndarray:
    """The figure of a referee after each cycle: the share of the last 100."""
    return np.array([np.mean(answered[max(0, end - 100) : end]) for end in range(1, len(answered) + 1)], "f4")


def test_the_answered_cycles_follow_from_the_rates_of_the_referee(load: Any) -> None:
    wire = load("counterpart_rows._wire")
    answered = (np.random.default_rng(3).random(1000) < 0.7).tolist()
    answered[0] = True
    assert wire.received(rates_of(answered)) == answered
    without_one = np.delete(rates_of(answered), 500)
    with pytest.raises(ValueError, match="does not follow from those before"):
        wire.received(without_one)


def test_a_cycle_is_from_one_state_to_the_next_and_its_age_ends_with_the_answer(load: Any) -> None:
    wire = load("counterpart_rows._wire")
    states = 150
    number = np.arange(states, dtype="u8")
    at = number.astype("i8") * 1_000_000
    mode = np.full(states, 2, "u1")
    mode[:10] = 1
    answered = [index not in (60, 61) for index in range(10, states)]
    # State k tells whether k - 1 was answered; the first that was is 10.
    rate = np.zeros(states, "f4")
    rate[11:] = rates_of(answered)[:-1]
    sent = [index for index in range(10, states) if index != 60]
    reply_at = [at[index] + (1_200_000 if index == 61 else 50_000) for index in sent]
    cycles = wire.Cycles(number, at, mode, rate, np.array(sent, "u8"), np.array(reply_at, "i8"))
    assert cycles.motions == 1 and len(cycles.kept) == states - 11
    assert (cycles.at[~cycles.kept] == [60_000_000, 61_000_000]).all() and (cycles.until - cycles.at == 1_000_000).all()
    assert np.array_equal(cycles.in_time, cycles.kept), "one had no answer, one came late"
    assert sorted(set(cycles.age)) == [50, 1200] and math.isclose(cycles.lowest, 0.98, abs_tol=1e-6)


def test_without_a_motion_there_are_no_cycles(load: Any) -> None:
    wire = load("counterpart_rows._wire")
    nothing = [np.array([], kind) for kind in ("u8", "i8", "u1", "f4", "u8", "i8")]
    assert not len(wire.Cycles(*nothing).kept)


def test_a_step_is_kept_if_it_ended_before_the_next_release(load: Any) -> None:
    grid = load("counterpart_rows._grid")
    period = grid.PERIOD_NS
    cycles = [(index * period, index * period + 100_000) for index in range(200) if index not in (50, 51)]
    cycles[20] = (20 * period, 21 * period + 1)
    figures = grid.judge(cycles, {"steps": 198})
    assert figures.kept == 197 / 200 and figures.lowest == pytest.approx(0.97)
    assert figures.age[0] == 100 and figures.age[2] == pytest.approx(1000.001) and figures.facts == {"steps": 198}


def test_the_cycles_of_a_side_with_a_grid_of_its_own_are_rounded_to_the_grid(load: Any) -> None:
    grid = load("counterpart_rows._grid")
    period = 20_000_000
    jitter = [0, *np.random.default_rng(5).integers(-3_000_000, 3_000_000, 199).tolist()]
    cycles = [(index * period + jitter[index], index * period + jitter[index] + 4_000_000) for index in range(200)]
    assert grid.judge(cycles, {}, period).kept == 1
    cycles[20] = (20 * period, 21 * period + 1)
    del cycles[70:80]
    figures = grid.judge(cycles, {}, period)
    assert figures.kept == 189 / 200 and figures.lowest == pytest.approx(0.89) and figures.age[0] == 4000


def test_the_stalls_of_cyclictest_are_spans_of_the_monotonic_clock(load: Any) -> None:
    stalls = load("counterpart_rows._stalls")
    text = (
        "T: 0 (14788) P:80 I:1000 C:   3000 Min:     13 Act:   23 Avg:   28 Max:     381\n\n"
        "T: 0 Spike:     400: TS:       1500\nT: 1 Spike:    5565: TS:   10000000\nspikes = 2\n"
    )
    assert stalls.spans_of(text).tolist() == [[1_100_000, 1_500_000], [9_994_435_000, 10_000_000_000]]
    seen = stalls.Stalls(80)
    seen.spans = stalls.spans_of(text)
    begin = np.array([1_000_000, 9_000_000, 9_996_000_000])
    assert seen.covers(begin, begin + 1_000_000).tolist() == [True, False, True] and seen.longest_us == 5565
    assert stalls.spans_of("").shape == (0, 2)


def test_each_row_has_what_the_benchmark_asks_for(load: Any) -> None:
    rows = load("counterpart_rows").rows()
    assert list(rows) == sorted(rows, key=lambda name: rows[name].ORDER) and next(iter(rows)) == "franka"
    for row in rows.values():
        assert row.SIDES[0] == "rtloop" and len(row.SIDES) == 2 and row.TITLE and row.REFEREE
        assert all(isinstance(fix, str) for fix in row.missing().values())


def test_what_is_not_installed_is_listed_with_its_fix(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    script = (
        "import sys; sys.argv = ['counterparts.py', '--only', 'franka', '--quick', '--json', sys.argv[1]]\n"
        "import counterparts; counterparts.main()"
    )
    environment = {"PYTHONPATH": str(FOLDER), "RTLOOP_FRANKA_SIM": str(tmp_path / "none"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Not installed" in done.stdout and "simulator.py --install" in done.stdout
    written = json.loads(out.read_text())
    assert "franka-sim" in written["missing"] and written["claims"] == [] and written["facts"]["rtloop"]


def test_a_slot_of_the_bus_is_kept_by_a_frame_that_comes_back_with_the_full_counter(load: Any) -> None:
    cable = load("counterpart_rows._cable")
    period = 1_000_000
    at, index, wkc = [], [], []
    for number in range(301):
        if number == 40:
            continue  # not sent
        sent = number * period + (900_000 if number == 60 else number % 7 * 1000) + 990_000
        at += [sent, sent + 30_000]
        index += [number % 16, number % 16]
        wkc += [-1, {80: 3, 81: 0}.get(number, 5)]
    del at[2 * 149 + 1], index[2 * 149 + 1], wkc[2 * 149 + 1]  # number 150 never came back
    exchanges = cable.Exchanges(np.array(at), np.array(index), np.array(wkc))
    kept, lowest, off = exchanges.judge(period)
    assert exchanges.expected == 5 and len(exchanges.sent) == 300 and (~exchanges.is_valid).sum() == 3
    assert kept == pytest.approx(1 - 5 / 301), "40 was not sent, 60 was in the next slot, three were not valid"
    assert lowest == pytest.approx(0.96) and off[0] < 4 and 90 < off[2] < 110, "60 was 0.1 ms before the next instant"


def test_a_bus_that_never_answered_has_no_slots(load: Any) -> None:
    cable = load("counterpart_rows._cable")
    nothing = cable.Exchanges(np.array([1, 2]), np.array([1, 2]), np.array([-1, -1]))
    assert nothing.judge(1_000_000)[0] == 0
