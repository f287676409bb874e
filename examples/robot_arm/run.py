"""Hold a simulated 7-axis robot by impedance control, let somebody lean on it, and finally lose some packets."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from robot_arm import MOST_TORQUE, Arm

import rtloop

rtloop.guard.reexec()  # lets the guard count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument(
    "--lose", type=int, default=30, help="answers that get lost at the end; the robot tolerates 20 in a row"
)
parser.add_argument("--tolerance", type=int, default=20, help="how many lost answers the robot tolerates")
parser.add_argument("--plot", metavar="FILE", help="draw how the joints yield and return, and the torques")
arguments = parser.parse_args()

command = [sys.executable, "robot.py", "--tolerance", str(arguments.tolerance)]
robot = subprocess.Popen(
    command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
)
with robot:  # waits for its end; it ends when its input closes, however this process ends
    arm = Arm(
        "1kHz", robot=("127.0.0.1", int(robot.stdout.readline())), lose=(1800, arguments.lose), name="arm",
        guard="count", guard_allow=("recvfrom", "sendto"), strict=False,
    )  # fmt: skip
    try:
        stats = arm.run(cycles=2200)
    finally:
        report = robot.communicate()[0]

log = arm.log.drain()
moved = np.degrees(log["q"] - log["q"][0])
age = log["age"][min(100, len(log) // 2) :] / 1000  # the first states were waiting when the loop started
print(f"{stats}\n\n{report}")
print(f"the arm's loop ended: {arm.ended_by}")
print(f"the step began {np.median(age):.0f} us after the robot sent its state (median), at most {age.max():.0f} us")
print(
    f"the arm was pushed away by {np.abs(moved).max():.1f} degrees, and returned to"
    f" {np.abs(moved[-1]).max():.2f} degrees; {arm.limited} cycles with a torque at its limit"
)
count = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", report.splitlines()[-1])}
if count["answered"] + count["late"] != count["moves"]:
    raise SystemExit("the robot's counts do not add up")
if np.any(np.abs(log["torque"]) > MOST_TORQUE):
    raise SystemExit("a torque exceeded its limit")
if stats.guard["system_calls"] or stats.guard["allocations"]:
    raise SystemExit(stats.guard_sentence)
if "answers too late" in arm.ended_by and count["longest"] <= arguments.tolerance:
    raise SystemExit("the robot stopped within its tolerance")

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for joint, colour in enumerate(("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7")):
        upper.plot(log["t"], moved[:, joint], color=colour, label=f"joint {joint + 1}")
        lower.plot(log["t"], log["torque"][:, joint], color=colour)
    upper.set_title("A push of half a second on the arm: it yields like a spring, and returns")
    upper.set_ylabel("displacement (degrees)")
    upper.legend(ncols=2, frameon=False)
    lower.set_ylabel("torque (Nm)")
    lower.set_xlabel("time (s)")
    if len(log):
        lower.annotate(arm.ended_by, (log["t"][-1], 0), (-8, -60), textcoords="offset points", ha="right",
                       arrowprops={"arrowstyle": "->"})  # fmt: skip
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)
