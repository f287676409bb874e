"""A cast of the former step in ``take_over`` that would read another object's fields is refused before the swap."""

from __future__ import annotations

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
        with pytest.raises(rtloop.SwapError, match=r"law\.pyx:14: take_over\(\) reads the former step as a Law, and"):
            swap(loop, wrong)
        assert wrong.state == "new", "it can still become the step of another loop"
        assert swap(module.Law("1kHz"), wrong).swaps[0].cycle == 2


def test_two_builds_are_compared_by_their_fields(build: Callable[..., ModuleType], ordinary: dict[str, Any]) -> None:
    first, moved = build(), build(("double gain", "double offset, gain"))
    later = build(("cdef class State", "# a comment\n\n\ncdef class State"))
    renamed = build(name="other")
    assert len({id(module) for module in (first, moved, later, renamed)}) == 4
    for former, module, made in ((first, later, 4), (later, first, 4), (first, renamed, 4)):
        successor = module.Law("1kHz")
        swap(former.Law("1kHz"), successor)
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
    with pytest.raises(rtloop.SwapError, match="the fields of that Law are not known, because"):
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


@pytest.mark.parametrize("kept", ["", "[]", '["law", "law.pyx", {}, {"Law": 3}]', '["law", "law.pyx", 7, {}]'])
def test_what_was_kept_beside_a_module_may_be_damaged(build: Callable[..., ModuleType], kept: str) -> None:
    from rtloop import layouts

    module = build(name="damaged")
    Path(layouts._known[module.Law][1]).with_name("layouts.json").write_text(kept)
    swap(module.Law("1kHz"), module.Law("1kHz"))
