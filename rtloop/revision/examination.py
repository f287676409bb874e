"""Examination of the source of a running loop's next step, before any of it is loaded into the process."""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.compiler.build import module_name
from rtloop.compiler.diagnostics import Diagnostic, show_diagnostic
from rtloop.compiler.packages import find_package
from rtloop.compiler.toolchain import DIRECTIVES
from rtloop.errors import LintError, RtloopError
from rtloop.layouts import read_layouts
from rtloop.linter.generated import generate, read_generated
from rtloop.linter.lint import examine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtloop.linter.generated import Generated
    from rtloop.linter.lint import Finding

__all__ = ["Examination", "Examined", "Rejected", "find_examined", "generate_source"]

_KEPT = "examined.json"


class Rejected(RtloopError):  # noqa: N818 - an outcome rather than an error
    """A revision that cannot take the place of the running step.

    Attributes
    ----------
    stage : str
        Where it failed: "compile", "lint", "import", "rehearsal", "create", "take-over" or "swap".
    """

    def __init__(self, stage: str, text: str) -> None:
        super().__init__(text)
        self.stage = stage

    def _render_traceback_(self) -> list[str]:
        # IPython shows this, without rtloop's own frames.
        return [f"{type(self).__name__}: {self}"]


class Examined(NamedTuple):
    """Result of examining a source.

    Attributes
    ----------
    findings : str
        Findings of the lint, with their lines; empty if there are none.
    unseen : list of str
        Calls that the lint could not examine.
    layouts : dict
        The structs of its classes.
    """

    findings: str
    unseen: list[str]
    layouts: dict[str, str]


def generate_source(source: Path, build: Mapping[str, Any]) -> Generated:
    """Generate the C of a source, without a compilation. Raises LintError if Cython refuses it."""
    directives = {name: str(value) for name, value in DIRECTIVES.items()}
    return generate(source, _folders(build), directives, module_name(source.stem))


def _examine_source(source: Path, build: Mapping[str, Any]) -> Examined:
    return _examine(source, generate_source(source, build))


def _folders(build: Mapping[str, Any]) -> list[str]:
    return [*build["include"], *(folder for name in build["packages"] for folder in find_package(name).include)]


def _examine(source: Path, generated: Generated) -> Examined:
    report = examine(source, generated)
    unseen = [f"not examined: {', '.join(one.names)}, {one.why}" for one in report.not_examined]
    if not report.functions:
        unseen.append("not examined: no class of the file overrides a method of RTLoop")
    return Examined("\n".join(map(_show, report.findings)), unseen, read_layouts(generated.unit.text))


def _show(finding: Finding) -> str:
    names = f" ({', '.join(finding.names[:4])})" if finding.names else ""
    text = f"{finding.kind}{names}: {finding.why}"
    return show_diagnostic(Diagnostic(finding.file, finding.line, 0, text, finding.fix))


class Examination:
    """Examination of the generated C while it is compiled. The result is kept beside the module in the cache.

    Parameters
    ----------
    source : pathlib.Path
        The source.
    build : mapping
        Keywords of its build.

    Attributes
    ----------
    result : Examined or None
        The result, once the module is about to be loaded.
    """

    def __init__(self, source: Path, build: Mapping[str, Any]) -> None:
        self._source, self._build, self._include = source, build, _folders(build)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rtloop-lint")
        self._soon: Future[Examined] | None = None
        self.result: Examined | None = None

    def __enter__(self) -> Examination:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def begin(self, text: str) -> None:
        """Examine the C that Cython has generated, in another thread."""
        self._soon = self._pool.submit(
            lambda: _examine(self._source, read_generated(self._source, text, self._include))
        )

    def check(self, module: Path) -> None:
        """Raise Rejected if there are findings. Called with the module's file before it is loaded."""
        self.finish(module)
        if self.result is not None and self.result.findings:
            raise Rejected("lint", f"rtloop lint finds code that must not run in a loop:\n{self.result.findings}")

    def finish(self, module: Path) -> None:
        """Wait for the result, or find it beside the module."""
        kept = module.with_name(_KEPT)
        self.result = _load(kept)
        if self.result is None:
            try:
                self.result = self._soon.result() if self._soon else _examine_source(self._source, self._build)
            except LintError as error:
                raise Rejected("lint", str(error)) from None
            _keep(kept, self.result)


def _load(kept: Path) -> Examined | None:
    try:
        return Examined(**json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _keep(kept: Path, result: Examined) -> None:
    with suppress(OSError):  # a cache that cannot be written
        with tempfile.NamedTemporaryFile("w", dir=kept.parent, encoding="utf-8", delete=False) as file:
            json.dump(result._asdict(), file)
        os.replace(file.name, kept)


def find_examined(module: Path) -> Examined | None:
    """Return the result that was kept beside a module; None if it was not examined."""
    return _load(module.with_name(_KEPT))
