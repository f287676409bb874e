"""Stats: immutable, saved and loaded completely, and readable."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import Grant, Histogram, RTLoop, Stats
from rtloop.telemetry.assemble import make_stats
from rtloop.telemetry.block import Snapshot


@pytest.fixture
def stats() -> Stats:
    """A run made up: 1000 cycles at 1 kHz, one of them 5 ms late, and one grant refused."""
    rng = np.random.default_rng(3)
    release = np.arange(1000, dtype=np.int64) * 1_000_000 + 10**12
    start = release + rng.integers(10_000, 60_000, 1000)
    start[500] += 5_000_000
    records = np.zeros(1000, dtype=[("release", "<i8"), ("start", "<i8"), ("end", "<i8")])
    records["release"], records["start"], records["end"] = release, start, start + 20_000
    return Stats(
        name="arm <1>",
        state="stopped",
        cycles=1000,
        missed=5,
        overruns=1,
        late=0,
        stalls=0,
        warmup=0,
        duration_ns=10**9,
        page_faults=(3, 0),  # type: ignore[arg-type]
        context_switches=(1000, 2),  # type: ignore[arg-type]
        forks=0,
        guard={},
        grants=(
            Grant("policy", "fifo 80", "fifo 80", ok=True),
            Grant("memory_lock", "all", "own memory only", False, "RLIMIT_MEMLOCK is 8 MiB", "raise it", 1),
        ),
        settings={"period_ns": 1_000_000, "policy": "fifo", "cpu": None},
        host={"kernel": "6.1"},
        latency=Histogram.from_values(start - release),
        execution=Histogram.from_values(np.full(1000, 20_000)),
        response=Histogram.from_values(start + 20_000 - release),
        interval=Histogram.from_values(np.diff(start)),
        records=records,
        stack=(524288, 6000),  # type: ignore[arg-type]
    )


def test_it_cannot_be_changed(stats: Stats) -> None:
    with pytest.raises(AttributeError):
        stats.cycles = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        stats.records["start"][0] = 1
    assert stats.page_faults == (3, 0) and stats.page_faults.minor == 3
    assert stats.stack.high_water == 6000


@pytest.mark.parametrize(
    "change",
    [
        lambda stats: stats.settings.update(period_ns=1),
        lambda stats: stats.host.clear(),
        lambda stats: stats.guard.pop("cycles", None),
        lambda stats: stats.settings["simulation"].setdefault("x", 1),
        lambda stats: stats.settings.__ior__({"x": 1}),
    ],
    ids=["update", "clear", "pop", "nested", "or"],
)
def test_nor_can_its_dicts(change: Callable[[Stats], object], ordinary: dict[str, Any]) -> None:
    stats = RTLoop("1ms", **ordinary).simulate(cycles=3)
    for one in (stats, copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        with pytest.raises(TypeError, match="change a copy"):
            change(one)
        assert one == stats and json.loads(json.dumps(one.settings)) == stats.to_dict()["settings"]
    free = dict(stats.settings) | {"x": 1}
    free["x"] = 2


def test_a_copy_is_equal_and_cannot_be_changed_either(stats: Stats) -> None:
    for other in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert other == stats
        assert not other.records.flags.writeable
    assert replace(stats, missed=6) != stats
    assert stats != "stats"


def test_what_its_dict_is_used_for_does_not_come_back_to_it(stats: Stats) -> None:
    stats.to_dict()["settings"]["period_ns"] = 1
    assert stats.settings["period_ns"] == 1_000_000


def test_records_have_their_three_fields(stats: Stats) -> None:
    with pytest.raises(ValueError, match="records"):
        replace(stats, records=np.zeros(3))


def test_worst_are_the_latest_wake_ups(stats: Stats) -> None:
    worst = stats.worst(3)
    latency = worst["start"] - worst["release"]
    assert worst["release"][0] == 10**12 + 500 * 1_000_000
    assert len(worst) == 3 and np.all(np.diff(latency) <= 0)
    assert len(stats.worst(10**6)) == stats.cycles - stats.warmup and len(stats.worst(0)) == 0


def test_the_warm_up_is_none_of_the_worst(stats: Stats) -> None:
    assert stats.cycles == len(stats.records)
    later = replace(stats, warmup=600)  # the worst is cycle 500
    assert len(later.worst(10**6)) == stats.cycles - 600
    assert later.worst(1)["release"][0] >= later.records["release"][600]
    gone = replace(stats, warmup=stats.cycles, records=stats.records[-20:].copy())
    assert len(gone.worst()) == 0, "all that is recorded was warm-up"
    long_ago = replace(stats, warmup=10, records=stats.records[-20:].copy())
    assert len(long_ago.worst(100)) == 20


def test_a_loop_with_its_own_wait_claims_no_latency(
    probes: ModuleType, tmp_path: Path, ordinary: dict[str, Any]
) -> None:
    stats = probes.Paced("2ms", **ordinary).run(cycles=30)
    assert stats.has_own_wait and stats.settings["has_own_wait"] is True
    assert stats.latency.count == stats.response.count == 0 and stats.execution.count == 20
    assert stats.interval.count > 0 and len(stats.records) == 30, "what is true of it stays"
    values = json.loads(stats.to_json())
    assert values["latency"]["p50_ns"] is None and values["interval"]["p50_ns"] > 0
    assert Stats.load(stats.save(tmp_path / "run")).has_own_wait
    assert not probes.Probe("2ms", **ordinary).run(cycles=12).has_own_wait


def test_the_worst_of_a_loop_with_its_own_wait_came_longest_after_the_one_before(stats: Stats) -> None:
    records = stats.records.copy()
    records["release"][:10] -= 10**9  # what was planned does not matter
    own = replace(stats, settings=stats.settings | {"has_own_wait": True}, records=records)
    start = own.records["start"]
    assert own.worst(1)["start"][0] == start[1 + np.argmax(np.diff(start))]
    assert (
        len(own.worst(10**6)) == own.cycles - own.warmup
        and len(replace(own, records=own.records[:0].copy()).worst()) == 0
    )


def test_a_loop_that_ends_before_its_first_release_has_run_for_no_time(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("10s", phase="9s", **ordinary)  # the first release is far off: without a phase it is at once
    loop.start()
    assert loop.stats.duration_ns == 0
    loop.stop()
    assert (loop.stats.cycles, loop.stats.duration_ns) == (0, 0)
    counters: dict[str, Any] = dict.fromkeys(
        ("cycles", "missed", "overruns", "late", "stalls", "warmup", "shifted", "clock_steps", "clock_gap"), 0
    )
    counters |= {"clock_step_sizes": (), "clock_step_cycles": ()}
    counters |= {"first_release": 2_000, "last_end": 1_500, "usage": (0, 0, 0, 0)}
    snapshot = Snapshot(counters, (Histogram.empty(),) * 5, loop.stats.records)
    early = make_stats(loop.settings, "stopped", (), snapshot, has_own_wait=True)
    assert early.duration_ns == 0, "hardware that comes before the nominal release makes no negative time"


def test_a_single_value_has_no_spread(stats: Stats) -> None:
    values = json.loads(replace(stats, latency=Histogram.from_values([5_000])).to_json())
    assert values["latency"]["std_ns"] is None and values["latency"]["mean_ns"] == 5_000


def test_it_is_saved_and_loaded_whole(stats: Stats, tmp_path: Path) -> None:
    path = stats.save(tmp_path / "run")
    assert path == tmp_path / "run.npz" and list(tmp_path.iterdir()) == [path], "no temporary file is left"
    assert Stats.load(path) == stats
    assert stats.save(path) == path, "an existing file is replaced"


def test_the_extension_is_optional_both_ways(stats: Stats, tmp_path: Path) -> None:
    assert stats.save(tmp_path / "run.1").name == "run.1.npz"
    assert Stats.load(tmp_path / "run.1") == Stats.load(tmp_path / "run.1.npz") == stats
    (tmp_path / "run.1.npz").rename(tmp_path / "kept")
    assert Stats.load(tmp_path / "kept") == stats


def test_a_file_is_as_private_as_the_umask_says(stats: Stats, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert stats.save(tmp_path / "run").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_failed_save_leaves_the_former_file(stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stats.save(tmp_path / "run")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        replace(stats, missed=6).save(path)
    assert Stats.load(path) == stats and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        stats.save(tmp_path / "none" / "run")


def test_what_json_does_not_know_survives_as_what_it_does(stats: Stats, tmp_path: Path) -> None:
    odd = replace(stats, grants=(Grant("cpu", (1, 2), (1, 2), True),), host={"cpus": np.int64(4), "path": Path("a")})
    loaded = Stats.load(odd.save(tmp_path / "run"))
    assert loaded == odd
    assert loaded.grants[0].granted == [1, 2] and loaded.host == {"cpus": 4, "path": "a"}


def test_a_real_run_survives_the_round_trip(tmp_path: Path, ordinary: dict[str, Any]) -> None:
    stats = RTLoop("1ms", cpu=[0], strict=False, **ordinary).run(cycles=30)
    loaded = Stats.load(stats.save(tmp_path / "run.npz"))
    assert loaded == stats and loaded.grants == stats.grants
    assert loaded.to_dict(records=True) == stats.to_dict(records=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"hello"])
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(rtloop.ConfigError, match=r"other\.npz is not a file that Stats.save wrote"):
        Stats.load(path)
    with pytest.raises(FileNotFoundError):
        Stats.load(tmp_path / "none.npz")
    with pytest.raises(IsADirectoryError):
        Stats.load(tmp_path)


def test_no_error_advises_to_load_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    for content in (b"hello", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(rtloop.ConfigError) as caught:
            Stats.load(path)
        assert "pickle" not in str(caught.value)


def test_a_truncated_and_a_newer_file_are_told_apart(stats: Stats, tmp_path: Path) -> None:
    path = stats.save(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(rtloop.ConfigError, match="damaged"):
        Stats.load(path)
    values = json.loads(stats.to_json()) | {"version": 99}
    np.savez(path, stats=np.array(json.dumps(values)))
    with pytest.raises(rtloop.ConfigError, match="newer rtloop"):
        Stats.load(path)  # whatever else is in it
    np.savez(path, other=stats.records)
    with pytest.raises(rtloop.ConfigError, match="no stats in it"):
        Stats.load(path)
    values = json.loads(stats.to_json())
    np.savez(path, stats=np.array(json.dumps(values)), records=np.zeros(3))
    with pytest.raises(rtloop.ConfigError, match="records"):
        Stats.load(path)
    np.savez(path, stats=np.array([{"a": 1}], dtype=object), records=stats.records)
    with pytest.raises(rtloop.ConfigError, match="not a file"):
        Stats.load(path)  # a pickle is never executed


def test_json_holds_the_figures_and_on_request_the_records(stats: Stats) -> None:
    values = json.loads(stats.to_json())
    assert values["cycles"] == 1000 and values["page_faults"] == {"minor": 3, "major": 0}
    assert values["latency"]["p50_ns"] == stats.latency.percentile(50)
    assert values["grants"][1]["ok"] is False
    assert "records" not in values
    assert json.loads(stats.to_json(records=True))["records"]["release"][0] == 10**12
    empty = RTLoop("1ms").stats
    assert json.loads(empty.to_json())["latency"]["p50_ns"] is None, "JSON has no nan"


def test_the_table_says_what_an_engineer_asks_for(stats: Stats) -> None:
    text = str(stats)
    words = ("arm <1>", "1 kHz", "fifo 80", "wake-up latency", "99.9 %", "overruns", "missed releases", "page faults")
    for word in words:
        assert word in text
    assert "3 minor, 0 major" in text
    assert "NOT GRANTED" in text and "RLIMIT_MEMLOCK is 8 MiB" in text
    assert max(len(line) for line in text.splitlines()) <= 108


def test_the_table_claims_no_percentile_that_so_few_cycles_cannot_support(stats: Stats) -> None:
    row = next(line for line in str(stats).splitlines() if line.startswith("wake-up latency"))
    cells = row.removeprefix("wake-up latency").split("  ")
    cells = [cell.strip() for cell in cells if cell.strip()]
    assert cells[4] != "-" and cells[5] == "-", "1000 cycles support 99.9 %, and not 99.99 %"


def test_a_few_of_many_are_never_rounded_to_none(stats: Stats) -> None:
    assert "missed releases   1 (0.0001 %)" in str(replace(stats, cycles=10**6, missed=1))


def test_the_notebook_table_is_escaped_and_complete(stats: Stats) -> None:
    page = stats._repr_html_()
    assert "arm &lt;1&gt;" in page and "arm <1>" not in page
    assert "<svg" in page and "memory_lock" in page
    assert RTLoop("1ms").stats._repr_html_()


def test_the_picture_is_written(stats: Stats, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    path = tmp_path / "run.png"
    figure = stats.plot(path)
    assert path.read_bytes().startswith(b"\x89PNG") and len(figure.axes) == 3
    assert "5 missed" in figure.axes[0].get_title(loc="left")
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert "overruns (1)" in labels
    RTLoop("1ms").stats.plot(tmp_path / "empty.svg")
    with pytest.raises(rtloop.ConfigError, match="xyz"):
        stats.plot(tmp_path / "run.xyz")


def test_without_matplotlib_the_error_says_how_to_get_it(stats: Stats, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'rtloop\[plot\]'"):
        stats.plot()
