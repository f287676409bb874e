"""``rtloop scope``: the command line."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from rtloop.tools.interruption import default_handlers, noted_signals
from rtloop.tools.options import config_option, running_names, say_once, to_duration

if TYPE_CHECKING:
    from rtloop.tools.scope.sources import Source

__all__ = ["scope"]

_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


@click.command()
@click.argument("name", required=False)
@click.option("--pid", type=click.IntRange(1), help="Process of the loop, if several have a loop NAME.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; by default a free one.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
    help="Address to listen on. Another one lets other machines connect, without encryption.",
)  # fmt: skip
@click.option("--keep", metavar="TIME", callback=to_duration, default="60s", show_default=True,
              help="Time for which samples are kept, to scroll back.")  # fmt: skip
@click.option("--folder", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path), default=".",
              help="Folder of recordings and captures; by default the current one.")  # fmt: skip
@click.option("--presets", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="File of the named sets of parameters; by default ~/.config/rtloop/presets.json.")  # fmt: skip
@click.option("--foxglove", is_flag=True,
              help="Serve Foxglove, Lichtblick or PlotJuggler instead; the port is 8765 by default.")  # fmt: skip
@click.option("--zenoh", "keys", metavar="KEYS",
              help="Show the loops of all hosts whose bridges' keys match: 'rtloop/**'.")  # fmt: skip
@config_option
@click.option("--allow-set", is_flag=True, help="With --foxglove: accept changes of parameters.")
def scope(
    name: str | None,
    pid: int | None,
    port: int | None,
    host: str,
    keep: int,
    folder: Path,
    presets: Path | None,
    foxglove: bool,
    keys: str | None,
    config: str | None,
    allow_set: bool,
) -> None:
    """Show signals of running loops in the browser.

    Their parameters can be changed there. Open the address that is printed. The page shows the running loops of
    this machine, NAME first. It plots signals, finds triggers in all samples, sets parameters, and records. The
    loops need no preparation and are not delayed. Ctrl-C ends.

    The token in the address is new for each start. Whoever knows it can change parameters with your permissions, so
    treat it like a password. The page loads nothing from the internet. To reach it from another machine, prefer
    `ssh -L 8000:127.0.0.1:8000` with --port 8000 to --host.

    With --zenoh, the page shows loops of other hosts, or only those with the name NAME. A bridge sends samples at up to
    1 kHz, or another rate that its owner has chosen, and no times of single cycles; parameters can be changed if the
    owner allows it.

    With --foxglove, the signals and parameters of all loops, or of those with the name NAME, are served by the
    WebSocket server of foxglove-sdk, for Foxglove, Lichtblick and PlotJuggler. That protocol has no token: every
    program and every web page open on this machine can read them, and with --allow-set change the parameters within
    their limits.
    """
    if allow_set and not foxglove:
        raise click.UsageError("--allow-set belongs to --foxglove; the page of the scope can always set parameters")
    if keys is None and config is not None:
        raise click.UsageError("--config belongs to --zenoh: give --zenoh KEYS as well")
    if keys is not None and (foxglove or pid is not None):
        raise click.UsageError("--pid and --foxglove are for loops of this machine: leave out --zenoh")
    if foxglove:
        context = click.get_current_context()
        for unused in ("keep", "folder", "presets"):
            if context.get_parameter_source(unused) is ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"--{unused} is for the page of the scope: leave it out, or leave out --foxglove"
                )
        _serve_foxglove(name, pid, host, 8765 if port is None else port, allow_set)
        return
    from rtloop.tools.scope.assets import bokeh_path
    from rtloop.tools.scope.presets import Presets, default_path
    from rtloop.tools.scope.server import Guard, serve
    from rtloop.tools.scope.station import Station

    bokeh_path("")  # a missing Bokeh is reported before anything else
    if keep > 3_600_000_000_000:
        raise click.BadParameter("must be at most 3600s", param_hint="--keep")
    sockets = _bind(host, port or 0)
    source = None if keys is None else _open_network(keys, config, name)
    shown, is_open = _address(host, sockets[0])
    token = secrets.token_urlsafe(24)
    guard = Guard(token, _LOCAL | {host, shown, socket.gethostname()}, is_open=is_open)
    bracketed = f"[{shown}]" if ":" in shown else shown
    choice = "" if name is None else f"&loop={_quoted(name)}" + ("" if pid is None else f"&pid={pid}")
    choice = choice if source is None else ""  # a network shows only loops of that name
    address = f"http://{bracketed}:{sockets[0].getsockname()[1]}/?token={token}{choice}"

    def ready() -> None:
        print(f"Open {address}\nCtrl-C ends.", file=sys.stderr, flush=True)
        if name is not None and source is None and name not in running_names():
            print(f"No loop of the name {name!r} runs yet; the page shows it as soon as it does.", file=sys.stderr)
        if host not in _LOCAL:
            print("warning: other machines can connect, and what is sent is not encrypted.", file=sys.stderr)

    async def run() -> tuple[int, list[str]]:
        station = Station(Presets(presets or default_path()), folder.absolute(), keep / 1e9, source)
        return await serve(station, sockets, guard, handled, ready)

    handled = tuple(default_handlers())  # before asyncio has a handler of its own
    number, said = asyncio.run(run())
    for sentence in said:
        print(sentence, file=sys.stderr)
    if number not in (0, 2):
        raise click.exceptions.Exit(128 + number)


def _open_network(keys: str, config: str | None, name: str | None) -> Source:
    from rtloop.tools.scope.sources import Network
    from rtloop.zenoh import Remotes

    return Network(Remotes(keys, config=config, on_wait=say_once()), name)


def _serve_foxglove(name: str | None, pid: int | None, host: str, port: int, can_set: bool) -> None:
    import foxglove  # noqa: F401 - if it is missing, that is reported before anything else

    from rtloop.tools.scope.foxglove import FoxgloveBridge

    # This logger reports each message to a client that has left as an error.
    logging.getLogger("foxglove.websocket.connected_client").setLevel(logging.CRITICAL)
    with noted_signals() as noted:
        try:
            bridge = FoxgloveBridge(name, pid, host, port, can_set=can_set, say=_say)
        except RuntimeError as error:
            raise click.ClickException(
                f"{host}, port {port}: cannot listen there: {error}; choose another one with --port"
            ) from None
        try:
            _say(f"Open ws://{host}:{bridge.port} in Foxglove or Lichtblick: Open connection, Foxglove WebSocket.")
            _say("Ctrl-C ends.")
            if host not in _LOCAL:
                _say("warning: other machines can connect, and there is no token.")
            bridge.run(lambda: bool(noted))
        finally:
            bridge.close()
    if noted[0] != signal.SIGINT:
        raise click.exceptions.Exit(128 + noted[0])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _bind(host: str, port: int) -> list[socket.socket]:
    import tornado.netutil

    try:
        found = tornado.netutil.bind_sockets(port, host)
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise click.ClickException(
            f"{host}, port {port}: cannot listen there: {text}; choose another one with --port"
        ) from None
    for other in found[1:]:  # with port 0 each would have another port
        other.close()
    return found[:1]


def _address(host: str, listening: socket.socket) -> tuple[str, bool]:
    """Return the address to open, and whether the server listens on all addresses."""
    bound = listening.getsockname()[0]
    if bound not in ("0.0.0.0", "::"):
        return (host if host in _LOCAL else bound), False
    return socket.gethostname(), True


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")
