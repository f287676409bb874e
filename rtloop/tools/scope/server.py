"""Server of the page: answers only a browser on an allowed address that knows the token."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

from rtloop.errors import RtloopError
from rtloop.tools.scope.assets import BOKEH_FILES, PAGE_FILES, bokeh_path, read_page_file
from rtloop.tools.scope.session import Session

if TYPE_CHECKING:
    from rtloop.tools.scope.station import Station

__all__ = ["Guard", "make_application", "serve"]

#: Time between two reads of the loops, and between two reports to the pages, s.
_POLL_S, _REPORT_S = 0.025, 0.25
_MOST_PAGES = 16
_LARGEST_MESSAGE = 1 << 20
#: The page loads nothing from elsewhere, sends nothing elsewhere, and cannot be framed by another page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' ws://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Guard:
    """Decide which requests are answered.

    The name in the address must be one of this server: otherwise a foreign page could reach it by a name of its own
    that leads here (DNS rebinding). Whatever shows or changes a loop needs the token as well, and for the WebSocket the
    page must have come from here.

    Parameters
    ----------
    token : str
        The secret in the address.
    names : collection of str
        Host names under which the server may be addressed.
    is_open : bool
        Accept every numeric address, because the server listens on all.
    """

    def __init__(self, token: str, names: frozenset[str], *, is_open: bool = False) -> None:
        self._token, self._names, self._is_open = token, names, is_open

    def refuse_host(self, host: str | None) -> str | None:
        """Return why a Host header is refused; None if it is allowed."""
        try:
            name = urlsplit(f"//{host or ''}").hostname or ""
        except ValueError:
            name = ""
        if name in self._names or (self._is_open and _is_numeric(name)):
            return None
        return f"the name {name!r} is not one of this server; use the address that rtloop scope has printed"

    def refuse_token(self, token: str) -> str | None:
        """Return why a token is refused; None if it is right."""
        if hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        return "the token in the address is wrong; use the address that rtloop scope has printed"

    def refuse_origin(self, origin: str | None, host: str | None) -> str | None:
        """Return why the page that asks is refused; None if it came from this server."""
        if origin is not None and host and origin == f"http://{host}":
            return None
        return f"a page of {origin or 'unknown origin'} may not read or change loops"


def _is_numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Answer(tornado.web.RequestHandler):
    """A file, for whoever addresses the server by its own name."""

    needs_token = False

    def initialize(self, guard: Guard, read: Callable[[], bytes], kind: str) -> None:
        self.guard, self.read, self.kind = guard, read, kind

    def prepare(self) -> None:
        host = self.request.headers.get("Host")
        reason = self.guard.refuse_host(host)
        if reason is None and self.needs_token:
            reason = self.guard.refuse_token(self.get_query_argument("token", ""))
        if reason is not None:
            self.set_status(403)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"Refused: {reason}.\n")

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")
        host = self.request.headers.get("Host", "")
        if all(letter.isalnum() or letter in ".:-[]" for letter in host):
            self.set_header("Content-Security-Policy", _POLICY.format(host=host))

    async def get(self) -> None:
        self.set_header("Content-Type", self.kind)
        self.finish(self.read())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code}: {self._reason}\n")


class _Page(_Answer):
    """The page itself, for whoever knows the token."""

    needs_token = True


class _Socket(tornado.websocket.WebSocketHandler):
    """Connection of one page."""

    def initialize(self, guard: Guard, station: Station, sessions: set[Session]) -> None:
        self.guard, self.station, self.sessions = guard, station, sessions
        self.session: Session | None = None

    def prepare(self) -> None:
        host = self.request.headers.get("Host")
        reason = self.guard.refuse_host(host) or self.guard.refuse_token(self.get_query_argument("token", ""))
        reason = reason or self.guard.refuse_origin(self.request.headers.get("Origin"), host)
        if reason is None and len(self.sessions) >= _MOST_PAGES:
            reason = f"{_MOST_PAGES} pages are open already; close one"
        if reason is not None:
            self.set_status(403)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"Refused: {reason}.\n")

    def check_origin(self, origin: str) -> bool:
        return self.guard.refuse_origin(origin, self.request.headers.get("Host")) is None

    async def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        self.session = Session(self.station, self._send)
        self.sessions.add(self.session)

    async def _send(self, message: str | bytes) -> None:
        with suppress(tornado.websocket.WebSocketClosedError, OSError):  # the page was closed; on_close follows
            await self.write_message(message, binary=isinstance(message, bytes))

    async def on_message(self, message: str | bytes) -> None:
        try:
            content = json.loads(message)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or self.session is None:
            self.close(1003, "a message must be an object of JSON")
            return
        await self.session.handle(content)

    def on_close(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            self.sessions.discard(session)
            asyncio.ensure_future(session.close())  # noqa: RUF006 - it ends by itself


def make_application(guard: Guard, station: Station, sessions: set[Session]) -> tornado.web.Application:
    """Return the application: the page, its files, and the WebSocket."""
    routes: list[Any] = [
        (r"/socket", _Socket, {"guard": guard, "station": station, "sessions": sessions}),
        (r"/", _Page, _file("scope.html", guard)),
    ]
    routes += [(f"/page/{name}", _Answer, _file(name, guard)) for name in PAGE_FILES if name != "scope.html"]
    for name in BOKEH_FILES:
        path = bokeh_path(name)
        routes.append((f"/bokeh/{name}", _Answer, {"guard": guard, "read": path.read_bytes, "kind": "text/javascript"}))
    return tornado.web.Application(
        routes,
        compress_response=False,
        websocket_max_message_size=_LARGEST_MESSAGE,
        websocket_ping_interval=20,
        log_function=lambda handler: None,
    )


def _file(name: str, guard: Guard) -> dict[str, Any]:
    return {"guard": guard, "read": lambda: read_page_file(name), "kind": PAGE_FILES[name]}


async def serve(
    station: Station,
    sockets: list[socket.socket],
    guard: Guard,
    handled: Iterable[int],
    on_ready: Callable[[], None],
) -> tuple[int, list[str]]:
    """Serve until one of the signals in `handled`; return its number, and the sentences on recordings that it ended."""
    sessions: set[Session] = set()
    server = tornado.httpserver.HTTPServer(make_application(guard, station, sessions), max_buffer_size=4 << 20)
    ended = asyncio.Event()
    numbers: list[int] = []

    def end(number: int) -> None:
        numbers.append(number)
        ended.set()

    loop = asyncio.get_running_loop()
    for number in handled:
        loop.add_signal_handler(number, end, number)
    tasks = [asyncio.create_task(_drive(station, sessions)), asyncio.create_task(ended.wait())]
    try:
        server.add_sockets(sockets)
        on_ready()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.stop()
        for session in tuple(sessions):
            await session.close()
        said = await station.close()
        await server.close_all_connections()
        for number in handled:
            loop.remove_signal_handler(number)
    return (numbers[0] if numbers else 0), said


async def _drive(station: Station, sessions: set[Session]) -> None:
    """Read the loops and serve the pages. A page that does not take its messages delays neither the others nor this."""
    reported = 0.0
    pending: dict[Session, asyncio.Task[None]] = {}
    search: asyncio.Task[None] | None = None
    while True:
        begun = time.monotonic()
        station.poll()
        if (sessions or station.is_recording) and (search is None or search.done()):
            if search is not None:
                search.result()
            search = asyncio.create_task(station.search())
        is_report = begun - reported >= _REPORT_S
        reported = begun if is_report else reported
        for session in tuple(sessions):
            task = pending.get(session)
            if task is None or task.done():
                if task is not None:
                    task.result()
                pending[session] = asyncio.create_task(_serve_page(session, is_report))
        for session in pending.keys() - sessions:
            pending.pop(session).cancel()
        await asyncio.sleep(max(0.002, _POLL_S - (time.monotonic() - begun)))


async def _serve_page(session: Session, is_report: bool) -> None:
    try:
        if is_report:
            await session.report()
        await session.tick()
    except (RtloopError, OSError) as error:  # a damaged block, or a loop that was killed while it wrote
        await session.tell_problem(str(error))
