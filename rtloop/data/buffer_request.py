"""Requests of a large buffer to the kernel: their order, their grants, and the fix for each refusal."""

from __future__ import annotations

import errno
import math
import operator
import os
import resource
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.errors import ConfigError, SetupError
from rtloop.memory import hugepage_supply
from rtloop.memory.hugepage_supply import format_page
from rtloop.memory.lock_grant import range_lock_grant
from rtloop.memory.smaps import Account
from rtloop.system import cgroup
from rtloop.system.fixes import limit_fix
from rtloop.system.grant import Grant, describe_refused
from rtloop.system.grant_errors import refusal_error
from rtloop.system.privilege import format_limit, read_limit
from rtloop.units import format_size, parse_size

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "BufferRequest",
    "dimensions",
    "lock_grant",
    "mount_grant",
    "ordinary_grant",
    "page_size_grant",
    "parse_request",
    "path_grant",
    "pool_grant",
    "refusal",
    "round_up",
    "shortage",
]

_MOUNT = "/mnt/huge"
_FORMS = '"auto", "hugetlb", "thp", "pages", or the path of a hugetlbfs mount or of a new file in it'


class BufferRequest(NamedTuple):
    """A request for a large buffer: the checked arguments, and the backings to try in order."""

    nbytes: int
    page_size: int | None
    backing: str
    path: str | None
    attempts: tuple[str, ...]

    def pool_sizes(self) -> tuple[int, ...]:
        """Return the page sizes of the hugetlb pool to try, the best one first and the default one last."""
        if self.page_size is not None:
            return (self.page_size,)
        default = hugepage_supply.default_page_size()
        waste = {size: round_up(self.nbytes, size) - self.nbytes for size in hugepage_supply.huge_pool_sizes()}
        fitting = sorted((s for s in waste if s != default and waste[s] <= self.nbytes // 8), reverse=True)
        larger, smaller = [s for s in fitting if s > default], [s for s in fitting if s < default]
        sizes = (*larger, default) if default else tuple(larger)
        # Sizes that nobody has reserved are not tried, except the one that the message names.
        stocked = [s for s in (*sizes, *smaller) if s == default or _is_stocked(s)]
        return tuple(stocked) or (2 << 20,)

    def judge(self, grants: tuple[Grant, ...], strict: bool) -> str:
        """Return the text of a warning about unmet grants, or ``""``; with `strict`, raise the first one."""
        unmet = self.unmet(grants)
        if unmet and strict:
            raise refusal(unmet[0])
        return "\n".join(describe_refused(grant) for grant in unmet)

    def unmet(self, grants: tuple[Grant, ...]) -> list[Grant]:
        """Return the refused grants, if any of them was requested by name; ``"auto"`` takes what there is."""
        named = ("page_size", "lock") if self.backing == "auto" else tuple(grant.name for grant in grants)
        refused = [grant for grant in grants if not grant.ok]
        return refused if any(grant.name in named for grant in refused) else []


def _is_stocked(page_size: int) -> bool:
    pool = hugepage_supply.huge_pool(page_size)
    return pool is not None and pool.available + pool.spare > 0


def round_up(size: int, unit: int) -> int:
    """Round up to a multiple of `unit`."""
    return -(-size // unit) * unit


def parse_request(nbytes: int | str, page_size: int | str, backing: str | os.PathLike[str]) -> BufferRequest:
    """Read the arguments of a buffer.

    Raises
    ------
    ConfigError
        On a value that can never work, or two that contradict each other.
    """
    size = parse_size(nbytes, "nbytes", minimum=1, maximum=1 << 62)
    base = resource.getpagesize()
    page = None if page_size == "auto" else parse_size(page_size, "page_size", minimum=base, maximum=1 << 40)
    if page is not None and page & (page - 1):
        raise ConfigError(f'page_size={page_size!r} is not a power of two; give "auto", "2M", "1G" or the like')
    name = os.fspath(backing) if isinstance(backing, (str, os.PathLike)) else ""
    if not isinstance(name, str):
        raise ConfigError(f"backing={backing!r} is a path of bytes; give a str")
    path = name if "/" in name else None
    if path is None and name not in ("auto", "hugetlb", "thp", "pages"):
        raise ConfigError(f"backing={backing!r} is not a backing; give {_FORMS}")
    if page is not None and name != "auto" and (name == "pages") != (page == base):
        raise ConfigError(
            f"page_size={page_size!r} contradicts backing={backing!r}: ordinary pages have {format_size(base)}, and "
            "huge pages more"
        )
    every = ("hugetlb", "thp", "pages")
    if path is not None:
        return BufferRequest(size, page, name, path, ("path", *every))
    first = name if name != "auto" else "pages" if page == base else "hugetlb"
    return BufferRequest(size, page, name, None, every[every.index(first) :])


def dimensions(shape: Any, item: np.dtype[Any], nbytes: int) -> tuple[int, ...]:
    """Return the shape of an array of at most `nbytes`; a dimension of -1, or None, is as many as fit."""
    items = nbytes // item.itemsize
    given = shape if isinstance(shape, Iterable) else [-1 if shape is None else shape]
    try:
        dims = [operator.index(n) for n in given]
    except TypeError:
        dims = [-2]
    if min(dims, default=0) < -1 or dims.count(-1) > 1 or (-1 in dims and 0 in dims):
        raise ConfigError(f"shape={shape!r} is not a shape; give whole numbers of items, one of which may be -1")
    if -1 in dims:
        dims[dims.index(-1)] = items // -math.prod(dims)
    if not 0 <= (count := math.prod(dims)) <= items:
        raise ConfigError(f"shape={shape!r} of {item} takes {count * item.itemsize} bytes; the buffer has {nbytes}")
    return tuple(dims)


def _asked(size: int, page_size: int, path: str | None) -> str:
    return format_page(page_size, size // page_size) + (f" in {path}" if path else "")


def pool_grant(size: int, page_size: int, path: str | None, error: int = 0, call: str = "mmap") -> Grant:
    """Return the grant of pages of the hugetlb pool.

    Parameters
    ----------
    size : int
        Bytes asked for, a multiple of the page size.
    page_size : int
        Bytes of a page.
    path : str or None
        The hugetlbfs path, if one was requested.
    error : int
        The errno of the refused call, or 0.
    call : str
        Name of the refused call.
    """
    asked, count = _asked(size, page_size, path), size // page_size
    if not error:
        return Grant("hugetlb", asked, asked, True, "of the hugetlb pool, read from /proc/self/smaps", kind="memory")
    pool = hugepage_supply.huge_pool(page_size)
    if pool is None:
        detail = f"this kernel has no pool of {format_size(page_size)} pages"
        fix = hugepage_supply.reserve_fix(page_size, count)
        return Grant("hugetlb", asked, "none", False, detail, fix, error, "memory")
    missing = count - pool.available - pool.spare
    detail = f"{pool.available} of {pool.total} in the machine's pool available"
    if pool.spare:
        detail += f", {pool.spare} more on demand"
    fixes = []
    if missing > 0:
        detail += f": {missing} missing"
        fixes.append(hugepage_supply.reserve_fix(page_size, missing, count))
    elif error == errno.EAGAIN:
        limit = format_limit(read_limit(resource.RLIMIT_MEMLOCK)[0])
        detail = f"{call}: {os.strerror(error)}, with {detail}; RLIMIT_MEMLOCK is {limit} bytes"
        fixes.append(
            "make buffers before all future memory is locked, or raise the limit:\n" + limit_fix("RLIMIT_MEMLOCK")
        )
    for why, fix in _limits_of_pages(size, page_size, path):
        detail += f"; {why}"
        fixes.append(fix)
    if not fixes:
        # EFAULT (madvise) stands for a page that the kernel did not give: "Bad address" would mislead.
        reason = "the kernel did not give all pages" if error == errno.EFAULT else os.strerror(error)
        detail = f"{call}: {reason}, with {detail}"
        fixes.append(
            "a NUMA policy of the process (numactl --show) may keep them from it, or they were taken meanwhile"
        )
    return Grant("hugetlb", asked, "none", False, detail, "\n".join(fixes), error, "memory")


def _limits_of_pages(size: int, page_size: int, path: str | None) -> Iterator[tuple[str, str]]:
    """Yield each limit that keeps pages of the pool from this process: the reason and the fix."""
    for where, room in cgroup.hugetlb_room(page_size).items():
        if room < size:
            left = format_page(page_size, room // page_size)
            yield (
                f"the control group's {where} leaves {left}",
                "raise the limit (of a container: on the host):\n"
                f"  echo $(($(cat {where}) + {size - room})) | sudo tee {where}",
            )
    count = size // page_size
    nodes = hugepage_supply.free_on_nodes(page_size)
    if nodes is not None and nodes[1] < count:
        yield (
            f"the cpuset allows memory of node {nodes[0]} only, which has {format_page(page_size, nodes[1])} free",
            "allow other nodes (cpuset.mems), or reserve pages there: "
            f"/sys/devices/system/node/node*/hugepages/hugepages-{page_size >> 10}kB/nr_hugepages",
        )
    on_mount = hugepage_supply.free_on_mount(path) if path else None
    if on_mount is not None and on_mount < count:
        yield (
            f"the mount's size= leaves {format_page(page_size, on_mount)}",
            # A remount does not change it.
            f"mount another one, without size=: {_mount_command(f'pagesize={page_size},')}",
        )


def _mount_command(option: str = "") -> str:
    return f"sudo mkdir -p {_MOUNT} && sudo mount -t hugetlbfs -o {option}uid=$(id -u),mode=0700 none {_MOUNT}"


def path_grant(request: BufferRequest, error: int) -> Grant:
    """Return the grant of a hugetlbfs path on which no file could be made; `error` is the errno of open(2)."""
    path = request.path or ""
    asked = f"{format_size(request.nbytes)} in {path}"
    # Never over the given path: a mount would hide what is there.
    use = f"then backing={_MOUNT!r}"
    fixes = {
        errno.ENOENT: f"mount one: {_mount_command()}\n{use}; or see what is mounted: findmnt -t hugetlbfs",
        errno.ENOTSUP: f"mount one: {_mount_command()}\n{use}; or see what is mounted: findmnt -t hugetlbfs",
        errno.EACCES: f"mount it for your user: sudo mount -o remount,uid=$(id -u),mode=0700 {path}",
        errno.EEXIST: "give the mount itself, or the name of a file that does not exist",
        errno.ENOTDIR: "give the mount itself, not a link to it, or the name of a file that does not exist",
    }
    detail = "it is not on a hugetlbfs mount" if error == errno.ENOTSUP else f"open: {os.strerror(error)}"
    return Grant("hugetlb", asked, "none", False, detail, fixes.get(error, ""), error, "memory")


def mount_grant(request: BufferRequest, page_size: int) -> Grant:
    """Return the refusal of a hugetlbfs mount whose pages have another size than requested."""
    asked = f"pages of {format_size(request.page_size or 0)} in {request.path}"
    detail = f"this mount has pages of {format_size(page_size)}"
    fix = f"mount another one: sudo mount -t hugetlbfs -o pagesize={request.page_size},uid=$(id -u) none FOLDER"
    return Grant("hugetlb", asked, "none", False, detail, fix, errno.EINVAL, "memory")


def page_size_grant(request: BufferRequest, page_size: int) -> list[Grant]:
    """Return the grant of the page size, if one was requested."""
    if request.page_size is None:
        return []
    is_same = request.page_size == page_size
    asked, granted = format_size(request.page_size), format_size(page_size)
    return [Grant("page_size", asked, granted, is_same, errno=0 if is_same else errno.EINVAL, kind="memory")]


def shortage(name: str, size: int) -> Grant | None:
    """Refuse more than the free memory, because making it present would have the kernel kill a process."""
    room = {"MemAvailable": hugepage_supply.available_memory(), **cgroup.memory_room()}
    for where, available in room.items():
        if available is not None and available < size:
            detail = f"{where} is {format_size(available)}"
            fix = "ask for less, or free memory"
            if where != "MemAvailable":
                detail = f"{format_size(available)} left of the control group's {where}"
                fix += "; or raise that limit"
            return Grant(name, format_size(size), "none", False, detail, fix, errno.ENOMEM, "memory")
    return None


def ordinary_grant(name: str, size: int, page_size: int, found: Account | None, error: int = 0) -> Grant:
    """Return the grant of transparent huge pages, or of ordinary ones.

    Parameters
    ----------
    name : str
        ``"thp"`` or ``"pages"``.
    size : int
        Bytes asked for, a multiple of the page size.
    page_size : int
        Bytes of a requested page; 0 if the kernel has no transparent huge pages.
    found : Account or None
        The kernel's account, if the memory could be mapped.
    error : int
        The errno of the refused call, or 0.
    """
    asked = format_page(page_size, size // page_size) if page_size else "transparent huge pages"
    if found is None:
        detail = f"mmap: {os.strerror(error)}" if page_size else "this kernel has none"
        fix = "" if page_size else hugepage_supply.transparent_fix()
        return Grant(name, asked, "none", False, detail, fix, error, kind="memory")
    got = (found.transparent if name == "thp" else found.resident) // page_size
    is_whole = got * page_size >= size
    granted = format_page(page_size, got) if got else "none"
    detail = f"{'AnonHugePages' if name == 'thp' else 'Rss'} in /proc/self/smaps"
    if is_whole or name == "pages":
        return Grant(name, asked, granted, is_whole, detail, kind="memory")
    detail += "; the rest is on ordinary pages" if got else ""
    return Grant(name, asked, granted, False, detail, hugepage_supply.transparent_fix(), errno.ENOMEM, "memory")


def lock_grant(size: int, is_locked: bool, is_pool: bool, error: int) -> Grant:
    """Return the grant of the memory lock; `error` is the errno of mlock(2), or 0."""
    detail = "pages of the hugetlb pool are never paged out" if is_pool else "VmFlags in /proc/self/smaps"
    # Not locked without an error: the kernel has accepted the call and not carried it out.
    return range_lock_grant("lock", size, 0 if is_locked else -(error or errno.EAGAIN), detail=detail)


def refusal(grant: Grant) -> SetupError:
    """Make the exception of a grant that a buffer cannot do without, also if part of it was granted."""
    has_less = "strict=False" not in describe_refused(grant) and grant.name != "pages"
    return refusal_error([grant._replace(ok=False)], advice="  or take what there is: strict=False" if has_less else "")
