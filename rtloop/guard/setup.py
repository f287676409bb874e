"""Guards of a loop: acquire them, and report what the kernel granted.

With ``guard="count"`` or ``"stop"`` the guards watch ``step`` only, from the end of the warm-up.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rtloop.guard.violations import is_users, migrated_pages
from rtloop.memory import kernel
from rtloop.memory.own_locks import lock_range
from rtloop.settings import Settings
from rtloop.stats.guard_summary import GRANTS, UNAVAILABLE, UNCOUNTED_NEW
from rtloop.system.grant import Grant

if TYPE_CHECKING:
    from rtloop.guard.guard_block import GuardBlock

__all__ = ["acquire", "grants"]


def acquire(settings: Settings, stack: ExitStack, mapping: tuple[int, int]) -> tuple[GuardBlock | None, list[Grant]]:
    """Map, register and lock the guards' block; None if guards are off. `mapping` is that of the thread's stacks."""
    if settings.guard == "off":
        return None, []
    from rtloop.guard.guard_block import GuardBlock
    from rtloop.guard.symbols import code_maps
    from rtloop.system.syscalls import number_of

    maps = code_maps()
    code = [(low, high, is_users(path)) for low, high, path in maps]
    allowed = [number for name in settings.guard_allow if (number := number_of(name)) is not None]
    block = GuardBlock(is_stopping=settings.guard == "stop", warmup=settings.warmup, allowed=allowed, code=code)
    stack.callback(block.close)
    block.migrated = migrated_pages()
    stack.callback(_note_moved, block)
    block.register(*mapping)  # if that fails, the guard of system calls stays off, and its grant has the reason
    what = "the records of the guards"
    if not maps:
        what += ", without places in the code, because /proc/self/maps cannot be read"
    grant = lock_range(settings.lock_memory, stack, "guard", what, block.address, block.size, True)
    return block, [grant]


def _note_moved(block: GuardBlock) -> None:
    """Store how many pages the kernel moved during the run; violations are described later, on request."""
    block.moved = migrated_pages() - block.migrated


def grants(settings: Settings, block: GuardBlock | None) -> list[Grant]:
    """Return a grant for each guard, after the thread has tested them with deliberate violations.

    A guard that is unavailable is a refusal with ``"stop"``, because the loop relies on it. With ``"count"`` the grant
    reports it. The guard of allocations is optional: it needs a library that the user loads.
    """
    if block is None:
        return []
    faults_rc, syscalls_rc, malloc_rc = block.results
    asked = "count" if settings.guard == "count" else "stop at the first"
    is_counting = settings.guard == "count"
    given = "counted" if is_counting else "watched"
    found = []
    is_sampled = block.faults_are_sampled
    if is_sampled is None:
        why = "neither perf_event_open(2) nor getrusage(2) reports page faults here"
        found.append(_refused("page_faults", asked, is_counting, faults_rc, why))
    else:
        how = "each by a sample of perf_event_open(2)"
        if not is_sampled:
            how = (
                "by getrusage(2) after each cycle, without addresses, because perf_event_open(2) failed: "
                f"{os.strerror(-faults_rc)}; kernel.perf_event_paranoid=2 or CAP_PERFMON allows it"
            )
        found.append(Grant(GRANTS["page_faults"], asked, given, ok=True, detail=how, kind="guard"))
    if syscalls_rc:
        why = "this kernel or this architecture has no Syscall User Dispatch (Linux 5.11 on x86-64)"
        if -syscalls_rc == errno.EAGAIN:
            why = "the SIGSYS handler serves at most 64 loops, and 64 already run with guards"
        elif -syscalls_rc not in (errno.EINVAL, errno.ENOSYS):
            why = "Syscall User Dispatch did not catch a deliberate call"
        found.append(_refused("system_calls", asked, is_counting, syscalls_rc, why))
    else:
        how = "Syscall User Dispatch, tested with deliberate calls"
        if settings.guard_allow:
            how += f"; allowed: {', '.join(settings.guard_allow)}"
        found.append(Grant(GRANTS["system_calls"], asked, given, ok=True, detail=how, kind="guard"))
    if malloc_rc:
        why = "the library that counts them is not loaded; rtloop.guard.reexec() loads it"
        if -malloc_rc != errno.ENOENT:
            why = "the loaded library did not count a deliberate allocation"
            if not kernel.is_glibc_heap():
                owner = kernel.heap_owner()
                why = f"malloc is that of {owner}, which LD_PRELOAD has in front of the library that counts them"
        found.append(Grant(GRANTS["allocations"], asked, UNAVAILABLE, ok=True, detail=why, kind="guard"))
    else:
        how = "the preloaded library, tested with a deliberate allocation"
        owner = kernel.heap_owner("_Znwm")
        if owner is not None and owner == kernel.heap_owner():
            how = f"{how}; {UNCOUNTED_NEW}it is that of {owner}, which does not call malloc"
        found.append(Grant(GRANTS["allocations"], asked, given, ok=True, detail=how, kind="guard"))
    return found


def _refused(what: str, asked: str, is_counting: bool, rc: int, why: str) -> Grant:
    detail = f"{why}: {os.strerror(-rc)}" if rc else why
    fix = "" if is_counting else "use guard='count', which counts what it can"
    return Grant(GRANTS[what], asked, UNAVAILABLE, ok=is_counting, detail=detail, fix=fix, errno=-rc, kind="guard")
