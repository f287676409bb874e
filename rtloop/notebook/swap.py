"""``%%rtloop --swap NAME``: make the loop class of a cell the step of a running loop of the notebook."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.errors import LintError, RtloopError
from rtloop.layouts import read_layouts, rename_module
from rtloop.loop.loop import RTLoop
from rtloop.revision.examination import Examination, Rejected, find_examined, generate_source
from rtloop.revision.leaf_classes import leaf_classes
from rtloop.revision.successor import (
    ParameterValues,
    check_take_over,
    create_successor,
    successor_settings,
    swap_in,
)
from rtloop.revision.tracebacks import describe_exception

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from rtloop.compiler.build import Built

__all__ = ["Cell", "Swapping", "find_running"]


class Cell(NamedTuple):
    """Source of a module.

    Attributes
    ----------
    source : pathlib.Path
        The file, which never changes.
    options : mapping
        Keywords of its build.
    """

    source: Path
    options: Mapping[str, Any]


#: The cells that were compiled, by the name of their module.
cells: dict[str, Cell] = {}


def find_running(name: str, names: Mapping[str, Any]) -> RTLoop:
    """Return the running loop that a name of the notebook stands for.

    Raises
    ------
    ValueError
        If it is missing, is not a loop or does not run; the text completes "--swap NAME: ".
    """
    if name not in names:
        loops = sorted(key for key, one in names.items() if isinstance(one, RTLoop) and one.state == "running")
        raise ValueError(f"the notebook has no {name}; the running loops are {', '.join(loops) or 'none'}")
    loop = names[name]
    if not isinstance(loop, RTLoop):
        raise ValueError(f"{name} is a {type(loop).__name__}, and only an RTLoop can get another step")
    if loop.state != "running":
        raise ValueError(f"{name} does not run (its state is {loop.state}): call {name}.start() first")
    if loop.on_trial:
        raise ValueError(f"the present step of {name} is on trial: wait until {name}.on_trial is False")
    return loop


class Swapping:
    """Swap of a running loop's step for that of a cell.

    Parameters
    ----------
    loop : RTLoop
        The running loop.
    name : str
        Its name in the notebook.
    trial : duration, optional
        Time in which the loop goes back to the former step if the new one fails.
    cell : Cell
        Source of the new step.
    """

    def __init__(self, loop: RTLoop, name: str, trial: Any, cell: Cell) -> None:
        self._loop, self._name, self._trial, self._cell = loop, name, trial, cell
        self._text = cell.source.read_text(encoding="utf-8", errors="replace")
        self.examination = Examination(cell.source, cell.options)

    def finish(self, built: Built) -> list[str]:
        """Create a loop of the module's class, and swap. Returns lines for the user.

        Raises
        ------
        Rejected
            If the loop goes on with its former step.
        """
        examined = self.examination.result
        assert examined is not None
        kind = _find_class(built.module)
        self._check_take_over(built.module, kind, examined.layouts)
        successor = self._create(kind)
        parameters = ParameterValues(self._loop)
        parameters.read()
        present: Any = self._loop.parameters._backend  # passes on to the ParameterSet of the present step
        parameters.set = set(present.changed())
        notes: list[str] = []
        cycle = swap_in(self._loop, successor, self._trial, notes.append)
        if cycle is None:
            raise Rejected("swap", f"{self._name} has ended before the swap: start it again, then run the cell again")
        lines = [f"{self._name}: {kind.__name__} since cycle {cycle:,}"]
        return lines + [f"  {note}" for note in (*notes, *examined.unseen, *parameters.compare())]

    def _check_take_over(self, module: ModuleType, kind: type[Any], layouts: Mapping[str, str]) -> None:
        former = type(self._loop._step)
        after = rename_module(layouts, {module.__name__, self._cell.source.stem})
        try:
            check_take_over(str(self._cell.source), self._text, kind, former, {}, after)
        except Rejected:  # there is a cast: only now is the former layout needed
            check_take_over(str(self._cell.source), self._text, kind, former, _read_former(former), after)

    def _create(self, kind: type[RTLoop]) -> RTLoop:
        keywords = successor_settings(self._loop)
        try:
            return create_successor(kind, self._loop.settings.period / 10**9, keywords)
        except RtloopError as error:
            raise Rejected("create", f"{kind.__name__} cannot be created: {error}") from None
        except Exception as error:  # of the user's constructor
            given = ", ".join(["period", *(f"{name}={value!r}" for name, value in keywords.items())])
            text = f"{kind.__name__}({given}) cannot be created:\n{describe_exception(error)}"
            raise Rejected("create", text) from None


def _find_class(module: ModuleType) -> type[RTLoop]:
    """Return the only loop class of a module from which no other one is derived."""
    found = list(leaf_classes(module, lambda one: issubclass(one, RTLoop)).values())
    if len(found) != 1:
        names = ", ".join(one.__name__ for one in found)
        what = f"has {len(found)} loop classes, {names}" if found else "has no subclass of RTLoop"
        raise Rejected("create", f"the cell {what}; --swap needs exactly one")
    return found[0]


def _read_former(former: type[Any]) -> dict[str, str]:
    """Return the layouts of the build of the former step.

    Raises
    ------
    Rejected
        If they are not known.
    """
    name = former.__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    examined = find_examined(Path(file)) if file else None
    cell = cells.get(name)
    if examined is not None:
        return rename_module(examined.layouts, {name, cell.source.stem if cell else name})
    if cell is not None:
        try:
            return rename_module(read_layouts(generate_source(*cell).unit.text), {name, cell.source.stem})
        except LintError as error:
            raise Rejected("take-over", str(error)) from None
    raise Rejected(
        "take-over",
        f"take_over() casts the former step, and the fields of {former.__name__} are not known, because it was not "
        "compiled by %%rtloop in this notebook: compile it in a cell, or leave take_over() out for this swap",
    )
