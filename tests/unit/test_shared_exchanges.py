"""Exchanges between processes: one side each, found by name, taken over when their holder dies, and never trusted."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rtloop_test_peer import Peer, create_at_once

import rtloop
from rtloop import AttachError, ConfigError, Latest, Ring, StateError
from rtloop.sharing import found_exchanges
from rtloop.sharing.exchange_file import create_file, finish_file
from rtloop.sharing.found_exchanges import find_exchanges

POINT = np.dtype([("t", "f8"), ("x", "f4", (3,)), ("mode", "u1")], align=True)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.originalname[:80]}/{os.getpid()}"


def test_the_two_sides_of_a_value_are_two_objects(name: str, exchanges: ModuleType) -> None:
    writer, reader = Latest("f8", share=name), Latest.open(name)
    assert (writer.share, writer.role, reader.role, reader.dtype) == (name, "writer", "reader", np.dtype("f8"))
    assert (reader.is_new, reader.read(), writer.age_ns) == (False, 0.0, None)
    for value in (1.0, 2.0, 3.0):
        writer.write(value)
    assert reader.is_new and reader.written == 3
    assert (reader.read(), reader.is_new, reader.read()) == (3.0, False, 3.0)
    assert reader.age_ns is not None and reader.age_ns >= 0
    exchanges.write(writer, 4.5)
    assert exchanges.read(reader) == (True, 4.5) and exchanges.read(reader) == (False, 4.5)
    exchanges.write_at(writer, 5.5, 1000)
    assert exchanges.read(reader) == (True, 5.5) and exchanges.age(reader, 1520, 100) == (520, 6)


def test_the_two_sides_of_a_ring_are_two_objects(name: str, exchanges: ModuleType) -> None:
    with Ring("i8", 4, share=name) as producer, Ring.open(name, dtype="i8") as consumer:
        assert (producer.capacity, consumer.capacity, consumer.role) == (4, 4, "consumer")
        assert producer.push(np.arange(6)) == 4 and producer.dropped == consumer.dropped == 2
        assert (exchanges.pop(consumer), consumer.pop(), len(producer)) == ((True, 0), 1, 2)
        assert exchanges.push(producer, 7) and exchanges.push_many(producer, np.arange(9, 12)) == 1
        with consumer.view() as items:
            assert items.tolist() == [2, 3]
        many = np.zeros(9, "i8")
        assert exchanges.pop_many(consumer, many) == 2 and many[:3].tolist() == [7, 9, 0]
        assert consumer.high_water == 4 and consumer.drain().tolist() == []


def test_a_method_of_the_other_side_is_refused_in_python_and_does_nothing_in_a_step(
    name: str, exchanges: ModuleType
) -> None:
    writer, reader = Latest("f8", share=name), Latest.open(name)
    producer, consumer = Ring("i8", 4, share=name + " ring"), Ring.open(name + " ring")
    for call in (
        writer.read, lambda: reader.write(1.0), producer.pop, producer.drain, producer.view, lambda: consumer.push(1),
    ):  # fmt: skip
        with pytest.raises(StateError, match=r"another object, perhaps of another process: \w+\.open\("):
            call()
    exchanges.write(reader, 1.0)
    exchanges.write_at(reader, 1.0, 1)
    assert exchanges.read(writer) == (False, -1.0) and exchanges.age(writer, 1, 1)[0] == 2**63 - 1
    assert not exchanges.push(consumer, 1) and exchanges.push_many(consumer, np.arange(2)) == 0
    producer.push(5)
    assert exchanges.pop(producer) == (False, 0) and exchanges.pop_many(producer, np.zeros(2, "i8")) == 0
    assert (reader.written, reader.read(), consumer.pop(), consumer.pop()) == (0, 0.0, 5, None)


def test_another_process_is_the_other_side(name: str, start: Callable[[], Peer]) -> None:
    peer = start()
    points, answers = Latest(POINT, share=f"{name} points"), Ring("i8", 100, share=f"{name} answers", role="consumer")
    peer.do(f"!points = rtloop.Latest.open('{name} points')")
    peer.do(f"!answers = rtloop.Ring.open('{name} answers', 'producer')")
    assert peer.do("[points.dtype.names, points.dtype.itemsize]") == [["t", "x", "mode"], POINT.itemsize]
    points.write((1.5, (1, 2, 3), 7))
    assert peer.do("float(points.read()['t'])") == 1.5 and peer.do("points.read()['x'].tolist()") == [1, 2, 3]
    assert peer.do("answers.push(numpy.arange(3))") == 3
    assert answers.drain().tolist() == [0, 1, 2]
    assert f"process {os.getpid()}" in peer.do(f"rtloop.Latest.open('{name} points', 'writer')")[1]


@pytest.mark.parametrize(
    "dtype", [POINT, np.dtype([("a", [("b", "<i4"), ("c", ">f8", (2, 3))]), ("é x", "S3")]), "M8[ns]", "U4", "c16", "?"]
)
def test_any_plain_type_is_described_to_other_processes(name: str, dtype: Any) -> None:
    with Latest(dtype, share=name), Latest.open(name) as reader:
        assert reader.dtype == np.dtype(dtype)
    share = name + " ring"
    with Ring(dtype, 3, share=share, role="consumer") as consumer, Ring(dtype, 3, share=share) as producer:
        assert (producer.dtype, consumer.role) == (np.dtype(dtype), "consumer")


def test_a_type_that_cannot_be_described_is_refused(name: str) -> None:
    disordered = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 0]})
    with pytest.raises(ConfigError, match="cannot be described to other processes"):
        Latest(disordered, share=name)
    assert find_exchanges(name) == {} and Latest(disordered).written == 0


def test_up_to_so_many_readers_as_it_was_made_for(name: str) -> None:
    writer = Latest("i8", share=name, readers=3)
    readers = [Latest.open(name) for _ in range(3)]
    for number in range(1, 50):
        writer.write(number)
        for nth, reader in enumerate(readers):
            if number % (nth + 1) == 0:
                assert (reader.is_new, reader.read()) == (True, number)
    with pytest.raises(StateError, match=rf"3 readers already: (process {os.getpid()} .*){{3}}readers=N"):
        Latest.open(name)
    readers[1].close()
    assert Latest.open(name).read() == 49


def test_an_exchange_that_differs_is_refused_with_both(name: str) -> None:
    writer, ring = Latest("f8", share=name, role="reader"), Ring("i4", 8, share=name + " ring")
    with pytest.raises(ConfigError, match="exists and has items of float64, not int32"):
        Latest("i4", share=name)
    with pytest.raises(ConfigError, match="has items of float64, not int32"):
        Latest.open(name, "writer", dtype="i4")
    with pytest.raises(ConfigError, match="readers = 1, not 2"):
        Latest("f8", share=name, readers=2)
    with pytest.raises(ConfigError, match="clock monotonic, not tai"):
        Latest("f8", share=name, clock="tai")
    with pytest.raises(ConfigError, match="capacity of 8, not 9"):
        Ring("i4", 9, share=ring.share)
    with pytest.raises(ConfigError, match="is a Latest, not a Ring"):
        Ring("f8", 9, share=writer.share)
    with pytest.raises(ConfigError, match=r"is a Ring: use Ring\.open"):
        Latest.open(ring.share or "")
    with pytest.raises(AttachError, match=rf"no shared exchange 'nothing' of this user; there are: .*{name}"):
        Ring.open("nothing")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"role": "reader"}, "needs share="), ({"readers": 2}, "needs share="), ({"share": ""}, "is not a name"),
        ({"share": "a\nb"}, "is not a name"), ({"share": "x" * 201}, "is not a name"),
        ({"share": " a"}, "is not a name"),
        ({"share": b"a"}, "is not a name"), ({"share": "a\0"}, "is not a name"),
        ({"share": "a", "readers": 0}, "1 to 32"),
        ({"share": "a", "readers": 33}, "1 to 32"), ({"share": "a", "role": "consumer"}, "writer, reader"),
    ],
)  # fmt: skip
def test_an_argument_that_can_never_work_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Latest("f8", **arguments)


@pytest.mark.parametrize("text", ["x", "arm/setpoint", "../..", "a b", "Zähler µ/°", "🤖", "' \"%s{}\\", "é" * 40])
def test_a_name_is_any_printable_text(text: str) -> None:
    text += str(os.getpid())
    with Latest("i8", share=text) as writer, Latest.open(text) as reader:
        writer.write(3)
        assert reader.read() == 3 and reader.share == text
    assert find_exchanges(text) == {}


def test_a_name_is_not_the_beginning_of_another(name: str) -> None:
    longer = Latest("i8", share=name + "/more")
    with pytest.raises(AttachError, match="there are: "):
        Latest.open(name)
    assert longer.share == name + "/more"


def test_a_writer_that_is_killed_has_a_successor(name: str, start: Callable[[], Peer]) -> None:
    peer = start()
    peer.do(f"!writer = rtloop.Latest('i8', share={name!r})")
    reader = Latest.open(name)
    assert peer.do("[writer.write(n) for n in range(10)]") and reader.read() == 9
    with pytest.raises(StateError, match=rf"one writer already: process {peer.pid}"):
        Latest("i8", share=name)
    peer.kill()
    assert reader.read() == 9, "it is still there"
    with Latest("i8", share=name) as successor:
        assert successor.written == 10
        successor.write(77)
        assert reader.read() == 77 and reader.written == 11


def test_a_ring_keeps_its_items_when_a_side_is_killed(name: str, start: Callable[[], Peer]) -> None:
    peer = start()
    peer.do(f"!ring = rtloop.Ring('i8', 100, share={name!r})")
    consumer = Ring.open(name)
    peer.do("ring.push(numpy.arange(10))")
    peer.kill()
    assert consumer.pop() == 0
    producer = Ring("i8", 100, share=name)
    producer.push(np.arange(10, 20))
    consumer.close()
    other = start()
    assert other.do(f"!ring = rtloop.Ring.open({name!r})") is None and other.do("int(ring.pop())") == 1
    other.kill()
    assert Ring.open(name).drain().tolist() == list(range(2, 20)), "nothing is lost, and nothing comes twice"


def test_an_exchange_outlives_its_creator_but_not_its_last_user(name: str, start: Callable[[], Peer]) -> None:
    creator, other = start(), start()
    creator.do(f"!made = rtloop.Latest('i8', share={name!r}); made.write(5)")
    other.do(f"!reader = rtloop.Latest.open({name!r})")
    creator.kill()
    (inode,) = find_exchanges(name)
    with Latest("i8", share=name) as successor:
        successor.write(6)
        assert other.do("reader.read()") == 6 and list(find_exchanges(name)) == [inode]
    del successor
    other.kill()
    assert find_exchanges(name) == {}
    assert Latest("i8", share=name).written == 0, "it is another one"


def test_waiting_for_a_creator_does_not_keep_it_waiting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ring("i8", 8, share=f"{name}/finished"):
        (finished,) = find_exchanges(f"{name}/finished").values()
    file, _ = create_file(name, finished.header.plan)
    with monkeypatch.context() as watched:
        watched.setattr(found_exchanges, "create_file", lambda *_: pytest.fail("the creator waits until this one ends"))
        assert found_exchanges.share_by_proc(name, finished.header.plan, "producer") is None
    os.close(file)
    assert Ring("i8", 8, share=name).role == "producer"


def test_of_many_creators_at_once_one_creates_it(name: str) -> None:
    made, refused = create_at_once(lambda: Ring("i8", 8, share=name))
    assert len(made) == 1 and len(refused) == 5 and all(f"process {os.getpid()}" in text for text in refused)
    assert len(find_exchanges(name)) == 1


def test_of_many_processes_at_once_one_is_the_writer(name: str, start: Callable[[], Peer]) -> None:
    peers = [start() for _ in range(3)]
    for round_ in range(4):
        share = f"{name}/{round_}"
        for peer in peers:
            peer.do("1")
        for peer in peers:
            peer.ask(f"!made = rtloop.Latest('i8', share={share!r})")
        answers = [peer.answer() for peer in peers]
        assert sum(answer is None for answer in answers) == 1, answers
        assert len(find_exchanges(share)) == 1
        for peer in peers:
            peer.do("!made = None")


@pytest.mark.usefixtures("wiped_children")
def test_a_forked_child_has_no_part_in_it(name: str, exchanges: ModuleType) -> None:
    writer, reader = Latest("i8", share=name), Latest.open(name)
    producer, consumer = Ring("i8", 8, share=name + " ring"), Ring.open(name + " ring")
    writer.write(5)
    producer.push(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            for call in (reader.read, lambda: writer.write(1), lambda: producer.push(1)):
                with pytest.raises(StateError, match="does not survive a fork"):
                    call()
            exchanges.write(writer, 1.0)
            assert exchanges.read(reader) == (False, -1.0)
            assert not exchanges.push(producer, 1) and exchanges.pop(consumer) == (False, 0)
            assert len(consumer) == consumer.capacity == 0 and not reader.is_locked
            links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd != "0"
                     and os.path.exists(f"/proc/self/fd/{fd}")]  # fmt: skip
            assert not any("rtloop-exchange" in link for link in links)
            writer.close()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(StateError, match="one writer already"):
        Latest("i8", share=name)
    assert (reader.read(), consumer.drain().tolist()) == (5, [6])


def test_a_child_that_outlives_its_parent_keeps_no_role(name: str, start: Callable[[], Peer]) -> None:
    peer = start()
    peer.do(f"!writer = rtloop.Latest('i8', share={name!r})")
    child = peer.do("(lambda pid: pid or (time.sleep(600), os._exit(0)))(os.fork())")
    try:
        peer.kill()
        assert Latest("i8", share=name).written == 0
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_closed_one_has_no_effect_and_its_role_is_free(name: str, exchanges: ModuleType) -> None:
    writer, reader = Latest("f8", share=name), Latest.open(name)
    exchanges.write(writer, 1.0)
    writer.close()
    writer.close()
    exchanges.write(writer, 2.0)
    with pytest.raises(StateError, match="is closed"):
        writer.write(2.0)
    assert (reader.read(), writer.written, writer.age_ns) == (1.0, 0, None)
    assert Latest("f8", share=name).written == 1
    ring = Ring("i8", 8, share=name + " ring")
    ring.close()
    assert not exchanges.push(ring, 1) and len(ring) == ring.capacity == 0
    with pytest.raises(StateError, match="is closed"):
        ring.push(1)
    plain = Latest("f8")
    plain.close()
    plain.write(1.0)
    assert (plain.share, plain.role, plain.read()) == (None, None, 1.0)


def test_a_view_keeps_a_ring_from_being_closed(name: str) -> None:
    producer, consumer = Ring("i8", 8, share=name), Ring.open(name)
    producer.push(np.arange(3))
    with consumer.view() as items:
        with pytest.raises(StateError, match="leave its with statement"):
            consumer.close()
        assert items.tolist() == [0, 1, 2]
    consumer.close()


def test_a_loop_answers_another_process(
    name: str, exchanges: ModuleType, ordinary: dict[str, Any], start: Callable[[], Peer]
) -> None:
    commands = Ring("i8", 100, share=name + " commands", role="consumer")
    answers = Ring("i8", 100, share=name + " answers")
    peer = start()
    peer.do(f"!commands = rtloop.Ring.open('{name} commands', 'producer')")
    peer.do(f"!answers = rtloop.Ring.open('{name} answers')")
    with exchanges.Doubler("1ms", commands=commands, answers=answers, **ordinary):
        peer.do("commands.push(numpy.arange(50))")
        found: list[int] = []
        deadline = time.monotonic() + 60
        while len(found) < 50 and time.monotonic() < deadline:
            found += peer.do("answers.drain().tolist()")
    assert found == [2 * n for n in range(50)]


def test_a_derived_class_in_cython_is_refused(name: str, exchanges: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"derives from Latest cannot be shared: use a Latest as its field"):
        exchanges.Derived("f8", share=name)
    assert find_exchanges(name) == {}

    class InPython(Latest):
        pass

    writer = InPython("f8", share=name)
    writer.write(2.0)
    assert type(InPython.open(name)) is InPython and writer.written == 1


def test_what_fails_leaves_no_file_open(name: str) -> None:
    kept = Latest("f8", share=name)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(StateError):
            Latest("f8", share=name)
        with pytest.raises(ConfigError):
            Latest("f4", share=name)
        with pytest.raises(AttachError):
            Latest.open("nothing")
    assert len(os.listdir("/proc/self/fd")) < before + 20 and kept.written == 0


def find_fd(name: str) -> int:
    """Open the file of an exchange, as a hostile process of the same user could."""
    (found,) = find_exchanges(name).values()
    return os.open(found.files[0].path, os.O_RDWR)


def test_it_cannot_be_resized(name: str) -> None:
    kept = Latest("f8", share=name)
    fd = find_fd(name)
    for size in (0, 4096, 1 << 24):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    os.close(fd)
    assert kept.written == 0


@pytest.mark.parametrize("seed", range(2))
def test_damage_of_the_data_leads_to_no_access_outside(name: str, seed: int) -> None:
    writer, reader = Latest("i8", share=name, readers=2), Latest.open(name)
    producer, consumer = Ring("i8", 5, share=name + " ring"), Ring.open(name + " ring")
    chance = random.Random(seed)
    files = [(find_fd(name), 4096), (find_fd(name + " ring"), 4096)]
    for step in range(1500):
        for fd, _ in files:
            size = os.fstat(fd).st_size
            at = chance.choice(
                [
                    size - mmap.PAGESIZE + 64 * chance.randrange(6),
                    chance.randrange(size - mmap.PAGESIZE, size - 8) // 8 * 8,
                ]
            )
            os.pwrite(fd, struct.pack("<Q", chance.choice([0, 1, 2**64 - 1, chance.getrandbits(64)])), at)
        writer.write(step)
        reader.read()
        reader.is_new, writer.written, writer.age_ns  # noqa: B018
        producer.push(np.arange(chance.randrange(1, 40)))
        assert len(consumer) <= 5
        consumer.pop()
        assert len(consumer.drain()) <= 5
        with consumer.view() as items:
            assert len(items) <= 8
        if step % 50 == 0:
            writer.close()
            writer = Latest.open(name, "writer")
    for fd, _ in files:
        os.close(fd)


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_header_is_refused_and_never_believed(name: str, seed: int) -> None:
    kept = Latest(POINT, share=name)
    fd = find_fd(name)
    genuine = os.pread(fd, 4096 + 400, 0)
    chance = random.Random(seed)
    opened = 0
    for _ in range(60):
        damaged = bytearray(genuine)
        for _ in range(chance.randrange(1, 4)):
            at = chance.choice([chance.randrange(0, 36), chance.randrange(4096, len(damaged))])
            damaged[at] = chance.randrange(256)
        os.pwrite(fd, damaged, 0)
        try:
            with Latest.open(name, dtype=POINT) as reader:
                reader.read()
                opened += 1
        except (AttachError, ConfigError, StateError):
            pass
    os.pwrite(fd, genuine, 0)
    os.close(fd)
    assert opened < 60
    with Latest.open(name) as reader:
        assert reader.dtype == POINT and kept.written == 0


def test_a_file_that_is_not_sealed_is_not_an_exchange(name: str) -> None:
    kept = Latest("f8", share=name)
    fd = find_fd(name)
    content = os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)
    del kept
    planted = os.memfd_create(f"rtloop-exchange:{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(planted, content)
    faulty: dict[int, str] = {}
    assert find_exchanges(name, faulty=faulty) == {} and "not sealed" in faulty[os.getpid()]
    fcntl.fcntl(planted, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    assert Latest.open(name).read() == 0.0, "its content decides"
    os.close(planted)


def test_one_that_takes_more_memory_than_there_is_is_refused(name: str) -> None:
    """Its file has holes, which cost its maker nothing. The kernel would kill whoever makes them present."""
    with Ring("f8", 8, share=f"{name}/small"):
        (small,) = find_exchanges(f"{name}/small").values()
    plan = small.header.plan._replace(capacity=1 << 42, data_bytes=small.header.plan.data_bytes - 64 + (1 << 45))
    file, _ = create_file(name, plan)
    finish_file(file)
    with pytest.raises(MemoryError, match="a shared exchange: asked for 32768 GiB, granted none"):
        Ring.open(name)
    os.close(file)


def test_it_is_not_in_the_file_system(name: str) -> None:
    folders = [Path("/dev/shm"), Path("/tmp"), Path("/run")]
    before = [set(os.listdir(folder)) for folder in folders if folder.is_dir()]
    with Latest("f8", share=name):
        after = [set(os.listdir(folder)) for folder in folders if folder.is_dir()]
    assert not any("rtloop-exchange" in entry for old, new in zip(before, after, strict=True) for entry in new - old)


def test_it_cannot_be_pickled(name: str) -> None:
    import pickle

    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Latest("f8", share=name))
    assert rtloop.Latest is Latest


def test_the_command_lists_who_writes_and_who_reads(name: str, start: Callable[[], Peer]) -> None:
    pytest.importorskip("click", reason="the command line needs rtloop[cli]")
    peer = start()
    latest, ring = Latest(POINT, share=f"{name} a", readers=2), Ring("i8", 10, share=f"{name} b")
    peer.do(f"!latest = rtloop.Latest.open('{name} a')")
    latest.write((1, (2, 3, 4), 5))
    ring.push(np.arange(12))
    command = [sys.executable, "-P", "-m", "rtloop", "exchanges", "--over", "1ms"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=120)
    found = {one["name"]: one for one in json.loads(done.stdout)["exchanges"]}
    value, queue = found[f"{name} a"], found[f"{name} b"]
    assert (value["kind"], value["item_bytes"], value["most_readers"]) == ("latest", POINT.itemsize, 2)
    assert value["writer"]["pid"] == os.getpid() and [one["pid"] for one in value["readers"]] == [peer.pid]
    assert value["pids"] == sorted([os.getpid(), peer.pid]) and value["written"] == 1 and value["age_ns"] > 0
    assert (queue["fill"], queue["capacity"], queue["dropped"], queue["high_water"]) == (10, 10, 2, 10)
    assert queue["readers"] == [] and queue["written"] == 10 and queue["age_ns"] is None and queue["rate_hz"] == 0
    peer.kill()
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    (row,) = [line for line in shown.splitlines() if f"{name} b" in line]
    assert "10/10 (most 10)" in row and " 2" in row and str(os.getpid()) in row
    (row,) = [line for line in shown.splitlines() if f"{name} a" in line]
    assert str(peer.pid) not in row


def test_a_process_that_is_killed_at_any_system_call_of_its_claim_leaves_the_role_free(name: str) -> None:
    script = Path(__file__).parents[1] / "support" / "killed_claims.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), name], capture_output=True, text=True, timeout=200, check=False
    )
    if done.stderr.startswith("cannot trace"):
        pytest.skip(f"ptrace(2) is refused here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    kills = dict(part.rsplit(" ", 1) for part in done.stdout.strip().split(", "))
    sides = {"create", "writer", "reader", "producer", "consumer"}
    assert kills.keys() == {*sides, "creation at a path", "opening of a path"}
    assert min(map(int, kills.values())) >= 8, "each claim locks, notes its holder, and maps the file"
