"""Rings from Python: items arrive unchanged, a full ring drops and counts them, views are in place and safe."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
import tracemalloc
import warnings
import weakref
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import Ring

RECORD = np.dtype([("t", "f8"), ("axis", "f4", 3), ("n", "i2")])


def test_items_come_out_in_the_order_in_which_they_went_in() -> None:
    ring = Ring("i4", 5)
    assert (ring.capacity, len(ring), ring.dtype, bool(ring)) == (5, 0, np.int32, True)
    assert ring.push(1) == 1
    assert ring.push([2, 3]) == 2
    assert ring.push(np.array([4], "i4")) == 1
    assert len(ring) == 4
    assert ring.pop() == 1
    assert ring.drain(2).tolist() == [2, 3]
    assert ring.drain().tolist() == [4]
    assert ring.pop() is None
    assert ring.drain().shape == (0,)


def test_a_struct_with_an_array_in_it_is_an_item() -> None:
    ring = Ring(RECORD, 3)
    ring.push((0.5, (1, 2, 3), -7))
    ring.push(np.array([(1.5, (4, 5, 6), 8)], RECORD))
    first = ring.pop()
    assert first["t"] == 0.5 and first["axis"].tolist() == [1, 2, 3] and first["n"] == -7
    rest = ring.drain()
    assert rest.dtype == RECORD and rest["axis"].tolist() == [[4, 5, 6]]


def test_an_array_of_the_very_dtype_arrives_whatever_its_memory_is_like() -> None:
    ring = Ring("i8", 8)
    numbers = np.arange(8)
    fixed = read_only(numbers)
    for given in (numbers[::2], numbers[::-1], fixed, np.ma.masked_array(numbers, numbers > 3), numbers.view()):
        ring.push(given)
        assert ring.drain().tolist() == np.asarray(given).tolist()
    ring.push(numbers)
    numbers[:] = -1
    assert ring.drain().tolist() == list(range(8)), "the ring has copies"


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    fixed = array.copy()
    fixed.flags.writeable = False
    return fixed


def test_an_array_of_the_very_dtype_is_copied_once() -> None:
    dtype = np.dtype([("image", "u1", (1 << 20,))])
    ring, latest = Ring(dtype, 1), rtloop.Latest(dtype)
    item = np.zeros(1, dtype)
    tracemalloc.start()
    try:
        ring.push(item)
        latest.write(item)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 19, "as NumPy tells tracemalloc, nothing of the size of an item was allocated"


def test_a_full_ring_drops_the_newest_and_counts() -> None:
    ring = Ring("i8", 3)
    assert [ring.push(i) for i in range(5)] == [1, 1, 1, 0, 0]
    assert (ring.dropped, ring.high_water) == (2, 3)
    assert ring.pop() == 0
    assert ring.push([10, 11, 12]) == 1, "there is room for one"
    assert (ring.dropped, ring.drain().tolist()) == (4, [1, 2, 10])


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 8, 9, 100])
def test_any_order_of_calls_is_as_that_of_a_bounded_deque(capacity: int, exchanges: ModuleType) -> None:
    """Random calls, of Python's methods and Cython's, many times around, against a model."""
    rng = random.Random(capacity)
    ring, model, count, dropped, high = Ring("i8", capacity), deque[int](), 0, 0, 0
    for _ in range(3000):
        wanted = rng.randrange(1, 2 * capacity + 2)
        choice = rng.randrange(8)
        if choice < 4:
            items = list(range(count, count + (1 if choice == 0 else wanted)))
            count += len(items)
            room = capacity - len(model)
            fits = items[:room]
            if choice == 0:
                assert exchanges.push(ring, items[0]) == bool(fits)
            elif choice == 1:
                assert exchanges.push_many(ring, np.array(items)) == len(fits)
            else:
                assert ring.push(items) == len(fits)
            model.extend(fits)
            dropped += len(items) - len(fits)
            high = max(high, len(model))
        elif choice == 4:
            expected = model.popleft() if model else None
            assert ring.pop() == expected
        elif choice == 5:
            assert exchanges.pop(ring) == ((True, model.popleft()) if model else (False, 0))
        elif choice == 6:
            out = np.zeros(wanted, "i8")
            taken = exchanges.pop_many(ring, out)
            assert out[:taken].tolist() == [model.popleft() for _ in range(min(wanted, len(model)))]
        else:
            with ring.view() as items:
                assert bool(len(items)) == bool(model)
                assert items.tolist() == [model.popleft() for _ in range(len(items))]
        step = max(1, capacity // 16)
        assert ring.high_water == min(-(-high // step) * step, capacity)
        assert (len(ring), ring.dropped) == (len(model), dropped)


def test_a_view_is_in_place_and_takes_out_at_its_end() -> None:
    ring = Ring("f8", 4)
    ring.push([1, 2, 3])
    with ring.view() as items:
        assert items.tolist() == [1, 2, 3] and not items.flags.writeable and not items.flags.owndata
        assert len(ring) == 3, "they are in the ring until the end"
        ring.push(4)
    assert len(items) == 0, "the array does not show what comes later"
    with ring.view() as items:
        assert items.tolist() == [4]
    with ring.view() as items:
        assert items.shape == (0,) and items.dtype == np.float64


def test_what_is_kept_of_a_view_keeps_its_items() -> None:
    ring = Ring(RECORD, 4)
    ring.push([(i, (i, i, i), i) for i in range(4)])
    with pytest.raises(BufferError, match="keep a copy"), ring.view() as items:
        kept = items["t"][1:]
    assert len(ring) == 4 and ring.push((9, (9, 9, 9), 9)) == 0
    for take in (ring.pop, ring.drain, ring.view().__enter__):
        with pytest.raises(BufferError, match="in use"):
            take()
    assert kept.tolist() == [1, 2, 3]
    del kept
    assert ring.drain()["n"].tolist() == [0, 1, 2, 3]


def test_two_views_at_once_are_refused_and_so_is_leaving_twice() -> None:
    ring = Ring("f8", 4)
    view = ring.view()
    with view, pytest.raises(rtloop.StateError, match="another view of this ring is in use"), ring.view():
        pass
    with pytest.raises(rtloop.StateError, match="has ended"):
        view.__exit__(None, None, None)


def test_an_error_inside_a_view_takes_out_and_passes() -> None:
    ring = Ring("f8", 4)
    ring.push(1)
    with pytest.raises(ZeroDivisionError), ring.view():
        _ = 1 / 0
    assert len(ring) == 0


def test_a_memoryview_of_a_view_keeps_the_memory() -> None:
    ring = Ring("f8", 1 << 16)
    ring.push(np.arange(1 << 16))
    with ring.view() as items:
        kept = memoryview(items)
    gone = weakref.ref(ring)
    del ring
    gc.collect()
    assert gone() is None
    assert kept[5] == 5.0
    del kept, items


def test_memoryviews_of_a_view_outlive_it_with_their_type_and_shape() -> None:
    """The freed description of a memoryview is garbage only once it is written over."""
    ring = Ring(RECORD, 64)
    ring.push([(i, (i, i, i), i) for i in range(64)])
    with ring.view() as items:
        kept = [memoryview(items) for _ in range(3)]
        expected = kept[0].format
    other = [memoryview(np.zeros(3, [(f"f{i}", "f4"), ("rest", "u1", 100 + i)])) for i in range(1000)]
    assert memoryview(items).shape == (0,), "NumPy describes it anew"
    assert [(view.format, view.shape) for view in kept] == [(expected, (64,))] * 3
    assert len(bytes(kept[0])) == 64 * RECORD.itemsize and np.asarray(kept[1])["n"].tolist() == list(range(64))
    assert len(other) == 1000


@pytest.mark.parametrize(
    "part",
    [
        "items[:]", "items.view()", "items[1:][1:]", "items['t']", "items.base", "items.T", "memoryview(items[1:])",
        "items.reshape(2, 2)", "items[None]", "iter([items[::2]])",
    ],
)  # fmt: skip
def test_every_part_of_a_view_is_noticed(part: str) -> None:
    ring = Ring(RECORD, 4)
    ring.push([(i, (i, i, i), i) for i in range(4)])
    kept = []
    with pytest.raises(BufferError, match="keep a copy"), ring.view() as items:
        kept.append(eval(part))
    with pytest.raises(BufferError, match="in use"):
        ring.pop()
    assert len(items) == 0 and len(ring) == 4
    kept.clear()
    assert ring.pop()["n"] == 0 and len(ring) == 3


@pytest.mark.parametrize("part", ["items", "items.copy()", "np.asarray(items)", "memoryview(items)", "items.sum()"])
def test_what_is_no_part_of_a_view_is_none(part: str) -> None:
    ring = Ring("f8", 4)
    ring.push([1, 2, 3])
    with ring.view() as items:
        kept = eval(part)
    assert len(ring) == 0 and len(items) == 0
    assert ring.push([4, 5]) == 2 and ring.drain().tolist() == [4, 5]
    del kept


def test_a_view_that_was_reshaped_in_place_is_empty_afterwards() -> None:
    ring = Ring("f8", 4)
    ring.push([1, 2, 3, 4])
    with warnings.catch_warnings(), ring.view() as items:
        warnings.simplefilter("ignore")
        items.shape = (2, 2)
    assert items.size == 0 and len(ring) == 0
    ring.push(5)
    with warnings.catch_warnings(), pytest.raises(BufferError), ring.view() as items:
        warnings.simplefilter("ignore")
        items.shape = ()  # nothing without a dimension is empty
    with pytest.raises(BufferError, match="in use"):
        ring.pop()
    del items
    assert ring.pop() == 5


@pytest.mark.parametrize(
    "part",
    ["items", "items[1:]", "memoryview(items)", "items.view(np.recarray)", "np.broadcast_to(items, (2, len(items)))"],
)
def test_the_memory_goes_with_the_last_array_that_shows_it(part: str) -> None:
    """Without the garbage collector: nothing that lends refers to itself."""
    ring = Ring("f8", 1 << 16)
    ring.push(np.arange(1 << 16))
    gone = weakref.ref(ring)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(BufferError), ring.view() as items:
            address = items.ctypes.data
            kept = eval(part, {"items": items, "np": np})
        del ring
        assert gone() is None and is_mapped(address)
        del items, kept
        assert not is_mapped(address)
    finally:
        gc.enable()


def is_mapped(address: int) -> bool:
    spans = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(low, 16) <= address < int(high, 16) for low, high in spans)


def test_nothing_is_taken_from_a_view_that_another_has_opened_meanwhile() -> None:
    """What a limit does when it is asked for its number, another thread may do at any moment."""
    ring = Ring("f8", 4)
    ring.push([1, 2, 3])
    view = ring.view()

    class Limit:
        def __lt__(self, other: int) -> bool:
            return False

        def __index__(self) -> int:
            self.items = view.__enter__()
            return 2

    with pytest.raises(BufferError, match="in use"):
        ring.drain(limit := Limit())  # type: ignore[arg-type]
    assert limit.items.tolist() == [1, 2, 3]
    view.__exit__(None, None, None)
    assert len(ring) == 0 and ring.pop() is None


@pytest.mark.parametrize(
    ("dtype", "capacity", "words"),
    [
        ("O", 1, "plain memory"), ("V0", 1, "0 bytes"), ("f9", 1, "not a NumPy dtype"),
        (("f8", 2), 1, "is an array of"), ("f8", 0, "an int from 1"), ("f8", -1, "an int from 1"),
        ("f8", 1 << 48, "an int from 1"), ("f8", 1.0, "an int from"), ("f8", True, "an int from"),
        ("S1000000", 1 << 47, "more than there are addresses"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(dtype: Any, capacity: Any, words: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=words):
        Ring(dtype, capacity)


def test_another_policy_than_to_drop_is_refused() -> None:
    with pytest.raises(rtloop.ConfigError, match='give "drop"'):
        Ring("f8", 1, when_full="wait")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("i4", 1.5, "not a whole number"), ("i4", "x", "not an item"), ("u1", 256, "out of bounds"),
        ("u1", np.array([1]), "astype"), ("f8", "x", "convert"), ("f8", np.zeros((2, 2)), "one dimension"),
        (RECORD, (1, 2), "not an item"), (RECORD, 5.0, "made from a tuple"),
        (RECORD, (1, (1, 2, 3), 1.5), "not a whole number"),
        (RECORD, (1, (1, 2, 3), 1 << 15), "not an item"), (RECORD, (1, (1e300, 2, 3), 1), "does not fit"),
        (RECORD, np.zeros(1, [("n", "i2"), ("axis", "f4", 3), ("t", "f8")]), "in this order"),
        ("i1", np.int64(300), "fit"), ("f4", 1e300, "does not fit"), ("S4", b"toolong", "does not fit"),
        ("f8", None, "not an item"), ("f8", "3.5", "not an item"),
    ],
)  # fmt: skip
def test_what_is_no_item_is_refused_and_puts_in_nothing(dtype: Any, value: Any, words: str) -> None:
    ring = Ring(dtype, 4)
    with pytest.raises(rtloop.ConfigError, match=words):
        ring.push(value)
    assert (len(ring), ring.dropped) == (0, 0)


def test_more_than_the_machine_has_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="MemAvailable"):
        Ring("f8", 1 << 44)


@pytest.mark.parametrize("limit", [-1, 1.5, True])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(rtloop.ConfigError, match="limit="):
        Ring("f8", 4).drain(limit)


def test_a_ring_that_was_never_made_says_so() -> None:
    ring = Ring.__new__(Ring)
    for use in (ring.push, lambda _: ring.pop(), ring.drain, lambda _: len(ring), lambda _: ring.view()):
        with pytest.raises(rtloop.StateError, match="never made"):
            use(1)
    with pytest.raises(rtloop.StateError, match="made once"):
        Ring.__init__(made := Ring("f8", 1), "f8", 1)
    assert made.capacity == 1


def test_a_view_that_a_child_inherits_takes_nothing_out_there() -> None:
    ring = Ring("f8", 4)
    ring.push([1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with ring.view():
            child = os.fork()
    if child == 0:
        os._exit(0 if ring.pop() is None and len(ring) == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("wiped_children")
def test_a_forked_child_has_an_empty_ring_without_room() -> None:
    ring = Ring("f8", 4)
    ring.push(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            ring.push(2)
        except rtloop.StateError:
            os._exit(0 if len(ring) == 0 and ring.pop() is None and not ring.is_locked else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert ring.drain().tolist() == [1]


def test_two_python_threads_lose_nothing_and_keep_the_order() -> None:
    ring, taken, count = Ring("i8", 64), [], 20_000

    def produce() -> None:
        for i in range(count):
            while not ring.push(i):
                pass

    thread = threading.Thread(target=produce)
    thread.start()
    while len(taken) < count:
        taken.extend(ring.drain().tolist())
    thread.join()
    assert taken == list(range(count))


def test_a_loop_answers_what_python_commands(exchanges: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = exchanges.Doubler("1kHz", **ordinary)
    answers: list[int] = []
    with loop:
        for i in range(0, 300, 3):
            loop.commands.push([i, i + 1, i + 2])
            answers.extend(loop.answers.drain().tolist())
        while len(answers) < 300 and loop.state == "running":
            answers.extend(loop.answers.drain().tolist())
    assert answers == [2 * i for i in range(300)]


def test_the_methods_are_documented_under_their_own_names() -> None:
    assert Ring.push.__qualname__ == "Ring.push" and "Parameters" in (Ring.push.__doc__ or "")
    assert Ring.__name__ == "Ring" and repr(Ring("f8", 3)) == "Ring('float64', 3, dropped=0)"
