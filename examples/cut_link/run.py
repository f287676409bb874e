"""Run the loop, let another process send setpoints, kill that process, and report when the output was safe."""

import argparse
import json
import socket
import subprocess
import sys
import time

import numpy as np
from cut_link import Actuator

from rtloop.zenoh import Bridge

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--plot", metavar="FILE", help="draw the output and the age of its setpoint")
arguments = parser.parse_args()

KEY = "rtloop/example/actuator"
MAX_AGE_NS = 100_000_000

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"tcp/127.0.0.1:{probe.getsockname()[1]}"
quiet = {"scouting": {"multicast": {"enabled": False}}}
here = {**quiet, "listen": {"endpoints": [address]}}
there = {**quiet, "connect": {"endpoints": [address]}, "listen": {"endpoints": []}}

loop = Actuator("1kHz", max_age=MAX_AGE_NS, strict=False)
with Bridge(loop, key=KEY, config=here, setpoints={"angle": loop.setpoint}) as bridge, loop:
    remote = subprocess.Popen([sys.executable, "remote.py", KEY, json.dumps(there)])
    try:
        limit = time.monotonic() + 30
        while bridge.stats.accepted < 50 and time.monotonic() < limit:
            time.sleep(0.01)
    finally:
        remote.kill()
        remote.wait()
    time.sleep(3 * MAX_AGE_NS * 1e-9)

print(loop.stats)
log = loop.log.drain()
followed = np.flatnonzero(log["output"] != 0)
if not len(followed):
    raise SystemExit("no setpoint arrived within 30 s")
last = log[followed[-1]]
first_safe = log[followed[-1] + 1]
cycles = int(first_safe["age"]) // 1_000_000
print(f"{bridge.stats.accepted} setpoints accepted, {bridge.stats.refused} refused")
print(f"the last cycle that followed a setpoint used a value {last['age'] / 1e6:.1f} ms old; in the next cycle,")
print(f"which was safe, it was {first_safe['age'] / 1e6:.1f} ms old, or {cycles} cycles;", end=" ")
print(f"the limit is {MAX_AGE_NS / 1e6:.0f} ms")
followed_too_old = int((log["age"][followed] > MAX_AGE_NS).sum())
if followed_too_old or (log["output"][followed[-1] + 1 :] != 0).any():
    raise SystemExit(f"{followed_too_old} cycles followed a setpoint that was too old")

if arguments.plot:
    from matplotlib.figure import Figure

    log = log[max(0, followed[-1] - 400) : followed[-1] + 200]
    t = (log["release"] - first_safe["release"]) / 1e6
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(t, log["setpoint"], "--", color="#D55E00", label="last setpoint received")
    upper.plot(t, log["output"], color="#0072B2", label="output")
    upper.set_ylabel("angle (rad)")
    lower.plot(t, log["age"] / 1e6, color="#009E73", label="age of the setpoint")
    lower.axhline(MAX_AGE_NS / 1e6, color="black", linewidth=0.7, label="maximum age")
    lower.set_ylabel("age (ms)")
    lower.set_xlabel("time since the first safe output (ms)")
    for axes in (upper, lower):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)
