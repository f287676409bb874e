"""Supply of huge pages on this machine: the kernel's pools, transparent huge pages, and the commands that add more.

See Documentation/admin-guide/mm/hugetlbpage.rst and transhuge.rst of the kernel.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from rtloop.system.cpu import parse_cpu_list
from rtloop.system.fileio import parse_fields, parse_sizes, read_text
from rtloop.system.fixes import sysctl_fix
from rtloop.units import format_page_size, format_size

__all__ = [
    "HugePool",
    "default_page_size",
    "fill_fix",
    "format_page",
    "free_on_mount",
    "free_on_nodes",
    "huge_pool",
    "huge_pool_sizes",
    "reserve_fix",
    "transparent_fix",
    "transparent_page_size",
]

_POOLS = "/sys/kernel/mm/hugepages"
_NODES = "/sys/devices/system/node"
_TRANSPARENT = "/sys/kernel/mm/transparent_hugepage"


def format_page(size: int, count: int = 1) -> str:
    """Format a number of pages: ``"3 pages of 2 MiB"``."""
    return f"{count} page{'s' if count != 1 else ''} of {format_size(size)}"


class HugePool(NamedTuple):
    """The machine's pool of huge pages of one size, in pages.

    Attributes
    ----------
    page_size : int
        Bytes of a page.
    total, free, reserved : int
        Pages in the pool; those of them that are not in use; those of the free ones that a mapping has reserved.
    spare : int
        Pages that the kernel may add from ordinary memory on demand (``nr_overcommit_hugepages``).
    """

    page_size: int
    total: int
    free: int
    reserved: int
    spare: int

    @property
    def available(self) -> int:
        """Pages that a new mapping can count on."""
        return max(0, self.free - self.reserved)


def huge_pool_sizes(pools: str = _POOLS) -> tuple[int, ...]:
    """Return the page sizes, in bytes, for which this kernel has a pool, smallest first; most pools are empty."""
    try:
        names = os.listdir(pools)
    except OSError:
        return ()
    return tuple(sorted(int(name[10:-2]) << 10 for name in names if name.startswith("hugepages-")))


def huge_pool(page_size: int, pools: str = _POOLS) -> HugePool | None:
    """Return the pool of one page size, or None if the kernel has none."""

    def count(name: str) -> int:
        return int(read_text(f"{pools}/hugepages-{page_size >> 10}kB/{name}"))

    try:
        spare = max(0, count("nr_overcommit_hugepages") - count("surplus_hugepages"))
        return HugePool(page_size, count("nr_hugepages"), count("free_hugepages"), count("resv_hugepages"), spare)
    except OSError:
        return None


def default_page_size(meminfo: str = "/proc/meminfo") -> int:
    """Return the size, in bytes, of the huge pages that ``vm.nr_hugepages`` counts; 0 if the kernel has none."""
    return _kilobytes(meminfo, "Hugepagesize")


def available_memory(meminfo: str = "/proc/meminfo") -> int | None:
    """Return the kernel's estimate of the bytes that it can allocate without swapping; None if it has none."""
    return _kilobytes(meminfo, "MemAvailable") or None


def _kilobytes(path: str, wanted: str) -> int:
    try:
        return parse_sizes(read_text(path)).get(wanted, 0)
    except (OSError, ValueError):
        return 0


def free_on_nodes(page_size: int, status: str = "/proc/self/status", nodes: str = _NODES) -> tuple[str, int] | None:
    """Return the memory nodes that this process may use, and the free pages on them; None if it may use all."""
    try:
        text = parse_fields(read_text(status))["Mems_allowed_list"]
        allowed = set(parse_cpu_list(text))
        if allowed >= set(parse_cpu_list(read_text(f"{nodes}/has_memory"))):
            return None
        name = f"hugepages/hugepages-{page_size >> 10}kB/free_hugepages"
        present = [node for node in sorted(allowed) if os.path.isdir(f"{nodes}/node{node}")]
        return text, sum(int(read_text(f"{nodes}/node{node}/{name}")) for node in present)
    except (OSError, KeyError, ValueError):
        return None


def free_on_mount(path: str) -> int | None:
    """Return the free pages of a hugetlbfs mount with a limit (``size=``); None if it has none."""
    for place in (path, os.path.dirname(path) or "."):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        return found.f_bavail if found.f_blocks else None
    return None


def reserve_fix(page_size: int, missing: int, needed: int | None = None) -> str:
    """Return the commands that add pages to a pool of this machine.

    Parameters
    ----------
    page_size : int
        Bytes of a page.
    missing : int
        Number of pages to add.
    needed : int, optional
        Number of pages that the process asks for; `missing` by default.
    """
    pool = huge_pool(page_size)
    if pool is None:
        sizes = ", ".join(format_size(size) for size in huge_pool_sizes()) or "none"
        argument = f"hugepagesz={format_page_size(page_size)} hugepages={missing}"
        return f"boot:       {argument}   # on the kernel's command line; now it has: {sizes}"
    return fill_fix(pool, missing, needed, is_default=page_size == default_page_size())


def fill_fix(pool: HugePool, missing: int, needed: int | None = None, *, is_default: bool) -> str:
    """Return the commands that add `missing` pages to a pool; `is_default` if ``vm.nr_hugepages`` sets its size.

    A container needs a limit for all `needed` pages, not only for those that are missing.
    """
    size, total = pool.page_size, pool.total + missing
    lines = []
    if is_default:
        lines.append(sysctl_fix("vm.nr_hugepages", total))
    else:
        lines.append(f"now:        echo {total} | sudo tee {_POOLS}/hugepages-{size >> 10}kB/nr_hugepages")
    lines.append(f"boot:       hugepagesz={format_page_size(size)} hugepages={total}   # on the kernel's command line")
    if size >= 1 << 30:
        lines[-1] += "; a running machine seldom has so much memory in one piece"
    lines.append("container:  on the host; the pool is the machine's")
    if size >= 1 << 20:
        limits = f"hugepages-{format_page_size(size)}i: {(size >> 20) * (needed or missing)}Mi, memory: 128Mi"
        lines.append(f"kubernetes: resources: {{limits: {{{limits}}}}}   # on a node with such a pool")
    return "\n".join(lines)


def transparent_page_size() -> int:
    """Return the size, in bytes, of a transparent huge page; 0 if the kernel has none."""
    try:
        return int(read_text(f"{_TRANSPARENT}/hpage_pmd_size"))
    except OSError:
        return 0


def transparent_fix() -> str:
    """Return the commands that enable transparent huge pages, or compact memory for them."""
    if not transparent_page_size():
        return "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE"
    try:
        mode = read_text(f"{_TRANSPARENT}/enabled")
    except OSError:
        mode = ""
    if "[never]" in mode:
        return f"now:        echo madvise | sudo tee {_TRANSPARENT}/enabled"
    return "now:        echo 1 | sudo tee /proc/sys/vm/compact_memory   # joins free memory; then try again"
