"""Parameters and signals over a bridge: announced, seen, set if allowed, and refused with a reason; hostile peers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import rtloop
from rtloop import BridgeError, ConfigError, LoopGroup, PayloadError, PyLoop, Ring, StateError

zenoh = pytest.importorskip("zenoh", reason="Zenoh is missing: pip install 'rtloop[zenoh]'")

from rtloop.live.parameter_block import Writer  # noqa: E402
from rtloop.zenoh import Bridge, Remotes, connection, open_session, pack  # noqa: E402
from rtloop.zenoh.connection import RemoteConnection, find_loop  # noqa: E402
from rtloop.zenoh.feeds import Thinned, thinning  # noqa: E402
from rtloop.zenoh.frames import describe_dtype  # noqa: E402
from rtloop.zenoh.remote_parameters import RemoteParameterSet  # noqa: E402
from rtloop.zenoh.remote_signals import RemoteSignals  # noqa: E402
from rtloop.zenoh.tuning import MAX_SET_BYTES, Tuning, make_set  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rtloop.RTSetupWarning")

PLAIN: dict[str, Any] = {"policy": "other", "lock_memory": "off", "dma_latency": None, "record": 16, "strict": False}
MOTOR = np.dtype([("kp", "f8"), ("mode", "i4"), ("big", "u8"), ("on", "?"), ("gains", "f4", (3,)), ("angle", "f8")])
LIMITS = {"kp": (0, 50, "V/rad"), "mode": (0, 3), "big": (None, None), "on": (None, None), "gains": (-1, 1)}
BEGIN = {"kp": 10.0, "mode": 0, "big": 0, "on": False, "gains": [0.0, 0.0, 0.0]}


def make_motor(name: str = "motor", **settings: Any) -> PyLoop:
    """A loop whose signal `angle` is the index of the cycle."""
    data = np.zeros((), MOTOR)
    data["kp"] = 10

    def step(cycle: Any) -> None:
        data["angle"] = cycle.index

    return PyLoop(
        step, "2ms", name=name, data=data, parameters=LIMITS, signals={"angle": "rad"}, **{**PLAIN, **settings}
    )


def until(done: Callable[[], Any], what: str = "it has not come", seconds: float = 60.0) -> Any:
    limit = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < limit, what
        time.sleep(0.01)
    return found


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers take as long as a busy machine needs for them."""
    monkeypatch.setattr(connection, "_PATIENCE_S", 60.0)


def described(remotes: Remotes, key: str) -> dict[str, Any]:
    """Return the description of a bridge, empty as long as it has not answered."""
    return remotes.describe(60).get(key, {})


def alone(**more: Any) -> dict[str, Any]:
    return {"scouting": {"multicast": {"enabled": False}, "gossip": {"enabled": False}}, **more}


@pytest.fixture(scope="module")
def addresses() -> tuple[dict[str, Any], dict[str, Any]]:
    """Configurations of the bridge's side, and of the operator's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        at = f"tcp/127.0.0.1:{probe.getsockname()[1]}"
    return alone(mode="router", listen={"endpoints": [at]}), alone(mode="client", connect={"endpoints": [at]})


@pytest.fixture(scope="module")
def network(addresses: tuple[dict[str, Any], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A network with a router, and the configuration that connects to it."""
    with open_session(addresses[0]):
        yield addresses[1]


@pytest.fixture(scope="module")
def remotes(network: dict[str, Any]) -> Iterator[Remotes]:
    """An operator's session."""
    with Remotes("rtloop/**", config=network) as opened:
        yield opened


@pytest.fixture
def motor() -> Iterator[PyLoop]:
    made = make_motor()
    with made:
        yield made
    made.close()


def at_begin(loop: PyLoop) -> bool:
    return {name: np.asarray(value).tolist() for name, value in loop.parameters.items()} == BEGIN


# Announcing, reading and setting.


def test_parameters_are_announced_seen_and_set_from_another_host(
    motor: PyLoop, network: dict[str, Any], remotes: Remotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bridge(motor, config=network, key="rtloop/pi/motor", commands=("set",)) as bridge:
        with RemoteConnection(remotes, find_loop(remotes, "motor")) as there:
            declared = there.parameters.declared
            assert {name: (one.kind, one.low, one.high, one.unit) for name, one in declared.items()} == {
                "kp": ("f8", 0, 50, "V/rad"), "mode": ("i4", 0, 3, ""), "big": ("u8", None, None, ""),
                "on": ("b1", None, None, ""), "gains": ("f4", -1, 1, ""),
            }  # fmt: skip
            assert (there.parameters["kp"], there.parameters["gains"].tolist()) == (10, [0, 0, 0])
            assert (there.name, there.pid, there.period_ns, there.state) == ("motor", os.getpid(), 2_000_000, "running")

            there.parameters.update(kp=12.5, gains=[0.5, -0.5, 1], big=(1 << 64) - 1)
            assert there.parameters["big"] == (1 << 64) - 1, "its own change is seen at once"
            assert there.parameters.wait(60) and there.parameters.applied.cycle > 0
            assert motor.parameters["kp"] == 12.5 and motor.parameters["big"] == (1 << 64) - 1
            motor.parameters["kp"] = 20
            until(lambda: there.parameters["kp"] == 20, "a change of others is not seen")

            with pytest.raises(ConfigError, match="kp=51 is outside of its limits"):
                there.parameters["kp"] = 51
            with pytest.raises(KeyError, match="no parameter"):
                there.parameters["kq"] = 1
            assert bridge.stats.sets == 1 and motor.parameters["kp"] == 20
        changes = motor.stats.parameter_changes[1:]
        assert changes[0].values == {"kp": 12.5, "gains": [0.5, -0.5, 1], "big": (1 << 64) - 1}
        assert (changes[0].host, changes[0].pid) == (os.uname().nodename, os.getpid())
        assert changes[0].program.startswith("zenoh: ") and not changes[1].program.startswith("zenoh")


def test_a_bridge_that_was_not_told_so_accepts_no_set_and_says_why(
    motor: PyLoop, network: dict[str, Any], remotes: Remotes
) -> None:
    with (
        Bridge(motor, config=network, key="rtloop/pi/motor", commands=("stop", "start", "reset")) as bridge,
        RemoteConnection(remotes, find_loop(remotes, "motor")) as there,
    ):
        with pytest.raises(StateError, match=r"Bridge\(commands=\('set',\)\)"):
            there.parameters["kp"] = 5
        writer = Writer(1, 1, 0, "evil", "evil")
        with pytest.raises(BridgeError, match="set is not enabled here"):
            remotes.order("rtloop/pi/motor/commands/set", 60, make_set("motor", {"kp": 5}, writer))
        assert at_begin(motor) and (bridge.stats.sets, bridge.stats.sets_refused) == (0, 1)
        assert until(lambda: described(remotes, "rtloop/pi/motor"))["commands"].keys() == {"start", "stop", "reset"}


def test_signals_arrive_thinned_with_units_and_their_number_named(
    motor: PyLoop, network: dict[str, Any], remotes: Remotes
) -> None:
    with Bridge(motor, config=network, key="rtloop/pi/motor", signal_rate="100Hz", batch="20ms") as bridge:
        (said,) = until(lambda: described(remotes, "rtloop/pi/motor").get("signals")).values()
        assert (said["key"], said["every"], said["units"]) == (
            "rtloop/pi/motor/signals/motor", 5, {"angle": "rad"},
        )  # fmt: skip
        with RemoteConnection(remotes, find_loop(remotes, "motor")) as there:
            signals = there.signals
            reader = signals.reader("oldest")
            assert (signals.names, dict(signals.units), signals.every) == (("angle",), {"angle": "rad"}, 5)
            until(lambda: signals.written > 20)
            records = reader.read()
            assert np.array_equal(records["angle"], records["cycle"].astype(float)), "records are whole"
            if not signals.missing:
                assert (np.diff(records["cycle"].astype(int)) == 5).all()
            assert len(records) + reader.lost >= 20 and signals.latest()["angle"] >= records["angle"][-1]
            assert reader.read(0).size == 0 and len(signals.read(3)) == 3
        assert bridge.stats.records > 20


def test_the_signals_of_all_loops_of_a_group_are_published_and_set_one_by_one(
    network: dict[str, Any], remotes: Remotes
) -> None:
    loops = [make_motor("left"), make_motor("right", tunable=False)]
    group = LoopGroup(loops, name="axis")
    ring = Ring(np.dtype([("t", "f8")]), 16)
    with Bridge(group, config=network, key="rtloop/pi/axis", commands="set", signals={"log": ring}), group:
        until(lambda: len(described(remotes, "rtloop/pi/axis").get("signals", ())) == 3)
        with RemoteConnection(remotes, find_loop(remotes, "left")) as left:
            left.parameters["kp"] = 3
            assert [loop.parameters["kp"] for loop in loops] == [3, 10]
        with RemoteConnection(remotes, find_loop(remotes, "right")) as right:
            with pytest.raises(StateError, match="tunable=False"):
                right.parameters["kp"] = 3
            until(lambda: right.signals.latest())
        writer = Writer(1, 1, 0, "evil", "evil")
        with pytest.raises(BridgeError, match="right was made with tunable=False"):
            remotes.order("rtloop/pi/axis/commands/set", 60, make_set("right", {"kp": 5}, writer))


def test_signals_that_the_owner_publishes_are_not_published_twice(motor: PyLoop, network: dict[str, Any]) -> None:
    with Bridge(motor, config=network, key="rtloop/pi/motor", signals={"axis": motor.signals}) as bridge:
        until(lambda: bridge.stats.records > 10)
        said = bridge.describe()
        assert list(said["signals"]) == ["axis"] and said["loops"]["motor"]["signals"] == "rtloop/pi/motor/signals/axis"
    bridge = Bridge(motor, config=network, key="rtloop/pi/motor", signal_rate=None)
    bridge.close()  # with a last look at everything
    assert bridge.describe()["signals"] == {}


def test_after_a_swap_the_new_steps_signals_and_parameters_are_told(
    motor: PyLoop, network: dict[str, Any], remotes: Remotes
) -> None:
    data = np.zeros((), [("kp", "f8"), ("speed", "f8")])
    successor = PyLoop(
        lambda cycle: None, "2ms", name="motor", data=data, parameters=("kp",), signals=("speed",), **PLAIN
    )
    with Bridge(motor, config=network, key="rtloop/pi/motor", commands="set") as bridge:
        until(lambda: bridge.describe()["signals"])
        with RemoteConnection(remotes, find_loop(remotes, "motor")) as before:
            motor.swap(successor)
            until(lambda: [*before.parameters] == ["kp"])
            before.parameters["kp"] = 77
            assert motor.parameters["kp"] == 77, "the limit was that of the former step"
        fields = [["cycle", "<u8"], ["release", "<i8"], ["start", "<i8"], ["speed", "<f8"]]
        until(lambda: bridge.describe()["signals"]["motor"]["dtype"] == fields)
        with RemoteConnection(remotes, find_loop(remotes, "motor")) as after:
            until(lambda: "speed" in after.signals.latest())


def test_what_ends_is_seen(network: dict[str, Any], remotes: Remotes) -> None:
    with make_motor() as loop:
        bridge = Bridge(loop, config=network, key="rtloop/pi/motor", interval="20ms")
        with RemoteConnection(remotes, find_loop(remotes, "motor")) as there:
            loop.stop()
            until(lambda: there.state == "stopped")
            bridge.close()
            until(lambda: there.state == "died")
            with pytest.raises(BridgeError, match="no loop named 'motor'"):
                find_loop(remotes, "motor", 0)
        with pytest.raises(StateError, match="closed"):
            _ = there.signals


def test_a_loop_is_found_by_its_name_and_the_keys_of_its_bridge(network: dict[str, Any], remotes: Remotes) -> None:
    with (
        make_motor() as here, make_motor() as there,
        Bridge(here, config=network, key="rtloop/pi/motor"), Bridge(there, config=network, key="rtloop/nuc/motor"),
    ):  # fmt: skip
        until(lambda: len(remotes.ask(60)) == 2)
        with pytest.raises(BridgeError, match="2 loops match"):
            rtloop.zenoh.connect("motor", config=network)
        there.parameters["kp"] = 7
        with rtloop.zenoh.connect("motor", "rtloop/nuc/**", config=network) as found:
            assert found.key == "rtloop/nuc/motor" and found.parameters["kp"] == 7


def test_a_set_that_can_never_work_is_refused_when_the_bridge_is_made() -> None:
    with pytest.raises(ConfigError, match="tunable=False"):
        Bridge(make_motor(tunable=False), commands=("set",))
    with pytest.raises(ConfigError, match="start, stop, reset, set"):
        Bridge(make_motor(), commands=("tune",))
    with pytest.raises(ConfigError, match="signal_rate"):
        Bridge(make_motor(), signal_rate="often")


LEFT_OPEN = """
import json, sys, rtloop.zenoh
from rtloop.zenoh import connection
connection._PATIENCE_S = 60
motor = rtloop.zenoh.connect("motor", config=json.loads(sys.argv[1]))
motor.signals.latest()
print(motor.parameters["kp"])
"""


def test_a_program_ends_that_has_left_its_connection_open(motor: PyLoop, network: dict[str, Any]) -> None:
    """The interpreter's end waits for threads that Zenoh has started to call Python."""
    with Bridge(motor, config=network, key="rtloop/pi/motor") as bridge:
        until(lambda: bridge.describe()["signals"])
        command = [sys.executable, "-P", "-c", LEFT_OPEN, json.dumps(network)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "10.0\n"), done.stderr


# Thinning.


@pytest.mark.parametrize(
    ("period", "every", "least", "expected"),
    [(1_000_000, 1, 1_000_000, 1), (250_000, 1, 1_000_000, 4), (300_000, 1, 1_000_000, 4), (250_000, 2, 1_000_000, 2),
     (100_000, 1, None, 1), (5_000_000, 1, 1_000_000, 1)],
)  # fmt: skip
def test_the_rate_of_thinned_samples_is_at_most_that_asked_for(
    period: int, every: int, least: Any, expected: int
) -> None:
    assert thinning(period, every, least) == expected


def test_thinned_samples_are_evenly_spaced_however_they_are_read(motor: PyLoop) -> None:
    thinned = Thinned(motor.signals, 7)
    reader = motor.signals.reader("oldest")
    taken: list[Any] = []
    while sum(map(len, taken)) < 12:
        taken += [thinned.drain(1), thinned.drain(3)]
    if not thinned.dropped:
        cycles = np.concatenate(taken)["cycle"].astype(int)
        assert (np.diff(cycles) == 7).all() and cycles[0] == reader.read(1)["cycle"][0]


# Hostile peers.


class Query:
    """A query as Zenoh hands it over, with an answer to wait for."""

    def __init__(self, payload: bytes | None, key: str = "k/commands/set") -> None:
        self.key_expr, self.payload = key, None if payload is None else zenoh.ZBytes(payload)
        self.answers: list[dict[str, Any]] = []
        self.dropped = threading.Event()

    def reply(self, key: str, text: str, encoding: str) -> None:
        self.answers.append(json.loads(text))

    def reply_err(self, text: str, encoding: str) -> None:
        self.answers.append(json.loads(text))

    def drop(self) -> None:
        self.dropped.set()

    def answer(self) -> dict[str, Any]:
        assert self.dropped.wait(60), "it was not answered"
        assert len(self.answers) == 1
        return self.answers[0]


@pytest.fixture
def tuning(motor: PyLoop) -> Iterator[Tuning]:
    made = Tuning({"motor": motor}, "k/commands/set", True, dict, "test")
    yield made
    made.close()


def ask(tuning: Tuning, payload: bytes | None, key: str = "k/commands/set") -> dict[str, Any]:
    query = Query(payload, key)
    tuning.on_query(query)
    return query.answer()


HOSTILE: dict[str, tuple[bytes | None, str]] = {
    "nothing": (None, "no bytes"),
    "empty": (b"", "not JSON"),
    "oversize": (b" " * (MAX_SET_BYTES + 1), "has 1 to 1,048,576"),
    "not json": (b"\xff\x00{", "not JSON"),
    "deep": (b"[" * 500_000, "not JSON"),
    "deep value": (b'{"loop":"motor","values":{"kp":' + b"[" * 900 + b"]" * 900 + b"}}", "kp="),
    "many digits": (b'{"loop":"motor","values":{"big":' + b"9" * 100_000 + b"}}", "not JSON"),
    "a list": (b"[1]", "not a set"),
    "no values": (b'{"loop":"motor","values":{}}', "not a set"),
    "no loop": (b'{"values":{"kp":5}}', "not a set"),
    "another loop": (b'{"loop":"arm","values":{"kp":5}}', "there is no loop 'arm' here; there is motor"),
    "unknown name": (b'{"loop":"motor","values":{"kp":5,"kq":1}}', "no parameter 'kq'"),
    "a signal": (b'{"loop":"motor","values":{"angle":5}}', "no parameter 'angle'"),
    "too great": (b'{"loop":"motor","values":{"kp":51}}', "outside of its limits, 0.0 to 50.0 V/rad"),
    "one of several": (b'{"loop":"motor","values":{"mode":2,"kp":-1}}', "outside of its limits"),
    "nan": (b'{"loop":"motor","values":{"kp":NaN}}', "not finite"),
    "overflow": (b'{"loop":"motor","values":{"kp":1e999}}', "not finite"),
    "a text": (b'{"loop":"motor","values":{"kp":"5"}}', "kp="),
    "null": (b'{"loop":"motor","values":{"kp":null}}', "kp="),
    "a dict": (b'{"loop":"motor","values":{"kp":{"x":1}}}', "kp="),
    "a list for a number": (b'{"loop":"motor","values":{"kp":[5]}}', "single number"),
    "a fraction": (b'{"loop":"motor","values":{"mode":1.5}}', "mode=1.5"),
    "negative": (b'{"loop":"motor","values":{"big":-1}}', "big=-1"),
    "65 bits": (b'{"loop":"motor","values":{"big":18446744073709551616}}', "big=18446744073709551616"),
    "not a bool": (b'{"loop":"motor","values":{"on":2}}', "on=2"),
    "another shape": (b'{"loop":"motor","values":{"gains":[0,0]}}', "shape"),
    "ragged": (b'{"loop":"motor","values":{"gains":[0,[0],0]}}', "gains="),
    "a long array": (b'{"loop":"motor","values":{"gains":[' + b"0," * 200_000 + b"0]}}", "shape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_a_valid_set_is_refused_with_the_reason_and_changes_nothing(
    motor: PyLoop, tuning: Tuning, name: str
) -> None:
    payload, reason = HOSTILE[name]
    answer = ask(tuning, payload)
    assert answer["ok"] is False and reason in answer["error"] and len(answer["error"]) < 1000
    assert at_begin(motor) and (tuning.done, tuning.refused) == (0, 1)
    assert ask(tuning, b'{"loop":"motor","values":{"kp":5}}')["ok"], "the next one is taken"


def test_a_wildcard_is_not_a_set(motor: PyLoop, tuning: Tuning) -> None:
    answer = ask(tuning, b'{"loop":"motor","values":{"kp":5}}', "**")
    assert "not the key of a set" in answer["error"] and at_begin(motor)


@pytest.mark.parametrize("by", [None, 5, {}, {"host": "x" * 5000, "pid": 1 << 70, "program": ["a"]},
                                {"host": "\x1b[2J\n\ud800", "pid": -1, "program": "\x00"}, {"pid": True}])  # fmt: skip
def test_whatever_a_peer_says_of_itself_fits_into_the_record(motor: PyLoop, tuning: Tuning, by: Any) -> None:
    payload = json.dumps({"loop": "motor", "values": {"kp": 5}, "by": by}).encode()
    assert ask(tuning, payload)["ok"]
    assert motor.parameters.wait(60)
    change = motor.stats.parameter_changes[-1]
    assert change.values == {"kp": 5} and change.pid == 0 and change.program.startswith("zenoh")
    assert change.host.isprintable() and 0 < len(change.host) < 64


def test_of_a_flood_each_set_is_answered_once_and_the_values_stay_within_limits(motor: PyLoop, tuning: Tuning) -> None:
    queries = [Query(json.dumps({"loop": "motor", "values": {"kp": i % 100}}).encode()) for i in range(400)]
    senders = [threading.Thread(target=lambda part=part: [tuning.on_query(one) for one in part])
               for part in (queries[:200], queries[200:])]  # fmt: skip
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    answers = [query.answer() for query in queries]
    assert tuning.done + tuning.refused == 400 == len(answers) and 0 < tuning.done < 400
    assert tuning.done == sum(answer["ok"] for answer in answers)
    assert 0 <= motor.parameters["kp"] <= 50 and motor.parameters.refused == 0
    assert all("other sets are waiting" in one["error"] or "limits" in one["error"] for one in answers if not one["ok"])
    assert len(motor.stats.parameter_changes) <= 1 + tuning.done


def test_sets_that_wait_when_the_bridge_closes_are_refused(motor: PyLoop) -> None:
    made = Tuning({"motor": motor}, "k/commands/set", True, dict, "test")
    queries = [Query(b'{"loop":"motor","values":{"kp":5}}') for _ in range(6)]
    for query in queries:
        made.on_query(query)
    made.close()
    answers = [query.answer() for query in queries]
    assert all(answer["ok"] or "closing" in answer["error"] for answer in answers)
    assert "not enabled" in ask(made, b"{}")["error"]


def test_sets_that_wait_when_the_bridge_closes_are_answered_over_the_network(
    motor: PyLoop, network: dict[str, Any], remotes: Remotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is being executed, and keeps the bridge's thread; two others wait."""
    begun, go_on = threading.Event(), threading.Event()
    real = Tuning._set

    def set_late(tuning: Tuning, payload: bytes) -> str:
        begun.set()
        assert go_on.wait(60)
        return real(tuning, payload)

    monkeypatch.setattr(Tuning, "_set", set_late)
    bridge = Bridge(motor, config=network, key="rtloop/pi/closing", commands=("set",))
    answers: list[Any] = []

    def ask_for(kp: float) -> None:
        payload = make_set("motor", {"kp": kp}, Writer(1, 1, 0, "pc", "test"))
        while True:
            is_first = not begun.is_set()
            try:
                answers.append(remotes.order("rtloop/pi/closing/commands/set", 60, payload)["ok"])
            except BridgeError as error:
                if is_first and not begun.is_set():
                    continue  # the network does not know the bridge yet
                answers.append(str(error))
            return

    senders = [threading.Thread(target=ask_for, args=(kp,)) for kp in (1.0, 2.0, 3.0)]
    try:
        senders[0].start()
        assert begun.wait(60)
        for sender in senders[1:]:
            sender.start()
        until(lambda: len(bridge._tuning._waiting) == 2)
        closing = threading.Thread(target=bridge.close)
        closing.start()
        until(lambda: len(answers) == 2, "what waits is not answered while the bridge closes")
        assert all("the bridge is closing" in answer for answer in answers), answers
    finally:
        begun.set(), go_on.set()
        bridge.close()
    for thread in (*senders, closing):
        thread.join(60)
    assert answers[2:] == [True] and motor.parameters["kp"] == 1, "what was begun is finished, and answered"


def test_a_set_that_comes_while_the_bridge_closes_is_answered(motor: PyLoop) -> None:
    """Nobody takes a set out of the queue that is put in after the end of the thread."""
    made = Tuning({"motor": motor}, "k/commands/set", True, dict, "test")

    class Payload:
        """Read when the set has passed the check of the permission."""

        def __len__(self) -> int:
            return 1

        def to_bytes(self) -> bytes:
            made.close()
            return b'{"loop":"motor","values":{"kp":5}}'

    late = Query(b"")
    late.payload = Payload()
    made.on_query(late)
    assert "closing" in late.answer()["error"] and at_begin(motor)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def idle() -> PyLoop:
    return make_motor("idle")


@hypothesis.given(name=st.sampled_from([*LIMITS, "angle", ""]), value=ANY)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_value_is_set_within_the_limits_or_refused(idle: PyLoop, name: str, value: Any) -> None:
    made = Tuning({"idle": idle}, "k/commands/set", False, dict, "test")
    with contextlib.suppress(rtloop.RtloopError):
        made._set(json.dumps({"loop": "idle", "values": {name: value}}).encode())
    kp, gains = idle.parameters["kp"], idle.parameters["gains"]
    assert 0 <= kp <= 50 and 0 <= idle.parameters["mode"] <= 3 and (np.abs(gains) <= 1).all()


# Hostile bridges.


def document(**changes: Any) -> dict[str, Any]:
    one = {"name": "kp", "type": "f8", "shape": [], "low": 0, "high": 50, "unit": ""}
    return {
        "format": "rtloop-bridge-parameters", "version": 1, "sequence": 1, "bridge_id": "a", "state": "running",
        "may_set": True, "parameters": [one], "values": {"kp": 1}, "used": {"kp": 1}, "cycle": 3, "refused": 0,
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2}, {"sequence": -1}, {"sequence": 1 << 70}, {"cycle": "x"}, {"parameters": None},
        {"parameters": [{"name": "a b", "type": "f8", "shape": [], "low": None, "high": None, "unit": ""}]},
        {"parameters": [{"name": "kp", "type": "O", "shape": [], "low": None, "high": None, "unit": ""}]},
        {"parameters": [{"name": "kp", "type": "f8", "shape": [1 << 40], "low": None, "high": None, "unit": ""}]},
        {"parameters": [{"name": "kp", "type": "f8", "shape": [], "low": None, "high": None, "unit": "\x1b[2J"}]},
        {"values": {"kp": 51}}, {"values": {}}, {"values": {"kp": "x"}}, {"used": {"kp": []}}, {"used": 7},
    ],
)  # fmt: skip
def test_parameters_that_no_bridge_sends_are_refused(changes: dict[str, Any]) -> None:
    made = RemoteParameterSet("motor", lambda values: None)
    with pytest.raises(PayloadError):
        made.take(json.dumps(document(**changes)).encode())
    assert made.declared == {}
    made.take(json.dumps(document()).encode())
    made.take(json.dumps(document(sequence=0, values={"kp": 2})).encode())  # has been overtaken
    assert made.declared["kp"].unpack(made.asked()) == 1
    made.take(json.dumps(document(sequence=0, bridge_id="b", values={"kp": 2})).encode())  # a new bridge
    assert made.declared["kp"].unpack(made.asked()) == 2


@hypothesis.given(value=ANY, at=st.sampled_from(sorted(document())))
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_any_document_is_taken_or_refused(value: Any, at: str) -> None:
    made = RemoteParameterSet("motor", lambda values: None)
    with contextlib.suppress(PayloadError):
        made.take(json.dumps(document(**{at: value})).encode())
        assert len(made.asked()) >= sum(one.size for one in made.declared.values())


SAMPLE = np.dtype([("cycle", "<u8"), ("release", "<i8"), ("start", "<i8"), ("angle", "<f8")])


def frame(cycles: range, **about: Any) -> bytes:
    records = np.zeros(len(cycles), SAMPLE)
    records["cycle"] = cycles
    return pack(records, **{"first": cycles.start, "dropped": 0, "bridge_id": "a", **about})


def test_samples_that_are_missing_or_come_too_fast_are_counted() -> None:
    signals = RemoteSignals("motor", {"dtype": describe_dtype(SAMPLE), "units": {}, "every": 1})
    signals.capacity = 100
    reader = signals.reader("oldest")
    signals.take(frame(range(10)))
    signals.take(frame(range(15, 20)))  # 5 were lost on the way
    signals.take(frame(range(20, 30), dropped=2))  # 2 by the bridge
    assert (len(reader.read(4)), len(reader.read())) == (4, 21) and reader.lost == 7
    for begin in range(30, 530, 50):
        signals.take(frame(range(begin, begin + 50), dropped=2))
    records = reader.read()
    assert records["cycle"].tolist() == list(range(530 - len(records), 530)) and 100 <= len(records) <= 150
    assert len(records) + reader.lost == 507 and signals.latest()["cycle"] == 529
    signals.take(frame(range(5), bridge_id="b"))  # a new bridge counts anew
    assert signals.latest()["cycle"] == 4 and len(records) + reader.lost == 507
    for payload in (
        b"",
        b"RTLB",
        frame(range(3))[:-1],
        pack(np.zeros(3)),
        frame(range(3), first="x"),
        frame(range(3), dropped=-1),
    ):
        signals.take(payload)
    assert signals.refused == 6 and reader.read()["cycle"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "<f8"}, {"dtype": [["angle", "<f8"]]}, {"units": 5}, {"every": 0}, {"every": "x"},
     {"units": {"angle": 7}}, {"limits": {"angle": [1]}}, {"limits": {"angle": ["1", 2]}}, {"limits": 5},
     {"limits": {"angle": [None, float("nan")]}}, {"limits": {"speed": [0, 1]}},
     {"dtype": [*describe_dtype(SAMPLE)[:3], ["text", "<U8"]]},
     {"dtype": [*describe_dtype(SAMPLE)[:3], ["a b", "<f8"]]}],
)  # fmt: skip
def test_signals_that_no_bridge_describes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PayloadError):
        RemoteSignals("motor", {"dtype": describe_dtype(SAMPLE), "units": {}, "every": 1, **changes})


def test_a_loop_with_fields_of_these_names_of_its_own_is_published_as_before(network: dict[str, Any]) -> None:
    class Own(PyLoop):
        parameters = SimpleNamespace(write=None)
        signals = "mine"

    loop = Own(lambda cycle: None, "5ms", name="own", **PLAIN)
    with loop:
        bridge = Bridge(loop, config=network, key="rtloop/pi/own")
        bridge.close()  # with a last look at everything
        said = bridge.describe()
    assert said["signals"] == {} and said["loops"]["own"]["signals"] is None and not bridge.stats.errors


# The tools.


def test_top_shows_and_changes_the_parameters_of_a_loop_on_another_host(
    motor: PyLoop, network: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("rich", reason="rtloop top needs rtloop[top]")
    from rtloop.tools.top.loop_watch import LoopWatch
    from rtloop.tools.top.remote_sampler import RemoteSampler

    (tmp_path / "operator.json5").write_text(json.dumps(network))
    with Bridge(motor, config=network, key="rtloop/pi/motor", commands="set", batch="10ms") as bridge:
        until(lambda: bridge.describe()["signals"])
        sampler = RemoteSampler("rtloop/**", str(tmp_path / "operator.json5"))
        (row,) = until(lambda: sampler.sample().rows)
        watch = LoopWatch(lambda: sampler.connect(row.key))
        view = until(lambda: next((view for view in [watch.poll()] if view.samples > 10), None))
        assert view.values["kp"] == 10 and view.declared["kp"].unit == "V/rad"
        assert [(one.name, one.unit) for one in view.traces] == [("angle", "rad")]
        (said,) = watch.set({"kp": "12"})
        assert said.startswith("kp: 10 -> 12 V/rad") and motor.parameters["kp"] == 12
        with pytest.raises(ConfigError, match="outside of its limits"):
            watch.set({"kp": "51"})
        watch.close()
        sampler.close()


def test_get_and_set_reach_a_loop_on_another_host(
    motor: PyLoop, network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("click", reason="the command line needs rtloop[cli]")
    from click.testing import CliRunner

    from rtloop.tools.cli import make_group

    monkeypatch.setattr("rtloop.tools.parameters._PATIENCE_S", 60.0)
    (tmp_path / "operator.json5").write_text(json.dumps(network))

    def run(*args: str) -> Any:
        there = ("--zenoh", "rtloop/**", "--config", str(tmp_path / "operator.json5"))
        return CliRunner().invoke(make_group(), [*args, *there])

    with Bridge(motor, config=network, key="rtloop/pi/motor", commands="set") as bridge:
        until(lambda: bridge.describe()["signals"])
        done = run("set", "motor", "kp=12.5", "gains=0.5,0,0", "--json")
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert said["is_used"] and (said["host"], said["key"]) == (os.uname().nodename, "rtloop/pi/motor")
        assert motor.parameters["kp"] == 12.5 and said["parameters"]["kp"]["before"] == 10
        done = run("get", "motor", "kp", "angle", "--json")
        said = json.loads(done.stdout)
        assert said["parameters"]["kp"]["value"] == 12.5 and said["signals"]["angle"]["unit"] == "rad"
        assert said["signals"]["angle"]["value"] == said["signals_cycle"] > 0
        assert "V/rad" in run("get", "motor").stdout
        done = run("set", "motor", "kp=51")
        assert isinstance(done.exception, ConfigError) and "limits" in str(done.exception)
        assert "--pid selects" in run("get", "motor", "--pid", "1").output
    assert "--config belongs" in CliRunner().invoke(make_group(), ["get", "motor", "--config", __file__]).output


def test_the_scope_shows_and_changes_a_loop_on_another_host(
    motor: PyLoop, network: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("tornado", reason="rtloop scope needs rtloop[scope]")
    from rtloop.tools.scope.presets import Presets
    from rtloop.tools.scope.session import Session
    from rtloop.tools.scope.sources import Network
    from rtloop.tools.scope.station import Station

    sent: list[dict[str, Any]] = []

    async def send(message: str | bytes) -> None:
        if isinstance(message, str):
            sent.append(json.loads(message))

    def last(kind: str) -> dict[str, Any]:
        return next((one for one in reversed(sent) if one["kind"] == kind), {})

    async def check() -> None:
        source = Network(Remotes("rtloop/**", config=network))
        station = Station(Presets(tmp_path / "presets.json"), tmp_path, 5, source)
        session = Session(station, send)
        try:
            await play(station, session)
        finally:
            await session.close()
            await station.close()

    async def play(station: Station, session: Session) -> None:
        deadline = time.monotonic() + 60

        async def reach(done: Callable[[], Any]) -> None:
            while not done():
                assert time.monotonic() < deadline, sent
                station.poll()
                await session.tick()
                await session.report()
                await asyncio.sleep(0.01)

        while not station.loops:
            assert time.monotonic() < deadline
            station.look_soon()
            await station.search()
        (one,) = station.loops
        assert (one["name"], one["pid"]) == (f"{os.uname().nodename}/motor", os.getpid()) and one["has_signals"]
        await session.handle({"kind": "watch", "name": one["name"], "pid": one["pid"]})
        channels = [(channel["name"], channel["unit"]) for channel in last("loop")["channels"]]
        assert [one for one in channels if not one[0].startswith("loop.")] == [("angle", "rad")]
        assert ("loop.overruns", "") in channels, "a loop on another host has channels of its statistics"
        assert last("loop")["parameters"][0]["high"] == 50 and last("values")["values"]["kp"] == 10
        assert session.watch is not None and session.watch.signals is not None
        history = session.watch.signals.history
        await reach(lambda: history.count > 20)
        await session.handle({"kind": "set", "values": {"kp": 12, "mode": "3"}})
        assert last("set")["names"] == ["kp", "mode"] and motor.parameters["kp"] == 12
        await session.handle({"kind": "set", "values": {"kp": 51}})
        assert "outside of its limits" in last("refused")["message"] and motor.parameters["kp"] == 12
        await session.handle({"kind": "undo"})
        assert (motor.parameters["kp"], motor.parameters["mode"]) == (10, 0)
        await session.handle({"kind": "watch", "name": "nowhere/motor", "pid": 1})
        assert "no bridge has answered" in last("refused")["message"]
        motor.stop()
        await reach(lambda: last("status").get("state") == "stopped")
        assert last("status")["figures"]["cycles"] > 0

    with Bridge(motor, config=network, key="rtloop/pi/motor", commands="set", interval="20ms") as bridge:
        until(lambda: bridge.describe()["signals"])
        asyncio.run(check())
