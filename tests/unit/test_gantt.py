"""The measured schedule as a Gantt chart: which window, what is in it, and what is marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rtloop
from rtloop import ConfigError, LoopGroup, RTLoop, Stats
from rtloop.loop.gantt import choose_window, draw_schedule

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


def test_the_worst_one_has_the_overrun_and_what_it_made_miss() -> None:
    every = simulated()
    window = choose_window(every, "worst")
    assert window.begin <= window.origin + 7 * MS < window.end, "the eighth release"
    figure = draw_schedule(every, window)
    assert marks(figure, "x") == pytest.approx([3, 4]), (
        "8 and 9 ms after the origin; the next window has the cycle that tells"
    )
    edges = [c for c in figure.axes[0].collections if len(c.get_edgecolor()) and c.get_linewidth()[0] == 1.8]
    assert len(edges) == 1, "one overrun"


def test_a_time_since_the_origin_chooses_and_a_duration_widens() -> None:
    every = simulated()
    window = choose_window(every, "12ms")
    assert (window.begin - window.origin, window.end - window.origin) == (10 * MS, 15 * MS)
    window = choose_window(every, "12ms", "2ms")
    assert (window.begin - window.origin, window.end - window.origin, window.what) == (12 * MS, 14 * MS, "")
    given = choose_window(every, origin_ns=window.origin + 300_000)
    assert (given.begin - window.origin) % (5 * MS) == 300_000, "the group knows its origin"


def test_what_there_is_too_much_or_too_little_of_is_cut_and_said() -> None:
    loops = [RTLoop("997us", name="x"), RTLoop("1009us", name="y")]
    every = [loop.simulate("2500ms", execution="10us") for loop in loops]
    window = choose_window(every)
    assert window.end - window.begin < 200 * MS and window.what == "of a hyperperiod of 1.006 s"
    short = [RTLoop(period, name=period, record=3).simulate("100ms") for period in ("1ms", "5ms")]
    window = choose_window(short)
    assert window.end - window.begin < 5 * MS and window.what == "of a hyperperiod of 5 ms"


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
    late = RTLoop("1ms", name="late", phase="100ms").simulate("123ms")
    with pytest.raises(ConfigError, match="no time in common"):
        choose_window([every[0], late])


def test_a_loop_with_a_wait_of_its_own_has_no_releases(tmp_path: Path) -> None:
    import dataclasses

    every = simulated()
    paced = dataclasses.replace(every[0], settings={**every[0].settings, "has_own_wait": True})
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
    assert rtloop.LoopGroup.plot.__doc__ and len(marks(figure, "^")) + len(marks(figure, "x")) >= 6


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
