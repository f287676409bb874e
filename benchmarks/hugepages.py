"""Compare random access over 256 MB on 4 KiB pages and on huge pages; each load depends on the previous one.

    python benchmarks/hugepages.py [--size 256M] [--loads 4000000] [--pairs 5] [--backing hugetlb] [--json FILE]

Needs a C compiler and huge pages, transparent or reserved. If reserved ones are missing, it prints the command that
reserves them. All buffers exist at once, in one process on one CPU. The rows run in turn, and the ratio is the median
of the pairs' ratios, so that a change of the machine's speed affects both sides. On a virtual machine each step of a
page walk is itself translated by the host's page table, so the gain is larger, unless the host has no huge pages
either.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from common import alternate, claim, need, parser, print_claims, run_script, write_json

from rtloop import ConfigError, HugeBuffer, RTSetupWarning, SetupError
from rtloop.units import format_size

SOURCE = Path(__file__).with_name("hugepages.c")
SMALL = "pages"
WANTED = ["hugetlb", "thp"]


def load_library() -> ctypes.CDLL:
    """Compile the loop of loads and load it as a library; its file is temporary."""
    command, *options = os.environ.get("CC", "cc").split()
    compiler = [need(command, "gcc"), *options]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "hugepages.so"
        subprocess.run([*compiler, "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))
    library.link_ring.argtypes = library.follow_ring.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.follow_ring.restype = ctypes.c_int64
    library.link_ring.restype = None
    return library


def take(size: str, backing: str) -> HugeBuffer:
    """Create a buffer that lies entirely on the backing; it need not be locked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RTSetupWarning)
        buffer = HugeBuffer(size, backing=backing)
    first = buffer.grants[0]  # of the requested backing; strict would also require the lock
    if not first.ok:
        raise SetupError(first.errno, f"{first}\n{first.fix}")
    return buffer


def follower(library: ctypes.CDLL, buffer: HugeBuffer, loads: int) -> Callable[[], float]:
    address = buffer.array("u1").ctypes.data
    return lambda: float(library.follow_ring(address, loads) / loads)


def take_all(size: str, wanted: list[str]) -> tuple[dict[str, HugeBuffer], dict[str, str]]:
    """Return the buffers by backing, ordinary pages first, and the reasons for missing ones."""
    buffers, missing = {SMALL: take(size, SMALL)}, {}
    for backing in wanted:
        try:
            buffers[backing] = take(size, backing)
        except SetupError as error:
            missing[backing] = str(error.strerror)
    return buffers, missing


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--size", default="256M", help="amount of memory accessed (256M)")
    options.add_argument("--loads", type=int, default=4_000_000, metavar="N", help="loads in a run (4000000)")
    options.add_argument("--backing", action="append", choices=WANTED, help="kind of huge pages (both)")
    asked = options.parse_args()
    if asked.loads < 1 or asked.pairs < 1:
        options.error("--loads and --pairs must be 1 or more")
    library = load_library()
    try:
        buffers, missing = take_all(asked.size, asked.backing or WANTED)
    except (ConfigError, SetupError) as error:
        sys.exit(f"{error}")
    if len(buffers) == 1:
        sys.exit("\n".join(["no huge pages to compare with", *(f"not measured: {why}" for why in missing.values())]))
    for buffer in buffers.values():
        library.link_ring(buffer.array("u1").ctypes.data, buffer.nbytes)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sides = {backing: follower(library, buffer, asked.loads) for backing, buffer in buffers.items()}
    times = alternate(sides, asked.pairs)
    size = format_size(buffers[SMALL].nbytes)
    claims = [
        claim(
            f"{name}, {format_size(buffer.page_size)}",
            "ns a load",
            times[name],
            f"pages, {format_size(buffers[SMALL].page_size)}",
            times[SMALL],
        )
        for name, buffer in buffers.items()
        if name != SMALL
    ]
    print_claims(f"Random access over {size}, each load depending on the previous one; ratio of the times", claims)
    for why in missing.values():
        print(f"not measured: {why}", file=sys.stderr)
    page_sizes = {name: buffer.page_size for name, buffer in buffers.items()}
    huge = {name: buffer.huge_bytes for name, buffer in buffers.items()}
    write_json(
        asked.json,
        benchmark="hugepages",
        unit="ns a load",
        size=buffers[SMALL].nbytes,
        loads=asked.loads,
        page_sizes=page_sizes,
        huge_bytes=huge,
        times=times,
        claims=claims,
        missing={backing: why.partition("\n")[0] for backing, why in missing.items()},
    )


if __name__ == "__main__":
    run_script(main)
