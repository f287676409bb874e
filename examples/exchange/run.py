"""Move the setpoint from Python while the loop runs, read its log, and print where the cart was each time."""

import argparse
import time

import numpy as np
from exchange import Follower

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--plot", metavar="FILE", help="draw the setpoint and the cart")
arguments = parser.parse_args()

loop = Follower("1kHz", strict=False)
parts = []
with loop:
    for setpoint in (0.1, -0.1, 0.2, 0.0):
        loop.parameters.write((setpoint, 900.0, 60.0))  # all three change in the same cycle
        for _ in range(10):
            time.sleep(0.05)
            parts.append(loop.log.drain())  # copies; loop.log.view() shows them in place
parts.append(loop.log.drain())
log = np.concatenate(parts)

print(loop.stats)
moves = np.flatnonzero(np.diff(log["setpoint"])) + 1
for part in np.split(log, moves):
    first, last = part[0], part[-1]
    print(f"from {first['t']:.3f} s: setpoint {last['setpoint']:+.2f} m, reached {last['position']:+.4f} m")
print(f"{len(log)} records, {loop.log.dropped} dropped, at most {loop.log.high_water} waited for Python")
if len(log) + loop.log.dropped != loop.stats.cycles:
    raise SystemExit(f"{loop.stats.cycles} cycles, but {len(log)} records and {loop.log.dropped} dropped")

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(log["t"], log["setpoint"], "--", color="#D55E00", label="setpoint, from Python")
    axes.plot(log["t"], log["position"], color="#0072B2", label="cart, every cycle")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("position (m)")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)
