"""Guards: what a loop asks for, what it was given, and what its step has done, in words.

A guard of a run with ``guard="count"`` or ``"stop"`` watches ``step`` alone, from the end of the warm-up on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rtloop.loop.settings import Settings
from rtloop.system.grant import Grant
from rtloop.system.text import read_text

if TYPE_CHECKING:
    from rtloop.system.guard import GuardBlock, RawViolation
    from rtloop.system.symbols import Place

__all__ = ["acquire", "count", "describe", "grants", "groups", "sentence", "summarise", "violations"]

_KINDS = ("minor fault", "major fault", "system call", "allocation")
_SYSCALL, _ALLOCATION = 2, 3
#: In the order of guard_malloc.c.
_FUNCTIONS = ("malloc", "calloc", "realloc", "free", "memalign", "aligned_alloc", "posix_memalign", "valloc",
              "pvalloc", "reallocarray")  # fmt: skip
#: Grants, by what they count.
_GRANTS = {
    "page_faults": "guard_page_faults",
    "system_calls": "guard_system_calls",
    "allocations": "guard_allocations",
}
_LABELS = {"page_faults": "page fault", "system_calls": "system call", "allocations": "allocation"}
_UNAVAILABLE = "unavailable"
#: A fault so soon after a fork is most likely the first write to a page that the fork made copy-on-write.
_AFTER_FORK_NS = 1_000_000_000
_NOT_USERS = ("libc.so", "libc-", "ld-linux", "ld-", "libpthread", "libm.so", "libstdc++", "libgcc_s", "libpython",
              "librtloop_guard", "[vdso]", "[vsyscall]")  # fmt: skip


def _is_users(path: str) -> bool:
    """Whether code is the user's: not the C library's, the interpreter's or rtloop's own (its demo is as a user's)."""
    name = os.path.basename(path)
    if name.startswith(_NOT_USERS) or path == os.path.realpath("/proc/self/exe"):
        return False
    return os.path.dirname(path) not in _own_folders()


def _own_folders() -> set[str]:
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return {os.path.join(package, room) for room in ("system", "data", "loop")}


def acquire(
    settings: Settings, stack: ExitStack, mapping: tuple[int, int]
) -> tuple[GuardBlock | None, int, list[Grant]]:
    """Map, register and lock the block of the guards; None without any. `mapping` is that of the thread's stacks.

    Also returns the address of the thread's body with guards, 0 without.
    """
    if settings.guard == "off":
        return None, 0, []
    from rtloop.loop.acquire import lock_range
    from rtloop.loop.guarded import body_address
    from rtloop.system.guard import GuardBlock
    from rtloop.system.symbols import code_maps
    from rtloop.system.syscalls import number_of

    code = [(low, high, _is_users(path)) for low, high, path in code_maps()]
    allowed = [number for name in settings.guard_allow if (number := number_of(name)) is not None]
    block = GuardBlock(is_stopping=settings.guard == "stop", warmup=settings.warmup, allowed=allowed, code=code)
    stack.callback(block.close)
    block.migrated = _migrated_pages()
    block.register(*mapping)  # refused, the guard of system calls does not try itself out, and says why
    grant = lock_range(settings, stack, "guard", "what the guards write down", block.address, block.size, True)
    return block, body_address(), [grant]


def grants(settings: Settings, block: GuardBlock | None) -> list[Grant]:
    """Tell what became of each guard, which the thread has tried out by now.

    A guard that is not there is refused to a loop that relies on it (``"stop"``); one that only counts says so. The
    guard of allocations is there where somebody has loaded it.
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
        found.append(_refused("page_faults", asked, is_counting, faults_rc, "neither perf events nor getrusage tell"))
    else:
        how = "each by a sample of perf_event_open(2)"
        if not is_sampled:
            how = (
                "by getrusage(2) after each cycle, without addresses: perf_event_open(2) says "
                f"{os.strerror(-faults_rc)}; kernel.perf_event_paranoid=2 or CAP_PERFMON would do"
            )
        found.append(Grant(_GRANTS["page_faults"], asked, given, ok=True, detail=how))
    if syscalls_rc:
        why = "this kernel or this architecture has no Syscall User Dispatch (Linux 5.11 on x86-64)"
        if -syscalls_rc == 11:
            why = "the handler of SIGSYS serves 64 loops at once, and as many run with guards"
        elif -syscalls_rc not in (22, 38):
            why = "Syscall User Dispatch did not catch a deliberate call"
        found.append(_refused("system_calls", asked, is_counting, syscalls_rc, why))
    else:
        how = "Syscall User Dispatch, proved by deliberate calls"
        if settings.guard_allow:
            how += f"; allowed: {', '.join(settings.guard_allow)}"
        found.append(Grant(_GRANTS["system_calls"], asked, given, ok=True, detail=how))
    if malloc_rc:
        why = "the library that counts is not loaded; rtloop.guard.reexec() loads it"
        if -malloc_rc != 2:
            why = "the library that is loaded did not count a deliberate allocation"
        found.append(Grant(_GRANTS["allocations"], asked, _UNAVAILABLE, ok=True, detail=why))
    else:
        how = "the preloaded library, proved by a deliberate allocation"
        found.append(Grant(_GRANTS["allocations"], asked, given, ok=True, detail=how))
    return found


def _refused(what: str, asked: str, is_counting: bool, rc: int, why: str) -> Grant:
    detail = f"{why}: {os.strerror(-rc)}" if rc else why
    fix = "" if is_counting else "count what can be counted: guard='count'"
    return Grant(_GRANTS[what], asked, _UNAVAILABLE, ok=is_counting, detail=detail, fix=fix, errno=-rc)


def violations(block: GuardBlock | None, cycle: int | None = None, *, has_lines: bool = True) -> list[dict[str, Any]]:
    """Return what is kept of the violations, of all cycles or of one, as dicts that JSON can hold.

    Parameters
    ----------
    block : GuardBlock or None
        The run's.
    cycle : int, optional
        Only those of this cycle.
    has_lines : bool
        Whether to look for file and line, which runs another program: not while the loop runs.
    """
    if block is None:
        return []
    raw = [v for v in block.violations() if cycle is None or v.cycle == cycle]
    if not raw:
        return []
    from rtloop.system.memory import fork_times

    forks, moved = fork_times(), _migrated_pages() - block.migrated
    traces: dict[tuple[int, ...], tuple[Place, list[Place]]] = {}
    for v in raw:
        if v.frames not in traces:
            traces[v.frames] = _trace(v.frames, is_after=v.kind in (_SYSCALL, _ALLOCATION))
    lines: dict[int, tuple[str, int]] = {}
    if has_lines:
        from rtloop.system.symbols import lines_of

        lines = lines_of([where for where, _ in traces.values()])
    return [_entry(v, *traces[v.frames], lines, forks, moved) for v in raw]


def _trace(frames: tuple[int, ...], is_after: bool) -> tuple[Place, list[Place]]:
    """Return where in the user's code it was, and through which functions from there.

    `frames` are the address itself and words of the stack, outwards, that may be return addresses.
    """
    from rtloop.system.symbols import called_at, is_return_address, place_of

    first = place_of(frames[0], is_return=is_after) if frames else place_of(0)
    through: list[Place] = []
    if _is_users(first.module) or not frames:
        return first, through
    through.append(first)
    for frame in frames[1:]:
        if is_return_address(frame):
            place = place_of(frame, is_return=True)
            if _is_users(place.module):
                called = called_at(frame)
                return place, _from(None if called is None else place_of(called), through)
            if os.path.dirname(place.module) not in _own_folders():  # what the loop itself has left on the stack
                through.append(place)
    return first, []  # without a place of the user's nothing tells what on the stack is of this call


def _from(called: Place | None, through: list[Place]) -> list[Place]:
    """Cut off what is farther out than the function that the user's code called: it is left from earlier calls."""
    if called is None or called.symbol is None:
        return through
    known = [i for i, place in enumerate(through) if place.symbol == called.symbol]
    return through[: known[-1] + 1] if known else [*through, called]


def _entry(
    v: RawViolation,
    where: Place,
    through: list[Place],
    lines: dict[int, tuple[str, int]],
    forks: Sequence[int],
    moved: int,
) -> dict[str, Any]:
    from rtloop.system.symbols import describe_memory
    from rtloop.system.syscalls import name_of

    note = ""
    if v.kind == _SYSCALL:
        detail = name_of(v.detail)
    elif v.kind == _ALLOCATION:
        name = _FUNCTIONS[v.function] if v.function < len(_FUNCTIONS) else "?"
        detail = name if name == "free" else f"{name} of {v.detail} bytes"
    else:
        detail = f"{v.detail:#x} in {describe_memory(v.detail)}" if v.frames else "address unknown"
        fork = max((time for time in forks if time <= v.time_ns), default=None)
        if fork is not None and v.time_ns - fork < _AFTER_FORK_NS:
            note = f"{(v.time_ns - fork) / 1e6:.1f} ms after a fork"
        elif moved > 0:
            note = f"{moved} pages of the machine were moved during the run (compaction)"
    if any(os.path.basename(place.module).startswith("ld-") for place in through):
        note = "; ".join(filter(None, (note, "in the dynamic linker: lazy binding, or thread-local storage")))
    file, line = lines.get(where.address, (None, None))
    return {
        "cycle": v.cycle,
        "kind": _KINDS[v.kind] if v.kind < len(_KINDS) else "?",
        "detail": detail,
        "address": where.address,
        "symbol": str(where) if v.frames else None,
        "through": [str(place) for place in reversed(through)],
        "file": file,
        "line": line,
        "note": note,
    }


def describe(violation: dict[str, Any]) -> str:
    """Say what a violation was and where: ``system call getppid in servo.Servo.step (servo.pyx:12)``."""
    text = f"{violation['kind']} {violation['detail']}"
    if violation["symbol"]:
        text += f" in {violation['symbol']}"
    if violation["line"]:
        text += f" ({os.path.basename(violation['file'])}:{violation['line']})"
    if violation["through"]:
        text += f" through {violation['through'][0]}"
    return text + (f", {violation['note']}" if violation["note"] else "")


def groups(guard: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return the listed violations that are alike, as how many there are and the first, in the order of the first."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for v in guard.get("violations", []):
        detail = v["kind"] if "fault" in v["kind"] else v["detail"]  # each fault has an address of its own
        found.setdefault((v["kind"], detail, v["address"], v["note"] != ""), []).append(v)
    return [(len(alike), alike[0]) for alike in found.values()]


def summarise(
    settings: dict[str, Any], given: Sequence[Grant], counters: dict[str, Any], listed: list[dict[str, Any]]
) -> dict[str, Any]:
    """Make ``Stats.guard``: empty without guards; a count of None was not counted, and `unavailable` says why."""
    mode = settings.get("guard", "off")
    if mode == "off":
        return {}
    minor, major, system_calls, allocations = counters["guard"]
    counts: dict[str, Any] = {
        "page_faults": {"minor": minor, "major": major},
        "system_calls": system_calls,
        "allocations": allocations,
    }
    by_name = {grant.name: grant for grant in given}
    unavailable = {}
    for what, name in _GRANTS.items():
        grant = by_name.get(name)
        if "simulation" in settings:
            unavailable[what] = "they are not applied to a simulated run"
        elif grant is None:
            unavailable[what] = "it is not known whether it was watched for"
        elif grant.granted == _UNAVAILABLE:
            unavailable[what] = grant.detail
        if what in unavailable:
            counts[what] = None
    total = sum(counters["guard"])
    return {
        "mode": mode,
        "allowed": list(settings.get("guard_allow") or ()),
        "cycles": 0 if len(unavailable) == len(_GRANTS) else counters["cycles"] - counters["warmup"],
        **counts,
        "unavailable": unavailable,
        "violations": listed,
        "unlisted": max(0, total - len(listed)),
    }


def _migrated_pages() -> int:
    """Return how many pages the kernel has moved since the machine was started, by compaction or between nodes."""
    try:
        for line in read_text("/proc/vmstat").splitlines():
            if line.startswith("pgmigrate_success "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def count(guard: dict[str, Any]) -> int:
    """Return how many violations a ``Stats.guard`` tells of."""
    faults = guard.get("page_faults") or {}
    others = sum(guard.get(name) or 0 for name in ("system_calls", "allocations"))
    return int(sum(faults.values()) + others)


def sentence(guard: dict[str, Any]) -> str:
    """Say what the guards have found: ``100 000 cycles: 0 page faults, 0 system calls, 0 allocations in step``.

    What was not counted is said, too, and never taken for none. Empty without guards.
    """
    if not guard:
        return ""
    unavailable = guard.get("unavailable", {})
    parts = []
    for what, label in _LABELS.items():
        if what not in unavailable:
            value = guard.get(what) or 0
            number = sum(value.values()) if isinstance(value, dict) else value
            parts.append(_counted(number, label))
            if what == "system_calls" and guard.get("allowed"):
                parts[-1] += f" besides the allowed ({', '.join(guard['allowed'])})"
            if what == "allocations" and number:
                parts[-1] = f"{_counted(number, 'call')} of malloc, free or their kin"
    missing = [f"{_LABELS[what]}s not counted ({why})" for what, why in unavailable.items()]
    reasons = list(unavailable.values())
    if not parts and len(set(reasons)) == 1:
        return f"The guards counted nothing: {reasons[0]}"
    if not parts:
        return f"The guards counted nothing: {'; '.join(missing)}"
    text = f"{_counted(guard.get('cycles', 0), 'cycle')}: {', '.join(parts)} in step"
    return "; ".join([text, *missing])


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
