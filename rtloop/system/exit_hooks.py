"""What is done when the interpreter ends, in an order that does not depend on who was imported first."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOOPS", "RECORDERS", "at_end"]

#: Loops end first: what they have pushed by then is recorded.
LOOPS = 0
RECORDERS = 1

_calls: dict[int, list[Callable[[], None]]] = {LOOPS: [], RECORDERS: []}


def at_end(stage: int, function: Callable[[], None]) -> None:
    """Call a function, which must not raise, when the interpreter ends."""
    _calls[stage].append(function)


def _end() -> None:
    for stage in sorted(_calls):
        for function in _calls[stage]:
            function()


atexit.register(_end)
