"""Tuning of the heap: whose malloc serves the process, and the grant that says whether it was tuned."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from rtloop.memory import kernel
from rtloop.system.grant import Grant

__all__ = ["tune"]


class _Allocator(NamedTuple):
    """An allocator that is not glibc's: its name, the part of a file's name that tells, and how to tune it."""

    name: str
    word: str
    function: str  # that no other one exports, for one that is linked into the program
    settings: str


_ALLOCATORS = (
    # MALLCTL NAMESPACE in jemalloc(3): -1 turns the purging of unused pages off.
    _Allocator("jemalloc", "jemalloc", "mallctl", "MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1"),
    # gperftools, docs/tcmalloc.md: 0 never returns memory to the system.
    _Allocator("tcmalloc", "tcmalloc", "tc_version", "TCMALLOC_RELEASE_RATE=0"),
    # mimalloc's README, "Environment Options": no purging, and an arena for blocks that it would map by themselves.
    _Allocator("mimalloc", "mimalloc", "mi_version", "MIMALLOC_PURGE_DELAY=-1 MIMALLOC_RESERVE_OS_MEMORY=1073741824"),
)
_MUSL = "ld-musl"
_INSTEAD = "or leave the heap alone (tune_malloc=False, in rtloop.memory.setup malloc=False), and use a Pool in step"


def tune() -> Grant:
    """Tune the malloc that serves this process, if that is glibc's. It cannot be undone."""
    if kernel.tune_malloc():
        return Grant("malloc", "tuned", "tuned", True, "for the rest of the process's life", kind="memory")
    why, fix = _explain(kernel.heap_owner() or "a library without a name")
    return Grant("malloc", "tuned", "not tuned", False, why, fix, errno.ENOTSUP, kind="memory")


def _explain(path: str) -> tuple[str, str]:
    """Return why the heap was not tuned, and the fix, given the file that contains malloc."""
    file = os.path.basename(path)
    if file.startswith(_MUSL):
        return f"malloc is musl's ({path}), which has no settings: it returns free memory to the kernel", _INSTEAD
    if kernel.is_glibc_heap():
        return "mallopt(3) of this C library refused it", _INSTEAD
    known = next((a for a in _ALLOCATORS if a.word in file or kernel.heap_owner(a.function) == path), None)
    name = known.name if known else file
    why = f"malloc is {name}'s ({path}), and mallopt(3) changes glibc's alone"
    fixes = [f"set its own settings before the program starts:\n  export {known.settings}"] if known else []
    if file in os.environ.get("LD_PRELOAD", ""):
        fixes.append(f"{'or ' if fixes else ''}start the program without {file} in LD_PRELOAD")
    fixes.append(_INSTEAD if fixes else _INSTEAD.removeprefix("or "))
    return why, "\n".join(fixes)
