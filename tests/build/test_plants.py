"""Examples whose step calls a simulator or a solver of others: they compute what its own Python interface computes."""

from __future__ import annotations

import errno
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop


@pytest.fixture
def place(
    built_example: Callable[[str], Path], example_cache: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """The folder of an example; its modules are built there as in a run of it."""

    def place(name: str) -> Path:
        folder = built_example(name)
        for variable, value in example_cache.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.chdir(folder)
        return folder

    return place


class TestMuJoCo:
    @pytest.fixture
    def balancer(self, place: Callable[[str], Path]) -> ModuleType:
        return rtloop.build(place("mujoco") / "balancer.pyx")

    @pytest.fixture
    def model(self, balancer: ModuleType) -> Any:
        return importlib.import_module("mujoco").MjModel.from_xml_path("balancer.xml")

    def test_the_robot_falls_as_in_python(self, balancer: ModuleType, model: Any) -> None:
        mujoco = importlib.import_module("mujoco")
        data, python = mujoco.MjData(model), mujoco.MjData(model)
        data.qpos[2] = python.qpos[2] = 0.1
        plant = balancer.Plant(model, data)
        plant.simulate("500ms")
        log = plant.log.drain()
        for state in log:
            mujoco.mj_step(model, python)
            assert np.array_equal(state["q"], python.qpos) and state["time"] == python.time
        assert len(log) == 500 and python.qpos[2] > 1, "it has fallen"

    def test_missed_releases_cost_no_simulated_time(self, balancer: ModuleType, model: Any) -> None:
        plant = balancer.Plant(model, importlib.import_module("mujoco").MjData(model))
        stats = plant.simulate("1s", execution=["10us"] * 9 + ["3500us"])
        assert stats.missed > 100
        log = plant.log.drain()
        assert log["time"] == pytest.approx((log["release"] - log["release"][0]) * 1e-9 + 1e-3)

    def test_a_controller_without_gains_lets_the_motor_rest(self, balancer: ModuleType, model: Any) -> None:
        plant = balancer.Plant(model, importlib.import_module("mujoco").MjData(model))
        controller = balancer.Balance("2ms", plant, 0, 0)
        rtloop.simulate([plant, controller], "100ms")
        assert not plant.log.drain()["torque"].any()

    def test_another_model_is_refused(self, balancer: ModuleType) -> None:
        mujoco = importlib.import_module("mujoco")
        model = mujoco.MjModel.from_xml_string("<mujoco/>")
        with pytest.raises(ValueError, match="the model has 0 positions and 0 motors"):
            balancer.Plant(model, mujoco.MjData(model))


class TestModelPredictiveControl:
    @pytest.fixture
    def mpc(self, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(str(place("mpc")))
        return rtloop.build("mpc.pyx")

    @pytest.mark.parametrize(("kind", "rope"), [("Linear", 1.0), ("Nonlinear", 1.5)])
    def test_the_load_arrives_and_swings_no_more_than_it_may(self, mpc: ModuleType, kind: str, rope: float) -> None:
        loop = getattr(mpc, kind)(in_virtual_time=True)
        loop.parameters.update(goal=1.0, rope=rope)
        loop.simulate("5s")
        log = loop.log.drain()
        assert np.abs(log["z"][:, 2]).max() < 0.125, "the limit is 0.12 rad"
        assert np.abs(log["z"][:, 1]).max() < 1.01, "m/s"
        assert log["z"][-1, [0, 4]] == pytest.approx([1.0, rope], abs=0.05)
        assert loop.unsolved == 0 and loop.worst == log["solving"].max() > 0

    def test_the_first_answer_is_that_of_the_solver_in_python(self, mpc: ModuleType) -> None:
        crane = importlib.import_module("crane")
        loop = mpc.Nonlinear(in_virtual_time=True)
        loop.simulate(cycles=1)
        values = np.array(crane.nonlinear_step()([0, 0, 0, 0, 1, 0, 0, 1], 0, 0, 0)[0]).ravel()
        assert loop.log.drain()["u"][0] == pytest.approx(values[:2], abs=1e-12)


class TestHumanoid:
    @pytest.fixture
    def make(self, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
        monkeypatch.syspath_prepend(str(place("humanoid")))
        robot, humanoid = importlib.import_module("robot"), rtloop.build("humanoid.pyx")
        it = robot.load()

        def make(**parameters: float) -> list[Any]:
            body = humanoid.Robot(it.model, robot.standing(it))
            drives = humanoid.Drives("1kHz", body, it.kp, it.kd, it.limit, robot.DEFAULT, phase="300us")
            policy = humanoid.Policy(
                "50Hz", body, drives, robot.runtime(), it.policy, robot.DEFAULT, robot.ACTION_SCALE, phase="500us"
            )
            for name, value in parameters.items():
                (body if name in body.parameters else policy).parameters[name] = value
            return [body, drives, policy]

        return make

    def test_it_walks_where_it_is_told_and_each_time_alike(self, make: Callable[..., list[Any]]) -> None:
        logs = []
        for _ in range(2):
            loops = make(forward=0.5)
            rtloop.simulate(loops, "4s")
            logs.append(loops[0].log.drain())
        x, y, height = logs[0]["position"][-1]
        assert x > 1 and abs(y) < 0.3 and height > 0.7
        assert np.array_equal(*logs)

    def test_it_stands_when_pushed_and_a_fall_is_a_failure(self, make: Callable[..., list[Any]]) -> None:
        loops = make(push=100, every=1)
        rtloop.simulate(loops, "5s")
        assert loops[0].pushes > 2 and loops[0].log.drain()["position"][:, 2].min() > 0.6
        loops = make(push=500, every=0.5)
        with pytest.raises(rtloop.CallbackError, match="ECANCELED"):
            rtloop.simulate(loops, "20s")

    def test_a_fall_in_real_time_is_a_result_and_another_failure_an_error(self, make: Callable[..., list[Any]]) -> None:
        robot = importlib.import_module("robot")
        body, drives, _ = make(push=500, every=0.5)  # nothing balances it
        with robot.may_fall(body), rtloop.LoopGroup([body, drives], on_failure="keep") as group:
            end = time.monotonic() + 30
            while body.state == "running" and time.monotonic() < end:
                time.sleep(0.01)
            assert (body.state, drives.state, group.state) == ("failed", "running", "running")
        assert drives.state == "stopped" and body.log.drain()["position"][-1, 2] < 0.6
        for name, symbol in ((drives.name, -errno.ECANCELED), (body.name, -errno.EIO)):
            with pytest.raises(rtloop.CallbackError), robot.may_fall(body):
                raise rtloop.CallbackError(symbol, "step", name, 1)

    def test_the_network_computes_what_it_does_in_python(self, make: Callable[..., list[Any]]) -> None:
        onnxruntime, robot = importlib.import_module("onnxruntime"), importlib.import_module("robot")
        network = make()[2].network
        observed = np.random.default_rng(seed=3).normal(size=100).astype("f4")
        session = onnxruntime.InferenceSession(robot.load().policy)
        assert network(observed) == pytest.approx(session.run(None, {"actor_obs": observed[None]})[0][0], abs=1e-5)
        with pytest.raises(ValueError, match="99 values; the network takes 100"):
            network(observed[:99])

    def test_a_policy_for_drives_with_the_targets_of_another_process_is_refused(
        self, make: Callable[..., list[Any]]
    ) -> None:
        (body, drives, policy), robot = make(), importlib.import_module("robot")
        values = [0.0] * len(robot.DEFAULT)
        theirs = type(drives)("1kHz", body, values, values, values, robot.DEFAULT, share=f"policy-{os.getpid()}")
        with pytest.raises(ValueError, match="from another process"):
            type(policy)("50Hz", body, theirs, robot.runtime(), robot.policy_file(), robot.DEFAULT, robot.ACTION_SCALE)

    def test_a_file_that_is_no_network_is_reported(self, make: Callable[..., list[Any]]) -> None:
        loops, robot = make(), importlib.import_module("robot")
        with pytest.raises(RuntimeError, match=r"ONNX Runtime: .*run\.py"):
            type(loops[2].network)(robot.runtime(), Path("run.py"), "actor_obs", "action")


class TestFMU:
    @pytest.fixture
    def plant(self, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(str(place("fmu")))
        return importlib.import_module("plant")

    def test_its_time_and_position_are_those_of_fmpy_also_after_missed_releases(
        self, plant: ModuleType, tmp_path: Path
    ) -> None:
        fmu, fmpy = importlib.import_module("fmu"), importlib.import_module("fmpy")
        slave, force, position = plant.initialised(tmp_path, fmu.logger_address())
        loop = fmu.Controlled(slave, force, position, force=20.0)
        stats = loop.simulate("300ms", execution=["10us"] * 9 + ["1500us"])
        log = loop.log.drain()
        forces = np.array([(0.0, 20.0)], dtype=[("time", "f8"), ("f", "f8")])
        theirs = fmpy.simulate_fmu(str(plant.find()), stop_time=0.3, output_interval=1e-3, input=forces, output=["y"])
        at = np.round(log["t"] * 1000).astype(int)
        assert stats.missed > 20 and len(log) == stats.cycles and at[-1] > len(log)
        assert np.array_equal(log["position"], theirs["y"][at])


class TestAdaptiveOptics:
    @pytest.fixture
    def optics(self, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(str(place("adaptive_optics")))
        return importlib.import_module("adaptive_optics")

    def test_an_integrator_removes_a_constant_wavefront(self, optics: ModuleType) -> None:
        sensor = np.array([[1.0, 0.5], [0.0, 2.0], [1.0, 1.0]])
        loop = optics.AdaptiveOptics(
            "1kHz", sensor=sensor, reconstructor=np.linalg.pinv(sensor), turbulence=np.array([[3.0, -4.0]]),
            noise=np.zeros((1, 3)),
        )  # fmt: skip
        loop.parameters.update(gain=0.5, leak=1.0)
        loop.simulate(cycles=20)
        log = loop.log.drain()
        assert log["closed"] == pytest.approx(np.sqrt(12.5) * 0.5 ** np.arange(20), rel=1e-9)
        assert not loop.commands_array.any(), "leave flattens the mirror"

    def test_matrices_that_do_not_fit_are_refused(self, optics: ModuleType) -> None:
        with pytest.raises(ValueError, match="do not match"):
            optics.AdaptiveOptics(
                "1kHz", sensor=np.ones((3, 2)), reconstructor=np.ones((3, 2)), turbulence=np.ones((1, 2)),
                noise=np.ones((1, 3)),
            )  # fmt: skip
