"""Parameters: the mapping by which a program reads and changes the parameters of a loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from rtloop.live.declared_parameters import Parameter
from rtloop.live.parameter_block import Used
from rtloop.live.value_text import format_limits, format_value, html_table
from rtloop.process.nap import nap
from rtloop.units import show

__all__ = ["Applied", "ParameterBackend", "Parameters"]


class ParameterBackend(Protocol):
    """Source of a mapping's parameters: a loop of this process, or of another."""

    @property
    def declared(self) -> Mapping[str, Parameter]:
        """The parameters by name."""

    @property
    def name(self) -> str:
        """Name of the loop."""

    def asked(self) -> bytes:
        """Return the set that was requested last."""

    def used(self) -> Used | None:
        """Return the set that the loop uses."""

    def change(self, changes: Mapping[str, bytes]) -> None:
        """Request other values."""


class Applied(NamedTuple):
    """The values that a loop uses.

    Attributes
    ----------
    values : dict
        The values by name.
    cycle : int
        Index of the first cycle that used all of them.
    """

    values: dict[str, Any]
    cycle: int


class Parameters(Mapping[str, Any]):
    """The parameters of a loop, read and changed from any thread while it runs, or between its runs.

    ``parameters["kp"]`` is the value that was set last, by whoever set it. A running loop uses it from one of its next
    cycles on; `applied` has the values in use and their first cycle. The values of one ``update`` all change before the
    same step. Every change is in the record of the run, ``stats.parameter_changes``.

    The step is meant only to read its parameters. If it changes one, its value stays until somebody sets another.

    Attributes
    ----------
    declared : mapping
        Name to type, shape, limits and unit.
    """

    def __init__(self, backend: ParameterBackend) -> None:
        self._backend = backend

    @property
    def declared(self) -> Mapping[str, Parameter]:
        """Type, shape, limits and unit of each parameter."""
        return MappingProxyType(dict(self._backend.declared))

    @property
    def applied(self) -> Applied | None:
        """Values that the loop uses, or used last, and the first cycle that used them; None before the first run."""
        used = self._backend.used()
        if used is None:
            return None
        return Applied({name: one.unpack(used.values) for name, one in self._backend.declared.items()}, used.cycle)

    @property
    def refused(self) -> int:
        """Number of sets that the loop has refused in this run.

        They came from a writer that did not check them: values outside of the limits, or not of the types.
        """
        used = self._backend.used()
        return 0 if used is None else used.refused

    def update(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        """Set several parameters, all before the same step: ``update(kp=5, setpoint=1)``.

        Parameters
        ----------
        values : mapping or iterable of pairs, optional
            Values by name.
        **more
            The same as keywords.

        Raises
        ------
        KeyError
            If there is no such parameter. Nothing is changed, as after the other errors.
        ConfigError
            If a value has another type or shape, is not finite, or is outside of its limits.
        StateError
            If the loop is of another process, and has ended or does not allow changes; or if another writer has held
            the lock for two seconds.
        """
        changes = self.check(dict(values, **more))
        if changes:
            self._backend.change(changes)

    def check(self, values: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the bytes of values; raise the errors of :meth:`update` if one cannot be set."""
        return {name: self._find(name).pack(value) for name, value in values.items()}

    def sliders(self, *names: str) -> Any:
        """Return sliders and fields for a notebook, which set the parameters as they are moved.

        A number with two limits has a slider, an array a field for a list. A value that is refused is not set, and the
        reason is shown. Needs ipywidgets: ``pip install 'rtloop[notebook]'``.

        Parameters
        ----------
        *names : str
            Parameters to show; by default all.

        Returns
        -------
        ipywidgets.VBox
            The widgets, which a notebook shows at the end of a cell.

        Raises
        ------
        ImportError
            If ipywidgets is not installed.
        KeyError
            If there is no such parameter.
        """
        from rtloop.live.sliders import make_sliders

        return make_sliders(self, names or tuple(self))

    def wait(self, timeout_s: float = 1.0) -> bool:
        """Wait until the loop uses what was set last. Returns False after the timeout: it may not be running."""
        deadline = time.monotonic() + timeout_s
        while True:
            used = self._backend.used()
            asked = self._backend.asked()
            if used is not None and used.values[: len(asked)] == asked[: len(used.values)]:
                return True
            if time.monotonic() > deadline:
                return False
            nap(0.0005)

    def _find(self, name: str) -> Parameter:
        found = self._backend.declared.get(name)
        if found is None:
            known = ", ".join(self._backend.declared)
            has = f"its parameters are {known}" if known else "it has none"
            raise KeyError(f"{self._backend.name} has no parameter {show(name)}; {has}")
        return found

    def __getitem__(self, name: str) -> Any:
        return self._find(name).unpack(self._backend.asked())

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._backend.declared))

    def __len__(self) -> int:
        return len(self._backend.declared)

    def __contains__(self, name: object) -> bool:
        return name in self._backend.declared

    def __repr__(self) -> str:
        asked = self._backend.asked()
        values = {name: one.unpack(asked) for name, one in self._backend.declared.items()}
        return f"<Parameters of {self._backend.name!r}: {values}>"

    def _repr_html_(self) -> str:
        asked, declared = self._backend.asked(), self._backend.declared
        return html_table(
            f"parameters of {self._backend.name}",
            ("name", "value", "unit", "limits"),
            [
                (name, format_value(one.unpack(asked)), one.unit, format_limits(one.low, one.high))
                for name, one in declared.items()
            ],
        )
