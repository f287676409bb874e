"""The CAN example: its codec against cantools and canopen, its ends, and a drive made with canopen on the other side.

Each test of the loop runs twice: over a socket that carries the frames, and over vcan where the kernel has it. Where it
has none, `tests/rt_kernel/run.py --parts can` runs this file in a virtual machine.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rtloop

EXAMPLE = Path(__file__).parents[2] / "examples" / "can"
IS_SLOW = bool(os.environ.get("RTLOOP_TEST_SLOW"))  # an emulated machine
VCAN = "vcan0"
FRAME = struct.Struct("=IB3x8s")
PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None}
SILENCE_MS = 200
NMT, SYNC, EMERGENCY, STATUS, COMMAND, MOTION, HEARTBEAT = 0, 0x80, 0x81, 0x181, 0x201, 0x281, 0x701
OPERATIONAL, PRE_OPERATIONAL = 5, 127


def why_no_vcan() -> str:
    """Return why there is no CAN interface in this machine; empty if there is one, which is created if possible."""
    made = subprocess.run(
        ["sh", "-c", f"ip link show {VCAN} || ip link add dev {VCAN} type vcan && ip link set {VCAN} up"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if made.returncode == 0 else (made.stderr.strip().splitlines() or ["ip failed"])[-1]


@pytest.fixture(scope="module")
def vcan() -> str:
    """The name of a virtual CAN interface."""
    reason = why_no_vcan()
    if reason:
        assert "RTLOOP_TEST_VCAN" not in os.environ, reason
        pytest.skip(f"this machine has no vcan ({reason}); tests/rt_kernel/run.py --parts can has one")
    return VCAN


@pytest.fixture(scope="module")
def motor(built_example: Callable[[str], Path], example_cache: dict[str, str], support: Callable) -> ModuleType:
    """The module of the loop, which rt_kernel/run.py has compiled for a machine without a compiler."""
    folder = built_example("can")
    compiled = Path(os.environ.get("RTLOOP_TEST_SHARED", "none")) / "motor"
    if compiled.exists():
        (path,) = compiled.glob("*.so")
        return support("build").import_module(path)  # type: ignore[no-any-return]
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in example_cache.items():
            patch.setenv(variable, value)
        return rtloop.build(folder / "motor.pyx")


@pytest.fixture(scope="module")
def other_side(motor: ModuleType) -> Iterator[ModuleType]:
    """The module of the drive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        yield importlib.import_module("drive")
        for name in ("drive", "bus"):
            sys.modules.pop(name, None)


@pytest.fixture(params=["socket", "vcan"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """The two ends of a bus: what the loop gets, and what the drive gets."""
    if request.param == "vcan":
        name = request.getfixturevalue("vcan")
        yield name, name
        return
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        yield here, there


class Bench:
    """The loop and the drive on one bus, in virtual time: the drive treats all its frames before each step."""

    def __init__(self, motor: ModuleType, other_side: ModuleType, ends: tuple[Any, Any], **settings: Any) -> None:
        self.loop = motor.Motor("1kHz", bus=ends[0], silence_ms=SILENCE_MS, **PLAIN, **settings)
        self.drive = other_side.Drive(ends[1])
        self.node = self.drive.node
        self.node.sdo[0x1006].raw = 1000
        self.frames: list[tuple[int, int, bytes]] = []  # cycle, identifier, data
        self.is_mute = False
        self.at: dict[int, Callable[[], object]] = {}  # by cycle, before its step
        self.settle(-1)

    def send(self, identifier: int, data: bytes) -> None:
        """Send a frame as the drive."""
        self.drive.network.send_message(identifier, data)

    def settle(self, cycle: int) -> None:
        while (frame := self.drive.poll()) is not None:
            self.frames.append((cycle, frame.arbitration_id, bytes(frame.data)))

    def before(self, cycle: rtloop.Cycle) -> None:
        self.settle(cycle.index - 1)
        if cycle.index in self.at:
            self.at.pop(cycle.index)()
        if cycle.index % 50 == 0 and not self.is_mute:
            self.send(HEARTBEAT, bytes([self.node.nmt._state]))

    def simulate(self, seconds: float, target: float = 1.0) -> Any:
        self.loop.parameters["target"] = target
        try:
            return self.loop.simulate(f"{seconds}s", plant=self.before)
        finally:
            self.settle(10**9)

    def of(self, identifier: int) -> list[bytes]:
        return [data for _, one, data in self.frames if one == identifier]

    def close(self) -> None:
        self.loop.close()
        self.drive.network.bus.shutdown()


@pytest.fixture
def bench(motor: ModuleType, other_side: ModuleType, ends: tuple[Any, Any]) -> Iterator[Bench]:
    one = Bench(motor, other_side, ends)
    yield one
    one.close()


@pytest.fixture(scope="module")
def database() -> Any:
    """The layouts of drive.dbc."""
    return pytest.importorskip("cantools", reason="pip install cantools").database.load_file(EXAMPLE / "drive.dbc")


def test_the_kernel_passes_on_the_frames_of_the_node_and_what_the_controller_reports(
    motor: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options of the socket, on a machine without CAN as well."""
    made: list[tuple[object, ...]] = []

    class Socket:
        def __init__(self, *kind: int) -> None:
            made.append(kind)

        def setsockopt(self, level: int, option: int, value: object) -> None:
            made.append((level, option, value))

        def bind(self, address: tuple[str]) -> None:
            made.append(address)

    families = {name: getattr(socket, name) for name in ("AF_CAN", "SOCK_RAW", "CAN_RAW")}
    monkeypatch.setattr(motor, "socket", types.SimpleNamespace(socket=Socket, **families))
    motor.open_bus("can0", 3)
    exactly = 0x7FF | 0x80000000 | 0x40000000
    wanted = b"".join(struct.pack("=II", one + 3, exactly) for one in (EMERGENCY - 1, STATUS - 1, MOTION - 1, 0x700))
    raw, filters, errors = 101, 1, 2  # SOL_CAN_RAW, CAN_RAW_FILTER, CAN_RAW_ERR_FILTER
    assert made == [
        (29, socket.SOCK_RAW, 1), (raw, filters, wanted), (raw, errors, 0x40 | 0x100), ("can0",)
    ]  # fmt: skip


def test_the_motor_gets_to_its_target_and_each_sync_is_answered(bench: Bench) -> None:
    stats = bench.simulate(2)
    assert bench.loop.position == pytest.approx(1.0, abs=2e-3) and abs(bench.loop.velocity) < 1e-2
    assert bench.drive.position == pytest.approx(1.0, abs=2e-3)
    assert bench.loop.syncs == stats.cycles == len(bench.of(SYNC)) - 1, "and one from leave"
    assert bench.loop.answers == bench.loop.syncs - 1, "the answer to the last one comes after the last step"
    assert bench.loop.dropped == bench.loop.emergencies == bench.loop.bus_off == 0
    assert bench.loop.outcome == "no failure"


def test_the_frames_of_a_run_by_their_layouts_in_the_dbc(bench: Bench, database: Any) -> None:
    bench.simulate(0.5)
    assert [data.hex() for data in bench.of(NMT)] == ["0101", "8001"], "started, and stopped at the end"
    commands = [database.decode_message(COMMAND, data) for data in bench.of(COMMAND)]
    words = [one["ControlWord"] for one in commands]
    steps = [word for n, word in enumerate(words) if n == 0 or word != words[n - 1]]
    assert steps == [0x00, 0x06, 0x07, 0x0F, 0x00], "to operation enabled as CiA 402 prescribes, and back"
    assert all(one["Torque"] == 0 for one in commands if one["ControlWord"] != 0x0F)
    assert max(one["Torque"] for one in commands) > 10 and commands[-1]["Torque"] == 0
    beats = bench.of(0x77F)
    assert len(beats) == 10 and set(beats) == {b"\x05"}, "every 50 ms"
    for cycle in range(499):
        within = [identifier for number, identifier, _ in bench.frames if number == cycle]
        assert within[-2:] == [COMMAND, SYNC], "the command before the SYNC at which it is applied"


def test_the_loop_decodes_what_cantools_encodes(bench: Bench, database: Any) -> None:
    values = (-12.5, 3.25), (31.0, -0.125), (-205887.0, 205887.0)
    seen = []

    def send(status: bytes, motion: bytes) -> None:
        bench.send(STATUS, status)
        bench.send(MOTION, motion)

    for n, (position, velocity) in enumerate(values):
        status = database.encode_message("Status", {"StatusWord": 0x40, "Position": position})
        motion = database.encode_message("Motion", {"Velocity": velocity})
        bench.at[10 * n + 20] = functools.partial(send, status, motion)
        bench.at[10 * n + 21] = lambda: seen.append((bench.loop.position, bench.loop.velocity))
    bench.drive.network.unsubscribe(0x80)  # it does not answer by itself
    bench.simulate(0.06)
    assert len(seen) == 3
    for found, wanted in zip(seen, values, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)


def test_canopen_decodes_what_the_loop_encodes(bench: Bench, database: Any) -> None:
    bench.simulate(0.1, target=-1.0)
    pdo = bench.node.rpdo[1]
    torques = []
    for data in bench.of(COMMAND):
        pdo.on_message(COMMAND, bytearray(data), 0.0)
        word, torque = (variable.raw for variable in pdo)
        decoded = database.decode_message(COMMAND, data)
        assert (word, torque) == (decoded["ControlWord"], round(10 * decoded["Torque"]))
        torques.append(torque)
    assert min(torques) < -100


def test_a_missing_heartbeat_ends_the_loop_after_the_stated_time_with_the_motor_off(bench: Bench) -> None:
    bench.at[400] = lambda: setattr(bench, "is_mute", True)
    with pytest.raises(rtloop.CallbackError, match="ETIMEDOUT"):
        bench.simulate(2)
    assert bench.loop.outcome == "the drive's heartbeat is missing"
    assert bench.loop.stats.cycles == 350 + SILENCE_MS + 2, "it was heard in cycle 350, and is too old 201 ms later"
    assert bench.of(COMMAND)[-1] == bytes(4) and bench.frames[-1][1:] == (NMT, b"\x80\x01")
    assert bench.node.nmt.state == "PRE-OPERATIONAL" and bench.drive.status == 0x40 and bench.drive.velocity == 0


def test_a_drive_that_never_answers_is_not_waited_for_for_ever(bench: Bench) -> None:
    bench.is_mute = True
    with pytest.raises(rtloop.CallbackError, match="ETIMEDOUT"):
        bench.simulate(2)
    assert bench.loop.outcome == "the drive did not become operational"
    assert bench.loop.stats.cycles == pytest.approx(SILENCE_MS, abs=2)


def test_a_drive_whose_heartbeat_goes_on_but_whose_answers_do_not(bench: Bench) -> None:
    bench.at[300] = lambda: bench.drive.network.unsubscribe(0x80)
    with pytest.raises(rtloop.CallbackError, match="ETIMEDOUT"):
        bench.simulate(2)
    assert bench.loop.outcome == "the drive does not answer SYNC"
    assert bench.loop.silent == pytest.approx(SILENCE_MS, abs=2)


def test_a_start_that_was_lost_is_sent_again_at_the_next_heartbeat(bench: Bench) -> None:
    bench.drive.network.unsubscribe(NMT, bench.node.nmt.on_command)
    bench.at[120] = lambda: bench.drive.network.subscribe(NMT, bench.node.nmt.on_command)
    bench.simulate(1)
    assert [data.hex() for data in bench.of(NMT)] == ["0101"] * 4 + ["8001"], "in cycles 0, 50, 100 and 150"
    assert bench.loop.position == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("state", [0, 4, PRE_OPERATIONAL])
def test_a_drive_that_restarts_or_is_stopped_ends_the_loop_at_once(bench: Bench, state: int) -> None:
    bench.at[310] = lambda: bench.send(HEARTBEAT, bytes([state]))
    with pytest.raises(rtloop.CallbackError, match="ECONNRESET"):
        bench.simulate(2)
    assert bench.loop.outcome == "the drive has left the state operational" and bench.loop.state_of_drive == state
    assert bench.loop.stats.cycles == 311
    assert bench.of(COMMAND)[-1] == bytes(4)


def test_an_emergency_is_noticed_and_a_fault_ends_the_loop_until_it_is_recovered_from(bench: Bench) -> None:
    bench.at[300] = lambda: bench.drive.fail(0x2310)
    with pytest.raises(rtloop.CallbackError, match="EIO"):
        bench.simulate(2)
    assert (bench.loop.emergencies, bench.loop.emergency_code, bench.loop.emergency_register) == (1, 0x2310, 0x11)
    assert bench.loop.outcome == "the drive reports a fault"
    with pytest.raises(rtloop.CallbackError, match="EIO"):
        bench.simulate(2)
    assert not any(word & 0x80 for word, _ in map(struct.Struct("<HB").unpack_from, bench.of(COMMAND)))
    bench.loop.recover()
    bench.simulate(2)
    assert bench.loop.outcome == "no failure" and bench.loop.position == pytest.approx(1, abs=2e-3)


def test_an_emergency_without_a_fault_is_only_counted(bench: Bench) -> None:
    bench.at[100] = lambda: bench.node.emcy.send(0x4210, register=0x08)
    bench.at[200] = lambda: bench.node.emcy.reset()
    bench.simulate(1)
    assert (bench.loop.emergencies, bench.loop.emergency_code, bench.loop.emergency_register) == (2, 0, 0)
    assert bench.loop.outcome == "no failure"


def test_frames_of_others_change_nothing(bench: Bench) -> None:
    def disturb() -> None:
        bench.send(STATUS + 1, bytes(6))
        bench.send(STATUS, bytes(5))  # too short
        bench.drive.network.send_message(STATUS, b"", remote=True)
        import can

        bus = bench.drive.network.bus
        bus.send(can.Message(arbitration_id=HEARTBEAT, is_extended_id=True, data=[0]))

    bench.at[300] = disturb
    stats = bench.simulate(1)
    assert bench.loop.answers == stats.cycles - 1 and bench.loop.outcome == "no failure"


def test_what_the_controller_reports_about_the_bus_is_counted(bench: Bench) -> None:
    import can

    def report(error: int) -> None:
        frame = can.Message(arbitration_id=error, is_error_frame=True, is_extended_id=False, data=bytes(8))
        bench.drive.network.bus.send(frame)

    bench.at[100] = lambda: report(0x40)  # CAN_ERR_BUSOFF
    bench.at[150] = lambda: report(0x100)  # CAN_ERR_RESTARTED
    stats = bench.simulate(1)
    assert (bench.loop.bus_off, bench.loop.restarts) == (1, 1)
    assert bench.loop.syncs == stats.cycles and bench.loop.outcome == "no failure"


def test_frames_that_find_the_queue_full_are_counted_and_no_failure_by_themselves(motor: ModuleType) -> None:
    """Nobody takes frames from the bus, as if the cable were cut."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        loop = motor.Motor("1kHz", bus=here, silence_ms=SILENCE_MS, **PLAIN)
        with pytest.raises(rtloop.CallbackError, match="ETIMEDOUT"):
            loop.simulate("1s")
        there.setblocking(False)
        received = 0
        with pytest.raises(BlockingIOError):
            while there.recv(FRAME.size):
                received += 1
        steps = loop.stats.cycles - 1  # the last one has only found out
        asked = 2 * steps + (steps - 1) // 50 + 1 + 1  # command and SYNC, heartbeats, START
        assert loop.dropped > 100 and received + loop.dropped == asked
        assert loop.outcome == "the drive did not become operational"


def test_the_drive_stops_without_its_master(bench: Bench) -> None:
    bench.simulate(0.5)
    bench.node.sdo[0x1016][1].raw = 127 << 16 | 20
    bench.drive.heard = time.monotonic()
    bench.node.nmt.on_command(NMT, b"\x01\x01", 0.0)
    bench.node.sdo[0x6041].raw = 0x27
    deadline = time.monotonic() + 60
    while bench.node.nmt.state == "OPERATIONAL":
        bench.drive.poll(0.01)
        bench.drive.heard = min(bench.drive.heard, time.monotonic())
        assert time.monotonic() < deadline
    assert bench.drive.status == 0x08


def test_the_configuration_by_sdo_reaches_the_drive_and_another_layout_is_refused(
    other_side: ModuleType, ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(other_side, ends):
        other_side.configure(ends[0], 2000, 0, 100)
        monkeypatch.setattr(other_side, "PDOS", (*other_side.PDOS[:2], (*other_side.PDOS[2][:3], (0x6071, 0x6040))))
        with pytest.raises(RuntimeError, match=r"the PDO of object 0x1400 is not 0x201"):
            other_side.configure(ends[0], 2000, 0, 100)


class started:  # noqa: N801
    """Run drive.py as a program, as run.py does."""

    def __init__(self, other_side: ModuleType, ends: tuple[Any, Any]) -> None:
        there = ends[1]
        where = ["--interface", there] if isinstance(there, str) else ["--fd", str(there.fileno())]
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLE / "drive.py"), *where], stdout=subprocess.PIPE, text=True,
            pass_fds=() if isinstance(there, str) else (there.fileno(),),
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.rt
def test_in_real_time_on_vcan_the_motor_turns_and_a_killed_drive_ends_the_loop(
    motor: ModuleType, other_side: ModuleType, vcan: str
) -> None:
    # A slow drive answers late, which a lower gain tolerates.
    rate, silence_ms, kp, kd = ("10Hz", 20_000, 3, 6) if IS_SLOW else ("200Hz", 1000, 600, 120)
    loop = motor.Motor(
        rate, bus=vcan, silence_ms=silence_ms, heartbeat_ms=silence_ms // 10, strict=False, guard="count",
        guard_allow=("recvfrom", "sendto"),
    )  # fmt: skip
    with started(other_side, (vcan, vcan)) as drive:
        other_side.configure(vcan, round(loop.settings.period / 1000), silence_ms // 10, silence_ms)
        loop.parameters.update(kp=kp, kd=kd, target=1.0)
        loop.start()
        limit = time.monotonic() + 120
        while abs(loop.position - 1.0) > 0.02 and time.monotonic() < limit:
            time.sleep(0.1)
        loop.stop()
        assert loop.position == pytest.approx(1, abs=0.05)
        assert loop.outcome == "no failure" and loop.emergencies == 0
        assert loop.answers > 0.9 * loop.syncs - 20 and loop.syncs + loop.dropped >= loop.stats.cycles
        assert not loop.stats.guard["system_calls"] and not any(loop.stats.page_faults)
        print(f"{loop.syncs} SYNCs, {loop.answers} answers, {loop.heartbeats} heartbeats, {loop.stats.guard}")
        loop.start()
        while loop.heartbeats < 3:
            time.sleep(0.1)
        drive.kill()
        with pytest.raises(rtloop.CallbackError, match="ETIMEDOUT"):
            loop.join("120s")
    assert loop.outcome == "the drive's heartbeat is missing"
    loop.close()


@pytest.mark.rt
def test_an_interface_that_goes_down_ends_the_loop(motor: ModuleType, vcan: str) -> None:
    loop = motor.Motor("20Hz", bus=vcan, silence_ms=60_000, strict=False)
    loop.start()
    try:
        while loop.syncs < 3:
            time.sleep(0.1)
        subprocess.run(["ip", "link", "set", vcan, "down"], check=True)
        with pytest.raises(rtloop.CallbackError, match="ENETDOWN"):
            loop.join("120s")
    finally:
        subprocess.run(["ip", "link", "set", vcan, "up"], check=True)
        loop.close()


def test_a_full_queue_of_the_interface_is_counted(motor: ModuleType, vcan: str) -> None:
    """A token bucket makes vcan as slow as a bus of a few frames a second, so that its queue fills."""
    tc = shutil.which("tc")
    if tc is None:
        pytest.skip("no tc: apt install iproute2")
    limit = [tc, "qdisc", "add", "dev", vcan, "root", "tbf", "rate", "8bit", "burst", "72", "limit", "360"]
    done = subprocess.run(limit, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this kernel cannot limit the rate: {done.stderr.strip()}")
    try:
        loop = motor.Motor("1kHz", bus=vcan, silence_ms=SILENCE_MS, **PLAIN)
        with pytest.raises(rtloop.CallbackError, match="ETIMEDOUT"):
            loop.simulate("1s")
        print(f"{loop.syncs} SYNCs sent, {loop.dropped} frames dropped")
        assert loop.dropped > 100 and loop.syncs < 20
        loop.close()
    finally:
        subprocess.run([tc, "qdisc", "del", "dev", vcan, "root"], check=True)


def test_a_loop_without_its_interface_does_not_start(motor: ModuleType) -> None:
    loop = motor.Motor("1kHz", bus="nosuch0", **PLAIN)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        loop.simulate("1s")
    assert caught.value.errno in (errno.ENODEV, errno.EAFNOSUPPORT)
