"""What the examples compute is right, also where cycles are late, and each draws its picture."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of all examples, each in its own, where they may be built."""
    root = tmp_path_factory.mktemp("examples")
    for folder in EXAMPLES.iterdir():
        (root / folder.name).mkdir()
        for file in folder.glob("*.py*"):
            (root / folder.name / file.name).write_bytes(file.read_bytes())
    return root


@pytest.fixture(scope="module")
def build(copy: Path, built_example: Callable[[str], Path]) -> Callable[[str], ModuleType]:
    """Import the module of an example, by name, from where its run.py finds it."""

    def build(name: str) -> ModuleType:
        (built,) = built_example(name).glob("*.so")
        path = Path(shutil.copy(built, copy / name))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return build


def run(folder: Path, *arguments: str) -> str:
    """Run an example's run.py, which exits with an error where its own checks fail; returns what it printed."""
    command = [sys.executable, "run.py", *arguments, "--plot", "picture.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    return done.stdout


@pytest.fixture(scope="module")
def kalman(build: Callable[[str], ModuleType]) -> ModuleType:
    return build("kalman")


def swing(seconds: float) -> np.ndarray:
    """Return the angle and the rate of something that swings, one row a millisecond, as two sensors see them."""
    t = np.arange(0, seconds, 1e-3)
    noise = np.random.default_rng(seed=7).normal(scale=(0.05, 0.01), size=(len(t), 2))
    return np.column_stack([np.sin(2 * t), 2 * np.cos(2 * t) + 0.2]) + noise


def test_the_kalman_filter_finds_the_bias_and_knows_how_well(kalman: ModuleType) -> None:
    loop = kalman.Kalman("1kHz", measured=swing(4.0))
    loop.simulate()
    angle, _, bias, std_angle, _, std_bias, _ = loop.estimates[2000:].T
    error = angle - np.sin(2 * np.arange(2.0, 4.0, 1e-3))
    assert np.std(error) < 0.01  # of a sensor with 0.05
    assert 0.5 < np.std(error) / std_angle.mean() < 2
    assert np.all(np.abs(bias - 0.2) < 5 * std_bias)


def test_the_kalman_filter_predicts_over_the_releases_that_were_missed(kalman: ModuleType) -> None:
    """Every tenth step ends after the next release, which is missed: its row stays empty, the one after has 2 ms."""
    t = np.arange(0, 4.0, 1e-3)
    measured = np.column_stack([2 * t, np.full_like(t, 2.0)])  # turns evenly, and the sensors have no noise
    loop = kalman.Kalman("1kHz", measured=measured)
    stats = loop.simulate(execution=["10us"] * 9 + ["1500us"])
    missing = np.isnan(loop.estimates[:, 0])
    assert stats.missed > 100 and missing.sum() in (stats.missed, stats.missed - 1)  # the last may be after all rows
    after = np.flatnonzero(missing[:-1]) + 1
    assert loop.estimates[after, 6] == pytest.approx(2e-3)
    assert np.nanmax(np.abs(loop.estimates[3000:, 0] - 2 * t[3000:])) < 1e-4  # 1 ms of turning would be 2e-3


def test_the_kalman_filter_fails_where_a_sensor_says_nonsense(kalman: ModuleType) -> None:
    measured = swing(0.1)
    measured[50] = np.nan
    with pytest.raises(rtloop.CallbackError, match="EDOM"):
        kalman.Kalman("1kHz", measured=measured).simulate()


def test_the_kalman_filter_agrees_with_the_textbook_in_real_time(kalman: ModuleType, copy: Path) -> None:
    run(copy / "kalman", "--seconds", "2")


@pytest.fixture(scope="module")
def paced(build: Callable[[str], ModuleType]) -> ModuleType:
    return build("paced")


def away_in_the_end(paced: ModuleType, **settings: float) -> float:
    """Return how far a follower is from where it should be after 3 s, at most, in us; the sensor is 200 ppm fast."""
    follower = paced.Follower("2ms", delay=300_000, phase="700us", **settings)
    sensor = paced.Sensor(1_999_600, to=[follower.address], noise=20_000, quiet=1000, until=1050)
    ticks, releases = (stats.records["release"] for stats in rtloop.simulate([sensor, follower], "4s"))
    away = releases[1500:] - 300_000 - ticks[0]
    return float(np.abs(away - 1_999_600 * np.round(away / 1_999_600)).max() / 1000)


def test_the_follower_is_as_fast_as_the_sensor_s_clock(paced: ModuleType) -> None:
    assert away_in_the_end(paced) < 20  # what each message says is wrong by up to 20 us
    assert away_in_the_end(paced, bandwidth=1e-9) > 500  # what follows nobody has drifted


def test_the_waiter_fails_where_the_sensor_stays_silent(paced: ModuleType, ordinary: dict[str, Any]) -> None:
    waiter = paced.Waiter("2ms", patience=5, **ordinary)
    with pytest.raises(rtloop.CallbackError, match="ETIMEDOUT"):
        waiter.run("10s")
    assert waiter.timeouts == 5


def test_the_waiter_can_be_stopped_while_the_sensor_is_silent(paced: ModuleType, ordinary: dict[str, Any]) -> None:
    waiter = paced.Waiter("2ms", patience=10**6, **ordinary)
    waiter.start()
    waiter.stop("30s")
    assert waiter.state == "stopped"


def test_the_waiter_steps_when_there_is_a_message(paced: ModuleType, ordinary: dict[str, Any]) -> None:
    waiter = paced.Waiter("2ms", patience=10**6, **ordinary)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sensor, waiter:
        for number in range(1, 21):
            sensor.sendto(struct.pack("Qqd", number, 0, 0.5), waiter.address)
            time.sleep(0.01)
    numbers = waiter.log.drain()["number"]
    assert numbers[-1] == 20 and np.all(np.diff(numbers.astype(int)) >= 0)
    assert len(numbers) == waiter.stats.cycles


def test_the_two_ways_to_follow_a_sensor_in_real_time(paced: ModuleType, copy: Path) -> None:
    text = run(copy / "paced", "--seconds", "2")
    assert "timeouts" in text


@pytest.fixture(scope="module")
def signal_processing(build: Callable[[str], ModuleType]) -> ModuleType:
    return build("signal_processing")


def test_the_spectra_are_the_same_where_the_history_is_used_again_and_again(signal_processing: ModuleType) -> None:
    long, short = (signal_processing.Analyser(history=size) for size in ("1M", "64K"))
    for loop in (long, short):
        loop.simulate(cycles=400)
    assert len(short.history) * 3 < 400 * 64 < len(long.history)
    assert np.array_equal(long.drain(), short.drain())


def test_a_consumer_that_stays_away_costs_it_spectra_and_the_step_nothing(signal_processing: ModuleType) -> None:
    loop = signal_processing.Analyser(history="1M", blocks=4)
    loop.simulate(cycles=320)  # of 32 cycles each: 10 spectra
    assert (loop.dropped, loop.pool.in_use) == (6, 4)
    first = loop.drain()["first"]
    assert np.diff(first).tolist() == [32 * 64] * 3
    assert loop.pool.in_use == 0 and len(loop.drain()) == 0


def test_a_spectrum_that_was_begun_is_given_back(signal_processing: ModuleType) -> None:
    loop = signal_processing.Analyser(history="1M")
    for _ in range(2):
        loop.simulate(cycles=40)
        assert loop.pool.in_use == len(loop.full) == 1
        assert len(loop.drain()) == 1


def test_the_spectra_agree_with_numpy_in_real_time(signal_processing: ModuleType, copy: Path) -> None:
    run(copy / "signal_processing", "--seconds", "1")


@pytest.fixture
def crane(copy: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The module of the crane: compiled, or in Python as where there is no Numba."""
    if request.param == "python":
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        pytest.importorskip("numba")
    spec = importlib.util.spec_from_file_location("crane", copy / "numba_controller" / "crane.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("crane", ["compiled", "python"], indirect=True)
def test_a_crane_that_swings_too_far_fails_its_loop(crane: ModuleType, request: pytest.FixtureRequest) -> None:
    assert (crane.numba is None) == ("python" in request.node.name)
    swinging = crane.new_crane()
    swinging.angle = 0.6
    with pytest.raises(rtloop.CallbackError, match="ERANGE"):
        crane.make_loop(swinging).simulate("1s")


def test_the_crane_moves_alike_compiled_and_in_python(copy: Path) -> None:
    pytest.importorskip("numba")
    compiled, python = (run(copy / "numba_controller", "--seconds", "1", *more) for more in ((), ("--python",)))
    assert "compiled:" in compiled and "in Python:" in python
    (line,) = (line for line in compiled.splitlines() if line.startswith("simulated: at 1.99999"))
    assert line in python.splitlines()


@pytest.fixture(scope="module")
def robot_arm(build: Callable[[str], ModuleType]) -> ModuleType:
    return build("robot_arm")


def hold(robot_arm: ModuleType, duration: str, late: Any = 0, arm: Any = (), **robot: Any) -> tuple[Any, Any]:
    """Let the controller hold the robot in virtual time, woken up 0.3 ms after the robot; returns both."""
    body = robot_arm.Robot("1kHz", **robot)
    controller = robot_arm.Arm("1kHz", robot=body.address, phase="300us", **dict(arm))
    rtloop.simulate([body, controller], duration, latency={controller: late})
    assert body.answered + body.late == body.moves
    return body, controller


def test_the_arm_yields_like_the_springs_it_is_told_to_be(robot_arm: ModuleType) -> None:
    _, arm = hold(robot_arm, "4s", push_at=0.5, push_for=1.5)
    log = arm.log.drain()
    stiffness = np.array((600, 600, 600, 600, 250, 150, 50))
    pushed, back = (log["q"][np.searchsorted(log["t"], t)] - log["q"][0] for t in (1.9, 3.9))
    assert pushed == pytest.approx(robot_arm.PUSH / stiffness, rel=0.01)
    assert np.abs(back).max() < 1e-4


def test_the_arm_s_energy_goes_where_physics_says(robot_arm: ModuleType) -> None:
    """What somebody does at the joints is in the motion, or lost to friction: there are no springs here."""
    robot, _ = hold(robot_arm, "400ms", push_at=0.2, push_for=0.05, arm={"stiffness": [0] * 7})
    assert robot.energy > 1 and robot.lost > 0.1
    assert robot.energy + robot.lost == pytest.approx(robot.work, rel=0.01)


def test_the_robot_stops_when_answers_are_late_and_the_arm_s_loop_ends(robot_arm: ModuleType) -> None:
    late = ["0us"] * 1000 + ["30ms"] + ["0us"] * 9000
    robot, arm = hold(robot_arm, "3s", late=late)
    assert robot.report["mode"] == "answers too late" and robot.longest == 21
    assert arm.ended_by == "the robot has stopped: answers too late"
    assert arm.stats.duration < 1.1


def test_the_robot_bears_some_late_answers(robot_arm: ModuleType) -> None:
    robot, arm = hold(robot_arm, "3s", late=(["0us"] * 100 + ["800us"]) * 30 + ["0us"])
    assert robot.late > 20 and robot.longest < 5
    assert robot.report["mode"] in ("moving", "finished") and arm.stats.cycles > 2900


def test_torques_and_their_changes_are_limited_and_a_joint_too_fast_means_a_safe_stop(robot_arm: ModuleType) -> None:
    robot, arm = hold(robot_arm, "3s", push=6.0, push_for=0.3)
    torque = arm.log.drain()["torque"]
    assert np.abs(torque).max(axis=0)[1] == robot_arm.MOST_TORQUE[1] and arm.limited > 10
    assert np.all(np.abs(torque) <= robot_arm.MOST_TORQUE)
    assert np.abs(np.diff(torque, axis=0)).max() <= robot_arm.MOST_RATE * 1e-3 + 1e-9
    assert arm.ended_by == "safe stop: a joint was too fast"
    assert robot.report["mode"] in ("moving", "finished") and robot.energy < 1e-3


def test_the_robot_stops_at_a_torque_over_its_limit(robot_arm: ModuleType) -> None:
    """A packet of somebody else's: a NaN is over every limit."""
    robot = robot_arm.Robot("1kHz")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.connect(robot.address)

        def controller(cycle: rtloop.Cycle) -> None:
            if cycle.index == 0:
                other.send(bytes(72))
            elif cycle.index == 5:
                other.send(struct.pack("2q7d", cycle.index, 0, *[float("nan")] * 7))

        robot.simulate(cycles=10, plant=controller)
    assert robot.report["mode"] == "torque limit"


def test_the_arm_s_loop_ends_where_the_robot_is_silent(robot_arm: ModuleType, ordinary: dict[str, Any]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        arm = robot_arm.Arm("1kHz", robot=nobody.getsockname(), patience=5, **ordinary)
        arm.run("30s")
    assert arm.ended_by == "the robot has sent nothing for 6 cycles"


def test_the_robot_arm_in_real_time(robot_arm: ModuleType, copy: Path) -> None:
    text = run(copy / "robot_arm", "--tolerance", "200", "--lose", "390")
    assert "the robot has stopped: answers too late" in text


@pytest.fixture(scope="module")
def pid_motor(build: Callable[[str], ModuleType]) -> ModuleType:
    return build("pid_motor")


def turn(pid_motor: ModuleType, changes: dict[int, dict[str, float]], **settings: Any) -> np.ndarray:
    """Return the log of two seconds in virtual time, with the parameters changed before some cycles."""
    motor = pid_motor.Motor("1kHz", **settings)
    motor.simulate("2s", plant=lambda cycle: motor.parameters.update(changes.get(cycle.index, {})))
    log: np.ndarray = motor.signals.read()
    assert len(log) == motor.stats.cycles
    applied = motor.stats.parameter_changes[1:]
    assert [change.cycle for change in applied] == list(changes)
    return log


GAINS = {"kp": 25.0, "ki": 80.0, "kd": 0.3}


def test_the_motor_s_controller_has_no_plumbing() -> None:
    (source,) = (EXAMPLES / "pid_motor").glob("*.pyx")
    assert len(source.read_text().splitlines()) < 45


def test_the_motor_gets_to_where_it_is_told_and_holds_the_load(pid_motor: ModuleType) -> None:
    log = turn(pid_motor, {0: GAINS, 500: {"setpoint": 1.0}})
    assert log["angle"][-1] == pytest.approx(1.0, abs=1e-3) and log["angle"].max() < 1.1
    assert log["voltage"][-100:].mean() == pytest.approx(0.05 / 0.05 * 0.5, rel=0.02)  # load / (Nm/A) * ohm
    without = turn(pid_motor, {0: {**GAINS, "ki": 0.0}, 500: {"setpoint": 1.0}})
    assert without["angle"][-1] == pytest.approx(1 - 0.5 / 25, abs=1e-3)


def test_the_tuning_of_a_running_motor_takes_effect_without_a_kick(pid_motor: ModuleType) -> None:
    log = turn(pid_motor, {0: {**GAINS, "setpoint": 1.0}, 1500: {"ki": 800.0}})
    assert abs(np.diff(log["voltage"])[1490:1510]).max() < 0.05
    kick = turn(pid_motor, {0: {**GAINS, "setpoint": 1.0}, 1500: {"setpoint": 2.0}})
    assert 20 < np.diff(kick["voltage"])[1499] < 24.5  # kp alone, and nothing of kd's thousands


def test_the_motor_s_integral_does_not_wind_up(pid_motor: ModuleType) -> None:
    """At a low voltage it takes long to get there, and must not swing over the target for that."""
    gains = {"kp": 2.0, "ki": 2.0, "kd": 0.1}
    log = turn(pid_motor, {0: gains, 200: {"setpoint": 20.0}}, supply=4.0)
    assert np.count_nonzero(np.abs(log["voltage"]) == 4.0) > 150
    assert log["angle"].max() < 20.5 and log["angle"][-1] == pytest.approx(20, abs=0.2)


@pytest.mark.parametrize("wrong", [{"kp": -1.0}, {"kd": float("nan")}, {"setpoint": float("inf")}, {"kq": 1.0}])
def test_a_tuning_that_the_step_could_not_bear_changes_nothing(pid_motor: ModuleType, wrong: dict[str, float]) -> None:
    motor = pid_motor.Motor("1kHz")
    with pytest.raises((rtloop.ConfigError, KeyError), match=next(iter(wrong))):
        motor.parameters.update({"ki": 5.0, **wrong})
    assert set(motor.parameters.values()) == {0.0}


def test_the_motor_is_tuned_in_real_time(pid_motor: ModuleType, copy: Path) -> None:
    text = run(copy / "pid_motor")
    over = [float(line.split()[3]) for line in text.splitlines()[1:4]]
    assert over[0] > 30 > over[2]


def test_the_motor_is_tuned_by_what_is_typed(pid_motor: ModuleType, copy: Path) -> None:
    command = [sys.executable, "run.py", "--live"]
    typed = "kp=10 kd=0.15\nkp=-1\nkp\n"
    done = subprocess.run(
        command, cwd=copy / "pid_motor", input=typed, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "kp=-1.0 is below its limit, 0.0 V/rad" in done.stdout
    assert done.stdout.splitlines()[1].split()[:3] == ["10", "0", "0.15"]


@pytest.fixture(scope="module")
def daq(build: Callable[[str], ModuleType]) -> ModuleType:
    return build("daq")


def acquire(daq: ModuleType, path: Path, execution: Any = 0, **settings: Any) -> tuple[Any, rtloop.Recorder, Any]:
    """Record two seconds in virtual time; returns the loop, the recorder, and what is in the file."""
    loop = daq.Acquisition("10kHz", **settings)
    with rtloop.Recorder(loop.log, path, interval="10ms") as recorder:
        loop.simulate("2s", execution=execution)
    samples = np.load(path)
    assert recorder.written + recorder.lost == loop.stats.cycles
    assert len(samples) == recorder.written and np.all(np.diff(samples["number"]) > 0)
    return loop, recorder, samples


def test_nothing_is_lost_on_the_way_to_the_file(daq: ModuleType, tmp_path: Path) -> None:
    _, recorder, samples = acquire(daq, tmp_path / "a.npy", capacity=20_000)
    assert recorder.lost == 0 and np.array_equal(samples["number"], np.arange(20_000))
    assert np.all(np.diff(samples["release"]) == 100_000)


def test_the_file_has_the_signals_that_were_there(daq: ModuleType, tmp_path: Path) -> None:
    _, _, samples = acquire(daq, tmp_path / "a.npy", capacity=20_000)
    spectrum = np.abs(np.fft.rfft(samples["code"].T * daq.VOLT)) / 10_000  # lines 0.5 Hz apart, as amplitudes
    assert spectrum[1, [50, 350]] == pytest.approx([1, 0.3], rel=0.01)  # 25 and 175 Hz
    assert spectrum[0, 100] == pytest.approx(0.2, rel=0.1) and np.argmax(spectrum[0]) == 880  # 50 Hz; 440 Hz
    assert np.median(spectrum) < 1e-3


def test_a_ring_that_is_too_small_loses_samples_and_says_how_many(daq: ModuleType, tmp_path: Path) -> None:
    _, recorder, samples = acquire(daq, tmp_path / "a.npy", capacity=64)
    assert recorder.lost > 0
    assert samples["number"][-1] + 1 - len(samples) <= recorder.lost


def test_a_missed_release_is_a_gap_in_the_numbers(daq: ModuleType, tmp_path: Path) -> None:
    execution = ["10us"] * 99 + ["250us"]
    loop, recorder, samples = acquire(daq, tmp_path / "a.npy", execution, capacity=20_000)
    assert recorder.lost == 0 and loop.stats.missed > 300
    left_out = samples["number"][-1] + 1 - len(samples)
    assert loop.stats.missed - 2 <= left_out <= loop.stats.missed  # the last may be after all samples
    assert np.all(samples["release"] - samples["release"][0] == samples["number"] * 100_000)


def test_the_acquisition_in_real_time(daq: ModuleType, copy: Path) -> None:
    assert " 0 lost" in run(copy / "daq", "--seconds", "1", "--output", "samples.npz")


@pytest.fixture(scope="module")
def cart_pole(build: Callable[[str], ModuleType]) -> ModuleType:
    return build("cart_pole_udp")


def balance(cart_pole: ModuleType, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """Balance the demo's pole for 3 s in virtual time, over UDP; returns the controller, and the plant's report."""
    from rtloop.demo.physics import Plant

    plant = Plant("1ms", duration_ns=3 * 10**9, seed=3)

    class Here(cart_pole.Controller):  # type: ignore[misc,name-defined]
        def setup(self) -> None:
            self.plant = ("127.0.0.1", plant.port)  # which it has since its own setup
            super().setup()

    loop = Here("1ms", plant=None, phase="400us", **settings)
    rtloop.simulate([plant, loop], "3s")
    return loop, plant.report()


def test_the_pole_stands_and_every_datagram_is_accounted_for(cart_pole: ModuleType) -> None:
    loop, pole = balance(cart_pole)
    assert pole["fell_at_s"] is None and pole["worst_angle_deg"] < 8
    assert loop.heard == pole["states_sent"] == len(loop.log.drain())
    assert loop.sent == loop.stats.cycles + 1  # and one from leave, which the plant has not seen any more
    assert pole["forces_received"] == loop.stats.cycles - 2  # the one that let go of the pole, and the last


def test_the_pole_sways_the_more_the_later_the_answers_are(cart_pole: ModuleType) -> None:
    worst = []
    for delay in (0, 3, 10, 30):
        _, pole = balance(cart_pole, delay=delay)
        worst.append(pole["worst_angle_deg"])
        assert pole["oldest_state_ms"] == pytest.approx(delay + 2, abs=1.01)
    assert worst[1] < 1.2 * worst[0] < worst[2] < worst[3]  # 4 ms are nothing to it


def test_the_force_is_the_regulator_s_within_what_the_motor_can_do(cart_pole: ModuleType) -> None:
    loop, _ = balance(cart_pole, delay=30)
    force = np.abs(loop.log.drain()["force"])
    assert force.max() == 10 and np.median(force) > 1


def test_the_controller_ends_where_the_plant_is_gone_and_its_last_force_is_none(
    cart_pole: ModuleType, ordinary: dict[str, Any]
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plant:
        plant.bind(("127.0.0.1", 0))
        plant.settimeout(10)
        loop = cart_pole.Controller("1ms", plant=plant.getsockname(), patience=100, **ordinary)
        loop.start()
        _, address = plant.recvfrom(64)
        plant.sendto(struct.pack("2q4d", 1, 1, 0.0, 0.0, 0.1, 0.0), address)  # and no more
        assert loop.join("30s")
        plant.settimeout(0.2)
        forces = []
        try:
            while True:
                forces.append(struct.unpack("qd", plant.recv(64))[1])
        except TimeoutError:
            pass
    assert loop.state == "stopped" and loop.silent == 101
    assert forces[-1] == 0 and forces[-2] == 10  # K * 0.1 rad is more than the motor can do


def test_the_cart_pole_in_real_time(cart_pole: ModuleType, copy: Path) -> None:
    text = run(copy / "cart_pole_udp", "--seconds", "1")
    assert text.count("states heard") == 2 and "20 ms late: the pole" in text


def test_the_camera_of_the_vision_loop_finds_its_target(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(copy / "vision_loop"))
    camera: Any = importlib.import_module("camera")
    random = np.random.default_rng(1)
    for target in (-0.4, -0.1, 0.0, 0.3):
        found = camera.find_target(camera.take_image(target, head=0.05, random=random))
        assert found == pytest.approx(target - 0.05, abs=0.02), "the angle is that from the middle of the image"
    assert camera.find_target(camera.take_image(2.0, head=0.0, random=random)) is None, "it is out of sight"


def test_the_pole_stands_while_its_law_is_rewritten(build: Callable[[str], ModuleType], copy: Path) -> None:
    laws = build("rewritten_law")

    def swap(*names: str) -> Any:
        plant = laws.Plant(4000 * len(names))
        first, *others = (getattr(laws, name)("1kHz", plant=plant) for name in names)
        first.simulate(cycles=4000 * len(names), swaps={4000 * (n + 1): law for n, law in enumerate(others)})
        assert not plant.has_fallen
        return plant.samples

    every = "Upright", "Slower", "Centred", "Integrating", "Smooth", "Walking"
    samples = swap(*every)
    assert np.array_equal(samples, swap(*every)), "to the bit"
    assert samples[:, 3].tolist() == list(range(24000)), "each cycle has moved the plant once"
    jumps = np.abs(np.diff(samples[:, 2]))
    assert jumps[[3999, 7999]].min() > 1 and jumps[[11999, 15999, 19999]].max() < 0.05, (
        "those that take over do not jump"
    )
    tilt = abs(swap("Centred")[-1, 1]), abs(swap("Centred", "Integrating", "Integrating")[-1, 1])
    assert tilt[1] < tilt[0], "the integral brings the cart back to the middle of a table that is not level"
    assert run(copy / "rewritten_law", "--seconds", "0.5").count(" deg ") == 6
