"""Recordings: every record is in the file or counted as lost, whatever happens to disk, process or program."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import Recorder, Ring
from rtloop.data import record_files

Script = Callable[..., "subprocess.CompletedProcess[str]"]
HAS_MCAP = importlib.util.find_spec("mcap") is not None
MCAP = pytest.param(".mcap", marks=pytest.mark.skipif(not HAS_MCAP, reason="needs the mcap package"))
RECORD = np.dtype([("release", "i8"), ("x", "f8", 2), ("is_on", "?"), ("name", "S4"), ("part", [("n", "u2")])])


def records(count: int, begin: int = 0) -> np.ndarray:
    array = np.zeros(count, RECORD)
    array["release"] = time.monotonic_ns() + np.arange(begin, begin + count)
    array["x"][:, 0] = np.arange(begin, begin + count)
    array["x"][:, 1] = -1.5
    array["is_on"] = np.arange(count) % 2
    array["name"] = b"arm"
    array["part"]["n"] = np.arange(count)
    return array


def read(path: Path) -> np.ndarray:
    content = np.load(path)
    return content["records"] if path.suffix == ".npz" else content


def read_mcap(path: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = pytest.importorskip("mcap.reader")
    with path.open("rb") as file:
        return [(m.log_time, json.loads(m.data)) for _, _, m in reader.make_reader(file).iter_messages()]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_what_went_into_the_ring_is_in_the_file(tmp_path: Path, suffix: str) -> None:
    ring, path = Ring(RECORD, 100), tmp_path / f"run{suffix}"
    given = [records(60), records(100, 60), records(1, 160)]
    with Recorder(ring, path) as recorder:
        for array in given:
            assert ring.push(array) == len(array)
            recorder.flush()
        assert recorder.written == 161 and not recorder.closed
    assert recorder.closed and (recorder.written, recorder.lost, recorder.error) == (161, 0, None)
    assert np.array_equal(read(path), np.concatenate(given))
    assert [child.name for child in tmp_path.iterdir()] == [path.name], "nothing is left beside it"


def test_an_npz_tells_about_the_recording(tmp_path: Path) -> None:
    ring = Ring("f8", 2)
    with Recorder(ring, tmp_path / "run.npz", interval="10s"):
        ring.push([1, 2, 3])
    about = json.loads(str(np.load(tmp_path / "run.npz")["about"]))
    assert (about["written"], about["lost"]) == (2, 1)
    assert about["begun_ns"] <= about["ended_ns"]
    clocks = about["clocks_begun"]
    assert about["tai_offset_start_s"] == about["tai_offset_s"] == round((clocks["tai"] - clocks["realtime"]) / 1e9)
    assert about["clocks_ended"].keys() == clocks.keys() == {"realtime", "tai", "monotonic", "boottime"}
    assert clocks["realtime"] == about["begun_ns"] and abs(clocks["realtime"] - time.time_ns()) < 3600 * 10**9


def test_an_mcap_is_read_by_its_own_package(tmp_path: Path) -> None:
    mcap = pytest.importorskip("mcap.reader")
    ring, path = Ring(RECORD, 5000), tmp_path / "run.mcap"
    given = records(3000)
    given["x"][5, 1] = np.nan
    before = time.time_ns()
    with Recorder(ring, path, topic="/arm/signals") as recorder:
        ring.push(given)
    assert recorder.written == 3000
    messages = read_mcap(path)
    assert len(messages) == 3000
    assert messages[7][1] == {"release": int(given["release"][7]), "x": [7.0, -1.5], "is_on": True, "name": "arm",
                              "part": {"n": 7}}  # fmt: skip
    assert messages[5][1]["x"] == [5.0, None], "JSON has no NaN"
    assert abs(messages[0][0] - before) < 60e9, "the time of day"
    assert messages[9][0] - messages[0][0] == given["release"][9] - given["release"][0]
    with path.open("rb") as file:
        summary = mcap.make_reader(file).get_summary()
    (channel,), (schema,) = summary.channels.values(), summary.schemas.values()
    assert channel.topic == "/arm/signals" and schema.encoding == "jsonschema"
    kinds = {name: value["type"] for name, value in json.loads(schema.data)["properties"].items()}
    assert kinds == {"release": "integer", "x": "array", "is_on": "boolean", "name": "string", "part": "object"}
    assert "null" in json.loads(schema.data)["description"], "what NaN becomes"
    assert "2^53" in json.loads(schema.data)["properties"]["release"]["description"]


def assert_readable(schema: dict[str, Any]) -> None:
    """Check that each field has one type, and an array one dimension: Foxglove and Lichtblick refuse any other."""
    assert schema["type"] in ("object", "array", "number", "integer", "boolean", "string")
    if schema["type"] == "array":
        assert schema["items"]["type"] != "array"
        assert_readable(schema["items"])
    for field in schema.get("properties", {}).values():
        assert_readable(field)


def test_an_mcap_of_matrices_and_complex_numbers(tmp_path: Path) -> None:
    mcap = pytest.importorskip("mcap.reader")
    part = np.dtype([("n", "u2"), ("at", "f4", (2,))])
    dtype = np.dtype([("m", "f8", (2, 3)), ("z", "c16"), ("zs", "c8", (2, 1)), ("parts", part, (2, 2))])
    ring, path = Ring(dtype, 10), tmp_path / "run.mcap"
    given = np.zeros(1, dtype)
    given["m"] = [[0, 1, np.nan], [3, 4, 5]]
    given["z"], given["zs"] = complex(1, np.inf), [[2], [3j]]
    given["parts"]["n"] = [[0, 1], [2, 3]]
    with Recorder(ring, path):
        ring.push(given)
    ((_, message),) = read_mcap(path)
    assert message == {
        "m": [0, 1, None, 3, 4, 5], "z": {"real": 1, "imag": None},
        "zs": [{"real": 2, "imag": 0}, {"real": 0, "imag": 3}], "parts": [{"n": n, "at": [0, 0]} for n in range(4)],
    }  # fmt: skip
    with path.open("rb") as file:
        (schema,) = mcap.make_reader(file).get_summary().schemas.values()
    content = json.loads(schema.data)
    assert_readable(content)
    assert content["properties"]["m"]["description"] == "2 x 3 items, row by row"


@pytest.mark.parametrize(
    ("dtype", "values", "key"), [([("t", "f8")], [(0.25,), (0.5,)], "t"), ("f4", [0.25, 0.5], "value")]
)
def test_times_of_an_mcap_without_a_release(tmp_path: Path, dtype: Any, values: list[Any], key: str) -> None:
    pytest.importorskip("mcap")
    ring = Ring(dtype, 10)
    before = time.time_ns()
    with Recorder(ring, tmp_path / "run.mcap"):
        ring.push(values)
    (first, a), (second, b) = read_mcap(tmp_path / "run.mcap")
    assert (a[key], b[key]) == (0.25, 0.5)
    assert before <= first <= second <= time.time_ns() + 1e9
    if key == "t":
        assert second - first == 250_000_000


def test_what_the_ring_dropped_is_counted_from_the_beginning_of_the_recording(tmp_path: Path) -> None:
    ring = Ring("i8", 4)
    ring.push(range(6))
    assert ring.dropped == 2
    with Recorder(ring, tmp_path / "run.npy", interval="10s") as recorder:
        ring.push(range(10))
        recorder.flush()
        ring.push(range(5))
    assert ring.dropped >= 9
    assert recorder.written + recorder.lost == 4 + 10 + 5


def test_the_file_is_whole_at_every_moment(tmp_path: Path) -> None:
    ring, path = Ring("i8", 100_000), tmp_path / "run.npy"
    with Recorder(ring, path, interval="1ms"):
        for i in range(300):
            ring.push(range(100 * i, 100 * i + 100))
            seen = np.load(io.BytesIO(path.read_bytes()))
            assert np.array_equal(seen, np.arange(len(seen)))
    assert len(np.load(path)) == 30_000


KILLED = """
import os, sys, numpy as np, rtloop
ring = rtloop.Ring([("n", "i8"), ("x", "f8", 8)], 100_000)
recorder = rtloop.Recorder(ring, sys.argv[1] if len(sys.argv) > 1 else {path!r})
array = np.zeros(20_000, ring.dtype)
array["n"] = np.arange(20_000)
ring.push(array)
recorder.flush()
ring.push(array[:3])
{end}
"""


@pytest.mark.parametrize("suffix", [".npy", ".npz", MCAP])
def test_a_killed_process_leaves_what_was_written(script: Script, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    done = script(KILLED.format(path=str(path), end="os.kill(os.getpid(), 9)"))
    assert done.returncode == -9, done.stderr
    if suffix == ".mcap":
        stream = pytest.importorskip("mcap.stream_reader")
        count = 0
        with path.open("rb") as file:
            for record in stream.StreamReader(file).records:
                count += type(record).__name__ == "Message"
                if count >= 19_500:
                    return
        pytest.fail(f"{count} messages")
    left = np.load(path.with_name("run.npz.part.npy") if suffix == ".npz" else path)
    assert len(left) in (20_000, 20_003) and left["n"][19_999] == 19_999


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "1 / 0"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", MCAP])
def test_a_program_that_ends_without_close_has_a_complete_file(
    script: Script, tmp_path: Path, suffix: str, end: str
) -> None:
    path = tmp_path / f"run{suffix}"
    done = script(KILLED.format(path=str(path), end=end))
    assert done.returncode == {"": 0, "sys.exit(3)": 3, "1 / 0": 1}[end], done.stderr
    if suffix == ".mcap":
        assert len(read_mcap(path)) == 20_003
    else:
        assert len(read(path)) == 20_003


@pytest.mark.parametrize("suffix", [".npy", ".npz", MCAP])
def test_a_full_disk_is_told_and_what_was_written_stays(script: Script, tmp_path: Path, suffix: str) -> None:
    """A limit of the file's size is a disk that is full for this process."""
    path = tmp_path / f"run{suffix}"
    done = script(f"""
        import resource, signal, numpy as np, rtloop
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        ring = rtloop.Ring("f8", 100_000)
        try:
            with rtloop.Recorder(ring, {str(path)!r}, interval="1ms") as recorder:
                ring.push(np.arange(50_000))
                while recorder.error is None:
                    pass
                ring.push(np.arange(1000))
        except rtloop.RecorderError as error:
            import errno
            print(errno.errorcode[error.errno], isinstance(error, OSError), recorder.written, recorder.lost, str(error))
        recorder.close()
    """)
    name, is_os_error, written, lost, text = done.stdout.split(maxsplit=4)
    assert (name, is_os_error) == ("EFBIG", "True"), done.stderr
    assert int(written) > 1000 and int(written) + int(lost) == 51_000
    assert str(path) in text and f"after {written} records" in text
    assert "RTSetupWarning" in done.stderr and done.stderr.count("recording ended") == 1, "told at once, and once"
    if suffix != ".mcap":
        left = np.load(path.with_name("run.npz.part.npy") if suffix == ".npz" else path)
        assert len(left) == int(written) and left[-1] == int(written) - 1


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", MCAP])
def test_a_disk_that_is_full_at_once_is_told_with_the_file(script: Script, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    done = script(f"""
        import errno, resource, signal, rtloop
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        ring = rtloop.Ring([("a", "f8")], 10)
        try:
            rtloop.Recorder(ring, {str(path)!r})
        except rtloop.RecorderError as error:
            print(errno.errorcode[error.errno], {str(path)!r} in str(error), ring.push((1.0,)), ring.pop() is not None)
    """)
    assert done.stdout == "EFBIG True 1 True\n", done.stderr


def test_a_disk_that_fails_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(record_files.os, "fsync", fail)
    ring = Ring("f8", 10)
    with warnings.catch_warnings(record=True, action="always") as seen:
        recorder = Recorder(ring, tmp_path / "run.npy")
        ring.push(1)
        with pytest.raises(rtloop.RecorderError) as caught:
            recorder.close()
    assert caught.value.errno == 5 and ["Input/output" in str(one.message) for one in seen] == [True]
    recorder.close()


def test_a_codec_that_fails_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring("f8", 10)
    with warnings.catch_warnings(record=True, action="always") as seen:
        recorder = Recorder(ring, tmp_path / "run.npy")
        monkeypatch.setattr(record_files.NpyFile, "append", lambda self, array: array.nonsense)
        ring.push(1)
        with pytest.raises(rtloop.RecorderError, match="nonsense"):
            recorder.close()
    assert (recorder.written, recorder.lost) == (0, 1)
    assert ["nonsense" in str(one.message) for one in seen] == [True]


def test_an_error_of_the_body_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_files.NpyFile, "append", lambda self, array: array.nonsense)
    ring = Ring("f8", 10)
    warnings.simplefilter("ignore", rtloop.RTSetupWarning)
    with pytest.raises(KeyError) as caught, Recorder(ring, tmp_path / "run.npy"):
        ring.push(1)
        raise KeyError("mine")
    assert any("recorder failed" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [("run.txt", rtloop.ConfigError, r"\.npy, \.npz, \.mcap or \.csv"), ("none/run.npy", FileNotFoundError, "none"),
     ("none/run.npz", FileNotFoundError, "none")],
)  # fmt: skip
def test_a_file_that_cannot_be_made(tmp_path: Path, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Recorder(Ring("f8", 1), tmp_path / name)


def test_a_former_file_is_replaced_and_an_npz_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    for value in (1.0, 2.0):
        ring = Ring("f8", 1)
        ring.push(value)
        recorder = Recorder(ring, path)
        if value == 2.0:
            recorder.flush()
            assert read(path).tolist() == [1.0], "the former one is still there"
        recorder.close()
    assert read(path).tolist() == [2.0]


def test_flush_and_close_after_the_end(tmp_path: Path) -> None:
    recorder = Recorder(Ring("f8", 1), tmp_path / "run.npy")
    recorder.close()
    recorder.close()
    with pytest.raises(rtloop.StateError, match="has ended"):
        recorder.flush()
    assert "closed" in repr(recorder)


def test_flush_gives_up_where_the_disk_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = record_files.NpyFile.append
    is_slow = True

    def slowly(self: record_files.NpyFile, array: np.ndarray) -> None:
        while is_slow:
            time.sleep(0.01)
        append(self, array)

    monkeypatch.setattr(record_files.NpyFile, "append", slowly)
    ring = Ring("f8", 1)
    with Recorder(ring, tmp_path / "run.npy") as recorder:
        ring.push(1)
        with pytest.raises(TimeoutError, match="longer than 100ms"):
            recorder.flush("100ms")
        is_slow = False
    assert recorder.written == 1


def test_the_thread_is_an_ordinary_one(tmp_path: Path) -> None:
    recorder = Recorder(Ring("f8", 1), tmp_path / "run.npy")
    recorder.flush()
    tid = recorder._tid
    assert os.sched_getscheduler(tid) == os.SCHED_OTHER
    assert os.sched_getaffinity(tid) == os.sched_getaffinity(0)
    recorder.close()


def test_a_forked_child_leaves_the_recording_alone(tmp_path: Path) -> None:
    ring, path = Ring("f8", 10), tmp_path / "run.npy"
    with Recorder(ring, path) as recorder:
        ring.push(1)
        recorder.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                recorder.close()
                recorder.flush()
            except rtloop.StateError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        ring.push(2)
    assert read(path).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("count", [0, 1, 10**6, 2**62])
def test_the_head_of_an_npy_file_is_as_long_for_any_count(count: int) -> None:
    head = record_files.npy_header(RECORD, count)
    assert len(head) == len(record_files.npy_header(RECORD, 0)) and len(head) % 64 == 0
    described = ast.literal_eval(head[12:].decode())
    assert (described["shape"], np.dtype(described["descr"])) == ((count,), RECORD)


def test_a_log_of_signals_is_recorded_as_it_is(exchanges: Any, ordinary: dict[str, Any], tmp_path: Path) -> None:
    loop = exchanges.Servo("2kHz", **ordinary)
    with Recorder(loop.log, tmp_path / "run.npy") as recorder:
        stats = loop.run(cycles=1000)
    left = np.load(tmp_path / "run.npy")
    assert recorder.written + recorder.lost == stats.cycles == 1000
    assert len(left) == recorder.written == 1000
    assert np.array_equal(left["cycle"], np.arange(1000)) and np.array_equal(left["s3"], left["cycle"] + 3.0)


def test_one_ring_and_one_file_have_one_recorder(tmp_path: Path) -> None:
    ring, other = Ring("f8", 10), Ring("f8", 10)
    with Recorder(ring, tmp_path / "a.npy") as first:
        with pytest.raises(rtloop.StateError, match="one consumer"):
            Recorder(ring, tmp_path / "b.npy")
        for name in ("a.npy",):
            with pytest.raises(rtloop.StateError, match="another recorder is writing"):
                Recorder(other, tmp_path / name)
        ring.push(1)
    assert first.written == 1 and read(tmp_path / "a.npy").tolist() == [1.0]
    with Recorder(ring, tmp_path / "a.npy"), Recorder(other, tmp_path / "b.npy"):
        pass
    with pytest.raises(rtloop.StateError, match="has ended"), first:
        pass
    with pytest.raises(rtloop.ConfigError, match="cannot be recorded"):
        Recorder(rtloop.Latest("f8"), tmp_path / "c.npy")  # type: ignore[arg-type]


def test_somebody_who_looks_at_the_ring_in_place_delays_and_loses_nothing(tmp_path: Path) -> None:
    ring = Ring("f8", 100)
    with Recorder(ring, tmp_path / "run.npy", interval="1ms") as recorder:
        ring.push(range(10))
        recorder.flush()
        ring.push(range(10))
        with ring.view() as items:
            time.sleep(0.05)
            seen = len(items)
        ring.push(range(10))
    assert recorder.error is None and recorder.written == 30 - seen


def test_a_drain_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        dtype, dropped = np.dtype("f8"), 0

        def drain(self) -> np.ndarray:
            raise MemoryError("no room")

    with warnings.catch_warnings(record=True, action="always") as seen:
        recorder = Recorder(Broken(), tmp_path / "run.npy")
        with pytest.raises(rtloop.RecorderError, match="no room"):
            recorder.close()
    assert ["no room" in str(one.message) for one in seen] == [True]


def test_warnings_that_are_errors_do_not_end_the_count(script: Script, tmp_path: Path) -> None:
    done = script(f"""
        import resource, signal, warnings, numpy as np, rtloop
        warnings.simplefilter("error")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
        ring = rtloop.Ring("f8", 10_000)
        recorder = rtloop.Recorder(ring, {str(tmp_path / "run.npy")!r}, interval="1ms")
        for _ in range(3):
            ring.push(np.arange(1000))
            try:
                recorder.flush()
            except rtloop.RecorderError:
                pass
        recorder.close()
        print(recorder.written + recorder.lost, recorder.closed)
    """)
    assert done.stdout.split() == ["3000", "True"], done.stderr


def test_an_interrupted_close_is_completed_by_the_next(script: Script, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    done = script(f"""
        import os, signal, threading, time, numpy as np, rtloop
        ring = rtloop.Ring([("x", "f8", 8)], 40_000)
        recorder = rtloop.Recorder(ring, {str(path)!r})
        array = np.zeros(40_000, ring.dtype)
        array["x"] = np.random.default_rng(1).random((40_000, 8))
        ring.push(array)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            recorder.close()
            print("not interrupted")
        except KeyboardInterrupt:
            print("interrupted")
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        recorder.close()
        print(len(np.load({str(path)!r})["records"]), os.listdir({str(tmp_path)!r}).count("run.npz"))
    """)
    assert done.stdout.splitlines()[1] == "40000 1", done.stderr


def test_a_signal_handler_may_flush_and_close(script: Script, tmp_path: Path) -> None:
    done = script(f"""
        import signal, time, rtloop
        ring = rtloop.Ring("f8", 1000)
        recorder = rtloop.Recorder(ring, {str(tmp_path / "run.npy")!r}, interval="1ms")
        depth = 0
        def handler(*_):
            global depth
            if depth == 0 and not recorder.closed:
                depth += 1
                ring.push(1)
                recorder.flush()
                depth -= 1
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            recorder.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, lambda *_: recorder.close())
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        recorder.close()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(recorder.closed, recorder.written > 10)
    """)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_what_a_loop_logs_until_the_interpreter_ends_is_recorded(
    script: Script, exchange_path: Path, tmp_path: Path
) -> None:
    done = script(f"""
        import sys, time
        sys.path.insert(0, {str(exchange_path)!r})
        import exchanges, rtloop
        loop = exchanges.Servo("2kHz", policy="other", lock_memory="off", dma_latency=None)
        recorder = rtloop.Recorder(loop.log, {str(tmp_path / "run.npy")!r})
        loop.start()
        time.sleep(0.3)
        from rtloop.process import exit_hooks as ending
        ending.at_end(ending.RECORDERS, lambda: print(loop.stats.cycles, recorder.written + recorder.lost))
    """)
    # The keeper may see the main thread's end before atexit makes the calls, which then are made twice.
    ((cycles, counted),) = {tuple(map(int, line.split())) for line in done.stdout.splitlines()}
    assert cycles == counted > 100, done.stderr


@pytest.mark.parametrize("clock", ["CLOCK_MONOTONIC", "CLOCK_REALTIME", "CLOCK_TAI"])
def test_times_of_an_mcap_are_of_today_on_every_clock(tmp_path: Path, clock: str) -> None:
    pytest.importorskip("mcap")
    ring = Ring([("release", "i8")], 10)
    with Recorder(ring, tmp_path / "run.mcap"):
        ring.push([(time.clock_gettime_ns(getattr(time, clock)),), (-(2**63),)])
    (first, _), (second, _) = read_mcap(tmp_path / "run.mcap")
    assert abs(first - time.time_ns()) < 120e9 and abs(second - time.time_ns()) < 120e9


def test_what_does_not_become_json_is_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("mcap")
    with pytest.raises(rtloop.ConfigError, match="cannot be written as JSON"):
        Recorder(Ring([("x", "g")], 10), tmp_path / "run.mcap")
    assert list(tmp_path.iterdir()) == []
