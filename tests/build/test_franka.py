"""The Franka example: its codec byte for byte, its limits and ends, and runs against a simulator of others."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop

EXAMPLE = Path(__file__).parents[2] / "examples" / "franka"
PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None}
#: Offsets and counts of fields of the state, as the protocol has them.
FIELDS = {
    "O_T_EE": (8, 16), "m_ee": (392, 1), "elbow": (496, 2), "tau_J": (512, 7), "tau_J_d": (540, 7), "q": (596, 7),
    "q_d": (624, 7), "dq": (652, 7), "dq_d": (680, 7), "ddq_d": (708, 7), "tau_ext_hat_filtered": (840, 7),
    "O_F_ext_hat_K": (868, 6), "theta": (1088, 7), "dtheta": (1116, 7), "accelerometer_bottom": (1216, 18),
    "success_rate": (1373, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def franka(built_example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    (built,) = built_example("franka").glob("*.so")
    path = Path(shutil.copy(built, tmp_path_factory.mktemp("franka")))
    spec = importlib.util.spec_from_file_location("franka", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Any]:
    """Run the stand-in in a thread: faster than a robot, and as patient as a busy machine needs."""
    robot = runpy.run_path(str(EXAMPLE / "robot.py"))["Robot"](patience=60, **options)
    robot.tick = 1e-4
    thread = threading.Thread(target=robot.serve, daemon=True)
    thread.start()
    try:
        yield robot
    finally:
        robot.is_over = True
        thread.join()
        for one in (robot.client, robot.listener, robot.udp):
            if one is not None:
                one.close()


def packet(number: int = 1, mode: int = 2, **fields: Any) -> bytes:
    """A state as the robot sends it, without the codec of the example."""
    data = bytearray(1377)
    struct.pack_into("<Q", data, 0, number)
    for name, values in fields.items():
        at, count = FIELDS[name]
        struct.pack_into(f"<{count}f", data, at, *np.broadcast_to(values, count))
    data[1372] = mode
    return bytes(data)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_the_state_is_where_the_robot_puts_it(franka: ModuleType, name: str) -> None:
    _, count = FIELDS[name]
    values = np.arange(1.5, 1.5 + count, dtype="f4")
    state = franka.Torque(**PLAIN).decode(packet(7, **{name: values}))
    assert np.array_equal(np.atleast_1d(state[name]), values) and state["message_id"] == 7
    others = [other for other in state.dtype.names if other not in (name, "message_id", "robot_mode")]
    assert not any(np.any(state[other]) for other in others), "each byte is in one field"


def test_the_bytes_of_the_state_that_count_modes_and_errors(franka: ModuleType) -> None:
    data = bytearray(packet(mode=4))
    data[1288], data[1289], data[1290 + 25], data[1331 + 3] = 1, 2, 1, 1
    loop = franka.Torque(**PLAIN)
    state = loop.decode(bytes(data))
    assert (state["generator"], state["controller"], state["robot_mode"]) == (1, 2, 4)
    assert loop.errors == [25] and np.flatnonzero(state["reflex_reason"]).tolist() == [3]
    with pytest.raises(ValueError, match="a state has 1377 bytes, this packet has 1376"):
        loop.decode(bytes(data[:-1]))


def test_requests_have_the_sizes_that_the_robot_expects(franka: ModuleType) -> None:
    move = franka.encode_move(5, 2, 4)
    assert len(move) == 125 and move[:20] == struct.pack("<5I", 1, 5, 125, 2, 4)
    assert struct.unpack_from("<6d", move, 20) == (10, 3.12, 2 * np.pi) * 2
    assert move[68:] == bytes(57)
    assert franka.encode(1, 0, struct.pack("<HH", 10, 5000)) == struct.pack("<IIIHH", 0, 1, 16, 10, 5000)


def test_a_torque_changes_by_less_than_the_robot_allows_from_what_it_last_received(franka: ModuleType) -> None:
    loop = franka.Torque(**PLAIN)
    loop.answer_to(packet(1))
    command = loop.answer_to(packet(2, q=1.0, tau_J_d=5.0))  # the spring asks for hundreds of Nm
    assert len(command) == 371 and struct.unpack_from("<Q", command)[0] == 2
    torques = np.frombuffer(command, "<f8", 7, 314)
    assert np.all(torques < 5) and np.all(torques >= 4) and command[370] == 0 and not any(command[8:314])
    torques = np.frombuffer(loop.answer_to(packet(3, q=-1.0, tau_J_d=[87] * 4 + [12] * 3)), "<f8", 7, 314)
    assert np.all(torques <= [87] * 4 + [12] * 3), "and never exceeds the joints' own limits"


def test_a_position_is_limited_in_speed_acceleration_and_jerk_from_what_the_robot_last_received(
    franka: ModuleType,
) -> None:
    loop = franka.Position(**PLAIN)
    loop.answer_to(packet(1))
    q = np.frombuffer(loop.answer_to(packet(2, q_d=-0.5)), "<f8", 7, 8)  # as after lost cycles
    assert np.all(q > -0.5) and np.all(q <= -0.5 + 1e-6 * 2.51), "half of 5000 rad/s^3, in 1 ms"
    q = np.frombuffer(loop.answer_to(packet(3, q_d=-0.5, dq_d=0.5, ddq_d=5.0)), "<f8", 7, 8)
    assert np.all(q <= -0.5 + 1e-3 * 0.506), "half of 10 rad/s^2"


@pytest.mark.parametrize("kind", ["Torque", "Position"])
def test_a_run_answers_each_state_and_ends_its_move(franka: ModuleType, kind: str) -> None:
    with (
        serving() as robot,
        contextlib.closing(getattr(franka, kind)(port=robot.port, silence_ms=60_000, **PLAIN)) as loop,
    ):
        for _ in range(2):  # on one connection
            stats = loop.run(cycles=250)
            assert loop.status == 0 and loop.outcome == "Move ended with 0: success", loop.outcome
            assert stats.device_missed == 0 and loop.answered > 0 and loop.lowest_rate == 1
            assert robot.lost_at_all == 0 and robot.error == -1
            assert np.abs(loop.newest["dq"]).max() < 0.1


def test_lost_commands_end_in_a_reflex_that_is_recovered_from(franka: ModuleType) -> None:
    with (
        serving(deaf=(50, 80)) as robot,
        contextlib.closing(franka.Torque(port=robot.port, silence_ms=60_000, **PLAIN)) as loop,
    ):
        robot.patience = 0.02
        with pytest.raises(rtloop.CallbackError, match="ECANCELED"):
            loop.run(cycles=100_000)
        assert loop.outcome == "Move ended with 8: reflex" and loop.errors == [25]
        with pytest.raises(rtloop.CallbackError, match="ECANCELED"):
            loop.run(cycles=100_000)
        assert loop.outcome.startswith("Move was refused with 5: not possible")
        robot.deaf, robot.patience = (0, 0), 60
        loop.recover()
        loop.run(cycles=200)
        assert loop.status == 0


def test_a_few_lost_positions_do_not_keep_the_arm_from_coming_to_rest(franka: ModuleType) -> None:
    with (
        serving(deaf=(50, 60)) as robot,
        contextlib.closing(franka.Position(port=robot.port, silence_ms=60_000, **PLAIN)) as loop,
    ):
        loop.run(cycles=150)
        assert loop.status == 0 and robot.lost_at_all == 10


def test_a_robot_that_vanishes_ends_the_loop_and_leave_gives_up(franka: ModuleType) -> None:
    settings = {"silence_ms": 600, **PLAIN}
    with serving(vanish=60) as robot, contextlib.closing(franka.Torque(port=robot.port, **settings)) as loop:
        with pytest.raises(rtloop.CallbackError, match="ETIMEDOUT"):
            loop.run(cycles=100_000)
        assert loop.outcome == "Move has no final answer"


def test_without_a_robot_the_start_is_refused(franka: ModuleType) -> None:
    with serving() as robot:
        port = robot.port
    loop = franka.Torque(port=port, **PLAIN)
    with pytest.raises((franka.FrankaError, rtloop.RtloopError), match=f"no robot at 127.0.0.1, TCP port {port}"):
        loop.run(cycles=1)
    loop.close()


def test_a_swing_for_fewer_joints_is_refused(franka: ModuleType) -> None:
    with pytest.raises(ValueError, match="has 2 values; the robot has 7 joints"):
        franka.Torque(swing=(1, 2), **PLAIN)


@pytest.mark.parametrize("control", ["torque", "position"])
def test_franka_sim_accepts_the_run(control: str, built_example: Callable[[str], Path], tmp_path: Path) -> None:
    """The independent simulator ends the Move with success, or with a reflex that was recovered from."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(os.environ.get("RTLOOP_FRANKA_SIM", cache / "rtloop-franka-sim"))
    if not (folder / "fr3.xml").exists():
        pytest.skip(f"franka-sim is not installed in {folder}: python examples/franka/simulator.py --install")
    place = shutil.copytree(built_example("franka"), tmp_path / "franka")
    command = [sys.executable, "simulator.py", "--folder", str(folder), "--limits"]
    server = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        assert any("ready" in line.lower() for line in server.stdout), "the server ended"
        drain = threading.Thread(target=server.stdout.read, daemon=True)
        drain.start()
        run = [sys.executable, "run.py", "--host", "127.0.0.1", "--control", control, "--busy", "--reflexes", "5"]
        done = subprocess.run(run, cwd=place, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"Move ended with 0: success", done.stdout)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
