"""A cast of the former step in ``take_over`` that would read another object's fields is refused before the swap."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rtloop

LAW = """\
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef class State(RTLoop):
    cdef public double integral

cdef class Law(State):
    cdef public double gain

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.integral += 1
        return RT_CONTINUE

    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.integral = (<Law>former).integral
        return RT_CONTINUE

cdef class Free(State):
    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.integral = (<State>former).integral
        return RT_CONTINUE

cdef class Plain(RTLoop):
    pass
"""


@pytest.fixture
def build(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    folder = tmp_path_factory.getbasetemp() / "casts"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("CFLAGS", "-O0")

    def make(*changes: tuple[str, str], name: str = "law") -> ModuleType:
        text = LAW
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / f"{name}.pyx").write_text(text)
        return rtloop.build(folder / f"{name}.pyx", cache=folder / "cache")

    return make


def swap(former: Any, successor: Any) -> Any:
    """Swap in virtual time; return the stats."""
    return former.simulate(cycles=4, swaps={2: successor})


def test_a_cast_is_checked_against_the_step_in_place(build: Callable[..., ModuleType]) -> None:
    module = build()
    made = module.Law("1kHz")
    swap(module.Law("1kHz"), made)
    assert made.integral == 4
    free = module.Free("1kHz")
    swap(module.Law("1kHz"), free)  # a base class of it
    assert free.integral == 2
    for former in (module.Free, module.Plain, lambda period: rtloop.PyLoop(lambda cycle: 0, period)):
        loop, wrong = former("1kHz"), module.Law("1kHz", stack_size="64K")
        with pytest.raises(rtloop.SwapError, match=r"law\.pyx:14: take_over\(\) reads the former step as a Law, but"):
            swap(loop, wrong)
        assert wrong.state == "new", "it can still become the step of another loop"
        assert swap(module.Law("1kHz"), wrong).swaps[0].cycle == 2


def test_two_builds_are_compared_by_their_fields(build: Callable[..., ModuleType], ordinary: dict[str, Any]) -> None:
    first, moved = build(), build(("double gain", "double offset, gain"))
    later = build(("cdef class State", "# a comment\n\n\ncdef class State"))
    renamed = build(name="other")
    assert len({id(module) for module in (first, moved, later, renamed)}) == 4
    derived = types.new_class("Law", (first.Law,))
    for former, module, made in (
        (first.Law, later, 4),
        (later.Law, first, 4),
        (first.Law, renamed, 4),
        (derived, later, 4),
    ):
        successor = module.Law("1kHz")
        swap(former("1kHz"), successor)
        assert successor.integral == made, "the fields are where they were"
    free = moved.Free("1kHz")
    swap(first.Law("1kHz"), free)
    assert free.integral == 2
    with first.Law("1kHz", **ordinary) as loop:
        with pytest.raises(rtloop.SwapError, match="the fields of Law have changed; fix: keep the fields"):
            loop.swap(moved.Law("1kHz", **ordinary))
        assert loop.state == "running" and loop.stats.swaps == ()
        loop.swap(moved.Free("1kHz", **ordinary))
        assert loop.stats.swaps[0].successor == "Free"


def test_a_build_that_is_not_known_is_trusted_only_if_it_is_the_same_class(
    build: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    from weakref import WeakKeyDictionary

    from rtloop import layouts

    first, later = build(), build(("cdef class State", "# another comment\n\ncdef class State"))
    known = {later.Law: layouts._known[later.Law]}
    monkeypatch.setattr(layouts, "_known", WeakKeyDictionary(known))  # as if the first had been built by Meson
    swap(later.Law("1kHz"), later.Law("1kHz"))
    swap(first.Law("1kHz"), first.Law("1kHz"))
    with pytest.raises(rtloop.SwapError, match="the fields of that Law are unknown, because"):
        swap(first.Law("1kHz"), later.Law("1kHz"))


def test_the_casts_of_a_source_are_those_of_its_take_overs() -> None:
    from rtloop.layouts import Cast, find_take_overs, select_casts

    found = find_take_overs(
        "cdef class A(RTLoop):\n"
        "    cdef int take_over(self, RTLoop old,\n"
        "                       const Cycle *cycle) noexcept nogil:\n"
        "        # the end of a take_over is\n"
        "# not a comment\n"
        "        x = (<A>old).x + (<B> old).f()  # rtloop: cast A: it is one\n"
        "    cdef int f(self, RTLoop old) noexcept nogil:\n"
        "        return (<C>old).x\n"
        "cdef class B(A):\n"
        "    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:\n"
        "        self.x = (<B>former).x\n"
        "        return A.take_over(self, former, cycle)\n"
    )
    assert select_casts(found, ["A"]) == [Cast(6, "B", True)]
    assert select_casts(found, ["C", "B", "A"]) == [Cast(6, "B", True), Cast(11, "B", False)]
    assert select_casts(found, ["RTLoop"]) == []


DAMAGED = ("", "[]", '["law", "law.pyx", {}, {"Law": 3}]', '["law", "law.pyx", 7, {}]', '["law", "law.pyx", {}, []]')


def test_what_was_kept_beside_a_module_may_be_damaged_or_removed(build: Callable[..., ModuleType]) -> None:
    from rtloop import layouts

    module = build()
    file = Path(module.__file__ or "").with_name("layouts.json")
    text = file.read_text()
    assert file.stat().st_mode & 0o666 == Path(module.__file__ or "").stat().st_mode & 0o666
    file.unlink()  # the cache was emptied: what is loaded is still known
    with pytest.raises(rtloop.SwapError, match="reads the former step as a Law, but it is a Free"):
        swap(module.Free("1kHz"), module.Law("1kHz"))
    for kept in DAMAGED:
        file.write_text(kept)
        for kind in (module.State, module.Law, module.Free, module.Plain):
            del layouts._known[kind]
        layouts.remember_module(module, Path(module.__file__ or ""))
        swap(module.Law("1kHz"), module.Law("1kHz"))
    file.write_text(text)
    del layouts._known[module.Law]


TYPES = """\
from rtloop cimport RT_CONTINUE, Cycle
cimport rtloop

ctypedef float real

cdef enum Axis:
    X, Y

cdef union Word:
    float x

cdef packed struct Sample:
    char tag
    real value

cdef extern from *:
    "typedef struct { float x; } extern_state;"
    ctypedef struct extern_state:
        float x

cdef public class Law(rtloop.RTLoop) [object LawObject, type LawType]:
    "As (<Other>former) is none."
    cdef Sample sample
    cdef Word word
    cdef extern_state state
    cdef real[Y] values

    cdef int take_over(self, rtloop.RTLoop former, const Cycle *cycle) noexcept nogil:
        # (<Other>former).values is what it once was
        self.values[0] = (<Law>former).values[0]
        return RT_CONTINUE
"""


def test_the_types_of_fields_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typedef, a union, a packed struct, the length of an array, and a struct of C that only its size tells of."""
    from rtloop import layouts
    from rtloop.layouts import Cast, find_disagreement

    monkeypatch.setenv("CFLAGS", "-O0")
    text = TYPES.replace("cdef public class Law", "cdef class Law").replace(" [object LawObject, type LawType]", "")

    def make(source: str) -> Any:
        (tmp_path / "law.pyx").write_text(source)
        return rtloop.build(tmp_path / "law.pyx", cache=tmp_path / "cache").Law

    first = make(text)
    kept = layouts._known[first][1]
    structs = json.loads(kept)[2]
    law = [Cast(30, "Law", is_called=False)]
    for old, new in (
        ("typedef float", "typedef double"),
        ('_Word": "float x;', '_Word": "float x[3];'),
        ("char tag", "char tag[2]"),
        ("law_X, __pyx_e_3law_Y", "law_X, __pyx_e_3law_W, __pyx_e_3law_Y"),
    ):
        assert old in kept
        after = json.loads(kept.replace(old, new))[2]
        assert find_disagreement(law, ["Law"], structs, after)[1].endswith("the fields of Law have changed"), old
    later = make(text.replace("struct { float x;", "struct { float w, x, y, z;").replace("X, Y", "X, Y, Z"))
    assert find_disagreement(law, ["Law"], structs, json.loads(layouts._known[later][1])[2]) == (0, "")
    with pytest.raises(rtloop.SwapError, match=r"law\.pyx:30: .* as a Law, whose size was \d+ bytes and is \d+; fix"):
        swap(first("1kHz"), later("1kHz"))


def test_the_casts_of_a_source_are_found_however_it_is_written() -> None:
    from rtloop.layouts import Cast, TakeOver, find_take_overs

    found = find_take_overs(
        TYPES.replace("cimport RT", "cimport (Old as Law,\n Cycle, RT").replace("CONTINUE, Cycle", "CONTINUE as RT)")
    )
    assert found == {"Law": TakeOver((Cast(31, "Old", False),), ())}
    assert find_take_overs(TYPES)["Law"].casts[0][:2] == (30, "Law")
