"""``rtloop lint``: examine loops before they run."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rtloop.compiler.toolchain import DIRECTIVES
from rtloop.errors import ConfigError, LintError
from rtloop.linter.lint import lint as examine

if TYPE_CHECKING:
    from rtloop.linter.lint import LintReport

__all__ = ["lint"]

_CANNOT = 2


def _to_directives(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, setting = value.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{value!r}; write NAME=VALUE, such as cdivision=True", ctx, param)
        found[name] = setting
    return found


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE.pyx...", type=click.Path(path_type=Path))
@click.option("--allow", multiple=True, metavar="NAME", help="A function, or a kind of finding, to accept everywhere.")
@click.option("-f", "--function", "functions", multiple=True, metavar="NAME",
              help="Also start at this function: name, or Class.name.")  # fmt: skip
@click.option("-I", "--include", multiple=True, metavar="FOLDER", help="Folder of .pxd files and headers.")
@click.option("-X", "--directive", "directives", multiple=True, metavar="NAME=VALUE", callback=_to_directives,
              help="A directive of Cython that your build sets, such as cdivision=True.")  # fmt: skip
@click.option("--as-run", is_flag=True, help="Compile with the directives of rtloop run, which switch checks off.")
@click.option("--strict", is_flag=True, help="Also fail on calls that were not examined.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
def lint(
    files: tuple[Path, ...],
    allow: tuple[str, ...],
    functions: tuple[str, ...],
    include: tuple[str, ...],
    directives: dict[str, str],
    as_run: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Examine loops before they run: no GIL, heap or waiting.

    It reads the C that Cython makes of each file, and follows every call from the methods that a loop's thread calls.
    Code that can take the GIL, count a reference, allocate, raise, wait or enter the kernel is reported with its line,
    why it matters and the fix. Calls of functions whose source was not read are listed as not examined.

    To accept a finding, give the reason on its line or the one above:

    \b
      # rtloop: allow pthread_mutex_lock: it inherits priority, and is held for 100 ns

    Exit codes: 0 nothing found, 1 something found, 2 a file cannot be examined, or no file has a loop.

    \b
    Examples:
      rtloop lint controller.pyx
      rtloop lint --strict --allow my_filter src/*/*.pyx
      rtloop lint --json controller.pyx | jq '.files[].findings[] | [.line, .kind]'
    """  # noqa: D301 - the backslash is for click
    sources = list(dict.fromkeys(files))
    chosen = ({name: str(value) for name, value in DIRECTIVES.items()} if as_run else {}) | directives
    options = {"allow": allow, "functions": functions, "include": include, "directives": chosen}

    def one(path: Path) -> LintReport | LintError | ConfigError:
        try:
            return examine(path, **options)  # type: ignore[arg-type]
        except (LintError, ConfigError) as error:
            return error

    try:
        with ThreadPoolExecutor(min(len(sources), os.cpu_count() or 1)) as pool:
            outcomes = list(_follow(pool.map(one, sources), sources, as_json))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "Cython":
            raise
        click.echo("rtloop: lint reads what Cython makes of a file; pip install 'rtloop[build]'", err=True)
        return _CANNOT
    reports = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    code = _exit_code(reports, len(outcomes) - len(reports), strict)
    if as_json:
        entries = [
            {"path": str(path), "error": str(outcome)} if isinstance(outcome, Exception) else outcome.to_dict()
            for path, outcome in zip(sources, outcomes, strict=True)
        ]
        click.echo(json.dumps({"exit_code": code, "files": entries}, indent=2))
    return code


def _exit_code(reports: list[LintReport], failed: int, strict: bool) -> int:
    if failed or not any(report.functions for report in reports):
        return _CANNOT
    found = any(report.findings or (strict and report.not_examined) for report in reports)
    return 1 if found else 0


def _follow(outcomes: Any, sources: list[Path], as_json: bool) -> Any:
    """Show each report as it comes, and progress while Cython works."""
    from rich.console import Console

    from rtloop.tools.lint.show import show_report

    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    with errors.status("Cython ...") if sys.stderr.isatty() else _Silent() as status:
        for number, outcome in enumerate(outcomes, 1):
            if isinstance(outcome, Exception):
                if not as_json:
                    errors.print(f"rtloop: {outcome}", style="red", markup=False, soft_wrap=True)
            elif not as_json:
                show_report(console, outcome)
            if status is not None and number < len(sources):
                status.update(f"Cython: {sources[number]} ({number + 1} of {len(sources)})")
            yield outcome


class _Silent:
    """Progress that is not shown."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None
