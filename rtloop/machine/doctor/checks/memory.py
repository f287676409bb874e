"""Checks of the memory: whatever moves, merges, swaps or splits the pages that a loop uses."""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.memory.hugepage_supply import HugePool, default_page_size, fill_fix, format_page, huge_pool, huge_pool_sizes
from rtloop.system.checks import Check
from rtloop.system.fixes import sysctl_fix
from rtloop.units import format_size

__all__ = ["examine"]

_MM = "/sys/kernel/mm"
_THP = f"{_MM}/transparent_hugepage"
_FOLDERS = {"CONFIG_TRANSPARENT_HUGEPAGE": "transparent_hugepage", "CONFIG_KSM": "ksm", "CONFIG_HUGETLBFS": "hugepages"}


def examine(machine: Machine) -> Iterator[Check]:
    """Yield the checks of the memory."""
    yield _transparent(machine)
    yield _khugepaged(machine)
    yield _merging(machine)
    yield _numa_balancing(machine)
    yield _compaction(machine)
    yield _swap(machine)
    yield _pool(machine)


def _mode(machine: Machine) -> str | None:
    return parse.bracketed(machine.text(f"{_THP}/enabled"))


def _absent(machine: Machine, option: str) -> bool:
    """Return whether the kernel was built without an option, which explains a missing file.

    If the configuration cannot be read, a folder that is missing among readable neighbours decides.
    """
    built = machine.config.get(option)
    folder = _FOLDERS.get(option)
    if built is None and folder is not None:
        return bool(machine.names(_MM)) and not machine.exists(f"{_MM}/{folder}")
    return built == "n"


def _transparent(machine: Machine) -> Check:
    name, source = "transparent huge pages", f"{_THP}/enabled"
    why = "making and splitting huge pages in the background causes faults in a loop; rtloop excludes its own memory"
    mode = _mode(machine)
    if mode is None:
        if _absent(machine, "CONFIG_TRANSPARENT_HUGEPAGE"):
            return Check("memory", name, "none in this kernel", machine.config_source, "ok", why)
        return Check("memory", name, unread(machine.read(source)[1]), source, "note", why)
    if mode != "always":
        return Check("memory", name, mode, source, "ok", why)
    return Check("memory", name, mode, source, "warn", why, f"now:        echo madvise | sudo tee {source}")


def _khugepaged(machine: Machine) -> Check:
    name, source = "khugepaged", f"{_THP}/khugepaged"
    why = "it joins pages into huge ones while a loop runs, and delays every access to them"
    mode, pause = _mode(machine), machine.number(f"{source}/scan_sleep_millisecs")
    if mode == "never" or _absent(machine, "CONFIG_TRANSPARENT_HUGEPAGE"):
        return Check("memory", name, "idle: there are no transparent huge pages", source, "ok", why)
    if mode is None or pause is None:
        return Check("memory", name, unread(machine.read(f"{source}/scan_sleep_millisecs")[1]), source, "note", why)
    found = f"scans every {pause} ms"
    if mode == "always":
        fix = f"now:        echo madvise | sudo tee {_THP}/enabled"
        return Check("memory", name, f"{found}, all memory", source, "warn", why, fix)
    return Check("memory", name, f"{found}, only memory that programs offer (madvise)", source, "ok", why)


def _merging(machine: Machine) -> Check:
    name, source = "same-page merging (KSM)", "/sys/kernel/mm/ksm/run"
    why = "a merged page is copied at its next write: a fault in a cycle"
    run = machine.number(source)
    if run is None:
        if _absent(machine, "CONFIG_KSM"):
            return Check("memory", name, "none in this kernel", machine.config_source, "ok", why)
        return Check("memory", name, unread(machine.read(source)[1]), source, "note", why)
    if run == 1:
        return Check("memory", name, "runs", source, "warn", why, f"now:        echo 2 | sudo tee {source}")
    return Check("memory", name, "off", source, "ok", why)


def _numa_balancing(machine: Machine) -> Check:
    name, source = "NUMA balancing", "/proc/sys/kernel/numa_balancing"
    why = "it unmaps pages for a moment to see which CPU uses them, and moves them: faults in a cycle"
    value, nodes = machine.number(source), parse.cpu_list(machine.text("/sys/devices/system/node/online"))
    if value is None:
        if _absent(machine, "CONFIG_NUMA_BALANCING") or (nodes is not None and len(nodes) == 1):
            return Check("memory", name, "none in this kernel", source, "ok", why)
        return Check("memory", name, unread(machine.read(source)[1]), source, "note", why)
    if value == 0:
        return Check("memory", name, "off", source, "ok", why)
    if nodes is not None and len(nodes) == 1:
        return Check("memory", name, "on, and of no effect with one node", source, "ok", why)
    return Check("memory", name, "on", source, "warn", why, sysctl_fix("kernel.numa_balancing", 0))


def _compaction(machine: Machine) -> Check:
    name, source = "compaction of locked pages", "/proc/sys/vm/compact_unevictable_allowed"
    why = "compaction also moves locked pages: a fault of up to 1 ms in a cycle"
    value = machine.number(source)
    if value is None:
        if _absent(machine, "CONFIG_COMPACTION"):
            return Check("memory", name, "none in this kernel", machine.config_source, "ok", why)
        return Check("memory", name, unread(machine.read(source)[1]), source, "note", why)
    if value == 0:
        return Check("memory", name, "not allowed", source, "ok", why)
    return Check("memory", name, "allowed", source, "warn", why, sysctl_fix("vm.compact_unevictable_allowed", 0))


def _swap(machine: Machine) -> Check:
    name, source = "swap", "/proc/swaps, /proc/sys/vm/swappiness"
    why = "memory that is not locked may be swapped out, and comes back only after a read from the disk"
    text, reason = machine.read("/proc/swaps")
    if text is None:
        return Check("memory", name, unread(reason), source, "note", why)
    areas = parse.swaps(text)
    if not areas:
        if text.strip() and not text.startswith("Filename"):
            return Check("memory", name, unread("not understood"), source, "note", why)
        return Check("memory", name, "none", source, "ok", why)
    size, used = sum(area.size for area in areas), sum(area.used for area in areas)
    found = f"{format_size(used)} of {format_size(size)} used, on {', '.join(area.path for area in areas)}"
    if (swappiness := machine.number("/proc/sys/vm/swappiness")) is not None:
        found += f"; swappiness {swappiness}"
    return Check("memory", name, found, source, "note", why, "now:        sudo swapoff -a")


def _pool(machine: Machine) -> Check:
    folder = "/sys/kernel/mm/hugepages"
    name, why = "huge page pool", "HugeBuffer(backing='hugetlb') takes its pages from this pool"
    pools: list[HugePool] = []
    for size in huge_pool_sizes(machine.root + folder):
        try:
            pool = huge_pool(size, machine.root + folder)
        except ValueError:  # not a number
            continue
        if pool is not None:
            pools.append(pool)
    if not pools:
        if _absent(machine, "CONFIG_HUGETLBFS"):
            return Check("memory", name, "none in this kernel", machine.config_source, "ok", why)
        return Check("memory", name, unread(), folder, "note", why)
    filled = [f"{pool.available} of {format_page(pool.page_size, pool.total)} free" for pool in pools if pool.total]
    if filled:
        return Check("memory", name, "; ".join(filled), folder, "ok", why)
    default = default_page_size(f"{machine.root}/proc/meminfo")
    pool = next((pool for pool in pools if pool.page_size == default), pools[0])
    fix = fill_fix(pool, max(1, (64 << 20) // pool.page_size), is_default=pool.page_size == default)
    return Check("memory", name, "empty, which matters only to HugeBuffer", folder, "note", why, fix)
