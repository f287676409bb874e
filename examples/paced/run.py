"""Follow a sensor with a fast clock, by waiting for it and by moving the grid; for 0.1 s the sensor is silent."""

import argparse

import numpy as np
from paced import Follower, Sensor, Waiter

from rtloop import LoopGroup

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=int, default=4, choices=range(2, 31), metavar="2..30")
parser.add_argument("--plot", metavar="FILE", help="draw how the follower locks, and the age of the data of both")
arguments = parser.parse_args()

PERIOD_NS, FAST_PPM, NOISE_NS, DELAY_NS = 2_000_000, 200, 20_000, 300_000
half = arguments.seconds * 250
waiter = Waiter(PERIOD_NS, name="waiter", guard="count", strict=False)
follower = Follower(PERIOD_NS, delay=DELAY_NS, phase="700us", name="follower", strict=False)
sensor = Sensor(
    PERIOD_NS - PERIOD_NS * FAST_PPM // 1_000_000,
    to=[waiter.address, follower.address], noise=NOISE_NS, quiet=half, until=half + 50, name="sensor", strict=False,
)  # fmt: skip
stats = LoopGroup([sensor, waiter, follower], name="paced").run(f"{arguments.seconds}s")
print(f"{stats['waiter']}\n\n{stats['follower']}\n")

# Phase error of the follower's releases: from the records, not from the sensor's messages.
ticks, releases = (stats[name].records["release"] for name in ("sensor", "follower"))
away = releases - DELAY_NS - ticks[0]
period = sensor.settings.period_ns
away = (away - period * np.round(away / period)) / 1000
t = (releases - ticks[0]) / 1e9
settled = t > 1
waited, followed = (loop.log.drain() for loop in (waiter, follower))
new = np.diff(waited["number"], prepend=0) > 0
ages = [np.median(age) / 1000 for age in (waited["age"][new], followed["age"][settled])]
print(f"waiter: starts {ages[0]:.0f} us after the tick (median); {waiter.timeouts} timeouts")
print(
    f"follower: starts {ages[1]:.0f} us after the tick (median); its releases are off by at most"
    f" {np.abs(away[settled]).max():.1f} us"
)
print(
    f"the sensor's clock is {followed['ppm'][settled].mean():.0f} ppm fast: without shift the releases would have"
    f" drifted by {FAST_PPM * arguments.seconds} us"
)
if not stats["sensor"].missed and not stats["follower"].missed and np.abs(away[settled]).max() > 50:
    raise SystemExit("the follower lost the sensor")

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.axhline(0, color="black", linewidth=0.7)
    free = away[0] + (t - t[0]) * FAST_PPM
    upper.plot(t, free, "--", color="#D55E00", label="without shift")
    upper.plot(t, away, color="#0072B2", label="with shift")
    upper.set_ylabel("phase error of the release (us)")
    for loop, log, colour in (("waiter", waited, "#009E73"), ("follower", followed, "#0072B2")):
        log = log[log["number"] > 0]
        lower.plot((log["start"] - ticks[0]) / 1e9, log["age"] / 1000, ".", markersize=2, color=colour, label=loop)
    lower.set_yscale("log")
    lower.set_ylabel("age of the newest message (us)")
    lower.set_xlabel("time (s)")
    for axes in (upper, lower):
        axes.legend(loc="upper left", frameon=False, markerscale=4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)
