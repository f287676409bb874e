"""``rtloop scope --foxglove``: signals and parameters by Foxglove's WebSocket protocol."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rtloop_test_scope_page import LIMIT_S, Program

from rtloop import AttachError

pytest.importorskip("tornado", reason="the tests of rtloop scope need Tornado: pip install 'rtloop[scope]'")
pytest.importorskip("foxglove", reason="rtloop scope --foxglove needs foxglove-sdk: pip install 'rtloop[foxglove]'")
ros = pytest.importorskip("mcap_ros2.decoder", reason="the decoder is missing: pip install mcap-ros2-support")


@pytest.fixture
def loop(scoped: ModuleType, ordinary: dict[str, Any]) -> Any:
    return scoped.Scoped("1kHz", name=f"fox-{os.getpid()}", **ordinary)


@pytest.fixture
def serve_of(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    made: list[Program] = []

    def start(*options: str) -> Program:
        made.append(Program(tmp_path, "--foxglove", "--port", "0", *options, until="ws://"))
        return made[-1]

    yield start
    for program in made:
        program.end(9)


@pytest.fixture
def serve(loop: Any, serve_of: Callable[..., Program]) -> Callable[..., Program]:
    return lambda *options: serve_of(loop.name, *options)


class Fox:
    """A client of Foxglove's protocol that knows only the definitions of messages that the server offers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.channels: dict[str, dict[str, Any]] = {}
        self.records: dict[str, list[tuple[int, Any]]] = {}
        self._subscriptions: dict[int, tuple[str, Callable[[bytes], Any]]] = {}
        self._asked = 0

    async def open(self) -> Fox:
        from tornado.websocket import websocket_connect

        self.socket = await websocket_connect(f"ws://{self.program.host}", subprotocols=["foxglove.sdk.v1"])
        return self

    async def send(self, op: str, **content: Any) -> None:
        await self.socket.write_message(json.dumps({"op": op, **content}))

    async def subscribe(self, topic: str) -> None:
        from mcap.records import Schema

        channel = self.channels[topic]
        assert (channel["encoding"], channel["schemaEncoding"]) == ("cdr", "ros2msg")
        schema = Schema(id=1, name=channel["schemaName"], encoding="ros2msg", data=channel["schema"].encode())
        number = len(self._subscriptions) + 1
        self._subscriptions[number] = topic, ros.DecoderFactory().decoder_for("cdr", schema)
        self.records.setdefault(topic, [])
        await self.send("subscribe", subscriptions=[{"id": number, "channelId": channel["id"]}])

    async def until(self, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        async def search() -> dict[str, Any]:
            while True:
                message = await self.read()
                if holds(message):
                    return message

        return await asyncio.wait_for(search(), LIMIT_S)

    async def read(self) -> dict[str, Any]:
        got = await self.socket.read_message()
        assert got is not None, "the server has closed the connection"
        if not isinstance(got, str):
            kind, number, at = struct.unpack("<BIQ", got[:13])
            if kind != 1:
                return {}
            topic, decode = self._subscriptions[number]
            self.records[topic].append((at, decode(got[13:])))
            return {"op": "data"}
        message: dict[str, Any] = json.loads(got)
        if message["op"] == "advertise":
            self.channels |= {channel["topic"]: channel for channel in message["channels"]}
        if message["op"] == "unadvertise":
            gone = message["channelIds"]
            self.channels = {topic: one for topic, one in self.channels.items() if one["id"] not in gone}
        return message

    def vanish(self) -> None:
        """End the connection as a program does that is killed."""
        stream = self.socket.protocol.stream
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()

    async def ask(self, op: str, **content: Any) -> dict[str, Any]:
        """Send a request, and return the values of the parameters in its answer."""
        self._asked += 1
        number = str(self._asked)
        await self.send(op, id=number, **content)
        answer = await self.until(lambda message: message.get("op") == "parameterValues" and message["id"] == number)
        return {one["name"]: one["value"] for one in answer["parameters"]}


def run(coroutine: Any) -> None:
    asyncio.run(asyncio.wait_for(coroutine, LIMIT_S))


def test_signals_and_parameters(loop: Any, serve: Callable[..., Program]) -> None:
    async def check(program: Program) -> None:
        fox = await Fox(program).open()
        info = await fox.until(lambda message: message.get("op") == "serverInfo")
        assert "parameters" in info["capabilities"]
        await fox.until(lambda message: fox.channels)
        topic = f"/{loop.name}"
        await fox.subscribe(topic)
        records = fox.records[topic]
        await fox.until(lambda message: len(records) >= 200)
        cycles = [record.cycle for _, record in records]
        assert cycles == list(range(cycles[0], cycles[0] + len(cycles))), "no sample is lost"
        at, record = records[-1]
        assert abs(at - time.time_ns()) < LIMIT_S * 10**9 and record.spike in (0, 1)
        assert at == record.header.stamp.sec * 10**9 + record.header.stamp.nanosec, "the time of the release"
        assert "float64 wave  # V\n" in fox.channels[topic]["schema"]

        gain, mode = f"{loop.name}.gain", f"{loop.name}.mode"
        values = [{"name": gain, "value": 7}, {"name": mode, "value": 2.0}]
        assert await fox.ask("setParameters", parameters=values) == {gain: 7, mode: 2}
        assert loop.parameters["gain"] == 7 and loop.parameters["mode"] == 2
        for refused, reason in (
            ({"name": gain, "value": 99}, "outside of its limits"),
            ({"name": gain, "value": [1, 2]}, "shape"),
            ({"name": gain, "value": "fast"}, "fast"),
            ({"name": gain}, "None"),
            ({"name": "gain", "value": 1}, "no running loop has a parameter gain"),
        ):
            await fox.send("setParameters", parameters=[{"name": mode, "value": 1}, refused], id="refused")
            status = await fox.until(lambda message: message.get("op") == "status")
            assert reason in status["message"] and status["level"] == 2
            assert loop.parameters["gain"] == 7 and loop.parameters["mode"] == 2, "all or none"
        assert len(await fox.ask("getParameters", parameterNames=[])) == 4
        await fox.send("subscribeParameterUpdates", parameterNames=[gain])
        loop.parameters["gain"] = 3
        await fox.until(
            lambda message: message.get("op") == "parameterValues" and message["parameters"][0]["value"] == 3
        )
        fox.vanish()
        fox = await Fox(program).open()
        await fox.until(lambda message: fox.channels)

    with loop:
        program = serve("--allow-set")
        run(check(program))
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed
    assert "Error" not in printed, "a client that vanishes is not an error"


def test_changes_only_if_allowed_and_the_next_run(loop: Any, serve: Callable[..., Program]) -> None:
    async def refused(program: Program) -> None:
        fox = await Fox(program).open()
        await fox.send("setParameters", parameters=[{"name": f"{loop.name}.gain", "value": 7}], id="a")
        status = await fox.until(lambda message: message.get("op") == "status")
        assert "--allow-set" in status["message"] and loop.parameters["gain"] == 1

    async def moves(program: Program) -> None:
        fox = await Fox(program).open()
        await fox.until(lambda message: fox.channels)
        await fox.subscribe(f"/{loop.name}")
        await fox.until(lambda message: message.get("op") == "data")

    with loop:
        program = serve()
        run(refused(program))
    deadline = time.monotonic() + LIMIT_S
    while not any("waiting for its next run" in line for line in program.lines):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with loop:
        run(moves(program))
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed


def test_a_swap_to_a_step_with_other_signals(laws: ModuleType, ordinary: dict[str, Any], serve_of: Any) -> None:
    def make(signal: str) -> Any:
        law = laws.Law("1kHz", name=f"fox-law-{os.getpid()}", **ordinary)
        law.show(signal)
        return law

    law = make("angle")

    async def check(program: Program) -> None:
        fox, topic = await Fox(program).open(), f"/{law.name}"
        await fox.until(lambda message: fox.channels)
        await fox.subscribe(topic)
        records = fox.records[topic]
        await fox.until(lambda message: len(records) > 20)
        former = fox.channels[topic]
        for number in range(2):
            cycle = law.swap(make("angle"))
            await fox.until(lambda message: records[-1][1].cycle > cycle + 20)  # noqa: B023
            assert fox.channels[topic] == former, f"swap {number}: the same signals are the same channel"
        cycles = [record.cycle for _, record in records]
        assert cycles == list(range(cycles[0], cycles[0] + len(cycles))), "every sample of every step"
        law.swap(make("other"))
        await fox.until(lambda message: fox.channels.get(topic, former)["id"] != former["id"])
        latter = fox.channels[topic]
        assert latter["schemaName"] not in (former["schemaName"], ""), "clients remember the definition of a name"
        await fox.subscribe(topic)
        await fox.until(lambda message: hasattr(records[-1][1], "other"))
        law.swap(make("angle"))
        await fox.until(lambda message: fox.channels.get(topic, latter)["id"] != latter["id"])
        assert fox.channels[topic]["schemaName"] == former["schemaName"]

    with law:
        program = serve_of(law.name)
        run(check(program))
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed and "overwritten" not in printed


def test_all_loops_of_the_machine(scoped: ModuleType, ordinary: dict[str, Any], serve_of: Any) -> None:
    first, second = (scoped.Scoped("1kHz", name=f"fox-{i}-{os.getpid()}", **ordinary) for i in range(2))

    async def check(program: Program) -> None:
        fox = await Fox(program).open()
        await fox.until(lambda message: f"/{first.name}" in fox.channels)
        with second:
            await fox.until(lambda message: f"/{second.name}" in fox.channels)
            for loop in (first, second):
                await fox.subscribe(f"/{loop.name}")
            await fox.until(lambda message: all(len(fox.records[f"/{one.name}"]) > 50 for one in (first, second)))
            gains = {f"{loop.name}.gain": float(7 + i) for i, loop in enumerate((first, second))}
            values = [{"name": name, "value": value} for name, value in gains.items()]
            assert await fox.ask("setParameters", parameters=values) == gains
            assert [loop.parameters["gain"] for loop in (first, second)] == [7, 8]
            await fox.send("setParameters", parameters=[{"name": f"{second.name}.gain", "value": 99}], id="a")
            status = await fox.until(lambda message: message.get("op") == "status")
            assert status["message"].startswith(f"{second.name}: gain=99"), "the refusal names the loop"

    with first:
        program = serve_of("--allow-set")
        run(check(program))
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed


def test_loops_of_one_name_in_two_processes(loop: Any, serve: Callable[..., Program], start: Any) -> None:
    other = start()
    settings = f"name={loop.name!r}, policy='other', lock_memory='off', dma_latency=None"
    data = "data=numpy.zeros((), [('gain', 'f8')]), parameters=('gain',)"
    other.do(f"!loop = rtloop.PyLoop(lambda cycle: 0, '100Hz', {settings}, {data}); loop.start()")

    async def check(program: Program) -> None:
        fox = await Fox(program).open()
        found = await fox.ask("getParameters", parameterNames=[])
        labels = {loop.name, f"{loop.name}-{other.pid}", f"{loop.name}-{os.getpid()}"}
        assert {name.rpartition(".")[0] for name in found} < labels and len(found) == 4 + 1
        (single,) = (name for name in found if found[name] == 0 and "gain" in name)
        assert await fox.ask("setParameters", parameters=[{"name": single, "value": 5}]) == {single: 5}
        assert loop.parameters["gain"] == 1 and other.do("loop.parameters['gain']") == 5

    with loop:
        run(check(serve("--allow-set")))
    other.do("!loop.stop()")


def test_a_loop_that_cannot_be_read_is_named_once(
    scoped: ModuleType, ordinary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtloop.tools.scope import foxglove as module

    first, second = (scoped.Scoped("1kHz", name=f"fox-{i}-{os.getpid()}", **ordinary) for i in range(2))
    publish = module.ServedLoop.publish

    def refuse(served: Any) -> None:
        if served.label == first.name:
            raise AttachError("its block is damaged")
        publish(served)

    monkeypatch.setattr(module.ServedLoop, "publish", refuse)
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    monkeypatch.setattr(module, "_SEARCH_S", 0.05)
    said: list[str] = []
    with first, second:
        bridge = module.FoxgloveBridge(None, os.getpid(), "127.0.0.1", 0, can_set=False, say=said.append)
        end = time.monotonic() + 1
        bridge.run(lambda: time.monotonic() > end)
        assert [served.label for served in bridge._served.values()] == [second.name]
        bridge.close()
    assert [text for text in said if "damaged" in text] == [
        f"{first.name}: its block is damaged; waiting for its next run."
    ]
