"""Sources as lines: the code that a finding shows, and the comments that accept one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Allow", "Source"]

_ALLOW = re.compile(r"(?:^|\s)(?:#|//|/\*)\s*rtloop:\s*allow\b(.*)$")
_NAMES = re.compile(r"\s*([\w.\-]+(?:\s*,\s*[\w.\-]+)*)\s*:(.*)$")
_COMMENT = re.compile(r"^\s*(?:#|//|/\*)(?!\s*(?:include|define|if|else|endif)\b)")
_STRING = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'")


@dataclass
class Allow:
    """A comment ``# rtloop: allow NAME, NAME: reason``.

    Attributes
    ----------
    line : int
        Its line.
    names : tuple of str
        Kinds of findings, or functions.
    reason : str
        Why they are accepted; an empty reason accepts nothing.
    used : bool
        True if it accepted something.
    """

    line: int
    names: tuple[str, ...]
    reason: str
    used: bool = False


class Source:
    """A file of Cython or C, as lines."""

    def __init__(self, path: Path) -> None:
        try:
            self.lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            self.lines = []
        self._statement = self._statements(path.suffix in (".pyx", ".pxd", ".pxi", ".py"))
        self.allows = list(self._read_allows())

    def text(self, line: int) -> str:
        """Return a line without surrounding blanks."""
        return self.lines[line - 1].strip() if 0 < line <= len(self.lines) else ""

    def accept(self, line: int, names: set[str]) -> Allow | None:
        """Return the comment that accepts one of the names on the statement of a line, None if there is none."""
        for allow in self.allows:
            if self._applies(allow) == self._start(line) and allow.reason and names & set(allow.names):
                allow.used = True
                return allow
        return None

    def _read_allows(self) -> list[Allow]:
        found = []
        for number, line in enumerate(self.lines, 1):
            match = _ALLOW.search(_STRING.sub('""', line))
            if match:
                parts = _NAMES.match(match[1].removesuffix("*/"))
                names = tuple(name.strip() for name in parts[1].split(",")) if parts else ()
                found.append(Allow(number, names, parts[2].strip() if parts else ""))
        return found

    def _applies(self, allow: Allow) -> int:
        """Return the statement that a comment applies to: its own line's, or the next one's if it stands alone."""
        line = allow.line
        while line < len(self.lines) and _COMMENT.match(self.lines[line - 1]):
            line += 1
        return self._start(line)

    def _start(self, line: int) -> int:
        return self._statement[line - 1] if 0 < line <= len(self._statement) else line

    def _statements(self, is_python: bool) -> list[int]:
        """Return the first line of the statement that each line belongs to: brackets may span lines."""
        starts, level, start = [], 0, 1
        signs = {"(": 1, "[": 1, ")": -1, "]": -1} | ({"{": 1, "}": -1} if is_python else {})
        for number, line in enumerate(self.lines, 1):
            code = _STRING.sub("", line)
            code = code.partition("#")[0] if is_python else re.sub(r"//.*|/\*.*?\*/", "", code)
            start = start if level > 0 else number
            starts.append(start)
            level = max(level + sum(signs.get(sign, 0) for sign in code), 0)
            if level and re.match(r"(cdef|cpdef|def|class)\b", line) and start != number:
                level = 0  # a bracket in a docstring: a definition at the margin resets the level
        return starts
