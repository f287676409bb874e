"""A new step on trial: what makes the loop go back to the former one, whose each cycle is, and every end of a trial."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import ConfigError, PyLoop, RTSetupWarning, StateError, SwapError
from rtloop.loop import lifecycle, swap

Ordinary = dict[str, Any]
PATIENCE_S = 30
LONG = "1h"


@pytest.fixture
def make(laws: ModuleType, ordinary: Ordinary) -> Callable[..., Any]:
    """Make a loop of 1 kHz; ``kind`` is a class of the module."""

    def make(kind: str = "Law", period: str = "1ms", **settings: Any) -> Any:
        return getattr(laws, kind)(period, **{**ordinary, **settings})

    return make


@pytest.fixture
def failing(make: Any) -> Callable[..., Any]:
    """Make a step that returns -5 in its n-th cycle."""

    def failing(steps: int = 3, kind: str = "Other", **settings: Any) -> Any:
        law = make(kind, **settings)
        law.step_code, law.stop_at = -5, steps - 1
        return law

    return failing


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def simulate(loop: Any, new: Any, trial: str = "10ms", **settings: Any) -> tuple[rtloop.Stats, list[str]]:
    """Simulate 40 cycles with a swap in cycle 7. Returns the statistics and the warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        stats = loop.simulate(cycles=40, swaps={7: new}, trial=trial, **settings)
    assert all(one.category is RTSetupWarning for one in seen)
    return stats, [str(one.message) for one in seen]


def late_in(cycle: int) -> Callable[[int], int]:
    return lambda index: 1_500_000 if index == cycle else 1000


# --- the reasons, in virtual time


def test_a_step_that_returns_a_code_is_replaced_by_the_former(make: Any, failing: Any) -> None:
    loop, new = make(name="arm"), failing(4)
    stats, seen = simulate(loop, new)
    assert stats.swaps == ((7, "Law", "Other", None), (11, "Other", "Law", "step returned -5"))
    assert (loop.steps, new.steps, stats.cycles) == (36, 4, 40), "the cycle that failed counts, and is the new step's"
    assert (loop.leaves, new.leaves, loop.releases, new.releases, new.enters) == (1, 0, 0, 1, 0)
    assert (loop.takes, new.takes) == (0, 1), "the former step goes on as it was"
    assert loop.gaps == 1 and loop.state == "stopped" and new.state == "new" and stats.state == "stopped"
    (said,) = seen
    assert said.startswith("arm has gone back to Law before cycle 11: Other, on trial since cycle 7") and "-5" in said
    new.stop_at = -1
    new.simulate(cycles=3)
    assert new.leaves == 1, "it is a loop of its own"


@pytest.mark.parametrize(
    ("revert_on", "reason"),
    [(("overrun",), "overrun"), (("late", "overrun"), "overrun"), (("late",), None), (("guard",), None), ((), None)],
)
def test_an_overrun_is_one_if_it_is_watched(revert_on: Any, reason: str | None, make: Any) -> None:
    loop, new = make(), make("Other")
    stats, seen = simulate(loop, new, execution=late_in(12), revert_on=revert_on)
    back = () if reason is None else ((13, "Other", "Law", reason),)
    assert stats.swaps == ((7, "Law", "Other", None), *back) and len(seen) == len(back)
    assert (loop.leaves, new.leaves) == ((1, 0) if back else (0, 1)) and loop.steps + new.steps == 40 == stats.cycles
    assert stats.missed == 1 and (loop.releases, new.releases) == ((0, 1) if back else (1, 0))


def test_a_late_cycle_is_one_if_it_is_watched(make: Any) -> None:
    loop, new = make(overrun="catch-up"), make("Other")
    stats, _ = simulate(loop, new, execution=late_in(12), revert_on=["late"])
    assert stats.swaps[1:] == ((13, "Other", "Law", "late"),) and stats.late == 1


@pytest.mark.parametrize("policy", [{"overrun": "stop"}, {"max_overruns": 1}])
def test_an_overrun_that_would_end_the_loop_ends_the_trial(policy: dict[str, Any], make: Any) -> None:
    loop, new = make(**policy), make("Other")
    stats, _ = simulate(loop, new, execution=late_in(12))
    assert [one.reason for one in stats.swaps] == [None, "overrun"] and loop.leaves == 1 and stats.cycles == 40
    loop, new = make(**policy), make("Other")
    with pytest.raises(rtloop.OverrunError):
        simulate(loop, new, execution=late_in(12), revert_on=["late"])
    assert (loop.leaves, new.leaves) == (0, 1), "an end that is not watched is one"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["f8", "f4", "2f4", "c16", "f2", "3f2"])
def test_a_signal_that_is_not_finite(value: float, kind: str, make: Any) -> None:
    loop, new = make(), make("Shown")
    new.declare_signal(kind)
    new.spoil_at, new.spoilt = 4, value
    stats, seen = simulate(loop, new, revert_on=["nonfinite"])
    assert stats.swaps[1:] == ((11, "Shown", "Law", "nonfinite"),) and len(seen) == 1
    new = make("Shown")
    new.declare_signal(kind)
    stats, _ = simulate(make(), new, revert_on=["nonfinite"])
    assert len(stats.swaps) == 1, "a finite one is none"


def test_all_reasons_of_a_cycle_are_named(make: Any, failing: Any) -> None:
    new = failing(3)
    new.show()
    new.angle = math.nan
    everything = ["overrun", "guard", "late", "nonfinite"]
    stats, _ = simulate(make(), new, execution=late_in(7), revert_on=everything)
    assert stats.swaps[1].reason == "overrun, nonfinite"
    stats, _ = simulate(make(overrun="stop"), failing(1), execution=late_in(7), revert_on=everything)
    assert stats.swaps[1].reason == "step returned -5, overrun"


# --- the length of a trial


@pytest.mark.parametrize(("trial", "last"), [("1ns", 7), ("1ms", 7), ("5ms", 11), ("5001us", 12), ("10ms", 16)])
def test_a_trial_is_so_many_cycles(trial: str, last: int, make: Any, failing: Any) -> None:
    loop, new = make(), failing(last - 7 + 1)
    stats, _ = simulate(loop, new, trial)
    assert [one.cycle for one in stats.swaps] == [7, last + 1]
    loop, new = make(), failing(last - 7 + 2)
    with pytest.raises(rtloop.CallbackError):
        simulate(loop, new, trial)
    assert (loop.leaves, new.leaves, loop.releases) == (0, 1, 1)


def test_a_trial_without_incident_ends_as_a_swap_does(make: Any) -> None:
    loop, new = make(), make("Other")
    stats, seen = simulate(loop, new)
    plain = make().simulate(cycles=40, swaps={7: make("Other")})
    assert seen == [] and stats.swaps == plain.swaps and np.array_equal(stats.records, plain.records)
    assert (loop.steps, new.steps, loop.releases, new.releases) == (7, 33, 1, 0)


def test_the_end_of_the_run_ends_a_trial(make: Any) -> None:
    loop, new = make(), make("Other")
    stats, seen = simulate(loop, new, LONG)
    assert seen == [] and len(stats.swaps) == 1 and (loop.leaves, new.leaves, loop.releases) == (0, 1, 1)


def test_the_last_cycle_of_a_run_can_fail(make: Any, failing: Any) -> None:
    loop, new = make(), failing(33)
    stats, seen = simulate(loop, new, LONG)
    assert stats.swaps[1] == (40, "Other", "Law", "step returned -5") and len(seen) == 1 and stats.cycles == 40
    assert (loop.leaves, new.leaves) == (1, 0) and stats.state == "stopped"


def test_a_normal_end_by_the_new_step_is_one(make: Any) -> None:
    loop, new = make(), make("Other")
    new.step_code, new.stop_at = rtloop.RT_STOP, 3
    stats, seen = simulate(loop, new, LONG)
    assert (stats.cycles, loop.leaves, new.leaves, seen) == (11, 0, 1, [])


def test_many_trials_to_the_bit(make: Any, failing: Any) -> None:
    def run() -> tuple[Any, list[Any]]:
        loop = make(period="10kHz", name="arm")
        laws = [failing(2 + k % 5, "Law" if k % 2 else "Other", period="10kHz") for k in range(200)]
        for law in laws[::3]:
            law.stop_at = -1
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            stats = loop.simulate(
                cycles=5000, execution=lambda k: 120_000 if k % 100 == 7 else 20_000,
                swaps={20 * (k + 1): law for k, law in enumerate(laws)}, trial="1ms", revert_on=[],
            )  # fmt: skip
        return stats, [loop, *laws, len(seen)]

    (stats, laws), (again, _) = run(), run()
    assert stats == again and np.array_equal(stats.records, again.records)
    *laws, count = laws
    assert sum(law.steps for law in laws) == stats.cycles == 5000 and sum(law.leaves for law in laws) == 1
    backs = [one for one in stats.swaps if one.reason]
    assert len(backs) == count == 200 - 67 and len(stats.swaps) == 200 + count
    assert all(law.releases == 1 for law in laws[1:] if law.leaves == 0)
    plain = make(period="10kHz").simulate(cycles=5000, execution=lambda k: 120_000 if k % 100 == 7 else 20_000)
    assert np.array_equal(plain.records, stats.records) and plain.missed == stats.missed, "a trial costs no release"


def test_another_swap_waits_for_the_end_of_a_trial(make: Any, failing: Any) -> None:
    loop, new = make(name="arm"), make("Other")
    with pytest.raises(StateError, match=r"Other is on trial in arm, up to cycle 17: wait until loop\.on_trial is Fa"):
        loop.simulate(cycles=40, swaps={7: new, 16: make()}, trial="10ms")
    assert (loop.leaves, new.leaves) == (0, 1)
    third = make()
    stats = make().simulate(cycles=40, swaps={7: make("Other"), 17: third}, trial="10ms")
    assert len(stats.swaps) == 2 and third.leaves == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"revert_on": ["slow"]}, r"revert_on=\['slow'\] must be a sequence of some of these: 'overrun', 'guard', 'l"),
        ({"revert_on": "late"}, "revert_on='late' must be a sequence"),
        ({"trial": 0}, "trial"),
        ({"trial": "-1s"}, "trial"),
        ({"trial": "two"}, "trial"),
    ],
)
def test_values_that_cannot_work(settings: dict[str, Any], message: str, make: Any) -> None:
    loop = make()
    with pytest.raises(ConfigError, match=message):
        loop.simulate(cycles=4, swaps={2: make()}, **{"trial": "1s", **settings})
    with loop, pytest.raises(ConfigError, match=message):
        loop.swap(make(), **{"trial": "1s", **settings})
    assert loop.stats.swaps == ()


# --- on the real thread


def test_a_loop_goes_back_by_itself(make: Any, failing: Any) -> None:
    loop, new = make(name="arm"), failing(20)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with loop:
            cycle = loop.swap(new, trial=LONG, revert_on=())
            wait_for(lambda: not loop.on_trial)
            back = loop.stats.swaps[1]
            wait_for(lambda: loop.last >= back.cycle and new.releases == 1)
            assert new.state == "new" and loop.state == "running" and new.releases == 1
            loop.swap(make(), trial="1ms", revert_on=())
            wait_for(lambda: not loop.on_trial)
    assert back == (cycle + 20, "Other", "Law", "step returned -5") and new.last == back.cycle - 1
    assert [str(one.message)[:36] for one in seen] == ["arm has gone back to Law before cycl"]
    assert len(loop.stats.swaps) == 3 and (loop.leaves, new.leaves, loop.state) == (0, 0, "stopped")
    assert loop.stats.cycles == len(loop.stats.records)


@pytest.mark.parametrize("begin", ["start", "simulate", "group", "swap"])
def test_a_step_that_was_given_back_can_be_started_at_once(begin: str, make: Any, failing: Any) -> None:
    """Nothing has asked yet how the trial has ended, and the keeper has not looked."""
    loop, new, other = make(), failing(5, name="new"), make(name="other")
    with warnings.catch_warnings(), loop, other:
        warnings.simplefilter("ignore")
        cycle = loop.swap(new, trial=LONG, revert_on=())
        wait_for(lambda: loop.last > cycle)
        new.stop_at = -1
        if begin == "group":
            group = rtloop.LoopGroup([new])
            with group:
                assert new.state == "running" and new.name == "new"
        elif begin == "swap":
            other.swap(new)
        elif begin == "simulate":
            new.simulate(cycles=3)
        else:
            new.start()
            new.stop()
        assert loop.state == "running" and new.releases == 1
    assert (loop.leaves, new.leaves, other.leaves) == (1, 1, 0 if begin == "swap" else 1)


def test_a_simulation_waits_until_what_the_step_had_as_another_loops_is_released(
    make: Any, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, new = make(), failing(10**9)
    changes: list[Any] = []
    ask = swap.StepChange.ask
    monkeypatch.setattr(swap.StepChange, "ask", lambda change: [changes.append(change), ask(change)])
    begun, is_awaited = threading.Event(), threading.Event()
    seen: list[str] = []

    def nap(seconds: float) -> None:
        if threading.current_thread() is starter:
            is_awaited.set()
        time.sleep(seconds)

    def release() -> None:
        begun.set()
        is_awaited.wait(PATIENCE_S)
        seen.append("released")

    starter = threading.Thread(target=lambda: [new.simulate(cycles=3), seen.append("simulated"), is_awaited.set()])
    monkeypatch.setattr(lifecycle, "nap", nap)
    with warnings.catch_warnings(), loop:
        warnings.simplefilter("ignore")
        loop.swap(new, trial=LONG, revert_on=())
        changes[0]._stack.callback(release)
        while not begun.is_set():  # the keeper has found the end of the trial
            new.stop_at = new.steps + 5
            time.sleep(0.01)
        new.stop_at = -1
        starter.start()
        starter.join(PATIENCE_S)
    assert seen == ["released", "simulated"] and new.leaves == 1


def test_a_trial_is_over_when_it_has_passed(make: Any) -> None:
    loop, new = make(), make("Other")
    with loop:
        cycle = loop.swap(new, trial="20ms", revert_on=())
        assert loop.on_trial == new.on_trial or new.last >= cycle + 19
        wait_for(lambda: loop.releases == 1)
        assert not loop.on_trial and new.last >= cycle + 19 and new.state == "running"
        third = make()
        loop.swap(third)
        assert new.releases == 1 and new.state == "new" and not loop.on_trial
    assert (loop.leaves, new.leaves, third.leaves) == (0, 0, 1) and len(loop.stats.swaps) == 2


def test_the_guard_and_its_end_send_the_loop_back(make: Any) -> None:
    for guard in "count", "stop":
        loop, new = make(guard=guard), make("Other")
        new.sleep_at = 10
        with warnings.catch_warnings(record=True) as seen, loop:
            warnings.simplefilter("always")
            wait_for(lambda loop=loop: loop.last > 20)
            if loop.stats.guard["system_calls"] is None:
                pytest.skip("this kernel has no Syscall User Dispatch")
            loop.swap(new, trial=LONG, revert_on=["guard"])
            wait_for(lambda loop=loop: not loop.on_trial)
            assert loop.stats.swaps[1].reason == "guard" and loop.state == "running"
            at = loop.steps
            wait_for(lambda loop=loop, at=at: loop.steps > at)
        assert (loop.leaves, new.leaves, loop.state, len(seen)) == (1, 0, "stopped", 1)


def test_the_exception_of_a_python_step_is_in_the_warning(make: Any, ordinary: Ordinary) -> None:
    def law(cycle: Any) -> None:
        raise ZeroDivisionError("the new law divides by zero")

    loop = make()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with loop:
            loop.swap(PyLoop(law, "1ms", **ordinary, stack_size="512K"), trial=LONG, revert_on=())
            wait_for(lambda: seen)
        loop.join()
    assert "ZeroDivisionError: the new law divides by zero" in str(seen[0].message) and loop.leaves == 1


def test_another_swap_during_a_trial_is_refused(make: Any) -> None:
    loop, new, third = make(), make("Other"), make()
    with loop:
        loop.swap(new, trial=LONG, revert_on=())
        with pytest.raises(StateError, match="Other is on trial in"):
            loop.swap(third)
        assert third.state == "new" and loop.on_trial
    assert (loop.leaves, new.leaves, third.leaves, loop.releases) == (0, 1, 0, 1) and not loop.on_trial


def test_a_refused_step_is_not_on_trial(make: Any) -> None:
    loop, new = make(), make()
    new.take_code = -7
    with loop:
        with pytest.raises(SwapError):
            loop.swap(new, trial=LONG)
        assert not loop.on_trial
        loop.swap(make(), trial="1ms", revert_on=())


def test_former_steps_come_back_in_a_chain(make: Any, failing: Any) -> None:
    """A step that has itself come by a swap is the one that comes back, and is freed like any other."""
    loop, second, third = make(), make("Other"), failing(5)
    with warnings.catch_warnings(), loop:
        warnings.simplefilter("ignore")
        loop.swap(second)
        loop.swap(third, trial=LONG, revert_on=())
        wait_for(lambda: third.releases == 1)
        assert second.state == "running" and third.state == "new" and second.releases == 0
        at = second.steps
        wait_for(lambda: second.steps > at)
        fourth = make()
        loop.swap(fourth)
        assert second.state == "new" and second.releases == 1
    assert [law.leaves for law in (loop, second, third, fourth)] == [0, 0, 0, 1]


def test_parameters_that_were_requested_in_a_trial_are_kept(make: Any, failing: Any) -> None:
    loop, new = make(), failing(10**9)
    loop.declare("kp", 2.0)
    new.declare("kp", 9.0)
    with warnings.catch_warnings(), loop:
        warnings.simplefilter("ignore")
        loop.parameters["kp"] = 3
        loop.swap(new, trial=LONG, revert_on=())
        assert loop.parameters["kp"] == 3
        loop.parameters["kp"] = 4
        wait_for(lambda: new.kp == 4)
        assert loop.kp == 3
        new.stop_at = new.steps + 3
        wait_for(lambda: not loop.on_trial or new.steps > new.stop_at + 10)
        if loop.on_trial:  # it was past that step already
            new.stop_at = new.steps + 1000
            wait_for(lambda: not loop.on_trial)
        wait_for(lambda: loop.kp == 4)
        assert loop.parameters["kp"] == 4 and loop.stats.refused_parameter_sets == 0
        loop.parameters["kp"] = 5
        wait_for(lambda: loop.kp == 5)
    kept = [change.values for change in loop.stats.parameter_changes]
    assert {"kp": 9.0} not in kept and kept[-1] == {"kp": 5.0} and loop.stats.lost_parameter_changes == 0


def test_what_is_requested_after_a_trial_is_not_overruled_by_what_was_requested_in_it(make: Any) -> None:
    loop, new = make(), make("Other")
    loop.declare("kp", 2.0)
    new.declare("kp", 9.0)
    new.step_code = -5
    with warnings.catch_warnings(), loop:
        warnings.simplefilter("ignore")
        loop.swap(new, trial=LONG, revert_on=())
        loop.parameters["kp"] = 4
        while loop.on_trial:
            if new.stop_at < new.steps:
                new.stop_at = new.steps + 20  # or else once more
            time.sleep(0.001)
        loop.parameters["kp"] = 5
        wait_for(lambda: new.releases == 1)
        assert loop.parameters["kp"] == 5


def test_the_former_has_its_fields_again(ordinary: Ordinary) -> None:
    """Two steps without a class share their data, into which each writes its parameters."""
    data = np.zeros((), [("kp", "f8"), ("count", "i8")])

    def law(code: int) -> PyLoop:
        def step(cycle: Any) -> int:
            data["count"] += 1
            return code

        return PyLoop(step, "1ms", data=data, parameters={"kp": (0, 10)}, **ordinary)

    loop, new = law(0), law(0)
    loop.parameters["kp"] = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stats = loop.simulate(cycles=30, swaps={7: new}, trial="10ms", execution=late_in(12))
    assert len(stats.swaps) == 2 and data["kp"] == 3 and stats.parameter_changes[-1].cycle == 13


def test_a_revert_is_in_the_table_and_the_file(make: Any, failing: Any, tmp_path: Any) -> None:
    stats, _ = simulate(make(), failing(4))
    assert "the last back to Law, in place since cycle 11, because Other failed its trial: step" in str(stats)
    stats.save(tmp_path / "run.npz")
    assert rtloop.Stats.load(tmp_path / "run.npz").swaps == stats.swaps


@pytest.fixture(autouse=True)
def _all_ended() -> Iterator[None]:
    yield
    from rtloop.loop import registry

    assert not registry.loops
