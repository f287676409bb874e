"""Run a camera, a planner and a loop, kill and replace each of them, and show the ages of the data that they share."""

import argparse
import os
import subprocess
import sys
import time

import numpy as np
import planner
from control import OLDEST_GOAL, OLDEST_IMAGE

import rtloop

PROGRAMS = {"loop": "control.py", "camera": "camera.py"}  # the planner is a ProcessLoop of this one


class Laboratory:
    """Three processes by name, and the log of the loop, which this process collects."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles  # number of cycles that show whether the head follows its target
        self.share = f"head-{os.getpid()}"  # a unique name, so that the example can run twice at the same time
        self.processes = {}
        self.planner = planner.make(self.share)
        self.parts = []
        self.killed = []  # (name, from, to), ns on the monotonic clock

    def start(self, *names: str) -> None:
        """Start processes. Returns when they have their exchanges."""
        if "planner" in names:
            self.planner.start()
        names = [name for name in names if name != "planner"]
        for name in names:
            command = [sys.executable, PROGRAMS[name], self.share]
            self.processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names:
            said = self.processes[name].stdout.readline().split()
            if said[:1] != [name]:
                raise SystemExit(f"the {name} has not started")
            print(f"{name}: started, with {said[1]} values written before it")

    def follow(self, *, is_followed: bool) -> None:
        """Collect the log until the loop has, or has not, followed goals for `self.cycles` cycles."""
        limit = time.monotonic() + 100
        cycles = 0
        while cycles < self.cycles:
            if time.monotonic() > limit:
                raise SystemExit(f"the head has {'not ' if is_followed else ''}followed its target for 100 s")
            self.log.wait("100ms")
            cycles += np.count_nonzero(self.collect()["is_followed"] == is_followed)

    def collect(self) -> np.ndarray:
        """Take all records out of the log."""
        records = self.log.drain()
        self.parts.append(records)
        return records

    def replace(self, name: str) -> None:
        """Kill a process at any instruction, check that the others respond, and start another one in its place."""
        if name == "planner":
            self.planner.kill()  # stop() would let it end its cycle
        else:
            self.processes[name].kill()
            self.processes[name].wait()
        begin = time.monotonic_ns()
        if name == "loop":
            self.collect()
            time.sleep(0.3)  # nobody writes the log now; camera and planner go on
        else:
            self.follow(is_followed=False)
        self.start(name)
        self.killed.append((name, begin, time.monotonic_ns()))
        self.follow(is_followed=True)

    def run(self) -> np.ndarray:
        """Start all three, replace each, and end them. Returns the log."""
        try:
            self.start(*PROGRAMS, "planner")
            self.log = rtloop.Ring.open(f"{self.share}/log")
            self.follow(is_followed=True)
            for name in ("camera", "planner", "loop"):
                self.replace(name)
            print(self.processes["loop"].communicate()[0])  # its input ends, so it stops its loop
            self.collect()
            self.planner.stop()
            print(self.planner.stats)
        finally:
            self.planner.kill()
            for process in self.processes.values():
                process.kill()
                process.wait()
        return np.concatenate(self.parts)


def draw(log: np.ndarray, killed: list, path: str) -> None:
    """Draw where the head was, and how old the goal and its image were."""
    from matplotlib.figure import Figure

    begin = log["release"][log["is_followed"] == 1][0]
    breaks = np.flatnonzero(np.diff(log["release"]) > 50_000_000) + 1  # the loop was dead: no line there
    seconds = np.insert((log["release"] - begin) / 1e9, breaks, np.nan)
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for axes, lines in (
        (upper, (("goal", log["goal"], "#D55E00"), ("head", log["angle"], "#0072B2"))),
        (lower, (("image", log["image_age"] / 1e6, "#CC79A7"), ("goal", log["goal_age"] / 1e6, "#009E73"))),
    ):
        for label, values, color in lines:
            axes.plot(seconds, np.insert(values.astype(float), breaks, np.nan), color=color, label=label, linewidth=1)
        for name, since, until in killed:
            axes.axvspan((since - begin) / 1e9, (until - begin) / 1e9, color="0.9")
            if axes is upper:
                axes.annotate(f"no {name}", ((since - begin) / 1e9, 1.01), xycoords=("data", "axes fraction"))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper right")
    for limit in (OLDEST_GOAL, OLDEST_IMAGE):
        lower.axhline(limit / 1e6, color="black", linewidth=0.7, linestyle=":")
    upper.set_ylabel("angle (rad)")
    lower.set_ylabel("age (ms)")
    lower.set_yscale("log")
    lower.set_ylim(0.1, 3000)
    lower.set_xlim(left=-0.2)
    lower.set_xlabel("time (s)")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run the laboratory, and summarize the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="draw the angle of the head, and the ages of its goal and image")
    arguments = parser.parse_args()
    laboratory = Laboratory(cycles=600 if arguments.plot else 100)
    log = laboratory.run()
    followed = log[log["is_followed"] == 1]
    print(f"{len(log)} records, {laboratory.log.dropped} dropped; {len(followed)} cycles followed a goal, of which")
    print(f"the oldest was {followed['goal_age'].max() / 1e6:.1f} ms old,", end=" ")
    print(f"and the oldest image {followed['image_age'].max() / 1e6:.0f} ms")
    if (np.diff(log["release"]) <= 0).any() or not np.isfinite(log["goal"]).all():
        raise SystemExit("a record came twice, out of order, or torn")
    if arguments.plot:
        draw(log, laboratory.killed, arguments.plot)


if __name__ == "__main__":
    main()
