"""Turn the motor of a drive on a CAN bus; then kill the drive during a motion, and see how the loop ends."""

import argparse
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from drive import configure

import rtloop

rtloop.guard.reexec()  # lets the guards count allocations as well

FOLDER = Path(__file__).parent

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--interface", help="a CAN interface, such as vcan0; by default a socket pair carries the frames")
parser.add_argument("--external", action="store_true", help="do not start drive.py: the drive is there already")
parser.add_argument("--rate", default="200Hz", help="of SYNC; drive.py is a Python program, which limits it")
parser.add_argument("--seconds", type=float, default=2)
parser.add_argument("--silence", type=int, metavar="MS", help="time without a heartbeat until either side gives up")
parser.add_argument("--plot", metavar="FILE", help="draw the motion")
options = parser.parse_args()
if options.external and not options.interface:
    parser.error("--external needs --interface")

motor = rtloop.build(FOLDER / "motor.pyx")
here, there = (options.interface, None) if options.interface else socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
# drive.py is a Python program of ordinary priority, which a busy machine delays.
silence_ms = options.silence or (200 if options.external else 2000)
heartbeat_ms = max(10, silence_ms // 10)


def start_drive():
    """Start drive.py, and wait until it is on the bus."""
    command = [sys.executable, str(FOLDER / "drive.py")]
    command += ["--interface", options.interface] if options.interface else ["--fd", str(there.fileno())]
    inherited = () if options.interface else (there.fileno(),)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=inherited)
    if process.stdout.readline().strip() != "ready":
        raise SystemExit("the drive has not started")
    return process


drive = None if options.external else start_drive()
loop = motor.Motor(
    options.rate, bus=here, heartbeat_ms=heartbeat_ms, silence_ms=silence_ms, name="motor", guard="count",
    guard_allow=("recvfrom", "sendto"), strict=False,
)  # fmt: skip
try:
    configure(here, round(loop.settings.period / 1000), heartbeat_ms, silence_ms)
    with loop:
        time.sleep(0.5)
        loop.parameters["target"] = 3.0
        time.sleep(options.seconds)
    log, stats = loop.signals.read(), loop.stats
    print(f"{stats}\n")
    print(f"{loop.syncs:,} SYNCs sent, {loop.answers:,} answered, {loop.dropped} frames dropped")
    print(f"{loop.heartbeats} heartbeats of the drive, {loop.emergencies} emergencies, {loop.bus_off} times bus-off")
    print(f"position {log['position'][-1]:.3f} rad, wanted {log['target'][-1]:.3f} rad")
    if drive is not None:
        loop.start()
        time.sleep(0.5)
        loop.parameters["target"] = -3.0
        time.sleep(0.2)
        drive.kill()
        began = time.monotonic()
        try:
            loop.join("60s")
        except rtloop.CallbackError as error:
            print(f"the drive was killed; {1000 * (time.monotonic() - began):.0f} ms later the loop had ended: {error}")
        print(f"{loop.outcome}; torque {loop.torque:.0f}, {loop.dropped} frames dropped")
        if loop.outcome != motor.REASONS[2]:
            raise SystemExit("the missing heartbeat has not ended the loop")
finally:
    loop.close()
    if drive is not None:
        drive.kill()
        drive.wait()

if options.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    t = np.arange(len(log)) * float(loop.settings.period) / 1e9
    upper.plot(t, log["target"], color="0.6", ls="--", label="target")
    upper.plot(t, log["position"], color="#0072B2", label="position")
    upper.set_ylabel("angle (rad)")
    upper.legend(frameon=False)
    lower.plot(t, log["torque"] / 10, color="#D55E00")
    lower.set_ylabel("torque (%)")
    lower.set_xlabel("time (s)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.plot, dpi=100)
