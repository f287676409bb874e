"""Balance a pole that another process simulates: once on time, and once with late answers."""

import argparse
import json
import subprocess
import sys

import numpy as np
from cart_pole_udp import Controller

import rtloop

rtloop.guard.reexec()  # lets the guard count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=int, default=4, choices=range(1, 31), metavar="1..30")
parser.add_argument("--delay", type=int, default=20, choices=range(64), metavar="0..63", help="in the second run, ms")
parser.add_argument("--plot", metavar="FILE", help="draw the pole's angle and the force in both runs")
arguments = parser.parse_args()


def balance(delay: int) -> tuple[Controller, np.ndarray, dict]:
    """Let the controller balance the pole; return it, its log, and the plant's report on the pole."""
    command = [sys.executable, "-m", "rtloop.demo.plant", str(arguments.seconds * 10**9), "3", "1000000"]
    plant = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # it ends when its input closes, however this process ends
    with plant:
        address = ("127.0.0.1", json.loads(plant.stdout.readline())["port"])
        loop = Controller(
            "1kHz", plant=address, delay=delay, name=f"{delay} ms late" if delay else "on time", guard="count",
            guard_allow=("recvfrom", "sendto"), strict=False,
        )  # fmt: skip
        loop.run(f"{arguments.seconds}s")
        return loop, loop.log.drain(), json.loads(plant.communicate("stop\n")[0])


runs = [balance(0), balance(arguments.delay)]
print(f"{runs[0][0].stats}\n")
for loop, log, pole in runs:
    fate = f"fell after {pole['fell_at_s']:.2f} s" if pole["fell_at_s"] else "stood"
    print(
        f"{loop.name}: the pole {fate}, and leant by at most {pole['worst_angle_deg']:.1f} degrees; a force acted on"
        f" a state at most {pole['oldest_state_ms']:.1f} ms old"
    )
    age = log["age"][len(log) // 10 :] / 1000
    print(
        f"    {loop.heard:,} of {pole['states_sent']:,} states heard, the newest {np.median(age):.0f} us old (median);"
        f" {pole['forces_received']:,} of {loop.sent:,} forces received"
    )
    if loop.heard > pole["states_sent"] or pole["forces_received"] > loop.sent:
        raise SystemExit("more datagrams were received than were sent")
    if loop.stats.guard["system_calls"] or loop.stats.guard["allocations"]:
        raise SystemExit(loop.stats.guard_sentence)
if runs[0][2]["fell_at_s"] and runs[0][2]["oldest_state_ms"] < 4:
    raise SystemExit("the pole fell although the controller was on time")

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for (loop, log, pole), colour in reversed(list(zip(runs, ("#0072B2", "#D55E00"), strict=True))):
        angle = pole["trace"]["angle_deg"]
        upper.plot(np.arange(len(angle)) * pole["trace"]["interval_s"], angle, color=colour,
                   label=loop.name)  # fmt: skip
        lower.plot(log["t"], log["force"], color=colour, linewidth=0.8)
    upper.set_title(
        f"Two pushes a second: without delay the pole hardly leans, with a delay of {arguments.delay} ms it sways"
    )
    upper.set_ylabel("angle of the pole (degrees)")
    upper.margins(y=0.2)
    upper.legend(loc="upper right", ncols=2, frameon=False)
    lower.set_ylabel("force on the cart (N)")
    lower.set_xlabel("time (s)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)
