"""CPU numbers in the kernel's formats: lists, masks, isolated and online CPUs."""

from __future__ import annotations

from collections.abc import Iterable

from rtloop.system.fileio import read_text

__all__ = ["format_cpu_list", "format_cpu_mask", "isolated_cpus", "mask_to_cpus", "parse_cpu_list"]

_MAX_CPUS = 1 << 16  # Linux can be built for 8192


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse a kernel CPU list: ``"0-2,5"`` gives ``(0, 1, 2, 5)``.

    Raises
    ------
    ValueError
        On anything else.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if numbers.stop > _MAX_CPUS:
                raise ValueError(f"{part!r}: no machine has so many CPUs")
            cpus.update(numbers)
    return tuple(sorted(cpus))


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Write CPU numbers as the kernel does: ``(0, 1, 2, 5)`` gives ``"0-2,5"``."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def format_cpu_mask(cpus: Iterable[int]) -> str:
    """Write CPU numbers as a mask of the kernel: ``(0, 1, 33)`` gives ``"2,00000003"``."""
    bits = sum(1 << cpu for cpu in set(cpus))
    groups = [f"{bits & 0xFFFFFFFF:08x}"]
    while bits := bits >> 32:
        groups.append(f"{bits & 0xFFFFFFFF:08x}")
    return ",".join(reversed(groups)).lstrip("0,") or "0"


def mask_to_cpus(words: Iterable[int]) -> tuple[int, ...]:
    """Turn an affinity mask, as 64-bit words with the lowest CPUs first, into CPU numbers."""
    return tuple(64 * i + bit for i, word in enumerate(words) if word for bit in range(64) if word >> bit & 1)


def isolated_cpus(path: str = "/sys/devices/system/cpu/isolated") -> tuple[int, ...]:
    """Return the online CPUs that are isolated from ordinary threads (``isolcpus=``); empty if there are none."""
    try:
        isolated = parse_cpu_list(read_text(path))
        online = parse_cpu_list(read_text("/sys/devices/system/cpu/online")) if isolated else ()
    except (OSError, ValueError):
        return ()
    return tuple(cpu for cpu in isolated if cpu in online)
