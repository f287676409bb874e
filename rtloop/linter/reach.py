"""Reachability: from the methods that the loop's thread calls to everything that they call."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rtloop.linter.c_source import Function, Place, Unit
from rtloop.linter.function import Event, read_function
from rtloop.linter.names import CONTRACTS
from rtloop.settings import CALLBACKS

if TYPE_CHECKING:
    from rtloop.linter.generated import Generated

__all__ = ["CLASS_IN_CYTHON", "IN_C", "IN_CYTHON", "METHOD_IN_CYTHON", "Code", "Found", "Walk", "walk"]

#: Reasons why a call was not examined.
IN_C = "a C function whose source was not read"
IN_CYTHON = "a function of another Cython module"
METHOD_IN_CYTHON = "a method of a class of another Cython module"
CLASS_IN_CYTHON = "a class of another Cython module, whose methods it inherits"
_BASE = re.compile(r"struct __pyx_vtabstruct_(\w+) \{\s*struct __pyx_vtabstruct_(\w+) __pyx_base;")
_TABLE = re.compile(r"^struct __pyx_vtabstruct_(\w+) \{(.*?)^\};", re.MULTILINE | re.DOTALL)
_SLOT = re.compile(r"\(\*(\w+)\)\(")
#: Kinds that explain an exception on the same line, and kinds that taking the GIL explains.
_RAISING = ("gil", "raise", "python", "bounds-check", "division", "init-check")
_BY_GIL = ("python", "reference", "exception-check")
_OWN = re.compile(r"^\s*__pyx_vtable_(\w+)\.(?:__pyx_base\.)*(\w+) = [^;]*?\)\s*&?(__pyx_\w+);", re.MULTILINE)
#: Cython writes some of its own functions in Cython: "View.MemoryView", "<stringsource>".
_SOURCES = (".pyx", ".pxd", ".pxi", ".py")
#: Callees of Cython's own C, which mean nothing to the author of a .pyx.
_INTERNAL = re.compile(r"__P(?:yx|YX)_|PyErr_Set(?:String|None)$|PyErr_Format$")
_LOOP = re.compile(r"6rtloop_4loop_4loop__RTLoop_\d+$")
#: rtloop's own compiled modules: the C methods of its classes are linted by its own tests.
_OURS = re.compile(r"6rtloop_")
#: Functions of rtloop.memory for setup: each enters the kernel, or touches every page of a range.
_SETUP = re.compile(r"__pyx_f_6rtloop_6memory_6kernel_")


@dataclass
class Found:
    """A finding, or a call that was not examined, with its call chain."""

    kind: str
    place: Place
    function: str
    chain: tuple[str, ...]
    names: list[str] = field(default_factory=list)
    called_at: list[Place] = field(default_factory=list)


@dataclass
class Walk:
    """Findings from the roots on."""

    findings: list[Found] = field(default_factory=list)
    unseen: list[Found] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)


class Code:
    """The C of a module and of the headers that it includes, as one body of functions."""

    def __init__(self, generated: Generated) -> None:
        self.main = generated.unit
        self.is_cpp = "generated with the C++ option" in generated.unit.text  # which Cython checks there
        units = [*generated.headers, generated.unit]  # the module's own take precedence if a name is defined twice
        self.functions = {name: function for unit in units for name, function in unit.functions.items()}
        self.macros: dict[str, list[list]] = {}  # type: ignore[type-arg]
        for unit in units:
            for name, bodies in unit.macros.items():
                self.macros.setdefault(name, []).extend(bodies)
        text = self.main.text
        self.base = dict(_BASE.findall(text))
        self.slots = {name: set(_SLOT.findall(body)) for name, body in _TABLE.findall(text)}
        self.own = {(cls, method): function for cls, method, function in _OWN.findall(text)}
        self.local = {cls for cls in self.slots if f"__pyx_vtable_{cls};" in text}
        module = re.search(r'^#define __Pyx_MODULE_NAME "([\w.]+)"', text, re.MULTILINE)
        self.prefix = "".join(f"{len(part)}{part}_" for part in module[1].split(".")) if module else ""
        self._lines: dict[str, list[int]] = {}
        self._events: dict[str, list[Event]] = {}
        self._known = set(self.functions)
        for number, line in enumerate(self.main.path.read_text(encoding="utf-8").splitlines(), 1):
            self._lines.setdefault(line.strip(), []).append(number)

    def show(self, name: str) -> str:
        """Return a name as its author wrote it: Controller.step for __pyx_f_3mod_10Controller_step."""
        setup = _SETUP.match(name)
        if setup:
            return name[setup.end() :]
        short = re.sub(r"^(__pyx_fuse_\w+?(?=__pyx_))?__pyx_(?:f|v|vtable)_", "", name)
        if short == name and name not in self.slots:
            return name
        short = short.removeprefix(self.prefix)
        parts = []
        while match := re.match(r"(\d+)", short):
            end = len(match[1]) + int(match[1])
            if end > len(short):
                break
            parts.append(short[len(match[1]) : end])
            short = short[end:].removeprefix("_")
        return ".".join([*parts, short] if short else parts)

    def events(self, name: str) -> list[Event]:
        """Return the events of a function."""
        if name not in self._events:
            self._events[name] = read_function(self.functions[name], self._known, self.macros, self.locate)
        return self._events[name]

    def is_helper(self, function: Function) -> bool:
        """Return whether a function is Cython's own, without a line in the project's sources."""
        if function.unit is not self.main or not function.name.lower().startswith("__pyx"):
            return False
        return function.place is None or not function.place.file.endswith(_SOURCES)

    def locate(self, unit: Unit, line: int) -> Place | None:
        """Return the place of a line of C: in a header, or in a verbatim block of the .pyx."""
        if unit is not self.main:
            return Place(str(unit.path), line)
        start = unit.text.rfind("\n", 0, _offset(unit, line)) + 1
        numbers = self._lines.get(unit.text[start : unit.text.find("\n", start)].strip())
        return Place(str(unit.path), numbers[0]) if numbers else None

    def is_loop(self, cls: str) -> bool:
        """Return whether a class is RTLoop or inherits from it."""
        return any(_LOOP.match(one) for one in self.line(cls))

    def line(self, cls: str) -> list[str]:
        """Return a class and those it inherits from, nearest first."""
        line = [cls]
        while line[-1] in self.base:
            line.append(self.base[line[-1]])
        return line

    def matching(self, wanted: str) -> list[str]:
        """Return the C functions of a name, ``name`` or ``Class.name``."""
        found = [name for name, function in self.functions.items() if not self.is_helper(function)]
        return [name for name in found if wanted in (self.show(name), self.show(name).rpartition(".")[2])]

    def targets(self, cls: str, method: str) -> tuple[set[str], str]:
        """Return the functions that a method may be, and the class that defines it elsewhere, "" if none."""
        found = {function for (one, name), function in self.own.items() if name == method and cls in self.line(one)}
        for one in self.line(cls):
            if (one, method) in self.own:
                return found | {self.own[one, method]}, ""
            if one not in self.local:
                return found, one
        return found, ""


def _offset(unit: Unit, line: int) -> int:
    unit.line(0)
    return unit._starts[line - 1]


class _Walker:
    """Breadth-first walk, so that the call chain of a finding is the shortest one."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.result = Walk()
        self.seen: set[str] = set()
        self.queue: deque[tuple[str, tuple[str, ...], Place | None]] = deque()
        self.allowed: frozenset[str] = frozenset()  # kinds that the methods being followed may do
        self.by_cause: dict[tuple[str, Place], Found] = {}
        self.by_name: dict[str, Found] = {}

    def visit(self, name: str, chain: tuple[str, ...], caller: Place | None) -> None:
        if name not in self.seen:
            self.seen.add(name)
            self.queue.append((name, (*chain, self.code.show(name)), caller))

    def run(self) -> None:
        while self.queue:
            name, chain, caller = self.queue.popleft()
            self.result.functions.append(chain[-1])
            for event in self.code.events(name):
                self.take(event, chain, caller)

    def take(self, event: Event, chain: tuple[str, ...], caller: Place | None) -> None:
        place = event.place or caller or Place(str(self.code.main.path), 1)
        if event.what == "finding":
            self.find(event.kind, event.name, place, chain)
        elif event.what == "function":
            function = self.code.functions[event.name]
            if self.code.is_helper(function):
                self.helper(event.name, place, chain, set())
            else:
                self.visit(event.name, chain, place)
        elif event.what == "method":
            self.method(event, place, chain)
        elif event.what.startswith("checked"):
            self.checked(event, place, chain)
        elif event.what == "pointer":
            is_cpp = event.name and self.code.is_cpp and not event.name.startswith("__pyx_")
            how = "a method of a C++ class, which was not read" if is_cpp else "a call through a pointer to a function"
            self.not_seen(event.name or "a pointer", how, place, chain)
        elif _SETUP.match(event.name):
            self.find("system-call", event.name, place, chain)
        elif not re.match(r"__pyx_fp?_" + _OURS.pattern, event.name):
            cimported = event.name.startswith("__pyx_f")
            how = IN_CYTHON if cimported else IN_C
            self.not_seen(event.name, how, place, chain)

    def method(self, event: Event, place: Place, chain: tuple[str, ...]) -> None:
        code = self.code
        if event.kind not in code.slots:
            self.not_seen(event.name, "a method of an unknown class", place, chain)
            return
        functions, elsewhere = code.targets(event.kind, event.name)
        for function in sorted(functions):
            if function in code.functions:
                self.visit(function, chain, place)
        if elsewhere and not _OURS.match(elsewhere):
            self.not_seen(f"{code.show(elsewhere)}.{event.name}", METHOD_IN_CYTHON, place, chain)

    def checked(self, event: Event, place: Place, chain: tuple[str, ...]) -> None:
        """Attribute a check for an exception after a call to the callee's declaration."""
        name = event.name
        if event.what == "checked method" and event.kind in self.code.slots:
            own = [self.code.own.get((cls, name)) for cls in self.code.line(event.kind)]
            name = next((one for one in own if one in self.code.functions), name)
        function = self.code.functions.get(name)
        if function and not self.code.is_helper(function) and function.place:
            self.find("missing-noexcept", name, place, chain)
        elif not any((kind, place) in self.by_cause for kind in _RAISING):
            self.find("exception-check", name, place, chain)

    def helper(self, name: str, place: Place, chain: tuple[str, ...], seen: set[str]) -> None:
        """Attribute the worst event of one of Cython's own functions to the line that calls it."""
        seen.add(name)
        for event in self.code.events(name):
            if event.what == "finding" and event.kind not in self.allowed:
                self.find("python" if event.kind in ("missing-noexcept", "raise") else event.kind, name, place, chain)
                return
            if event.what == "function" and event.name not in seen:
                self.helper(event.name, place, chain, seen)

    def find(self, kind: str, name: str, place: Place, chain: tuple[str, ...]) -> None:
        if kind in self.allowed:
            return
        called = place
        if kind == "missing-noexcept":
            place = self.code.functions[name].place or place
        key = kind, place
        if key not in self.by_cause:
            self.by_cause[key] = Found(kind, place, chain[-1], chain)
            self.result.findings.append(self.by_cause[key])
        _note(self.by_cause[key], "" if _INTERNAL.match(name) else self.code.show(name), called)

    def not_seen(self, name: str, how: str, place: Place, chain: tuple[str, ...]) -> None:
        shown = self.code.show(name)
        if shown not in self.by_name:
            self.by_name[shown] = Found(how, place, chain[-1], chain)
            self.result.unseen.append(self.by_name[shown])
        _note(self.by_name[shown], shown, place)


def _note(found: Found, name: str, called: Place) -> None:
    if name and name not in found.names:
        found.names.append(name)
    if called not in found.called_at:
        found.called_at.append(called)


def walk(code: Code, functions: tuple[str, ...] = ()) -> Walk:
    """Follow the calls from the overridden methods of every loop in a module, and from further functions.

    Parameters
    ----------
    code : Code
        The module.
    functions : tuple of str
        Names of more functions to start at, ``name`` or ``Class.name``.
    """
    walker = _Walker(code)
    loops = [cls for cls in code.slots if cls in code.local and code.is_loop(cls)]
    walker.result.loops = [code.show(cls) for cls in loops]
    roots = [(cls, name) for cls in loops for name in CALLBACKS if (cls, name) in code.own]
    for cls in loops:
        _inherited(walker, cls)

    for name in functions:
        for function in code.matching(name):
            walker.visit(function, (), None)
    for methods, walker.allowed in CONTRACTS:  # the strictest first, because each function is followed once
        for cls, name in roots:
            if name in methods:
                walker.visit(code.own[cls, name], (), None)
        walker.run()
    result = walker.result
    under_gil = {one.place for one in result.findings if one.kind == "gil"}
    result.findings = [one for one in result.findings if one.kind not in _BY_GIL or one.place not in under_gil]
    return result


def _inherited(walker: _Walker, cls: str) -> None:
    """Report methods that a loop inherits from a class of another module, which were not read."""
    code = walker.code
    for name in CALLBACKS:
        _, elsewhere = code.targets(cls, name)
        if elsewhere and not _OURS.match(elsewhere):
            place = Place(str(code.main.path), 1)
            walker.not_seen(code.show(elsewhere), CLASS_IN_CYTHON, place, (code.show(cls),))
