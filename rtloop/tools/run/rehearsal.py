"""Rehearsal of a saved law: the loops that another process makes, as this one has made its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from rtloop.compiler.build import load_parts
from rtloop.tools.run.target import Target

if TYPE_CHECKING:
    from rtloop.compiler.build import Built
    from rtloop.loop.loop import RTLoop

__all__ = ["Law", "Pair", "Rehearsing"]


class Rehearsing(NamedTuple):
    """Settings of the rehearsals of a watch.

    Attributes
    ----------
    make : callable
        Makes a loop of a target, in another process, so it can be pickled.
    duration_ns, timeout_ns : int
        Virtual time of a rehearsal, and longest time that it may take.
    """

    make: Callable[[Target], RTLoop]
    duration_ns: int
    timeout_ns: int = 10_000_000_000


class Law(NamedTuple):
    """A target that another process can load: the files of its build, and its name."""

    parts: tuple[tuple[str, str, str], ...]
    name: str

    @classmethod
    def of(cls, target: Target) -> Law:
        """Return that of a target that was built."""
        built: Built | None = target.built
        assert built is not None
        return cls(built.parts, target.name)

    def load(self) -> Target:
        """Load it in the other process."""
        module = load_parts(self.parts)
        return Target(getattr(module, self.name), self.name, module, None, None)


class Pair(NamedTuple):
    """Function that makes a loop of the former law, and one of the new law."""

    former: Law
    new: Law
    make: Callable[[Target], RTLoop]

    def __call__(self) -> tuple[RTLoop, RTLoop]:
        """Load both laws, and make their loops."""
        return self.make(self.former.load()), self.make(self.new.load())
