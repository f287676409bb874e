"""The Franka example: its codec byte for byte, its limits and ends, and runs against a simulator of others."""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
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
def place(built_example: Callable[[str], Path]) -> Path:
    """The folder of the example, in which others compile its modules as well."""
    return built_example("franka")


@pytest.fixture(scope="module")
def build(place: Path, example_cache: dict[str, str]) -> Iterator[Callable[[str], ModuleType]]:
    """Compile a module of the example, as its run.py does."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in example_cache.items():
            patch.setenv(variable, value)
        yield lambda name: rtloop.build(place / f"{name}.pyx")


@pytest.fixture(scope="module")
def franka(build: Callable[[str], ModuleType]) -> ModuleType:
    return build("franka")


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


#: Origin of each link in the frame of the one before, and the angle about x.
LINKS = (((0, 0, 0.333), 0), ((0, 0, 0), -1), ((0, -0.316, 0), 1), ((0.0825, 0, 0), 1),
         ((-0.0825, 0.384, 0), -1), ((0, 0, 0), 1), ((0.088, 0, 0), 1))  # fmt: skip


@pytest.fixture(scope="module")
def cartesian(build: Callable[[str], ModuleType]) -> ModuleType:
    pytest.importorskip("mujoco", reason="the model needs MuJoCo: pip install --group counterparts")
    return build("cartesian")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "".join(
        f'<body pos="{x} {y} {z}" euler="{90 * turn} 0 0"><joint axis="0 0 1"/><geom size="0.05" mass="2"/>'
        for (x, y, z), turn in LINKS
    )
    path = tmp_path_factory.mktemp("model") / "arm.xml"
    path.write_text(f"<mujoco><worldbody>{text}{'</body>' * 7}</worldbody></mujoco>")
    return path


class TestCartesian:
    """Impedance of the hand, with a model in MuJoCo."""

    Q = np.array([0.1, -0.7, 0.2, -2.3, 0.1, 1.6, 0.7])

    def pose(self, model: Path, q: Any) -> tuple[Any, Any, Any]:
        """Return O_T_EE by column, and the Jacobian and the Coriolis torques' function, from MuJoCo's Python."""
        mujoco = importlib.import_module("mujoco")
        made = mujoco.MjModel.from_xml_path(str(model))
        made.opt.gravity[:] = 0
        data = mujoco.MjData(made)
        data.qpos[:] = q
        mujoco.mj_forward(made, data)
        turn = data.xmat[7].reshape(3, 3)
        point = data.xpos[7] + turn @ [0, 0, 0.107]
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn, point
        jacobian = np.zeros((6, 7))
        mujoco.mj_jac(made, data, jacobian[:3], jacobian[3:], point, 7)
        return pose.T.ravel(), jacobian, (made, data)

    def torques(self, loop: Any, number: int, **fields: Any) -> Any:
        return np.frombuffer(loop.answer_to(packet(number, **fields)), "<f8", 7, 314)

    def test_the_hand_is_pulled_to_its_target_by_a_spring(self, cartesian: ModuleType, model: Path) -> None:
        loop = cartesian.Cartesian(model=model, amplitude=(0, 0, 0), **PLAIN)
        pose, jacobian, _ = self.pose(model, self.Q)
        rest = {"q": self.Q, "q_d": self.Q}
        assert np.abs(self.torques(loop, 1, O_T_EE=pose, **rest)).max() < 1e-6
        away = pose.copy()
        away[12:15] += [0.001, -0.002, 0.0005]
        expected = jacobian.T @ [-0.4, 0.8, -0.2, 0, 0, 0]
        assert self.torques(loop, 2, O_T_EE=away, **rest) == pytest.approx(expected, abs=2e-3)

    def test_the_hand_is_turned_back(self, cartesian: ModuleType, model: Path) -> None:
        loop = cartesian.Cartesian(model=model, amplitude=(0, 0, 0), **PLAIN)
        pose, jacobian, _ = self.pose(model, self.Q)
        rest = {"q": self.Q, "q_d": self.Q}
        self.torques(loop, 1, O_T_EE=pose, **rest)
        angle = 0.01
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        turned = pose.reshape(4, 4).T.copy()
        turned[:3, :3] = turn @ turned[:3, :3]
        expected = jacobian.T @ [0, 0, 0, -30 * np.sin(angle), 0, 0]
        assert self.torques(loop, 2, O_T_EE=turned.T.ravel(), **rest) == pytest.approx(expected, abs=2e-3)

    def test_what_holds_the_posture_does_not_move_the_hand(self, cartesian: ModuleType, model: Path) -> None:
        loop = cartesian.Cartesian(model=model, amplitude=(0, 0, 0), **PLAIN)
        pose, jacobian, _ = self.pose(model, self.Q)
        self.torques(loop, 1, O_T_EE=pose, q=self.Q, q_d=self.Q)
        free = np.linalg.svd(jacobian)[2][6]
        torque = self.torques(loop, 2, O_T_EE=pose, q=self.Q + 0.05 * free, q_d=self.Q)
        assert abs(torque @ free) > 0.3, "10 Nm/rad"
        assert np.abs(np.linalg.pinv(jacobian.T) @ torque).max() < 0.05, "N and Nm, of a Jacobian that is a little off"

    def test_moving_joints_are_damped_and_have_their_coriolis_torques(self, cartesian: ModuleType, model: Path) -> None:
        loop = cartesian.Cartesian(model=model, amplitude=(0, 0, 0), **PLAIN)
        mujoco = importlib.import_module("mujoco")
        pose, jacobian, (made, data) = self.pose(model, self.Q)
        self.torques(loop, 1, O_T_EE=pose, q=self.Q, q_d=self.Q)
        dq = np.array([0.01, -0.02, 0.01, 0.02, -0.01, 0.02, 0.01])
        data.qvel[:] = dq
        mujoco.mj_forward(made, data)
        wrench = -2 * np.sqrt([400, 400, 400, 30, 30, 30]) * (jacobian @ dq)
        posture = -2 * np.sqrt(10) * dq
        posture -= jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-4 * np.eye(6), jacobian @ posture)
        expected = data.qfrc_bias + jacobian.T @ wrench + posture
        before = np.round(expected)  # within a cycle's change
        found = self.torques(loop, 2, O_T_EE=pose, q=self.Q, q_d=self.Q, dq=dq, tau_J_d=before)
        assert found == pytest.approx(expected, abs=2e-3)

    def test_a_model_of_another_arm_is_refused_before_the_arm_moves(self, cartesian: ModuleType, model: Path) -> None:
        with (
            serving() as robot,  # its hand is at the origin
            contextlib.closing(cartesian.Cartesian(model=model, port=robot.port, silence_ms=60_000, **PLAIN)) as loop,
        ):
            with pytest.raises(rtloop.CallbackError, match="EDOM"):
                loop.run(cycles=10)
            assert loop.outcome == "Move was not sent"

    def test_a_model_with_other_joints_is_refused(self, cartesian: ModuleType, tmp_path: Path) -> None:
        path = tmp_path / "other.xml"
        path.write_text("<mujoco/>")
        with pytest.raises(ValueError, match="has 0 positions and 0 velocities; the arm has 7 joints"):
            cartesian.Cartesian(model=path, **PLAIN)


SIMULATOR = Path(
    os.environ.get("RTLOOP_FRANKA_SIM")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rtloop-franka-sim"
)


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        found: int = probe.getsockname()[1]
    return found


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[subprocess.Popen[str]]:
    if not (SIMULATOR / "fr3.xml").exists():
        pytest.skip(f"franka-sim is not installed in {SIMULATOR}: python examples/franka/simulator.py --install")
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        pytest.skip("franka-sim is not a referee without a real-time priority, which cannot be had here")
    command = [sys.executable, "simulator.py", "--folder", str(SIMULATOR), "--limits", "--port", str(port)]
    server = subprocess.Popen(command, cwd=EXAMPLE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        assert any("ready for" in line for line in server.stdout), "the server ended"
        threading.Thread(target=server.stdout.read, daemon=True).start()
        yield server
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


@pytest.fixture
def start(
    server: subprocess.Popen[str], port: int, place: Path, example_cache: dict[str, str]
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "run.py", "--host", "127.0.0.1", "--port", str(port), "--busy", *arguments]
        run = subprocess.Popen(
            command, cwd=place, env={**os.environ, **example_cache}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(run)
        return run

    yield start
    for run in started:
        run.kill()
        run.communicate()


class TestFrankaSim:
    """The independent simulator, with its server at a real-time priority below the loop's."""

    def await_motion(self, run: subprocess.Popen[str]) -> None:
        """Wait until the robot moves, by the signal of the loop in the other process."""
        for _ in range(3000):
            assert run.poll() is None, run.communicate()
            with contextlib.suppress(rtloop.RtloopError, KeyError), rtloop.connect(pid=run.pid) as loop:
                if loop.signals.latest()["mode"] == 2:
                    return
            time.sleep(0.02)
        pytest.fail("the robot does not move")

    @pytest.mark.parametrize("control", ["torque", "position", "cartesian"])
    def test_it_accepts_a_motion_to_its_end(self, control: str, start: Callable[..., subprocess.Popen[str]]) -> None:
        if control == "cartesian":
            pytest.importorskip("mujoco", reason="the model needs MuJoCo: pip install --group counterparts")
        model = ["--model", str(SIMULATOR / "fr3.xml")]
        run = start("--control", control, "--seconds", "0.5", "--reflexes", "5", *model)
        out, error = run.communicate(timeout=150)
        assert run.returncode == 0, out + error
        assert "Move ended with 0: success" in out

    def test_a_client_that_stood_still_recovers_from_the_reflex(
        self, start: Callable[..., subprocess.Popen[str]]
    ) -> None:
        run = start("--seconds", "4", "--reflexes", "5")
        self.await_motion(run)
        run.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # far more than 20 states
        run.send_signal(signal.SIGCONT)
        out, error = run.communicate(timeout=150)
        assert run.returncode == 0, out + error
        assert "Move ended with 8: reflex; errors [25]" in error and "recovered from the reflex" in error
        assert "Move ended with 0: success" in out

    def test_a_client_whose_server_is_pulled_away_ends(
        self, server: subprocess.Popen[str], start: Callable[..., subprocess.Popen[str]]
    ) -> None:
        run = start("--seconds", "100", "--reflexes", "5")
        self.await_motion(run)
        server.kill()
        _, error = run.communicate(timeout=60)
        assert run.returncode == 1 and "Move has no final answer" in error
