"""Tune a motor while it turns: after each change it makes a step of one radian, and its response is printed."""

import argparse
import sys
import time

import numpy as np
from pid_motor import Motor

import rtloop

rtloop.guard.reexec()  # lets the guard count allocations as well

TUNINGS = ("kp=10 ki=0 kd=0", "kd=0.15", "kp=15 ki=40 kd=0.2")
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--live", action="store_true", help="read tunings from standard input, one per line: kp=8 kd=0.1")
parser.add_argument("--plot", metavar="FILE", help="draw the steps")
arguments = parser.parse_args()


def make_step(loop: Motor) -> np.ndarray:
    """Turn the motor to the other end, and return the samples from then on."""
    loop.signals.read()
    target = 1.0 - loop.parameters["setpoint"]
    loop.parameters["setpoint"] = target
    time.sleep(0.7)
    log = loop.signals.read()
    return log[log["setpoint"] == target]


steps = {}
loop = Motor("1kHz", name="motor", guard="count", strict=False)
with loop:
    print("     kp      ki      kd   overshoot   within 2 % after      final error")
    for line in sys.stdin if arguments.live else TUNINGS:
        try:
            loop.parameters.update({name: float(value) for name, value in (word.split("=") for word in line.split())})
        except (KeyError, ValueError) as error:  # a ConfigError is a ValueError
            print(error)
            continue
        time.sleep(0.2)
        log = make_step(loop)
        way = log["setpoint"][0] - log["angle"][0]
        done = 100 * (log["angle"] - log["angle"][0]) / way
        t = (log["release"] - log["release"][0]) / 1e6
        used = loop.parameters
        far = np.flatnonzero(np.abs(done - 100) > 2)
        settled = f"{t[far[-1] + 1]:.0f} ms" if far[-1] + 1 < len(t) else "never"
        print(
            f"{used['kp']:7g} {used['ki']:7g} {used['kd']:7g} {max(0, done.max() - 100):9.1f} %"
            f" {settled:>18} {done[-1] - 100:14.1f} %",
            flush=True,
        )
        steps[f"kp={used['kp']:g} ki={used['ki']:g} kd={used['kd']:g}"] = (t, done, log["voltage"] * np.sign(way))
stats = loop.stats
print(f"\n{stats}")
if loop.signals.lost:
    raise SystemExit(f"{loop.signals.lost} samples were lost")
if stats.guard["system_calls"] or stats.guard["allocations"]:
    raise SystemExit(stats.guard_sentence)

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.axhspan(98, 102, color="0.9", label="within 2 %")
    colours = ("#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#000000")
    for i, (name, (t, done, voltage)) in enumerate(steps.items()):
        upper.plot(t, done, color=colours[i % len(colours)], label=name)
        lower.plot(t, voltage, color=colours[i % len(colours)])
    upper.set_title("Step responses: kd damps the oscillation, and ki removes the error that the load causes")
    upper.set_ylabel("angle (% of the step)")
    upper.legend(loc="lower right", frameon=False)
    lower.set_ylabel("voltage (V)")
    lower.set_xlabel("time since the step (ms)")
    lower.set_xlim(0, 400)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)
