"""A program ``rtloop scope``, and a client of its WebSocket that behaves as the page does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

LIMIT_S = 120
#: The command, with a Ctrl-C that is not ignored, as it is in what a shell starts in the background.
_CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from rtloop.tools.cli import main; main()"
)


class Program:
    """A running ``rtloop scope``, its address, its token and what it has printed.

    It has started once it prints `until`.
    """

    def __init__(self, folder: Path, *arguments: str, until: str = "http://") -> None:
        self.folder = folder
        environment = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
        files = () if "--foxglove" in arguments else ("--folder", str(folder))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, "scope", *files, *arguments],
            stderr=subprocess.PIPE, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if until in line:
                break
        else:
            raise AssertionError("".join(self.lines))
        self.address = next(word for word in self.lines[-1].split() if until in word)
        # Read on, so that it never waits for the pipe.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        parts = urlsplit(self.address)
        assert parts.hostname and parts.port
        self.host, self.port = parts.netloc, parts.port
        self.token = parse_qs(parts.query).get("token", [""])[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """End it with a signal; return its exit code, and what it has printed."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code, "".join(self.lines)


@contextlib.contextmanager
def running_program(folder: Path, *arguments: str) -> Iterator[Program]:
    """Run ``rtloop scope`` for a while."""
    program = Program(folder, *arguments)
    try:
        yield program
    finally:
        program.end(signal.SIGKILL)


class Client:
    """A page without a browser. Frames are asked for as soon as the last one has come."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.frames: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.latest: dict[str, dict[str, Any]] = {}

    async def open(self) -> Client:
        from tornado.httpclient import HTTPRequest
        from tornado.websocket import websocket_connect

        url = f"ws://{self.program.host}/socket?token={self.program.token}"
        request = HTTPRequest(url, headers={"Origin": f"http://{self.program.host}"})
        self.socket = await websocket_connect(request)
        await self.send("next")
        return self

    async def send(self, kind: str, **content: Any) -> None:
        await self.socket.write_message(json.dumps({"kind": kind, **content}))

    async def read(self) -> dict[str, Any]:
        """Return the next message, and ask for another frame after one."""
        import numpy as np

        got = await self.socket.read_message()
        assert got is not None, "the server has closed the connection"
        if isinstance(got, str):
            found: dict[str, Any] = json.loads(got)
            self.messages.append(found)
            self.latest[found["kind"]] = found
            return found
        length = int.from_bytes(got[:4], "little")
        found = json.loads(got[4 : 4 + length])
        numbers = np.frombuffer(got[4 + length :], "<f8")
        found["arrays"] = np.split(numbers, np.cumsum(found["lengths"])[:-1]) if found["lengths"] else []
        self.frames.append(found)
        await self.send("next")
        return found

    async def until(self, kind: str, holds: Callable[[dict[str, Any]], Any] = lambda message: True) -> dict[str, Any]:
        """Read up to a message of this kind for which a condition holds."""

        async def search() -> dict[str, Any]:
            while True:
                message = await self.read()
                if message["kind"] == kind and holds(message):
                    return message

        try:
            return await asyncio.wait_for(search(), LIMIT_S)
        except TimeoutError:
            raise AssertionError(f"no {kind}; the last messages are {self.messages[-5:]}") from None

    async def until_latest(self, kind: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Read until the latest message of this kind, which may have come already, is one for which it holds."""
        found = self.latest.get(kind)
        return found if found is not None and holds(found) else await self.until(kind, holds)

    async def watch(self, name: str, pid: int | None = None) -> dict[str, Any]:
        """Choose a loop, and return its description."""
        await self.send("watch", name=name, pid=os.getpid() if pid is None else pid)
        return await self.until("loop")

    async def view(self, *channels: str, **more: Any) -> None:
        values = {"mode": "time", "channels": channels, "window": 2, "columns": 400, **more}
        await self.send("view", **values)

    def close(self) -> None:
        self.socket.close()
