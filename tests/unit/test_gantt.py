"""The measured schedule as a Gantt chart: its window, its content and its marks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtloop import ConfigError, LoopGroup, RTLoop, Stats
from rtloop.stats.gantt import choose_window, draw_schedule
from rtloop.stats.records import on_one_clock

pytest.importorskip("matplotlib")
MS = 1_000_000


def simulated(**settings) -> list[Stats]:
    """Two loops of 1 and 5 ms for 23 ms on one CPU; the eighth step of the faster one takes 3.5 ms."""
    fast = RTLoop("1ms", name="fast", priority=79, cpu=1, warmup=0, **settings)
    slow = RTLoop("5ms", name="slow", priority=70, cpu=1, warmup=0, phase="100us")
    steps = ["200us"] * 7 + ["3500us"] + ["200us"] * 30
    return [
        fast.simulate("23ms", execution=steps, latency="20us"),
        slow.simulate("23ms", execution="1500us", latency="50us"),
    ]


def texts(figure) -> str:
    axes = figure.axes[0]
    return f"{axes.get_title(loc='left')} | {axes.get_xlabel()}"


def marks(figure, marker: str) -> list[float]:
    """Return where a marker is, in the unit of the axis."""
    return sorted(float(x) for line in figure.axes[0].lines if line.get_marker() == marker for x in line.get_xdata())


def test_the_last_whole_hyperperiod_is_drawn_the_highest_priority_on_top() -> None:
    every = simulated()
    window = choose_window(every)
    assert window.end - window.begin == 5 * MS and (window.begin - window.origin) % (5 * MS) == 0
    assert window.end <= max(int(s.records["end"][-1]) for s in every) < window.end + 5 * MS
    figure = draw_schedule(every[::-1], window, name="servo")
    assert texts(figure) == "servo: 5 ms (a hyperperiod) | ms; 0 is 15 ms after the origin"
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["fast\n1 ms, priority 79, CPU 1", "slow\n5 ms, priority 70, CPU 1"]
    assert marks(figure, "^") == pytest.approx([0, 0.1, 1, 2, 3, 4]) and marks(figure, "x") == []


def test_the_worst_one_has_the_overrun_to_its_end_and_what_it_made_miss() -> None:
    every = simulated()
    window = choose_window(every, "worst")
    assert (window.begin - window.origin, window.end - window.origin) == (5 * MS, 15 * MS), "it ends in the next one"
    assert window.what == "2 hyperperiods"
    figure = draw_schedule(every, window)
    assert marks(figure, "x") == pytest.approx([3, 4, 5]), "8, 9 and 10 ms after the origin"
    assert marks(figure, "D") == pytest.approx([5.52]), "where the overrun ends"
    edges = [c for c in figure.axes[0].collections if len(c.get_edgecolor()) and c.get_linewidth()[0] == 1.8]
    assert len(edges) == 1, "one overrun"
    (late,) = [c for c in figure.axes[0].collections if c.get_hatch()]
    (path,) = late.get_paths()
    assert (path.vertices[:, 0].min(), path.vertices[:, 0].max()) == pytest.approx((3, 5.52)), "since the next release"
    close = choose_window(every, "worst", "4ms")
    assert close.begin <= window.origin + 7 * MS and window.origin + 10.52 * MS <= close.end, "from release to end"
    assert close.end - close.begin == 4 * MS


def test_a_miss_is_marked_though_the_next_cycle_is_beyond_the_window() -> None:
    every = simulated()
    figure = draw_schedule(every, choose_window(every, "5ms", "5ms"))
    assert marks(figure, "x") == pytest.approx([3, 4]) and not marks(figure, "D"), "its end is beyond, too"


def test_a_time_since_the_origin_chooses_and_a_duration_begins_there() -> None:
    every = simulated()
    window = choose_window(every, "12ms")
    assert (window.begin - window.origin, window.end - window.origin) == (10 * MS, 15 * MS)
    window = choose_window(every, "12ms", "3ms")
    assert (window.begin - window.origin, window.end - window.origin, window.what) == (12 * MS, 15 * MS, "")
    window = choose_window(every, 0)
    assert window.begin == window.origin, "before the slow loop's first release nothing was, and that is known"


def test_the_origin_that_a_group_has_told_goes_before_that_of_the_records() -> None:
    every = simulated()
    origin = choose_window(every).origin + 300_000
    told = [replace(stats, settings={**stats.settings, "group": "servo", "origin_ns": origin}) for stats in every]
    window = choose_window(told)
    assert window.origin == origin and (window.begin - window.origin) % (5 * MS) == 0
    assert texts(draw_schedule(told, window)).startswith("servo: ")
    assert choose_window([told[0], every[1]]).origin == origin - 300_000, "only where all have told the same"


def stepped(stats: Stats, at: int, size: int) -> Stats:
    """Return the stats as if the clock had been set by `size` after `at` ns since the first release."""
    records = stats.records.copy()
    cycle = int(np.searchsorted(records["release"], records["release"][0] + at))
    for name in ("release", "start", "end"):
        records[name][cycle:] += size
    step = {"clock_steps": 1, "clock_step_cycles": (cycle,), "clock_step_sizes": (size,)}
    return replace(stats, records=records, **step)


@pytest.mark.parametrize("size", [-3_600_000 * MS, -7 * MS, 12_345_678, 86_400_000 * MS])
@pytest.mark.parametrize("at", ["last", "worst", "8ms"])
def test_across_a_step_of_the_clock_the_same_is_drawn(size: int, at: str) -> None:
    every = simulated()
    wanted = choose_window(every, at)
    moved = [stepped(stats, 13 * MS, size) for stats in every]
    window = choose_window(moved, at)
    assert window == (wanted.begin + size, wanted.end + size, wanted.origin + size, wanted.what)
    for marker in "^xD":
        assert marks(draw_schedule(moved, window), marker) == marks(draw_schedule(every, wanted), marker)
    once = [on_one_clock(stats) for stats in moved]
    assert choose_window(once, at) == window, "nothing is moved twice"
    told = [replace(stats, settings={**stats.settings, "origin_ns": wanted.origin}) for stats in moved]
    assert choose_window(told, at) == window, "a group tells the origin on the clock as it was at its start"
    assert choose_window([on_one_clock(stats) for stats in told], at) == window


def test_of_loops_of_one_period_ten_cycles_are_drawn() -> None:
    one = [RTLoop("1ms", name="one").simulate("100ms")]
    window = choose_window(one)
    assert (window.end - window.begin, window.what) == (10 * MS, "10 hyperperiods")
    assert len(marks(draw_schedule(one, window), "^")) == 10
    steps = ["10us"] * 50 + ["900us"] + ["10us"] * 50
    one = [RTLoop("1ms", name="one", warmup=0).simulate("100ms", execution=steps)]
    window = choose_window(one, "worst")
    assert (window.begin - window.origin, window.end - window.begin) == (46 * MS, 10 * MS), "the worst in the middle"
    few = [RTLoop("1ms", name="few", record=3).simulate("100ms")]
    assert choose_window(few).what == "3 hyperperiods"
    apart = RTLoop("1ms", name="apart", record=3, phase="500us").simulate("100ms")
    window = choose_window([*few, apart])
    assert (window.end - window.begin, window.what) == (2 * MS, "2 hyperperiods"), "of 2.5 ms with records of both"


def test_what_there_is_too_much_or_too_little_of_is_cut_and_said() -> None:
    loops = [RTLoop("997us", name="x"), RTLoop("1009us", name="y")]
    every = [loop.simulate("2500ms", execution="10us") for loop in loops]
    window = choose_window(every)
    assert window.end - window.begin < 200 * MS and window.what == "of a hyperperiod of 1.006 s"
    window = choose_window(every, 0, "1s")
    assert window.end - window.begin < 200 * MS and window.what == "of 1 s"
    short = [RTLoop(period, name=period, record=3).simulate("100ms") for period in ("1ms", "5ms")]
    window = choose_window(short)
    assert window.end - window.begin < 5 * MS and window.what == "of a hyperperiod of 5 ms"


def test_a_day_of_missed_releases_takes_no_memory() -> None:
    loop = RTLoop("10us", name="stopped", warmup=0)
    stats = loop.simulate(cycles=20, execution=["1us"] * 10 + ["24h"] + ["1us"] * 9)
    assert stats.missed > 8_000_000_000
    figure = draw_schedule([stats], choose_window([stats], "50us", "200us"))
    assert len(marks(figure, "x")) == 14, "of the window alone"


def test_where_a_higher_priority_ran_on_the_same_cpu_a_step_is_pale() -> None:
    every = simulated()
    pale = [c for c in draw_schedule(every, choose_window(every)).axes[0].collections if c.get_alpha() == 0.65]
    (bars,) = pale
    spans = [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in bars.get_paths()]
    # The slow step runs from 0.15 to 1.65 ms; the fast ones from 0.02 to 0.22 and from 1.02 to 1.22 ms.
    assert np.allclose(spans, [(0.15, 0.22), (1.02, 1.22)])
    apart = [every[0], RTLoop("5ms", name="apart", cpu=0).simulate("23ms", execution="1500us")]
    assert not [c for c in draw_schedule(apart, choose_window(apart)).axes[0].collections if c.get_alpha() == 0.65]


def test_what_cannot_be_drawn_says_why() -> None:
    every = simulated()
    with pytest.raises(ConfigError, match="new has no records: run it first"):
        choose_window([*every, RTLoop("1ms", name="new").stats])
    with pytest.raises(ConfigError, match="clocks monotonic and tai"):
        choose_window([*every, RTLoop("1ms", clock="tai").simulate("23ms")])
    with pytest.raises(ConfigError, match=r"at='1s': the records that all loops have are from .* to 23 ms"):
        choose_window(every, "1s")
    with pytest.raises(ConfigError, match="at='sometime' must be 'last', 'worst'"):
        choose_window(every, "sometime")
    elsewhere = replace(every[1], host={**every[1].host, "cpu": "another"})
    with pytest.raises(ConfigError, match="different machines, whose monotonic clocks"):
        choose_window([every[0], elsewhere])
    on_tai = [replace(stats, settings={**stats.settings, "clock": "tai"}) for stats in (every[0], elsewhere)]
    assert choose_window(on_tai), "machines can have the time of day in common"
    every = simulated()
    with pytest.raises(ConfigError, match="slow has no period"):
        choose_window([every[0], replace(every[1], settings={})])
    late = RTLoop("1ms", name="late", phase="100ms").simulate("123ms")
    assert marks(draw_schedule([every[0], late], choose_window([every[0], late], 0)), "^"), "it is known to have waited"
    with pytest.raises(ConfigError, match="records of fast end 77 ms before those of late begin: they did not run"):
        choose_window([every[0], replace(late, settings={**late.settings, "phase_ns": 0})])


def test_a_loop_with_a_wait_of_its_own_has_no_releases(tmp_path: Path) -> None:
    every = simulated()
    paced = replace(every[0], settings={**every[0].settings, "has_own_wait": True})
    if not paced.has_own_wait:
        pytest.fail("this test makes no loop with a wait of its own any more")
    assert marks(draw_schedule([paced, every[1]], choose_window([paced, every[1]])), "^") == pytest.approx([0.1])


def test_a_group_draws_what_its_loops_have_done(tmp_path: Path) -> None:
    settings = {"policy": "other", "strict": False, "dma_latency": None, "lock_memory": "off"}
    loops = [RTLoop("2ms", name="fast", **settings), RTLoop("10ms", name="slow", **settings)]
    group = LoopGroup(loops, name="servo")
    with pytest.raises(ConfigError, match="fast has no records"):
        group.plot()
    group.run("50ms")
    figure = group.plot(tmp_path / "servo.png")
    assert (tmp_path / "servo.png").read_bytes().startswith(b"\x89PNG")
    assert texts(figure).startswith("servo: 10 ms (a hyperperiod)")
    assert marks(figure, "^"), "of six releases at least one, if the machine lets no loop run for the rest of 10 ms"


def test_a_group_saves_what_its_loops_have_done_with_its_name_and_origin(tmp_path: Path) -> None:
    settings = {"policy": "other", "strict": False, "dma_latency": None, "lock_memory": "off"}
    loops = [RTLoop("2ms", name="fast/1", phase="500us", **settings), RTLoop("5ms", name="fast 1", **settings)]
    group = LoopGroup(loops, name="servo")
    assert "origin_ns" not in group.stats["fast 1"].settings, "before the first run there is none"
    group.run("50ms")
    paths = group.save(tmp_path / "servo")
    assert [path.name for path in paths] == ["fast_1.npz", "fast_1-2.npz"]
    loaded = [Stats.load(path) for path in paths]
    assert [stats.name for stats in loaded] == ["fast/1", "fast 1"]
    assert all(stats.settings["origin_ns"] == group.origin_ns for stats in loaded)
    assert texts(draw_schedule(loaded, choose_window(loaded))).startswith("servo: 10 ms (a hyperperiod)")
    loops[0].run("20ms")
    assert "group" not in group.stats["fast/1"].settings, "that run was the loop's own"
    assert group.stats["fast 1"].settings["group"] == "servo"
    loops[1].simulate("20ms")
    assert "origin_ns" not in loops[1].stats.settings


def test_the_command_draws_saved_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rtloop.tools.cli import main

    paths = [str(stats.save(tmp_path / f"{stats.name}.npz")) for stats in simulated()]
    out = tmp_path / "schedule.svg"
    with pytest.raises(SystemExit) as end:
        main(["plot", *paths, "--kind", "schedule", "--at", "worst", "-o", str(out)])
    assert not end.value.code and "missed release" in out.read_text() and "fast" in out.read_text()
    with pytest.raises(SystemExit) as end:
        main(["plot", *paths, "--at", "worst"])
    assert end.value.code == 2 and "--at and --duration are for --kind schedule" in capsys.readouterr().err
