"""Run the loop here and planners in processes of their own, kill each of them, and print what the cart did."""

import os
import subprocess
import sys

import numpy as np
from follower import Follower

import rtloop

cart = f"cart-{os.getpid()}"  # a name of its own, so that this can run twice at the same time
loop = Follower("1kHz", cart=cart, strict=False)
log = rtloop.Ring.open(f"{cart}/log")  # a logger would do this in a process of its own
parts = []


def record(duration: float) -> None:
    """Collect the records of so many seconds from now on. Sleeps in between, woken by the loop."""
    until = None
    while until is None or parts[-1]["t"][-1] < until:
        if not log.wait("10s"):
            raise SystemExit("the loop writes nothing")
        parts.append(log.drain())
        until = until or parts[-1]["t"][-1] + duration


with loop:
    for goal in ("0.1", "-0.1"):
        command = [sys.executable, "planner.py", cart, goal]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as planner:
            print(planner.stdout.readline().strip())  # it is the writer now
            record(0.6)
            planner.kill()  # at any instruction: the loop reads whole setpoints, and then old ones
        record(0.3)
        fresh = sum(np.count_nonzero(part["age"] < 0.05) for part in parts)
        position = parts[-1]["position"][-1]
        print(f"planner killed: cart held at {position:+.3f} m; {fresh} cycles with a fresh setpoint so far")
parts.append(log.drain())
records = np.concatenate(parts)

print(loop.stats)
print(f"{len(records)} records, {log.dropped} dropped, at most {log.high_water} waited")
if len(records) + log.dropped != loop.stats.cycles:
    raise SystemExit(f"{loop.stats.cycles} cycles, but {len(records)} records and {log.dropped} dropped")
