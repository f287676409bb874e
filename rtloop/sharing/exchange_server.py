"""Thread that passes exchanges to other processes, over the sockets by which they are found.

All processes that have an exchange open share one listening socket, which is passed on together with the exchange's
file. So the socket listens as long as one of them is alive, whichever is killed; afterwards, the kernel refuses a
connection. Each process has one thread for all of its exchanges. The thread accepts a connection, checks the user of
the peer, sends one message and closes the connection. It never waits for the peer, and keeps no state about it.

The message carries a new open file description of the exchange, because the description of this process has its roles.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

from rtloop.errors import SetupError
from rtloop.process.exit_hooks import RECORDERS, at_end, at_exit, ending
from rtloop.process.nap import nap
from rtloop.sharing.helper_threads import start_helper
from rtloop.sharing.socket_users import may_open, peer_of

__all__ = ["GIVEN", "MAGIC", "MESSAGE", "REFUSED", "VERSION", "SocketListener", "close_after_fork", "serve"]

#: The message: magic, version, and GIVEN or REFUSED. With GIVEN, it carries two files.
MESSAGE = struct.Struct("<8sII")
MAGIC, VERSION = b"rtExchng", 1
GIVEN, REFUSED = 0, 1
#: Pause after each round of answers. It limits the CPU time that a process can cause by connecting repeatedly.
_PAUSE_S = 0.001
#: Pause if no connection can be accepted, for example because this process has no descriptors left.
_LONG_PAUSE_S = 0.05
#: Longest wait of :meth:`SocketListener.close` for an answer that is being sent.
_CLOSE_S = 0.5


class SocketListener:
    """Socket by which an exchange is found, with the exchange's file to pass to processes that connect.

    Parameters
    ----------
    name : str
        The exchange's name, which is that of the socket.
    listening : socket.socket
        The socket, shared by all processes that have the exchange; this object closes it.
    file : int
        The exchange's file. This object opens it again, for itself.
    on_close : callable
        Function to call when this process no longer listens.
    """

    def __init__(self, name: str, listening: socket.socket, file: int, on_close: Callable[[str], None]) -> None:
        self._file = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
        self._name, self._socket, self._on_close = name, listening, on_close
        self._key = listening.fileno()
        # Reentrant, because the garbage collector may close an exchange anywhere, also on the serving thread.
        self._lock = threading.RLock()
        self._is_closing = False
        self._pid = os.getpid()

    def fileno(self) -> int:
        """Return the number of the socket."""
        return self._key

    def answer(self) -> None:
        """Accept and answer one connection, unless another process has accepted it. Never waits."""
        with self._lock:
            try:
                self._socket.setblocking(False)  # another process may have changed this flag, which all share
                connection, _ = self._socket.accept()
                with connection:
                    connection.setblocking(False)
                    self._send(connection)
            except (BlockingIOError, ConnectionError):
                pass
            except OSError:
                nap(0 if self._is_closing else _LONG_PAUSE_S)
            if self._is_closing:
                self._release()

    def _send(self, connection: socket.socket) -> None:
        flags = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
        if not may_open(peer_of(connection), self._name):
            connection.send(MESSAGE.pack(MAGIC, VERSION, REFUSED), flags)
            return
        file = os.open(f"/proc/self/fd/{self._file}", os.O_RDWR | os.O_CLOEXEC)
        try:
            socket.send_fds(connection, [MESSAGE.pack(MAGIC, VERSION, GIVEN)], [file, self._socket.fileno()], flags)
        finally:
            os.close(file)

    def close(self) -> None:
        """Stop listening. A second call does nothing, nor does one in a forked child."""
        if self._pid != os.getpid():
            self.abandon()  # the first call in a forked child
        if self._is_closing:
            return
        self._is_closing = True
        if not self._lock.acquire(timeout=_CLOSE_S):
            return  # another process has made the socket block: the serving thread releases it later
        try:
            self._release()
        finally:
            self._lock.release()

    def _release(self) -> None:
        file, self._file = self._file, -1
        if file < 0:
            return
        _server.remove(self)
        self._socket.close()
        os.close(file)
        self._on_close(self._name)

    def abandon(self) -> None:
        """Close the files of a forked child, to which the exchange does not belong."""
        self._is_closing = True
        file, self._file = self._file, -1
        self._socket.close()
        if file >= 0:
            os.close(file)


class _Server:
    """The listeners of this process, and the thread that waits for connections to any of them."""

    def __init__(self) -> None:
        self.listeners: dict[int, SocketListener] = {}
        self._starting = threading.RLock()
        self._epoll: select.epoll | None = None
        self._has_thread = False

    def add(self, listener: SocketListener) -> None:
        with self._starting:
            epoll = self._start()
        self.listeners[listener.fileno()] = listener
        epoll.register(listener.fileno(), select.EPOLLIN)

    def _start(self) -> select.epoll:
        """Start the thread if there is none. A signal handler may come anywhere, and add a listener of its own."""
        epoll = self._epoll or select.epoll()
        self._epoll = epoll = self._epoll or epoll
        if not self._has_thread:
            try:
                self._has_thread = True  # first, so that a handler leaves it to this call
                start_helper(_serve, (epoll, self.listeners), "the thread of shared exchanges")
            except BaseException:
                self._has_thread = False
                raise
        return epoll

    def remove(self, listener: SocketListener) -> None:
        self.listeners.pop(listener.fileno(), None)
        if self._epoll is not None:
            with suppress(OSError, ValueError):  # no longer registered
                self._epoll.unregister(listener.fileno())

    def close_all(self) -> None:
        for listener in list(self.listeners.values()):
            with suppress(OSError):  # no descriptors are left, so the path remains
                listener.close()

    def abandon(self) -> None:
        """Close what a forked child has of its parent's, without a change to what they share."""
        for listener in list(self.listeners.values()):
            listener.abandon()
        if self._epoll is not None:
            self._epoll.close()


def _serve(epoll: select.epoll, listeners: dict[int, SocketListener]) -> None:
    while True:
        try:
            events = epoll.poll()
        except (OSError, ValueError):
            return
        for number, event in events:
            listener = listeners.get(number)
            if listener is None:
                continue
            if event & ~select.EPOLLIN:  # another process has shut the socket down for all
                with suppress(OSError, ValueError):
                    epoll.unregister(number)
            else:
                listener.answer()
            del listener
        nap(_PAUSE_S)


_server = _Server()
#: Sockets that a forked child closes, including those of calls in progress on other threads.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_after_fork(one: socket.socket) -> socket.socket:
    """Register a socket to be closed in a forked child, which would otherwise keep it listening; return the socket."""
    _sockets.add(one)
    return one


def serve(name: str, listening: socket.socket, file: int, on_close: Callable[[str], None]) -> SocketListener:
    """Pass an exchange to the processes that connect to a socket, until the returned listener is closed.

    The socket is closed with the listener, or if this function raises an exception.

    Raises
    ------
    SetupError
        If no thread can be created, or no descriptor is free.
    """
    listener = None
    try:
        listener = SocketListener(name, listening, file, on_close)
        _server.add(listener)
    except BaseException as error:
        if listener is not None:
            listener.close()
        else:
            listening.close()
        if isinstance(error, OSError) and not isinstance(error, SetupError):
            what = f"the exchange {name!r} cannot be passed to other processes: {error.strerror}"
            raise SetupError(error.errno, what) from error
        raise
    return listener


def _forget_after_fork() -> None:
    global _server
    for one in list(_sockets):
        one.close()
    _server.abandon()
    _server = _Server()


def _close_at_signal() -> None:
    """Close the listeners before a signal ends the process. After a SIGINT the program may go on."""
    cause = ending()
    if cause.startswith("SIG") and not cause.startswith("SIGINT"):
        _server.close_all()


os.register_at_fork(after_in_child=_forget_after_fork)
at_end(RECORDERS, _close_at_signal)
# The interpreter's end does not close exchanges, so their paths would remain.
at_exit(lambda: _server.close_all())
