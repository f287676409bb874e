"""Hosts whose clocks disagree: simulated by shifting the stamps of frames, never by setting a clock."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rtloop import Ring, RTSetupWarning
from rtloop.data.record_clock import infer_clock, read_clocks
from rtloop.data.record_files import McapFile
from rtloop.zenoh.frames import Frame, pack, unpack
from rtloop.zenoh.host_clocks import Arrival, HostClocks
from rtloop.zenoh.recording import Channel, Recording, times_of

S = 1_000_000_000
BEGIN = 1_700_000_000 * S
BOOT = 5_000 * S


class Network:
    """Hosts in made-up time, this one among them: each frame leaves with its host's stamps, and arrives here later."""

    def __init__(self, tai_offset_s: int = 37) -> None:
        self.tai_s = tai_offset_s
        self.seen = HostClocks()
        self.own_shift = 0

    def frame(self, at_s: float, host: str = "slow", shift: int = 0, delay: int = S // 1000, **about: Any) -> list[Any]:
        now = round(at_s * S)
        realtime = BEGIN + now + shift
        tai_s = about.pop("tai_s", self.tai_s)
        sent = {"realtime": realtime, "tai": realtime + tai_s * S, "monotonic": BOOT + now, "boottime": BOOT + now}
        here = BEGIN + now + delay + self.own_shift
        arrival = Arrival(here, 9 * BOOT + now + delay, here + self.tai_s * S)
        said = {"host": host, "bridge_id": f"of {host}", "clocks": sent, **about}
        return self.seen.add(f"rtloop/{host}/arm", said, arrival)

    def run(self, seconds: float, begin: float = 0.0, shift: Any = 0, **more: Any) -> None:
        for k in range(round(seconds * 20)):
            at = begin + k / 20
            self.frame(at, shift=shift(at) if callable(shift) else shift, **more)


def test_hosts_whose_clocks_agree_are_not_reported() -> None:
    net = Network()
    net.run(30)
    net.run(30, host="other", shift=-20_000_000, delay=400_000_000)  # a slow network, and 20 ms off
    assert net.seen.problems() == [] and net.seen.news() == []


def test_a_host_behind_and_one_ahead_are_named_with_the_least_difference() -> None:
    net = Network()
    for k in range(100):
        net.frame(k / 20, "slow", -49 * S, delay=(k % 7) * 100_000_000)
        net.frame(k / 20, "fast", 90_000_000, delay=(k % 7) * 100_000_000)
    slow, fast = net.seen.problems()
    assert slow.startswith("slow is 49 s behind this host: ")
    assert fast.startswith("fast is 90 ms ahead of this host: ")
    about = {one["host"]: one for one in net.seen.to_dict()["hosts"]}
    assert about["slow"]["least_ns"] == about["slow"]["behind_ns"] == 49 * S
    assert about["fast"]["least_ns"] == about["fast"]["behind_ns"] == -90_000_000


@pytest.mark.parametrize(("shift", "frames"), [(-49 * S, 3), (49 * S, 1), (-2 * S, 25)])
def test_a_difference_is_reported_at_once_and_only_once(shift: int, frames: int) -> None:
    net = Network()
    told: list[str] = []
    for k in range(200):
        net.frame(k / 20, shift=shift)
        if found := net.seen.news():
            told += found
            assert k + 1 == frames if abs(shift) > 10 * S else k + 1 <= frames
    assert len(told) == 1


def test_delayed_frames_do_not_make_a_host_late() -> None:
    net = Network()
    net.frame(0, delay=4 * S)
    net.frame(0.05, delay=4 * S)
    net.frame(0.1, delay=4 * S)
    net.run(60, begin=1)
    net.frame(70, delay=30 * S)
    assert net.seen.problems() == [] and net.seen.news() == []


@pytest.mark.parametrize("size", [-49 * S, 49 * S, 300_000_000])
def test_a_clock_set_in_the_middle_is_a_jump_with_its_size(size: int) -> None:
    net = Network()
    net.run(10)
    assert [jump.size_ns for jump in net.frame(10, shift=size)] == [size]
    net.run(10, begin=10.05, shift=size)
    assert net.seen.jumps == [], "this host's clock has not jumped"
    first, *others = net.seen.problems()
    assert first.startswith("the clock of slow jumped by ") and len(others) == 1


def test_a_clock_that_is_set_right_keeps_its_past_difference_in_the_report() -> None:
    net = Network()
    net.run(10, shift=-49 * S)
    net.run(10, begin=10)
    jump, past = net.seen.problems()
    assert "jumped by +49 s" in jump and past.startswith("slow is 49 s behind this host")


def test_a_jump_of_this_hosts_own_clock_is_not_blamed_on_others() -> None:
    net = Network()
    net.run(10)
    net.own_shift = 49 * S
    net.run(10, begin=10)
    assert [jump.size_ns for jump in net.seen.jumps] == [49 * S]
    assert net.seen.problems()[0].startswith("this host's clock jumped by +49 s")
    assert all(not clock.jumps for clock in net.seen.hosts.values())


@pytest.mark.parametrize(("ppm", "words"), [(500, "fell ahead"), (-500, "fell behind")])
def test_a_slow_drift_is_reported_as_one(ppm: int, words: str) -> None:
    net = Network()
    net.run(180, shift=lambda at: round(at * ppm * 1000))  # as fast as the kernel lets a clock slew
    drift = [text for text in net.seen.problems() if "drifts" in text]
    assert drift == [] and all(not clock.jumps for clock in net.seen.hosts.values()), "90 ms are too little to tell"
    net = Network()
    net.run(1200, shift=lambda at: round(at * ppm * 1000))
    assert any("the clock of slow drifts" in text and words in text for text in net.seen.problems())
    assert all(not clock.jumps for clock in net.seen.hosts.values())


def test_a_restart_of_a_host_is_not_a_jump() -> None:
    net = Network()
    net.run(5)
    said = {"host": "slow", "bridge_id": "another", "clocks": {"realtime": BEGIN + 6 * S, "boottime": 3 * S}}
    assert net.seen.add("rtloop/slow/arm", said, Arrival(BEGIN + 6 * S, 9 * BOOT + 6 * S)) == []


def test_tai_offsets_that_differ_are_named() -> None:
    net = Network(tai_offset_s=37)
    net.run(2, host="told")
    net.run(2, host="untold", tai_s=0)
    assert len(net.seen.problems()) == 1
    assert "the TAI offset of untold is 0 s, and that of this host is 37 s" in net.seen.problems()[0]


def test_hosts_of_one_name_are_told_apart_by_their_keys() -> None:
    seen = HostClocks()
    for k in range(50):
        for key, shift in (("rtloop/a/arm", 0), ("rtloop/b/arm", 49 * S)):
            now = k * S // 20
            about = {"host": "pi", "clocks": {"realtime": BEGIN + now + shift, "boottime": BOOT + now}}
            seen.add(key, about, Arrival(BEGIN + now, 9 * BOOT + now))
    (problem,) = seen.problems()
    assert problem.startswith("pi (rtloop/b/arm) is 49 s ahead of this host")


@pytest.mark.parametrize("said", [None, 7, {"realtime": "x"}, {"realtime": -1}, {"realtime": 1 << 70}, {"tai": 5}])
def test_what_a_peer_makes_up_as_its_clocks_is_ignored(said: Any) -> None:
    seen = HostClocks()
    assert seen.add("k", {"host": ["x"], "clocks": said, "time_sync": 5}, Arrival(BEGIN, BOOT)) == []
    assert seen.problems() == []


# Recordings and commands


@pytest.fixture
def network(tmp_path: Path) -> SimpleNamespace:
    """A network on this machine: a bridge can listen (`here`) or, with a router, connect (`client`)."""
    pytest.importorskip("zenoh", reason="Zenoh is missing: pip install 'rtloop[zenoh]'")
    from rtloop import PyLoop
    from rtloop.zenoh import open_session

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp/127.0.0.1:{probe.getsockname()[1]}"
    quiet = {"scouting": {"multicast": {"enabled": False}}}
    here = {**quiet, "listen": {"endpoints": [address]}}
    client = {**quiet, "mode": "client", "connect": {"endpoints": [address]}}
    file = tmp_path / "operator.json5"
    file.write_text(json.dumps(client))
    return SimpleNamespace(
        here=here, client=client, file=str(file), router=lambda: open_session({**here, "mode": "router"}),
        loop=lambda name: PyLoop(lambda cycle: None, "5ms", name=name, strict=False, policy="other", lock_memory="off"),
    )  # fmt: skip


@pytest.fixture
def recording(tmp_path: Path) -> Any:
    pytest.importorskip("mcap", reason="the package mcap is missing")
    pytest.importorskip("zenoh", reason="Zenoh is missing: pip install 'rtloop[zenoh]'")
    quiet = {"scouting": {"multicast": {"enabled": False}}, "listen": {"endpoints": ["tcp/127.0.0.1:0"]}}
    return lambda **more: Recording("x/*", tmp_path / "a.mcap", config=quiet, **more)


def send(recording: Recording, first: int, at_s: float, shift: int = 0, bridge: str = "one", count: int = 1) -> None:
    now = round(at_s * S)
    sent = {"realtime": BEGIN + now + shift, "boottime": BOOT + now}
    payload = pack(np.zeros(count), first=first, host="slow", bridge_id=bridge, clocks=sent, dropped=1)
    recording._take("x/y/signals/z", payload, Arrival(BEGIN + now, BOOT + now))


def test_a_jump_is_marked_in_the_file_between_the_records(recording: Any, tmp_path: Path) -> None:
    reader = pytest.importorskip("mcap.reader", reason="the package mcap is missing")
    told: list[str] = []
    with recording(on_problem=told.append) as made:
        for k in range(100):
            send(made, k, k / 20, -49 * S if k < 60 else 0)
        made.run(0.01)
        assert any(text.startswith("slow is 49 s behind this host") for text in told), "at once"
        assert any("the clock of slow jumped by +49 s" in text for text in told)
    with (tmp_path / "a.mcap").open("rb") as file:
        metadata = [one.metadata for one in reader.make_reader(file).iter_metadata() if one.name == "rtloop.clock"]
    jump, summary = metadata
    assert (jump["event"], jump["host"], jump["size_ns"]) == ("jump", "slow", str(49 * S))
    assert jump["time_ns"] == str(BEGIN + 3 * S)
    assert summary["event"] == "summary" and json.loads(summary["jumps"])[0]["size_ns"] == 49 * S


def test_without_a_callback_a_disagreement_is_a_warning(recording: Any) -> None:
    made = recording()
    for k in range(5):
        send(made, k, k / 20, -49 * S)
    with pytest.warns(RTSetupWarning, match="slow is 49 s behind this host"):
        made.close()


def test_two_bridges_of_one_key_are_counted_apart_and_named(recording: Any) -> None:
    told: list[str] = []
    with recording(on_problem=told.append) as made:
        for k in range(20):
            send(made, 10 * k, k / 20, bridge="one", count=10)
            send(made, 10 * k, k / 20, bridge="two", count=10)
        channel = made.channels["x/y/signals/z"]
        assert (channel.records, channel.lost, channel.dropped) == (400, 0, 2)
        made.run(0.01)
    assert told == ["2 bridges have the key x/y at the same time: give each bridge its own, Bridge(key=...)"]


def test_a_bridge_that_replaces_another_is_not_a_second_one(recording: Any) -> None:
    with recording() as made:
        for k in range(5):
            send(made, k, k / 20, bridge="one")
        for k in range(5):
            send(made, k, 5 + k / 20, bridge="two")
        assert made.problems == []


def serve(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    """Shift the stamps of bridges in this process."""
    from rtloop.zenoh import feeds

    def shifted() -> dict[str, int]:
        return {name: value + (shift if name in ("realtime", "tai") else 0) for name, value in read_clocks().items()}

    monkeypatch.setattr(feeds, "read_clocks", shifted)


@pytest.mark.parametrize(("shift", "code"), [(-49 * S, 3), (0, 0)])
def test_record_strict_ends_with_another_exit_code(
    shift: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: SimpleNamespace
) -> None:
    pytest.importorskip("mcap", reason="the package mcap is missing")
    from rtloop.tools.cli import make_group
    from rtloop.zenoh import Bridge

    serve(monkeypatch, shift)
    ring, stop = Ring("f8", 1000), threading.Event()

    def push() -> None:
        while not stop.wait(0.005):
            ring.push(1.0)

    pusher = threading.Thread(target=push)
    with Bridge(network.loop("arm"), config=network.here, key="rtloop/slow/arm", signals={"z": ring}, batch="10ms"):
        pusher.start()
        try:
            options = ["-o", str(tmp_path / "a.mcap"), "--duration", "3s", "--config", network.file, "--json"]
            done = CliRunner().invoke(make_group(), ["record", "--zenoh", "rtloop/**", *options, "--strict"])
            assert done.exit_code == code, done.output
            document = json.loads(done.stdout)
            assert [" is 49 s behind this host" in text for text in document["problems"]] == [True] * bool(shift)
            assert document["clocks"]["hosts"][0]["key"] == "rtloop/slow/arm"
            assert ("is 49 s behind this host" in done.stderr) == bool(shift), "at once"
        finally:
            stop.set()
            pusher.join()


@pytest.mark.parametrize("shift", [-49 * S, 49 * S, 0])
def test_top_names_a_host_whose_clock_disagrees(
    shift: int, monkeypatch: pytest.MonkeyPatch, network: SimpleNamespace
) -> None:
    from rtloop.tools.cli import make_group
    from rtloop.zenoh import Bridge, answers

    monkeypatch.setattr(
        answers, "time", SimpleNamespace(monotonic=time.monotonic, time_ns=lambda: time.time_ns() + shift)
    )
    with Bridge(network.loop("arm"), config=network.here, key="rtloop/slow/arm"):
        done = CliRunner().invoke(make_group(), ["top", "--zenoh", "--config", network.file, "--json"])
        document = json.loads(done.stdout)
        side = {-1: "behind", 1: "ahead of"}.get(np.sign(shift), "")
        assert [f" is 49 s {side} this host" in text for text in document["warnings"]] == [True] * bool(shift)
        clock = document["loops"][0]["clock"]
        assert np.sign(clock["behind_ns"]) == -np.sign(shift)
        assert {"is_synchronised", "estimated_error_ns", "max_error_ns", "tai_offset_s"} <= clock.keys()


def test_top_shows_both_bridges_of_one_key_and_says_so(network: SimpleNamespace) -> None:
    from rtloop.tools.cli import make_group
    from rtloop.zenoh import Bridge

    with (
        network.router(),
        Bridge(network.loop("arm"), config=network.client, key="rtloop/pi/arm"),
        Bridge(network.loop("arm"), config=network.client, key="rtloop/pi/arm"),
    ):
        done = CliRunner().invoke(make_group(), ["top", "--zenoh", "--config", network.file, "--json"])
        document = json.loads(done.stdout)
        assert len(document["loops"]) == len({row["bridge_id"] for row in document["loops"]}) == 2
        assert [text.startswith("2 bridges have the key rtloop/pi/arm") for text in document["warnings"]] == [True]


def test_a_bridge_publishes_the_state_of_its_clock(network: SimpleNamespace) -> None:
    from rtloop.zenoh import Bridge

    with Bridge(network.loop("arm"), config=network.here, key="rtloop/pi/arm") as bridge:
        said = bridge.describe()
        assert said["time_sync"].keys() == {"is_synchronised", "estimated_error_ns", "max_error_ns", "tai_offset_s"}
        assert len(said["bridge_id"]) == 16


# The clock that a record's times are on


@pytest.mark.parametrize("age_s", [0, 10, 19, 30, 36])
def test_a_tai_record_of_any_age_up_to_its_offset_is_placed_by_tai(age_s: int) -> None:
    read = {"realtime": BEGIN, "tai": BEGIN + 37 * S, "monotonic": BOOT, "boottime": BOOT + 7 * S}
    assert infer_clock(read["tai"] - age_s * S, read)[0] == ("tai" if age_s < 36 else "realtime")
    for declared in ("tai", "realtime"):
        if declared == "tai" or age_s == 0:
            assert infer_clock(read[declared] - age_s * S, read, declared)[0] == declared
    assert infer_clock(read["tai"] - 100 * S, read, "tai")[0] == "tai"
    assert infer_clock(read["realtime"] - 100 * S, read, "realtime")[0] == "realtime"
    assert infer_clock(read["tai"] - 100 * S, read, known="tai")[0] == "tai"
    assert infer_clock(read["boottime"] - age_s * S, read, "boottime")[0] == "boottime"
    assert infer_clock(read["monotonic"] - age_s * S, read, "tai")[0] in ("monotonic", "boottime"), (
        "a false declaration"
    )


def test_an_old_record_in_a_recording_is_placed_by_the_clock_that_its_frame_declares() -> None:
    dtype = np.dtype([("release", "<i8")])
    read = {"realtime": BEGIN, "tai": BEGIN + 37 * S, "monotonic": BOOT, "boottime": BOOT}
    records = np.array([(read["tai"] - 25 * S,), (read["tai"] - 20 * S,)], dtype)
    right = [BEGIN - 25 * S, BEGIN - 20 * S]
    assert times_of(Frame(records, {"clocks": read}), Channel(0, dtype), 7) == right
    records["release"] -= 100 * S
    assert times_of(Frame(records, {"clocks": read, "clock": "tai"}), Channel(0, dtype), 7) == [
        one - 100 * S for one in right
    ]


def test_a_bridge_declares_the_clock_of_its_loops_and_of_a_pair() -> None:
    from rtloop import ConfigError
    from rtloop.zenoh.feeds import Signal

    sent: list[bytes] = []
    publisher: Any = SimpleNamespace(matching_status=SimpleNamespace(matching=True), put=sent.append)
    ring = Ring(np.dtype([("release", "<i8")]), 8)
    for source, clock in ((ring, "boottime"), ((ring, "tai"), "tai")):
        signal = Signal("z", source, "id", "boottime")
        ring.push((1,))
        signal.drain(publisher)
        signal.close()
        about = unpack(sent.pop()).about
        assert (about["clock"], about["bridge_id"], set(about["clocks"])) == (clock, "id", set(read_clocks()))
    own = Ring(np.dtype([("time", "<i8")]), 8)
    assert Signal("z", own, "id", "boottime").clock is None, "a program's own stamps may be on any clock"
    with pytest.raises(ConfigError, match="'utc' is not a clock"):
        Signal("z", (ring, "utc"))


@pytest.mark.parametrize("name", ["realtime", "tai", "monotonic", "boottime"])
def test_a_recorder_places_a_record_of_each_clock_at_its_time_of_day(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = pytest.importorskip("mcap.reader", reason="the package mcap is missing")
    from rtloop.data import record_files

    read = {"realtime": BEGIN, "tai": BEGIN + 37 * S, "monotonic": BOOT, "boottime": BOOT + 500 * S}
    monkeypatch.setattr(record_files, "read_clocks", lambda: dict(read))
    dtype = np.dtype([("release", "<i8")])
    file = McapFile(tmp_path / "a.mcap", dtype, "/x")
    file.append(np.array([(read[name] - S,)], dtype))
    file.close({})
    with (tmp_path / "a.mcap").open("rb") as stream:
        assert [m.log_time for _, _, m in reader.make_reader(stream).iter_messages()] == [BEGIN - S]
