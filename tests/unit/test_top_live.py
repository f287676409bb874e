"""`rtloop top`, the view of one loop: its signals as sparklines, and its parameters, changed by keys."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

import rtloop

pytest.importorskip("rich", reason="rtloop top needs rtloop[top]")

from rtloop.tools.top import live_view
from rtloop.tools.top.loop_watch import LoopView, LoopWatch, Trace
from rtloop.tools.top.sampler import Sampler

MOTOR = np.dtype(
    [
        ("kp", "f8"),
        ("kd", "f4"),
        ("mode", "i4"),
        ("on", "?"),
        ("gains", "f8", (3,)),
        ("angle", "f8"),
        ("force", "f4", (2,)),
    ]
)
PLAIN: dict[str, Any] = {"policy": "other", "lock_memory": "off", "dma_latency": None, "record": 64, "strict": False}


def make_motor(name: str = "motor", **settings: Any) -> rtloop.PyLoop:
    """A loop whose signal `angle` counts its cycles, with a spike of 1000 in each hundredth."""
    data = np.zeros((), MOTOR)
    data["kp"] = 10

    def step(cycle: Any) -> None:
        data["angle"] = 1000 if cycle.index % 100 == 50 else data["kp"]
        data["force"] = (1, 2)

    limits = {"kp": (0, 50, "V/rad"), "kd": (0, None), "mode": (0, 3), "on": (None, None), "gains": (-1, 1)}
    return rtloop.PyLoop(
        step, "2ms", name=name, data=data, parameters=limits, signals={"angle": "rad", "force": "N"},
        **{**PLAIN, **settings},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a loop take as long as it needs on a busy machine until it uses a value."""
    monkeypatch.setattr("rtloop.tools.top.loop_watch._PATIENCE_S", 60.0)


@pytest.fixture
def motor() -> Iterator[rtloop.PyLoop]:
    made = make_motor()
    with made:
        yield made
    made.close()


def wait_for(condition: Callable[[], object], what: str = "it has not come to pass") -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


async def until(pilot: Any, condition: Callable[[], object]) -> None:
    """Let the application run until something is seen."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it has not come to pass"
        await pilot.pause(0.02)


def on_loop(play: Callable[[Any, Any], Awaitable[None]], name: str = "motor") -> None:
    """Open the view of a loop on a screen of 120 by 50, and play on it."""
    pytest.importorskip("textual", reason="the screen of rtloop top needs rtloop[top]")
    from rtloop.tools.top.app import TopApp

    async def run() -> None:
        app = TopApp(Sampler(os.getpid(), name), 0.5)
        async with app.run_test(size=(120, 50)) as pilot:
            await until(pilot, lambda: app.screen.query_one("#loops").row_count == 1)
            await pilot.press("enter")
            await until(pilot, lambda: len(app.screen_stack) == 2 and "cycles in" in text_of(app, "title"))
            await play(app, pilot)

    asyncio.run(run())


def text_of(app: Any, part: str) -> str:
    from rich.console import Console

    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(app.screen.query_one(f"#{part}").content)
    return capture.get()


def rows(app: Any) -> dict[str, list[str]]:
    """The parameters on the screen: value, unit, limits and type by name."""
    table = app.screen.query_one("#parameters")
    texts = [[cell.plain for cell in table.get_row_at(index)] for index in range(table.row_count)]
    return {name: others for name, *others in texts}


async def change(app: Any, pilot: Any, text: str, *, then: str = "enter") -> None:
    """Give a value for the parameter under the cursor."""
    if not app.screen.query_one("#edit").display:
        await until(pilot, lambda: app.focused is app.screen.query_one("#parameters"))
        await pilot.press("enter")
    await until(pilot, lambda: app.focused is app.screen.query_one("#edit"))
    app.screen.query_one("#edit").value = text
    await pilot.press(then)


# The drawing.


def test_a_sparkline_is_as_wide_as_asked_and_loses_no_spike() -> None:
    values = np.zeros(4000)
    values[1234] = 5
    line = live_view.sparkline(values, 40)
    assert len(line) == 40 and [at for at, char in enumerate(line) if char == "█"] == [12]
    assert live_view.sparkline(-values, 40).count("▁") == 1, "one downwards, too"
    assert live_view.sparkline(np.arange(8.0), 40) == "▁▂▃▄▅▆▇█"
    assert live_view.sparkline(np.full(500, 3.0), 10) == "▄" * 10
    assert live_view.sparkline(np.empty(0), 10) == ""


def test_a_sparkline_takes_any_number() -> None:
    assert live_view.sparkline(np.array([np.nan, np.inf, -np.inf]), 10) == "   "
    assert live_view.sparkline(np.array([0, np.nan, 1]), 10) == "▁ █"
    assert live_view.sparkline(np.array([-1.7e308, 0, 1.7e308]), 3) == "▁▅█"


def test_the_table_of_signals_names_what_is_missing() -> None:
    from rich.console import Console

    console = Console(width=100, color_system=None)
    view = LoopView([Trace("angle", "rad", np.array([1.0, np.nan]))], hidden=3, samples=2, lost=7, span_ns=2_000_000)
    with console.capture() as capture:
        console.print(live_view.signal_table(view, 100))
    text = capture.get()
    assert "the last 2 samples, 2.00 ms; 7 lost; 3 more are not shown" in text and "nan rad" in " ".join(text.split())


# Reading and setting, without a screen.


@pytest.fixture
def watch(motor: rtloop.PyLoop) -> Iterator[LoopWatch]:
    sampler = Sampler(os.getpid(), "motor")
    key = sampler.sample().rows[0].key
    made = LoopWatch(lambda: sampler.connect(key))
    yield made
    made.close()
    sampler.close()


def test_a_watch_has_values_units_limits_and_every_sample(motor: rtloop.PyLoop, watch: LoopWatch) -> None:
    first = watch.poll()
    assert first.values == {"kp": 10, "kd": 0, "mode": 0, "on": False, "gains": [0, 0, 0]} and not first.problem
    assert (first.declared["kp"].high, first.declared["kp"].unit) == (50, "V/rad")
    wait_for(lambda: watch.poll().samples > 150)
    view = watch.poll()
    assert [(one.name, one.unit) for one in view.traces] == [("angle", "rad"), ("force[0]", "N"), ("force[1]", "N")]
    assert view.traces[0].values.max() == 1000 and len(view.traces[0].values) == view.samples
    assert view.span_ns >= (view.samples - 1) * 2_000_000 * 0.99 or view.lost


def test_a_watch_of_a_loop_that_ended_says_so_and_sets_nothing(motor: rtloop.PyLoop, watch: LoopWatch) -> None:
    watch.poll()
    motor.stop()
    with pytest.raises(rtloop.StateError, match="has ended"):
        watch.set({"kp": "5"})
    assert motor.parameters["kp"] == 10
    watch.close()
    assert "closed" in watch.poll().problem


@pytest.mark.parametrize(
    ("name", "typed", "reason"),
    [
        ("kp", "51", "kp=51.0 is outside of its limits, 0.0 to 50.0 V/rad"),
        ("kp", "much", "kp=much must be a number"),
        ("kp", "nan", "kp=nan is not finite"),
        ("kp", "", "kp= must be a number"),
        ("kd", "-1", "kd=-1.0 is below its limit, 0.0"),
        ("mode", "1.5", "mode=1.5 must be a whole number"),
        ("mode", "9", "mode=9 is outside of its limits, 0 to 3"),
        ("on", "perhaps", "on=perhaps must be true or false"),
        ("gains", "1,1", "must be an array of the shape (3,)"),
        ("gains", "1,1,[", "must be an array such as"),
        ("gains", "0,0,2", "is outside of its limits, -1.0 to 1.0"),
    ],
)
def test_a_text_that_is_not_a_value_is_refused_with_the_reason_and_nothing_is_set(
    motor: rtloop.PyLoop, watch: LoopWatch, name: str, typed: str, reason: str
) -> None:
    others = {"kp": "20", "mode": "2"}
    with pytest.raises(rtloop.ConfigError) as told:
        watch.set({**others, name: typed})
    assert reason in str(told.value)
    assert motor.parameters["kp"] == 10 and motor.parameters["mode"] == 0


def test_a_loop_that_is_not_tunable_refuses_and_says_so() -> None:
    with make_motor("fixed", tunable=False) as loop:
        watch = LoopWatch(lambda: rtloop.connect("fixed", os.getpid()))
        assert watch.poll().values["kp"] == 10
        with pytest.raises(rtloop.StateError, match="tunable=False"):
            watch.set({"kp": "5"})
        watch.close()
        assert loop.parameters["kp"] == 10


def test_of_two_loops_with_the_same_name_the_chosen_one_is_changed() -> None:
    with make_motor("twin") as one, make_motor("twin") as other:
        sampler = Sampler(os.getpid(), "twin")
        for row, value in zip(sampler.sample().rows, ("21", "22"), strict=True):
            watch = LoopWatch(lambda key=row.key: sampler.connect(key))  # type: ignore[misc]
            assert [text.partition(",")[0] for text in watch.set({"kp": value})] == [f"kp: 10 -> {value} V/rad"]
            watch.close()
        assert {one.parameters["kp"], other.parameters["kp"]} == {21, 22}
        sampler.close()


# The screen.


def test_values_are_seen_and_set_live(motor: rtloop.PyLoop) -> None:
    async def play(app: Any, pilot: Any) -> None:
        await until(pilot, lambda: "█" in text_of(app, "signals"))
        text = text_of(app, "signals")
        assert "angle" in text and "rad" in text and "force[1]" in text and "1000" in text
        assert rows(app)["kp"] == ["10", "V/rad", "0 to 50", "f8"] and rows(app)["on"][0] == "false"
        assert rows(app)["gains"] == ["[0, 0, 0]", "", "-1 to 1", "f8 (3,)"]
        motor.parameters["kp"] = 20
        await until(pilot, lambda: rows(app)["kp"][0] == "20")

        await pilot.press("enter")
        await until(pilot, lambda: app.focused is app.screen.query_one("#edit"))
        await pilot.press(*"12.5", "enter")  # what was there is replaced
        await until(pilot, lambda: "kp: 20 -> 12.5 V/rad, from cycle" in text_of(app, "told"))
        assert motor.parameters["kp"] == 12.5
        await until(pilot, lambda: rows(app)["kp"][0] == "12.5")
        assert not app.screen.query_one("#edit").display and app.focused is app.screen.query_one("#parameters")

    on_loop(play)
    assert [change.values for change in motor.stats.parameter_changes[1:]] == [{"kp": 20}, {"kp": 12.5}]


def test_several_typed_values_are_one_set_and_escape_is_none(motor: rtloop.PyLoop) -> None:
    async def play(app: Any, pilot: Any) -> None:
        await until(pilot, lambda: rows(app))
        await change(app, pilot, "15", then="down")
        await change(app, pilot, "0.5", then="escape")
        await until(pilot, lambda: not app.screen.query_one("#edit").display)
        assert rows(app)["kp"][0] == "10" and len(app.screen_stack) == 2, "Esc leaves the value, not the loop"

        await change(app, pilot, "0.5", then="up")  # the cursor is still on kd
        await change(app, pilot, "15", then="up")  # round to the last one
        assert rows(app)["kp"][0] == "10 → 15" and motor.parameters["kp"] == 10, "nothing is set before Enter"
        await change(app, pilot, "[0.1,0.2,0.3]")
        await until(pilot, lambda: "gains: [0, 0, 0] -> [0.1, 0.2, 0.3]" in text_of(app, "told"))
        await pilot.press("left")
        await until(pilot, lambda: len(app.screen_stack) == 1)

    on_loop(play)
    (changed,) = motor.stats.parameter_changes[1:]
    assert changed.values == {"kp": 15, "kd": 0.5, "gains": [0.1, 0.2, 0.3]}


def test_a_refused_value_says_why_and_can_be_corrected(motor: rtloop.PyLoop) -> None:
    async def play(app: Any, pilot: Any) -> None:
        await until(pilot, lambda: rows(app))
        for typed, reason in (("51", "kp=51.0 is outside of its limits, 0.0 to 50.0 V/rad"), ("much", "a number")):
            await change(app, pilot, typed)
            await until(pilot, lambda reason=reason: reason in " ".join(text_of(app, "told").split()))
            assert "nothing was changed" in text_of(app, "told") and motor.parameters["kp"] == 10
        await change(app, pilot, "11")
        await until(pilot, lambda: rows(app)["kp"][0] == "11")
        motor.stop()
        await until(pilot, lambda: "has ended" in text_of(app, "title"))
        assert rows(app)["kp"][0] == "11" and "angle" in text_of(app, "signals"), "its last values"
        await change(app, pilot, "5")
        await until(pilot, lambda: "motor has ended" in text_of(app, "told"))

    on_loop(play)
    assert motor.parameters["kp"] == 11


def test_a_loop_without_parameters_and_signals_shows_neither() -> None:
    with rtloop.RTLoop("2ms", name="bare", **PLAIN):

        async def play(app: Any, pilot: Any) -> None:
            await until(pilot, lambda: "█" in text_of(app, "latency"))
            assert not app.screen.query_one("#parameters").display and not app.screen.query_one("#signals").display

        on_loop(play, "bare")
