"""``rtloop exchanges``: the exchanges that processes share."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from rtloop.process.nap import nap
from rtloop.tools.options import as_json_option, to_duration
from rtloop.units import format_duration

if TYPE_CHECKING:
    from rtloop.sharing.exchange_file import Holder
    from rtloop.sharing.exchange_list import ExchangeState

__all__ = ["exchanges"]


@click.command("exchanges")
@click.argument("sockets", metavar="[SOCKET]...", nargs=-1)
@click.option(
    "--over", default="500ms", show_default=True, metavar="TIME", callback=to_duration, help="Measure rates over TIME."
)
@as_json_option("instead of the table")
def exchanges(sockets: tuple[str, ...], over: int, as_json: bool) -> None:
    """Show the exchanges that processes share.

    It shows who writes, who reads, how fast, how full, and how old.

    \b
    from, to   the processes that have these roles; - if no process has the role;
               * follows the id of a process in another PID namespace
    rate       items or values written in a second
    fill       items in a ring, its capacity, and the most that were ever in it
    age        time since the newest value with a time stamp was written

    An exchange exists as long as a process has it open. Give the SOCKET of an exchange, /run/arm/setpoint or
    @arm/setpoint, to show it if this user may not inspect its processes, or if they are in another PID namespace.
    """  # noqa: D301 - the backslash is for click
    from rtloop import __version__
    from rtloop.sharing.exchange_list import list_exchanges
    from rtloop.sharing.roles import is_socket_name, parse_share_name
    from rtloop.telemetry.denied import describe_denied_count

    for name in sockets:
        if not is_socket_name(parse_share_name(name)):
            raise click.UsageError(f"{name!r} is not a socket: give a path, or a name that begins with @")
    before = {state.inode: state for state in list_exchanges(sockets=sockets)}
    nap(over * 1e-9)
    denied: list[int] = []
    faulty: dict[int, str] = {}
    states = list_exchanges(denied, faulty, sockets)
    listed = [_document(state, before.get(state.inode)) for state in states]
    notes = [f"process {pid}: a file that looks like an exchange is not read: {text}" for pid, text in faulty.items()]
    if denied:
        notes.append(describe_denied_count(len(denied)))
    if as_json:
        document = {"command": "exchanges", "rtloop": __version__, "exchanges": listed, "notes": notes}
        click.echo(json.dumps(document, indent=1))
        return
    if listed:
        _print(listed)
    else:
        print("No process shares an exchange.")
    for note in notes:
        print(note, file=sys.stderr)


def _document(state: ExchangeState, former: ExchangeState | None) -> dict[str, Any]:
    plan = state.header.plan
    rate = None
    if former is not None and state.time_ns > former.time_ns:
        rate = (state.written - former.written) % 2**64 / (state.time_ns - former.time_ns) * 1e9
    is_ring = plan.kind == "ring"
    return {
        "name": state.header.name,
        "kind": plan.kind,
        "dtype": str(plan.dtype),
        "item_bytes": plan.dtype.itemsize,
        "capacity": plan.capacity if is_ring else None,
        "most_readers": plan.readers,
        "mode": f"{plan.mode:04o}",
        "writer": _holder(state.writer),
        "readers": [_holder(one) for one in state.readers],
        "pids": state.pids,
        "written": state.written,
        "rate_hz": rate,
        "fill": state.fill if is_ring else None,
        "high_water": state.high_water if is_ring else None,
        "dropped": state.dropped if is_ring else None,
        "age_ns": state.age_ns,
    }


def _holder(one: Holder | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {"pid": one.pid, "program": one.program, "in_other_pid_namespace": one.is_elsewhere}


def _side(holders: list[dict[str, Any] | None]) -> str:
    there = [one for one in holders if one is not None]
    return ", ".join(f"{one['program']} {one['pid']}{'*' * one['in_other_pid_namespace']}" for one in there) or "-"


def _print(listed: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("exchange", "kind", box=None)
    for head in ("item", "from", "to", "rate", "fill", "dropped", "age"):
        table.add_column(head, justify="left" if head in ("from", "to") else "right")
    for one in listed:
        fill = "" if one["fill"] is None else f"{one['fill']}/{one['capacity']} (most {one['high_water']})"
        cells = (
            one["name"], one["kind"], f"{one['item_bytes']} B", _side([one["writer"]]), _side(one["readers"]),
            "" if one["rate_hz"] is None else f"{one['rate_hz']:.4g}/s", fill,
            "" if one["dropped"] is None else f"{one['dropped']}",
            "" if one["age_ns"] is None else format_duration(one["age_ns"]),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
