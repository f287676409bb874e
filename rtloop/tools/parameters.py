"""``rtloop get`` and ``rtloop set``: parameters and newest signals of a running loop."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from rtloop.errors import ConfigError, RtloopError, StateError
from rtloop.live.value_text import format_limits, format_value, plain_value
from rtloop.process.nap import nap
from rtloop.tools.options import as_json_option, complete_loop, config_option, say_if_slow

if TYPE_CHECKING:
    import numpy as np

    from rtloop.live.connect import Connection
    from rtloop.live.declared_parameters import Parameter
    from rtloop.live.signals import Signals
    from rtloop.zenoh.connection import RemoteConnection
    from rtloop.zenoh.remote_signals import RemoteSignals

__all__ = ["get", "parse_value", "set"]

#: Longest wait for the first sample of a loop on another host, s.
_PATIENCE_S = 2.0
_WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def _complete_key(suffix: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        try:
            given = ctx.params
            with _connect(given["name"], given.get("pid"), given.get("keys"), given.get("config")) as loop:
                names = list(loop.parameters) if suffix else _names(loop)
                return [f"{key}{suffix}" for key in names if key.startswith(incomplete)]
        except (RtloopError, click.UsageError, KeyError):
            return []

    return complete


_name = click.argument("name", shell_complete=complete_loop)
_pid = click.option("--pid", type=click.IntRange(min=1), help="Process of the loop, if several have a loop NAME.")
_zenoh = click.option(
    "--zenoh", "keys", metavar="KEYS", help="A loop on another host whose bridge's key matches: 'rtloop/**'."
)


@click.command("get")
@_name
@click.argument("names", nargs=-1, metavar="[KEY...]", shell_complete=_complete_key(""))
@_pid
@_zenoh
@config_option
@as_json_option("instead of the table")
def get(
    name: str, names: tuple[str, ...], pid: int | None, keys: str | None, config: str | None, as_json: bool
) -> None:
    """Show the parameters and signals of a running loop.

    With KEY, it shows only those of these names. The column "uses" appears if the loop does not yet use what was set
    last. All signals are of the same cycle; in JSON, values that are not finite are null.

    \b
    Examples:
      rtloop get motor
      rtloop get motor kp angle --json
      watch -n 0.2 rtloop get motor angle
      rtloop get motor --zenoh 'rtloop/pi/**'
    """  # noqa: D301 - the backslash is for click
    with _connect(name, pid, keys, config) as loop:
        signals = _signals(loop)
        _check(loop, names, "parameter or signal", _names(loop))
        document = _document(loop, tuple(key for key in names or loop.parameters if key in loop.parameters))
        document |= _sample(signals, names)
    if as_json:
        click.echo(json.dumps(_as_json({"command": "get", **document}), indent=1, allow_nan=False))
        return
    if document["parameters"]:
        _print(document)
    if document["signals"]:
        _print_sample(document)
    if not document["parameters"] and not document["signals"]:
        print(f"{document['loop']} has no parameters and no signals.")


@click.command("set")
@_name
@click.argument("assignments", nargs=-1, required=True, metavar="KEY=VALUE...", shell_complete=_complete_key("="))
@_pid
@_zenoh
@config_option
@as_json_option("instead of the lines")
def set(  # noqa: A001 - the name of the command
    name: str, assignments: tuple[str, ...], pid: int | None, keys: str | None, config: str | None, as_json: bool
) -> None:
    """Set parameters of a running loop, all before one step.

    VALUE is a number; true, false, on or off; or an array: 1,2,3 or [[1,2],[3,4]]. If one value is refused, none is
    set. The exit code is 1 if the loop has not used the values within a second plus three periods, because its step
    hangs, or another program has changed them again. With --zenoh the owner of the loop has to allow changes:
    Bridge(loop, commands=("set",)).

    \b
    Examples:
      rtloop set motor kp=8 kd=0.1
      rtloop set arm gains=1,2,3 enabled=off
      rtloop set motor kp=8 --zenoh 'rtloop/pi/**'
    """  # noqa: D301 - the backslash is for click
    with _connect(name, pid, keys, config) as loop:
        pairs = [assignment.partition("=") for assignment in assignments]
        for key, equals, _ in pairs:
            if not equals:
                raise click.UsageError(f"{key!r} is not of the form KEY=VALUE")
        given = [key for key, _, _ in pairs]
        for key in given:
            if given.count(key) > 1:
                raise click.UsageError(f"{key!r} is given more than once")
        _check(loop, tuple(given), "parameter", tuple(loop.parameters))
        declared, before = loop.parameters.declared, dict(loop.parameters)
        values = {key: parse_value(declared[key], text) for key, _, text in pairs}
        loop.parameters.update(values)
        is_used = loop.parameters.wait(1 + 3e-9 * loop.period_ns)
        document = _document(loop, tuple(values))
    for key, one in document["parameters"].items():
        one["before"] = _plain(before[key], declared[key].dtype)
    if as_json:
        click.echo(json.dumps({"command": "set", **document, "is_used": is_used}, indent=1))
    else:
        since = f"from cycle {document['cycle']:,} on" if is_used else "NOT YET USED"
        for key, one in document["parameters"].items():
            unit = f" {one['unit']}" if one["unit"] else ""
            print(f"{key}: {format_value(one['before'])} -> {format_value(one['value'])}{unit}, {since}")
    if not is_used:
        print(f"{document['loop']} does not use the values yet.", file=sys.stderr)
        raise click.exceptions.Exit(1)


def _connect(name: str, pid: int | None, keys: str | None, config: str | None) -> Connection | RemoteConnection:
    if keys is None:
        from rtloop.live.connect import connect

        if config is not None:
            raise click.UsageError("--config belongs to --zenoh: give --zenoh KEYS as well")
        return connect(name, pid)
    if pid is not None:
        raise click.UsageError("--pid selects a process of this machine: with --zenoh, choose by KEYS")
    from rtloop import zenoh

    with say_if_slow(f"waiting for a bridge of {name} to answer for {keys}"):
        return zenoh.connect(name, keys, config=config)


def _signals(loop: Connection | RemoteConnection) -> Signals | RemoteSignals | None:
    try:
        return loop.signals
    except StateError:
        return None


def _latest(signals: Signals | RemoteSignals) -> dict[str, Any]:
    """Return the newest sample; of a loop on another host, the first one that arrives."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := signals.latest()) and hasattr(signals, "every") and time.monotonic() < deadline:
        nap(0.01)
    return found


def _names(loop: Connection | RemoteConnection) -> tuple[str, ...]:
    """Return the names of parameters and signals; one may be both."""
    signals = _signals(loop)
    return tuple(dict.fromkeys((*loop.parameters, *(() if signals is None else signals.names))))


def _check(loop: Connection | RemoteConnection, keys: tuple[str, ...], what: str, known: tuple[str, ...]) -> None:
    for key in keys:
        if key not in known:
            raise ConfigError(f"{loop.name} has no {what} {key!r}; it has {', '.join(known) or 'none'}")


def parse_value(parameter: Parameter, text: str) -> Any:
    """Turn a word into a value, which the parameter then checks.

    Raises
    ------
    click.BadParameter
        If it has not the form of a value of the type.
    """
    kind = parameter.dtype.kind
    values = ("false", "true") if kind == "b" else ("0", "1")  # in C, and in Cython's bint, a bool is a whole number
    plain = text if kind == "f" else re.sub(r"\w+", lambda found: _replace(found[0], values), text)
    try:
        if parameter.shape:
            return json.loads(plain if plain.startswith("[") else f"[{plain}]")
        if kind == "b":
            return bool(("false", "true", "0", "1").index(plain) % 2)
        return float(plain) if kind == "f" else int(plain, 0)
    except ValueError:
        what = {"b": "true or false", "f": "a number"}.get(kind, "a whole number")
        what = f"an array such as 1,2,3 of the shape {parameter.shape}" if parameter.shape else what
        raise click.BadParameter(f"{parameter.name}={text} must be {what}", param_hint="KEY=VALUE") from None


def _replace(word: str, values: tuple[str, str]) -> str:
    """Return the value of a word such as "on", and any other word as it is."""
    return values[_WORDS[word.lower()]] if word.lower() in _WORDS else word


def _document(loop: Connection | RemoteConnection, keys: tuple[str, ...]) -> dict[str, Any]:
    from rtloop import __version__

    declared, asked, applied = loop.parameters.declared, dict(loop.parameters), loop.parameters.applied
    listed = {}
    for key in keys:
        one = declared[key]
        listed[key] = {
            "value": _plain(asked[key], one.dtype),
            "uses": None if applied is None else _plain(applied.values[key], one.dtype),
            "type": one.kind,
            "shape": list(one.shape),
            "low": one.low,
            "high": one.high,
            "unit": one.unit,
        }
    return {
        "rtloop": __version__,
        "loop": loop.name,
        "pid": loop.pid,
        **{name: getattr(loop, name) for name in ("host", "key") if hasattr(loop, name)},
        "cycle": None if applied is None else applied.cycle,
        "parameters": listed,
    }


def _sample(signals: Signals | RemoteSignals | None, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the newest sample; its values are None before the first one."""
    if signals is None:
        return {"signals_cycle": None, "signals": {}}
    latest, units, limits = _latest(signals), signals.units, signals.limits
    listed = {}
    for name in keys or signals.names:
        if name in signals:
            kind = signals.dtype[name]
            value = _plain(latest.get(name), kind.base)
            low, high = limits.get(name, (None, None))
            described = {"type": kind.base.str[1:], "shape": list(kind.shape), "low": low, "high": high}
            described["unit"] = units[name]
            listed[name] = {"value": value, **described}
    return {"signals_cycle": latest.get("cycle"), "signals": listed}


def _as_json(value: Any) -> Any:
    """Replace what JSON does not have, as the files of records do: NaN and infinity by null, a complex by its text."""
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, complex):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any, kind: np.dtype[Any]) -> Any:
    """Return a value as Python's numbers; those of fewer bits than a double with no more digits than they have."""
    import numpy as np  # here, because the commands have to start quickly

    if value is None or kind.str[1:] not in ("f2", "f4"):
        return plain_value(value)
    numbers = np.asarray(value, kind)
    return np.array([float(str(one)) for one in numbers.ravel()]).reshape(numbers.shape).tolist()


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = document["parameters"]
    has_other = any(one["uses"] != one["value"] for one in listed.values())
    table = Table("parameter", box=None)
    table.add_column("value", justify="right")
    if has_other:
        table.add_column("uses", justify="right")
    for head in ("unit", "limits", "type"):
        table.add_column(head)
    for key, one in listed.items():
        limits = format_limits(one["low"], one["high"])
        kind = one["type"] + (f" {tuple(one['shape'])}" if one["shape"] else "")
        values = [format_value(one["value"]), *([format_value(one["uses"])] if has_other else [])]
        table.add_row(*map(Text, (key, *values, one["unit"], limits, kind)))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _print_sample(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cycle = document["signals_cycle"]
    table = Table("signal", box=None)
    table.add_column("before the first cycle" if cycle is None else f"cycle {cycle:,}", justify="right")
    for head in ("unit", "limits", "type"):
        table.add_column(head)
    for name, one in document["signals"].items():
        kind = one["type"] + (f" {tuple(one['shape'])}" if one["shape"] else "")
        value = "-" if one["value"] is None else format_value(one["value"])
        table.add_row(*map(Text, (name, value, one["unit"], format_limits(one["low"], one["high"]), kind)))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
