"""Options that several commands share, and how they say that they wait."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from rtloop.errors import ConfigError
from rtloop.units import parse_duration, parse_period

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["check_folder", "check_picture", "say_once", "to_duration", "to_period"]

_FORMS = (
    "; write it with a unit, such as 250us, 10ms or 2s",
    "; write a rate, such as 4kHz, or a period, such as 250us",
)


def to_duration(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Turn an option such as ``10s`` into nanoseconds: a click callback."""
    return _parse(ctx, param, value, rate=False)


def to_period(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Turn an option such as ``1kHz`` or ``250us`` into the period in nanoseconds: a click callback."""
    return _parse(ctx, param, value, rate=True)


def _parse(ctx: click.Context, param: click.Parameter, value: str, *, rate: bool) -> int:
    try:
        if rate:
            return parse_period(value, param.name or "")
        return parse_duration(value, param.name or "", minimum=1)
    except ConfigError as error:
        # The words of the Python interface name types that a command line does not have.
        what, forms, _ = str(error).removeprefix(f"{param.name}=").partition("; give an int (nanoseconds)")
        raise click.BadParameter(what + (_FORMS[rate] if forms else ""), ctx, param) from None


def check_picture(plot: Path) -> None:
    """Refuse what no picture can be written to: now, not after the runs."""
    import matplotlib.figure

    canvas = matplotlib.figure.Figure().canvas
    if plot.suffix.lstrip(".") not in canvas.get_supported_filetypes():
        raise click.BadParameter(f"{plot}: the name must end in .png, .svg or .pdf", param_hint="--plot")
    check_folder(plot, "--plot")


def check_folder(path: Path, option: str) -> None:
    """Refuse a file that cannot be made: now, not after the runs."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise click.BadParameter(f"{path.parent} is not a folder one can write to", param_hint=option)


def say_once() -> Callable[[str], None]:
    """Return a function that prints what it is first given on stderr, and nothing of the rest."""
    said: list[str] = []

    def say(text: str) -> None:
        if not said:
            print(f"{text} (Ctrl-C ends)", file=sys.stderr, flush=True)
        said.append(text)

    return say
