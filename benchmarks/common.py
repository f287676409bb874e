"""Shared parts of the benchmarks: alternating runs, a table of claims, a JSON file with the machine's facts.

A claim is a ratio, our figure to a peer's, from runs that alternated in one session. Other work on the machine affects
both sides, and the median over the pairs discards outliers.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, TextIO

import rtloop
from rtloop.system.host import host_facts


class Claim(NamedTuple):
    """One row of the table: our figure and the peer's, in `unit`, with the largest ratio allowed.

    Without a peer (None) there is no ratio, and the target is the largest value allowed for our own figure. `low` and
    `high` are the quartiles of the pairs' ratios, or of our figures.
    """

    name: str
    unit: str
    ours: float
    peer_name: str = ""
    peer: float | None = None
    ratio: float | None = None
    target: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def spread(self) -> str:
        """Range of the middle half of the pairs."""
        return "-" if self.low is None or self.high is None else f"{self.low:.3g}..{self.high:.3g}"

    @property
    def verdict(self) -> str:
        """``"met"``, ``"MISSED"``, or ``"-"`` if no target is set."""
        if self.target is None:
            return "-"
        return "met" if (self.ours if self.ratio is None else self.ratio) <= self.target else "MISSED"


def exit_code(claims: list[Claim]) -> int:
    """Return the exit code for a script: 0 if every target was met, 1 if one was missed."""
    return int(any(claim.verdict == "MISSED" for claim in claims))


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a main and exit: quietly on Ctrl-C. With ``--json -``, only the JSON document goes to stdout."""
    arguments = sys.argv[1:]
    if "--json=-" in arguments or ("--json", "-") in itertools.pairwise(arguments):
        sys.stdout = sys.stderr  # for the tables; write_json uses the real one
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def positive(text: str) -> int:
    """Parse an option as an int of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def writable(text: str) -> str:
    """Parse the name of an output file, for argparse, so that an unwritable one fails before the runs."""
    folder = os.path.dirname(text) or "."
    if text != "-" and (os.path.isdir(text) or not os.access(folder, os.W_OK)):
        raise argparse.ArgumentTypeError(f"{text}: is not a file in a writable folder")
    return text


def parser(
    description: str, *, pairs: int = 5, seconds: float | None = None, of: str = "length of a run"
) -> argparse.ArgumentParser:
    """Create a parser with the options common to all benchmarks, and with --seconds if that has a default."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--pairs", type=positive, default=pairs, metavar="N", help=f"alternating runs of each side ({pairs})"
    )
    made.add_argument(
        "--json", type=writable, metavar="FILE", help="write the figures and the machine's facts here; - for stdout"
    )
    if seconds is not None:
        made.add_argument("--seconds", type=float, default=seconds, help=f"{of} ({seconds:g})")
    return made


def need(program: str, package: str) -> str:
    """Return the path of a peer's program, or exit with the command that installs it."""
    path = shutil.which(program)
    if path is None:
        sys.exit(f"{program} is missing, so there is no peer to compare with; fix: sudo apt install {package}")
    return path


def need_module(name: str, package: str) -> ModuleType:
    """Import a peer's module, or exit with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise  # a module that the peer itself needs
        sys.exit(f"{name} is missing, so there is no peer to compare with; fix: pip install {package}")


def build_peers(sources: Path, folder: Path, boost: str) -> Path:
    """Compile a folder's ours.c and peers.cpp into one program, or exit with the name of a missing dependency.

    Parameters
    ----------
    sources : Path
        Folder of the sources.
    folder : Path
        Folder for the program.
    boost : str
        A header of boost that the peers need, such as ``"pool/pool.hpp"``.
    """
    if not any(Path(root, "boost", boost).exists() for root in ("/usr/include", "/usr/local/include")):
        sys.exit("boost's headers are missing, so there is no peer to compare with; fix: sudo apt install libboost-dev")
    objects: list[Path] = []
    headers = Path(rtloop.get_include()) / "rtloop" / "include"
    for compiler, dialect, source in (
        (need("gcc", "gcc"), "-std=gnu11", "ours.c"),
        (need("g++", "g++"), "-std=c++17", "peers.cpp"),
    ):
        say(f"compiling {source}")
        objects.append(folder / f"{source}.o")
        command = [compiler, dialect, "-O2", f"-I{headers}", "-c", str(sources / source), "-o", str(objects[-1])]
        subprocess.run(command, check=True)
    program = folder / "peers"
    subprocess.run(["g++", *map(str, objects), "-pthread", "-o", str(program)], check=True)
    return program


def say(text: str) -> None:
    """Print progress if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def alternate(sides: Mapping[str, Callable[[], Any]], pairs: int) -> dict[str, list[Any]]:
    """Run all sides in turn, `pairs` times, and return the results of each in order."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name, run in sides.items():
            say(f"pair {pair + 1} of {pairs}: {name}")
            results[name].append(run())
    say("")
    return results


def busy_python_thread(cpu: int | None = None) -> AbstractContextManager[None]:
    """Run a busy Python thread that never releases the GIL for long, and allocates all the time, on any or one CPU."""
    return restless_thread(lambda: sum(len(row) for row in [[number] * 16 for number in range(1000)]), cpu)


@contextmanager
def restless_thread(work: Callable[[], object], cpu: int | None = None) -> Iterator[None]:
    """Repeat some work without a pause on a Python thread, on any or one CPU."""
    stop = threading.Event()

    def repeat() -> None:
        if cpu is not None:
            os.sched_setaffinity(0, [cpu])
        while not stop.is_set():
            work()

    thread = threading.Thread(target=repeat, name="busy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def claim(
    name: str,
    unit: str,
    ours: Iterable[float],
    peer_name: str = "",
    peer: Iterable[float] | None = None,
    target: float | None = None,
) -> Claim:
    """Create a claim from paired figures, with both medians and the median of the pairs' ratios, or from ours alone."""
    ours = list(ours)
    if peer is None:
        return Claim(name, unit, statistics.median(ours), "", None, None, target, *quartiles(ours))
    peer = list(peer)
    ratios = [a / b if b else float("inf") for a, b in zip(ours, peer, strict=True)]
    ratio, middle = statistics.median(ratios), quartiles(ratios)
    return Claim(name, unit, statistics.median(ours), peer_name, statistics.median(peer), ratio, target, *middle)


def quartiles(values: list[float]) -> tuple[float | None, float | None]:
    """Return the first and the third quartile, or None for a single value."""
    if len(values) < 2:
        return None, None
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _generation() -> str:
    """Return family and model of an x86 processor, which its name may not tell in a virtual machine; else nothing."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family, model = found.get("cpu family"), found.get("model")
    return f"family {family}, model {model}" if family and model else ""


def facts() -> dict[str, Any]:
    """Return the context of the figures: the machine, its load, the versions, the time."""
    return {
        **host_facts(),
        "cpu_generation": _generation(),
        "rtloop": rtloop.__version__,
        "load": os.getloadavg(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def print_table(title: str, heads: list[str], rows: list[list[str]], *, file: TextIO | None = None) -> None:
    """Print a table with the first column left-aligned and the others right-aligned."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    print(title, file=file)
    for row in [heads, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), file=file)


def print_claims(title: str, claims: list[Claim], *, file: TextIO | None = None) -> None:
    """Print claims: our figure, the peer's, the ratio, the target and the verdict."""
    rows = [
        [
            f"{c.name} [{c.unit}]",
            f"{c.ours:.4g}",
            c.peer_name or "-",
            "-" if c.peer is None else f"{c.peer:.4g}",
            "-" if c.ratio is None else f"{c.ratio:.3g}",
            c.spread,
            "-" if c.target is None else f"{c.target:.3g}" + (f" {c.unit}" if c.peer is None else ""),
            c.verdict,
        ]
        for c in claims
    ]
    print_table(
        title, ["claim", "ours", "peer", "theirs", "ratio", "(quartiles)", "target", "verdict"], rows, file=file
    )


def _plain(value: Any) -> Any:
    """Convert nested named tuples, which json would write as lists, to dicts; add the verdict to a claim."""
    if isinstance(value, Claim):
        return {**value._asdict(), "verdict": value.verdict}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_json(path: str | None, **content: Any) -> None:
    """Write the figures and the machine's facts to a file if requested, each claim as a dict with its verdict."""
    if path is None:
        return
    text = json.dumps(_plain({"facts": facts(), **content}), indent=2)
    if path == "-":
        print(text, file=sys.__stdout__, flush=True)
    else:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
