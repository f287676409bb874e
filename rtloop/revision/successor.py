"""Successor of a running loop's step: checked against the former one, swapped in, and its parameters compared."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, Literal

from rtloop.compiler.diagnostics import Diagnostic, show_diagnostic
from rtloop.errors import RtloopError
from rtloop.layouts import find_disagreement, find_take_overs, select_casts
from rtloop.live.value_text import plain_value
from rtloop.revision.examination import Rejected
from rtloop.revision.tracebacks import describe_exception
from rtloop.settings import make_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rtloop.loop.loop import RTLoop

__all__ = ["ParameterValues", "check_take_over", "create_successor", "successor_settings", "swap_in"]

#: Incidents that end a trial, besides a negative code.
_REVERT_ON: tuple[Literal["overrun", "guard", "late", "nonfinite"], ...] = ("overrun", "guard", "late", "nonfinite")
#: Settings that must be the same in the successor and the loop, and settings of the signals.
_SHARED = ("clock", "flush_denormals", "signals_every", "signals_capacity")
_REFUSED = re.compile(r"(?:unexpected keyword|multiple values for keyword) argument '(\w+)'")
_FIX = (
    "keep the fields that it reads in a base class that does not change, and cast to that; or leave "
    "take_over() out for this swap; or stop the loop and start it again"
)


class ParameterValues:
    """Values of a running loop's parameters, and which of them were set while it ran.

    Attributes
    ----------
    values : dict
        The values that were read last.
    set : set of str
        Names of the parameters that were set while the loop ran.
    """

    def __init__(self, loop: RTLoop) -> None:
        self._loop = loop
        self.values: dict[str, Any] = {}
        self.set: set[str] = set()

    def read(self) -> None:
        """Read the present values."""
        self.values = {name: plain_value(value) for name, value in self._loop.parameters.items()}

    def note(self) -> None:
        """Read the present values, and note which of them were set since the last reading."""
        before = self.values
        self.read()
        self.set = {name for name, value in self.values.items() if name in self.set or value != before.get(name)}

    def compare(self) -> list[str]:
        """Return a line for each parameter whose value has changed in a swap, or was set while the loop ran."""
        before, declared = self.values, self._loop.parameters.declared
        self.read()
        now = self.values
        lines = []
        for name, value in before.items():
            if name not in now:
                lines.append(f"the parameter {name} is gone; it was {value}")
            elif now[name] == value:
                if name in self.set:
                    lines.append(f"{name} stays {value}, as set while the loop ran")
            elif name in self.set:
                one = declared[name]
                low, high = one.low, one.high
                limits = [f"low {low}"] * (low is not None) + [f"high {high}"] * (high is not None)
                lines.append(
                    f"{name} was set to {value}, which the new law does not allow "
                    f"({', '.join([f'type {one.kind}', *limits])}): it is now {now[name]}"
                )
            else:
                lines.append(f"{name} is now {now[name]}, and was {value}")
        lines += [f"{name} is new: {value}" for name, value in now.items() if name not in before]
        self.set &= {name for name in now if name in before and now[name] == before[name]}
        return lines


def successor_settings(loop: RTLoop) -> dict[str, Any]:
    """Return the settings, apart from the period, with which to create a successor of a running loop."""
    now, defaults = loop.settings, make_settings.__kwdefaults__ or {}
    return {name: getattr(now, name) for name in _SHARED if getattr(now, name) != defaults[name]}


def create_successor(kind: type[RTLoop], period: Any, settings: Mapping[str, Any]) -> RTLoop:
    """Create a successor, without the settings that its class refuses, or sets itself."""
    keywords = dict(settings)
    while True:
        try:
            return kind(period, **keywords)
        except TypeError as error:
            match = _REFUSED.search(str(error))
            if match is None or keywords.pop(match[1], None) is None:
                raise


def check_take_over(
    file: str,
    source: str,
    kind: type[Any],
    former: type[Any],
    before: Mapping[str, str],
    after: Mapping[str, str],
) -> None:
    """Raise Rejected if take_over() would read fields of the former step from the wrong places.

    Parameters
    ----------
    file, source : str
        Name and text of the new .pyx.
    kind, former : type
        Classes of the new step and of the former one.
    before, after : mapping
        Layouts of the two builds.
    """
    casts = select_casts(find_take_overs(source), [base.__name__ for base in kind.__mro__])
    line, reason = find_disagreement(casts, [base.__name__ for base in former.__mro__], before, after)
    if reason:
        raise Rejected("take-over", show_diagnostic(Diagnostic(file, line, 0, reason, _FIX)))


def swap_in(loop: RTLoop, successor: RTLoop, trial: Any, tell: Callable[[str], None]) -> int | None:
    """Swap, and keep the parameters that were set while the loop ran.

    Parameters
    ----------
    loop, successor : RTLoop
        The running loop, and a loop of the new step.
    trial : duration, optional
        Time in which the loop goes back to the former step if the new one fails.
    tell : callable
        Called with the text of an exception that ``released`` of the former step raised after the swap.

    Returns
    -------
    int or None
        First cycle of the new step; None if the loop has ended.

    Raises
    ------
    Rejected
        If the loop goes on with its former step.
    """
    count = len(loop.stats.swaps or ())
    try:
        return loop.swap(successor, keep="changed", trial=trial, revert_on=_REVERT_ON)
    except BaseException as error:
        swaps = loop.stats.swaps or ()
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        if loop.state != "running":
            return None
        if len(swaps) > count:  # released() of the former one has raised
            tell(describe_exception(error))
            return swaps[-1].cycle
        text = str(error) if isinstance(error, RtloopError) else describe_exception(error)
        raise Rejected("swap", text) from None
