"""Pause a virtual machine beside a loop inside it, and count which culprits the loop names for the late cycles.

    python paused.py [KERNEL] [--seconds 40] [--json FILE]

QEMU is stopped for 20 to 50 ms again and again (SIGSTOP, SIGCONT), as if a busy hypervisor ran something else. The
kernel inside is told nothing of it: its clocks go on, and it counts no stolen time. So the hypervisor is named only
where the CPU was halted and its timer late. In all other cases the culprit is unknown, and any other name is wrong: the
thread or the step that had the CPU did not run in that time.

A cycle counts if a pause, by this script's own log, covers at least 80 % of its delay of 15 ms or more. The clocks of
both sides are compared by lines that the inside prints.
"""

from __future__ import annotations

import argparse
import bisect
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

PERIOD_NS, LEAST_NS = 20_000_000, 15_000_000
COVERED = 0.8
#: Culprits that may be named for a pause.
RIGHT = ("steal", "unknown")
SHORTEST_S, LONGEST_S = 0.020, 0.050
#: Scenes, by the thread that has the loop's CPU while the machine is paused.
SCENES = {
    "idle": "the loop sleeps, and its CPU is halted",
    "ordinary": "beside an ordinary thread that is always busy",
    "urgent": "beside a more urgent thread, FIFO 90, that is busy for 3 ms, again and again",
    "step": "a step of 3 ms",
}
BUSY_NS, CPU = 3_000_000, 1
#: Messages of the kernel would be in the lines of the results.
ARGUMENTS = "loglevel=1 noirqdebug"
HOG = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
if sys.argv[2] == "urgent":
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(90))
while True:
    begin = time.monotonic_ns()
    while time.monotonic_ns() < begin + int(sys.argv[3]):
        pass
    if sys.argv[2] == "urgent":
        time.sleep(0.005)
"""


class Pause(NamedTuple):
    """Time in which the machine was stopped, on this machine's clock."""

    begin: int
    end: int


# ---------------------------------------------------------------------------------------------------------- inside


def run_inside(seconds: float) -> None:
    """Run a loop in each of the scenes, and print its explanations."""
    for scene in SCENES:
        print(f"==scene {scene}==", flush=True)
        is_over = threading.Event()
        thread = threading.Thread(target=print_clock, args=(is_over,))
        thread.start()
        hog = None
        if scene in ("ordinary", "urgent"):
            hog = subprocess.Popen([sys.executable, "-c", HOG, str(CPU), scene, str(BUSY_NS)])
        try:
            stats = make_loop(scene).run(duration=f"{seconds:g}s")
        finally:
            if hog is not None:
                hog.kill()
                hog.wait()
            is_over.set()
            thread.join()
        (grant,) = (grant for grant in stats.grants if grant.name == "explain")
        explanations = [told(stats, one) for one in stats.explanations or ()]
        result = {"granted": grant.ok, "cycles": stats.cycles, "explanations": explanations}
        print(f"\n==result {scene}== {json.dumps(result)}", flush=True)


def told(stats: Any, one: Any) -> list[Any]:
    """Return the culprit of a delay, the times between which it was, and the delay; a wrong one also as a sentence."""
    record = stats.records[one.cycle - (stats.cycles - len(stats.records))]
    names = ("release", "start") if one.what == "start" else ("start", "end")
    text = "" if one.culprit in RIGHT else str(one)
    return [one.culprit, int(record[names[0]]), int(record[names[1]]), one.delay_ns, text]


def make_loop(scene: str) -> Any:
    import rtloop

    keywords: dict[str, Any] = {"cpu": CPU, "explain": f"{LEAST_NS}ns", "name": f"paused-{scene}"}
    if scene == "step":
        loop = probes().Probe(PERIOD_NS, **keywords)
        loop.busy_ns, loop.busy_every = BUSY_NS, 1
        return loop
    return rtloop.RTLoop(PERIOD_NS, **keywords)


def probes() -> Any:
    """Return the module of loops that tests share, as it was compiled for the machine."""
    folder = Path(os.environ["RTLOOP_TEST_SHARED"]) / "support" / "probes"
    spec = importlib.util.spec_from_file_location("probes", next(folder.glob("probes.*.so")))
    assert spec is not None and spec.loader is not None
    module = sys.modules["probes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def print_clock(is_over: threading.Event) -> None:
    while not is_over.wait(0.1):
        print(f"clock {time.monotonic_ns()}", flush=True)


# --------------------------------------------------------------------------------------------------------- outside


class Pauser:
    """Pauses a machine while the loop of a scene runs inside it, and follows its clock."""

    def __init__(self, seed: int) -> None:
        self.pauses: list[Pause] = []
        self._random = random.Random(seed)
        self._seen: list[int] = []
        self._offsets: list[int] = []
        self._rest = b""
        self._runs = 0

    def __call__(self, pid: int, console: Path) -> None:
        with console.open("rb") as file:
            due = time.monotonic() + 2
            while self._is_running(pid):
                lines, newline, self._rest = (self._rest + file.read()).rpartition(b"\n")
                self._read(lines + newline)
                if not self._runs:
                    due = time.monotonic() + 2
                elif time.monotonic() > due and self._offsets:
                    self._pause(pid)
                    due = time.monotonic() + self._random.uniform(0.2, 0.6)
                time.sleep(0.001)

    @staticmethod
    def _is_running(pid: int) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    def _read(self, more: bytes) -> None:
        now = time.monotonic_ns()
        for line in re.findall(rb"clock (\d+)\r?\n", more):
            self._seen.append(now)
            self._offsets.append(now - int(line))
        self._runs += len(re.findall(rb"^==scene \w+==", more, re.MULTILINE))
        self._runs -= len(re.findall(rb"^==result \w+==", more, re.MULTILINE))

    def _pause(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
            time.sleep(0.0002)
        begin = time.monotonic_ns()
        time.sleep(self._random.uniform(SHORTEST_S, LONGEST_S))
        end = time.monotonic_ns()
        os.kill(pid, signal.SIGCONT)
        self.pauses.append(Pause(begin, end))

    def inside(self) -> list[Pause]:
        """Return the pauses on the machine's clock: a line that it prints is read at its time or later."""
        found = []
        for pause in self.pauses:
            near = bisect.bisect(self._seen, pause.begin)
            offset = min(self._offsets[max(0, near - 60) : near + 60])
            found.append(Pause(pause.begin - offset, pause.end - offset))
        return found


def judge(explanations: list[list[Any]], pauses: list[Pause]) -> dict[str, Any]:
    """Count the late cycles of a scene that a pause has delayed, by the named culprit, and the other ones."""
    named: Counter[str] = Counter()
    others: Counter[str] = Counter()
    wrong = []
    for culprit, begin, end, delay_ns, text in explanations:
        covered = max((min(pause.end, end) - max(pause.begin, begin) for pause in pauses), default=0)
        if covered < COVERED * delay_ns:
            others[culprit] += 1
            continue
        named[culprit] += 1
        if culprit not in RIGHT:
            wrong.append(text)
    return {"named": dict(named), "wrong": wrong, "others": dict(others)}


def table(document: dict[str, Any]) -> str:
    """Return the table of the documentation, from the file of a run."""
    lines = ["| during the pause | cycles | the hypervisor | unknown | wrong |", "|---|---:|---:|---:|---:|"]
    for scene, row in document["scenes"].items():
        named = row["named"]
        counts = (sum(named.values()), named.get("steal", 0), named.get("unknown", 0), len(row["wrong"]))
        lines.append(f"| {SCENES[scene]} | {' | '.join(map(str, counts))} |")
    low, high = document["load"]
    where = f"inside of QEMU {document['qemu']} with Linux {document['kernel']}"
    last = f"Measured on {document['time']} {where}, {document['pauses']} pauses, load average outside {low} to {high}."
    return "\n".join([*lines, "", last, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", nargs="?", default="6.12", help="a name as for run.py, or a file; default: 6.12")
    parser.add_argument("--seconds", type=float, default=40, help="duration of each scene")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--console", type=Path, metavar="FILE", help="keeps what the machine printed")
    parser.add_argument("--seed", type=int, default=1, help="of the times of the pauses")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        run_inside(given.seconds)
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from kernels import NAMES, fetch
    from machine import Machine

    os.environ["LC_ALL"] = "C"
    loads = [os.getloadavg()[0]]
    pauser = Pauser(given.seed)
    script = f'uname -r\n"$PYTHON" -P tests/rt_kernel/paused.py --inside --seconds {given.seconds:g}\n'
    with tempfile.TemporaryDirectory(prefix="rtloop-rt-kernel-") as name:
        kernel = fetch(given.kernel) if given.kernel in NAMES else Path(given.kernel)
        text = Machine(Path(name)).run(kernel, script, arguments=ARGUMENTS, console=given.console, beside=pauser)
    loads.append(os.getloadavg()[0])
    pauses = pauser.inside()
    scenes = {}
    for scene, result in re.findall(r"^==result (\w+)== (.*)$", text, re.MULTILINE):
        inside = json.loads(result)
        if not inside["granted"]:
            sys.exit("the kernel's trace was refused inside")
        scenes[scene] = {"cycles": inside["cycles"], **judge(inside["explanations"], pauses)}
        print(f"{scene:10} {scenes[scene]}", flush=True)
    if list(scenes) != list(SCENES):
        sys.exit(f"the machine did not come to its end\n{text[-4000:]}")
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    document = {
        "time": time.strftime("%Y-%m-%d"), "kernel": (re.findall(r"\d+\.\d+\.\d+\S*-rt\S*", text) or ["?"])[0],
        "qemu": version.split()[3], "pauses": len(pauses), "load": [round(min(loads)), round(max(loads))],
        "scenes": scenes,
    }  # fmt: skip
    print(f"\n{table(document)}", end="")
    if given.json:
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(1 if any(row["wrong"] for row in scenes.values()) else 0)


if __name__ == "__main__":
    main()
