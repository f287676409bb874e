"""Rows of counterparts.py: each module of this folder is one counterpart, and everything that is specific to it.

A module defines

    ORDER     its place in the output
    TITLE     its name in the table, with what runs at which rate
    REFEREE   who counts the cycles, and when one counts as kept
    SIDES     names of the sides: "rtloop", and the program of the counterpart's authors
    NEEDS     what it needs: {module or file: the command that installs it}
    missing() what of that is not installed, in the same form
    run(side, company, seconds) -> Figures

`run` is called in the benchmark's own process, which is otherwise idle. It starts the side in a process of its own,
with `run_client`: so a busy Python thread is busy in the client's interpreter, and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
#: Company of the loop in the client's interpreter.
COMPANIES = ("alone", "busy", "busy+onnx")


class Figures(NamedTuple):
    """Result of one side in one run.

    Attributes
    ----------
    kept : float
        Share of the cycles that were kept, as the referee counts them.
    lowest : float
        Lowest share over 100 consecutive cycles.
    age : tuple of float
        Age of the data at the time of the output, us: median, 99th percentile, maximum.
    facts : dict
        Everything else that is worth keeping.
    """

    kept: float
    lowest: float
    age: tuple[float, float, float]
    facts: dict[str, Any]


def rows() -> dict[str, ModuleType]:
    """Import every row, in their order."""
    names = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    found = [importlib.import_module(f"counterpart_rows.{name}") for name in names]
    return {row.__name__.rpartition(".")[2]: row for row in sorted(found, key=lambda row: row.ORDER)}


def modules_missing(needs: dict[str, str]) -> dict[str, str]:
    """Return those of some modules that are not installed, with the command that installs each."""
    return {name: fix for name, fix in needs.items() if importlib.util.find_spec(name) is None}


def run_client(row: str, side: str, company: str, seconds: float, *more: str) -> dict[str, Any]:
    """Run a row's `client(side, seconds, *more)` in a process of its own, beside some company; return its result.

    Raises
    ------
    RuntimeError
        If it ends with an error, with the last line of its stderr.
    """
    command = [sys.executable, "-m", "counterpart_rows._client", row, side, company, str(seconds), *more]
    done = subprocess.run(
        command, cwd=FOLDER.parent, capture_output=True, text=True, timeout=3 * seconds + 120, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{row}, {side}: {lines[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@contextmanager
def in_company(kind: str) -> Iterator[Callable[[], int]]:
    """Run what the company consists of; yields a function that returns how often the policy has been computed."""
    from common import busy_python_thread

    parts = kind.split("+")
    count = [0]
    with ExitStack() as stack:
        if "onnx" in parts:
            from counterpart_rows._policy import running_policy

            count = stack.enter_context(running_policy())
        if "busy" in parts:
            stack.enter_context(busy_python_thread())
        yield lambda: count[0]
