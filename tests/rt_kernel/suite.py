"""Run the tests of tests/unit and tests/rt on a PREEMPT_RT kernel, a machine for each few files.

    suite.py [KERNEL] --logs FOLDER [--folders unit rt] [--machines 2]

What each machine printed is kept in the folder. Files whose tests have all run are not run again, so that a run that
was stopped continues. At the end, the tests that failed run again in a machine whose clocks count instructions: what
passes there had failed because emulation is slow. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import shlex
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kernels import NAMES, fetch
from machine import TESTS, Machine, part, section

PYTEST = '"$PYTHON" -m pytest -p no:cacheprovider -v -rsxfE --tb=short --durations=5'
#: As on a machine with systemd: groups below the root may have cpusets.
CPUSETS = "echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control"
#: Found in files that read what is not inside: the project that is being tested, its pages and benchmarks.
READS_PROJECT = re.compile(r"parents\[2\]")
RESULT = re.compile(r"^(tests/\S+?::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", re.MULTILINE)
BAD = ("FAILED", "ERROR")


def files_of(folder: str) -> list[str]:
    """Return the files of a folder whose tests can run inside."""
    files = sorted((TESTS / folder).glob("test_*.py"))
    return [f"tests/{folder}/{file.name}" for file in files if not READS_PROJECT.search(file.read_text())]


class Log:
    """Output of a machine: the tests that it was to run, and their results."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(errors="replace").replace("\r", "")
        inside, code = section(text, "tests")
        self.is_ended = code is not None
        wanted = shlex.split("".join(re.findall("tests: (tests/.*)$", text, re.MULTILINE)[:1]))
        self.results: dict[str, str] = {}
        for name, result in RESULT.findall(inside or text):
            if self.results.get(name) not in BAD:  # a test that passes may fail at its end
                self.results[name] = result
        #: Those of the files, or tests, that have run to their end.
        self.done = set(wanted)
        if not self.is_ended:  # in their order; the last one may have been stopped
            seen = [place for place, name in enumerate(wanted) if any(test.startswith(name) for test in self.results)]
            self.done = set(wanted[: max(seen, default=0)])


def results_of(folder: Path, kind: str) -> dict[str, str]:
    """Return the results of the tests, by all logs of a kind, of the files that have run to their end."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"{kind}-*.log")):
        log = Log(path)
        found |= {name: result for name, result in log.results.items() if {name, name.partition("::")[0]} & log.done}
    return found


def boot(
    machine: Machine, kernel: Path, kind: str, number: int, tests: list[str], arguments: argparse.Namespace
) -> None:
    """Run tests in a machine; its log has a number."""
    begin = time.monotonic()
    path = arguments.logs / f"{kind}-{number:02}.log"
    said = shlex.quote(f"tests: {shlex.join(tests)}")
    script = f"printf '%s\\n' {said}\nuname -r\n{CPUSETS}\n" + part("tests", f"{PYTEST} {shlex.join(tests)}")
    machine.run(kernel, script, timeout_s=arguments.timeout, console=path, counts_instructions=kind == "again")
    log = Log(path)
    end = "" if log.is_ended else ", not to the end"
    print(f"{path.name}: {time.monotonic() - begin:.0f} s{end}: {counted(log.results)}", flush=True)


def next_number(folder: Path, kind: str) -> int:
    return 1 + max((int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{kind}-*.log")), default=-1)


def counted(results: dict[str, str]) -> str:
    counts = collections.Counter(results.values())
    return ", ".join(f"{count} {result.lower()}" for result, count in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", nargs="?", default="6.12", help=f"{', '.join(NAMES)}, or a file; default: 6.12")
    parser.add_argument("--folders", nargs="+", choices=("unit", "rt"), default=["unit", "rt"])
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="FILE", help="only these, as in tests/unit/test_ring.py"
    )
    parser.add_argument("--logs", type=Path, required=True, metavar="FOLDER", help="keeps what each machine printed")
    parser.add_argument("--files", type=int, default=16, help="test files for one machine")
    parser.add_argument("--machines", type=int, default=1, help="machines at once; each uses one CPU")
    parser.add_argument("--timeout", type=float, default=3600, help="longest time of a machine, in seconds")
    arguments = parser.parse_args()
    os.environ["LC_ALL"] = "C"
    arguments.logs.mkdir(parents=True, exist_ok=True)
    kernel = fetch(arguments.kernel) if arguments.kernel in NAMES else Path(arguments.kernel)
    with tempfile.TemporaryDirectory(prefix="rtloop-rt-kernel-") as name:
        machine = Machine(Path(name))
        with ThreadPoolExecutor(arguments.machines) as pool:
            boots = []
            for folder in arguments.folders:
                done = set().union(*(Log(path).done for path in arguments.logs.glob(f"{folder}-*.log")))
                wanted = [file for file in files_of(folder) if not arguments.only or file in arguments.only]
                files = [file for file in wanted if file not in done]
                parts = [files[first : first + arguments.files] for first in range(0, len(files), arguments.files)]
                for number, tests in enumerate(parts, next_number(arguments.logs, folder)):
                    boots.append(pool.submit(boot, machine, kernel, folder, number, tests, arguments))
            for one in boots:
                one.result()
        found: dict[str, str] = {}
        for folder in arguments.folders:
            found |= results_of(arguments.logs, folder)
        again = [test for test, result in found.items() if result in BAD]
        if missing := [test for test in again if test not in results_of(arguments.logs, "again")]:
            boot(machine, kernel, "again", next_number(arguments.logs, "again"), missing, arguments)
    print(f"by the machine's clock: {counted(found)}")
    second = {test: result for test, result in results_of(arguments.logs, "again").items() if test in again}
    print(f"of those that failed, with clocks that count instructions: {counted(second)}")
    failed = [test for test in again if second.get(test, "FAILED") in BAD]
    sys.exit("\n".join(["FAILED", *failed]) if failed else 0)


if __name__ == "__main__":
    main()
