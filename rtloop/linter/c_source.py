"""Reader of C source: its tokens, functions, macros and includes, without a compiler or the system's headers.

It reads the C that Cython generates, and a project's own headers. It understands comments, strings and branches of the
preprocessor; types and macros with unbalanced braces are not supported.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Function", "Place", "Token", "Unit", "closing", "read_unit"]

_TOKEN = re.compile(
    r"""
    (?P<comment>/\*.*?\*/|//[^\n]*)
    |(?P<directive>^[ \t]*\#(?:/\*.*?\*/|\\.|[^\n\\])*)
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<name>[A-Za-z_]\w*)
    |(?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
    |(?P<sign>->|\+=|[^\s\w])
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
#: Cython writes the source's line before each statement: /* "a.pyx":12
_SOURCE = re.compile(r'/\* "([^"\n]+)":(\d+)\n')
_INCLUDE = re.compile(r'\s*#\s*include\s*["<]([^">]+)[">]')
_DEFINE = re.compile(r"\s*#\s*define\s+(\w+)(\([^)]*\))?(.*)", re.DOTALL)
_CONDITION = re.compile(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)", re.DOTALL)
#: Macros that are not defined in a loop's build: other languages and systems, Cython's debugging.
_ABSENT = re.compile(
    r"^\s*(?:defined)?\s*\(?\s*(0|__cplusplus|_MSC_VER|_WIN32|MS_WINDOWS|CYTHON_REFNANNY|"
    r"CYTHON_TRACE|CYTHON_TRACE_NOGIL|"
    r"CYTHON_PROFILE|CYTHON_USE_SYS_MONITORING)\s*\)?\s*(//.*|/\*.*)?$"
)


class Place(NamedTuple):
    """A line of a source: the file as Cython or the includer calls it."""

    file: str
    line: int


class Token(NamedTuple):
    """A token of C; a comment is kept only if it gives a place or ends a function's body."""

    kind: str
    text: str
    offset: int


@dataclass
class Function:
    """A function's body.

    Attributes
    ----------
    name : str
        Its name in C.
    unit : Unit
        File that defines it.
    place : Place or None
        Its line in the .pyx or .pxd if Cython generated it from one.
    body : list of Token
        From the opening to the closing brace.
    """

    name: str
    unit: Unit
    place: Place | None
    body: list[Token]


@dataclass
class Unit:
    """A file of C."""

    path: Path
    text: str
    functions: dict[str, Function] = field(default_factory=dict)
    macros: dict[str, list[list[Token]]] = field(default_factory=dict)
    includes: list[str] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)

    def line(self, offset: int) -> int:
        """Return the number of the line that an offset is on."""
        if not self._starts:
            self._starts = [0, *(match.end() for match in re.finditer("\n", self.text))]
        return bisect_right(self._starts, offset)


def _words(text: str, start: int = 0) -> Iterator[Token]:
    for match in _TOKEN.finditer(text, start):
        yield Token(match.lastgroup or "", match[0], match.start())


def source_place(comment: str) -> Place | None:
    """Return the place that a comment of Cython's names."""
    match = _SOURCE.match(comment)
    return Place(match[1], int(match[2])) if match else None


class _Branches:
    """Branches of the preprocessor that are read: all but those known not to be compiled."""

    def __init__(self) -> None:
        self.stack: list[tuple[bool, bool, int]] = []  # (was read around, is the #else dead, the depth at #if)
        self.alive = True

    def enter(self, word: str, condition: str, depth: int) -> int:
        """Follow one directive; return the depth of braces to go on with."""
        if word in ("if", "ifdef", "ifndef"):
            absent = bool(_ABSENT.match(condition))
            self.stack.append((self.alive, absent and word == "ifndef", depth))
            self.alive = self.alive and not (absent and word != "ifndef")
            return depth
        if not self.stack:
            return depth
        around, dead, before = self.stack[-1]
        if word == "endif":
            self.stack.pop()
            self.alive = around
            return depth
        self.alive = around and not dead and not (word == "elif" and _ABSENT.match(condition))
        return before


def read_unit(path: Path, text: str) -> Unit:
    """Find the functions, macros and includes of a file of C."""
    unit = Unit(path, text)
    branches = _Branches()
    depth, place, head, body = 0, None, [], []  # type: ignore[var-annotated]
    name, at = "", None
    for token in _words(text):
        if token.kind == "directive":
            condition = _CONDITION.match(token.text)
            if condition:
                depth = branches.enter(condition[1], condition[2], depth)
            elif branches.alive:
                _directive(unit, token)
            continue
        if not branches.alive:
            continue
        if token.kind == "comment":
            found = source_place(token.text)
            if depth == 0:
                place = found or place
            elif found or "function exit code" in token.text:
                body.append(token)
            continue
        if token.text == "{" and depth == 0:
            if head and head[-1].kind == "string":  # extern "C" {
                head = []
                continue
            name, at, body = _function_name(head), place, []
        depth += {"{": 1, "}": -1}.get(token.text, 0)
        if depth > 0 or body:
            body.append(token)
        if depth <= 0:
            depth = 0
            head.append(token)
            if token.text == "}" and body:
                if name:
                    unit.functions[name] = Function(name, unit, at, body)
                    head, place = [], None
                body, name = [], ""
            if token.text in (";", "}"):
                head, place = [], None
    return unit


def _directive(unit: Unit, token: Token) -> None:
    include = _INCLUDE.match(token.text)
    if include:
        unit.includes.append(include[1])
    define = _DEFINE.match(token.text)
    if define:
        words = [word for word in _words(define[3].replace("\\\n", "  ")) if word.kind not in ("comment", "directive")]
        body = [Token(word.kind, word.text, token.offset) for word in words]
        unit.macros.setdefault(define[1], []).append(body)


def _function_name(head: list[Token]) -> str:
    """Return the name before the last argument list of a declaration, "" if it declares something else."""
    if any(token.text in ("=", "typedef") for token in head):
        return ""
    end = len(head) - 1
    while end >= 0 and head[end].kind == "name":  # macros between the arguments and the body
        end -= 1
    if end < 0 or head[end].text != ")":
        return ""
    level = 0
    for index in range(end, -1, -1):
        level += {")": 1, "(": -1}.get(head[index].text, 0)
        if level == 0:
            before = head[index - 1] if index else None
            return before.text if before and before.kind == "name" else ""
    return ""


def closing(tokens: list[Token], start: int) -> int:
    """Return the index of the bracket that closes the one at `start`, or of the last token."""
    pairs = {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}
    level = 0
    for index in range(start, len(tokens)):
        level += pairs.get(tokens[index].text, 0) if tokens[index].kind == "sign" else 0
        if level == 0:
            return index
    return len(tokens) - 1
