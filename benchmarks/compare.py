"""Put files of `make bench` side by side: one column for each machine, or what got worse on one.

    python benchmarks/compare.py FILE FILE ... [--markdown] [--json FILE]
    python benchmarks/compare.py --write           # the tables of README.md and performance.md, from benchmarks/results
    make bench BENCH_ARGS="--compare old.json"

A column is headed by the maker, the model, the kernel and the date. A row has the ratio of a claim, or its figure if it
has no peer, and the range over all files. Files of quick runs, whose figures are not reliable, are marked.

`make bench BENCH_ARGS="--compare old.json"` measures, and then lists what got worse or better since that file. A claim
got worse if it is more than 5 % higher, and the quartiles of its pairs lie above those of before. Figures without a
peer are compared only on the same machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common import Claim, print_table, run_script, writable

ROOT = Path(__file__).parents[1]
#: Files of `make bench` that people have sent.
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- machines: made by benchmarks/compare.py --write -->\n", "<!-- end of machines -->\n"
#: Claims whose range README.md shows: script, name, peer, and the text of the row.
IN_README = (
    ("instructions", "instructions of a cycle", "", "user-space instructions per cycle"),
    ("instructions", "instructions of a cycle", "cyclictest -h", "the same, relative to `cyclictest`"),
    ("latency", "rtloop, 50 %", "cyclictest", "median wake-up latency, relative to `cyclictest`"),
    ("latency", "rtloop, 99 %", "cyclictest", "99th percentile of the wake-up latency, relative to `cyclictest`"),
)
#: Facts in which the files of one machine agree.
MACHINE = ("cpu", "cpu_generation", "cpus", "kernel", "is_virtual")
#: Share of a figure that never counts as a change: other code around it moves it by as much.
TOLERANCE = 0.05


class Results(NamedTuple):
    """One file of `make bench`: the machine's facts, and the claims by script, name and peer.

    `remark` says how the file differs from one that `make bench` wrote.
    """

    facts: dict[str, Any]
    is_quick: bool
    claims: dict[tuple[str, str, str], Claim]
    remark: str = ""

    @property
    def machine(self) -> str:
        """The maker and the model of the processor, the kernel and the date."""
        facts = self.facts
        kinds = [str(facts.get("cpu_generation") or ""), "virtual" if facts.get("is_virtual") else ""]
        virtual = f" ({', '.join(filter(None, kinds))})" if any(kinds) else ""
        rt = " PREEMPT_RT" if facts.get("preempt_rt") else ""
        text = f"{facts.get('cpu', 'unknown')}{virtual}, {facts.get('cpus', '?')} CPUs, Linux {facts.get('kernel')}{rt}"
        return f"{text}, {str(facts.get('time', ''))[:10]}" + (", quick" if self.is_quick else "")

    def is_same_machine(self, other: Results) -> bool:
        """Return True if both files come from processors and kernels of the same names and generations."""
        return all(self.facts.get(name) == other.facts.get(name) for name in MACHINE)


class Change(NamedTuple):
    """A claim in two files: its ratio, or its figure without a peer, before and now."""

    name: str
    before: float
    now: float
    verdict: str  # "worse", "better", or "" if the quartiles overlap


def read(path: str | Path) -> Results:
    """Read a file of `make bench`; exit if it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return parse(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"{path} is not a file of `make bench`: {type(error).__name__}: {error}")


def parse(content: Mapping[str, Any]) -> Results:
    """Return the content of a file of `make bench`, or of one script's --json."""
    parts = content.get("parts") or {content["benchmark"]: content["claims"]}
    claims = {}
    for part, made in parts.items():
        for one in made:
            found = Claim(**{name: one[name] for name in Claim._fields if name in one})
            claims[part, found.name, found.peer_name] = found
    is_quick = bool((content.get("options") or {}).get("quick"))
    return Results(dict(content["facts"]), is_quick, claims, str(content.get("remark", "")))


def value(claim: Claim) -> float:
    """Return what is compared: the ratio to the peer, or the figure if there is no peer."""
    return claim.ours if claim.ratio is None else claim.ratio


def changes(before: Results, now: Results) -> list[Change]:
    """Compare the claims that both files have; without a peer only if they are of the same machine."""
    found = []
    for key, new in now.claims.items():
        old = before.claims.get(key)
        if old is None or (new.ratio is None and not now.is_same_machine(before)):
            continue
        part, name, peer = key
        verdict = ""
        if is_above(new, old):
            verdict = "worse"
        elif is_above(old, new):
            verdict = "better"
        found.append(Change(f"{part}: {name}" + (f" / {peer}" if peer else ""), value(old), value(new), verdict))
    return found


def is_above(one: Claim, other: Claim) -> bool:
    """Return True if a claim is higher than another by more than the tolerance, and than the spread of their pairs."""
    is_apart = one.low is None or other.high is None or one.low > other.high
    return is_apart and value(one) > value(other) * (1 + TOLERANCE)


def print_changes(before: Results, now: Results) -> int:
    """Print what changed since a file. Returns the number of claims that got worse."""
    found = changes(before, now)
    worse = [change for change in found if change.verdict == "worse"]
    better = [change for change in found if change.verdict == "better"]
    rows = [
        [
            c.name,
            f"{c.before:.4g}",
            f"{c.now:.4g}",
            f"{100 * (c.now / c.before - 1):+.0f} %" if c.before else "-",
            c.verdict,
        ]
        for c in [*worse, *better]
    ]
    print()
    if rows:
        print_table(f"Since {before.machine}", ["claim", "before", "now", "change", ""], rows)
    if not now.is_same_machine(before):
        print(f"another machine, so figures without a peer are not compared; this one: {now.machine}")
    gone = [f"{part}: {name}" for part, name, _ in before.claims.keys() - now.claims.keys()]
    text = f"{len(worse)} claims got worse, {len(better)} better, {len(found) - len(rows)} are as before"
    print(text + (f", {len(gone)} are not in this run" if gone else ""))
    return len(worse)


def table(files: list[Results]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of the table of several machines."""
    keys = list(dict.fromkeys(key for results in files for key in results.claims))
    rows = []
    for key in keys:
        part, name, peer = key
        made = [results.claims.get(key) for results in files]
        present = [claim for claim in made if claim is not None]
        unit = "" if present[0].ratio is not None else f" {present[0].unit}"
        cells = ["-" if claim is None else f"{value(claim):.3g}{unit}" for claim in made]
        values = [value(claim) for claim in present]
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        target = present[0].target
        rows.append([f"{part}: {name}", peer or "-", *cells, low if low == high else f"{low} to {high}",
                     "-" if target is None else f"{target:.3g}{unit}"])  # fmt: skip
    return ["claim", "relative to", *(results.machine for results in files), "range", "target"], rows


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown, for a page of the documentation."""
    lines = [heads, ["---", "---", *["--:"] * (len(heads) - 2)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in lines)


def sent(folder: Path = RESULTS) -> list[Results]:
    """Return the results in a folder, in the order of their files' names."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def section(files: list[Results]) -> str:
    """Return the machines and the claims with a target, for performance.md."""
    heads, rows = table(files)
    machines = []
    for number, one in enumerate(files, 1):
        load = one.facts.get("load")
        about = [one.machine, f"load average {load[0]:.1f}" if load else "", one.remark]
        machines.append(f"{number}. {'; '.join(filter(None, about))}.\n")
    shown = [row for row in rows if row[-1] != "-"]
    heads = [*heads[:2], *(str(number) for number in range(1, len(files) + 1)), *heads[-2:]]
    return "".join(machines) + "\n" + markdown(heads, shown)


def summary(files: list[Results]) -> str:
    """Return the ranges of the claims of IN_README, for README.md."""
    lines = ["| range over all machines with results | from | to | machines |\n| --- | --: | --: | --: |\n"]
    for *key, words in IN_README:
        found = [value(claim) for results in files if (claim := results.claims.get(tuple(key))) is not None]
        if found:
            lines.append(f"| {words} | {min(found):.3g} | {max(found):.3g} | {len(found)} |\n")
    return "".join(lines)


def write_pages(files: list[Results]) -> None:
    """Write the tables into the pages."""
    for page, text in pages(files).items():
        page.write_text(text, encoding="utf-8")


def pages(files: list[Results]) -> dict[Path, str]:
    """Return the text of each page with its table."""
    made = {}
    for name, text in (("README.md", summary(files)), ("docs/explanation/performance.md", section(files))):
        page = ROOT / name
        before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            sys.exit(f"{page} has no place for the table: {BEGIN}{END}")
        made[page] = f"{before}{BEGIN}{text}{END}{after}"
    return made


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="*", metavar="FILE", help="written by make bench, or by a script's --json")
    options.add_argument("--write", action="store_true", help="write the tables of README.md and performance.md")
    options.add_argument("--markdown", action="store_true", help="print a table for a page")
    options.add_argument("--json", type=writable, metavar="FILE", help="write the table here")
    arguments = options.parse_args()
    if arguments.write:
        write_pages(sent())
        return 0
    if not arguments.files:
        options.error("give a FILE, or --write")
    heads, rows = table([read(path) for path in arguments.files])
    if arguments.markdown:
        print(markdown(heads, rows), end="")
    else:
        machines = heads[2:-2]
        for number, machine in enumerate(machines, 1):
            print(f"{number}: {machine}")
        print_table("", [*heads[:2], *map(str, range(1, len(machines) + 1)), *heads[-2:]], rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"heads": heads, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_script(main)
