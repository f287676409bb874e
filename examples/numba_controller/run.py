"""Move a load by 2 m, simulated; then there and back in real time, while Python sets the goal."""

import argparse
import sys
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--python", action="store_true", help="run the same functions in Python, without Numba")
parser.add_argument("--seconds", type=float, default=10)
parser.add_argument("--plot", metavar="FILE", help="draw the positions of trolley and load")
arguments = parser.parse_args()
if arguments.python:
    sys.modules["numba"] = None  # as if it were not installed

from crane import ROPE, make_loop, new_crane, numba  # noqa: E402

crane = new_crane(goal=2.0)
loop = make_loop(crane)
make_loop(new_crane()).simulate(cycles=100)  # warm up: the first time takes longer
begin = time.perf_counter()
cycles = loop.simulate("20s").cycles
took = (time.perf_counter() - begin) / cycles
print(f"{'compiled' if numba else 'in Python'}: {took * 1e9:,.0f} ns per simulated cycle")
print(f"simulated: at {crane.position[0]:.9f} m after 20 s, the rope at most at {crane.worst[0]:.9f} rad\n")

crane = new_crane()
log = []
with make_loop(crane, guard="count", strict=False, name="crane") as loop:
    begin = time.monotonic()
    while (t := time.monotonic() - begin) < arguments.seconds:
        crane.goal = 2.0 if t < arguments.seconds / 2 else 0.0  # the loop sees it in its next cycle
        log.append((t, crane.goal[0], crane.position[0], crane.angle[0]))
        time.sleep(0.02)
stats = loop.stats
print(stats)
print(f"\nin real time: finally at {crane.position[0]:.3f} m, the rope at most at {crane.worst[0]:.3f} rad")
if numba and stats.guard["system_calls"]:
    raise SystemExit(stats.guard_sentence)

if arguments.plot:
    import numpy as np
    from matplotlib.figure import Figure

    t, goal, position, angle = np.array(log).T
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.step(t, goal, "--", where="post", color="black", linewidth=1, label="goal")
    axes.plot(t, position, color="#0072B2", label="trolley")
    axes.plot(t, position + ROPE * np.sin(angle), color="#D55E00", label="load")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("position (m)")
    axes.legend(loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)
