"""Let a humanoid walk by a neural network: in real time next to a busy Python thread, and in virtual time."""

import argparse
import os
import threading
import time

if "DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a display; read when MuJoCo is imported

import authors
import numpy as np
import robot

import rtloop

rtloop.guard.reexec()  # lets the guards count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=float, default=10, help="length of the run in real time; 0: none")
parser.add_argument("--virtual", default="8s", metavar="TIME", help="length of the run in virtual time, such as 1h")
parser.add_argument("--forward", type=float, default=0.5, help="commanded speed, m/s; 0: it stands")
parser.add_argument("--push", type=float, default=0, help="pushes of 0.1 s in random directions, N, every few seconds")
parser.add_argument("--policy", choices=("fastsac", "ppo"), default="fastsac")
parser.add_argument(
    "--authors", action="store_true", help="also let the authors' Python loop control it, see authors.py"
)
parser.add_argument("--plot", metavar="FILE", help="draw the path and the height of the pelvis")
parser.add_argument("--picture", metavar="FILE", help="render five postures of the run in virtual time")
arguments = parser.parse_args()

humanoid = rtloop.build("humanoid.pyx")
it = robot.load(arguments.policy)


def make(share: str | None = None, log_every: int = 10, target: str | None = None) -> list[rtloop.RTLoop]:
    """Return the robot, its drives and, unless another process writes their targets, its policy."""
    settings = {"guard": "count", "strict": False}
    body = humanoid.Robot(it.model, robot.standing(it), share=share, log_every=log_every, name="robot", **settings)
    drives = humanoid.Drives(
        "1kHz", body, it.kp, it.kd, it.limit, robot.DEFAULT, share=target, name="drives", phase="300us", **settings
    )
    body.parameters["push"] = arguments.push
    if target is not None:  # another process has the policy
        return [body, drives]
    policy = humanoid.Policy(
        "50Hz", body, drives, robot.runtime(), it.policy, robot.DEFAULT, robot.ACTION_SCALE, name="policy",
        phase="500us", tune_malloc=True, **settings,
    )  # fmt: skip
    policy.parameters["forward"] = arguments.forward
    return [body, drives, policy]


def spin() -> None:
    """Keep the interpreter busy."""
    while not is_over.is_set():
        sum(range(1000))


def summary(log: np.ndarray, pushes: int) -> str:
    """Return a summary of the robot's motion."""
    away, low = np.hypot(*(log["position"][-1] - log["position"][0])[:2]), log["position"][:, 2].min()
    lean = np.degrees(np.arccos(min(1, log["upright"].min())))
    return (
        f"{away:.2f} m away after {log['time'][-1]:.1f} s and {pushes:,} pushes; "
        f"pelvis never below {low:.2f} m, nor inclined by more than {lean:.0f} degrees"
    )


if arguments.seconds:
    share = f"humanoid-{os.getpid()}/pose"
    loops = make(share)
    print(f"watch it: python view.py {share}")
    group, parts, is_over = rtloop.LoopGroup(loops, name="humanoid"), [], threading.Event()
    busy = threading.Thread(target=spin)
    busy.start()
    try:
        with group:
            end = time.monotonic() + arguments.seconds
            while time.monotonic() < end and group.state == "running":
                time.sleep(min(1, max(0, end - time.monotonic())))
                parts.append(loops[0].log.drain())
    finally:
        is_over.set()
        busy.join()
    stats = group.stats
    for one in stats.values():
        print(one, "\n")
    real = np.concatenate([*parts, loops[0].log.drain()])
    print("real time:", summary(real, loops[0].pushes))
    for name, one in stats.items():
        print(f"{name}: {one.guard_sentence}")
        if name != "policy" and (one.guard["system_calls"] or one.guard["allocations"]):
            raise SystemExit("a step that must not has made a system call or an allocation")
    if arguments.forward and real["position"][-1, 0] < 0.5 * arguments.forward * (arguments.seconds - 2):
        raise SystemExit("the robot has not walked")

if arguments.authors:
    for is_busy in (False, True):
        share = f"humanoid-{os.getpid()}-{is_busy}"
        body, drives = make(f"{share}/pose", target=f"{share}/target")
        body.parameters["held"] = 1
        print(f"\nthe authors' loop, {'next to a busy thread' if is_busy else 'alone'}:", flush=True)
        with robot.may_fall(body), rtloop.LoopGroup([body, drives], name="theirs", on_failure="keep"):
            options = [f"--seconds={arguments.seconds}", f"--forward={arguments.forward}", *["--busy"] * is_busy]
            with authors.start(authors.FOLDER, f"{share}/pose", f"{share}/target", *options) as process:
                body.parameters["held"] = 0
                print(process.stdout.read().strip())
        print("it has fallen:" if body.state == "failed" else "it walks:", summary(body.log.drain(), body.pushes))

began = time.perf_counter()
body, drives, policy = make(log_every=100)
rtloop.simulate([body, drives, policy], arguments.virtual)
took = time.perf_counter() - began
virtual = body.log.drain()
print(f"virtual time, computed in {took:.1f} s:", summary(virtual, body.pushes))

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    path, height = figure.subplots(2)
    logs = {"virtual time": (virtual, "#D55E00")}
    if arguments.seconds:
        logs["real time, next to a busy Python thread"] = (real, "#0072B2")
    for label, (log, colour) in logs.items():
        path.plot(log["position"][:, 0], log["position"][:, 1], color=colour, label=label)
        height.plot(log["time"], log["position"][:, 2], color=colour)
    path.set_xlabel("x (m)")
    path.set_ylabel("y (m)")
    path.set_aspect("equal", adjustable="datalim")
    path.legend(frameon=False)
    height.set_xlabel("time (s)")
    height.set_ylabel("height of the pelvis (m)")
    for axes in (path, height):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)

if arguments.picture:
    import matplotlib.image
    from view import Camera

    body, drives, policy = make()
    camera, parts = Camera(it.model, 320, 400), []
    for length in ("100ms", "900ms", "300ms", "300ms", "300ms"):  # the motion goes on from one to the next
        rtloop.simulate([body, drives, policy], length)
        parts.append(camera.render(body.pose.read()))
    matplotlib.image.imsave(arguments.picture, np.hstack(parts))
