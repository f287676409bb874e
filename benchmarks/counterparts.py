"""Compare a loop of rtloop with its counterparts' own Python, before referees that others have written.

    python benchmarks/counterparts.py [--quick] [--only franka ...] [--seconds 10] [--json FILE]

Each row is one counterpart: a robot's simulator, a physics engine, a solver. Two sides do the same work in turn, rtloop
and the Python that the counterpart's authors provide, each alone and beside a busy Python thread in its interpreter.
The table has the share of the cycles that each side kept, as the referee of the row counts them, the lowest share over
100 consecutive cycles, and the age of the data when the output was made.

The rows are the modules of benchmarks/counterpart_rows, which states what each needs; a row whose counterpart is not
installed is listed with the command that installs it. cyclictest runs next to the Franka row, and the JSON file tells
how many of the lost cycles it saw as stalls of the machine. A run over ten minutes, with a policy in ONNX Runtime as
further company:

    python benchmarks/counterparts.py --only franka --sides rtloop --company busy+onnx --seconds 600 --pairs 1
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Claim, claim, exit_code, parser, print_claims, print_table, run_script, say, write_json
from counterpart_rows import COMPANIES, Figures, rows

from rtloop import RtloopError

TARGET = 0.1
QUICK_SECONDS = 2.0


def measure(name: str, row: Any, asked: Any) -> dict[str, list[Figures]]:
    """Run all sides of a row in turn, in each company; return the figures by side and company."""
    sides = [side for side in row.SIDES if asked.sides is None or (side == "rtloop") == (asked.sides == "rtloop")]
    figures: dict[str, list[Figures]] = {f"{side}, {company}": [] for side in sides for company in asked.company}
    for pair in range(asked.pairs):
        for company in asked.company:
            for side in sides:
                say(f"{name}, pair {pair + 1} of {asked.pairs}: {side}, {company}")
                figures[f"{side}, {company}"].append(row.run(side, company, asked.seconds))
    say("")
    return figures


def middle(values: list[float]) -> float:
    """Return the median of the values that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def show(title: str, referee: str, runs: dict[str, list[Figures]]) -> None:
    """Print the table of one row."""
    table = [
        [
            name,
            f"{middle([one.kept for one in each]):.4f}",
            f"{min(one.lowest for one in each):.2f}",
            *(f"{middle([one.age[place] for one in each]):.0f}" for place in (0, 1)),
            "; ".join(notes(each)) or "-",
        ]
        for name, each in runs.items()
    ]
    heads = ["side, company", "cycles kept", "lowest of 100", "age 50 %, us", "99 %, us", "notes"]
    print_table(f"{title}\n  kept: {referee}", heads, table)
    print()


def notes(runs: list[Figures]) -> list[str]:
    """Return what the table says besides the figures."""
    found = []
    for fact in ("reflexes", "falls", "unsolved", "lost", "lost in a stall of the machine"):
        total = sum(one.facts.get(fact, 0) for one in runs)
        if total:
            found.append(f"{total:,} {fact}")
    return found


def claims_of(title: str, runs: dict[str, list[Figures]]) -> list[Claim]:
    """Compare the shares of cycles that were lost beside a busy Python thread."""
    lost = {side: [100 * (1 - one.kept) for one in each]
            for name, each in runs.items() for side, company in [name.split(", ")] if company == "busy"}  # fmt: skip
    if len(lost) < 2:
        return []
    ours = lost.pop("rtloop")
    ((peer, theirs),) = lost.items()
    return [claim(f"{title}: lost beside a busy thread", "%", ours, peer, theirs, TARGET)]


def main() -> int:
    found = rows()
    options = parser(__doc__ or "", pairs=3, seconds=10.0)
    options.add_argument("--quick", action="store_true", help=f"one pair of {QUICK_SECONDS:g} s of each")
    options.add_argument("--only", nargs="+", choices=found, default=list(found), help="rows to run (all)")
    options.add_argument("--company", nargs="+", choices=COMPANIES, default=["alone", "busy"],
                         help="what runs in the same interpreter (alone busy)")  # fmt: skip
    options.add_argument(
        "--switch-interval", type=float, metavar="S", help="sys.setswitchinterval of the clients (Python's own, 5 ms)"
    )
    options.add_argument("--sides", choices=["rtloop", "peer"], help="run only this side (both)")
    asked = options.parse_args()
    if asked.quick:
        asked.pairs, asked.seconds = 1, QUICK_SECONDS
    if asked.switch_interval is not None:
        os.environ["RTLOOP_SWITCH_INTERVAL"] = str(asked.switch_interval)
    absent = {name: found[name].missing() for name in asked.only}
    present = {name: found[name] for name in asked.only if not absent[name]}
    figures: dict[str, dict[str, list[Figures]]] = {}
    failed: dict[str, str] = {}
    claims = []
    for name, row in present.items():
        try:
            figures[name] = measure(name, row, asked)
        except (RtloopError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            failed[name] = str(error)
            continue
        show(row.TITLE, row.REFEREE, figures[name])
        claims += claims_of(row.TITLE, figures[name])
    if failed:
        print_table("Failed", ["row", "why"], [[name, why] for name, why in failed.items()])
        print()
    missing = {what: fix for each in absent.values() for what, fix in each.items()}
    if missing:
        print_table("Not installed", ["counterpart", "fix"], [[what, fix] for what, fix in missing.items()])
        print()
    if claims:
        print_claims("Cycles lost beside a busy Python thread", claims)
    write_json(
        asked.json, benchmark="counterparts", options=vars(asked), runs=figures, claims=claims, missing=missing,
        failed=failed,
        referees={name: row.REFEREE for name, row in present.items()},
    )  # fmt: skip
    return 1 if failed else exit_code(claims)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    run_script(main)
