"""``rtloop.lint``: check that the code of a loop's thread uses no Python, no heap and does not wait."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtloop.errors import ConfigError
from rtloop.linter.field_types import find_mistyped
from rtloop.linter.generated import generate, with_sources
from rtloop.linter.names import KINDS
from rtloop.linter.reach import CLASS_IN_CYTHON, IN_C, IN_CYTHON, METHOD_IN_CYTHON, Code, walk
from rtloop.linter.suppressions import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rtloop.linter.generated import Generated
    from rtloop.linter.reach import Found

__all__ = ["Finding", "LintReport", "examine", "lint"]


_EXAMINE = (
    "examine it by itself (rtloop lint ITS.pyx -f NAME), write it inline in a .pxd, or read its code and "
    "accept it by allow"
)
#: Fix for a call that was not examined, by the reason.
_FIXES_OF_UNSEEN = {
    IN_C: "name its file (# distutils: sources = FILE.c), or read its code and accept it by allow",
    IN_CYTHON: _EXAMINE,
    METHOD_IN_CYTHON: _EXAMINE,
    CLASS_IN_CYTHON: _EXAMINE,
}


@dataclass(frozen=True)
class Finding:
    """Action that a loop's thread must avoid, or a call that could not be examined; one for each cause.

    Attributes
    ----------
    kind : str
        Its kind, such as ``"gil"``; ``"not-examined"`` if nothing is known.
    file, line : str, int
        Its place.
    source : str
        That line.
    names : tuple of str
        Names of the functions called there, if any.
    chain : tuple of str
        The call chain, from the method that the loop calls to the function with the line.
    called_at : tuple of (str, int)
        For ``missing-noexcept`` and ``not-examined``: the places of the calls.
    why, fix : str
        Why it matters, and the fix.
    reason : str
        Why it is accepted; empty if it is not.
    """

    kind: str
    file: str
    line: int
    source: str
    names: tuple[str, ...]
    chain: tuple[str, ...]
    called_at: tuple[tuple[str, int], ...]
    why: str
    fix: str
    reason: str = ""


@dataclass(frozen=True)
class LintReport:
    """Result of :func:`lint` for one file.

    Attributes
    ----------
    path : str
        The file.
    loops : tuple of str
        The subclasses of RTLoop in it.
    functions : tuple of str
        Every function that was examined.
    findings, accepted, not_examined : tuple of Finding
        Findings; findings accepted with a reason; calls of which nothing is known.
    hints : tuple of (str, int, str)
        Cython's performance hints and warnings: file, line, text.
    unused : tuple of (str, int, str)
        Comments that accept nothing: file, line, names.
    """

    path: str
    loops: tuple[str, ...]
    functions: tuple[str, ...]
    findings: tuple[Finding, ...]
    accepted: tuple[Finding, ...]
    not_examined: tuple[Finding, ...]
    hints: tuple[tuple[str, int, str], ...]
    unused: tuple[tuple[str, int, str], ...]

    @property
    def is_clean(self) -> bool:
        """True if something was examined and nothing was found; calls that were not examined do not count."""
        return bool(self.functions) and not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return asdict(self) | {"is_clean": self.is_clean}


def lint(
    path: str | os.PathLike[str],
    *,
    allow: Iterable[str] = (),
    functions: Iterable[str] = (),
    include: Sequence[str | os.PathLike[str]] = (),
    directives: Mapping[str, object] | None = None,
) -> LintReport:
    """Examine the C that Cython generates for a loop, for actions that a real-time thread must avoid.

    It follows the calls from ``enter``, ``step``, ``overrun``, ``wait``, ``leave``, ``on_peer_failure``, ``safe`` and
    ``take_over`` of every subclass of RTLoop in the file, through functions, methods, inline functions, verbatim blocks
    the headers of the project and the C files that it names (``# distutils: sources = FILE.c``), and reports code that
    can take the GIL, count a reference, allocate, raise, wait, or enter the kernel. What counts as a finding depends on
    the method: ``enter`` and ``leave`` may allocate and wait, and ``wait`` may wait.

    Parameters
    ----------
    path : path
        A .pyx file. It is neither built nor imported.
    allow : iterable of str
        Functions, or kinds of findings, to accept everywhere.
    functions : iterable of str
        Names of more functions to start at, such as the callback of a FunctionLoop: ``"name"`` or ``"Class.name"``.
    include : sequence of path
        Folders with .pxd files and headers, as for the compiler's ``-I``.
    directives : mapping, optional
        Directives that the build gives to Cython, such as ``{"cdivision": True}``; the file's own take precedence.

    Raises
    ------
    LintError
        If the file cannot be read, or Cython does not compile it.
    ConfigError
        If there is no such function.

    Examples
    --------
    >>> report = rtloop.lint("controller.pyx")  # doctest: +SKIP
    >>> report.is_clean, [(finding.kind, finding.line) for finding in report.findings]  # doctest: +SKIP
    (False, [('allocation', 12)])
    """
    allowed = set(allow)
    _check_names(allowed)
    source = Path(path)
    generated = with_sources(generate(source, include, directives or {}), source)
    return examine(source, generated, allowed, functions)


def examine(
    source: Path, generated: Generated, allowed: Iterable[str] = (), functions: Iterable[str] = ()
) -> LintReport:
    """Examine the C that Cython has generated for a source, as :func:`lint` does."""
    code = Code(generated)
    wanted = tuple(functions)
    for name in wanted:
        if not code.matching(name):
            raise ConfigError(f"functions: there is no C function {name!r} in {source}; give a name, or Class.name")
    found = walk(code, wanted)
    book = _Book(source, generated.folders, set(allowed))
    findings, accepted = book.sort([book.finding(one) for one in (*found.findings, *find_mistyped(code))])
    unseen, vouched = book.sort([book.unseen(one) for one in found.unseen])
    main = book.open(source)
    wrong = [book.bad_allow(one.line) for one in main.allows if not one.reason] if found.functions else []
    unused = [one for one in main.allows if one.reason and not one.used] if found.functions else []
    return LintReport(
        path=str(source),
        loops=tuple(found.loops),
        functions=tuple(dict.fromkeys(found.functions)),
        findings=tuple(sorted([*findings, *wrong], key=lambda one: (one.file != str(source), one.file, one.line))),
        accepted=(*accepted, *vouched),
        not_examined=tuple(unseen),
        hints=tuple((str(book.resolve(one.file)), one.line, one.text) for one in generated.remarks),
        unused=tuple((str(source), one.line, ", ".join(one.names)) for one in unused),
    )


class _Book:
    """Translation of findings in the generated C into findings in the sources."""

    def __init__(self, main: Path, folders: list[Path], allow: set[str]) -> None:
        self.main, self.folders, self.allow = main, [main.parent, *folders], allow
        self._sources: dict[Path, Source] = {}

    def resolve(self, file: str) -> Path:
        """Return the path of a file that Cython names."""
        path = Path(file)
        if path.is_absolute() and path.resolve() == self.main.resolve():
            return self.main
        if self.main.resolve().parts[-len(path.parts) :] == path.parts:
            return self.main
        return next((folder / path for folder in self.folders if (folder / path).is_file()), path)

    def open(self, path: Path) -> Source:
        if path not in self._sources:
            self._sources[path] = Source(path)
        return self._sources[path]

    def finding(self, found: Found) -> Finding:
        kind = KINDS[found.kind]
        return self._make(found, found.kind, kind.why, kind.fix)

    def unseen(self, found: Found) -> Finding:
        fix = _FIXES_OF_UNSEEN.get(found.kind, "read its code and accept it by allow")
        return self._make(found, "not-examined", found.kind, fix)

    def _make(self, found: Found, kind: str, why: str, fix: str) -> Finding:
        path = self.resolve(found.place.file)
        return Finding(
            kind=kind,
            file=str(path),
            line=found.place.line,
            source=self.open(path).text(found.place.line),
            names=tuple(found.names),
            chain=found.chain,
            called_at=tuple((str(self.resolve(place.file)), place.line) for place in found.called_at),
            why=why,
            fix=fix,
        )

    def bad_allow(self, line: int) -> Finding:
        kind = KINDS["bad-allow"]
        return Finding(
            "bad-allow", str(self.main), line, self.open(self.main).text(line), (), (), (), kind.why, kind.fix
        )

    def sort(self, findings: list[Finding]) -> tuple[list[Finding], list[Finding]]:
        """Separate findings from accepted ones, for every line and every name."""
        stands: list[Finding] = []
        accepted: list[Finding] = []
        for finding in findings:
            reason = self._reason(finding)
            (accepted if reason else stands).append(replace(finding, reason=reason))
        return stands, accepted

    def _reason(self, finding: Finding) -> str:
        if finding.kind in self.allow:
            return f"--allow {finding.kind}"
        if finding.names and set(finding.names) <= self.allow:
            return f"--allow {', '.join(finding.names)}"
        places = finding.called_at if finding.kind == "not-examined" else ((finding.file, finding.line),)
        reasons = []
        for file, line in places:
            source = self.open(Path(file))
            # A line may call several functions of one kind: the kind accepts them all, a name only itself.
            by_kind = source.accept(line, {finding.kind})
            named = [by_kind or source.accept(line, {name}) for name in finding.names] or [by_kind]
            pairs = zip(finding.names, named, strict=False)
            if not any(named) or any(one is None and name not in self.allow for name, one in pairs):
                return ""
            reasons += [one.reason for one in named if one]
        return "; ".join(dict.fromkeys(reasons))


def _check_names(allow: Iterable[str]) -> None:
    """Refuse an allowed name that is neither a kind nor a possible function."""
    for name in allow:
        if not name.replace("-", "_").replace(".", "_").isidentifier():
            raise ConfigError(f"allow: {name!r} is neither a kind of finding ({', '.join(KINDS)}) nor a function")
