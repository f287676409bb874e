"""Swing two joints of a Franka robot, or its hand; recover from one reflex."""

import argparse
import os
import subprocess
import sys
import threading
from pathlib import Path

import rtloop

FOLDER = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--host", help="the robot, or a machine with a simulator; by default the stand-in of robot.py")
parser.add_argument("--port", type=int, default=1337)
parser.add_argument("--control", choices=["torque", "position", "cartesian"], default="torque")
parser.add_argument(
    "--model", type=Path, default=CACHE / "rtloop-franka-sim" / "fr3.xml",
    help="model of the arm (MJCF or URDF) for --control cartesian; by default the one that simulator.py has made",
)  # fmt: skip
parser.add_argument("--seconds", type=float, default=2)
parser.add_argument("--plot", metavar="FILE", help="draw the run")
parser.add_argument("--busy", action="store_true", help="a Python thread computes in the meantime")
parser.add_argument("--reflexes", type=int, default=1, metavar="N", help="recover from at most N reflexes")
options = parser.parse_args()
if options.control == "cartesian" and options.host is None:
    parser.error("--control cartesian needs --host: the stand-in of robot.py has no hand")

franka = rtloop.build(FOLDER / "franka.pyx")
more = {}
if options.control == "cartesian":
    kind, more = rtloop.build(FOLDER / "cartesian.pyx").Cartesian, {"model": options.model}
else:
    kind = {"torque": franka.Torque, "position": franka.Position}[options.control]

robot = None
host, port, silence_ms = options.host, options.port, 100
if host is None:
    command = [sys.executable, str(FOLDER / "robot.py"), "--port", "0", "--patience", "30"]
    robot = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # The stand-in is a Python program of ordinary priority, which a busy machine delays.
    host, port, silence_ms = "127.0.0.1", int(robot.stdout.readline()), 30_000

is_over = threading.Event()


def compute():
    while not is_over.is_set():
        sum(i * i for i in range(1000))


if options.busy:
    threading.Thread(target=compute, daemon=True).start()

loop = kind("1kHz", host=host, port=port, silence_ms=silence_ms, guard="count", strict=False, **more)
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
except franka.FrankaError as error:
    raise SystemExit(str(error)) from None
finally:
    is_over.set()
    loop.close()
    if robot is not None:
        robot.kill()
        robot.wait()
