"""Swing two joints of a Franka robot by torques or by joint positions; recover from one reflex."""

import argparse
import subprocess
import sys
import threading
from pathlib import Path

from franka import FrankaError, Position, Torque

import rtloop

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--host", help="the robot, or a machine with a simulator; by default the stand-in of robot.py")
parser.add_argument("--port", type=int, default=1337)
parser.add_argument("--control", choices=["torque", "position"], default="torque")
parser.add_argument("--seconds", type=float, default=2)
parser.add_argument("--plot", metavar="FILE", help="draw the run")
parser.add_argument("--busy", action="store_true", help="a Python thread computes in the meantime")
parser.add_argument("--reflexes", type=int, default=1, metavar="N", help="recover from at most N reflexes")
options = parser.parse_args()

robot = None
host, port, silence_ms = options.host, options.port, 100
if host is None:
    command = [sys.executable, str(Path(__file__).with_name("robot.py")), "--port", "0", "--patience", "30"]
    robot = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # The stand-in is a Python program of ordinary priority, which a busy machine delays.
    host, port, silence_ms = "127.0.0.1", int(robot.stdout.readline()), 30_000

is_over = threading.Event()


def compute():
    while not is_over.is_set():
        sum(i * i for i in range(1000))


if options.busy:
    threading.Thread(target=compute, daemon=True).start()

kind = {"torque": Torque, "position": Position}[options.control]
loop = kind("1kHz", host=host, port=port, silence_ms=silence_ms, guard="count", strict=False)
try:
    for attempt in range(options.reflexes + 1):
        try:
            stats = loop.run(f"{options.seconds}s")
            break
        except rtloop.RtloopError as error:
            print(f"{error}\n{loop.outcome}; errors {loop.errors}", file=sys.stderr)
            if loop.status != 8 or attempt == options.reflexes:
                raise SystemExit(1) from None
            loop.recover()
            print("recovered from the reflex", file=sys.stderr)
    print(f"{stats}\n")
    share = loop.answered / (loop.answered + stats.device_missed)
    print(f"{loop.outcome}; {loop.answered:,} states answered, {share:.4f} of all")
    print(f"success rate that the robot counts over 100 states: lowest {loop.lowest_rate:.2f}")
    if options.plot:
        stats.plot(options.plot)
    if loop.status != 0:
        raise SystemExit(1)
except FrankaError as error:
    raise SystemExit(str(error)) from None
finally:
    is_over.set()
    loop.close()
    if robot is not None:
        robot.kill()
        robot.wait()
