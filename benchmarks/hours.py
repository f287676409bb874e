"""Measure the wake-up latency at a period of 200 us for hours, as OSADL and TI do, and write a page of the docs.

    make soak SOAK=hours DURATION=6h SOAK_ARGS="--json hours.json --page hours.md"
    python benchmarks/hours.py [--duration 10min] [--block 1min] [--json FILE] [--page FILE]
    python benchmarks/hours.py --render hours.json --page hours.md     # the page of an earlier run

Each CPU has a loop of its own at priority 98, with all memory locked, and `cyclictest` runs in the same way. They take
turns: a block of loops, then as long a block of cyclictest, so that neither disturbs the other and both have the same
load. The load is TI's, `stress-ng --cpu-method=all`, with a worker for each CPU; without stress-ng, busy processes.

The page has the percentiles and the maximum of both sides on each CPU, the load average, the CPU time that the
hypervisor took, the maxima that OSADL and TI publish, and how their machines differ from this one. The exit code is 1
if cycles and missed releases of a loop do not add up to the releases of its grid. Latency does not affect it.

Needs SCHED_FIFO, locked memory and cyclictest (apt install rt-tests).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from common import facts, need, print_table, run_script, say, writable, write_json
from soak import is_conserved

from rtloop import Histogram, LoopGroup, RTLoop, RtloopError
from rtloop.machine.latency.cyclictest import run_cyclictest
from rtloop.machine.latency.load import Load
from rtloop.units import format_duration, parse_duration

PERIOD_NS = 200_000
PRIORITY = 98
PERCENTILES = (50, 99, 99.9, 99.99)
HEADS = ["", "cycles", "missed", "min", *(f"{percent:g} %" for percent in PERCENTILES), "max"]


class Published(NamedTuple):
    """A published result.

    Attributes
    ----------
    who, machine : str
        Who measured it, and on what.
    duration : str
        Length of the run.
    load : str
        Load during the run.
    maxima_us : tuple of int
        Largest latency of each CPU, us.
    url : str
        The page.
    """

    who: str
    machine: str
    duration: str
    load: str
    maxima_us: tuple[int, ...]
    url: str


_TI = "https://github.com/TexasInstruments/processor-sdk-doc/blob/{}/source/devices/{}/linux/RT_Linux_Performance_Guide.rst"
_STRESS = "`stress-ng --cpu-method=all -c 4`"

PUBLISHED = (
    Published(
        "TI, SDK 10.01", "AM64x, 2 Cortex-A53 at 1 GHz, PREEMPT_RT", "6 h", _STRESS, (49, 66),
        _TI.format("13ae72cf6202946375c703b8f7508330bb013b69", "AM64X"),
    ),
    Published(
        "TI, SDK 10.01", "AM62x, 4 Cortex-A53 at 1.4 GHz, PREEMPT_RT", "6 h", _STRESS, (69, 51, 62, 50),
        _TI.format("2d77bd9d4618a2faf928bf15e8fe1e1c0fb2d15c", "AM62X"),
    ),
    Published(
        "OSADL, example of the QA Farm", "one core, PREEMPT_RT", "5 h 33 min", "2 h idle, then 30 to 50 % of the CPU",
        (55,), "https://www.osadl.org/Latency-plots.latency-plots.0.html",
    ),
)  # fmt: skip


@contextlib.contextmanager
def load(cpus: int, nice: int) -> Iterator[str]:
    """Load all CPUs during a with statement, with workers of this niceness. Yields a description of the load."""
    program = shutil.which("stress-ng")
    if program is None:
        with Load("cpu"):
            yield f"{cpus} busy processes (stress-ng is not installed)"
        return
    command = ["nice", "-n", str(nice - os.nice(0)), program, "--quiet", "--cpu-method=all", "-c", str(cpus)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield f"`stress-ng --cpu-method=all -c {cpus}`" + (f", at nice {nice}" if nice else "")
        if process.poll() is not None:
            sys.exit(f"stress-ng ended early with {process.returncode}, so part of the run was without load")
    finally:
        process.terminate()
        process.wait()


def stolen_s() -> float:
    """Return the CPU time, in seconds over all CPUs, that a hypervisor has taken since the machine was booted."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


def loops_block(cpus: list[int], seconds: float) -> list[dict[str, Any]]:
    """Run a loop on each CPU; return the figures of each."""
    made = [RTLoop(PERIOD_NS, priority=PRIORITY, cpu=cpu, name=f"hours {cpu}") for cpu in cpus]
    with LoopGroup(made, name="hours"):  # so that none is disturbed by the start of another
        time.sleep(seconds)
    found = [loop.stats for loop in made]
    return [
        {"latency": stats.latency, "cycles": stats.cycles, "missed": stats.missed, "conserved": is_conserved(stats)}
        for stats in found
    ]


def cyclictest_block(cpus: list[int], seconds: float) -> list[dict[str, Any]]:
    """Run cyclictest on each CPU; return the figures of each."""
    cycles = max(1, round(seconds * 1e9 / PERIOD_NS))

    def one(cpu: int) -> Histogram:
        return run_cyclictest(period_ns=PERIOD_NS, cycles=cycles, priority=PRIORITY, cpu=cpu)

    with ThreadPoolExecutor(len(cpus)) as pool:
        found = list(pool.map(one, cpus))
    return [{"latency": one, "cycles": one.count, "missed": None, "conserved": True} for one in found]


SIDES: dict[str, Callable[[list[int], float], list[dict[str, Any]]]] = {
    "rtloop": loops_block, "cyclictest": cyclictest_block,
}  # fmt: skip


def add(total: dict[str, Any] | None, block: dict[str, Any]) -> dict[str, Any]:
    """Add the figures of a block to those of the blocks before."""
    if total is None:
        return block
    missed = None if block["missed"] is None else total["missed"] + block["missed"]
    return {
        "latency": total["latency"] + block["latency"],
        "cycles": total["cycles"] + block["cycles"],
        "missed": missed,
        "conserved": total["conserved"] and block["conserved"],
    }


def measure(duration_s: float, block_s: float, nice: int) -> dict[str, Any]:
    """Measure in alternating blocks; return the content of the JSON file, with histograms as dicts.

    A pair of blocks counts only if both sides have run to their end.
    """
    cpus = sorted(os.sched_getaffinity(0))
    totals: dict[tuple[str, int], dict[str, Any]] = {}
    averages: list[float] = []
    lost: list[str] = []
    with load(len(cpus), nice) as loaded:
        time.sleep(min(2, block_s))
        begin, stolen = time.monotonic(), stolen_s()
        blocks = 0
        while time.monotonic() - begin < duration_s:
            pair = {}
            try:
                for side, run in SIDES.items():
                    say(f"{format_duration(round((duration_s - time.monotonic() + begin) * 1e9), 0)} to go: {side}")
                    pair[side] = run(cpus, block_s)
                    averages.append(os.getloadavg()[0])
            except (RtloopError, subprocess.TimeoutExpired) as error:
                lost.append(f"{type(error).__name__}: {error}")
                if not blocks and len(lost) > 2:
                    sys.exit(lost[-1])
                continue
            for side, made in pair.items():
                for cpu, block in zip(cpus, made, strict=True):
                    totals[side, cpu] = add(totals.get((side, cpu)), block)
            blocks += 1
        took, stolen = time.monotonic() - begin, stolen_s() - stolen
    say("")
    rows = [
        {**figures, "side": side, "cpu": cpu, "latency": figures["latency"].to_dict()}
        for (side, cpu), figures in sorted(totals.items(), key=lambda item: (item[0][1], item[0][0] != "rtloop"))
    ]
    return {
        "duration_s": round(took), "block_s": block_s, "blocks": blocks, "lost": lost,
        "period_ns": PERIOD_NS, "priority": PRIORITY, "load": loaded, "load_average": [min(averages), max(averages)],
        "stolen_percent": 100 * stolen / took / (os.cpu_count() or 1), "rows": rows,
    }  # fmt: skip


def us(ns: float) -> str:
    """Return nanoseconds as microseconds, with three significant digits or no decimals."""
    value = ns / 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(content: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table, latencies in us."""
    rows = []
    for row in content["rows"]:
        latency = Histogram.from_dict(row["latency"])
        values = [latency.min, *(latency.percentile(percent) for percent in PERCENTILES), latency.max]
        missed = "-" if row["missed"] is None else f"{row['missed']:,}"
        rows.append([f"CPU {row['cpu']}, {row['side']}", f"{row['cycles']:,}", missed, *map(us, values)])
    return rows


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def page(content: dict[str, Any]) -> str:
    """Return the page of the documentation."""
    host = content["facts"]
    kernel = f"Linux {host['kernel']}, " + ("PREEMPT_RT" if host["preempt_rt"] else "not PREEMPT_RT")
    virtual = "a virtual machine" if host["is_virtual"] else "bare metal"
    low, high = content["load_average"]
    seconds = content["duration_s"]
    duration = f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.0f} min"
    others = [
        [f"[{one.who}]({one.url})", one.machine, one.duration, one.load, ", ".join(map(str, one.maxima_us))]
        for one in PUBLISHED
    ]
    isolated = host["isolated_cpus"] or "none"
    count = len(content["lost"])
    lost = f"; {count} more pairs of blocks, in which a side did not run to its end, are left out" if count else ""
    return f"""<!-- made by benchmarks/hours.py -->
# Wake-up latency at 200 us, over hours

OSADL (the Open Source Automation Development Lab) and TI (Texas Instruments)
publish the largest wake-up latency of `cyclictest` at a period of 200 us, over five to six hours.
`benchmarks/hours.py` measures a loop and `cyclictest` in the same way, in alternating blocks:

```
make soak SOAK=hours DURATION=6h SOAK_ARGS="--json hours.json --page hours.md"
```

## This run

| | |
|---|---|
| machine | {host["cpu"]}, {host["cpus"]} CPUs, {virtual} |
| kernel | {kernel}; isolated CPUs: {isolated} |
| date | {host["time"][:10]} |
| duration | {duration}, in which each side ran for {content["blocks"]} blocks of {content["block_s"]:g} s{lost} |
| load | {content["load"]} |
| load average | {low:.1f} to {high:.1f} |
| CPU time taken by the hypervisor | {content["stolen_percent"]:.2f} % |

Latencies are in microseconds, and both sides run at SCHED_FIFO {content["priority"]} with all memory locked.

{markdown(HEADS, table(content))}
A missed release is one without a cycle; cycles and missed releases add up to the releases of each loop's grid.
A cycle whose release passed during the previous cycle begins at once, so the smallest latency of a loop can be near 0.
`cyclictest` also skips releases that it has missed, but does not count them: it ends after a number of cycles.
Percentiles are upper edges of bins, so they never underestimate.
The sides take turns, so a stall of the machine delays only one of them. With {content["blocks"]} blocks each, \
the upper percentiles and maxima also differ by chance. More blocks make this difference smaller.

## Published maxima

All of them are wake-up latencies of `cyclictest` at a period of 200 us, in microseconds, one for each CPU.

{markdown(["source", "machine", "duration", "load", "maxima"], others).replace("--:", "---")}
Differences from this run:

- **Kernel.** Theirs have PREEMPT_RT. This one is {kernel}.
- **Hardware.** Theirs are physical machines, without a hypervisor. This one is {virtual}\
{", so its hypervisor can take the CPU away at any time, for milliseconds" if host["is_virtual"] else ""}.
- **Other work.** Theirs ran only the measurement and its load. The load alone adds {host["cpus"]} to the load \
average above; the rest is other programs that ran on this machine at the same time.
- **Duration.** A maximum grows with the number of cycles. This run took {duration}.
- **Priority.** TI's is 98, OSADL's 99, and that of this run {content["priority"]}.

So a comparison of this page's maxima with theirs says nothing about rtloop and `cyclictest`. \
The two rows of each CPU above compare them.
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--duration", default="10min", metavar="TIME", help='length of the whole run: "6h" (10min)')
    options.add_argument("--block", default="1min", metavar="TIME", help="length of a side's turn (1min)")
    options.add_argument("--nice", type=int, default=0, metavar="N", help="niceness of the load (0)")
    options.add_argument("--json", type=writable, metavar="FILE", help="write the figures here; - for stdout")
    options.add_argument("--page", type=writable, metavar="FILE", help="write the page of the documentation here")
    options.add_argument("--render", metavar="FILE", help="measure nothing; read the figures from this file")
    chosen = options.parse_args()
    if chosen.render:
        content = json.loads(Path(chosen.render).read_text(encoding="utf-8"))
    else:
        need("cyclictest", "rt-tests")
        block_s = parse_duration(chosen.block, "block", minimum=1) / 1e9
        duration_s = parse_duration(chosen.duration, "duration", minimum=1) / 1e9
        try:
            content = measure(duration_s, min(block_s, duration_s / 2), chosen.nice)
        except RtloopError as error:
            sys.exit(f"\n{error}")
        write_json(chosen.json, benchmark="hours", **content)
        content = {"facts": facts(), **content}
    print_table("Wake-up latency at 200 us [us]", HEADS, table(content))
    if chosen.page:
        Path(chosen.page).write_text(page(content), encoding="utf-8")
    return int(not all(row["conserved"] for row in content["rows"]))


if __name__ == "__main__":
    run_script(main)
