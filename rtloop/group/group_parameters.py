"""Parameters of all loops of a group, by the name of the loop and that of the parameter: ``"motor.kp"``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rtloop.units import show

if TYPE_CHECKING:
    from rtloop.child.process_loop import ProcessLoop
    from rtloop.live.declared_parameters import Parameter
    from rtloop.loop.loop import RTLoop

__all__ = ["GroupParameters"]


class GroupParameters(Mapping[str, Any]):
    """The parameters of a group's loops: ``group.parameters["motor.kp"] = 5``.

    The values of one loop all change before the same step of that loop; each loop takes over its own in its next cycle.
    If one value is refused, nothing is changed in any loop.
    """

    def __init__(self, loops: tuple[RTLoop | ProcessLoop, ...]) -> None:
        self._loops = {loop.name: loop.parameters for loop in loops}

    @property
    def declared(self) -> Mapping[str, Parameter]:
        """Type, shape, limits and unit of each parameter."""
        every = {loop: parameters.declared for loop, parameters in self._loops.items()}
        return MappingProxyType({f"{loop}.{name}": one for loop, its in every.items() for name, one in its.items()})

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several parameters; those of one loop all change before the same step.

        Parameters
        ----------
        values : mapping
            Values by name: ``{"motor.kp": 5, "motor.kd": 0.1}``.

        Raises
        ------
        KeyError, ConfigError
            As for one loop; nothing is changed in any.
        StateError
            As for one loop; loops before it may have changed.
        """
        parts: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            loop, name = self._split(key)
            parts.setdefault(loop, {})[name] = value
        for loop, part in parts.items():
            self._loops[loop].check(part)
        for loop, part in parts.items():
            self._loops[loop].update(part)

    def sliders(self, *names: str) -> Any:
        """Return sliders and fields for a notebook, as `Parameters.sliders` does for one loop: ``sliders("motor.kp")``.

        Raises
        ------
        ImportError, KeyError
            As for one loop.
        """
        from rtloop.live.sliders import make_sliders

        return make_sliders(self, names or tuple(self))

    def _split(self, key: str) -> tuple[str, str]:
        loop, _, name = key.rpartition(".") if isinstance(key, str) else ("", "", "")
        if loop not in self._loops or name not in self._loops[loop]:
            known = ", ".join(self) or "none"
            raise KeyError(f"the group has no parameter {show(key)}; its parameters are {known}")
        return loop, name

    def __getitem__(self, key: str) -> Any:
        loop, name = self._split(key)
        return self._loops[loop][name]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __iter__(self) -> Iterator[str]:
        return iter(self.declared)

    def __len__(self) -> int:
        return sum(map(len, self._loops.values()))

    def __repr__(self) -> str:
        return f"<Parameters of {', '.join(self._loops)}: {dict(self)}>"
