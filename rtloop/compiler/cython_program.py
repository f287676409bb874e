"""Program of the process that has loaded Cython: it compiles each module in a child that it forks.

    python -P cython_program.py SOCKET PARENT

It is run as a file, and imports nothing of rtloop. Messages in both directions are JSON after their length.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from typing import Any

__all__ = ["main", "receive", "run_command_line", "send", "warm_up"]

#: Module with the constructs of most steps, so that Cython has loaded their code before the first child.
_WARM_UP = """\
cdef class Base:
    cdef public double sum
    cdef int step(self, const double *values) noexcept nogil:
        self.sum += values[0]
        return 0

def value(Base base, double x = 1.0):
    if x < 0:
        raise ValueError(f"{x} is negative")
    return base.step(&x)
"""
#: Interval of checks whether the parent has ended. Another process may have inherited the parent's end of the socket.
_LOOK_MS = 2000
_LENGTH = 8
_PR_SET_PDEATHSIG = 1


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send a message."""
    text = json.dumps(message).encode()
    connection.sendall(len(text).to_bytes(_LENGTH, "big") + text)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Receive a message.

    Raises
    ------
    EOFError
        If the other side has ended.
    """
    length = int.from_bytes(_receive_bytes(connection, _LENGTH), "big")
    message: dict[str, Any] = json.loads(_receive_bytes(connection, length))
    return message


def _receive_bytes(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def main(number: int, parent: int) -> None:
    """Load Cython, and compile modules for the parent until it ends.

    Parameters
    ----------
    number : int
        Descriptor of this end of the socket.
    parent : int
        The parent's process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this process
    os.set_inheritable(number, False)
    connection = socket.socket(fileno=number)
    with suppress(EOFError, OSError):
        send(connection, {"cython": _load()})
        while True:
            _await(connection, parent)
            send(connection, _compile(receive(connection), connection, parent))


def _load() -> str:
    """Load Cython; return its version."""
    import Cython

    warm_up()
    return str(vars(Cython)["__version__"])


def warm_up() -> int:
    """Compile a module with the constructs of most steps; return the number of errors."""
    from Cython.Compiler import Main

    cython: Any = Main
    with tempfile.TemporaryDirectory(prefix="rtloop-build-") as folder:
        source = os.path.join(folder, "warm.pyx")
        with open(source, "w", encoding="utf-8") as file:
            file.write(_WARM_UP)
        options = cython.CompilationOptions(cython.default_options, language_level=3, output_file=f"{folder}/warm.c")
        return int(cython.compile(source, options).num_errors)


def _await(connection: socket.socket, parent: int, ended: int = -1) -> bool:
    """Wait for a message of the parent, or for the end of a child with this pipe. Return True for the parent."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    if ended >= 0:
        waiting.register(ended, select.POLLIN)
    while True:
        ready = {number for number, _ in waiting.poll(_LOOK_MS)}
        if ended in ready:
            return False
        if ready:
            return True
        if os.getppid() != parent:
            raise EOFError


def _compile(order: dict[str, Any], connection: socket.socket, parent: int) -> dict[str, Any]:
    """Compile in a child, which is killed if the parent ends."""
    own = os.getpid()
    streams = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr")]
    ended, end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            connection.close()
            os.close(ended)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == own:
                code = _run(order, streams)
        finally:
            os._exit(code)
    os.close(end)
    try:
        if _await(connection, parent, ended):  # the parent sends nothing meanwhile, so it has ended
            raise EOFError
    except EOFError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = []
    for stream in streams:
        with open(stream, "rb") as file:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return {"code": code, "stdout": texts[0], "stderr": texts[1]}


def _run(order: dict[str, Any], streams: list[int]) -> int:
    """Compile in this child; return the exit code of Cython."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        opened = open(number, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115
        setattr(sys, ("stdout", "stderr")[number - 1], opened)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["cython.py", *order["arguments"]]
    code = run_command_line()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run_command_line() -> int:
    """Run Cython's command line, which is in `sys.argv`, and print as it does; return its exit code."""
    from Cython.Compiler import Main

    cython: Any = Main
    code: Any = 0
    try:
        cython.main(command_line=1)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    return int(code or 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
