"""Exchange process data with a bus, unplug its cable once, and see the slaves come back."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import soem

import rtloop

FOLDER = Path(__file__).parent
OURS, THEIRS = "rtloop-ec0", "rtloop-ec1"  # the ends of a virtual cable

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--interface", help="a bus, such as eth1; by default the stand-in of segment.py")
parser.add_argument(
    "--simulator", metavar="COMMAND", help="a program that is the bus, with {} for its interface, instead of segment.py"
)
parser.add_argument("--period", default="1ms")
parser.add_argument("--seconds", type=float, default=4)
parser.add_argument("--unplug", type=float, default=0.3, metavar="S", help="time the cable is unplugged; 0: never")
parser.add_argument("--restart", action="store_true", help="also stop the simulator, and start it again")
parser.add_argument("--drift", type=float, default=50, metavar="PPM", help="how much too fast the stand-in's clock is")
parser.add_argument("--busy", action="store_true", help="run a busy Python thread meanwhile")
parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
parser.add_argument("--plot", metavar="FILE", help="draw phase error and working counter")
options = parser.parse_args()

if not options.interface and "RTLOOP_ETHERCAT_NET" not in os.environ:
    # The virtual cable is in a network of its own, which ends with this process.
    os.environ["RTLOOP_ETHERCAT_NET"] = "1"
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    os.execvp("unshare", ["unshare", *user, "--net", sys.executable, *sys.argv])
rtloop.guard.reexec()  # lets the guards count allocations as well

if not (FOLDER / "generated" / "soem").exists():
    soem.unpack(FOLDER / "generated" / "soem")
ethercat = rtloop.build(FOLDER / "ethercat.pyx")


def ip(*words: str) -> None:
    """Call ip(8)."""
    subprocess.run(["ip", *words], check=True)


def start() -> subprocess.Popen[str]:
    """Start the other end of the cable, with a real-time priority below the loop's if it may have one."""
    segment = f"{shlex.quote(sys.executable)} {shlex.quote(str(FOLDER / 'segment.py'))} {{}} --drift {options.drift}"
    command = shlex.split((options.simulator or segment).format(THEIRS))
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # the guard is not for it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=plain)
    try:
        os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(60))
    except PermissionError:
        print("no real-time priority for the simulator: it may answer late", file=sys.stderr)
    assert process.stdout is not None
    process.stdout.readline() if options.simulator is None else time.sleep(1)
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process


class Faults:
    """The faults that are caused on purpose, each at its time."""

    def __init__(self, begin: float) -> None:
        self.simulator, third = simulator, options.seconds / 3
        self.due = []
        if options.unplug and not options.interface:
            again = begin + third + options.unplug
            self.due += [(begin + third, lambda: ip("link", "set", THEIRS, "down"), "cable unplugged"),
                         (again, lambda: ip("link", "set", THEIRS, "up"), "plugged in")]  # fmt: skip
        if options.restart and not options.interface:
            self.due += [(begin + 2 * third, self.restart, "simulator restarted")]

    def restart(self) -> None:
        self.simulator.kill()
        self.simulator.wait()
        self.simulator = start()

    def plant(self) -> None:
        while self.due and time.monotonic() >= self.due[0][0]:
            _, act, name = self.due.pop(0)
            bus.history.append(name)
            act()


is_over = threading.Event()


def compute() -> None:
    while not is_over.is_set():
        sum(i * i for i in range(1000))


simulator = None
if not options.interface:
    ip("link", "add", OURS, "type", "veth", "peer", "name", THEIRS)
    for end in (OURS, THEIRS):
        ip("link", "set", end, "up")
    simulator = start()
if options.busy:
    threading.Thread(target=compute, daemon=True).start()

bus = ethercat.Count(options.period, interface=options.interface or OURS, guard="count", strict=False)
rows = []
faults = None
try:
    with bus:
        begin = time.monotonic()
        faults = Faults(begin)
        while time.monotonic() < begin + options.seconds:
            faults.plant()
            bus.supervise()
            rows.append(bus.log.drain())
            time.sleep(0.02)
        slaves, is_operational = bus.slaves, bus.supervise()
except ethercat.EthercatError as error:
    raise SystemExit(str(error)) from None
finally:
    is_over.set()
    other = faults.simulator if faults else simulator
    if other is not None:
        other.kill()
        other.wait()

history = list(bus.history)
time.sleep(0.3)  # supervise asks the slaves again after a quarter of a second
bus.supervise()
assert bus.history == history, "after leave, supervise changes no slave"
stats, log, outages = bus.stats, np.concatenate([*rows, bus.log.drain()]), bus.outages.drain()
print(stats)
for name, state, code in slaves:
    print(f"{name}: {state}" + (f", error 0x{code:04x}" if code else ""))
print("; ".join(bus.history))
print(f"{bus.exchanges:,} cycles with valid data in OP; without: {bus.no_frame:,} without a frame, "
      f"{bus.bad_wkc:,} with another working counter than {bus.expected}, in {len(outages)} outages")  # fmt: skip
error = log["error"][(log["sure"] > 0) & (log["t"] > 1)]
figures = {"cycles": stats.cycles, "exchanges": bus.exchanges, "no_frame": bus.no_frame, "bad_wkc": bus.bad_wkc,
           "outages": outages.tolist(), "missed": stats.missed, "history": bus.history}  # fmt: skip
if len(error) > 100:
    window = np.median(error[: len(error) // 100 * 100].reshape(-1, 100), axis=1)
    p50, p99, most = np.percentile(np.abs(error), (50, 99, 100)) / 1000
    w50, w99, w_most = np.percentile(np.abs(window), (50, 99, 100)) / 1000
    ppm = np.median(log["ppm"][len(log) // 2 :])
    print(f"phase error, with the simulator's delay: 50 % {p50:.1f} us, 99 % {p99:.1f} us, maximum {most:.0f} us; "
          f"medians of 100 cycles: 50 % {w50:.2f} us, 99 % {w99:.2f} us, maximum {w_most:.1f} us; "
          f"the slaves' clock is {ppm:+.1f} ppm fast")  # fmt: skip
    figures |= {"phase_us": [p50, p99, most], "phase_of_100_us": [w50, w99, w_most], "ppm": ppm}
print(f"at the end the slaves were in state {ethercat.STATES.get(bus.end_state, bus.end_state)}")
if options.json:
    Path(options.json).write_text(json.dumps(figures, default=float))
if options.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    sure = log[log["sure"] > 0]
    upper.plot(sure["t"], sure["error"] / 1000, ".", ms=1, color="#0072B2")
    upper.set_ylabel("phase error (us)")
    upper.set_ylim(-150, 150)
    lower.plot(log["t"], log["wkc"], ".", ms=1, color="#D55E00")
    lower.set_ylabel("working counter")
    lower.set_xlabel("time (s)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.plot, dpi=100)
if bus.end_state != 1 or not is_operational:
    raise SystemExit("the slaves were not in OP at the end of the run, or not in INIT after it")
