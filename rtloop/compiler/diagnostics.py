"""Diagnostics of Cython and a C compiler about a .pyx, shown briefly with the code and a fix."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rtloop.loop.cycle import Cycle
from rtloop.settings import CALLBACKS

__all__ = ["Diagnostic", "format_errors", "read_compiler", "read_cython", "show_diagnostic"]

_SHOWN = 8
_CIMPORTED = {"RTLoop", "Cycle", "RT_CONTINUE", "RT_STOP", "Pool", "Ring", "Latest", "SignalLog", "HugeBuffer"}
_NEEDS_GIL = (
    "without the GIL no Python object can be made or used: declare C types, such as 'cdef double x', and do what needs "
    "Python in __init__ or setup()"
)
# "file:line:column: text", with or without "warning: " or "performance hint: " before it.
_CYTHON = re.compile(r"(?:(warning|performance hint): )?(\S.*?\.(?:pyx|pxd|pxi|py)):(\d+):(\d+): (.*)")
_COMPILER = re.compile(r"(.+?):(\d+):(?:(\d+):)? (?:fatal )?error: (.*)")


class Diagnostic(NamedTuple):
    """Diagnostic of a compiler, with its place and a fix.

    Attributes
    ----------
    path : str
        The file.
    line : int
        From 1; 0 if unknown.
    column : int
        From 1; 0 if unknown.
    text : str
        The fault.
    fix : str
        The fix; empty if none is known.
    """

    path: str
    line: int
    column: int
    text: str
    fix: str = ""


def _source_line(path: str, line: int) -> str:
    lines = _text(path).splitlines()
    return lines[line - 1] if 0 < line <= len(lines) else ""


def read_cython(output: str, *, is_error: bool) -> tuple[Diagnostic, ...]:
    """Return the errors, or else the warnings and hints, one of each line: others follow from it.

    It is the first, or the first access to an attribute of Python: the arithmetic with it is reported before it.
    """
    found: dict[tuple[str, int], Diagnostic] = {}
    causes: set[tuple[str, int]] = set()
    for kind, path, line, column, text in _records(output):
        if (not kind) != is_error or text == "Previous declaration is here":
            continue
        if kind and not _is_of_interest(text):
            continue
        is_cause = text.startswith("Accessing Python attr") and (path, line) not in causes
        if is_cause:
            causes.add((path, line))
        elif (path, line) in found:
            continue
        text, fix = _explain(text, _source_line(path, line), _text(path))
        found[path, line] = Diagnostic(path, line, column + 1, text, fix)
    return tuple(sorted(found.values(), key=lambda diagnostic: diagnostic[:2]))


def _records(output: str) -> Iterator[tuple[str, str, int, int, str]]:
    """Yield kind, path, line, column and text of each message of Cython; a text may have several lines."""
    lines = output.splitlines()
    for number, line in enumerate(lines):
        match = _CYTHON.fullmatch(line)
        if match is None:
            continue
        text = match[5]
        for more in lines[number + 1 :]:
            is_other = more.startswith(("Possible solutions", "Error compiling"))
            if is_other or not more.strip() or _CYTHON.fullmatch(more):
                break
            text += " " + more.strip()
        yield match[1] or "", match[2], int(match[3]), int(match[4]), text


def _is_of_interest(text: str) -> bool:
    # The first is repeated at the declaration; the others concern what the author asked for.
    return not text.startswith(("Exception check after calling", "Use boundscheck", "Use cdivision", "Unreachable"))


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _explain(text: str, code: str, source: str = "") -> tuple[str, str]:
    """Rephrase a message of Cython for a loop, and return it with a fix."""
    if match := re.match(r"Exception check on '(.+?)' will always require the GIL", text):
        return (
            f"'{match[1]}' takes the GIL after every call, and waits for all Python threads",
            f"declare '{match[1]}' as 'noexcept nogil'",
        )
    method = re.search(rf"\b({'|'.join(CALLBACKS)})\s*\(", code)
    if text.startswith("Signature not compatible") and method:
        return f"{method[1]} is not declared as RTLoop declares it", f"write '{CALLBACKS[method[1]]}:'"
    if match := re.match(r"undeclared name not builtin: (\w+)", text):
        is_ours = match[1] in _CIMPORTED
        return f"the name {match[1]} is not known", f"from rtloop cimport {match[1]}" if is_ours else ""
    if match := re.match(r"'rtloop/(\w+)\.pxd' not found", text):
        known = ", ".join(sorted(_CIMPORTED))
        return f"rtloop has no {match[1]} to cimport", f"cimport one of {known}, or import a Python name"
    if match := re.match(r"'(\w+)' is not a type identifier", text):
        return text, f"from rtloop cimport {match[1]}" if match[1] in _CIMPORTED else ""
    if match := re.match(r"First base of '(\w+)' is not an extension type", text):
        return text, "a loop is 'cdef class Name(RTLoop):', with 'from rtloop cimport RTLoop'"
    if "const Cycle *" in text and (member := re.search(r"\bcycle\.(\w+)", code)):
        return f"Cycle has no {member[1]!r}", f"its fields are {', '.join(Cycle._fields)}"
    if match := re.match(r"(.+?) not allowed without (?:the )?gil", text, re.IGNORECASE):
        is_of_python = text.startswith(("Assignment of Python", "Accessing Python attr"))
        for name in re.findall(r"\bself\.([A-Za-z]\w*)", code) if is_of_python else ():
            if not re.search(rf"^\s+cdef\b[^#\n]*\b{name}\b", source, re.MULTILINE):
                return f"self.{name} is not a C attribute: it would be a Python object, which needs the GIL", (
                    f"declare it in the class, with its type: cdef public double {name}"
                )
        return f"this needs the GIL, which is not held here ({match[1][0].lower()}{match[1][1:]})", _NEEDS_GIL
    if text.startswith("Function declared nogil has Python"):
        return "this function is declared nogil, and has Python objects as variables", _NEEDS_GIL
    return text, ""


def read_compiler(output: str, source: Path) -> tuple[Diagnostic, ...]:
    """Return the errors of a C compiler; those in generated code are reported at their line of the .pyx."""
    found: dict[tuple[str, int], Diagnostic] = {}
    for match in map(_COMPILER.match, output.splitlines()):
        if match is None:
            continue
        path, line, text = match[1], int(match[2]), match[4]
        missing = re.match(r"'?([^':]+?)'?(?:: No such file or directory| file not found)", text)
        if missing and missing[1] == "Python.h":
            continue
        fix = ""
        if Path(path).name == source.name:  # as Cython's #line has it
            path = str(source)
        elif missing:
            path, line = str(source), _line_with(source, missing[1])
            fix = "name its folder in a comment at the head of the file: # distutils: include_dirs = FOLDER"
        found.setdefault((path, line), Diagnostic(path, line, 0, f"C compiler: {text}", fix))
    return tuple(found.values())


def _line_with(source: Path, text: str) -> int:
    lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((number for number, line in enumerate(lines, 1) if text in line), 0)


def _short(path: str) -> str:
    """Return a path as one would type it here."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def show_diagnostic(diagnostic: Diagnostic, kind: str = "") -> str:
    """Format a diagnostic: place, text, the line of code with a mark under it, and the fix."""
    place = ":".join([_short(diagnostic.path), *(str(x) for x in diagnostic[1:3] if x)])
    written = [f"{place}: {kind}{diagnostic.text}"]
    code = _source_line(diagnostic.path, diagnostic.line)
    if code.strip():
        written.append(f"{diagnostic.line:>5} | {code}")
        if diagnostic.column:
            blanks = re.sub(r"[^\t]", " ", code[: diagnostic.column - 1])
            written.append(f"      | {blanks}^")
    if diagnostic.fix:
        written.append(f"  fix: {diagnostic.fix}")
    return "\n".join(written)


def format_errors(source: Path, diagnostics: Iterable[Diagnostic]) -> str:
    """Format the message of a failed build."""
    every = list(diagnostics)
    told: set[str] = set()
    shown = []
    for diagnostic in every[:_SHOWN]:
        shown.append(show_diagnostic(diagnostic._replace(fix="") if diagnostic.fix in told else diagnostic))
        told.add(diagnostic.fix)
    if len(every) > _SHOWN:
        shown.append(f"... and {len(every) - _SHOWN} more")
    count = "1 error" if len(every) == 1 else f"{len(every)} errors"
    return f"{_short(str(source))} does not compile, {count}:\n" + "\n".join(shown)
