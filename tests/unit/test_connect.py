"""Parameters of a running loop, read and changed by other processes: honest, killed and hostile ones."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rtloop_test_waiting import wait_until

import rtloop

#: The word of the block: its place, and the bit of a new set.
STATE, NEW = 64, 0x10
PLACES, WRITER_BYTES = 192, 128


@pytest.fixture
def arm(tuned: ModuleType, ordinary: dict[str, Any]) -> Iterator[Any]:
    """A running loop of this process."""
    loop = tuned.Tuned("500us", name=f"arm-{os.getpid()}", **ordinary)
    with loop:
        yield loop
    assert loop.torn == 0


def block_of(loop: Any) -> tuple[int, mmap.mmap]:
    """The block of a loop's parameters, mapped as a hostile writer would."""
    inode = rtloop.running(os.getpid(), loop.name)[0].blocks["parameters"]
    found = -1
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"/proc/self/fd/{name}").st_ino == inode:
                found = int(name)
    fd = os.open(f"/proc/self/fd/{found}", os.O_RDWR)
    try:
        return fd, mmap.mmap(fd, os.fstat(fd).st_size)
    except BaseException:
        os.close(fd)
        raise


SET = """
import rtloop, sys
with rtloop.connect(sys.argv[1], pid=int(sys.argv[2])) as loop:
    assert loop.parameters["a"] == 1 and loop.parameters.declared["a"].unit == "V/rad"
    loop.parameters.update(a=9, b=9, gains=[7, 8, 9])
    assert loop.parameters.wait(60) and loop.parameters.applied.values["a"] == 9 and not loop.parameters.refused
    assert loop.state == "running" and loop.stats.cycles > 0 and loop.stats.parameter_changes is None
    try:
        loop.parameters["a"] = -1
    except rtloop.ConfigError as error:
        print(error)
"""


def test_another_process_sees_and_sets(arm: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", SET, arm.name, str(os.getpid())],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a=-1 is outside of its limits, 0.0 to 1000.0 V/rad\n"
    assert arm.parameters["a"] == 9 and arm.parameters["gains"].tolist() == [7, 8, 9]
    change = arm.stats.parameter_changes[-1]
    assert change.pid not in (0, os.getpid()) and change.values["b"] == 9 and change.host == os.uname().nodename


def test_writers_in_several_processes_take_turns(arm: Any) -> None:
    write = """
import rtloop, sys
with rtloop.connect(sys.argv[1], pid=int(sys.argv[2])) as loop:
    for i in range(200):
        loop.parameters.update(a=i, b=i)
"""
    command = [sys.executable, "-P", "-c", write, arm.name, str(os.getpid())]
    writers = [subprocess.Popen(command) for _ in range(3)]
    for i in range(300):
        arm.parameters.update(a=i, b=i)
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    arm.parameters.update(a=5, b=5)
    assert arm.parameters.wait(60) and arm.parameters.refused == 0


@pytest.mark.filterwarnings("ignore:this process forks")
def test_a_writer_that_is_killed_blocks_nobody_and_tears_nothing(arm: Any) -> None:
    """A forked child writes and is killed at a random instruction, again and again; the loop counts what is torn."""
    chance = random.Random(5)
    for _ in range(60):
        with rtloop.connect(arm.name, os.getpid()) as connection:
            child = os.fork()
            if child == 0:
                i = 0
                while True:
                    i = (i + 1) % 1000
                    connection.parameters.update(a=i, b=i)
            time.sleep(chance.uniform(0.001, 0.008))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
        asked = arm.parameters["a"]
        assert arm.parameters["b"] == asked
        arm.parameters.update(a=3, b=3)
        assert arm.parameters.wait(60)
    assert arm.parameters.refused == 0


def test_a_writer_that_was_stopped_costs_the_others_an_error_and_the_loop_nothing(
    arm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtloop.live.write_lock.PATIENCE_S", 0.2)
    hold = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""
    fd, view = block_of(arm)
    command = [sys.executable, "-P", "-c", hold, f"/proc/{os.getpid()}/fd/{fd}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        before = arm.cycles
        with pytest.raises(rtloop.StateError, match=f"{arm.name} cannot be changed: another process has been writing"):
            arm.parameters["mode"] = 1
        wait_until(lambda: arm.cycles > before, "the loop waits")
        holder.kill()
    arm.parameters["mode"] = 2
    assert arm.parameters.wait(60)
    view.close()
    os.close(fd)


def test_a_hostile_writer_can_only_have_its_sets_refused(arm: Any) -> None:
    arm.parameters.update(a=4, b=4, mode=2)
    assert arm.parameters.wait(60)
    fd, view = block_of(arm)
    place_bytes = -(-(WRITER_BYTES + 48) // 64) * 64

    def publish(values: bytes, offset: int) -> None:
        """Write a set without a lock and without checks."""
        while True:
            (state,) = struct.unpack_from("<Q", view, STATE)
            if not state & NEW:
                break
            time.sleep(0.0005)
        front, between = state >> 2 & 3, state & 3
        back = 3 - front - between
        at = PLACES + back * place_bytes + WRITER_BYTES
        former = PLACES + front * place_bytes + WRITER_BYTES
        view[at : at + 48] = view[former : former + 48]
        view[at + offset : at + offset + len(values)] = values
        struct.pack_into("<Q", view, STATE, (state >> 8) + 1 << 8 | NEW | front << 2 | back)

    bad = [(struct.pack("<d", value), 0) for value in (-1.0, 1e6, float("nan"), float("inf"), float("-inf"))]
    bad += [(struct.pack("<i", value), 40) for value in (-1, 4, 2**31 - 1, -(2**31))]
    for i, (values, offset) in enumerate(bad):
        publish(values, offset)
        wait_until(lambda count=i: arm.parameters.refused == count + 1, "not refused")
        assert (arm.a, arm.mode) == (4, 2), "a refused set changes nothing"
        assert dict(arm.parameters)["a"] == 4, "nor does it show as asked for"
        arm.parameters["gains"] = [i, i, i]
        assert arm.parameters.wait(60), "and a good one after it is taken"
    count = arm.parameters.refused
    for places in (0b1111, 0b0011, 0b1100, 0b0101, 0b0000):  # indices outside of the block, and equal ones
        struct.pack_into("<Q", view, STATE, 99 << 8 | NEW | places)
        count += 1
        wait_until(lambda want=count: arm.parameters.refused == want, f"{places:b} is not refused")
        arm.parameters["mode"] = 1
        assert arm.parameters.wait(60)
    arm.parameters.update(a=6, b=6)
    assert arm.parameters.wait(60) and arm.a == 6
    before = arm.cycles
    chance = random.Random(3)
    for _ in range(300):  # anything anywhere, as fast as it goes; the loop goes on and stays within the limits
        at = chance.choice([0, 8, 16, 24, 32, STATE, STATE, PLACES, PLACES + 200, len(view) // 2 // 8 * 8, 128, 136])
        struct.pack_into("<Q", view, at, chance.getrandbits(64))
        assert 0 <= arm.a <= 1000 and 0 <= arm.mode <= 3
    wait_until(lambda: arm.cycles > before + 5, "the loop has stopped")
    view[PLACES : PLACES + 3 * place_bytes] = bytes(3 * place_bytes)
    struct.pack_into("<Q", view, STATE, 0x0100 | 2 << 2)
    arm.parameters.update(a=6, b=6)
    assert arm.parameters.wait(60)
    view.close()
    os.close(fd)


def test_a_loop_that_is_not_tunable_is_seen_only(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", name="sealed", tunable=False, **ordinary)
    assert loop.settings.tunable is False
    with loop, rtloop.connect("sealed", os.getpid()) as connection:
        assert connection.parameters["a"] == 1
        with pytest.raises(rtloop.StateError, match="tunable=False"):
            connection.parameters["a"] = 2
        with pytest.raises(PermissionError):
            block_of(loop)
        loop.parameters.update(a=2, b=2)  # its own process still may
        assert loop.parameters.wait(60) and connection.parameters["a"] == 2
    assert loop.torn == 0


def test_a_connection_outlives_the_run_but_changes_nothing_then(tuned: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = tuned.Tuned("1ms", name="short", **ordinary)
    with loop:
        connection = rtloop.connect("short", os.getpid())
        loop.parameters.update(a=2, b=2)
        assert loop.parameters.wait(60)
    assert connection.state == "stopped" and connection.parameters["a"] == 2
    with pytest.raises(rtloop.StateError, match="short has ended"):
        connection.parameters["a"] = 3
    assert loop.parameters["a"] == 2
    connection.close()
    connection.close()
    for act in (lambda: connection.parameters["a"], lambda: connection.parameters.update(a=3)):
        with pytest.raises(rtloop.StateError, match="closed"):
            act()


def test_connect_names_what_runs(arm: Any) -> None:
    with pytest.raises(rtloop.AttachError, match="no such loop is running"):
        rtloop.connect("leg", os.getpid())
    with pytest.raises(rtloop.ConfigError, match="pid="):
        rtloop.connect("arm", pid=-1)
    with rtloop.connect(pid=os.getpid()) as connection:
        assert connection.name == arm.name and arm.name in repr(connection)


def test_a_loop_without_parameters_has_an_empty_mapping(ordinary: dict[str, Any]) -> None:
    with rtloop.RTLoop("2ms", name="plain", **ordinary), rtloop.connect("plain", os.getpid()) as connection:
        assert dict(connection.parameters) == {} and connection.parameters.applied is None
        with pytest.raises(KeyError, match="it has none"):
            connection.parameters["a"] = 1


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b'{"parameters": 5}', b'{"parameters": [{}]}', b'{"parameters": [5]}',
        json.dumps({"parameters": [{"name": "a", "type": "O", "shape": [], "offset": 0, "low": None, "high": None,
                                    "unit": ""}]}).encode(),
        json.dumps({"parameters": [{"name": "a", "type": "f8", "shape": [10**6, 10**6, 10**6], "offset": 0,
                                    "low": None, "high": None, "unit": ""}]}).encode(),
        json.dumps({"parameters": [{"name": "a", "type": "f8", "shape": [], "offset": 48, "low": None, "high": None,
                                    "unit": ""}]}).encode(),
        json.dumps({"parameters": [{"name": "a", "type": "f8", "shape": [], "offset": -8, "low": None, "high": None,
                                    "unit": ""}]}).encode(),
        json.dumps({"parameters": [{"name": "a", "type": "f8", "shape": [], "offset": 0, "low": None, "high": None,
                                    "unit": "\x1b[2J"}]}).encode(),
    ],
)  # fmt: skip
def test_a_description_that_no_loop_writes_is_refused(arm: Any, text: bytes) -> None:
    fd, view = block_of(arm)
    place_bytes = -(-(WRITER_BYTES + 48) // 64) * 64
    at = PLACES + 3 * place_bytes + 48
    former = view[at:]
    view[at:] = text.ljust(len(former))[: len(former)] if len(text) <= len(former) else text[: len(former)]
    with pytest.raises(rtloop.AttachError, match="cannot be read"):
        rtloop.connect(arm.name, os.getpid())
    view[at:] = former
    view.close()
    os.close(fd)


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "rtloop", *words], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_command_get_shows_the_newest_signals(ordinary: dict[str, Any]) -> None:
    pytest.importorskip("click")
    kind = [("gain", "f8"), ("angle", "f8"), ("z", "c16"), ("force", "2f4")]
    data = np.array([(3.0, np.nan, 1 + 2j, (4.0, 5.0))], kind)
    name = f"seen-{os.getpid()}"
    fields = {"parameters": ("gain",), "signals": data.dtype.names}
    with rtloop.PyLoop(lambda cycle: None, "1ms", data=data, name=name, **fields, **ordinary) as loop:
        loop.parameters["gain"] = 3.0
        wait_until(lambda: loop.signals.latest().get("gain") == 3, "no sample")
        shown = run_command("get", name, "force", "angle", "gain")
        found = json.loads(run_command("get", name, "--json").stdout)
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[0][0] == "parameter" and rows[1][:2] == ["gain", "3"], shown.stderr
    assert rows[3] == ["force", "[4,", "5]", "f4", "(2,)"] and rows[4] == ["angle", "nan", "f8"]
    assert found["parameters"]["gain"]["value"] == 3 and found["signals_cycle"] > 0
    values = {key: one["value"] for key, one in found["signals"].items()}
    assert values == {"gain": 3.0, "angle": None, "z": "(1+2j)", "force": [4, 5]}


def test_the_command_get_shows_the_limits_of_signals(signalled: ModuleType, ordinary: dict[str, Any]) -> None:
    pytest.importorskip("click")
    name = f"limited-{os.getpid()}"
    with signalled.Planted("1ms", name=name, **ordinary) as loop:
        wait_until(lambda: loop.signals.latest(), "no sample")
        shown = run_command("get", name, "level", "number")
        found = json.loads(run_command("get", name, "--json").stdout)["signals"]
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[0][-3:] == ["unit", "limits", "type"] and " ".join(rows[1][-5:]) == "m -1 to 1 f8", shown.stdout
    assert (found["level"]["low"], found["level"]["high"]) == (-1, 1)
    assert found["number"]["low"] is None and found["number"]["high"] is None


def complete(line: str) -> list[str]:
    """Return what the shell would offer for the last word of a command line, as the function of bash asks for it."""
    words = line.split(" ")
    environment = {"_RTLOOP_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rtloop"], env={**os.environ, **environment}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [offered.partition(",")[2] for offered in done.stdout.splitlines() if offered]


def test_the_shell_completes_loops_and_their_keys(arm: Any) -> None:
    pytest.importorskip("click")
    assert arm.name in complete("rtloop record arm-")
    assert complete(f"rtloop get {arm.name} m") == ["mode"]
    assert complete(f"rtloop set {arm.name} g") == ["gains="]
    assert complete("rtloop get nobody-of-this-name ") == []


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("b1", "on", True), ("b1", "0", False), ("b1", "No", False), ("i4", "off", 0), ("u1", "yes", 1),
        ("i4", "-0x10", -16), ("3b1", "off,on,true", [False, True, True]), ("3b1", "[1,0,no]", [1, 0, False]),
        ("2i4", "on,7", [1, 7]), ("f8", "1e3", 1000.0), ("2f8", "1,2.5", [1, 2.5]),
    ],
)  # fmt: skip
def test_words_on_the_command_line(kind: str, text: str, value: Any) -> None:
    """A bool of C may be declared as a whole number."""
    pytest.importorskip("click")
    from rtloop.tools.parameters import parse_value

    data = np.zeros((), [("x", kind)])
    loop = rtloop.PyLoop(lambda cycle: None, "1ms", data=data, parameters=["x"])
    found = parse_value(loop.parameters.declared["x"], text)
    assert found == value and type(found) is type(value)
    loop.parameters["x"] = found


@pytest.mark.parametrize(("kind", "text"), [("f8", "on"), ("i4", "one"), ("b1", "2"), ("b1", "offs"), ("2b1", "on,x")])
def test_words_that_are_no_values_are_refused(kind: str, text: str) -> None:
    click = pytest.importorskip("click")
    from rtloop.tools.parameters import parse_value

    loop = rtloop.PyLoop(lambda cycle: None, "1ms", data=np.zeros((), [("x", kind)]), parameters=["x"])
    with pytest.raises(click.BadParameter, match="must be"):
        parse_value(loop.parameters.declared["x"], text)


def test_a_float_of_32_bits_is_shown_with_the_digits_that_it_has() -> None:
    pytest.importorskip("click")
    data = np.zeros((), [("gain", "f4"), ("angle", "2f4")])
    data["gain"], data["angle"] = 0.1, (7461.1, np.nan)
    with rtloop.PyLoop(
        lambda cycle: None, "1ms", name=f"single-{os.getpid()}", data=data, parameters=["gain"], signals=["angle"],
        strict=False, policy="other", lock_memory="off", dma_latency=None,
    ) as loop:  # fmt: skip
        wait_until(lambda: loop.stats.cycles > 2, "it runs")
        done = run_command("get", loop.name, "--json")
        shown = run_command("get", loop.name)
    document = json.loads(done.stdout)
    assert document["parameters"]["gain"]["value"] == document["parameters"]["gain"]["uses"] == 0.1
    assert document["signals"]["angle"]["value"] == [7461.1, None] and " 0.1 " in shown.stdout


def test_the_commands_get_and_set(arm: Any) -> None:
    pytest.importorskip("click")
    shown = run_command("get", arm.name)
    assert shown.returncode == 0 and "V/rad" in shown.stdout and "0 to 1000" in shown.stdout, shown.stderr
    done = run_command("set", arm.name, "a=5", "b=5", "gains=1,2,4.5", "mode=0x3", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["is_used"] and document["parameters"]["a"]["before"] == 1
    assert (arm.parameters["a"], arm.mode, list(arm.gains)) == (5, 3, [1, 2, 4.5])
    assert arm.stats.parameter_changes[-1].program == "rtloop"
    found = json.loads(run_command("get", arm.name, "gains", "a", "--json").stdout)
    assert list(found["parameters"]) == ["gains", "a"] and found["parameters"]["gains"]["uses"] == [1, 2, 4.5]
    for words, code, text in (
        (("set", arm.name, "a=2000"), 1, "outside of its limits"), (("set", arm.name, "x=1"), 1, "no parameter 'x'"),
        (("set", arm.name, "mode=half"), 2, "must be a whole number"), (("set", arm.name, "a"), 2, "KEY=VALUE"),
        (("set", "nobody", "a=1"), 1, "no such loop is running"), (("get", arm.name, "x"), 1, "or signal 'x'"),
        (("set", arm.name, "gains=1,2"), 1, "shape"), (("set", arm.name, "a=1", "b=2", "a=3"), 2, "more than once"),
    ):  # fmt: skip
        done = run_command(*words)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert arm.parameters["a"] == 5
