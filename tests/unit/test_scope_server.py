"""``rtloop scope`` without a browser: who is refused, and what a page can see and change."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rtloop_test_scope_page import LIMIT_S, Client, Program, running_program

import rtloop
from rtloop.errors import ConfigError, StateError
from rtloop.tools.scope.assets import PAGE_FILES, read_page_file
from rtloop.tools.scope.presets import Presets, default_path

pytest.importorskip("bokeh", reason="the page of rtloop scope needs Bokeh and Tornado: pip install 'rtloop[scope]'")


@pytest.fixture
def loop(scoped: ModuleType, ordinary: dict[str, Any]) -> Iterator[Any]:
    made = scoped.Scoped("1kHz", name=f"scoped-{os.getpid()}", **ordinary)
    with made:
        yield made


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with running_program(tmp_path) as running:
        yield running


def get(program: Program, path: str, **headers: str) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", program.port, timeout=LIMIT_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


def upgrade(program: Program, token: str, **headers: str) -> int:
    """Return the status of a request for the WebSocket; 101 is success."""
    basic = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    return get(program, f"/socket?token={token}", **basic, **headers)[0]


def test_only_a_page_with_the_token_is_served(program: Program) -> None:
    own = program.host
    status, text, headers = get(program, f"/?token={program.token}")
    assert status == 200 and "rtloop scope" in text
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "http:" not in policy
    assert headers["Referrer-Policy"] == "no-referrer" and "Access-Control-Allow-Origin" not in headers
    for wrong in ("/", "/?token=", f"/?token={program.token}x", "/?token=%00"):
        status, text, _ = get(program, wrong)
        assert status == 403 and "token" in text and program.token not in text
    # A foreign name that leads here, as in DNS rebinding, is refused even with the token.
    for host in (
        "evil.example",
        f"evil.example:{program.port}",
        f"127.0.0.1.evil.example:{program.port}",
        "",
        "[::",
        "@",
    ):
        for path in (f"/?token={program.token}", "/page/main.js", "/bokeh/bokeh.min.js"):
            assert get(program, path, Host=host)[0] in (400, 403), host
        assert upgrade(program, program.token, Host=host, Origin=f"http://{host}") in (400, 403)
    assert get(program, f"/?token={program.token}", Host=f"localhost:{program.port}")[0] == 200
    assert upgrade(program, program.token, Origin=f"http://{own}") == 101
    for origin in (
        "http://evil.example",
        f"https://{own}",
        f"http://{own}.evil.example",
        "null",
        f"http://localhost:{program.port}",
    ):
        assert upgrade(program, program.token, Origin=origin) == 403, origin
    assert upgrade(program, program.token) == 403, "a page says where it comes from"
    assert upgrade(program, "x" * 32, Origin=f"http://{own}") == 403
    for path in ("/page/../command.py", "/page/%2e%2e/command.py", "/bokeh/../../../../etc/passwd", "/page/"):
        assert get(program, path)[0] == 404
    assert get(program, "/bokeh/bokeh.min.js")[0] == 200
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed


def test_the_page_loads_nothing_from_elsewhere(program: Program) -> None:
    for name in PAGE_FILES:
        text = read_page_file(name).decode()
        found = set(re.findall(r"\b(?:https?|wss?)://[^\s\"'`)]*|@import|url\(|[\"'`]//", text))
        assert found <= {"http://www.w3.org/2000/svg", "ws://${location.host}/socket?token=${encodeURIComponent(token"}
        if name != "scope.html":
            assert get(program, f"/page/{name}")[0] == 200
    linked = re.findall(r'(?:src|href)="(/[^"]*)"', read_page_file("scope.html").decode())
    assert len(linked) == 4 and all(get(program, path)[0] == 200 for path in linked)


def run(coroutine: Any) -> None:
    asyncio.run(asyncio.wait_for(coroutine, LIMIT_S))


def test_signals_move_and_parameters_change_together(loop: Any, program: Program) -> None:
    async def check() -> None:
        page = await Client(program).open()
        await page.until("loops", lambda found: any(one["name"] == loop.name for one in found["loops"]))
        described = await page.watch(loop.name)
        assert [one["name"] for one in described["channels"]][:3] == ["wave", "spike", "fired"]
        assert len(described["channels"]) == 19 and described["parameters"][0]["high"] == 50
        await page.view(*(one["name"] for one in described["channels"]), window=5)
        first = await page.until("frame", lambda frame: len(frame["groups"]) == 2)
        later = await page.until("frame", lambda frame: frame["newest"] > first["newest"] + 0.5)
        assert len(later["groups"][0]["channels"]) == 16 and later["groups"][1]["channels"][0] == "loop.latency"

        await page.send("set", values={"gain": "7.5", "mode": "2"})
        await page.until("values", lambda found: found["values"]["gain"] == 7.5 and found["undo"] == 1)
        assert loop.parameters["gain"] == 7.5 and loop.parameters["mode"] == 2
        for values, reason in [({"gain": "60"}, "gain=60"), ({"mode": "1", "gain": "-1"}, "gain=-1"),
                               ({"gain": "abc"}, "must be a number"), ({"gain": None}, "gain=None"),
                               ({"nothing": "1"}, "has no parameter 'nothing'"), ({"mode": "1.5"}, "whole number"),
                               ({"gain": "nan"}, "not finite"), ([1], "not a table")]:  # fmt: skip
            await page.send("set", values=values)
            refused = await page.until("refused")
            assert reason in refused["message"] and refused["of"] == "set", refused
        assert loop.parameters["gain"] == 7.5 and loop.parameters["mode"] == 2, "none of a refused set is changed"

        for value in ("8", "9", "10"):
            await page.send("set", values={"gain": value}, gesture="drag")
        await page.until("values", lambda found: found["values"]["gain"] == 10 and found["undo"] == 2)
        await page.send("undo")
        await page.until("values", lambda found: found["values"]["gain"] == 7.5 and found["undo"] == 1)
        await page.send("undo")
        await page.until("values", lambda found: found["values"] == {"gain": 1, "offset": 0, "mode": 0, "fire": 0})
        loop.parameters["gain"] = 3
        await page.until("values", lambda found: found["values"]["gain"] == 3)
        page.close()

    run(check())
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed


def test_presets_are_kept_in_a_file(loop: Any, program: Program) -> None:
    async def check() -> None:
        page = await Client(program).open()
        await page.watch(loop.name)
        assert (await page.until("presets"))["presets"] == {}
        loop.parameters.update(gain=4, mode=1)
        await page.send("preset", action="save", name="soft")
        found = (await page.until("presets"))["presets"]
        assert found == {"soft": {"gain": 4, "offset": 0, "mode": 1, "fire": 0}}
        await page.send("preset", action="save", name=" ")
        assert "printable" in (await page.until("refused"))["message"]
        other = await Client(program).open()
        await other.watch(loop.name)
        assert (await other.until("presets"))["presets"] == found
        await other.send("preset", action="delete", name="soft")
        assert (await other.until("presets"))["presets"] == {}

    run(check())
    assert json.loads((program.folder / "config" / "rtloop" / "presets.json").read_text()) == {loop.name: {}}


def test_preset_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presets = Presets(tmp_path / "new" / "presets.json")
    assert presets.of("motor") == {}
    presets.save("motor", "stiff", {"kp": 9.5})
    presets.save("motor", "soft", {"kp": 1})
    presets.save("arm", "stiff", {"on": True})
    assert Presets(presets.path).of("motor") == {"soft": {"kp": 1}, "stiff": {"kp": 9.5}}
    with pytest.raises(ConfigError):
        presets.save("motor", "x" * 61, {})
    for text in ("{", "[]", '{"motor": []}', '{"motor": {"soft": 1}}', "[" * 100_000):
        presets.path.write_text(text)
        with pytest.raises(StateError, match="not a file of presets"):
            presets.save("motor", "new", {})
        assert presets.path.read_text() == text, "what is not understood is not replaced"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    assert default_path() == Path("/somewhere/rtloop/presets.json")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_path() == Path("/home/me/.config/rtloop/presets.json")


def test_without_a_home_there_are_no_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user of a container may be a number without an entry in the user database."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    presets = Presets(default_path())
    assert presets.of("motor") == {}
    with pytest.raises(StateError, match="no home directory; start rtloop scope with --presets FILE"):
        presets.save("motor", "soft", {"kp": 1})


def test_the_trigger_catches_a_spike_of_one_cycle_ten_times_of_ten(loop: Any, program: Program) -> None:
    """At full rate, beside a view that is much too coarse to show it, and the capture is saved as the loop wrote it."""

    async def check() -> None:
        page = await Client(program).open()
        await page.watch(loop.name)
        await page.view("wave", columns=16)
        for number in range(1, 11):
            await page.send("arm", channel="spike", edge="rising", level=0.5, before=100, after=50, is_single=True)
            await page.until("trigger", lambda found: found["state"] == "armed")
            loop.parameters["fire"] = number
            done = await page.until("trigger", lambda found: found["state"] == "done")
            assert done["found"] == 1
            await page.send("save", format="npz")
            said = (await page.until("done"))["message"]
            assert said.startswith("150 samples saved to ")
            path = Path(said.removeprefix("150 samples saved to ").removesuffix("."))
            assert path.parent == program.folder
            with np.load(path) as file:
                records, about = file["records"], json.loads(str(file["about"]))
            assert records.dtype == loop.signals.dtype and len(records) == 150
            assert np.flatnonzero(records["spike"]).tolist() == [100] and records["fired"][100] == number
            assert np.array_equal(np.diff(records["cycle"]), np.ones(149))
            assert about["cycle"] == records["cycle"][100] and about["before"] == 100
        await page.view("spike", "wave", is_capture=True)
        frame = await page.until("frame", lambda found: found["capture"])
        times, spike = frame["arrays"][0], frame["arrays"][1]
        assert len(times) == 150 and times[np.argmax(spike)] == 0, "times are relative to the edge"
        await page.send("cursors", times=[0, times[-1], 0][:2])
        one, two = (await page.until("cursors"))["cursors"]
        assert one["values"]["spike"] == 1 and two["values"]["spike"] == 0 and two["cycle"] - one["cycle"] == 49
        await page.send("cursors", times=[0, None], steps=[1, 0])
        (moved, _) = (await page.until("cursors"))["cursors"]
        assert moved["cycle"] == one["cycle"] + 1 and moved["values"]["spike"] == 0

        await page.send("arm", channel="spike", edge="rising", level=0.5, before=10, after=10, is_single=False)
        await page.until("trigger", lambda found: found["state"] == "armed")
        for number in range(3):
            loop.parameters["fire"] = 100 + number
            await page.until("trigger", lambda found, wanted=number + 1: found["found"] == wanted)
        await page.send("disarm")
        assert (await page.until("trigger"))["state"] == "off"
        for wrong in ({"channel": "nothing"}, {"level": "x"}, {"before": 10**7}, {"after": 0}, {"edge": "up"}):
            await page.send("arm", **{"channel": "spike", "edge": "rising", "level": 0, "before": 1, "after": 1,
                                      "is_single": True, **wrong})  # fmt: skip
            assert (await page.until("refused"))["of"] == "arm"

    run(check())


def test_pause_keeps_what_was_seen_and_goes_on(loop: Any, program: Program) -> None:
    async def check() -> None:
        page = await Client(program).open()
        await page.watch(loop.name)
        await page.view("wave", number=1)
        await page.until("frame", lambda frame: frame["groups"])
        await page.send("pause", on=True)
        await page.view("wave", number=2)
        frozen = await page.until("frame", lambda frame: frame["view"] == 2)
        written = loop.signals.written
        while loop.signals.written < written + 500:
            await asyncio.sleep(0.01)
        span = [frozen["newest"] - 0.2, frozen["newest"]]
        await page.view("wave", number=3, span=span)
        zoomed = await page.until("frame", lambda frame: frame["view"] == 3)
        assert zoomed["newest"] == frozen["newest"] and not zoomed["is_live"]
        assert [zoomed["begin"], zoomed["end"]] == span and zoomed["groups"][0]["samples"] == 1
        await page.send("pause", on=False)
        await page.view("wave", number=4)
        frame = await page.until("frame", lambda found: found["view"] == 4)
        assert frame["newest"] > frozen["newest"] + 0.4 and frame["is_live"]

    run(check())


def test_recordings_end_with_the_program(loop: Any, program: Program) -> None:
    async def check() -> None:
        page = await Client(program).open()
        await page.watch(loop.name)
        await page.send("record", on=True, format="exe")
        assert "mcap, npz" in (await page.until("refused"))["message"]
        await page.send("record", on=True, format="npz")
        await page.until("status", lambda found: found["recording"])
        await page.send("record", on=True, format="npz")
        assert "is being recorded" in (await page.until("refused"))["message"]
        await asyncio.sleep(0.2)
        await page.send("record", on=False)
        assert (
            "samples recorded to" in (await page.until("done", lambda found: "recorded" in found["message"]))["message"]
        )
        await page.send("record", on=True, format="npz")
        await page.until("status", lambda found: found["recording"])
        await asyncio.sleep(0.2)
        page.close()  # the recording goes on without the page

    run(check())
    code, printed = program.end()
    assert code == 0 and "samples recorded to" in printed and "Traceback" not in printed
    paths = sorted(program.folder.glob("*.npz"))
    assert len(paths) == 2 and not list(program.folder.glob("*.part*"))
    for path in paths:
        with np.load(path) as file:
            assert len(file["records"]) > 20 and np.array_equal(np.unique(np.diff(file["records"]["cycle"])), [1])


def test_a_loop_that_ends_and_runs_again(scoped: ModuleType, ordinary: dict[str, Any], program: Program) -> None:
    made = scoped.Scoped("1kHz", name=f"again-{os.getpid()}", **ordinary)

    async def check() -> None:
        page = await Client(program).open()
        with made:
            await page.watch(made.name)
            await page.view("wave")
            await page.send("arm", channel="spike", edge="rising", level=0.5, before=5, after=5, is_single=False)
            await page.until("trigger", lambda found: found["state"] == "armed")
            await page.until("frame", lambda frame: frame["groups"])
        await page.until("status", lambda found: found["state"] == "stopped")
        await page.send("set", values={"gain": "2"})
        assert "has ended" in (await page.until("refused"))["message"]
        await page.view("wave", span=[0, 0.1])  # what was seen can still be looked at
        await page.until("frame", lambda frame: frame["groups"])
        with made:
            await page.until("loop")
            await page.view("wave")
            await page.until_latest("status", lambda found: found["state"] == "running")
            await page.until_latest("trigger", lambda found: found["state"] == "armed")
            made.parameters["fire"] = 5
            await page.until("trigger", lambda found: found["found"] == 1)
        await page.until("status", lambda found: found["state"] == "stopped")

    run(check())
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed


def test_a_page_follows_a_swap(
    scoped: ModuleType, laws: ModuleType, loop: Any, ordinary: dict[str, Any], program: Program
) -> None:
    """A mark with the name of the new step, changes that reach it, and other signals if it has others."""

    async def check() -> None:
        page = await Client(program).open()
        await page.watch(loop.name)
        await page.view("wave", window=600)
        await page.until("frame", lambda frame: frame["groups"] and frame["marks"] == [])
        await page.send("record", on=True, format="npz")
        path = Path((await page.until_latest("status", lambda found: found["recording"]))["recording"])
        begin = loop.stats.cycles
        while loop.stats.cycles < begin + 10:
            await page.read()
        cycle = loop.swap(scoped.Scoped("1kHz", **ordinary))
        frame = await page.until("frame", lambda frame: frame["marks"])
        assert [(one["cycle"], one["name"]) for one in frame["marks"]] == [(cycle, "Scoped")]
        assert frame["begin"] < frame["marks"][0]["time"] <= frame["newest"]
        assert sum(one["kind"] == "loop" for one in page.messages) == 1, "the same signals and parameters"
        await page.send("set", values={"gain": "7"})
        await page.until("set")
        assert loop.parameters["gain"] == 7
        await page.until_latest("status", lambda found: not found["recording"])
        with np.load(path) as recorded:
            cycles = recorded["records"]["cycle"]
        assert cycles[-1] == cycle - 1, "a recording ends with the last sample of the former step"
        other = laws.Law("1kHz", **ordinary)
        other.show("angle")
        cycle = loop.swap(other)
        found = await page.until("loop")
        assert [one["name"] for one in found["channels"] if one["feed"] == "signals"] == ["angle"]
        await page.view("angle", window=600)
        # The first mark was in the samples of a step with other signals; the loop's own times may still have it.
        await page.until("frame", lambda frame: [one["cycle"] for one in frame["marks"]][-1:] == [cycle])
        swaps = (await page.until_latest("status", lambda found: (found["swaps"] or {}).get("count") == 2))["swaps"]
        assert swaps == {"count": 2, "cycle": cycle, "name": "Law"}

    run(check())
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed


def test_a_page_that_goes_while_it_is_told_of_its_loop_is_forgotten(loop: Any, tmp_path: Path) -> None:
    from rtloop.tools.scope.session import Session
    from rtloop.tools.scope.sources import Machine
    from rtloop.tools.scope.station import Station

    told = []

    async def check() -> None:
        async def send(message: str | bytes) -> None:
            told.append(json.loads(message)["kind"] if isinstance(message, str) else "frame")
            if told[-1] == "status":
                await session.close()

        station = Station(Presets(tmp_path / "presets.json"), tmp_path, 5, Machine())
        session = Session(station, send)
        await session.handle({"kind": "watch", "name": loop.name, "pid": os.getpid()})
        await session.report()
        await station.close()

    run(check())
    assert told[-1] == "status" and "refused" not in told


def test_pages_do_not_disturb_each_other(loop: Any, program: Program) -> None:
    """One that takes nothing, one that is cut off, one that sends rubbish; and the loop notices none of them."""

    async def check() -> None:
        good = await Client(program).open()
        await good.watch(loop.name)
        await good.view("wave", "spike")
        raw = socket.create_connection(("127.0.0.1", program.port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(
            f"GET /socket?token={program.token} HTTP/1.1\r\nHost: {program.host}\r\nOrigin: http://{program.host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        names = [f"s{i}" for i in range(13)]
        for message in [{"kind": "watch", "name": loop.name, "pid": os.getpid()},
                        {"kind": "view", "mode": "time", "channels": names, "window": 60, "columns": 4000},
                        *[{"kind": "next"}] * 200]:  # fmt: skip
            text = json.dumps(message).encode()
            raw.sendall(bytes([0x81, 0x80 | 126]) + len(text).to_bytes(2, "big") + bytes(4) + text)
        for text in ("{", "[]", "null", "[" * 100_000):
            rubbish = await Client(program).open()
            await rubbish.socket.write_message(text)
            while await asyncio.wait_for(rubbish.socket.read_message(), LIMIT_S) is not None:
                pass
        rubbish = await Client(program).open()
        contents: list[dict[str, Any]] = [
            {},
            {"kind": ["next"]},
            {"kind": "no such thing"},
            {"kind": "watch"},
            {"kind": "watch", "name": 1},
            {"kind": "view"},
            {"kind": "cursors", "times": "x"},
            {"kind": "cursors", "times": [0], "steps": [1000]},
            {"kind": "set", "values": 1},
            {"kind": "arm"},
            {"kind": "preset", "action": "save"},
            {"kind": "record", "on": True},
            {"kind": "save"},
        ]
        for content in contents:
            await rubbish.socket.write_message(json.dumps(content))
            await rubbish.until("refused")
        first = len(good.frames)
        while len(good.frames) < first + 30:
            await asyncio.wait_for(good.read(), LIMIT_S)
        raw.close()
        first = len(good.frames)
        while len(good.frames) < first + 10:
            await asyncio.wait_for(good.read(), LIMIT_S)

    run(check())
    code, printed = program.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and "Traceback" not in printed


def test_without_the_extra_one_sentence_names_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['bokeh'] = None; from rtloop.tools.cli import main; main(['scope'])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == "rtloop: bokeh is not installed; pip install 'rtloop[scope]'\n"
    code = "import sys, rtloop; assert not {'bokeh', 'tornado', 'click'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path)


def test_an_address_that_cannot_be_had(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options in (["--port", port], ["--host", "192.0.2.1"]):
            done = subprocess.run([sys.executable, "-P", "-m", "rtloop", "scope", *options], capture_output=True,
                                  text=True, check=False, cwd=tmp_path, timeout=LIMIT_S)  # fmt: skip
            assert done.returncode == 1 and "cannot listen there" in done.stderr and "Traceback" not in done.stderr
            assert done.stderr.endswith("choose another one with --port\n")


@pytest.mark.parametrize("option", ["--keep=1s", "--folder=.", "--presets=x.json"])
def test_options_of_the_page_are_refused_with_foxglove(tmp_path: Path, option: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "rtloop", "scope", "--foxglove", option], capture_output=True,
                          text=True, check=False, cwd=tmp_path, timeout=LIMIT_S)  # fmt: skip
    assert done.returncode == 2 and f"{option.partition('=')[0]} is for the page" in done.stderr


def test_other_machines_only_if_asked(tmp_path: Path) -> None:
    with running_program(tmp_path, "--host", "0.0.0.0") as open_program:
        time.sleep(0)
        token = open_program.token
        assert get(open_program, f"/?token={token}", Host=f"192.0.2.7:{open_program.port}")[0] == 200
        assert get(open_program, f"/?token={token}", Host=f"{socket.gethostname()}:{open_program.port}")[0] == 200
        assert get(open_program, f"/?token={token}", Host="evil.example")[0] == 403
        code, printed = open_program.end()
        assert code == 0 and "other machines can connect" in printed
    assert rtloop.__version__
