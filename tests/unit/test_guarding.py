"""Texts of the guards: the summary sentence, the notes of a violation, and what could not be counted."""

from __future__ import annotations

import time
from typing import Any

import pytest

import rtloop
from rtloop.guard import symbols, violations
from rtloop.guard.guard_block import GuardBlock, RawViolation
from rtloop.guard.symbols import Place
from rtloop.memory import forks
from rtloop.stats import guard_summary
from rtloop.system.grant import Grant

NAMES = ("guard_page_faults", "guard_system_calls", "guard_allocations")


def given(*missing: str) -> tuple[Grant, ...]:
    return tuple(
        Grant(name, "count", "unavailable" if name in missing else "counted", ok=True, detail="for a reason")
        for name in NAMES
    )


def summary(*missing: str, counts: tuple[int, ...] = (0, 0, 0, 0), cycles: int = 100_010) -> dict[str, Any]:
    counters = {"guard": counts, "cycles": cycles, "warmup": 10}
    return guard_summary.summarise({"guard": "count"}, given(*missing), counters, [])


def test_the_sentence_of_a_clean_run() -> None:
    assert guard_summary.sentence(summary()) == (
        "100,000 cycles: 0 page faults, 0 system calls, 0 allocations in step"
    )  # fmt: skip


def test_minor_and_major_faults_are_apart_and_one_is_one() -> None:
    found = summary(counts=(1, 2, 1, 5), cycles=11)
    assert found["page_faults"] == {"minor": 1, "major": 2}
    assert (
        guard_summary.sentence(found)
        == "1 cycle: 3 page faults, 1 system call, 5 calls of malloc, free and the like in step"
    )
    assert guard_summary.count(found) == 9
    assert found["unlisted"] == {"minor fault": 1, "major fault": 2, "system call": 1, "allocation": 5}


def test_what_was_allowed_is_named_and_not_called_none() -> None:
    counters = {"guard": (0, 0, 0, 0), "cycles": 110, "warmup": 10}
    found = guard_summary.summarise({"guard": "stop", "guard_allow": ["sendto", "recvfrom"]}, given(), counters, [])
    assert "0 system calls other than the allowed (sendto, recvfrom), 0 allocations in step" in guard_summary.sentence(
        found
    )
    assert found["allowed"] == ["sendto", "recvfrom"]


@pytest.mark.parametrize("missing", NAMES)
def test_what_was_not_counted_is_never_called_clean(missing: str) -> None:
    found = summary(missing)
    label = missing.removeprefix("guard_").replace("_", " ")
    text = guard_summary.sentence(found)
    assert f"0 {label}" not in text and f"{label} not counted (for a reason)" in text
    assert found[missing.removeprefix("guard_")] is None


def test_grants_that_are_not_known_count_nothing() -> None:
    found = guard_summary.summarise({"guard": "stop"}, (), {"guard": (0, 0, 0, 0), "cycles": 5, "warmup": 0}, [])
    assert guard_summary.sentence(found).startswith("The guards counted nothing")


def raw(kind: int, **more: Any) -> RawViolation:
    values = {"cycle": 7, "last_cycle": 7, "times": 1, "time_ns": time.monotonic_ns(), "last_time_ns": 0, "kind": kind,
              "detail": 16, "least": 16, "most": 16, "function": 0, "frames": (0,)}  # fmt: skip
    return RawViolation(**(values | more))


class Block:
    """A block in which there are these violations."""

    migrated = 0
    moved = None

    def __init__(self, *found: RawViolation) -> None:
        self.found = found

    def violations(self) -> list[RawViolation]:
        return list(self.found)


def test_a_fault_says_what_the_machine_did_just_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(violations, "migrated_pages", lambda: 12)
    now = time.monotonic_ns()
    monkeypatch.setattr(forks, "fork_times", lambda: [now - 5_000_000_000, now - 2_000_000])
    long_ago = now - 3_000_000_000
    after, long_after = raw(0, time_ns=now), raw(0, time_ns=long_ago, frames=(1,))
    last = raw(0, time_ns=long_ago, last_time_ns=now, frames=(2,))
    call = raw(2, time_ns=now)
    found = violations.list_violations(Block(after, long_after, last, call))  # type: ignore[arg-type]
    assert [v["note"] for v in found] == [
        "2.0 ms after a fork",
        "12 pages of the machine were moved during the run (compaction)",
        "the last one 2.0 ms after a fork",
        "",
    ]


def test_what_the_thread_kept_apart_at_one_place_is_one_entry() -> None:
    """The stack differs by leftovers of earlier calls; the place in the user's code does not."""
    found = violations.list_violations(Block(
        raw(3, cycle=7, last_cycle=9, times=5, frames=(0, 1)),
        raw(3, cycle=8, last_cycle=20, times=2, least=8, most=24, frames=(0, 2)),
        raw(3, cycle=8, last_cycle=8, function=1, frames=(0, 1)),
    ))  # type: ignore[arg-type]  # fmt: skip
    assert [(v["cycle"], v["last_cycle"], v["count"], v["detail"]) for v in found] == [
        (7, 20, 7, "malloc of 8 to 24 bytes"),
        (8, 8, 1, "calloc of 16 bytes"),
    ]


def test_violations_that_an_older_rtloop_saved_one_by_one_are_grouped() -> None:
    old = {"kind": "allocation", "detail": "malloc of 8 bytes", "address": 5, "symbol": None, "line": None,
           "through": [], "note": ""}  # fmt: skip
    guard = {"violations": [{**old, "cycle": 3}, {**old, "cycle": 9}], "unlisted": 4}
    (found,) = guard_summary.groups(guard)
    assert (found["cycle"], found["last_cycle"], found["count"]) == (3, 9, 2)
    assert guard_summary.when(found) == "in cycles 3 to 9" and guard_summary.unlisted(guard) == ["4 violations"]


def test_kinds_have_their_details() -> None:
    found = violations.list_violations(Block(raw(1), raw(2, detail=0), raw(3, function=2), raw(3, function=3)))  # type: ignore[arg-type]
    kinds = [(v["kind"], v["detail"]) for v in found]
    assert kinds[0] == ("major fault", "0x10 in no mapping") and kinds[1][0] == "system call"
    assert kinds[2:] == [("allocation", "realloc of 16 bytes"), ("allocation", "free")]


def test_a_block_that_nobody_wrote_to_has_nothing() -> None:
    block = GuardBlock(is_stopping=False, warmup=0, allowed=(), code=())
    assert block.violations() == [] and violations.list_violations(block) == []
    block.close()
    block.close()


def test_an_error_survives_pickling() -> None:
    import pickle

    error = rtloop.GuardError("stopped", "arm", 20, {"kind": "system call"})
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.name, copy.cycle, copy.violation) == ("stopped", "arm", 20, {"kind": "system call"})


def test_the_way_begins_with_the_function_that_the_users_code_called() -> None:
    """What lies farther out on the stack is left from earlier calls."""
    from rtloop.guard.symbols import Place

    def place(symbol: str) -> Place:
        return Place(1, "/lib/libc.so.6", 1, symbol)

    through = [place(name) for name in ("write", "vfprintf", "printf", "clock_nanosleep")]  # inwards out
    assert violations._from(place("printf"), through) == through[:3]
    assert violations._from(place("puts"), through) == [*through, place("puts")], "it called something that jumped on"
    assert violations._from(None, through) == through, "the machine code does not tell"


#: Code of a process, by address: its file, its function, and what the call just before it leads to, if that is known.
CODE: dict[int, tuple[str, str, int | None]] = {
    10: ("/lib/libc.so.6", "write", None),
    11: ("/lib/libc.so.6", "new_do_write", 10),
    12: ("/lib/libc.so.6", "printf", 11),
    20: ("/lib/ld-linux.so.2", "_dl_lookup", None),
    21: ("/lib/ld-linux.so.2", "_dl_fixup", 20),
    22: ("/lib/ld-linux.so.2", "__tls_get_addr", 31),
    23: ("/lib/ld-linux.so.2", "call_init", None),
    30: ("/lib/libpython3.so", "PyGILState_Ensure", 32),
    31: ("/lib/libc.so.6", "malloc", None),
    32: ("/lib/libpython3.so", "PyThreadState_New", None),
    40: ("/lib/libc.so.6", "dlsym", 21),
    90: ("/home/me/servo.so", "step", 12),
    91: ("/home/me/servo.so", "step", 31),
    92: ("/home/me/servo.so", "step", 40),
}
BINDING = "in the dynamic linker: lazy binding, or thread-local storage"


@pytest.mark.parametrize(
    ("stack", "more", "through", "note"),
    [
        ((10, 11, 21, 30, 12, 90), {}, ["printf", "new_do_write", "write"], ""),
        ((10, 11, 21, 12, 90), {"last_cycle": 7}, ["printf", "new_do_write", "write"], ""),
        ((20, 21, 91), {}, ["malloc", "_dl_fixup", "_dl_lookup"], BINDING),
        ((20, 21, 30, 91), {}, ["malloc", "PyGILState_Ensure", "_dl_fixup", "_dl_lookup"], BINDING),
        ((31, 22, 91), {}, ["malloc"], ""),
        ((31, 22, 21, 90), {}, ["printf", "_dl_fixup", "__tls_get_addr", "malloc"], BINDING),
        ((20, 21, 91), {"last_cycle": 50}, ["malloc", "_dl_fixup", "_dl_lookup"], ""),
        ((20, 21, 40, 92), {}, ["dlsym", "_dl_fixup", "_dl_lookup"], ""),
        ((31, 23, 91), {}, ["malloc"], ""),
    ],
    ids=[
        "the remains of a binding in a buffer",
        "the same in later cycles",
        "a binding",
        "a binding by a library that the step has called",
        "an allocation by the step",
        "an allocation by the linker",
        "again in a later cycle",
        "dlsym",
        "remains that may have called anything",
    ],
)
def test_the_dynamic_linker_is_a_cause_where_it_runs_and_once(
    stack: tuple[int, ...], more: dict[str, int], through: list[str], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(address: int, *, is_return: bool = False) -> Place:
        return Place(address, CODE[address][0], address, CODE[address][1])

    monkeypatch.setattr(symbols, "place_of", place)
    monkeypatch.setattr(symbols, "is_return_address", lambda address: True)
    monkeypatch.setattr(symbols, "called_at", lambda address: CODE[address][2])
    monkeypatch.setattr(violations, "migrated_pages", lambda: 0)
    block = Block(raw(2, cycle=5, frames=stack, **{"last_cycle": 5, **more}))
    (found,) = violations.list_violations(block, has_lines=False)  # type: ignore[arg-type]
    assert (found["symbol"], found["through"], found["note"]) == ("step", through, note)


# The functions between the user's code and the violation, innermost first.


def test_the_nameless_functions_below_a_known_one_are_its_librarys_own_affair() -> None:
    libc, other = "/usr/lib/libc.so.6", "/usr/lib/libother.so"
    nameless = [Place(n, libc, n, None) for n in (1, 2, 3)]
    write, printf = Place(4, libc, 4, "write"), Place(5, libc, 5, "printf")
    between = Place(6, libc, 6, None)
    assert violations.drop_internals([*nameless, write, between, printf]) == [write, between, printf]
    assert violations.drop_internals([write, printf]) == [write, printf]
    # The only hint at where it was, or at another library.
    assert violations.drop_internals(nameless) == nameless
    stripped = Place(7, other, 7, None)
    assert violations.drop_internals([stripped, write]) == [stripped, write]
    assert violations.drop_internals([]) == []
