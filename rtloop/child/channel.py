"""Channel: messages between a process and its child, over a pair of sockets."""

from __future__ import annotations

import pickle
import select
import socket
from typing import Any

__all__ = ["Channel"]

_CHUNK = 1 << 16
_HEAD = 8


class _Unpickler(pickle.Unpickler):
    """Unpickler that looks up names of a child's main script in the main script of this process."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class("__main__" if module == "__mp_main__" else module, name)


def loads(data: bytes) -> Any:
    """Load an object that a child has pickled."""
    import io

    return _Unpickler(io.BytesIO(data)).load()


class Channel:
    """One end of a connection that sends and receives Python objects. The other end belongs to a process of this user.

    Parameters
    ----------
    end : socket.socket
        A connected stream socket, which the channel closes.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._received = bytearray()

    def fileno(self) -> int:
        """Return the number of the socket, -1 after :meth:`close`."""
        return self._socket.fileno()

    def send(self, kind: str, content: object = None) -> bool:
        """Send a message. Returns False if the other end is gone."""
        data = pickle.dumps((kind, content))
        try:
            self._socket.sendall(len(data).to_bytes(_HEAD, "little") + data, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        except BaseException:  # of a signal handler, in the middle of the message
            self.close()
            raise
        return True

    def receive(self) -> tuple[str, Any] | None:
        """Return the next message, None if it has not arrived completely. Does not wait.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        while True:
            size = int.from_bytes(self._received[:_HEAD], "little") + _HEAD
            if len(self._received) >= max(size, _HEAD):
                data = bytes(self._received[_HEAD:size])
                del self._received[:size]
                kind, content = loads(data)
                return kind, content
            try:
                more = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                raise EOFError from error
            if not more:
                raise EOFError
            self._received += more

    def wait(self) -> tuple[str, Any]:
        """Wait for the next message.

        Raises
        ------
        EOFError
            If the other end is gone.
        """
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        while True:
            message = self.receive()
            if message is not None:
                return message
            waiting.poll()

    def close(self) -> None:
        """Close the socket. A second call does nothing."""
        self._socket.close()
