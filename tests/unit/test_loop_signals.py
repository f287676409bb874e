"""Signals of a loop: declared once, sampled after each step, and read by any number of readers."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop.live.signal_block import Cursor
from rtloop.live.signal_set import Memory, Signal, find_pieces, parse_layout, place_signals

NAMES = ("number", "mode", "angle", "inverse", "third")


def is_whole(records: np.ndarray) -> bool:
    """Return whether every record has the signals of one cycle."""
    number = records["number"]
    return bool(
        np.all(records["inverse"] == ~number)
        and np.all(records["mode"] == -number.astype("i4"))
        and np.all(records["third"] == number[:, None] + np.arange(3))
        and np.all(np.diff(number.astype("i8")) >= 1)
    )


def test_a_sample_has_the_cycle_and_the_signals_in_the_order_of_their_declaration(signalled: ModuleType) -> None:
    loop = signalled.Counting("1ms")
    assert (loop.signals.names, len(loop.signals)) == (NAMES, 5)
    assert dict(loop.signals.units) == {"number": "", "mode": "", "angle": "rad", "inverse": "", "third": "m"}
    assert loop.signals.latest() == {} and len(loop.signals.read()) == 0
    loop.simulate(cycles=100)
    records = loop.signals.read()
    assert records.dtype == loop.signals.dtype
    assert records.dtype.names == ("cycle", "release", "start", *NAMES)
    assert records["cycle"].tolist() == list(range(100)) and is_whole(records)
    assert np.allclose(records["angle"], np.arange(100) / 1000)
    assert np.all(np.diff(records["release"]) == 1_000_000)
    latest = loop.signals.latest()
    assert (latest["cycle"], latest["number"], latest["mode"]) == (99, 100, -100)
    assert latest["third"].tolist() == [100, 101, 102] and type(latest["angle"]) is float
    assert len(loop.signals.read()) == 0 and loop.signals.lost == 0 and loop.signals.written == 100


def test_signals_of_every_size(signalled: ModuleType) -> None:
    loop = signalled.Mixed("1ms")
    loop.simulate(cycles=40)
    records = loop.signals.read()
    n = np.arange(40)
    assert records.dtype.names[3:] == ("flag", "half", "single", "wave", "triple", "bytes", "last")
    assert records.dtype.itemsize == 24 + 1 + 2 + 4 + 16 + 12 + 5 + 8, "without gaps"
    assert np.all(records["flag"] == n % 2) and np.all(records["half"] == 1000 + n)
    assert np.all(records["single"] == 0.5 + n) and np.all(records["wave"] == n + 2j * n)
    assert np.all(records["triple"] == n[:, None] * 10 + np.arange(3)) and np.all(records["last"] == n)
    assert np.all(records["bytes"] == (-np.arange(5) - n[:, None]).astype("i1"))


@pytest.mark.parametrize("what", ["signal", "parameter"])
@pytest.mark.parametrize(
    ("types", "words"),
    [
        ((), "'second', declared as f8, is 4 bytes after the .* 'first', declared as f8, and they overlap"),
        (("f4", "f8"), "'third', declared as f8, is 4 bytes after the .* 'second', declared as f8"),
        (("f8", "f4"), "'second', declared as f4, is 4 bytes after the .* 'first', declared as f8"),
        (("f8", "i4"), "'second', declared as i4, is 4 bytes after the .* 'first', declared as f8"),
        (("3f4", "f4"), "'third', declared as f8, is 8 bytes after the .* 'first', declared as f4"),
    ],
)
def test_a_float_that_is_declared_as_a_double_is_refused(
    signalled: ModuleType, what: str, types: tuple[str, ...], words: str
) -> None:
    with pytest.raises(rtloop.ConfigError, match=words) as raised:
        signalled.Floats("1ms").declare(what, *types)
    assert f"self.{what}(" in str(raised.value) and "'f4'" in str(raised.value)


@pytest.mark.parametrize("what", ["signal", "parameter"])
def test_a_field_may_be_declared_twice_with_its_type_and_an_array_by_its_parts(
    signalled: ModuleType, what: str
) -> None:
    loop = signalled.Floats("1ms")
    loop.declare(what, "2f4", "f4", "f8")
    loop.declare("parameter" if what == "signal" else "signal", "f4", "f4", "f8")
    with pytest.raises(rtloop.ConfigError, match="'last' is declared as 64 bytes of f8, but its object ends before"):
        loop.declare_last(what, "8f8")


def test_signals_in_any_order_of_any_memory_are_those_of_their_fields() -> None:
    """The sampler copies fields that follow each other in memory two at a time, whatever their order.

    It may copy what is around them, too, unless the memory belongs to somebody else.
    """
    chance = random.Random(7)
    kinds = [*["f8"] * 20, "3f8", "4f8", "i8", *["f4"] * 3, "2f4", "i2", "5i1", "c16", "f8"]
    packed = np.dtype([(f"s{i}", kind) for i, kind in enumerate(kinds)])  # some words are not aligned
    own = np.zeros((), packed)
    borrowed = np.frombuffer(bytearray(packed.itemsize), packed)
    layouts = set()
    for data, count in itertools.product((own, borrowed), (*range(1, 21), *range(2, 31, 2), 31)):
        data.reshape(1).view("u1")[:] = np.frombuffer(chance.randbytes(data.nbytes), "u1")
        names = chance.sample(packed.names or (), count)
        if count % 3 == 0:
            names.sort(key=lambda name: int(name[1:]))
        loop = rtloop.PyLoop(lambda cycle: None, "1ms", data=data, signals=names)
        loop.simulate(cycles=3)
        records = loop.signals.read()
        assert len(records) == 3 and records["cycle"].tolist() == [0, 1, 2], names
        for name in names:
            assert all(one.tobytes() == data.reshape(())[name].tobytes() for one in records[name]), (name, names)
        cursor = Cursor(loop.signals._source.block, "now")
        layout = parse_layout(cursor.text(), cursor.record_bytes)
        assert layout == loop.signals._source.layout
        layouts.add(layout.places)
    assert len(layouts) > 60


def pieces_of(*fields: tuple[int, str], memory: Memory) -> list[tuple[int, int]]:
    """Return addresses and sizes of what is copied for signals with these addresses and types; check their places."""
    signals = [Signal(f"s{i}", np.dtype(kind)) for i, (_, kind) in enumerate(fields)]
    addresses = [address for address, _ in fields]
    pieces = find_pieces(signals, addresses, [memory] * len(fields))
    places = place_signals(pieces, addresses)
    copied: dict[int, int] = {}
    for piece in pieces:
        for n in range(piece.size):
            copied[24 + len(copied)] = piece.begin + n
    for (address, kind), place in zip(fields, places, strict=True):
        assert [copied[place + n] for n in range(np.dtype(kind).itemsize)] == [*range(address, address + int(kind[1:]))]
    return [(piece.begin, piece.size) for piece in pieces]


def test_small_signals_of_an_object_are_copied_as_the_words_that_they_are_in() -> None:
    """Three floats and a bool between them are two words of 8 bytes."""
    fields = (800, "f4"), (804, "f4"), (808, "b1"), (812, "f4")
    assert pieces_of(*fields, memory=(600, 1000)) == [(800, 16)]
    assert pieces_of(*reversed(fields), memory=(600, 1000)) == [(800, 16)]
    assert pieces_of((1003, "i4"), memory=(600, 1008)) == [(1000, 8)], "it lies in one word"
    assert pieces_of((1005, "i8"), memory=(600, 1016)) == [(1000, 16)], "it lies in two words"


def test_a_word_between_signals_of_an_object_is_copied_if_all_words_follow_each_other_then() -> None:
    scattered = [(800 + 16 * n, "f8") for n in range(4)]
    assert pieces_of(*scattered, memory=(600, 1000)) == [(800, 56)]
    assert pieces_of((800, "f8"), (808, "f8"), (824, "f4"), (840, "f8"), memory=(600, 1000)) == [(800, 48)]
    assert pieces_of((800, "f8"), (824, "f8"), memory=(600, 1000)) == [(800, 8), (824, 8)], "two are between them"
    assert pieces_of(*scattered, (960, "f8"), memory=(600, 1000)) == [(n, 8) for n in (800, 816, 832, 848, 960)]


def test_many_small_signals_far_apart_do_not_become_a_record_of_other_bytes() -> None:
    few, many = ([(8000 + 24 * n, "b1") for n in range(count)] for count in (64, 65))
    assert sum(size for _, size in pieces_of(*few, memory=(0, 1 << 20))) == 512
    assert sum(size for _, size in pieces_of(*many, memory=(0, 1 << 20))) == 65
    floats = [(8000 + 24 * n, "f4") for n in range(500)]
    assert sum(size for _, size in pieces_of(*floats, memory=(0, 1 << 20))) == 4000, "half of it is signals"


def test_nothing_but_the_signals_is_read_of_foreign_memory() -> None:
    """Reading the next register may change a device."""
    fields = (800, "f4"), (808, "f8"), (824, "f8"), (812, "f4")
    assert sorted(pieces_of(*fields, memory=None)) == [(800, 4), (808, 8), (812, 4), (824, 8)]
    assert pieces_of((808, "f8"), (816, "f8"), (800, "f4"), memory=None) == [(808, 16), (800, 4)]
    assert pieces_of((800, "f4"), memory=(800, 804)) == [(800, 4)], "the rest of its word is beyond the memory"
    assert pieces_of((800, "f4"), memory=(796, 804)) == [(800, 4)]
    assert pieces_of((804, "f4"), memory=(804, 820)) == [(804, 4)], "the beginning of its word is"


def test_as_many_signals_as_words_of_a_record_fit_wherever_they_are() -> None:
    fields = [(8000 + 13 * n, "i4") for n in range(1024)]  # in up to two words each
    pieces = pieces_of(*fields, memory=(0, 1 << 20))
    assert sum(size for _, size in pieces) == 4096 and all(size == 4 for _, size in pieces)
    fields = [(8000 + 16 * n, "i4") for n in range(1024)]  # with the words between them, those of two records
    assert pieces_of(*fields, memory=(0, 1 << 20)) == [(8000 + 16 * n, 8) for n in range(1024)]
    assert pieces_of(*fields[:512], memory=(0, 1 << 20)) == [(8000, 1023 * 8)]
    assert pieces_of(*fields[:513], memory=(0, 1 << 20)) == [(8000 + 16 * n, 8) for n in range(513)]


def test_whatever_signals_there_are_each_is_in_its_place_and_no_foreign_byte_is_copied() -> None:
    """Signals of any type at any address, some of them in the same bytes, of objects and of foreign memory."""
    chance = random.Random(5)
    for _ in range(300):
        begin, most = chance.randrange(4000, 4200), chance.choice([40, 200, 2000])
        objects: list[Memory] = [(begin, begin + most), (begin + most, begin + most + 77), None]
        signals, addresses, memory = [], [], []
        for i in range(chance.choice([1, 3, 20, 100])):
            one = Signal(f"s{i}", np.dtype(chance.choice(["b1", "i2", "f4", "f8", "c16"])), chance.choice([(), (3,)]))
            within = chance.choice(objects)
            low, high = within or (9000, 9000 + most + 77)
            if one.size <= high - low:
                signals.append(one)
                addresses.append(chance.randrange(low, high - one.size + 1))
                memory.append(within)
        pieces = find_pieces(signals, addresses, memory)
        words = [piece.word for piece in pieces]
        assert words == sorted(words, reverse=True) and sum(piece.words for piece in pieces) <= 1024
        copied = [address for piece in pieces for address in range(piece.begin, piece.end)]
        asked = [range(first, first + one.size) for one, first in zip(signals, addresses, strict=True)]
        for expected, place in zip(asked, place_signals(pieces, addresses), strict=True):
            assert copied[place - 24 : place - 24 + len(expected)] == [*expected]
        extra = set(copied).difference(*asked)
        assert all(begin <= address < begin + most + 77 for address in extra), "of the two objects"


def test_readers_are_independent_and_count_what_they_came_too_late_for(signalled: ModuleType) -> None:
    loop = signalled.Counting("1ms", signals_capacity=100)
    first, late = loop.signals.reader(), loop.signals.reader()
    assert first.capacity >= 100
    for _ in range(10):
        loop.simulate(cycles=50)
        assert is_whole(first.read(30)) and len(first.read()) == 20
    kept = late.read()
    assert len(kept) == late.capacity and late.lost + len(kept) == 500 and is_whole(kept)
    assert kept["number"][-1] == 500
    assert (first.lost, len(loop.signals.read()) + loop.signals.lost) == (0, 500)
    assert [len(loop.signals.reader(start).read()) for start in ("now", "oldest")] == [0, late.capacity]
    begin = loop.signals.reader("begin")
    assert len(begin.read()) + begin.lost == 500
    with pytest.raises(rtloop.ConfigError, match="start='then'"):
        loop.signals.reader("then")


def test_only_every_nth_cycle(signalled: ModuleType) -> None:
    loop = signalled.Counting("1ms", signals_every=7)
    loop.simulate(cycles=50)
    assert loop.signals.read()["cycle"].tolist() == list(range(0, 50, 7))
    loop.simulate(cycles=8)  # a new run counts its cycles anew
    assert loop.signals.read()["cycle"].tolist() == [0, 7]


def test_the_same_simulation_gives_the_same_samples(signalled: ModuleType) -> None:
    found = []
    for _ in range(2):
        loop = signalled.Counting("1ms")
        loop.simulate(cycles=500, latency=[3000, 90_000, 12_000])
        found.append(loop.signals.read())
    assert found[0].tobytes() == found[1].tobytes()
    assert len(set((found[0]["start"] - found[0]["release"]).tolist())) == 3


def test_a_running_loop_is_read_by_threads(signalled: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = signalled.Counting("2kHz", signals_capacity=64, **ordinary)
    stop, found = threading.Event(), []

    def read(pause: float) -> None:
        reader, received, whole = loop.signals.reader(), 0, True
        is_last = False
        while not is_last:
            is_last = stop.wait(pause)
            records = reader.read()
            received += len(records)
            whole &= is_whole(records) and loop.signals.latest().get("inverse", 0) != 1
        found.append((received + reader.lost, whole))

    threads = [threading.Thread(target=read, args=(pause,)) for pause in (0.0005, 0.003, 0.1)]
    readers_ready = loop.signals.written == 0
    for thread in threads:
        thread.start()
    stats = loop.run(cycles=600)
    stop.set()
    for thread in threads:
        thread.join()
    assert readers_ready and stats.cycles == 600 == loop.signals.written
    assert all(whole and count <= 600 for count, whole in found) and len(found) == 3
    own = loop.signals.read()
    assert len(own) + loop.signals.lost == 600


def test_grants_name_the_memory_of_the_signals(signalled: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = signalled.Counting("1ms", **{**ordinary, "lock_memory": "own"})
    loop.run(cycles=5)
    names = [grant.name for grant in loop.grants]
    assert "signals" in names and "sampler" in names
    assert not {"signals", "sampler"} & {grant.name for grant in _plain_run(ordinary)}


def _plain_run(ordinary: dict[str, Any]) -> tuple[Any, ...]:
    loop = rtloop.RTLoop("1ms", **ordinary)
    loop.run(cycles=5)
    return loop.grants


@pytest.mark.parametrize(
    ("name", "dtype", "is_null", "words"),
    [
        ("angle", "f8", False, None), ("angle", "f4", False, "another field"), ("cycle", "f8", False, "another field"),
        ("", "f8", False, "identifier"), ("a b", "f8", False, "identifier"), (5, "f8", False, "identifier"),
        ("x", "S4", False, "not a bool or a number"), ("x", "O", False, "not a bool or a number"),
        ("x", ">f8", False, "byte order"), ("x", "0f8", False, "no elements"), ("x", "M8[ns]", False, "not a bool"),
        ("x", "2000f8", False, "does not fit"), ("x", "nonsense", False, "not a NumPy dtype"),
        ("x", "f8", True, "is NULL"),
    ],
)  # fmt: skip
def test_what_is_no_signal_is_refused(
    signalled: ModuleType, name: Any, dtype: str, is_null: bool, words: str | None
) -> None:
    loop = signalled.Counting("1ms")
    if words is None:
        assert "angle" in repr(loop.declare(name, dtype, is_null)), "the same once more, as setup() may"
        return
    with pytest.raises(rtloop.ConfigError, match=words):
        loop.declare(name, dtype, is_null)
    assert loop.signals.names == NAMES


def test_a_signal_that_comes_too_late(signalled: ModuleType) -> None:
    loop = signalled.Counting("1ms")
    loop.declare("more").unit("N m")
    assert loop.signals.units["more"] == "N m"
    with pytest.raises(rtloop.ConfigError, match="printable"):
        loop.declare("more").unit("\n")
    loop.simulate(cycles=1)
    with pytest.raises(rtloop.StateError, match="cannot be declared now"):
        loop.declare("late")
    with pytest.raises(rtloop.StateError, match="cannot be declared now"):
        loop.declare("more").unit("m")
    loop.declare("more").unit("N m")  # as it is
    assert loop.signals.names == (*NAMES, "more")


def test_a_loop_without_signals() -> None:
    loop = rtloop.RTLoop("1ms")
    assert loop.signals.names == () and len(loop.signals) == 0
    with pytest.raises(rtloop.StateError, match="has no signals"):
        loop.signals.read()
    assert "none" in repr(loop.signals)


@pytest.mark.parametrize("values", [{"signals_every": 0}, {"signals_every": 1.5}, {"signals_capacity": 0},
                                    {"signals_capacity": "many"}, {"signals_capacity": True}])  # fmt: skip
def test_numbers_that_can_never_work(values: dict[str, Any]) -> None:
    with pytest.raises(rtloop.ConfigError, match=next(iter(values))):
        rtloop.RTLoop("1ms", **values)


def test_a_recorder_writes_the_signals(signalled: ModuleType, tmp_path: Path) -> None:
    loop = signalled.Counting("1ms")
    loop.simulate(cycles=10)  # before the recording
    with (
        rtloop.Recorder(loop.signals, tmp_path / "run.npy") as first,
        rtloop.Recorder(loop.signals, tmp_path / "run.csv") as second,
    ):
        loop.simulate(cycles=200)
    assert (first.written, first.lost, second.written, second.lost) == (200, 0, 200, 0)
    records = np.load(tmp_path / "run.npy")
    assert records["number"].tolist() == list(range(11, 211)) and is_whole(records)
    lines = list(csv.DictReader((tmp_path / "run.csv").open(newline="")))
    assert list(lines[0]) == ["cycle", "release", "start", "number", "mode", "angle", "inverse",
                              "third[0]", "third[1]", "third[2]"]  # fmt: skip
    assert [int(line["number"]) for line in lines] == records["number"].tolist()
    assert [float(line["angle"]) for line in lines] == records["angle"].tolist()


def test_a_forked_child_does_not_write_the_samples_of_its_parent(signalled: ModuleType) -> None:
    loop = signalled.Counting("1ms")
    reader = loop.signals.reader()
    if (pid := os.fork()) == 0:
        try:
            loop.simulate(cycles=20)
            os._exit(0 if len(loop.signals.reader("oldest").read()) == 20 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (len(reader.read()), reader.written) == (0, 0)


def test_fields_of_data_are_signals_of_a_loop_without_a_class(ordinary: dict[str, Any]) -> None:
    data = np.zeros((), [("flag", "?"), ("angle", "f8"), ("force", "f4", (3,))])

    def step(cycle: rtloop.Cycle) -> None:
        data["angle"], data["force"], data["flag"] = cycle.index * 0.5, cycle.index, cycle.index % 2

    loop = rtloop.PyLoop(step, "1ms", data=data, signals={"angle": "rad", "force": "N"})
    loop.simulate(cycles=10)
    records = loop.signals.read()
    assert records.dtype.names == ("cycle", "release", "start", "angle", "force") and loop.signals.units["force"] == "N"
    assert records["angle"].tolist() == [i * 0.5 for i in range(10)] and records["force"][:, 2].tolist() == list(
        range(10)
    )
    for signals in ("nosuch", ("angle", "nosuch"), (5,)):
        with pytest.raises(rtloop.ConfigError, match="signals"):
            rtloop.PyLoop(step, "1ms", data=data, signals=signals)


def test_a_group_has_the_signals_of_its_loops(signalled: ModuleType) -> None:
    loops = [
        signalled.Counting("1ms", name="motor"),
        signalled.Mixed("2ms", name="arm"),
        rtloop.RTLoop("1ms", name="plain"),
    ]
    group = rtloop.LoopGroup(loops)
    rtloop.simulate(loops, "20ms")
    assert list(group.signals) == ["motor", "arm"] and "motor.angle" in group.signals.names
    assert group.signals.units["motor.angle"] == "rad" and "arm.wave" in group.signals.units
    latest = group.signals.latest()
    assert latest["motor.number"] == latest["motor.cycle"] + 1 and latest["arm.last"] == latest["arm.cycle"]
    read = group.signals.read()
    assert len(read["motor"]) == 2 * len(read["arm"]) == 20 and is_whole(read["motor"])
    assert set(read["arm"]["release"]) < set(read["motor"]["release"]), "one clock"
    assert len(group.signals["motor"].read()) == 0
    with pytest.raises(KeyError, match="plain"):
        group.signals["plain"]


GOOD: dict[str, Any] = {
    "signals": [
        {"name": "a", "type": "f8", "shape": [], "unit": "", "low": None, "high": None},
        {"name": "b", "type": "i4", "shape": [3], "unit": "m", "low": -1.0, "high": 1.0},
    ],
    "places": [24, 32],
}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "cycle"}, {"name": "b"}, {"name": 5}, {"name": "a\x1b[31m"}, {"type": "O"}, {"type": "V8"},
        {"shape": [0]}, {"shape": [-1]}, {"shape": [1 << 62, 8]}, {"shape": ["8"]}, {"shape": [True]}, {"shape": 3},
        {"shape": [1] * 40}, {"unit": "\x1b"}, {"unit": None}, {"shape": [4]},
    ],
)  # fmt: skip
def test_the_description_of_a_stranger_is_not_believed(change: dict[str, Any]) -> None:
    assert parse_layout(json.dumps(GOOD).encode(), 48).stored.names == ("cycle", "release", "start", "a", "b")
    bad = {"signals": [{**GOOD["signals"][0], **change}, GOOD["signals"][1]], "places": [24, 32]}
    with pytest.raises(ValueError, match="described wrongly"):
        parse_layout(json.dumps(bad).encode(), 48)
    for places in (
        [24],
        [24, 32, 40],
        [16, 32],
        [24, 37],
        [-24, 32],
        [True, 32],
        ["24", 32],
        [24.0, 32],
        [[], 32],
        5,
        None,
    ):
        with pytest.raises(ValueError, match="described wrongly"):
            parse_layout(json.dumps({**GOOD, "places": places}).encode(), 48)
    many = [{**GOOD["signals"][0], "name": f"s{i}"} for i in range(1025)]
    long = [{**GOOD["signals"][0], "name": f"s{i}", "shape": [8191]} for i in range(2)]
    assert len(parse_layout(json.dumps({"signals": many[:1024], "places": [24] * 1024}).encode(), 32).signals) == 1024
    for signals, record_bytes in ((many, 32), (long, 65536)):
        bad = {"signals": signals, "places": [24] * len(signals)}
        with pytest.raises(ValueError, match="too many"):
            parse_layout(json.dumps(bad).encode(), record_bytes)
    for text in (b"", b"{", b"[]", b'{"signals": []}', b'{"signals": 5}', b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError, match="described wrongly"):
            parse_layout(text, 48)


def test_a_limit_of_file_sizes_leaves_the_blocks_to_this_process(script: Callable[..., Any]) -> None:
    """RLIMIT_FSIZE counts shared memory; a loop that is not strict runs without sharing, and its grants tell why."""
    done = script("""
        import resource, warnings
        import numpy as np
        import rtloop
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        loop = rtloop.PyLoop(
            lambda cycle: None, "1ms", data=np.zeros((), [("kp", "f8"), ("angle", "f8")]), parameters=("kp",),
            signals=("angle",), strict=False, policy="other", lock_memory="off", dma_latency=None,
        )
        stats = loop.run(cycles=5)
        print(stats.cycles, *[grant.name for grant in stats.grants if "RLIMIT_FSIZE" in grant.detail and grant.fix])
    """)
    assert done.stdout == "5 telemetry parameters signals\n", done.stderr
