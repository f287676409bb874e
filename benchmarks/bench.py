"""Measure every claim about speed against its peers: one table, one file, with the machine's facts.

    make bench                                     # installs the peers if run as root; takes under half an hour
    python benchmarks/bench.py [--quick] [--only latency ring ...] [--compare old.json] [--json bench.json]

Runs the other scripts of this folder one after the other and shows their results: our figure, the peer's, the median of
the pairs' ratios with its quartiles, the target and the verdict. A script that could not run because a peer or a
privilege is missing is listed with the reason. Verdicts compare ratios within one run; absolute times apply to this
machine only.

With --compare, it also lists what got worse or better since an earlier file; benchmarks/compare.py puts the files of
several machines side by side.

The exit code is 0 if everything was measured; with --strict, only if every target was met and nothing got worse.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common import Claim, facts, print_claims, print_table, run_script, writable, write_json
from compare import Results, print_changes
from compare import read as read_results

FOLDER = Path(__file__).parent


class Part(NamedTuple):
    """A script of this folder: its title in the table, and the options of a short run."""

    title: str
    quick: str


PARTS = {
    "instructions": Part("Instructions of a cycle", "--cycles 200"),
    "latency": Part("Wake-up latency", "--pairs 2 --seconds 1"),
    "spin": Part("Adaptation of spinning to a load", "--pairs 1 --seconds 1"),
    "company": Part("Next to a busy Python thread", "--pairs 2 --seconds 1"),
    "counterparts": Part("Comparison with the authors' Python", "--quick"),
    "rates": Part("Highest sustained rate", "--pairs 1 --seconds 1"),
    "swaps": Part("Swaps", "--pairs 2 --swaps 50"),
    "start_stop": Part("Start and stop", "--pairs 5"),
    "commands": Part("Import and commands", "--pairs 3"),
    "snapshot": Part("Reading a loop's statistics", "--pairs 3 --seconds 3"),
    "top": Part("Watching many loops with rtloop top", "--pairs 1 --seconds 3 --loops 16"),
    "attach": Part("Watching a loop from another process", "--pairs 3 --seconds 0.5"),
    "locked_memory": Part("Locked memory", "--pairs 1"),
    "scaling": Part("Scaling", "--pairs 1 --seconds 0.3"),
    "histogram": Part("Histogram", "--pairs 3"),
    "pool": Part("Pools", "--pairs 50 --tail 100000"),
    "ring": Part("Exchanges", "--pairs 3 --items 200000"),
    "exchanges": Part("Shared exchanges", "--pairs 1 --messages 50 --seconds 1"),
    "hugepages": Part("Huge pages", "--pairs 2"),
    "guards": Part("Guards", "--pairs 3 --cycles 50000"),
    "zenoh_bridge": Part("Network", "--pairs 2 --seconds 1 --loops 4"),
    "setpoints": Part("Setpoints", "--pairs 1 --seconds 1"),
    "function_loop": Part("FunctionLoop", "--pairs 3 --cycles 200000"),
    "free_threading": Part("Without a GIL", "--pairs 2 --seconds 1"),
}
#: Options of a full run that differ from a script's own defaults.
FULL = {"latency": "--pairs 15 --seconds 2", "snapshot": "--seconds 100", "attach": "--pairs 15",
        "counterparts": "--pairs 2"}  # fmt: skip


class Found(NamedTuple):
    """Result of a script: its claims, or why there are none; and the peers that are missing, with the fix of each."""

    claims: list[Claim]
    why: str = ""
    missing: dict[str, str] | None = None


def run(name: str, options: str, limit: float) -> Found:
    """Run a script, and return its claims, or the last line of its stderr if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, str(FOLDER / f"{name}.py"), *options.split(), "--json", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=limit)[1]
        except subprocess.TimeoutExpired:
            return Found([], f"it took longer than {limit:.0f} s")
        finally:
            process.kill()
            process.wait()
        if not out.exists():
            lines = said.strip().splitlines()
            return Found([], lines[-1] if lines else f"exit code {process.returncode}")
        content = json.loads(out.read_text())
        return Found([read(claim) for claim in content["claims"]], missing=content.get("missing", {}))


def read(claim: dict[str, Any]) -> Claim:
    """Return a claim read from a script's JSON."""
    return Claim(**{name: claim[name] for name in Claim._fields if name in claim})


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--quick", action="store_true", help="short runs of a few minutes; their ratios are unreliable"
    )
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="scripts to run (all)")
    options.add_argument("--strict", action="store_true", help="exit with 1 if a target was missed")
    options.add_argument("--compare", metavar="FILE", help="list what got worse or better since this file")
    options.add_argument("--limit", type=float, default=600, metavar="S", help="time limit of a script (600)")
    options.add_argument(
        "--json", type=writable, metavar="FILE", help="write the figures and the machine's facts here; - for stdout"
    )
    return options.parse_args(arguments)


def find_missing(found: Mapping[str, Found]) -> dict[str, str]:
    """Return what was not measured, scripts and peers of scripts, with the reasons."""
    not_run = {name: part.why for name, part in found.items() if part.why}
    return not_run | {f"{name}: {peer}": f"it is missing here: {fix}"
                      for name, part in found.items() for peer, fix in (part.missing or {}).items()}  # fmt: skip


def write(asked: argparse.Namespace, found: Mapping[str, Found]) -> None:
    """Write the results so far to the file that was asked for."""
    parts = {name: part.claims for name, part in found.items()}
    write_json(asked.json, benchmark="all", options=vars(asked), parts=parts, missing=find_missing(found))


def main() -> int:
    asked = parse_options()
    before = read_results(asked.compare) if asked.compare else None  # which may be the file to write
    found: dict[str, Found] = {}
    begin = time.monotonic()
    for number, name in enumerate(asked.only):
        passed = time.monotonic() - begin
        print(f"{number + 1} of {len(asked.only)}: {name} ({passed:.0f} s so far)", file=sys.stderr, flush=True)
        found[name] = run(name, PARTS[name].quick if asked.quick else FULL.get(name, ""), asked.limit)
        if found[name].why:
            print(f"  not measured: {found[name].why}", file=sys.stderr, flush=True)
        if asked.json != "-":
            write(asked, found)  # at once, because the next one may be interrupted
    claims = [claim for part in found.values() for claim in part.claims]
    for name, part in found.items():
        if part.claims:
            print_claims(f"\n{PARTS[name].title} (benchmarks/{name}.py)", part.claims)
    missing, not_run = find_missing(found), sum(bool(part.why) for part in found.values())
    if missing:
        print()
        print_table("Not measured", ["script", "why"], [[name, why] for name, why in missing.items()])
    verdicts = [claim.verdict for claim in claims]
    print(
        f"\n{verdicts.count('met')} targets met, {verdicts.count('MISSED')} missed, {verdicts.count('-')} figures "
        f"without a target, {not_run} scripts not run, {len(missing) - not_run} peers missing",
    )
    worse = 0
    if before is not None:
        measured = {(name, c.name, c.peer_name): c for name, part in found.items() for c in part.claims}
        worse = print_changes(before, Results(facts(), asked.quick, measured))
    if asked.json == "-":
        write(asked, found)
    return int(bool(missing) or (asked.strict and (worse > 0 or "MISSED" in verdicts)))


if __name__ == "__main__":
    run_script(main)
