"""``rtloop record NAME`` and ``rtloop.connect``: the signals of a loop, read from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import rtloop
from rtloop.live.signal_block import Cursor, ForeignSignals
from rtloop.tools.record.command import record
from rtloop.tools.record.event_recorder import EventRecorder
from rtloop.tools.record.expression import Expression
from rtloop.tools.saved_runs import load_runs

DTYPE = np.dtype([("cycle", "<u8"), ("release", "<i8"), ("start", "<i8"), ("error", "f8"), ("flag", "?"), ("n", "u4"),
                  ("force", "f4", (2, 3)), ("wave", "c16")])  # fmt: skip


@pytest.fixture
def loop(signalled: ModuleType, ordinary: dict[str, Any]) -> Iterator[Any]:
    made = signalled.Counting("1kHz", name=f"counting-{os.getpid()}", **ordinary)
    with made:
        yield made


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(record, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def is_whole(records: np.ndarray) -> bool:
    number = records["number"]
    return bool(np.all(records["inverse"] == ~number) and np.all(records["third"][:, 2] == number + 2))


def test_a_connection_reads_the_same_samples(loop: Any) -> None:
    with rtloop.connect(loop.name, os.getpid()) as there:
        assert (there.name, there.pid, there.state) == (loop.name, os.getpid(), "running")
        signals = there.signals
        assert signals.names == loop.signals.names and signals.units == loop.signals.units
        assert signals.dtype == loop.signals.dtype
        while loop.signals.written < 20:
            time.sleep(0.005)
        latest = signals.latest()
        assert latest["inverse"] == (1 << 64) - 1 - latest["number"] and there.stats.cycles > 0
        reader = signals.reader("begin")
        loop.stop()
        mine, theirs = loop.signals.read(), reader.read()
        assert mine[-len(theirs) :].tobytes() == theirs.tobytes() and len(theirs) + reader.lost == len(mine)
        assert there.state == "stopped"
    with pytest.raises(rtloop.StateError, match="closed"):
        _ = there.signals
    assert reader.read().size == 0 and reader.written == loop.signals.written, "a reader outlives the connection"


def test_a_connection_to_what_is_not_there(ordinary: dict[str, Any]) -> None:
    with pytest.raises(rtloop.AttachError, match="no such loop is running"):
        rtloop.connect("no-such-loop", os.getpid())
    plain = rtloop.RTLoop("1ms", name="without-signals", **ordinary)
    with plain, rtloop.connect("without-signals", os.getpid()) as there:
        with pytest.raises(rtloop.StateError, match="has no signals"):
            _ = there.signals
        assert there.stats.settings["name"] == "without-signals"


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_record_writes_a_file(loop: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.{suffix}"
    code, text = invoke(loop.name, "--pid", str(os.getpid()), "-o", str(path), "--for", "150ms", "--json")
    said = json.loads(text)
    assert (code, said["loop"], said["path"], said["state"]) == (0, loop.name, str(path), "running")
    assert said["records"] > 0 and said["signals"] == list(loop.signals.names)
    if suffix == "csv":
        assert len(path.read_text().splitlines()) == said["records"] + 1
        return
    found = np.load(path)
    records = found if suffix == "npy" else found["records"]
    assert len(records) == said["records"] and is_whole(records)
    assert len(records) + said["lost"] == int(records["number"][-1] - records["number"][0]) + 1


def test_record_writes_a_file_for_each_event(loop: Any, tmp_path: Path) -> None:
    code, text = invoke(
        loop.name, "--pid", str(os.getpid()), "-o", str(tmp_path / "event.npy"), "--trigger", "number % 100 == 0",
        "--before", "30ms", "--after", "20ms", "--events", "2", "--for", "20s", "--json",
    )  # fmt: skip
    said = json.loads(text)
    assert code == 0 and len(said["events"]) == 2
    for number, event in enumerate(said["events"], 1):
        name = Path(event["path"]).name
        assert name.startswith("event-20") and name.endswith(f"Z-{number:04}.npy"), "names sort by time"
        records = np.load(event["path"])
        assert is_whole(records) and len(records) == event["records"]
        at = records[records["release"] == event["release"]]
        assert at["number"].tolist()[0] % 100 == 0
        assert np.all(np.abs(records["release"] - event["release"]) <= 30_000_000)
        assert records["release"][-1] <= event["release"] + 20_000_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--before", "1s"], "belong to --trigger"), (["--zenoh", "x", "name"], "leave out --zenoh"),
        (["name", "--config", __file__], "belong to --zenoh"), (["name", "--strict"], "belong to --zenoh"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together(tmp_path: Path, arguments: list[str], words: str) -> None:
    code, text = invoke("-o", str(tmp_path / "x.mcap"), *arguments)
    assert code == 2 and words in text


PROGRAM = """
import sys, signal
sys.path.insert(0, sys.argv[1])
import signalled
loop = signalled.Counting("1kHz", name=sys.argv[2], signals_capacity=1 << 16, policy="other",
                          strict=False, lock_memory="off", dma_latency=None)
loop.start()
print("started", flush=True)
sys.stdin.readline()
loop.stop()
print(loop.signals.written, loop.stats.cycles, flush=True)
"""


def test_an_interrupted_recording_keeps_its_file(signalled_path: Path, tmp_path: Path) -> None:
    name, path = f"interrupted-{os.getpid()}", tmp_path / "run.npy"
    command = [sys.executable, "-P", "-c", PROGRAM, str(signalled_path), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "started\n"
        recording = [
            sys.executable,
            "-P",
            "-m",
            "rtloop",
            "record",
            name,
            "--pid",
            str(other.pid),
            "-o",
            str(path),
            "--json",
        ]
        with subprocess.Popen(
            recording,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as recorder:
            while not (path.exists() and path.stat().st_size > 2000):
                assert recorder.poll() is None
                time.sleep(0.01)
            recorder.send_signal(signal.SIGINT)
            said = json.loads(recorder.communicate(timeout=60)[0])
        other.stdin.write("\n")
        other.stdin.flush()
        written, cycles = map(int, other.stdout.readline().split())
    assert recorder.returncode == 0 and said["lost"] == 0 and written == cycles
    records = np.load(path)
    assert len(records) == said["records"] and is_whole(records)
    assert int(records["number"][-1] - records["number"][0]) + 1 == len(records), "none is missing, none is there twice"


def test_a_hostile_block_is_refused_or_read_within_its_bounds() -> None:
    """Whatever another process puts into a file that looks like a block of signals, reading it ends within it."""
    random = np.random.default_rng(3)
    good = bytearray(4096)
    good[:24] = b"rtSignal" + (2).to_bytes(4, "little") + (128).to_bytes(4, "little") + (64).to_bytes(8, "little")
    good[24:40] = (32).to_bytes(8, "little") + (1920).to_bytes(8, "little")
    assert 128 + 1920 + 32 * 64 == 4096
    refused = opened = 0
    for turn in range(300):
        content = bytearray(good)
        content[64:72] = int(random.integers(0, 1 << 62)).to_bytes(8, "little")
        for _ in range(turn % 3):
            content[int(random.integers(0, 128))] = int(random.integers(0, 256))
        fd = os.memfd_create("rtloop-signals:hostile")
        os.write(fd, content)
        try:
            cursor = Cursor(ForeignSignals(fd, 4096), "begin")
        except ValueError:
            refused += 1
        else:
            opened += 1
            assert len(cursor.read(np.dtype("V64"), 1 << 40)) <= 31
            cursor.latest(np.dtype("V64"))
            assert len(cursor.text()) <= 1920
        finally:
            os.close(fd)
    assert refused > 10 and opened > 100
    for size in (0, 1, 4095, 1 << 40):
        fd = os.memfd_create("rtloop-signals:hostile")
        os.ftruncate(fd, min(size, 4096))
        with pytest.raises((ValueError, OSError)):
            ForeignSignals(fd, size)
        os.close(fd)


def test_signals_that_share_the_bytes_of_a_record_do_not_exhaust_the_memory_of_a_reader(
    ordinary: dict[str, Any],
) -> None:
    """A thousand signals at one address make a reader's record hundreds of times as long as the loop's."""
    names = [f"s{n}" for n in range(1024)]
    data = np.zeros((), np.dtype({"names": names, "formats": ["i8"] * 1024, "offsets": [0] * 1024}))
    for capacity, is_read in ((1000, True), (100_000, False)):
        loop = rtloop.PyLoop(
            lambda cycle: None, "1ms", data=data, signals=names, signals_capacity=capacity, name=f"alike-{os.getpid()}",
            **ordinary,
        )  # fmt: skip
        with loop, rtloop.connect(loop.settings.name, os.getpid()) as there:
            if is_read:
                assert there.signals.names == tuple(names)
                continue
            with pytest.raises(rtloop.AttachError, match="take more than 1 GiB"):
                _ = there.signals


def make(**fields: Any) -> np.ndarray:
    records = np.zeros(len(next(iter(fields.values()))), DTYPE)
    for name, values in fields.items():
        records[name] = values
    return records


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("error > 1", [False, False, True]),
        ("abs(error) >= 1", [True, False, True]),
        ("0 < error < 5", [False, False, True]),
        ("not error", [False, True, False]),
        ("n - 2 < 0", [True, True, False]),
        ("flag and n > 1", [False, False, True]),
        ("flag or error == -1", [True, True, True]),
        ("-error ** 2 < -3", [False, False, True]),
        ("force[1, 2] == 7", [False, False, True]),
        ("max(error, n) == 2 or False", [False, False, True]),
        ("sqrt(error) > 0", [False, False, True]),
        ("error / 0 > 0", [False, False, True]),
        ("abs(wave) > 4", [True, True, True]),
        ("n % 2 == 1", [True, False, False]),
        ("True", [True, True, True]),
        ("(error / 0) - (error / 0)", [False] * 3),
    ],
)
def test_an_expression(text: str, holds: list[bool]) -> None:
    records = make(error=[-1, 0, 2], n=[1, 0, 2], flag=[False, True, True], wave=[3 + 4j] * 3)
    records["force"][2, 1, 2] = 7
    assert Expression(text, DTYPE).test(records).tolist() == holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "error >",
        "nosuch > 1",
        "force > 1",
        "force[0] > 1",
        "force[0, 9] > 1",
        "force[-1, 0]",
        "error[0]",
        "force[n, 0]",
        "__import__('os').system('true')",
        "error.real > 1",
        "(lambda: 1)()",
        "[1]",
        "'a' == 'a'",
        "error := 1",
        "f'{error}'",
        "2 ** error",
        "2 ** 1000",
        "error ** n",
        "exec(error)",
        "abs()",
        "abs(error, n)",
        "max(error)",
        "abs(x=error)",
        "error is n",
        "error in n",
        "error // 2",
        "error @ n",
        "error if flag else n",
        "~flag",
        "n << 2",
        "1j > 0",
        "wave < 1",
        "error.__class__",
        "(" * 300 + "1" + ")" * 300,
        "-" * 900 + "1",
        "1+" * 600 + "1",
        "*error",
        "yield",
        "await error",
        "None",
        "...",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    if text.startswith(("-" * 9, "1+")) and len(text) <= 1000:
        Expression(text, DTYPE)  # deep, but within Python's own limits
        return
    with pytest.raises(rtloop.ConfigError):
        Expression(text, DTYPE)


@pytest.mark.parametrize("piece", [1, 3, 7, 1000])
def test_events_are_cut_out_whole_however_the_samples_arrive(piece: int) -> None:
    found: list[tuple[int, list[int]]] = []
    error = np.zeros(1000)
    error[[100, 101, 130, 400, 403, 990]] = 1  # 130 within the first event's time, 403 within the second's
    records = make(cycle=np.arange(1000), release=np.arange(1000) * 1000, error=error)
    recorder = EventRecorder(
        Expression("error > 0.5", DTYPE), 20_000, 50_000, lambda cut, at: found.append((at, cut["cycle"].tolist()))
    )
    for begin in range(0, 1000, piece):
        recorder.take(records[begin : begin + piece])
    recorder.finish()
    assert found == [
        (100_000, list(range(80, 151))), (400_000, list(range(380, 451))), (990_000, list(range(970, 1000))),
    ]  # fmt: skip


def test_what_is_true_from_the_begin_has_not_become_true() -> None:
    found: list[int] = []
    recorder = EventRecorder(Expression("error > 0", DTYPE), 10, 10, lambda cut, at: found.append(at))
    recorder.take(make(release=[0, 1, 2, 3], error=[1, 1, 0, 1]))
    recorder.finish()
    assert found == [3]


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "mcap"])
def test_a_file_of_signals_is_not_taken_for_a_damaged_file_of_timing(tmp_path: Path, suffix: str) -> None:
    if suffix == "mcap":
        pytest.importorskip("mcap", reason="the package mcap is not installed")
    log, path = rtloop.Ring([("cycle", "u8"), ("x", "f8")], 8), tmp_path / f"run.{suffix}"
    with rtloop.Recorder(log, path):
        log.push((1, 2.0))
    renamed = shutil.copy(path, tmp_path / "run.dat") if suffix in ("npy", "mcap") else path
    for file in (renamed, path):
        with pytest.raises(rtloop.ConfigError) as caught:
            rtloop.Stats.load(file)
        assert "of a Recorder" in str(caught.value) or "a Recorder and rtloop record write signals" in str(caught.value)
        assert "zip" not in str(caught.value)
    with pytest.raises(rtloop.ConfigError, match="Recorder"):
        load_runs([str(path)])
