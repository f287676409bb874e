"""Mappings of this process, with their locks and the pages behind them, as ``/proc/self/smaps`` has them.

See proc_pid_smaps(5). Reading it is slow, because the kernel visits all pages.
"""

from __future__ import annotations

import resource
from typing import NamedTuple

from rtloop.system.fileio import read_text

__all__ = ["Account", "Mapping", "account", "mappings"]


class Mapping(NamedTuple):
    """Mapping of this process, in bytes, and its kind of lock."""

    start: int
    size: int
    is_locked: bool
    is_onfault: bool


def mappings() -> list[Mapping]:
    """Return all mappings with their locks, from ``/proc/self/smaps``; slow, because the kernel visits all pages."""
    found: list[Mapping] = []
    start = end = 0
    for line in read_text("/proc/self/smaps").split("\n"):
        key, _, rest = line.partition(":")
        if " " in key:
            start, end = _span(key)
        elif key == "VmFlags":
            flags = rest.split()
            found.append(Mapping(start, end - start, "lo" in flags, "lf" in flags))
    return found


def _span(head: str) -> tuple[int, int]:
    """Return the addresses of a mapping: ``7f0000000000-7f0000001000 rw-p 00000000 00:00 0``, and perhaps a path."""
    start, end = head.split(" ", 1)[0].split("-")
    return int(start, 16), int(end, 16)


class Account(NamedTuple):
    """Accounting of a range of addresses by the kernel, in bytes."""

    size: int
    resident: int
    page_size: int
    hugetlb: int
    transparent: int
    is_locked: bool


def account(start: int, size: int, smaps: str = "/proc/self/smaps") -> Account:
    """Read the kernel's accounting of the mappings that overlap a range; slow, because the kernel visits all pages.

    Parameters
    ----------
    start, size : int
        The range. Its mappings are counted as a whole; guard pages around a range keep them separate from others.
    smaps : str
        File to read (proc_pid_smaps(5)).

    Returns
    -------
    Account
        `page_size` is the smallest of all mappings; transparent huge pages do not change it.
        `is_locked` is True if each mapping is locked by mlock(2). Pages of a hugetlb pool never are.
    """
    sums = dict.fromkeys(("Size", "Rss", "Private_Hugetlb", "Shared_Hugetlb", "AnonHugePages"), 0)
    page_sizes: list[int] = []
    locks: list[bool] = []
    is_inside = False
    for line in read_text(smaps).split("\n"):
        key, _, rest = line.partition(":")
        if " " in key:
            low, high = _span(key)
            is_inside = low < start + size and start < high
        elif is_inside and key in sums:
            sums[key] += int(rest.split()[0]) << 10
        elif is_inside and key == "KernelPageSize":
            page_sizes.append(int(rest.split()[0]) << 10)
        elif is_inside and key == "VmFlags":
            locks.append("lo" in rest.split())
    hugetlb = sums["Private_Hugetlb"] + sums["Shared_Hugetlb"]
    return Account(
        sums["Size"],
        sums["Rss"] + hugetlb,
        min(page_sizes, default=resource.getpagesize()),
        hugetlb,
        sums["AnonHugePages"],
        bool(locks) and all(locks),
    )
