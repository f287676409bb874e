"""Parameters of a loop: declared once, changed from any thread, all before the same step."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rtloop_test_waiting import wait_until

import rtloop
from rtloop.live.declared_parameters import TYPES, Parameter


def test_a_value_is_in_the_field_before_the_run_and_in_it(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", **ordinary)
    assert (loop.a, list(loop.gains), loop.mode) == (1.0, [1, 2, 3], 0)
    assert dict(loop.parameters) | {"gains": 0} == {"a": 1.0, "b": 1.0, "gains": 0, "mode": 0}
    loop.parameters["mode"] = 2
    assert (loop.mode, loop.parameters["mode"], loop.parameters.applied) == (2, 2, None)
    with loop:
        loop.parameters.update(a=5, b=5)
        assert loop.parameters["a"] == 5.0
        assert loop.parameters.wait(60)
        wait_until(lambda: loop.a == 5, "the loop never took it")
        applied = loop.parameters.applied
        assert applied.values["a"] == applied.values["b"] == 5.0 and applied.cycle >= 0
        loop.parameters["gains"] = np.array([4.0, 5.0, 6.0])
        loop.parameters.wait(60)
    assert list(loop.gains) == [4, 5, 6] and loop.parameters["gains"].tolist() == [4, 5, 6]
    assert loop.torn == 0
    loop.run(cycles=3)
    assert (loop.a, loop.mode) == (5, 2), "the values of one run are those of the next"


def test_changes_of_several_threads_are_whole_and_the_last_one_wins(
    tuned: ModuleType, ordinary: dict[str, Any]
) -> None:
    loop = tuned.Tuned("200us", **ordinary)

    def change(first: int) -> None:
        for i in range(300):
            loop.parameters.update(a=first + i, b=first + i)

    with loop:
        threads = [threading.Thread(target=change, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        loop.parameters.update(a=7, b=7, mode=1)
        assert loop.parameters.wait(60)
    assert (loop.torn, loop.a, loop.mode) == (0, 7, 1)
    stats = loop.stats
    assert stats.refused_parameter_sets == 0 and stats.lost_parameter_changes == 0
    first, *changes = stats.parameter_changes
    assert first.cycle == 0 and set(first.values) == {"a", "b", "gains", "mode"}
    assert all(change.values["a"] == change.values["b"] for change in changes if "a" in change.values)
    assert [change.cycle for change in changes] == sorted(change.cycle for change in changes)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("a", -1, "outside of its limits, 0.0 to 1000.0 V/rad"), ("a", float("nan"), "not finite"),
        ("a", float("inf"), "not finite"), ("a", "5", "not a number"), ("a", [1.0], "single number"),
        ("mode", 4, "outside of its limits, 0 to 3"), ("mode", 1.5, "whole number"), ("mode", 2**40, "out of bounds"),
        ("gains", 1.0, r"shape \(3,\)"), ("gains", [1, 2], r"shape \(3,\)"), ("gains", [1, 2, float("nan")], "finite"),
        ("a", None, "not"), ("a", object(), "not"),
    ],
)  # fmt: skip
def test_a_value_that_is_refused_changes_nothing(
    tuned: ModuleType, ordinary: dict[str, Any], name: str, value: Any, words: str
) -> None:
    loop = tuned.Tuned("1ms", **ordinary)
    before = repr(loop.parameters)
    with pytest.raises(rtloop.ConfigError, match=words):
        loop.parameters.update({"b": 3, name: value})
    assert repr(loop.parameters) == before
    with loop:
        with pytest.raises(rtloop.ConfigError, match=words):
            loop.parameters.update({"b": 3, name: value})
        assert repr(loop.parameters) == before


def test_an_unknown_name_is_a_key_error(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", name="arm", **ordinary)
    for act in (lambda: loop.parameters["kx"], lambda: loop.parameters.update(a=5, kx=1)):
        with pytest.raises(KeyError, match="arm has no parameter 'kx'; its parameters are a, b, gains, mode"):
            act()
    assert loop.a == 1
    plain = rtloop.RTLoop("1ms", **ordinary)
    assert dict(plain.parameters) == {}
    with pytest.raises(KeyError, match="it has none"):
        plain.parameters["a"] = 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a",), "another parameter"), (("",), "identifier"), (("k p",), "identifier"), ((5,), "identifier"),
        (("x" * 65,), "identifier"), (("x", 0, "S4"), "dtype"), (("x", 0, ">f8"), "byte order"),
        (("x", 0, "c16"), "dtype"), (("x", 0, "f2"), "dtype"), (("x", 0, "nonsense"), "dtype"),
        (("x", 0, [("y", "f8")]), "dtype"), (("x", [], ("f8", (0,))), "no elements"),
        (("x", 0.0, "f8", True), "address"),
        (("x", float("nan")), "not finite"), (("x", 300, "u1"), "out of bounds"),
        (("x", np.zeros(9000), ("f8", (9000,))), "Latest"),
    ],
)  # fmt: skip
def test_what_is_no_parameter_is_refused(
    tuned: ModuleType, ordinary: dict[str, Any], arguments: tuple[Any, ...], words: str
) -> None:
    loop = tuned.Tuned("1ms", **ordinary)
    with pytest.raises(rtloop.ConfigError, match=words):
        loop.declare(*arguments)
    assert len(loop.parameters) == 4


@pytest.mark.parametrize(
    ("limits", "dtype", "words"),
    [
        ((2, 1), "f8", "above"), ((float("nan"), 1), "f8", "finite"), ((1, 2), "f8", "outside"),
        ((-1, 5), "u1", "low=-1"), ((0, 1.5), "i4", "high=1.5"), ((0, 1), "?", "bool"), (("0", 1), "f8", "low='0'"),
    ],
)  # fmt: skip
def test_limits_that_cannot_work(
    tuned: ModuleType, ordinary: dict[str, Any], limits: tuple[Any, Any], dtype: str, words: str
) -> None:
    loop = tuned.Tuned("1ms", **ordinary)
    declaration = loop.declare("x", False if dtype == "?" else 0, dtype)
    with pytest.raises(rtloop.ConfigError, match=words):
        declaration.limits(*limits)


def test_limits_of_a_short_float_are_values_of_it(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", **ordinary)
    loop.declare("x", 0.05, "f4").limits(None, 0.1).unit("1")
    loop.parameters["x"] = 0.1
    assert loop.parameters["x"] == float(np.float32(0.1))
    described = loop.parameters.declared["x"]
    assert (described.kind, described.shape, described.low, described.unit) == ("f4", (), None, "1")
    with pytest.raises(rtloop.ConfigError, match="above its limit"):
        loop.parameters["x"] = 0.11


@pytest.mark.parametrize("kind", TYPES)
def test_a_plain_number_is_packed_as_numpy_would_without_an_array(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = np.dtype(kind)
    one = Parameter("x", dtype, (), 0)
    low, high = one.bounds
    values = {"b": [False, True], "f": [0.1, -0.0, 1e-310, low, high]}.get(dtype.kind, [low, 0, 1, high])
    with monkeypatch.context() as patch:
        patch.setattr("rtloop.live.declared_parameters.as_items", None)
        assert [one.pack(value) for value in values] == [np.array(value, dtype).tobytes() for value in values]
        limited = one._replace(low=values[1], high=values[1])
        assert limited.pack(values[1]) == one.pack(values[1])
    for value in {"b": [2, 0.5], "f": [np.inf, -np.inf, np.nan, "1"]}.get(dtype.kind, [low - 1, high + 1, 0.5, 1e300]):
        with pytest.raises(rtloop.ConfigError, match="x="):
            one.pack(value)
    if dtype.kind != "b":
        with pytest.raises(rtloop.ConfigError, match="outside of its limits"):
            limited.pack(values[-1])


def test_nothing_is_declared_while_the_loop_runs(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", name="arm", **ordinary)
    declaration = loop.declare("x")
    with loop:
        with pytest.raises(rtloop.StateError, match="'y' cannot be declared now, because arm is running"):
            loop.declare("y")
        with pytest.raises(rtloop.StateError, match="'x' cannot be declared now, because arm is running"):
            declaration.limits(0, 1)


def test_setup_declares_anew_in_every_run(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.DeclaredInSetup("1ms", **ordinary)
    assert len(loop.parameters) == 0
    loop.run(cycles=2)
    loop.parameters["kp"] = 3
    stats = loop.run(cycles=2)
    assert loop.kp == 3 and stats.parameter_changes[0].values == {"kp": 3.0}


def test_each_type_of_number(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Every("1ms", **ordinary)
    low = {f"i{n}": -(2 ** (8 * n - 1)) for n in (1, 2, 4, 8)} | {f"u{n}": 0 for n in (1, 2, 4, 8)}
    high = {f"i{n}": 2 ** (8 * n - 1) - 1 for n in (1, 2, 4, 8)} | {f"u{n}": 2 ** (8 * n) - 1 for n in (1, 2, 4, 8)}
    reals = {"f4": float(np.float32(1.1)), "f8": -1.7976931348623157e308, "flag": True}
    with loop:
        for values in (high, low, high | reals):
            loop.parameters.update(values | {"table": [[1, 2, 3], [4, 5, -6]]})
            assert loop.parameters.wait(60)
            applied = loop.parameters.applied
            assert {name: applied.values[name] for name in values} == values
            assert {name: loop.parameters[name] for name in values} == values
        fields = loop.fields()
    assert {name: fields[name] for name in values} == values and fields["table"] == [[1, 2, 3], [4, 5, -6]]
    for name in low:
        for value in (low[name] - 1, high[name] + 1):
            with pytest.raises(rtloop.ConfigError, match=name):
                loop.parameters[name] = value
    for value in (2, 0.5, "yes"):
        with pytest.raises(rtloop.ConfigError, match="flag"):
            loop.parameters["flag"] = value


def test_every_kind_of_number_and_of_mapping_sets_a_parameter(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", **ordinary)
    for value in (Fraction(5, 2), Decimal("2.5"), np.float32(2.5), np.array(2.5)):
        loop.parameters["a"] = 0
        loop.parameters["a"] = value
        assert loop.a == 2.5
    loop.parameters.update([("a", 3), ("b", 4)], mode=1)
    loop.parameters.update(iter([("a", 5)]))
    assert {name: loop.parameters[name] for name in ("a", "b", "mode")} == {"a": 5, "b": 4, "mode": 1}


def test_a_request_that_the_step_takes_back_comes_once(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Resetting("1ms", **ordinary)
    with loop:
        loop.parameters["request"] = 1
        assert loop.parameters.wait(60)
        loop.parameters["other"] = 5  # a change of another one does not repeat it
        assert loop.parameters.wait(60)
        wait_until(lambda: loop.seen, "never seen")
    assert loop.seen == 1 and loop.other == 5


def test_a_run_with_twenty_live_changes_is_replayed_to_the_bit(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", **ordinary)
    loop.parameters.update(a=0.1, b=0.1)
    with loop:
        for i in range(20):
            loop.parameters.update(a=i / 7, b=i / 7, gains=[i, 1 / (i + 1), -i], mode=i % 4)
            assert loop.parameters.wait(60)
            wait_until(lambda seen=loop.cycles: loop.cycles > seen, "no cycle")
    stats = loop.stats
    assert len(stats.parameter_changes) == 21 and stats.parameter_changes[0].values["a"] == 0.1
    assert all(change.pid and change.host and change.program for change in stats.parameter_changes)

    again = tuned.Tuned("1ms", **ordinary)
    simulated = again.simulate(cycles=stats.cycles, parameters=stats.parameter_changes)
    assert (again.sum, again.cycles, again.a) == (loop.sum, loop.cycles, loop.a)
    assert simulated.parameter_changes == stats.parameter_changes

    other = tuned.Tuned("1ms", **ordinary)
    (figures,) = rtloop.simulate([other], "1s", parameters={other: stats.parameter_changes})
    assert figures.parameter_changes == stats.parameter_changes


def test_a_record_is_kept_in_a_file_of_stats(tuned: ModuleType, ordinary: dict[str, Any], tmp_path: Any) -> None:
    loop = tuned.Every("1ms", **ordinary)
    with loop:
        loop.parameters.update(u8=2**64 - 1, i8=-(2**63), f8=0.1, f4=0.1, flag=True, table=[[1, 2, 3], [4, 5, 6]])
        assert loop.parameters.wait(60)
    stats = loop.stats
    loaded = rtloop.Stats.load(stats.save(tmp_path / "run"))
    assert loaded == stats and loaded.parameter_changes == stats.parameter_changes
    again = tuned.Every("1ms", **ordinary)
    again.simulate(cycles=stats.cycles + 1, parameters=loaded.parameter_changes)
    assert again.fields() == loop.fields()


def test_a_record_that_cannot_be_replayed_is_refused(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", **ordinary)
    loop.run(cycles=1)
    first = loop.stats.parameter_changes[0]
    for changes, words in (
        ([first._replace(values={"a": 1.0})], "the earliest ones were lost"),
        ([first, first._replace(values={"a": -1.0})], "outside"),
    ):
        with pytest.raises(rtloop.ConfigError, match=words):
            loop.simulate(cycles=2, parameters=changes)
    with pytest.raises(KeyError, match="no parameter 'x'"):
        loop.simulate(cycles=2, parameters=[first, first._replace(values={"x": 1.0})])
    assert loop.simulate(cycles=2, parameters=[first]).cycles == 2
    with pytest.raises(TypeError, match="dict from one of the loops"):
        rtloop.simulate([loop], parameters=[first])


def test_the_record_is_bounded_and_tells_what_is_lost(tuned: ModuleType) -> None:
    """In virtual time, where each cycle takes over one set."""
    loop = tuned.Tuned("1ms")

    def change(cycle: rtloop.Cycle) -> None:
        loop.parameters.update(a=cycle.index % 100, b=cycle.index % 100)

    stats = loop.simulate(cycles=5000, plant=change)
    kept = len(stats.parameter_changes)
    assert loop.torn == 0 and 4000 < kept + 1 <= 4096 and kept + stats.lost_parameter_changes == 5001
    assert stats.parameter_changes[-1].cycle == 4999


def test_fields_of_data_are_parameters_of_a_python_loop(ordinary: dict[str, Any]) -> None:
    data = np.zeros((), [("kp", "f8"), ("mode", "u1"), ("seen", "f8")])
    data["kp"] = 2

    def step(cycle: rtloop.Cycle) -> None:
        data["seen"] = data["kp"]

    loop = rtloop.PyLoop(step, "2ms", data=data, parameters={"kp": (0, 10, "V"), "mode": (0, 3)}, **ordinary)
    assert dict(loop.parameters) == {"kp": 2.0, "mode": 0} and loop.data is data
    with loop:
        loop.parameters["kp"] = 3
        wait_until(lambda: data["seen"] == 3, "never used")
        with pytest.raises(rtloop.ConfigError, match=r"kp=11 is outside of its limits, 0\.0 to 10\.0 V"):
            loop.parameters["kp"] = 11


@pytest.mark.parametrize(
    ("data", "parameters", "words"),
    [
        (None, ("kp",), "one struct"), (np.zeros(3), ("kp",), "one struct"),
        (np.zeros(2, [("kp", "f8")]), ("kp",), "one"), (np.zeros((), [("kp", "f8")]), ("ki",), "no field 'ki'"),
        (np.zeros((), [("kp", "f8")]), (5,), "names of fields"), (np.zeros((), [("kp", "S3")]), ("kp",), "dtype"),
        (np.zeros((), [("kp", "f8")]), {"kp": 5}, "low, high"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be_parameters(data: Any, parameters: Any, words: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=words):
        rtloop.PyLoop(lambda cycle: None, "2ms", data=data, parameters=parameters)


def test_a_group_has_the_parameters_of_its_loops(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    arm, leg = (tuned.Tuned("1ms", name=name, **ordinary) for name in ("arm", "leg"))
    group = rtloop.LoopGroup([arm, leg])
    assert list(group.parameters)[:5] == ["arm.a", "arm.b", "arm.gains", "arm.mode", "leg.a"]
    group.parameters.update({"arm.a": 2, "arm.b": 2, "leg.mode": 1})
    with group:
        group.parameters["leg.mode"] = 3
        assert leg.parameters.wait(60) and group.parameters["leg.mode"] == 3
        with pytest.raises(rtloop.ConfigError, match="outside"):
            group.parameters.update({"arm.a": 5, "arm.b": 5, "leg.mode": 4})
        with pytest.raises(KeyError, match=r"no parameter 'hand\.a'"):
            group.parameters["hand.a"] = 1
    assert (arm.a, leg.mode, arm.torn) == (2, 3, 0)


def test_a_mapping_holds_its_loop(tuned: ModuleType) -> None:
    """A change outside of a run is written to the loop's fields, which must still be there."""
    loop = tuned.Tuned("1ms")
    parameters, kept = loop.parameters, weakref.ref(loop)
    del loop
    gc.collect()
    held = kept()
    assert held is not None
    parameters["a"] = 5
    assert held.a == 5
    del held, parameters
    gc.collect()
    assert kept() is None


def test_a_handler_that_stops_the_loop_may_interrupt_a_change(script: Callable[..., Any]) -> None:
    """The interrupted change holds the lock of the parameters, which the end of the run needs as well."""
    done = script("""
        import os, signal, threading
        import numpy as np, rtloop
        quiet = dict(strict=False, policy="other", lock_memory="off", dma_latency=None)
        for _ in range(20):
            data, stopped = np.zeros((), [("kp", "f8")]), []
            loop = rtloop.PyLoop(lambda cycle: None, "1ms", data=data, parameters=["kp"], **quiet)
            signal.signal(signal.SIGUSR1, lambda number, frame: (loop.stop(), stopped.append(loop.state)))
            loop.start()
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            kp = 0.0
            while not stopped:
                kp += 1.0
                loop.parameters["kp"] = kp
            assert stopped == ["stopped"] and loop.parameters["kp"] == kp, (stopped, kp)
    """)
    assert done.returncode == 0, done.stderr
