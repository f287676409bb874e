"""Events of one C function: its calls, and its own actions that a loop's thread must avoid."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from rtloop.linter.c_source import Place, closing, source_place
from rtloop.linter.names import is_cython_macro, is_harmless, judge, judge_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtloop.linter.c_source import Function, Token, Unit

__all__ = ["Event", "read_function"]

_KEYWORDS = """
    if else for while do switch case return sizeof goto break continue default static inline const volatile struct union
    enum void char short int long float double signed unsigned bool _Bool typeof __typeof__ alignof _Alignof
    __attribute__ __extension__ asm __asm__ __volatile__ size_t ssize_t Py_ssize_t PyObject defined
    try catch throw template typename noexcept decltype static_cast const_cast reinterpret_cast dynamic_cast"""
_WORDS = set(_KEYWORDS.split())
_VTABLE = re.compile(r"__pyx_vtab(?:struct|ptr)_(\w+)")
_CALLEES = ("function", "method", "pointer", "outside")


class Event(NamedTuple):
    """An event in a function.

    Attributes
    ----------
    what : str
        "finding"; or a call of a "function" that was read, a "method" through a vtable, one through a "pointer",
        or one of a function that is "outside" of what was read; "checked function" and "checked method" say that the
        caller looks for an exception afterwards.
    kind : str
        The kind of a finding; the vtable's class of a method.
    name : str
        Name of the callee, "" if there is none.
    place : Place or None
        The line; None if it is the caller's.
    """

    what: str
    kind: str
    name: str
    place: Place | None


class _Reader:
    """One walk through a body, which tracks the place and the calls of the present line of C."""

    def __init__(self, function: Function, known: set[str], macros: dict[str, list[list[Token]]]) -> None:
        self.function, self.known, self.macros = function, known, macros
        self.place = function.place
        self.is_generated = function.place is not None
        self.events: list[Event] = []
        self.vtable = ""
        self.locate: Callable[[Unit, int], Place | None] = lambda unit, line: None
        self.line = 0
        self.callee: Event | None = None

    def add(self, what: str, kind: str, name: str) -> None:
        event = Event(what, kind, name, self.place)
        self.events.append(event)
        if what in _CALLEES:
            self.callee = event

    def found_here(self) -> bool:
        return any(event.what == "finding" and event.place == self.place for event in self.events)

    def run(self) -> list[Event]:
        body, index = self.function.body, 0
        while index < len(body):
            token = body[index]
            if token.kind == "comment":
                if "function exit code" in token.text:
                    break  # the clean-up of something that was reported at its origin
                self.place = source_place(token.text) or self.place
            elif token.kind == "sign":
                if token.text == "(":
                    self.called_value(index)
                elif token.text == "+=":
                    self.wraps(index)
            elif token.kind == "name":
                line = self.function.unit.line(token.offset)
                if line != self.line:
                    self.line, self.callee = line, None
                    if not self.is_generated:
                        self.place = self.locate(self.function.unit, line)
                index = self.name(index)
            index += 1
        return self.events

    def name(self, index: int) -> int:
        """Read a name; return the index of the last token that it consumed."""
        body, text = self.function.body, self.function.body[index].text
        if text in ("if", "while") and _is_zero(body, index + 1):
            return _skip_statement(body, closing(body, index + 1) + 1)
        if text in ("asm", "__asm__"):
            return _skip_statement(body, index)
        if text in ("new", "delete") and index + 1 < len(body) and body[index + 1].kind == "name":
            self.add("finding", "allocation", text)  # C++; in C these are names, never followed by a name
        vtable = _VTABLE.match(text)
        if vtable:
            self.vtable = vtable[1]
        follows = body[index + 1].text if index + 1 < len(body) else ""
        before = body[index - 1].text if index else ""
        if before in ("->", "."):
            if follows == "(" and self.vtable:
                self.add("method", self.vtable, text)
                self.vtable = ""
            elif follows == "(":
                self.add("pointer", "", text)
        elif follows == "(" and text not in _WORDS:
            return self.call(index, text)
        elif text in self.known and before not in ("goto", "struct"):
            self.add("function", "", text)  # its address is taken, so it may be called
        return index

    def call(self, index: int, name: str) -> int:
        body = self.function.body
        if name in ("__PYX_ERR", "__PYX_ERR_WITH_GIL"):
            self.error()
            return closing(body, index + 1)
        alias = self.macros.get(name, [])
        kind = self.judge(index) or (judge(alias[0][0].text) if len(alias) == 1 and len(alias[0]) == 1 else None)
        if is_cython_macro(name):
            return index
        if kind == "gil":
            return self.gil(index, name)
        if kind == "exception-check":
            self.check()
        elif kind == "raise":
            end = closing(body, index + 1)
            self.add("finding", judge_error(" ".join(token.text for token in body[index:end])), name)
            return end
        elif name in self.known and kind in (None, "python", "allocation", "blocking", "io", "system-call"):
            self.add("function", "", name)
        elif kind:
            self.add("finding", kind, name)
        elif alias:
            self.expand(name, set())
        elif name.startswith(("__pyx_v_", "__pyx_t_")):
            self.add("pointer", "", name if name.startswith("__pyx_v_") else "")
        elif not is_harmless(name):
            self.add("outside", "", name)
        return index

    def judge(self, index: int) -> str | None:
        """Judge a call by its name, and a socket's call by its MSG_DONTWAIT."""
        body = self.function.body
        kind = judge(body[index].text)
        if kind == "blocking" and any(token.text == "MSG_DONTWAIT" for token in body[index : closing(body, index + 1)]):
            return "system-call"
        return kind

    def gil(self, index: int, name: str) -> int:
        """Read a block under the GIL; the cause of everything in it is taking the GIL, or an exception."""
        body = self.function.body
        level, end = 0, index
        while end < len(body) - 1 and level >= 0:
            end += 1
            if body[end].kind == "sign":
                level += {"{": 1, "}": -1}.get(body[end].text, 0)
        inside = [token for token in body[index:end] if token.kind != "comment"]
        names = {token.text for token in inside}
        text = " ".join(token.text for token in inside)
        lines = {source_place(token.text) for token in body[index:end] if token.kind == "comment"} - {None, self.place}
        if not lines and names & {"__Pyx_Raise", "PyErr_SetString", "PyErr_Format", "PyErr_SetNone"}:
            self.add("finding", judge_error(text), "")
        elif not lines and any("CppExn2PyErr" in name for name in names):
            self.add("finding", "exception-check", "")
        elif not lines and any(name.startswith("__Pyx_Raise") for name in names):
            kinds = [judge(name) for name in names if name.startswith("__Pyx_Raise")]
            self.add("finding", kinds[0] or "raise", "")
        else:
            self.add("finding", "gil", "" if self.is_generated else name)
        return end - 1

    def check(self) -> None:
        """Record a check for an exception after a call, caused by the callee's declaration."""
        callee = self.callee
        if callee and callee.what in ("function", "method"):
            self.events.append(Event(f"checked {callee.what}", callee.kind, callee.name, self.place))
        elif callee or not self.found_here():
            self.events.append(Event("finding", "exception-check", callee.name if callee else "", self.place))

    def error(self) -> None:
        """Record an exit with an exception, from the call on this line unless something else here raises."""
        if self.callee is not None:
            self.check()
        elif not self.found_here():
            self.add("finding", "raise", "")

    def wraps(self, index: int) -> None:
        """Recognise ``i += view.shape[0]``: a negative index, counted from the end."""
        body = self.function.body
        if index and body[index - 1].text.startswith("__pyx_t_"):
            after = [token.text for token in body[index + 1 : index + 12]]
            if "shape" in after or any(text.startswith("__Pyx_") and "_SIZE" in text for text in after):
                self.add("finding", "wraparound", "")

    def called_value(self, index: int) -> None:
        """Recognise ``table[i](...)`` and ``(*p)(...)``: a call whose target is known only at run time."""
        body = self.function.body
        if not index or body[index - 1].text not in (")", "]"):
            return
        start, level = index - 1, 0
        while start >= 0:
            level += {")": 1, "]": 1, "(": -1, "[": -1}.get(body[start].text, 0)
            if level == 0:
                break
            start -= 1
        before = body[start - 1] if start > 0 else None
        if before and before.kind == "name" and before.text in ("if", "while", "for", "switch", "sizeof", "return"):
            return
        inner = [token.text for token in body[start + 1 : index - 1]]
        if len(inner) == 1 and body[start].text == "(" and judge(inner[0]):  # (malloc)(n): bypasses a macro
            self.add("finding", judge(inner[0]) or "", inner[0])
            return
        if body[index - 1].text == "]":
            self.add("pointer", "", before.text if before else "")
        elif (
            inner
            and ("->" in inner or "[" in inner or inner[0] == "*" or inner[0].startswith("__pyx_v_"))
            and not {"struct", "const"} & set(inner)  # a cast
        ):
            self.add("pointer", "", next((text for text in reversed(inner) if text.isidentifier()), ""))

    def expand(self, macro: str, seen: set[str]) -> None:
        """Read the calls in a macro's text, in every definition that may apply."""
        seen.add(macro)
        for words in self.macros[macro]:
            for index, word in enumerate(words):
                if word.kind != "name" or word.text in seen or word.text in _WORDS or is_cython_macro(word.text):
                    continue
                after = [one.text for one in words[index + 1 : index + 3]]
                called = len(words) == 1 or after[:1] == ["("]
                if after == [")", "("] and words[index - 1].text == "(":
                    called = judge(word.text) is not None  # (malloc)(n); with other names it may be a cast
                if index and words[index - 1].text in ("->", "."):
                    if called and len(words) > 1:
                        self.add("pointer", "", word.text)
                    continue
                kind = judge(word.text)
                if word.text in self.known:
                    self.add("function", "", word.text)
                elif called and kind:
                    self.add("finding", kind, word.text)
                elif called and word.text in self.macros:
                    self.expand(word.text, seen)
                elif called and not is_harmless(word.text) and not macro.startswith(("__Pyx", "__PYX", "CYTHON")):
                    self.add("outside", "", word.text)


def _is_zero(body: list[Token], index: int) -> bool:
    if index >= len(body) or body[index].text != "(":
        return False
    inner = [token.text for token in body[index : closing(body, index)] if token.text not in "()"]
    return inner == ["0"]


def _skip_statement(body: list[Token], index: int) -> int:
    """Return the index of the last token of a statement or block that never runs."""
    while index < len(body) and body[index].text not in ("{", ";"):
        index += 1
    return closing(body, index) if index < len(body) and body[index].text == "{" else index


def read_function(
    function: Function,
    known: set[str],
    macros: dict[str, list[list[Token]]],
    locate: Callable[[Unit, int], Place | None],
) -> list[Event]:
    """List the events of a function.

    Parameters
    ----------
    function : Function
        The function.
    known : set of str
        The functions that were read.
    macros : dict
        The macros that were read.
    locate : callable
        Returns the place of a line of C that Cython did not generate; None if it belongs to the caller.
    """
    reader = _Reader(function, known, macros)
    reader.locate = locate
    return reader.run()
