"""A bridge: what peers see and may set, refusals, and that messages never delay the loop's cycles."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import rtloop
from rtloop import ConfigError, Latest, LoopGroup, PyLoop, Recorder, Ring, RTSetupWarning, StateError

zenoh = pytest.importorskip("zenoh", reason="Zenoh is missing: pip install 'rtloop[zenoh]'")

from rtloop.zenoh import Bridge, Remotes, pack, unpack  # noqa: E402
from rtloop.zenoh import bridge as bridge_module  # noqa: E402
from rtloop.zenoh import session as session_module  # noqa: E402
from rtloop.zenoh.answers import Commands, StatsText  # noqa: E402
from rtloop.zenoh.feeds import NUMBERED, Setpoint, Signal  # noqa: E402
from rtloop.zenoh.remote import parse_stats  # noqa: E402
from rtloop.zenoh.session import close_session  # noqa: E402

POINT = np.dtype([("angle", "f8"), ("mode", "u1"), ("on", "?")], align=True)
KEY = "rtloop/here/servo"


def until(done: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for what comes over a network; the deadline is generous, for the machine may be busy."""
    limit = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < limit, "it has not come"
        time.sleep(0.01)
    return found


def alone(**more: Any) -> dict[str, Any]:
    """Return a configuration that meets nobody by chance."""
    return {"scouting": {"multicast": {"enabled": False}, "gossip": {"enabled": False}}, **more}


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def here(port: int) -> dict[str, Any]:
    return alone(listen={"endpoints": [f"tcp/127.0.0.1:{port}"]})


@pytest.fixture
def there(port: int) -> dict[str, Any]:
    return alone(connect={"endpoints": [f"tcp/127.0.0.1:{port}"]}, listen={"endpoints": []})


@pytest.fixture
def loop() -> Iterator[PyLoop]:
    made = PyLoop(lambda cycle: None, "5ms", name="servo", strict=False, policy="other", lock_memory="off", record=64)
    yield made
    made.close()


@pytest.fixture
def session(there: dict[str, Any]) -> Iterator[Any]:
    """An operator's session; a test opens its bridge before it asks for anything."""
    opened = rtloop.zenoh.open_session(there)
    yield opened
    opened.close()


pytestmark = pytest.mark.filterwarnings("ignore::rtloop.RTSetupWarning")


def test_statistics_are_published_and_are_the_loops(loop: PyLoop, here: dict[str, Any], there: dict[str, Any]) -> None:
    with Bridge(loop, config=here, key=KEY, interval="20ms") as bridge, rtloop.zenoh.open_session(there) as session:
        got: list[Any] = []
        kept = session.declare_subscriber(f"{KEY}/loops/*/stats", got.append)
        with loop:
            until(lambda: len(got) > 3 and json.loads(got[-1].payload.to_bytes())["stats"]["cycles"])
        said = json.loads(got[-1].payload.to_bytes())
        assert (said["format"], said["version"], said["key"], said["group"]) == ("rtloop-bridge-stats", 1, KEY, None)
        assert said["stats"]["name"] == "servo"
        numbers = [json.loads(one.payload.to_bytes())["sequence"] for one in got]
        assert numbers == sorted(numbers)
        assert bridge.stats.published >= len(got) and bridge.stats.links == 1
        assert kept is not None
    assert bridge.closed
    with pytest.raises(StateError, match="closed"):
        bridge.__enter__()


def test_remotes_list_the_loops_of_a_group(here: dict[str, Any], there: dict[str, Any]) -> None:
    loops = [PyLoop(lambda cycle: None, "10ms", name=name, strict=False, policy="other", lock_memory="off")
             for name in ("fast", "slow")]  # fmt: skip
    group = LoopGroup(loops, name="axis")
    with Bridge(group, config=here, key="plant/axis") as bridge, Remotes("plant/**", config=there) as remotes, group:
        until(lambda: [loop.stats.cycles > 1 for loop in remotes.ask()] == [True, True])
        found = remotes.ask()
        assert [(loop.group, loop.stats.name, loop.stats.state) for loop in found] == [
            ("axis", "fast", "running"), ("axis", "slow", "running"),
        ]  # fmt: skip
        assert found[0].key == bridge.key and remotes.faulty == {}
        assert all(loop.stats.latency.count <= loop.stats.cycles for loop in found)


def test_records_of_a_ring_arrive_whole_and_numbered(loop: PyLoop, here: dict[str, Any], there: dict[str, Any]) -> None:
    ring = Ring(POINT, 100)
    with Bridge(loop, config=here, key=KEY, signals={"angle": ring}, batch="5ms") as bridge:
        ring.push(np.zeros(5, POINT))
        until(lambda: bridge.stats.records == 5)
        assert bridge.stats.unheard == 5, "nobody was there"
        with rtloop.zenoh.open_session(there) as session:
            got: list[Any] = []
            kept = session.declare_subscriber(
                f"{KEY}/signals/angle", lambda s: got.append(unpack(s.payload.to_bytes()))
            )
            until(lambda: _push(ring, (0.0, 0, False)) and got)
            begin = bridge.stats.records
            until(lambda: not len(ring))
            for k in range(300):
                until(lambda k=k: len(ring) < 100)
                assert ring.push((k * 0.5, k % 256, k % 2 == 0)) == 1
            until(lambda: sum(len(one.records) for one in got if one.about["first"] >= begin) >= 300)
            records = np.concatenate([one.records for one in got])[-300:]
            assert records["angle"].tolist() == [k * 0.5 for k in range(300)]
            ends = [one.about["first"] + len(one.records) for one in got]
            assert [one.about["first"] for one in got[1:]] == ends[:-1], "none is missing"
            assert got[-1].about["clocks"].keys() == {"realtime", "tai", "monotonic", "boottime"}
            assert kept is not None
        ring.push(np.zeros(200, POINT))
        assert bridge.stats.dropped >= 100


def _push(ring: Ring, value: Any) -> bool:
    time.sleep(0.01)
    return bool(ring.push(value))


def test_a_setpoint_arrives_and_what_is_none_is_refused_and_counted(
    loop: PyLoop, here: dict[str, Any], there: dict[str, Any]
) -> None:
    point = Latest(POINT)
    limited = Latest("f8")
    both = {"point": point, "limited": (limited, lambda value: abs(value) <= 1)}
    with (
        Bridge(loop, config=here, key=KEY, setpoints=both) as bridge,
        rtloop.zenoh.open_session(there) as session,
    ):
        until(lambda: list(session.get(f"{KEY}/describe")))
        at = f"{KEY}/setpoints/point"

        def refusals_of(put: Callable[[], None], outcomes: int = 1) -> int:
            """Return how many of what was sent were refused, when all of it has been looked at."""
            before = bridge.stats
            put()
            until(lambda: bridge.stats.accepted + bridge.stats.refused == before.accepted + before.refused + outcomes)
            return bridge.stats.refused - before.refused

        assert refusals_of(lambda: session.put(at, pack((0.5, 3, True), POINT))) == 0
        assert point.read().item() == (0.5, 3, True)
        assert point.age_ns is not None
        right = pack((1.5, 4, False), POINT)
        wrong = [
            b"", b"RTLB", right[:-1], right + b"\0", b"X" + right[1:], right[:4] + b"\2" + right[5:],
            pack(1.5, "f8"), pack([(1, 1, 1), (2, 2, 2)], POINT), pack((float("nan"), 1, True), POINT),
            pack((float("inf"), 1, True), POINT), right[:-7] + b"\7" + right[-6:], b"\0" * (1 << 17),
            right[:8] + b"\xff\xff\xff\x7f" + right[12:], right[:12] + b"[" * (len(right) - 12),
        ]  # fmt: skip
        for payload in wrong:
            assert refusals_of(lambda payload=payload: session.put(at, payload)) == 1, payload[:20]
        assert refusals_of(lambda: session.delete(at)) == 1
        assert refusals_of(lambda: session.put(f"{KEY}/setpoints/limited", pack(1.5, "f8"))) == 1
        assert refusals_of(lambda: session.put(f"{KEY}/setpoints/limited", pack(-1.0, "f8"))) == 0
        assert refusals_of(lambda: session.put(f"{KEY}/setpoints/*", right), outcomes=2) == 2, "it reaches both"
        assert point.read().item() == (0.5, 3, True) and limited.read() == -1.0
        assert "not a value for" in bridge.describe()["setpoints"]["point"]["last_reason"]
        with pytest.raises(StateError, match="one writer"):
            Bridge(loop, config=alone(), key="other", setpoints={"point": point})
    Bridge(loop, config=alone(listen={"endpoints": []}), key="other", setpoints={"point": point}).close()


def test_what_comes_while_a_setpoint_is_being_looked_at_is_replaced_by_the_newest_and_counted(
    loop: PyLoop, here: dict[str, Any], there: dict[str, Any]
) -> None:
    seen, go_on = [], threading.Event()

    def is_allowed(value: float) -> bool:
        seen.append(float(value))
        return go_on.wait(60)

    angle, plain = Latest("f8"), Latest("f8")
    setpoints = {"angle": (angle, is_allowed), "plain": plain}
    with (
        Bridge(loop, config=here, key=KEY, setpoints=setpoints) as bridge,
        rtloop.zenoh.open_session(there) as session,
    ):

        def put(name: str, number: int) -> None:
            block = zenoh.CongestionControl.BLOCK  # Zenoh itself is to lose none
            session.put(f"{KEY}/setpoints/{name}", pack(number, "f8"), attachment=NUMBERED.pack(1, number),
                        congestion_control=block)  # fmt: skip

        until(lambda: list(session.get(f"{KEY}/describe")))
        put("angle", 1)
        until(lambda: seen)
        for number in range(2, 2001):
            put("angle", number)
        put("plain", 1)
        until(lambda: plain.written)  # what was sent before it is there as well
        go_on.set()
        until(lambda: angle.read() == 2000)
        assert seen == [1, 2000], "nothing old stands in a queue"
        assert (bridge.stats.accepted, bridge.stats.refused, bridge.stats.skipped) == (3, 0, 1998)


def test_gaps_in_each_senders_numbers_are_counted(loop: PyLoop) -> None:
    setpoint = Setpoint("angle", Latest("f8"))
    sent = [(1, 7), (1, 8), (2, 100), (1, 10), (2, 101), (1, 10), (1, 3), (1, 4)]  # a restart counts anew
    for sender, number in sent:
        setpoint.count(NUMBERED.pack(sender, number))
    assert setpoint.skipped == 1
    for sender in range(1000):
        setpoint.count(NUMBERED.pack(sender, 5))
    assert setpoint.skipped == 1, "who is new has lost nothing here"
    assert len(setpoint._numbers) <= 64
    setpoint.count(b"somebody else's")
    assert setpoint.skipped == 1
    setpoint.close()


def test_what_is_pushed_is_sent_or_counted_to_the_last_record(
    loop: PyLoop, here: dict[str, Any], there: dict[str, Any]
) -> None:
    ring = Ring("i8", 200)
    with Bridge(loop, config=here, key=KEY, signals={"x": ring}, batch="2ms") as bridge:
        pushed = 0

        def push(count: int) -> None:
            nonlocal pushed
            ring.push(np.arange(pushed, pushed + count))
            pushed += count

        push(50)
        until(lambda: bridge.stats.unheard == 50)
        with rtloop.zenoh.open_session(there) as session:
            got: list[Any] = []
            kept = session.declare_subscriber(f"{KEY}/signals/x", lambda s: got.append(unpack(s.payload.to_bytes())))

            def push_one() -> bool:
                time.sleep(0.01)
                push(1)
                return bool(got)

            until(push_one)
            for _ in range(500):
                push(64)  # far more than the ring has room for

            def has_all() -> bool:
                taken = bridge.stats
                is_taken = taken.records + taken.dropped == pushed
                return is_taken and got[-1].about["first"] + len(got[-1].records) == taken.records

            until(lambda: has_all() or (push_one() and False))  # a frame that is lost is seen by the next one
            stats = bridge.stats
            assert stats.dropped > 0
            assert stats.records + stats.dropped == pushed
            lost, at = 0, stats.unheard
            for frame in got:
                lost += frame.about["first"] - at
                at = frame.about["first"] + len(frame.records)
            assert sum(len(frame.records) for frame in got) + lost == stats.records - stats.unheard
            values = np.concatenate([frame.records for frame in got])
            assert (np.diff(values) > 0).all(), "none comes twice"
            assert kept is not None


def test_records_that_zenoh_does_not_take_are_counted(loop: PyLoop) -> None:
    class Publisher:
        matching_status = SimpleNamespace(matching=True)
        calls = 0

        def put(self, payload: bytes) -> None:
            self.calls += 1
            if self.calls == 2:
                raise zenoh.ZError("the session is closed")

    ring, publisher = Ring(np.dtype(("V", 1 << 19)), 8), Publisher()
    source = Signal("x", ring)
    for count in (5, 1):
        ring.push(np.zeros(count, ring.dtype))
        with contextlib.suppress(zenoh.ZError):
            source.drain(publisher)
    assert (source.taken, source.unheard, source.frames, len(ring)) == (6, 2, 2, 0), "two of each frame's size"
    source.close()


def test_a_bridge_that_is_closed_leaves_no_descriptor_and_no_thread(loop: PyLoop, here: dict[str, Any]) -> None:
    def held() -> tuple[int, int]:
        with Bridge(loop, config=here, key=KEY, signals={"x": Ring("f8", 8)}, setpoints={"angle": Latest("f8")},
                    commands=("stop",)):  # fmt: skip
            pass
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    files, threads = held()  # Zenoh keeps some of its own from then on
    later = [held() for _ in range(6)][-1]
    assert later[0] <= files + 2 and later[1] <= threads


def test_a_check_that_outlives_the_bridge_sets_nothing() -> None:
    latest = Latest("f8")
    setpoint: Setpoint

    def is_allowed(value: float) -> bool:
        setpoint.close()  # another thread does so meanwhile
        return True

    setpoint = Setpoint("angle", (latest, is_allowed))
    setpoint.take(pack(1.0, "f8"))
    assert latest.written == 0 and (setpoint.accepted, setpoint.refused) == (0, 1), "it may have another writer by now"


def test_all_threads_of_a_bridge_are_ordinary_whoever_makes_it(loop: PyLoop, here: dict[str, Any]) -> None:
    """What a real-time thread has made would inherit its CPU and its policy; a CPU can be seen without a privilege."""
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("there is one CPU")
    before = set(os.listdir("/proc/self/task"))
    made: list[Bridge] = []

    def make() -> None:
        os.sched_setaffinity(0, {max(everywhere)})
        made.append(Bridge(loop, config=here, key=KEY, commands=("stop",), setpoints={"angle": Latest("f8")}))
        go_on.wait(60)

    go_on = threading.Event()
    maker = threading.Thread(target=make)
    maker.start()
    try:
        until(lambda: made)
        before.add(str(maker.native_id))
        until(lambda: all(
            os.sched_getaffinity(int(tid)) == everywhere for tid in set(os.listdir("/proc/self/task")) - before
        ))  # fmt: skip
        assert len(set(os.listdir("/proc/self/task")) - before) > 3
    finally:
        go_on.set()
        maker.join()
        made[0].close()


def test_a_bridge_that_is_given_up_while_it_opens_takes_nothing(
    loop: PyLoop, here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on, sessions = threading.Event(), threading.Event(), []

    def open_slowly(config: Any) -> Any:
        opening.set()
        assert go_on.wait(60)
        sessions.append(rtloop.zenoh.open_session(config))
        return sessions[0]

    monkeypatch.setattr(bridge_module, "open_session", open_slowly)
    ring = Ring("f8", 10)

    def interrupt() -> None:
        opening.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        Bridge(loop, config=here, key=KEY, signals={"x": ring})
    ring.push(1.0)
    go_on.set()
    until(lambda: not any("rtloop-zenoh-servo" in thread.name for thread in threading.enumerate()))
    assert len(ring) == 1 and sessions[0].is_closed()


def test_loops_whose_names_are_the_same_in_a_key_are_refused() -> None:
    loops = [PyLoop(lambda cycle: None, "5ms", name=name, strict=False, policy="other") for name in ("a/b", "a_b")]
    with pytest.raises(ConfigError, match=r"'a/b', 'a_b': in keys, .* two are the same"):
        Bridge(LoopGroup(loops, name="g"), config=alone(listen={"endpoints": []}))


def test_a_zenoh_that_is_too_old_is_said(loop: PyLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zenoh", SimpleNamespace(SessionInfo=object))
    with pytest.raises(rtloop.BridgeError, match=r"is too old: rtloop\.zenoh needs 1\.9"):
        Bridge(loop)


def test_no_command_is_obeyed_that_was_not_switched_on(
    loop: PyLoop, here: dict[str, Any], there: dict[str, Any]
) -> None:
    with Bridge(loop, config=here, key=KEY) as bridge, Remotes(config=there) as remotes, loop:
        until(lambda: remotes.ask())
        for command in ("start", "stop", "reset"):
            with pytest.raises(
                rtloop.BridgeError, match=f"^{KEY}/commands/{command}: {command} is not enabled here; .*: none"
            ):
                remotes.command(KEY, command)
        for wildcard in ("rtloop/**", f"{KEY}/commands/*", "rtloop/*/*/commands/stop"):
            list(remotes._session.get(wildcard, timeout=2.0))
        assert loop.state == "running"
        assert bridge.stats.commands == 0 and bridge.stats.commands_refused >= 6


def test_commands_that_are_switched_on_are_obeyed_and_only_those(
    loop: PyLoop, here: dict[str, Any], there: dict[str, Any]
) -> None:
    with (
        Bridge(loop, config=here, key=KEY, commands=("start", "stop")) as bridge,
        Remotes(config=there) as remotes,
    ):
        until(lambda: remotes.ask())
        assert remotes.command(KEY, "start")["state"] == "running"
        with pytest.raises(rtloop.BridgeError, match="start: "):
            remotes.command(KEY, "start")
        with pytest.raises(rtloop.BridgeError, match="enabled: start, stop"):
            remotes.command(KEY, "reset")
        list(remotes._session.get(f"{KEY}/commands/*", timeout=2.0))
        assert loop.state == "running", "a wildcard is no command, whatever is switched on"
        assert remotes.command(KEY, "stop")["state"] == "stopped"
        assert bridge.stats.commands == 2
        assert remotes.describe()[KEY]["commands"] == {n: f"{KEY}/commands/{n}" for n in ("start", "stop")}
        with pytest.raises(rtloop.BridgeError, match="there is no bridge with this key"):
            remotes.command("rtloop/here/other", "stop", timeout=30.0)
        mute = remotes._session.declare_queryable("rtloop/here/mute/commands/stop")  # takes queries, and that is all
        with pytest.raises(rtloop.BridgeError, match=r"has not answered within 0\.3 s"):
            remotes.command("rtloop/here/mute", "stop", timeout=0.3)
        mute.undeclare()


class Query:
    """A query of a command, and what it was answered."""

    key_expr = "k/commands/start"

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.drops = 0

    def reply(self, key: str, document: str, encoding: str) -> None:
        self.answers.append(json.loads(document))

    def reply_err(self, document: str, encoding: str) -> None:
        self.answers.append(json.loads(document))

    def drop(self) -> None:
        self.drops += 1


def test_of_a_flood_of_commands_a_few_wait_and_each_is_answered_once() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def start() -> None:
        begun.set()
        go_on.wait(60)

    subject = SimpleNamespace(start=start, stop=start, reset_stats=start, state="running")
    commands, queries = Commands(subject, "k", ("start",), "test"), [Query() for _ in range(20)]
    commands.on_query(queries[0])
    assert begun.wait(60)
    for query in queries[1:]:
        commands.on_query(query)
    assert [len(query.answers) for query in queries] == [0] * 9 + [1] * 11, "one is being executed, and eight wait"
    assert "8 other commands are waiting" in queries[-1].answers[0]["error"]
    closing = threading.Thread(target=commands.close)
    closing.start()
    until(lambda: commands.refused == 19)
    go_on.set()
    closing.join()
    assert "the bridge is closing" in queries[1].answers[0]["error"]
    assert queries[0].answers == [{"ok": True, "state": "running"}]
    assert {(len(query.answers), query.drops) for query in queries} == {(1, 1)} and commands.executed == 1


def test_a_command_that_comes_while_the_bridge_closes_is_answered() -> None:
    """It has passed the check of the permission when the thread that would take it ends."""
    subject = SimpleNamespace(start=int, stop=int, reset_stats=int, state="running")
    commands, query = Commands(subject, "k", ("start",), "test"), Query()

    class Allowed(tuple[str, ...]):
        def __contains__(self, name: object) -> bool:
            commands.close()
            return True

    commands._allowed = Allowed()
    commands.on_query(query)
    assert query.answers == [{"ok": False, "error": "start: the bridge is closing"}] and query.drops == 1


def test_a_document_is_made_only_for_somebody_and_not_more_often_than_it_changes(
    loop: PyLoop, here: dict[str, Any]
) -> None:
    ring = Ring("f8", 10)
    with Bridge(loop, config=here, key=KEY, signals={"x": ring}, interval="1ms", batch="1ms") as bridge:
        for k in range(5):
            ring.push(1.0)
            until(lambda k=k: bridge.stats.unheard > k)
        assert (bridge.stats.published, bridge._texts["servo"]._sequence) == (0, 0)
    text = StatsText(loop, dict)
    first = text.get()
    text._made_s = float("inf")
    assert text.get() is first, "it is fresh"
    text._made_s = -1.0
    assert json.loads(text.get())["sequence"] == 2


def test_a_bridge_that_is_there_and_does_not_answer_is_named(here: dict[str, Any], there: dict[str, Any]) -> None:
    with rtloop.zenoh.open_session(here) as session, Remotes("x/*", config=there) as remotes:
        token = session.liveliness().declare_token("x/y/alive")
        until(lambda: remotes.ask() == [] and remotes.faulty)
        assert remotes.faulty == {"x/y": "its bridge exists but does not answer"}
        token.undeclare()


def test_a_ring_has_one_consumer_be_it_a_bridge_or_a_recorder(loop: PyLoop, tmp_path: Any) -> None:
    ring = Ring("f8", 10)
    apart = alone(listen={"endpoints": []})
    with Recorder(ring, tmp_path / "a.npy"), pytest.raises(StateError, match="one consumer"):
        Bridge(loop, config=apart, signals={"x": ring})
    with Bridge(loop, config=apart, signals={"x": ring}), pytest.raises(StateError, match="one consumer"):
        Recorder(ring, tmp_path / "b.npy")
    assert not (tmp_path / "b.npy").exists()
    Recorder(ring, tmp_path / "b.npy").close()
    with pytest.raises(ConfigError, match="must end in"):
        Recorder(ring, tmp_path / "c.txt")
    Recorder(ring, tmp_path / "c.npy").close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"key": "rtloop/**"}, "key='rtloop/\\*\\*' must be parts"),
        ({"key": "/x"}, "must be parts"),
        ({"commands": ("fly",)}, "must be among start, stop, reset"),
        ({"interval": 0}, "interval"),
        ({"signals": {"a/b": None}}, "a name without"),
        ({"signals": {"a": [1, 2]}}, "give loop.signals, a Ring or a SignalLog"),
        ({"setpoints": {"a": 1.0}}, "give a Latest"),
        ({"setpoints": {"a": (Latest, 3)}}, "is not a function that takes a value"),
        ({"config": {"nonsense": 1}}, "not a Zenoh configuration: unknown field"),
        ({"config": 7}, "must be None, a path, a dict"),
    ],
)
def test_what_can_never_work_is_refused(loop: PyLoop, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bridge(loop, **{"config": alone(listen={"endpoints": []}), **wrong})


def test_a_setpoint_is_made_of_numbers(loop: PyLoop) -> None:
    with pytest.raises(ConfigError, match="not numbers"):
        Bridge(loop, config=alone(listen={"endpoints": []}), setpoints={"a": Latest("S8")})


def test_an_address_in_use_is_said(loop: PyLoop, here: dict[str, Any]) -> None:
    with Bridge(loop, config=here, key=KEY), pytest.raises(rtloop.BridgeError, match="no Zenoh session"):
        Bridge(loop, config={**here, "mode": "router"}, key=KEY)


def test_without_zenoh_the_extra_is_named() -> None:
    program = "import sys; sys.modules['zenoh'] = None\nimport rtloop.zenoh\nrtloop.zenoh.Bridge(None)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'rtloop[zenoh]'" in done.stderr
    program = "import sys, rtloop, rtloop.zenoh; assert 'zenoh' not in sys.modules"
    assert subprocess.run([sys.executable, "-P", "-c", program], timeout=60, check=False).returncode == 0


def test_a_client_opens_without_its_router_and_finds_it_later(
    loop: PyLoop, here: dict[str, Any], there: dict[str, Any]
) -> None:
    patient = {"mode": "client", "connect": {**there["connect"], "timeout_ms": -1, "exit_on_failure": False}}
    ring, point = Ring("f8", 64), Latest("f8")
    Bridge(loop, config=alone(**patient), key=KEY).close()  # before there is anything
    with Bridge(loop, config=alone(**patient), key=KEY, signals={"x": ring}, setpoints={"p": point}, batch="5ms",
                interval="20ms") as bridge:  # fmt: skip
        assert bridge.stats.links == 0
        for k in range(1000):
            until(lambda k=k: ring.push(float(k)))
        until(lambda: bridge.stats.unheard == 1000)  # the ring does not fill
        with rtloop.zenoh.open_session({**here, "mode": "router"}) as router:
            until(lambda: bridge.stats.links == 1)
            until(lambda: router.put(f"{KEY}/setpoints/p", pack(2.5, "f8")) is None and point.written)
            assert point.read() == 2.5
        assert bridge.stats.errors == 0, bridge.stats.last_error


def test_waiting_leaves_a_configuration_its_secrets_and_its_timeout(there: dict[str, Any]) -> None:
    """Written out and read again, a configuration has lost the keys and certificates that stand in it."""
    config = zenoh.Config.from_json5(json.dumps(alone(mode="client", connect={**there["connect"], "timeout_ms": 1200})))
    opened: list[Any] = []

    def no_router(settings: Any) -> Any:
        opened.append((settings, settings.get_json("connect/timeout_ms")))
        raise zenoh.ZError("Unable to connect to any of them")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(rtloop.BridgeError, match="Unable to connect"):
        patch.setattr(zenoh, "open", no_router)
        rtloop.zenoh.open_session(config, on_wait=lambda text: time.sleep(0.3))
    assert len(opened) == 2 and all(settings is config for settings, _ in opened)
    assert opened[0][1] == "1000"
    assert config.get_json("connect/timeout_ms") == "1200"


def test_who_waits_for_a_router_hears_ctrl_c_and_says_what_it_waits_for(there: dict[str, Any]) -> None:
    patient = {"mode": "client", "connect": {**there["connect"], "timeout_ms": -1}}
    said: list[str] = []

    def on_wait(text: str) -> None:
        said.append(text)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Remotes(config=alone(**patient), on_wait=on_wait)
    assert said == [f"waiting for {there['connect']['endpoints'][0]}"]
    patient["connect"]["timeout_ms"] = 1200
    begun = time.monotonic()
    with pytest.raises(rtloop.BridgeError, match="Unable to connect"):
        Remotes(config=alone(**patient))
    assert time.monotonic() - begun >= 1.2


def test_a_link_that_comes_back_is_counted(loop: PyLoop, here: dict[str, Any], port: int) -> None:
    router = alone(mode="router", listen={"endpoints": [f"tcp/127.0.0.1:{port}"]})
    client = alone(mode="client", connect={"endpoints": [f"tcp/127.0.0.1:{port}"]})
    first = rtloop.zenoh.open_session(router)
    with contextlib.ExitStack() as stack:
        point = Latest("f8")
        bridge = stack.enter_context(Bridge(loop, config=client, key=KEY, setpoints={"angle": point}, interval="20ms"))
        stack.enter_context(loop)
        until(lambda: bridge.stats.links == 1)
        first.close()
        until(lambda: bridge.stats.links_lost == 1)
        second = stack.enter_context(rtloop.zenoh.open_session(router))
        until(lambda: bridge.stats.reconnects == 1)
        assert bridge.stats.links == 1
        until(lambda: second.put(f"{KEY}/setpoints/angle", pack(2.5, "f8")) is None and point.written)
        assert point.read() == 2.5, "what was declared is declared again"
        assert loop.state == "running"


POINT_FRAME = pack((0.5, 3, True), POINT)
TYPES = st.recursive(
    st.sampled_from(["<f8", "<i4", "|u1", "|b1", "<U4", "|S9", "|O", "<f99", "", "x", 7, None, True]),
    lambda inner: st.lists(
        st.tuples(st.sampled_from(["a", "b", "", "a"]), inner).map(list)
        | st.tuples(st.just("c"), inner, st.lists(st.integers(-1, 1 << 33), max_size=3)).map(list),
        max_size=4,
    ),
    max_leaves=6,
)


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(POINT_FRAME) - 1), st.binary(min_size=1, max_size=9)).map(
            lambda cut: POINT_FRAME[: cut[0]] + cut[1] + POINT_FRAME[cut[0] + len(cut[1]) :]
        ),
        st.tuples(TYPES, st.integers(-2, 1 << 70) | st.booleans() | st.text(), st.binary(max_size=64)).map(
            lambda parts: frame_of({"dtype": parts[0], "count": parts[1]}, parts[2])
        ),
    )
)
def test_whatever_comes_is_a_value_or_is_refused(payload: bytes) -> None:
    with contextlib.suppress(rtloop.PayloadError):
        frame = unpack(payload)
        assert not frame.records.dtype.hasobject and frame.records.nbytes <= len(payload)
    latest = Latest(POINT)
    setpoint = Setpoint("point", latest)
    setpoint.take(payload)
    assert (setpoint.accepted, setpoint.refused) in ((1, 0), (0, 1))
    assert latest.written == setpoint.accepted
    if setpoint.accepted:
        assert np.isfinite(latest.read()["angle"])
    setpoint.close()


def frame_of(header: dict[str, Any], records: bytes) -> bytes:
    text = json.dumps(header).encode()
    return b"RTLB\1\0\0\0" + len(text).to_bytes(4, "little") + text + records


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["stats", "version", "group", "time_ns", "bridge", "stats.latency", "stats.name", "stats.guard"]),
)
def test_a_document_of_statistics_is_one_or_is_refused(value: Any, at: str) -> None:
    loop = PyLoop(lambda cycle: None, "5ms", name="x", strict=False, policy="other", lock_memory="off", record=4)
    document = json.loads(StatsText(loop, lambda: {"key": "k", "group": None, "bridge": {}}).get())
    assert parse_stats(json.dumps(document).encode()).stats.name == "x"
    inner, _, last = at.rpartition(".")
    (document[inner] if inner else document)[last] = value
    with contextlib.suppress(rtloop.PayloadError):
        parse_stats(json.dumps(document).encode())


class CutLink:
    """A session over a cut link: its close takes as long as Zenoh's lease, and hears nothing."""

    def __init__(self) -> None:
        self.is_closing, self.end = threading.Event(), threading.Event()

    def close(self) -> None:
        self.is_closing.set()
        self.end.wait(60)


def test_ctrl_c_ends_the_wait_for_a_close_over_a_cut_link_with_a_message() -> None:
    cut = CutLink()

    def interrupt() -> None:
        assert cut.is_closing.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        with pytest.warns(RTSetupWarning, match="was left: a cut link delays"), pytest.raises(KeyboardInterrupt):
            close_session(cut)
        assert not cut.end.is_set(), "nobody has waited for the lease"
    finally:
        cut.end.set()
        interrupter.join()


def test_a_close_that_a_peer_completes_right_after_ctrl_c_leaves_nothing_behind(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_GRACE_S", 60)
    cut = CutLink()

    def interrupt() -> None:
        assert cut.is_closing.wait(30)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        cut.end.set()

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        close_session(cut)
    interrupter.join()
    until(lambda: not [one for one in threading.enumerate() if one.name == "rtloop-zenoh-closing"])
    assert not [one for one in recwarn if "was left" in str(one.message)]


def test_a_close_that_never_ends_is_left_with_a_message() -> None:
    cut = CutLink()
    with pytest.warns(RTSetupWarning, match=r"still closing after 0\.[1-9] s"):
        close_session(cut, timeout=0.1)
    cut.end.set()


def test_a_signal_handler_may_close_a_bridge_in_the_middle_of_its_close(loop: PyLoop, here: dict[str, Any]) -> None:
    """As a handler that interrupts the close while it wakes the bridge's thread."""
    bridge, lines = Bridge(loop, config=here), list[int]()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_name == "set" and event == "line":
            lines.append(frame.f_lineno)
            if len(lines) == 3:
                sys.settrace(None)
                bridge.close()
        return trace

    sys.settrace(trace)
    try:
        bridge.close()
    finally:
        sys.settrace(None)
    assert bridge.closed and len(lines) == 3


def test_ctrl_c_while_a_bridge_closes_over_a_cut_link_releases_its_rings(
    loop: PyLoop, here: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, cut = Ring("f8", 8), CutLink()
    bridge = Bridge(loop, config=here, signals={"z": ring})
    real = bridge_module.close_session

    def close_late(session: Any) -> None:
        cut.close()
        real(session)

    monkeypatch.setattr(bridge_module, "close_session", close_late)

    def interrupt() -> None:
        assert cut.is_closing.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        with pytest.warns(RTSetupWarning, match="was left"), pytest.raises(KeyboardInterrupt):
            bridge.close()
        assert bridge not in bridge_module._bridges, "the end of the interpreter does not wait for it again"
        owner = Signal("z", ring)
        bridge.close()
        with pytest.raises(StateError, match="a ring has one consumer"):
            Signal("again", ring)  # a second close leaves it to its new owner
        owner.close()
    finally:
        cut.end.set()
        interrupter.join()
        bridge._thread.join(30)
