"""Tools for loops on several hosts: ``rtloop top --zenoh`` and ``rtloop record --zenoh``."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rtloop import BridgeError, ConfigError, PayloadError, PyLoop, RecorderError, Ring

pytest.importorskip("zenoh", reason="Zenoh is missing: pip install 'rtloop[zenoh]'")
pytest.importorskip("click", reason="the command line needs rtloop[cli]")
pytest.importorskip("rich", reason="tables need rtloop[cli]")

from click.testing import CliRunner
from rich.console import Console

from rtloop.tools.cli import make_group
from rtloop.tools.record.hosts import _print as print_recorded
from rtloop.tools.top.remote_sampler import RemoteSampler
from rtloop.tools.top.sampler import History
from rtloop.tools.top.view import details, facts, make_table, notes, title
from rtloop.zenoh import Bridge, Recording, RemoteLoop, Remotes, open_session, pack
from rtloop.zenoh import recording as recording_module
from rtloop.zenoh.answers import StatsText
from rtloop.zenoh.frames import Frame
from rtloop.zenoh.recording import Channel, times_of
from rtloop.zenoh.remote import parse_stats

pytestmark = pytest.mark.filterwarnings("ignore::rtloop.RTSetupWarning")
QUIET = {"scouting": {"multicast": {"enabled": False}}}
POINT = np.dtype([("release", "<i8"), ("angle", "<f8")])


@pytest.fixture
def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp/127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def config(address: str, tmp_path: Path) -> str:
    """The operator's configuration, as a file."""
    path = tmp_path / "operator.json5"
    path.write_text(json.dumps({**QUIET, "mode": "client", "connect": {"endpoints": [address]}}))
    return str(path)


@pytest.fixture
def client(address: str, here: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return what connects a bridge to the one router of this network."""
    with open_session({**here, "mode": "router"}):
        yield {**QUIET, "mode": "client", "connect": {"endpoints": [address]}}


@pytest.fixture
def here(address: str) -> dict[str, Any]:
    return {**QUIET, "listen": {"endpoints": [address]}}


def make_loop(name: str) -> PyLoop:
    return PyLoop(lambda cycle: None, "5ms", name=name, strict=False, policy="other", lock_memory="off", record=16)


def until(done: Callable[[], Any], seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit, "it has not come"
        time.sleep(0.01)


def run(*args: str) -> Any:
    return CliRunner().invoke(make_group(), list(args))


def test_top_lists_the_loops_of_all_hosts(client: dict[str, Any], config: str) -> None:
    arm, leg = make_loop("arm"), make_loop("leg")
    with (
        Bridge(arm, config=client, key="rtloop/pi/arm"),
        Bridge(leg, config=client, key="rtloop/nuc/leg"),
        arm,
        leg,
    ):
        done = run("top", "--zenoh", "--config", config, "--json")
        assert done.exit_code == 0, done.output
        rows = json.loads(done.stdout)["loops"]
        assert {(row["name"], row["key"], row["state"]) for row in rows} == {
            ("arm", "rtloop/pi/arm", "running"), ("leg", "rtloop/nuc/leg", "running"),
        }  # fmt: skip
        assert all(row["host"] and row["stats"]["cycles"] >= 0 for row in rows)
        done = run("top", "--zenoh", "rtloop/nuc/*", "--config", config)
        assert "leg" in done.stdout and "arm" not in done.stdout


def test_loops_of_one_name_on_hosts_of_one_name_are_told_apart_by_their_keys() -> None:
    def rows_of(*keys: str) -> list[str]:
        sampler = RemoteSampler.__new__(RemoteSampler)
        liars = Liars(make_loop("tank"), *({"key": key, "host": "pi"} for key in keys))
        sampler._remotes, sampler._past, sampler._patience_s, sampler._name = liars, History(), 0.0, None
        return [row.label for row in sampler.sample().rows]

    assert rows_of("rtloop/a/tank") == ["pi/tank"]
    assert rows_of("rtloop/b/tank", "rtloop/a/tank") == ["rtloop/a/tank/tank", "rtloop/b/tank/tank"]


ESCAPE = "\x1b[2J"


class Liars:
    """Remotes whose bridges answer with what was put here."""

    def __init__(self, loop: PyLoop, *changes: dict[str, Any]) -> None:
        self.faulty: dict[str, str] = {}
        self._texts = []
        for change in changes:
            document = json.loads(StatsText(loop, lambda: {"key": "k", "group": None, "bridge": {}}).get())
            for at, value in change.items():
                inner = document
                *path, last = at.split(".")
                for name in path:
                    inner = inner[int(name) if isinstance(inner, list) else name]
                inner[last] = value
            self._texts.append(json.dumps(document).encode())

    def ask(self) -> list[RemoteLoop]:
        found = []
        for text in self._texts:
            try:
                found.append(parse_stats(text))
            except PayloadError as error:
                self.faulty[f"rtloop/{ESCAPE}"] = f"{error}{ESCAPE}"
        return found


@pytest.mark.parametrize(
    "change",
    [
        {"stats.settings": {}},
        {"stats.settings.period_ns": 0},
        {"stats.settings.policy": ESCAPE},
        {"stats.grants.0.granted": ESCAPE, "stats.grants.0.name": "cpu"},
        {"host": ESCAPE},
        {"key": [1]},
        {"group": ESCAPE},
        {"group": "[/]"},
        {"time_ns": 10**400},
        {"time_ns": -1},
        {"pid": 1 << 63},
    ],
)
def test_what_a_bridge_may_answer_neither_ends_the_view_nor_is_obeyed_by_the_terminal(change: dict[str, Any]) -> None:
    loop = make_loop("liar")
    with loop:
        pass
    sampler = RemoteSampler.__new__(RemoteSampler)
    sampler._remotes, sampler._past, sampler._patience_s, sampler._name = Liars(loop, change, {}), History(), 0.0, None
    for _ in range(2):
        sample = sampler.sample()
        console = Console(record=True, width=300, file=io.StringIO(), markup=False)
        if sample.rows:
            console.print(make_table(sample.rows))
        for row in sample.rows:
            console.print(title(row), details(row), facts(row))
            json.dumps(row.to_dict())
        assert len(sample.rows) + len(sample.faulty) == 2
        assert "\x1b" not in "\n".join([console.export_text(), *notes(sample)])


def test_top_forgets_the_loops_that_no_longer_answer() -> None:
    sampler = RemoteSampler.__new__(RemoteSampler)
    liars = Liars(make_loop("brief"), {}, {"pid": 7})
    sampler._remotes, sampler._past, sampler._patience_s, sampler._name = liars, History(), 0.0, None
    assert len(sampler.sample().rows) == len(sampler._past._last) == 2
    del liars._texts[1]
    assert len(sampler.sample().rows) == len(sampler._past._last) == 1


def test_top_says_that_nobody_answers(here: dict[str, Any], config: str) -> None:
    with open_session(here):
        done = run("top", "--zenoh", "[/]/[red]/**", "--config", config)
    assert done.exit_code == 1
    assert "No bridge of [/]/[red]/** has answered for a loop." in done.stdout
    assert run("top", "--zenoh", "--pid", "1").exit_code == 2
    assert run("top", "--config", config).exit_code == 2


def test_record_writes_the_signals_of_several_hosts_on_one_time_line(
    client: dict[str, Any], config: str, tmp_path: Path
) -> None:
    reader = pytest.importorskip("mcap.reader", reason="the package mcap is missing")
    arm, leg = make_loop("arm"), make_loop("leg")
    rings = {"arm": Ring(POINT, 1000), "leg": Ring(POINT, 1000)}
    stop = threading.Event()

    def push() -> None:
        k = 0
        while not stop.wait(0.005):
            for ring in rings.values():
                ring.push((time.monotonic_ns(), k * 0.5))
            k += 1

    pusher = threading.Thread(target=push)
    path = tmp_path / "run.mcap"
    before = time.time_ns()
    with (
        Bridge(arm, config=client, key="rtloop/pi/arm", signals={"angle": rings["arm"]}),
        Bridge(leg, config=client, key="rtloop/nuc/leg", signals={"angle": rings["leg"]}),
    ):
        pusher.start()
        try:
            done = run(
                "record", "--zenoh", "rtloop/**", "-o", str(path), "--duration", "3s", "--config", config, "--json"
            )
        finally:
            stop.set()
            pusher.join()
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)["signals"]
    assert said.keys() == {"rtloop/pi/arm/signals/angle", "rtloop/nuc/leg/signals/angle"}
    with path.open("rb") as file:
        messages = list(reader.make_reader(file).iter_messages())
    by_topic: dict[str, list[Any]] = {}
    for _, channel, message in messages:
        by_topic.setdefault(channel.topic, []).append((message.log_time, json.loads(message.data)))
    assert {topic[1:]: len(found) for topic, found in by_topic.items()} == {k: v["records"] for k, v in said.items()}
    for found in by_topic.values():
        assert all(before <= log_time <= time.time_ns() for log_time, _ in found)
        offsets = {log_time - value["release"] for log_time, value in found}
        assert max(offsets) - min(offsets) < 1_000_000_000, "each record has its own time"
        assert len({log_time for log_time, _ in found}) == len(found)
        steps = np.diff([value["angle"] for _, value in found])
        assert (steps == 0.5).all() and len(steps) > 3


def test_a_recording_counts_what_is_missing_and_what_is_no_frame(here: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason="the package mcap is missing")
    with Recording("x/*", tmp_path / "a.mcap", config=here) as recording:
        at = "x/y/signals/z"
        for first, count in ((0, 3), (3, 2), (9, 1), (0, 4)):
            recording._take(at, pack(np.zeros(count), first=first, dropped=7), 1)
        recording._take(at, b"RTLB nonsense", 1)
        recording._take(at, pack(np.zeros(1), first="x"), 1)
        recording._take(at, pack(np.zeros(1), clocks={"realtime": -1}, first=4), 1)
        channel = recording.channels[at]
        assert (channel.records, channel.lost, channel.dropped, recording.refused) == (11, 4, 0, 2)
    with pytest.raises(ConfigError, match=r"must end in \.mcap"):
        Recording("x/*", tmp_path / "a.npy", config=here)


def test_what_the_disk_does_not_take_in_time_is_bounded_in_bytes_and_counted(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mcap", reason="the package mcap is missing")
    monkeypatch.setattr(recording_module, "_MAX_BYTES", 10_000)
    disk, is_writing = threading.Event(), threading.Event()
    with Recording("x/*", tmp_path / "a.mcap", config=here) as recording:
        take = recording._take

        def slow(*item: Any) -> None:
            is_writing.set()
            disk.wait(20)
            take(*item)

        monkeypatch.setattr(recording, "_take", slow)

        def come(first: int, count: int) -> None:
            payload = SimpleNamespace(to_bytes=lambda: pack(np.zeros(count), first=first))
            recording._on_sample(SimpleNamespace(payload=payload, key_expr="x/y/signals/z"))

        come(0, 100)
        assert is_writing.wait(60)
        come(100, 10_000)  # larger than all that may wait: alone it may
        for first in range(10_100, 20_100, 100):
            come(first, 100)
        assert recording.overflowed == 100
        disk.set()
        until(lambda: recording.records == 10_100)
        disk.clear()
        is_writing.clear()
        come(20_100, 1)
        assert is_writing.wait(60)
        come(20_101, 1)
        come(20_102, 1)
        disk.set()
        until(lambda: recording.records == 10_103)
        assert recording.channels["x/y/signals/z"].lost == 10_000, "20 103 were sent"
        assert recording.overflowed == 100, "there is room again"


def test_a_recording_that_nobody_closes_is_complete_when_the_interpreter_ends(
    here: dict[str, Any], address: str, tmp_path: Path
) -> None:
    reader = pytest.importorskip("mcap.reader", reason="the package mcap is missing")
    path = tmp_path / "a.mcap"
    there = {**QUIET, "mode": "client", "connect": {"endpoints": [address]}}
    program = f"""
import os, sys, rtloop.zenoh
recording = rtloop.zenoh.Recording("x/*", {str(path)!r}, config={here!r})
ring = rtloop.Ring("f8", 100)
loop = rtloop.PyLoop(lambda cycle: None, "5ms", strict=False, lock_memory="off")
bridge = rtloop.zenoh.Bridge(loop, config={there!r}, key="x/y", signals={{"z": ring}}, batch="5ms")
while recording.records < 100:
    ring.push(1.0)
    recording.run(0.001)
if os.fork() == 0:
    sys.exit()  # it must leave the parent's file alone
os.wait()
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], timeout=60, check=False, capture_output=True)
    assert (done.returncode, b"FATAL" in done.stderr) == (0, False), done.stderr
    with path.open("rb") as file:
        made = reader.make_reader(file)
        records, about = sum(1 for _ in made.iter_messages()), next(made.iter_metadata()).metadata
    assert records >= 100 and about["records"] == str(records)


def test_a_disk_that_takes_no_more_ends_a_recording_with_its_reason(here: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason="the package mcap is missing")
    path = tmp_path / "a.mcap"
    path.symlink_to("/dev/full")
    recording = Recording("x/*", path, config=here)
    recording._waiting.put(("x/y/signals/z", pack(np.random.default_rng(1).random(300_000)), 1))
    with pytest.raises(RecorderError, match=r"a\.mcap: No space left on device: recording ended after"):
        recording.run(60)
    recording.close()
    assert recording._file.closed
    recording = Recording("x/*", path, config=here)  # this one learns of it when it writes what it has kept
    with pytest.raises(RecorderError, match="No space left on device"):
        recording.close()


def test_peers_that_make_up_signals_without_end_do_not_end_a_recording(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = pytest.importorskip("mcap.reader", reason="the package mcap is missing")
    monkeypatch.setattr(recording_module, "_MAX_SCHEMAS", 3)
    path = tmp_path / "a.mcap"
    with Recording("x/*", path, config=here) as recording:
        for k in range(5):
            recording._take(f"x/{k}/signals/z", pack(np.zeros(1), first=0), 1)
        for wrong in (-1, 10**4000, True):
            recording._take("x/0/signals/z", pack(np.zeros(1), first=wrong), 1)
        recording._take("x/0/signals/z", pack(np.zeros(1), first=1), 1)
        assert (recording.records, recording.refused, len(recording.channels)) == (4, 5, 3)
    with path.open("rb") as file:
        assert sum(1 for _ in reader.make_reader(file).iter_messages()) == 4


@pytest.mark.parametrize("keys", ["", "/x", "a//b", "x/$", "a/**/", "x#"])
def test_keys_that_are_none_are_refused_before_anything_is_made(keys: str, tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason="the package mcap is missing")
    with pytest.raises(ConfigError, match="is not a Zenoh key expression"):
        Recording(keys, tmp_path / "a.mcap", config=QUIET)
    with pytest.raises(ConfigError, match="is not a Zenoh key expression"):
        Remotes(keys, config=QUIET)
    assert not (tmp_path / "a.mcap").exists()


def test_an_operator_is_told_in_rtloops_words_what_cannot_be_sent(here: dict[str, Any]) -> None:
    with Remotes("x/*", config=here) as remotes:
        for key in ("a//b", "x/*", "/x"):
            with pytest.raises(ConfigError, match="must be parts"):
                remotes.put(key, "angle", 1.0, "f8")
            with pytest.raises(ConfigError, match="must be parts"):
                remotes.command(key, "stop")
        with pytest.raises(ConfigError, match="must be among start, stop, reset"):
            remotes.command("x/y", "fly")
    with pytest.raises(BridgeError, match="x/y/setpoints/angle: "):
        remotes.put("x/y", "angle", 1.0, "f8")
    with pytest.raises(BridgeError, match="x/y/commands/stop: "):
        remotes.command("x/y", "stop")


def test_a_recording_of_nothing_says_so(here: dict[str, Any], config: str, tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason="the package mcap is missing")
    with open_session(here):
        done = run(
            "record", "--zenoh", "none/**", "-o", str(tmp_path / "a.mcap"), "--duration", "10ms", "--config", config
        )
    assert done.exit_code == 1
    assert "No bridge of none/** has published a record." in done.stderr
    assert done.stdout.split() == [str(tmp_path / "a.mcap:"), "0", "records"], "and shows no table without rows"


def test_a_recording_is_complete_before_its_session_closes(here: dict[str, Any], tmp_path: Path) -> None:
    reader = pytest.importorskip("mcap.reader", reason="the package mcap is missing")
    recording = Recording("x/*", tmp_path / "a.mcap", config=here)
    session, seen = recording._session, []

    class Slow:
        """Where the link to a peer is cut, closing takes as long as the lease: long enough to be killed."""

        def close(self) -> None:
            session.close()
            with recording.path.open("rb") as file:
                seen.append(reader.make_reader(file).get_summary())

    recording._session = Slow()
    recording.close()
    assert session.is_closed() and seen


def test_a_recordings_table_shows_the_keys_of_peers_and_obeys_none(capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "path": "a.mcap", "refused": 1, "last_reason": f"k: {ESCAPE}",
        "signals": {f"rtloop/[/]/[red]{ESCAPE}/signals/x": {"records": 1, "lost": 0, "dropped": 0}},
    }  # fmt: skip
    print_recorded(document)
    out, err = capsys.readouterr()
    assert "rtloop/[/]/[red]" in out and "\x1b" not in out + err


def test_a_records_time_is_placed_by_the_clock_of_its_host() -> None:
    clocks = {"realtime": 10**18, "tai": 10**18 + 37 * 10**9, "monotonic": 5 * 10**9}
    records = np.zeros(2, POINT)
    channel = Channel(0, POINT)
    for clock in clocks.values():
        records["release"] = clock - 3000, clock - 1000
        assert times_of(Frame(records, {"clocks": clocks}), channel, 7) == [10**18 - 3000, 10**18 - 1000]
    seconds = np.zeros(2, [("t", "<f8")])
    seconds["t"] = 1.0, 1.5
    assert times_of(Frame(seconds, {"clocks": clocks}), channel, 7) == [10**18 - 500_000_000, 10**18]
    seconds["t"] = 2.0, np.nan
    assert (
        times_of(Frame(seconds, {"clocks": {**clocks, "realtime": 2 * 10**18}}), channel, 7)[0] == 10**18 + 500_000_000
    )
    assert times_of(Frame(np.zeros(2)), channel, 7) == [7, 7]
    assert times_of(Frame(records, {"clocks": {"realtime": "x"}}), channel, 7) == [7, 7]
