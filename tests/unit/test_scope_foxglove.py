"""``rtloop scope --foxglove``: signals and parameters by Foxglove's WebSocket protocol."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rtloop_test_scope_page import LIMIT_S, Program

pytest.importorskip("tornado", reason="the tests of rtloop scope need Tornado: pip install 'rtloop[scope]'")
pytest.importorskip("foxglove", reason="rtloop scope --foxglove needs foxglove-sdk: pip install 'rtloop[foxglove]'")


@pytest.fixture
def loop(scoped: ModuleType, ordinary: dict[str, Any]) -> Any:
    return scoped.Scoped("1kHz", name=f"fox-{os.getpid()}", **ordinary)


@pytest.fixture
def serve(loop: Any, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    made: list[Program] = []

    def start(*options: str) -> Program:
        made.append(Program(tmp_path, loop.name, "--foxglove", "--port", "0", *options, until="ws://"))
        return made[-1]

    yield start
    for program in made:
        program.end(9)


class Fox:
    """A client of Foxglove's protocol."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.records: list[tuple[int, dict[str, Any]]] = []

    async def open(self) -> Fox:
        from tornado.websocket import websocket_connect

        self.socket = await websocket_connect(f"ws://{self.program.host}", subprotocols=["foxglove.sdk.v1"])
        return self

    async def send(self, op: str, **content: Any) -> None:
        await self.socket.write_message(json.dumps({"op": op, **content}))

    async def until(self, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        async def search() -> dict[str, Any]:
            while True:
                got = await self.socket.read_message()
                assert got is not None, "the server has closed the connection"
                if isinstance(got, str):
                    message = json.loads(got)
                else:  # 1: message data
                    kind, _, at = struct.unpack("<BIQ", got[:13])
                    message = {"op": "data"} if kind == 1 else {}
                    if kind == 1:
                        self.records.append((at, json.loads(got[13:])))
                if holds(message):
                    return message

        return await asyncio.wait_for(search(), LIMIT_S)


def run(coroutine: Any) -> None:
    asyncio.run(asyncio.wait_for(coroutine, LIMIT_S))


def test_signals_and_parameters(loop: Any, serve: Callable[..., Program]) -> None:
    async def check(program: Program) -> None:
        fox = await Fox(program).open()
        info = await fox.until(lambda message: message.get("op") == "serverInfo")
        assert "parameters" in info["capabilities"]
        offered = await fox.until(lambda message: message.get("op") == "advertise")
        (channel,) = offered["channels"]
        schema = json.loads(channel["schema"])
        assert channel["topic"] == f"/{loop.name}" and channel["encoding"] == "json" and "wave" in schema["properties"]
        await fox.send("subscribe", subscriptions=[{"id": 1, "channelId": channel["id"]}])
        while len(fox.records) < 200:
            await fox.until(lambda message: message.get("op") == "data")
        cycles = [record["cycle"] for _, record in fox.records]
        assert cycles == list(range(cycles[0], cycles[0] + len(cycles))), "no sample is lost"
        at, record = fox.records[-1]
        assert abs(at - time.time_ns()) < LIMIT_S * 10**9 and record["spike"] in (0, 1)

        gain = f"{loop.name}.gain"
        await fox.send(
            "setParameters",
            parameters=[{"name": gain, "value": 7}, {"name": f"{loop.name}.mode", "value": 2.0}],
            id="a",
        )
        answer = await fox.until(lambda message: message.get("op") == "parameterValues" and message.get("id") == "a")
        assert {one["name"]: one["value"] for one in answer["parameters"]} == {gain: 7, f"{loop.name}.mode": 2}
        assert loop.parameters["gain"] == 7 and loop.parameters["mode"] == 2
        await fox.send("setParameters", parameters=[{"name": gain, "value": 99}], id="b")
        status = await fox.until(lambda message: message.get("op") == "status")
        assert "outside of its limits" in status["message"] and loop.parameters["gain"] == 7
        await fox.send("getParameters", parameterNames=[], id="c")
        answer = await fox.until(lambda message: message.get("op") == "parameterValues" and message.get("id") == "c")
        assert len(answer["parameters"]) == 4
        await fox.send("subscribeParameterUpdates", parameterNames=[gain])
        loop.parameters["gain"] = 3
        await fox.until(
            lambda message: message.get("op") == "parameterValues" and message["parameters"][0]["value"] == 3
        )

    with loop:
        program = serve("--allow-set")
        run(check(program))
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed


def test_changes_only_if_allowed_and_the_next_run(loop: Any, serve: Callable[..., Program]) -> None:
    async def refused(program: Program) -> None:
        fox = await Fox(program).open()
        await fox.send("setParameters", parameters=[{"name": f"{loop.name}.gain", "value": 7}], id="a")
        status = await fox.until(lambda message: message.get("op") == "status")
        assert "--allow-set" in status["message"] and loop.parameters["gain"] == 1

    async def moves(program: Program) -> None:
        fox = await Fox(program).open()
        offered = await fox.until(lambda message: message.get("op") == "advertise")
        await fox.send("subscribe", subscriptions=[{"id": 1, "channelId": offered["channels"][0]["id"]}])
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
