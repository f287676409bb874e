"""What huge pages buy: random access over 256 MB, each load waiting for the one before, on 4 KiB and on huge pages.

    python benchmarks/hugepages.py [--size 256M] [--loads 4000000] [--rounds 5] [--backing hugetlb] [--json FILE]

Needs a C compiler, and huge pages: transparent ones, or reserved ones, for which it prints the command where they are
missing. All buffers are there at once, in one process on one CPU; the rows run in turn, and the ratio is the median of
the ratios of the rounds, so that a change of the machine's speed meets both sides. On a virtual machine each step of
the page table is itself looked up in the host's, so the gain is larger, unless the host has no huge pages either.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import BenchmarkError, alternate, facts, make_table, parser, run_main, write_json

from rtloop import HugeBuffer, RTSetupWarning, SetupError

SOURCE = Path(__file__).with_name("hugepages.c")
SMALL = "pages"


def load_library() -> ctypes.CDLL:
    """Compile the loop of loads, and load it; the file is gone when this returns."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "hugepages.so"
        command = [*os.environ.get("CC", "cc").split(), "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise BenchmarkError(f"needs a C compiler, and {command[0]} is not there; fix: apt install gcc") from None
        except subprocess.CalledProcessError as error:
            raise BenchmarkError(f"{' '.join(command)} failed:\n{error.stderr}") from error
        library = ctypes.CDLL(str(target))
    library.link_ring.argtypes = library.follow_ring.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.follow_ring.restype = ctypes.c_int64
    library.link_ring.restype = None
    return library


def take(size: str, backing: str) -> HugeBuffer:
    """Make a buffer that is whole on the backing; whether it is locked does not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RTSetupWarning)
        buffer = HugeBuffer(size, backing=backing)
    # The first grant is that of the backing asked for; strict would insist on the lock, too.
    if not buffer.grants[0].ok:
        raise SetupError(buffer.grants[0].errno, f"{buffer.grants[0]}\n{buffer.grants[0].fix}")
    return buffer


def timing(library: ctypes.CDLL, buffer: HugeBuffer, loads: int) -> Callable[[], dict[str, Any]]:
    address = buffer.array("u1").ctypes.data
    return lambda: {"ns_per_load": library.follow_ring(address, loads) / loads}


def measure(size: str, loads: int, rounds: int, wanted: list[str]) -> dict[str, Any]:
    library = load_library()
    buffers, missing = {}, {}
    for backing in (SMALL, *wanted):
        try:
            buffers[backing] = take(size, backing)
        except SetupError as error:
            if backing == SMALL:
                raise
            missing[backing] = str(error.strerror)
    if len(buffers) == 1:
        raise BenchmarkError("no huge pages to compare with.\n" + "\n".join(missing.values()))
    for buffer in buffers.values():
        library.link_ring(buffer.array("u1").ctypes.data, buffer.nbytes)
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    results = alternate({name: timing(library, buffer, loads) for name, buffer in buffers.items()}, rounds)
    ns = {name: [one["ns_per_load"] for one in figures] for name, figures in results.items()}
    rows = {}
    for name, buffer in buffers.items():
        ratios = [a / b for a, b in zip(ns[SMALL], ns[name], strict=True)]
        rows[name] = {
            "page_size": buffer.page_size,
            "huge_bytes": buffer.huge_bytes,
            "is_locked": buffer.is_locked,
            "ns_per_load": ns[name],
            "times_faster": statistics.median(ratios),
        }
    return {
        "facts": facts(),
        "cpu": cpu,
        "size": buffers[SMALL].nbytes,
        "loads": loads,
        "rows": rows,
        "missing": missing,
    }


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--size", default="256M", help="how much memory is accessed")
    options.add_argument("--loads", type=int, default=4_000_000, help="how many loads a run has")
    options.add_argument(
        "--backing", action="append", choices=["hugetlb", "thp"], help="which huge pages; by default both"
    )
    arguments = options.parse_args()
    if arguments.loads < 1:
        options.error("--loads must be 1 or more")
    result = measure(arguments.size, arguments.loads, arguments.rounds, arguments.backing or ["hugetlb", "thp"])
    table = [
        (
            name,
            f"{row['page_size'] >> 10} KiB",
            f"{statistics.median(row['ns_per_load']):.1f}",
            f"{row['times_faster']:.2f}",
        )
        for name, row in result["rows"].items()
    ]
    print(f"random access over {result['size'] >> 20} MiB, {result['loads']} loads, each waiting for the one before")
    print(make_table(("backing", "page", "ns a load", "times faster"), table))
    for text in result["missing"].values():
        print(f"not measured: {text}")
    if arguments.json:
        write_json(arguments.json, result)
        print(f"written: {arguments.json}")


if __name__ == "__main__":
    run_main(main)
