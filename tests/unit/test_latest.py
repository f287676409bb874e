"""Latest: readers get the newest value, whole, and learn whether it is new."""

from __future__ import annotations

import os
import threading
import time
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import Latest

GAINS = np.dtype([("p", "f8"), ("limits", "f4", 2), ("mode", "u1")])


def test_the_newest_value_is_read_and_what_was_between_is_gone() -> None:
    latest = Latest("f8")
    assert (latest.read(), latest.is_new, latest.written) == (0.0, False, 0)
    for value in (1.0, 2.0, 3.0):
        latest.write(value)
    assert latest.is_new
    assert latest.read() == 3.0
    assert not latest.is_new
    assert latest.read() == 3.0, "it stays"
    assert latest.written == 3


def test_a_struct_is_a_value_and_what_was_read_is_a_copy() -> None:
    latest = Latest(GAINS)
    latest.write((1.5, (-1, 1), 7))
    value = latest.read()
    latest.write(np.array((2.5, (-2, 2), 8), GAINS))
    latest.write(np.array([(3.5, (-3, 3), 9)], GAINS))
    assert value["p"] == 1.5 and value["limits"].tolist() == [-1, 1] and value["mode"] == 7
    assert latest.read()["p"] == 3.5


def test_a_struct_may_be_written_as_a_dict_of_all_its_fields() -> None:
    gains = Latest([("p", "f8"), ("limit", [("low", "f8"), ("high", "f8")]), ("k", "i4", 2)])
    gains.write({"k": [3, 4], "p": 1.5, "limit": {"high": 2, "low": -2}})
    assert gains.read().item() == (1.5, (-2.0, 2.0), pytest.approx([3, 4]))
    for wrong in ({"p": 1.5}, {"p": 1, "limit": (1, 2), "k": [1, 2], "x": 1}):
        with pytest.raises(rtloop.ConfigError, match="give each of its fields: p, limit, k"):
            gains.write(wrong)
    with pytest.raises(rtloop.ConfigError, match="whole number"):
        gains.write({"p": 1, "limit": (1, 2), "k": [1.5, 2]})
    assert gains.read()["p"] == 1.5


def test_cython_reads_what_python_writes_and_the_other_way_round(exchanges: ModuleType) -> None:
    latest = Latest("f8")
    assert exchanges.read(latest) == (False, 0.0)
    latest.write(4.5)
    assert exchanges.read(latest) == (True, 4.5)
    assert exchanges.read(latest) == (False, 4.5)
    exchanges.write(latest, 5.5)
    exchanges.write(latest, 6.5)
    assert latest.read() == 6.5


@pytest.mark.parametrize(("value", "words"), [([1.0, 2.0], "2 values at once"), ("x", "not an item"), ([], "0 values")])
def test_what_is_no_value_is_refused_and_changes_nothing(value: Any, words: str) -> None:
    latest = Latest("f8")
    latest.write(1)
    with pytest.raises(rtloop.ConfigError, match=words):
        latest.write(value)
    assert latest.read() == 1


@pytest.mark.parametrize("dtype", ["O", "V0", ("f8", 3), "nonsense"])
def test_a_type_that_can_never_work_is_refused(dtype: Any) -> None:
    with pytest.raises(rtloop.ConfigError, match="dtype="):
        Latest(dtype)


@pytest.mark.usefixtures("wiped_children")
def test_a_forked_child_has_none() -> None:
    latest = Latest("f8")
    latest.write(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            latest.read()
        except rtloop.StateError:
            os._exit(0 if not latest.is_locked else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert latest.read() == 1


def test_one_that_was_never_made_says_so() -> None:
    latest = Latest.__new__(Latest)
    for use in (latest.read, lambda: latest.write(1), lambda: latest.is_new):
        with pytest.raises(rtloop.StateError, match="never made"):
            use()
    made = Latest("f8")
    with pytest.raises(rtloop.StateError, match="made once"):
        made.__init__("f8")  # type: ignore[misc]


def test_values_only_grow_between_two_threads() -> None:
    latest, count = Latest([("n", "u8"), ("copies", "u8", 30)]), 5_000

    def produce() -> None:
        for i in range(1, count + 1):
            latest.write((i, (i,) * 30))

    thread = threading.Thread(target=produce)
    thread.start()
    before = 0
    while before < count:
        value = latest.read()
        assert value["n"] >= before
        assert np.all(value["copies"] == value["n"])
        before = int(value["n"])
    thread.join()


def test_a_loop_reads_whole_parameters(exchanges: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = exchanges.Checker("2kHz", **ordinary)
    value = np.zeros((), loop.parameters.dtype)
    with loop:
        for i in range(1, 20_001):
            value["values"] = i * np.array([1, 1.25, 1.5, 1.75, 3, 5])  # of equal ones the exclusive or is 0
            value["check"] = np.bitwise_xor.reduce(value["values"].view("u8"))
            loop.parameters.write(value)
            if i == 1:
                while not loop.fresh:
                    assert loop.state == "running"
        while loop.last != 20_000:
            assert loop.state == "running"
    assert loop.torn == 0
    assert loop.fresh >= 2


def test_the_reader_knows_how_old_the_value_is_that_it_has_read(exchanges: ModuleType) -> None:
    latest = Latest("f8")
    never = 2**63 - 1
    assert exchanges.age(latest, 10**9, 1000) == (never, never), "nothing was written"
    exchanges.write_at(latest, 1.5, 5000)
    assert exchanges.read(latest) == (True, 1.5)
    assert exchanges.age(latest, 7001, 1000) == (2001, 3)
    assert exchanges.age(latest, 4000, 1000) == (0, 0), "a clock that is a little behind does not make it young"
    exchanges.write_at(latest, 2.5, 9000)
    assert exchanges.age(latest, 9000, 1000) == (4000, 4), "of the value that was read, not of the newest"
    exchanges.write(latest, 3.5)
    assert exchanges.read(latest) == (True, 3.5)
    assert exchanges.age(latest, 9000, 1000)[0] >= 4000, "without a time of its own it never seems younger than it is"


@pytest.mark.parametrize("clock", ["monotonic", "boottime", "tai", "realtime"])
def test_a_value_from_python_is_stamped_on_the_clock_of_the_loop(exchanges: ModuleType, clock: str) -> None:
    latest = Latest("f8", clock=clock)
    number = getattr(time, f"CLOCK_{clock.upper()}")
    assert (latest.clock, latest.age_ns) == (clock, None)
    before = time.clock_gettime_ns(number)
    latest.write(1.0)
    after = time.clock_gettime_ns(number)
    assert exchanges.read(latest) == (True, 1.0)
    later = after + 10**9
    assert later - after <= exchanges.age(latest, later, 10**6)[0] <= later - before
    assert 0 <= latest.age_ns <= time.clock_gettime_ns(number) - before


def test_an_unknown_clock_is_refused() -> None:
    with pytest.raises(rtloop.ConfigError, match="clock='utc' must be one of monotonic, boottime, tai, realtime"):
        Latest("f8", clock="utc")
