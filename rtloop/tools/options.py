"""Options that several commands share."""

from __future__ import annotations

import click

from rtloop.errors import ConfigError
from rtloop.units import parse_duration, parse_period

__all__ = ["to_duration", "to_period"]


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
        raise click.BadParameter(str(error), ctx, param) from None
