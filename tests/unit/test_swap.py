"""A running loop goes on with the step of another object: what carries on, what each object then is, and every end."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import ConfigError, FunctionLoop, LoopGroup, PyLoop, StateError, SwapError
from rtloop.loop import swap

Ordinary = dict[str, Any]
#: A step in C that returns 0: pthread_equal(3) of two addresses that differ.
STEP = ctypes.cast(ctypes.CDLL(None).pthread_equal, ctypes.c_void_p).value
PATIENCE_S = 30


@pytest.fixture
def make(laws: ModuleType, ordinary: Ordinary) -> Callable[..., Any]:
    """Make a loop of 1 kHz; ``kind`` is a class of the module."""

    def make(kind: str = "Law", period: str = "1ms", **settings: Any) -> Any:
        return getattr(laws, kind)(period, **{**ordinary, **settings})

    return make


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def assert_conserved(stats: rtloop.Stats, *laws: Any) -> None:
    """No release is lost or run twice: cycles plus missed ones are the releases, and each cycle was one law's."""
    assert stats.cycles == sum(law.steps for law in laws)
    period, first, last = stats.settings["period_ns"], stats.records[0], stats.records[-1]
    over = (last["end"] - last["release"]) // period  # releases that the last cycle has missed
    assert (last["release"] - first["release"]) // period + 1 + over == len(stats.records) + stats.missed


# --- from one cycle to the next


def test_the_next_cycle_is_the_new_steps_and_nothing_is_lost(make: Any) -> None:
    former, new = make(), make(name="new")
    with former:
        wait_for(lambda: former.steps >= 5)
        cycle = former.swap(new)
        assert cycle == former.last + 1 == new.taken_index and former.releases == 1
        wait_for(lambda: new.steps >= 5)
    stats = former.stats
    assert new.first == cycle and new.gaps == former.gaps == 0
    assert new.total == former.steps + new.steps, "take_over has read the former's count"
    assert_conserved(stats, former, new)
    assert (former.enters, former.leaves, new.enters, new.leaves) == (1, 0, 0, 1)
    assert stats.swaps == ((cycle, "Law", "Law", None),) and new.takes == 1 and new.releases == 0


def test_take_over_is_told_the_first_cycle_of_the_new_step(make: Any) -> None:
    former, new = make(), make()
    former.simulate(cycles=20, execution="100us", swaps={7: new})
    assert (new.taken_index, new.taken_release) == (7, new.first_release)
    assert new.taken_start == new.taken_release - 1_000_000 + 100_000, "the end of the step before"
    assert new.taken_t == new.first_t == pytest.approx(0.007)


@pytest.mark.parametrize("kind", ["other class", "function", "python", "back from python"])
def test_steps_of_every_kind_replace_one_another(kind: str, make: Any, ordinary: Ordinary) -> None:
    calls: list[int] = []
    made = {
        "other class": lambda: make("Other"),
        "function": lambda: FunctionLoop(STEP, "1ms", **ordinary),
        "python": lambda: PyLoop(lambda cycle: calls.append(cycle.index), "1ms", **ordinary, stack_size="512K"),
    }
    loop = make()
    back = make("Other")
    back.is_alone = True
    with loop:
        cycle = loop.swap(made[kind.removeprefix("back from ")]())
        if "python" in kind:
            wait_for(lambda: len(calls) >= 3)
            assert calls == list(range(cycle, cycle + len(calls))) or loop.stats.missed
        last = loop.swap(back)
        wait_for(lambda: back.steps >= 3)
        assert threading.active_count() < 50
    if "python" in kind:
        assert calls[0] == cycle and calls[-1] == last - 1 and len(calls) == last - cycle
    assert back.first == last and back.leaves == 1 and loop.leaves == 0
    assert loop.stats.cycles == loop.steps + (last - cycle) + back.steps
    assert [swap.cycle for swap in loop.stats.swaps] == [cycle, last]


def test_a_python_loop_goes_on_with_a_compiled_step(make: Any, ordinary: Ordinary) -> None:
    calls: list[int] = []
    loop = PyLoop(lambda cycle: calls.append(cycle.index), "1ms", **ordinary)
    new = make("Other")
    new.is_alone = True
    with loop:
        wait_for(lambda: calls)
        cycle = loop.swap(new)
        wait_for(lambda: new.steps >= 3)
    assert calls[-1] == cycle - 1 and new.first == cycle and new.leaves == 1
    assert loop.stats.swaps[0].former == "<lambda>" and loop.stats.swaps[0].successor == "Other"


def test_the_exception_of_a_python_step_that_came_by_a_swap_is_raised(make: Any, ordinary: Ordinary) -> None:
    def step(cycle: Any) -> None:
        raise ZeroDivisionError("the new law divides by zero")

    loop = make()
    loop.start()
    loop.swap(PyLoop(step, "1ms", **ordinary, stack_size="512K"))
    with pytest.raises(ZeroDivisionError, match="the new law"):
        loop.join("30s")


def test_many_swaps_to_the_bit_in_virtual_time(make: Any) -> None:
    def run() -> tuple[Any, list[Any]]:
        loop = make(period="10kHz", name="arm")
        laws = [loop, *(make("Other" if k % 2 else "Law", period="10kHz") for k in range(1000))]
        swaps = {3 * (k + 1): law for k, law in enumerate(laws[1:])}
        stats = loop.simulate(cycles=4000, execution=lambda k: 120_000 if k % 500 == 7 else 20_000, swaps=swaps)
        return stats, laws

    (stats, laws), (again, _) = run(), run()
    assert stats == again and np.array_equal(stats.records, again.records)
    assert len(stats.swaps) == 1000 and [swap.cycle for swap in stats.swaps] == [3 * (k + 1) for k in range(1000)]
    assert laws[-1].total == 4000 and not any(law.gaps for law in laws)
    assert [law.leaves for law in laws] == [0] * 1000 + [1]
    assert_conserved(stats, *laws)
    plain = make(period="10kHz").simulate(cycles=4000, execution=lambda k: 120_000 if k % 500 == 7 else 20_000)
    assert np.array_equal(plain.records, stats.records) and plain.missed == stats.missed, "swaps cost no release"


def test_after_a_simulation_the_loop_has_its_own_step_again(make: Any) -> None:
    loop, new = make(), make()
    loop.simulate(cycles=10, swaps={4: new})
    assert (loop.steps, new.steps, loop.state, new.state) == (4, 6, "stopped", "new")
    loop.simulate(cycles=10)
    assert (loop.steps, new.steps) == (14, 6)
    new.simulate(cycles=5)
    assert new.steps == 11 and new.stats.swaps == ()


def test_a_refusal_ends_a_simulation(make: Any) -> None:
    loop, new = make(), make()
    new.take_code = -7
    with pytest.raises(SwapError, match="returned -7 before cycle 4") as caught:
        loop.simulate(cycles=10, swaps={4: new})
    assert caught.value.code == -7 and (loop.steps, loop.leaves, new.steps, new.leaves) == (4, 1, 0, 0)
    with pytest.raises(ConfigError, match="swaps=0 must be an int of at least 1"):
        loop.simulate(cycles=10, swaps={0: make()})
    with pytest.raises(TypeError, match="swaps: 3: None"):
        loop.simulate(cycles=10, swaps={3: None})


def test_take_over_may_move_the_grid(make: Any) -> None:
    loop, new = make(), make()
    new.shift_ns = 250_000
    stats = loop.simulate(cycles=10, swaps={5: new})
    intervals = np.diff(stats.records["release"])
    assert intervals.tolist() == [1_000_000] * 5 + [1_250_000] + [1_000_000] * 3


# --- both objects are handles of one loop


def test_both_objects_are_the_one_loop(make: Any) -> None:
    loop, new = make(name="arm"), make(name="new")
    loop.start()
    loop.swap(new)
    assert new.state == loop.state == "running" and new.name == "arm"
    assert new.settings is loop.settings and new.grants == loop.grants
    with pytest.raises(StateError, match="already running"):
        new.start()
    new.stop()
    assert loop.state == new.state == "stopped" and loop.stats == new.stats and new.leaves == 1


def test_the_next_start_is_with_the_new_step(make: Any) -> None:
    loop, new = make(), make()
    with loop:
        loop.swap(new)
    steps, taken = loop.steps, new.steps
    loop.run(cycles=5)
    assert loop.steps == steps and new.steps == taken + 5 and new.leaves == 2 and new.enters == 1
    assert loop.stats.swaps == ()


def test_a_step_that_was_replaced_can_come_back(make: Any) -> None:
    loop, first, second = make(), make(name="first"), make()
    with loop:
        loop.swap(first)
        loop.swap(second)
        assert (first.state, first.name, first.releases) == ("new", "first", 1)
        loop.swap(first)
        wait_for(lambda: first.last >= first.taken_index)
        assert first.state == "running" and second.state == "new"
    assert [first.leaves, second.leaves, first.takes] == [1, 0, 2]
    second.run(cycles=3)
    assert second.leaves == 1 and second.stats.cycles == 3, "it is a loop of its own"


def test_former_steps_are_freed(make: Any) -> None:
    loop = make()
    with loop:
        steps = [make() for _ in range(20)]
        for step in steps:
            loop.swap(step)
        kept = [weakref.ref(step) for step in steps[:-1]]
        del steps, step
        gc.collect()
        assert [one() for one in kept] == [None] * 19
    assert len(loop.stats.swaps) == 20


def test_released_is_called_when_the_loop_is_in_the_new_step(make: Any) -> None:
    loop, new = make(), make()
    seen: list[Any] = []
    loop.noted = lambda former: seen.append((former is loop, threading.get_ident(), loop.stats.swaps))
    with loop:
        cycle = loop.swap(new)
    assert seen == [(True, threading.get_ident(), ((cycle, "Law", "Law", None),))]


def test_an_exception_of_released_says_that_the_swap_is_made(make: Any) -> None:
    loop, new = make(), make()

    def fail(former: Any) -> None:
        raise ValueError("no")

    loop.noted = fail
    with loop:
        with pytest.raises(ValueError, match="no") as caught:
            loop.swap(new)
        assert "goes on with the new step since cycle" in caught.value.__notes__[0]
    assert new.leaves == 1


# --- refused


def test_a_refusal_leaves_the_former_step(make: Any) -> None:
    loop, new = make(name="arm"), make()
    new.take_code = -5
    with loop:
        with pytest.raises(SwapError, match=r"arm goes on with its former step: take_over\(\) of Law returned -5") as e:
            loop.swap(new)
        assert e.value.code == -5 and new.state == "new" and loop.stats.swaps == () and loop.releases == 0
        at = loop.steps
        wait_for(lambda: loop.steps > at)
        new.take_code = 0
        loop.swap(new)
        assert new.takes == 2
    assert loop.gaps == new.gaps == 0 and (loop.leaves, new.leaves) == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"period": "2ms"}, "its period is 2 ms, and the loop runs with 1 ms"),
        ({"clock": "boottime"}, "its clock is 'boottime', and the loop runs with 'monotonic'"),
        ({"flush_denormals": True}, "its flush_denormals is True"),
        ({"stack_size": "4M"}, "stack_size=4 MiB, and the thread's stack has 512 KiB"),
        ({"kind": "Paced"}, "it is paced by its own wait"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_by_name(settings: dict[str, Any], message: str, make: Any) -> None:
    loop, new = make(), make(**settings)
    with loop, pytest.raises(ConfigError, match=message):
        loop.swap(new)
    assert loop.stats.swaps == () and new.state == "new"


def test_what_has_no_step_to_give_is_refused(make: Any) -> None:
    loop, new = make(), make()
    with pytest.raises(StateError, match="has not been started: only a running loop"):
        loop.swap(new)
    with loop:
        with pytest.raises(TypeError, match="must be an RTLoop"):
            loop.swap("new")
        with pytest.raises(StateError, match="it has been started before, and is running"):
            loop.swap(loop)
        with make() as other, pytest.raises(StateError, match="it has been started before, and is running"):
            loop.swap(other)
        with pytest.raises(StateError, match="it has been started before, and is stopped"):
            loop.swap(other)
        new.close()
        with pytest.raises(StateError, match="is closed"):
            loop.swap(new)
        bare = type(new).__new__(type(new))
        with pytest.raises(StateError, match="did not call super"):
            loop.swap(bare)
    with pytest.raises(StateError, match="is stopped: only a running loop"):
        loop.swap(make())


def test_a_failing_setup_changes_nothing(make: Any, laws: ModuleType, ordinary: Ordinary) -> None:
    class Broken(laws.Law):  # type: ignore[name-defined, misc]
        def setup(self) -> None:
            raise OSError("no such device")

    new = Broken("1ms", **ordinary)
    with make() as loop:
        with pytest.raises(OSError, match="no such device"):
            loop.swap(new)
        assert new.state == "new"
        loop.swap(make())


def test_a_step_that_does_not_return_is_not_replaced(make: Any) -> None:
    loop, new = make(), make()
    loop.holds = True
    with loop:
        with pytest.raises(SwapError, match="present cycle has not ended within 12 ms, and nothing has changed") as e:
            loop.swap(new, timeout="10ms")
        assert e.value.code is None and new.state == "new" and new.takes == 0
        loop.holds = False
        cycle = loop.swap(new, timeout="30s")
    assert new.first in (cycle, -1) and loop.gaps == new.gaps == 0


def ask_until_taken(loop: Any, new: Any) -> str:
    """Ask for a swap whose take_over() does not return, until the loop's thread calls it; return the message."""
    while True:
        with pytest.raises(SwapError) as caught:
            loop.swap(new, timeout="1ms")
        if "nothing has changed" not in str(caught.value):  # else the machine has not let the thread run in time
            return str(caught.value)


def test_a_take_over_that_does_not_return_in_time_counts_when_it_does(make: Any) -> None:
    loop, new = make(), make()
    new.holds_take_over = True
    with loop:
        assert "has not returned in time. The swap is made when it returns" in ask_until_taken(loop, new)
        with pytest.raises(StateError, match="another swap"):
            loop.swap(make())
        new.holds_take_over = False
        wait_for(lambda: loop.stats.swaps)
        assert new.state == "running"
        loop.swap(make())
        assert loop.releases == new.releases == 1


def test_a_take_over_that_outlives_the_wait_and_the_run(make: Any) -> None:
    loop, new = make(), make()
    new.holds_take_over = True
    with loop:
        ask_until_taken(loop, new)
        threading.Timer(0.02, lambda: setattr(new, "holds_take_over", False)).start()
    assert (loop.leaves, new.leaves, loop.releases) == (0, 1, 1) and len(loop.stats.swaps) == 1
    assert new.state == "stopped"


def test_the_loops_own_thread_cannot_swap(make: Any, ordinary: Ordinary) -> None:
    new = PyLoop(lambda cycle: None, "1ms", **ordinary)
    loop = PyLoop(lambda cycle: loop.swap(new) and None, "1ms", **ordinary)
    with pytest.raises(StateError, match="runs on this very thread"):
        loop.run(cycles=3)


def test_swaps_from_several_threads_come_one_after_the_other_or_not_at_all(make: Any) -> None:
    loop = make()
    done, refused = [], []

    def swap() -> None:
        for _ in range(10):
            new = make()
            try:
                done.append((loop.swap(new), new))
            except StateError:
                refused.append(new)

    with loop:
        threads = [threading.Thread(target=swap) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    done.sort(key=lambda one: one[0])
    assert len(done) + len(refused) == 40 and len(loop.stats.swaps) == len(done) > 0
    assert sum(law.leaves for _, law in done) == 1 and not any(law.steps for law in refused)
    assert_conserved(loop.stats, loop, *(law for _, law in done))
    assert done[-1][1].total == loop.stats.cycles


# --- a swap that meets an end


def test_a_stop_that_meets_a_swap(make: Any) -> None:
    """Whichever comes first: the loop ends once, with leave() of the step that is in place."""
    for _ in range(30):
        loop, new = make(), make()
        loop.start()
        wait_for(lambda loop=loop: loop.steps)
        stopper = threading.Thread(target=loop.stop)
        stopper.start()
        try:
            loop.swap(new)
        except StateError:
            assert (loop.leaves, new.leaves, new.steps, new.state) == (1, 0, 0, "new")
        else:
            stopper.join()
            assert (loop.leaves, new.leaves) == (0, 1)
        stopper.join()
        assert_conserved(loop.stats, loop, new)


def test_a_new_step_that_fails_ends_the_loop(make: Any) -> None:
    loop, new = make(name="arm"), make()
    new.step_code, new.stop_at = -5, 20
    loop.start()
    loop.swap(new)
    with pytest.raises(rtloop.CallbackError, match=r"arm: step\(\) returned -5 in cycle \d+"):
        loop.join("30s")
    assert (loop.state, new.state, loop.leaves, new.leaves) == ("failed", "failed", 0, 1)


def test_a_loop_that_fails_before_the_swap(make: Any) -> None:
    loop, new = make(), make()
    loop.step_ns, loop.step_code, loop.stop_at = 50_000_000, -5, 0
    loop.start()
    with pytest.raises(StateError, match="is failed: only a running loop"):
        loop.swap(new)
    assert (loop.leaves, new.leaves, new.state) == (1, 0, "new")
    with pytest.raises(rtloop.CallbackError):
        loop.join()


@pytest.mark.filterwarnings("ignore:this process forks:rtloop.RTSetupWarning")
def test_a_forked_child_cannot_swap(make: Any) -> None:
    loop, new = make(), make()
    with loop:
        pid = os.fork()
        if pid == 0:
            try:
                loop.swap(new)
            except StateError as error:
                os._exit(0 if "loops do not survive a fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        loop.swap(new)
    assert new.leaves == 1


def test_ctrl_c_while_a_swap_waits(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    loop, new = make(), make()
    loop.holds = True
    with loop:
        with monkeypatch.context() as patch:
            patch.setattr(swap, "nap", interrupt)
            with pytest.raises(KeyboardInterrupt):
                loop.swap(new)
        assert loop.state == "running" and new.state == "new" and new.takes == 0
        loop.holds = False
        loop.swap(new, timeout="30s")
    assert (loop.leaves, new.leaves) == (0, 1)


# --- parameters and signals


def test_parameters_keep_their_values_by_name_and_type(make: Any) -> None:
    loop, new, third = make(), make(), make()
    loop.declare("kp", 1.0)
    loop.declare("only_here", 3.0)
    new.declare("kp", 9.0)
    third.declare("kp", 7, "i8")
    with loop:
        parameters = loop.parameters
        parameters["kp"] = 2.5
        cycle = loop.swap(new)
        assert dict(loop.parameters) == dict(parameters) == dict(new.parameters) == {"kp": 2.5} and new.kp == 2.5
        assert parameters.applied.cycle == cycle
        parameters["kp"] = 4
        wait_for(lambda: new.kp == 4)
        loop.swap(third)
        assert dict(parameters) == {"kp": 7}, "of another type"
        changes = loop.stats.parameter_changes
        assert [change.values for change in changes][-3:] == [{"kp": 2.5}, {"kp": 4.0}, {"kp": 7}]
        assert changes[-3].cycle == cycle and new.parameters["kp"] == 4.0
    assert [change.values for change in loop.stats.parameter_changes] == [change.values for change in changes]
    assert loop.parameters["kp"] == 7


def test_only_what_was_changed_keeps_its_value_if_asked_so(make: Any) -> None:
    loop, new, narrow, wide = make(), make(), make(), make()
    for law, value, limits in ((loop, 1.0, None), (new, 3.0, None), (narrow, 1.5, (0, 2)), (wide, 9.0, None)):
        law.declare("kp", value, limits=limits)
    with loop:
        loop.swap(new, keep="changed")
        assert loop.parameters["kp"] == new.kp == 3.0, "nobody has changed it: the new law's own value"
        loop.parameters["kp"] = 5
        loop.swap(narrow, keep="changed")
        assert loop.parameters["kp"] == narrow.kp == 1.5, "5 is outside of the new law's limits"
        loop.parameters["kp"] = 2
        loop.swap(wide, keep="changed")
        assert loop.parameters["kp"] == wide.kp == 2.0
        loop.swap(new, keep="changed")
        assert loop.parameters["kp"] == new.kp == 2.0, "it is still a changed one"
        with pytest.raises(ConfigError, match="keep='some' must be 'all' or 'changed'"):
            loop.swap(make(), keep="some")


def test_a_value_outside_of_the_new_limits_is_refused(make: Any) -> None:
    loop, new = make(), make()
    loop.declare("kp", 5.0)
    new.declare("kp", 1.0, limits=(0, 2))
    with loop:
        with pytest.raises(ConfigError, match=r"kp=5\.0 is outside of its limits"):
            loop.swap(new)
        assert new.state == "new" and new.parameters["kp"] == 1.0 and loop.parameters["kp"] == 5.0
        loop.parameters["kp"] = 2
        loop.swap(new)
        assert new.parameters["kp"] == 2


def test_a_refused_step_keeps_its_own_values(make: Any) -> None:
    loop, new = make(), make()
    loop.declare("kp", 5.0)
    new.declare("kp", 1.0)
    new.take_code = -1
    with loop:
        with pytest.raises(SwapError):
            loop.swap(new)
        assert new.parameters["kp"] == 1.0
        loop.parameters["kp"] = 6
        wait_for(lambda: loop.kp == 6)
    assert loop.stats.parameter_changes[-1].values == {"kp": 6.0}


def test_changes_while_swaps_are_made_are_not_lost(make: Any) -> None:
    loop = make()
    loop.declare()
    end = threading.Event()
    last = [0.0]

    def change() -> None:
        while not end.is_set():
            last[0] += 1
            loop.parameters["kp"] = last[0]

    with loop:
        thread = threading.Thread(target=change)
        thread.start()
        for _ in range(30):
            new = make()
            new.declare()
            loop.swap(new)
        end.set()
        thread.join()
        wait_for(lambda: loop.parameters.applied.values["kp"] == last[0] == new.kp)


@pytest.mark.parametrize("first", ["", "kp", "angle", "kp angle"])
@pytest.mark.parametrize("second", ["", "kp", "angle", "kp angle"])
def test_with_and_without_parameters_and_signals(first: str, second: str, make: Any) -> None:
    """The thread runs the code that its loop was started with, and the step gets its parameters all the same."""
    loop, new = make(), make("Other")
    for law, has in (loop, first), (new, second):
        if "kp" in has:
            law.declare("kp", 2.0)
        if "angle" in has:
            law.show()
    with loop:
        wait_for(lambda: loop.steps >= 2)
        cycle = loop.swap(new)
        wait_for(lambda: new.steps >= 2)
        if "kp" in second:
            new.parameters["kp"] = 8
            wait_for(lambda: new.kp == 8)
    assert new.leaves == 1 and new.others == new.steps
    if "angle" in second:
        samples = loop.signals.reader("oldest").read()
        assert samples["cycle"].tolist() == list(range(cycle, new.last + 1)) and samples["angle"][-1] == new.angle
    if "angle" in first:
        assert loop.last + 1 == cycle
    loop.run(cycles=3)  # and once more, from its start
    assert loop.parameters.get("kp") == (8 if "kp" in second else None)


def test_functions_share_their_data(ordinary: Ordinary) -> None:
    """The state of a step without a class is its data, which two loops may share."""
    data = np.zeros((), [("kp", "f8"), ("count", "i8")])

    def law(sign: int) -> PyLoop:
        def step(cycle: Any) -> None:
            data["count"] += sign

        return PyLoop(step, "1ms", data=data, parameters=("kp",), **ordinary)

    loop, new = law(1), law(-1)
    with loop:
        loop.parameters["kp"] = 3
        wait_for(lambda: data["count"] > 3)
        loop.swap(new)
        assert data["kp"] == 3
        wait_for(lambda: data["count"] < 0)
        loop.parameters["kp"] = 5
        wait_for(lambda: data["kp"] == 5)
    assert data["kp"] == 5 and loop.parameters["kp"] == 5


def test_other_processes_find_the_parameters_and_signals_of_the_new_step(make: Any) -> None:
    loop, new = make(name=f"arm-{os.getpid()}"), make("Other")
    loop.declare("kp", 2.0)
    new.declare("kp", 1.0)
    new.show()
    with loop, rtloop.connect(loop.name, os.getpid()) as before:
        before.parameters["kp"] = 3
        cycle = loop.swap(new)
        with rtloop.connect(loop.name, os.getpid()) as connection:
            assert dict(connection.parameters) == {"kp": 3.0}
            connection.parameters["kp"] = 4
            wait_for(lambda: new.kp == 4)
            wait_for(lambda: connection.signals.latest() is not None)
            assert connection.signals.latest()["cycle"] >= cycle
            assert "parameters" in [grant.name for grant in connection.stats.grants]


# --- groups, watchdogs, records


def test_a_loop_of_a_group(make: Any) -> None:
    a, b, new = make(name="a"), make(name="b"), make()
    with LoopGroup([a, b]) as group:
        wait_for(lambda: a.steps)
        cycle = a.swap(new)
        wait_for(lambda: new.steps >= 3)
        with pytest.raises(StateError, match=r"already running|is a loop of"):
            new.start()
    assert (a.leaves, b.leaves, new.leaves) == (0, 1, 1)
    assert [stats.swaps for stats in group.stats.values()] == [((cycle, "Law", "Law", None),), ()]


def test_the_watchdog_calls_safe_of_the_step_in_place(make: Any) -> None:
    a, new = make(name="a"), make()
    new.holds = True  # until safe() is called
    group = LoopGroup([a], watchdog="1s")
    group.start()
    wait_for(lambda: a.steps)
    a.swap(new)
    with pytest.raises(rtloop.WatchdogError):
        group.join()
    assert (a.safes, new.safes, a.leaves, new.leaves) == (0, 1, 0, 1)


def test_swaps_are_in_the_table_and_the_file(make: Any, tmp_path: Any) -> None:
    loop = make()
    stats = loop.simulate(cycles=20, swaps={5: make("Other"), 9: make()})
    assert "swaps" in str(stats) and "2, the last to Law, in place since cycle 9" in str(stats)
    stats.save(tmp_path / "run.npz")
    swaps = ((5, "Law", "Other", None), (9, "Other", "Law", None))
    assert rtloop.Stats.load(tmp_path / "run.npz").swaps == stats.swaps == swaps


def test_a_reset_and_a_swap_at_the_same_time(make: Any) -> None:
    loop = make()
    with loop:
        for _ in range(10):
            loop.reset_stats()
            loop.swap(make())
        wait_for(lambda: loop.stats.cycles > 0)
        assert len(loop.stats.swaps) == 10


@pytest.fixture(autouse=True)
def _all_ended() -> Iterator[None]:
    yield
    from rtloop.loop import registry

    assert not registry.loops


def test_a_run_with_swaps_is_replayed_to_the_bit(laws: ModuleType, ordinary: dict[str, Any]) -> None:
    def step(name: str = "Law") -> Any:
        law = getattr(laws, name)("1ms", **ordinary)
        law.declare()
        return law

    steps = [step(), step("Other"), step()]
    law = steps[0]
    with law:
        for turn, successor in enumerate([*steps[1:], None]):
            for i in range(5):
                law.parameters.update(kp=turn + 1 / (i + 3))
                assert law.parameters.wait(60)
                wait_for(lambda seen=law.stats.cycles: law.stats.cycles > seen)
            if successor is not None:
                law.parameters.update(kp=turn / 7)  # the former step may not see it
                law.swap(successor)
    stats = law.stats
    assert len(stats.swaps) == 2 and len(stats.parameter_changes) >= 18

    again = [step(), step("Other"), step()]
    swaps = dict(zip([swap.cycle for swap in stats.swaps], again[1:], strict=True))
    simulated = again[0].simulate(cycles=stats.cycles, parameters=stats.parameter_changes, swaps=swaps)
    assert simulated.parameter_changes == stats.parameter_changes and simulated.cycles == stats.cycles
    for one, other in zip(steps, again, strict=True):
        assert (one.angle, one.steps, one.first, one.last) == (other.angle, other.steps, other.first, other.last)

    without = [change for change in stats.parameter_changes if change.cycle != stats.swaps[1].cycle]
    again = [step(), step("Other"), step()]
    swaps = dict(zip([swap.cycle for swap in stats.swaps], again[1:], strict=True))
    with pytest.raises(ConfigError, match=f"no change begins the step of cycle {stats.swaps[1].cycle}"):
        again[0].simulate(cycles=stats.cycles, parameters=without, swaps=swaps)
    assert again[0].state != "running" and again[2].state == "new"


def test_a_writer_that_was_stopped_does_not_keep_the_former_step(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, name: str) -> Any:
        raise StateError("another process has been writing them for 2 s")

    loop, second, third = make(), make(), make()
    for law in (loop, second, third):
        law.declare()
    with loop:
        loop.swap(second)
        monkeypatch.setattr("rtloop.live.parameter_set.write_lock", refuse)
        loop.swap(third)
        assert (loop.releases, second.releases, second.state) == (1, 1, "new")
        monkeypatch.undo()
        loop.swap(second)
        assert (second.state, third.releases) == ("running", 1)


# --- signal handlers, which run on the main thread between any two instructions of Python

INTERRUPTED = """
import signal, threading
import rtloop
from rtloop.loop import swap

def make():
    return rtloop.PyLoop(lambda cycle: None, "1ms", policy="other", lock_memory="off", dma_latency=None)

def interrupt_in(name, is_before):
    method = getattr(swap.StepChange, name)
    def interrupted(change):
        if not is_before:
            method(change)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        has_come.wait(0.2)  # if the handler runs later, all is well in any case
        if is_before:
            method(change)
    setattr(swap.StepChange, name, interrupted)
    return method

has_come = threading.Event()
loop, new = make(), make()
"""


@pytest.mark.parametrize("trial", [None, "1h"])
def test_a_signal_handler_may_wait_for_the_end_of_a_loop_that_is_being_swapped(script: Any, trial: str | None) -> None:
    """Whoever holds the loop's lock meanwhile is not the main thread: the end of the loop needs the lock."""
    done = script(INTERRUPTED + f"""
def end(number, frame):
    has_come.set()
    loop.stop("60s")

signal.signal(signal.SIGUSR1, end)
interrupt_in("_commit", True)
loop.start()
cycle = loop.swap(new, trial={trial!r}, revert_on=())
print(loop.state, [one.cycle for one in loop.stats.swaps] == [cycle])
""")  # fmt: skip
    assert done.stdout == "stopped True\n", done.stderr


def test_a_handler_that_raises_while_a_swap_is_prepared_leaves_both_loops_as_they_were(script: Any) -> None:
    done = script(INTERRUPTED + """
def refuse(number, frame):
    has_come.set()
    raise InterruptedError

signal.signal(signal.SIGUSR1, refuse)
stage = interrupt_in("stage", False)
loop.start()
try:
    loop.swap(new)
except InterruptedError:
    print(loop.state, new.state, len(loop.stats.swaps))
swap.StepChange.stage = stage
loop.swap(new)
loop.stop("60s")
print(loop.state, new.state, len(loop.stats.swaps))
""")  # fmt: skip
    assert done.stdout.splitlines() == ["running new 0", "stopped stopped 1"], done.stderr
