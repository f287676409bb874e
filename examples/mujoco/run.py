"""Drive a simulated robot over a bump and push it: in real time, once more in virtual time, and in plain Python."""

import argparse
import os
import threading
import time

if "DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a display; read when MuJoCo is imported

import mujoco
import numpy as np
from scipy.linalg import solve_discrete_are

import rtloop

rtloop.guard.reexec()  # lets the guards count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=float, default=8, help="length of the run")
parser.add_argument("--plot", metavar="FILE", help="draw position and pitch")
parser.add_argument("--picture", metavar="FILE", help="render the robot at five times of the run")
arguments = parser.parse_args()

balancer = rtloop.build("balancer.pyx")
model = mujoco.MjModel.from_xml_path("balancer.xml")
EVERY = 2  # physics steps for each step of the controller


def at_rest() -> mujoco.MjData:
    """Return the robot upright on the ground, its weight on its wheels."""
    data = mujoco.MjData(model)
    for _ in range(1000):
        mujoco.mj_step(model, data)
        data.qpos[[0, 2, 3]] = data.qvel[:] = 0
    data.time = 0
    mujoco.mj_forward(model, data)
    return data


def linear_gains(rest: mujoco.MjData) -> np.ndarray:
    """Return the gains of a linear-quadratic regulator for the model near that state, from MuJoCo's derivatives."""
    a, b = np.zeros((2 * model.nv, 2 * model.nv)), np.zeros((2 * model.nv, 1))
    mujoco.mjd_transitionFD(model, rest, 1e-6, True, a, b, None, None)
    b = sum(np.linalg.matrix_power(a, i) @ b for i in range(EVERY))
    a = np.linalg.matrix_power(a, EVERY)
    used = [0, 1, 2, 4, 5, 6, 7]  # nothing depends on the angle of the wheels
    a, b = a[np.ix_(used, used)], b[used]
    cost = np.diag([50.0, 0, 100, 5, 0, 5, 0.01])
    p = solve_discrete_are(a, b, cost, [[0.5]])
    gains = np.zeros(2 * model.nv)
    gains[used] = np.linalg.solve(0.5 + b.T @ p @ b, b.T @ p @ a)[0]
    return gains


def make() -> tuple[rtloop.RTLoop, rtloop.RTLoop]:
    """Return a robot and its controller."""
    data = at_rest()
    plant = balancer.Plant(model, data, name="plant", guard="count", strict=False)
    gains, rest = linear_gains(at_rest()), at_rest().qpos
    period = f"{EVERY * model.opt.timestep * 1e3:g}ms"
    return plant, balancer.Balance(
        period, plant, gains, rest, name="balance", phase="200us", guard="count", strict=False
    )


def spin() -> None:
    """Keep the interpreter busy."""
    while not is_over.is_set():
        sum(range(1000))


plant, controller = make()
group = rtloop.LoopGroup([plant, controller], name="balancer")
is_over = threading.Event()
busy = threading.Thread(target=spin)
busy.start()
try:
    with group:
        start = time.monotonic()
        for at, loop, name, value in (
            (0.10, controller, "goal", 1.5),
            (0.70, plant, "push", 40.0),
            (0.72, plant, "push", 0.0),
        ):
            time.sleep(max(0, start + at * arguments.seconds - time.monotonic()))
            loop.parameters[name] = value
        time.sleep(max(0, start + arguments.seconds - time.monotonic()))
finally:
    is_over.set()
    busy.join()
stats = group.stats
real = plant.log.drain()
for one in stats.values():
    print(one, "\n")

# The same changes of goal and push at the same cycles, in virtual time: the same motion.
again, its_controller = make()
changes = {again: stats["plant"].parameter_changes, its_controller: stats["balance"].parameter_changes}
began = time.perf_counter()
rtloop.simulate([again, its_controller], f"{round(real['time'][-1] * 1000)}ms", parameters=changes)
took = time.perf_counter() - began
virtual = again.log.drain()


def in_python() -> np.ndarray:
    """Return the positions that MuJoCo's Python interface computes, with the controller in Python."""
    data, gains, rest = at_rest(), linear_gains(at_rest()), at_rest().qpos.copy()
    limit, reference, positions = model.actuator_ctrlrange[0, 1], 0.0, []
    values = {"goal": 0.0, "push": 0.0, "speed": 0.5}
    for i in range(len(virtual)):
        for one in stats["plant"].parameter_changes:
            if one.cycle == i:
                values |= one.values
        data.xfrc_applied[1, 0] = values["push"]
        mujoco.mj_step(model, data)
        positions.append(data.qpos.copy())
        if i % EVERY == 0:
            for one in stats["balance"].parameter_changes:
                if one.cycle == i // EVERY:
                    values |= one.values
            most = values["speed"] * EVERY * model.opt.timestep
            reference += max(-most, min(most, values["goal"] - reference))
            error = [*(data.qpos - rest), *data.qvel]
            error[0] -= reference
            torque = 0.0
            for gain, part in zip(gains, error, strict=True):
                torque -= gain * part
            data.ctrl[0] = max(-limit, min(limit, torque))
    return np.array(positions)


python = np.abs(virtual["q"] - in_python()).max()
print(f"virtual time: {len(virtual) / 1000:.1f} s computed in {took:.2f} s")
print(f"MuJoCo's Python interface, with the controller in Python, differs from that by {python:.1e} m or rad")
if not any(one.missed for one in stats.values()):
    both = min(len(real), len(virtual))
    real_time = np.abs(real["q"][:both] - virtual["q"][:both]).max()
    print(f"real time differs from virtual time by at most {real_time:.1e} m or rad")
position, lean = real["q"][-1, 0], np.degrees(np.abs(real["q"][:, 2]).max())
print(f"the robot is at {position:.3f} m; it leaned by at most {lean:.1f} degrees")
if python > 1e-9:
    raise SystemExit("the compiled loops do not compute what Python computes")
passed = (real["release"] - real["release"][0]) * 1e-9 + model.opt.timestep
if np.diff(real["release"]).max() < 100e6 and np.abs(real["time"] - passed).max() > 1e-6:  # no gap that was too long
    raise SystemExit("the simulator's time is not that of the loop")
for name, one in stats.items():
    if one.guard["system_calls"] or one.guard["allocations"]:
        raise SystemExit(f"{name}: {one.guard_sentence}")

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    rows = figure.subplots(3, sharex=True)
    for axes, values, label in (
        (rows[0], real["q"][:, 0], "position (m)"),
        (rows[1], np.degrees(real["q"][:, 2]), "pitch (degrees)"),
        (rows[2], real["torque"], "torque (Nm)"),
    ):
        axes.plot(real["time"], values, color="#0072B2", lw=1.2)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    for change in stats["plant"].parameter_changes:
        if change.values.get("push"):
            for axes in rows:
                axes.axvspan(
                    change.cycle / 1000, (change.cycle + 20 * arguments.seconds) / 1000, color="#E69F00", alpha=0.4
                )
    rows[0].axhline(0.7, color="0.6", lw=0.8, ls="--")
    rows[0].text(0, 0.72, "bump", color="0.4")
    rows[2].set_xlabel("time (s)")
    figure.savefig(arguments.plot, dpi=100)

if arguments.picture:
    import matplotlib.image

    renderer = mujoco.Renderer(model, 300, 300)
    data, parts = at_rest(), []
    for at in (0.05, 0.4, 0.55, 0.74, 1):
        data.qpos[:] = real["q"][int(at * (len(real) - 1))]
        mujoco.mj_forward(model, data)
        camera = mujoco.MjvCamera()
        camera.lookat[:], camera.distance, camera.azimuth, camera.elevation = [data.qpos[0], 0, 0.3], 1.5, 70, -12
        renderer.update_scene(data, camera)
        parts.append(renderer.render())
    matplotlib.image.imsave(arguments.picture, np.hstack(parts))
