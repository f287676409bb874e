"""Control an FMU in real time, and compare it with fmpy's own master in virtual time."""

import argparse
import tempfile
import time
from pathlib import Path

import fmpy
import numpy as np
import plant
from fmu import Controlled, logger_address, messages

import rtloop

rtloop.guard.reexec()  # lets the guards count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=float, default=3, help="length of the run in real time")
parser.add_argument("--plot", metavar="FILE", help="draw position and force")
arguments = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    slave, force, position = plant.initialised(Path(folder) / "closed", logger_address())
    loop = Controlled(slave, force, position, name="fmu", guard="count", strict=False)
    with loop:
        time.sleep(0.4 * arguments.seconds)
        loop.parameters["setpoint"] = -0.4
        time.sleep(0.6 * arguments.seconds)
    stats, log = loop.stats, loop.log.drain()
    print(stats)
    slave.terminate()

    # A constant force, by the loop and by fmpy.
    slave, force, position = plant.initialised(Path(folder) / "open", logger_address())
    open_loop = Controlled(slave, force, position, force=50.0)
    open_loop.simulate("2s")
    ours = open_loop.log.drain()
    slave.terminate()
theirs = fmpy.simulate_fmu(
    str(plant.find()), stop_time=2.0, step_size=1e-3, output_interval=1e-3, output=["y"],
    input=np.array([(0.0, 50.0)], dtype=[("time", "f8"), ("f", "f8")]),
)  # fmt: skip
rows = min(len(ours), len(theirs) - 1)
difference = np.abs(ours["position"][:rows] - theirs["y"][1 : rows + 1]).max()
print(f"{rows:,} steps differ from fmpy's master by at most {difference:.1e} m; {messages()} messages of the FMU")
print(f"position {log['position'][-1]:.6f} m, wanted {log['setpoint'][-1]:.6f} m")
if difference > 1e-12:
    raise SystemExit("the loop does not compute what fmpy computes")
if stats.guard["system_calls"] or stats.guard["allocations"]:
    raise SystemExit(stats.guard_sentence)

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(log["t"], 1000 * log["setpoint"], color="0.6", ls="--", label="setpoint")
    upper.plot(log["t"], 1000 * log["position"], color="#0072B2", label="position")
    upper.set_ylabel("mm")
    upper.legend(frameon=False)
    lower.plot(log["t"], log["force"], color="#D55E00")
    lower.set_ylabel("force (N)")
    lower.set_xlabel("time (s)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)
