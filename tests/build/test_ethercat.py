"""The EtherCAT example: its stand-in frame by frame, slaves that fall out and come back, and a simulator of others."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rtloop

EXAMPLE = Path(__file__).parents[2] / "examples" / "ethercat"
APRD, APWR, FPRD, FPWR, BRD, LRD, LWR, LRW, FRMW = 1, 2, 4, 5, 7, 10, 11, 12, 14
INIT, PRE_OP, SAFE_OP, OP, ERROR = 1, 2, 4, 8, 0x10
PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None, "strict": False}


class Wire:
    """A cable to one slave of the stand-in: frames of one datagram each."""

    def __init__(self) -> None:
        self.slave = runpy.run_path(str(EXAMPLE / "segment.py"))["Slave"](drift_ppm=100)

    def send(self, command: int, node: int, register: int, data: bytes) -> tuple[bytes, int, int]:
        """Return data, working counter and node of the answer."""
        frame = bytearray(14) + struct.pack("<HBBHHHH", 0x1000 | len(data) + 12, command, 7, node, register,
                                            len(data), 0) + data + bytes(2)  # fmt: skip
        self.slave.process(frame)
        return bytes(frame[26:-2]), struct.unpack("<H", frame[-2:])[0], struct.unpack_from("<H", frame, 18)[0]

    def state(self, control: int) -> tuple[int, int]:
        """Ask for a state; return the state and the error code that follow."""
        self.send(FPWR, 0x1001, 0x120, struct.pack("<H", control))
        answer, _, _ = self.send(FPRD, 0x1001, 0x130, bytes(6))
        return answer[0], struct.unpack_from("<H", answer, 4)[0]


@pytest.fixture
def wire() -> Wire:
    """The slave with the address 0x1001, and FMMUs that map outputs to 0x10000 and inputs behind them."""
    wire = Wire()
    assert wire.send(APWR, 0, 0x10, struct.pack("<H", 0x1001))[1:] == (1, 1)
    fmmu = "<IHBBHBBBBH"
    wire.send(FPWR, 0x1001, 0x600, struct.pack(fmmu, 0x10000, 4, 0, 7, 0x1000, 0, 2, 1, 0, 0))
    wire.send(FPWR, 0x1001, 0x610, struct.pack(fmmu, 0x10004, 4, 0, 7, 0x1100, 0, 1, 1, 0, 0))
    return wire


def test_the_stand_in_answers_by_position_by_address_and_to_all(wire: Wire) -> None:
    assert wire.send(BRD, 0, 0x10, bytes(2)) == (b"\x01\x10", 1, 1)
    assert wire.send(APRD, 0, 0x10, bytes(2)) == (b"\x01\x10", 1, 1)
    assert wire.send(APRD, 0xFFFF, 0x10, bytes(2)) == (bytes(2), 0, 0), "for the next slave"
    assert wire.send(FPRD, 0x1002, 0x10, bytes(2)) == (bytes(2), 0, 0x1002)


def test_the_stand_in_goes_up_one_state_at_a_time_and_waits_for_errors_to_be_acknowledged(wire: Wire) -> None:
    assert wire.state(OP) == (INIT | ERROR, 0x0011)
    assert wire.state(PRE_OP) == (INIT | ERROR, 0x0011)
    assert wire.state(INIT | ERROR) == (INIT, 0)
    assert [wire.state(state)[0] for state in (PRE_OP, SAFE_OP, OP, SAFE_OP, INIT)] == [2, 4, 8, 4, 1]


def test_the_stand_in_exchanges_process_data_from_safe_op_on(wire: Wire) -> None:
    exchange = struct.pack("<ii", 1000, 0)
    wire.state(PRE_OP)
    assert wire.send(LRW, 0, 1, exchange)[1] == 0
    wire.state(SAFE_OP)
    assert wire.send(LRW, 0, 1, exchange)[1] == 3
    assert wire.send(LWR, 0, 1, exchange)[1] == 1 and wire.send(LRD, 0, 1, exchange)[1] == 1
    assert wire.send(LRW, 0, 1, exchange[:4])[1] == 2, "a frame with the outputs alone"
    wire.state(OP)
    wire.slave.fed -= 50_000_000  # 50 ms since the last outputs
    answer, counted, _ = wire.send(LRW, 0, 1, exchange)
    assert counted == 3 and 50 <= struct.unpack_from("<i", answer, 4)[0] < 100


def test_the_stand_in_leaves_op_when_its_outputs_stay_away(wire: Wire) -> None:
    for state in (PRE_OP, SAFE_OP, OP):
        wire.state(state)
    wire.slave.fed -= 200_000_000
    wire.send(LRW, 0, 1, bytes(8))
    assert wire.send(FPRD, 0x1001, 0x130, bytes(6))[0] == struct.pack("<HHH", SAFE_OP | ERROR, 0, 0x1B)


def test_the_clock_of_the_stand_in_has_the_offset_that_was_written(wire: Wire) -> None:
    (before,) = struct.unpack("<Q", wire.send(FRMW, 0x1001, 0x910, bytes(8))[0])
    wire.send(FPWR, 0x1001, 0x920, struct.pack("<q", 10**15))
    (after,) = struct.unpack("<Q", wire.send(FRMW, 0x1001, 0x910, bytes(8))[0])
    assert 10**15 < after - before < 10**15 + 60 * 10**9


@pytest.fixture
def run(built_example: Callable[[str], Path], example_cache: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    """Run the example; return its figures."""
    place = built_example("ethercat")

    def run(*options: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "run.py", "--json", str(tmp_path / "figures.json"), *options],
            cwd=place, env={**os.environ, **example_cache}, capture_output=True, text=True, timeout=170, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        figures: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
        return figures

    return run


def check_recovery(figures: dict[str, Any]) -> None:
    """The faults were counted, and after each the slaves were in OP again."""
    lost = sum(cycles for _, cycles, _, _ in figures["outages"])
    assert lost == figures["no_frame"] + figures["bad_wkc"], "each cycle without valid data is in one outage"
    assert figures["exchanges"] + lost <= figures["cycles"]
    assert sum(1 for _, cycles, _, _ in figures["outages"] if cycles >= 20) >= 2, "both planted faults are seen"
    history = figures["history"]
    plugged, restarted = history.index("plugged in"), history.index("simulator restarted")
    assert "slave 1 does not answer" in history[:plugged]
    assert "slave 1 answers again" in history[plugged:restarted]
    assert "slave 1 INIT: configured again" in history[restarted:]
    assert "slave 1 SAFE-OP: OP requested" in history[restarted:]


def test_a_slave_that_falls_out_comes_back_and_its_clock_is_followed(run: Callable[..., Any]) -> None:
    figures = run("--seconds", "6", "--period", "2ms", "--drift", "400", "--restart")
    check_recovery(figures)
    assert any("SAFE-OP with error 0x001b" in line for line in figures["history"]), "the watchdog of the outputs"
    assert 250 < figures["ppm"] < 550


def sockets() -> set[str]:
    """Return the sockets of this process."""
    files = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
    return {file for file in files if file.startswith("socket:")}


def test_where_no_slave_answers_the_start_says_so(
    built_example: Callable[[str], Path], example_cache: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = built_example("ethercat")
    for variable, value in example_cache.items():
        monkeypatch.setenv(variable, value)
    ethercat = rtloop.build(place / "ethercat.pyx")
    refused = (ethercat.EthercatError, rtloop.RtloopError)
    with (
        contextlib.closing(ethercat.Bus(interface="rtloop-none", **PLAIN)) as bus,
        pytest.raises(refused, match="no raw socket on rtloop-none"),
    ):
        before = sockets()
        bus.run(cycles=1)
    assert sockets() == before, "one that could not be bound is closed"
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except PermissionError:
        pytest.skip("raw sockets need CAP_NET_RAW, which cannot be had here")
    with (
        contextlib.closing(ethercat.Bus(interface="lo", **PLAIN)) as bus,
        pytest.raises(refused, match="no slave answers on lo"),
    ):
        bus.run(cycles=1)
    with pytest.raises(ValueError, match="monotonic clock"):
        ethercat.Bus(interface="lo", clock="tai", **PLAIN)


def test_the_slaves_of_kickcat_come_back(run: Callable[..., Any]) -> None:
    """The slaves of an independent simulator, which is not installed by a script."""
    command = os.environ.get("RTLOOP_KICKCAT")
    if not command:
        pytest.skip("RTLOOP_KICKCAT is not set: build KickCAT's network_simulator (docs/how-to/ethercat.md)")
    figures = run("--seconds", "12", "--simulator", command, "--restart")
    check_recovery(figures)
