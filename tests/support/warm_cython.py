"""The process that has loaded Cython, and forks a child for each module that the tests compile.

    python tests/support/warm_cython.py SOCKET PROCESS

It answers ``warm/cython.py`` on that socket until the process with that number, which runs the tests, has ended.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from rtloop.compiler import cython_program

SHIM = Path(__file__).parent / "warm" / "cython.py"


def start(process: int) -> str:
    """Start it for the tests of a process; returns the path of its socket when it answers."""
    folder = tempfile.mkdtemp(prefix="rtloop-cython-")
    address = os.path.join(folder, "socket")
    # Not a child of the tests, which count their own.
    subprocess.run([sys.executable, __file__, address, str(process)], check=True, stdin=subprocess.DEVNULL, timeout=150)
    return address


def environment(address: str) -> dict[str, str]:
    """Return the variables by which `python -m cython` finds it."""
    path = [str(SHIM.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"RTLOOP_TEST_CYTHON": address, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def _load_shim() -> object:
    spec = importlib.util.spec_from_file_location("rtloop_test_shim", SHIM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _receive(connection: socket.socket) -> tuple[list[object], list[int]]:
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    left = int.from_bytes(head, "big")
    text = b""
    while len(text) < left:
        part = connection.recv(left - len(text))
        if not part:
            raise ConnectionError("the order ends early")
        text += part
    return json.loads(text), streams


def _compile(connection: socket.socket, order: list, streams: list[int]) -> int:
    """Be the process that asked: its streams, arguments, folder and environment; returns Cython's exit code."""
    arguments, folder, variables, path, texts, _ = order
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv, sys.path[:] = arguments, path
    for number, (encoding, errors) in enumerate(texts, 1):
        stream = open(number, "w", encoding=encoding, errors=errors, buffering=1, closefd=False)  # noqa: SIM115
        setattr(sys, ("stdout", "stderr")[number - 1], stream)

    def end_with_it() -> None:
        with contextlib.suppress(OSError):  # it was killed, and has left something unread
            connection.recv(1)  # nothing is ever sent: it has ended
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
    code = cython_program.run_command_line()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _answer(listener: socket.socket, connection: socket.socket, own: object) -> None:
    """Serve one process, in a child of this one."""
    listener.close()
    order, streams = _receive(connection)
    code = 1
    if json.dumps(order[-1]) == own:
        connection.sendall(b"+")
        code = _compile(connection, order, streams)
        connection.sendall(bytes([code]))
    os._exit(code)


def _serve(listener: socket.socket, process: int) -> None:
    own = json.dumps(_load_shim().state())  # type: ignore[attr-defined]
    listener.settimeout(1)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            os.kill(process, 0)
        except OSError:
            return
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.settimeout(None)
        with connection:
            if os.fork() == 0:
                try:
                    _answer(listener, connection, own)
                finally:
                    os._exit(1)


def main() -> None:
    """Load Cython and listen; the first process ends as soon as the second answers."""
    address, process = sys.argv[1], int(sys.argv[2])
    assert not cython_program.warm_up()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.chdir("/")
    try:
        _serve(listener, process)
    finally:
        shutil.rmtree(os.path.dirname(address), ignore_errors=True)


if __name__ == "__main__":
    main()
