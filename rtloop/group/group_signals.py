"""Signals of all loops of a group, by the name of the loop and that of the signal: ``"motor.angle"``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rtloop.units import show

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtloop.child.process_loop import ProcessLoop
    from rtloop.live.signals import Signals
    from rtloop.loop.loop import RTLoop

__all__ = ["GroupSignals"]


class GroupSignals(Mapping[str, "Signals"]):
    """The signals of a group's loops, by the name of the loop: ``group.signals["motor"].read()``.

    Loops without signals are not in it. Each loop samples its own signals in its own cycles; the releases of all loops
    are on one clock, by which the samples belong together.
    """

    def __init__(self, loops: tuple[RTLoop | ProcessLoop, ...]) -> None:
        self._loops = {loop.name: loop.signals for loop in loops if len(loop.signals)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all signals: ``"motor.angle"``."""
        return tuple(f"{loop}.{name}" for loop, signals in self._loops.items() for name in signals.names)

    @property
    def units(self) -> Mapping[str, str]:
        """Unit of each signal."""
        every = {loop: signals.units for loop, signals in self._loops.items()}
        return MappingProxyType({f"{loop}.{name}": unit for loop, its in every.items() for name, unit in its.items()})

    def latest(self) -> dict[str, Any]:
        """Return the newest sample of each loop: ``{"motor.cycle": 7, "motor.angle": 0.5, ...}``."""
        every = {loop: signals.latest() for loop, signals in self._loops.items()}
        return {f"{loop}.{name}": value for loop, its in every.items() for name, value in its.items()}

    def read(self) -> dict[str, NDArray[Any]]:
        """Return what each loop has sampled since the last read, by the name of the loop."""
        return {loop: signals.read() for loop, signals in self._loops.items()}

    def __getitem__(self, name: str) -> Signals:
        if name not in self._loops:
            known = ", ".join(self._loops) or "none"
            raise KeyError(f"the group has no loop {show(name)} with signals; it has {known}")
        return self._loops[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loops)

    def __len__(self) -> int:
        return len(self._loops)

    def __repr__(self) -> str:
        return f"<Signals of {', '.join(self._loops)}: {', '.join(self.names)}>"
