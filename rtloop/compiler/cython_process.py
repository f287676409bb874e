"""Cython: started for each module, or run in a process that has loaded it, for programs that compile repeatedly."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rtloop.compiler.cython_program import receive, send
from rtloop.process.environment import copy_environment
from rtloop.process.interpreter import python

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CythonProcess", "run_cython"]

_PROGRAM = Path(__file__).with_name("cython_program.py")
#: Processes that have loaded Cython, the newest last.
_loaded: list[CythonProcess] = []


def run_cython(
    arguments: Sequence[str],
    folder: str | os.PathLike[str],
    environment: Mapping[str, str],
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m cython``, in a process that has loaded Cython if there is one.

    Parameters
    ----------
    arguments : sequence of str
        Arguments of Cython.
    folder : path
        Its working folder.
    environment : mapping
        Its environment variables.
    timeout_s : float, optional
        Longest time that it may take, s.

    Raises
    ------
    OSError
        If Cython cannot be started.
    RtloopError
        If there is no Python interpreter to run it.
    subprocess.TimeoutExpired
        If it takes longer than `timeout_s`.
    """
    for process in reversed(_loaded):
        done = process.run(arguments, folder, environment, timeout_s)
        if done is not None:
            return done
    return subprocess.run(
        [python(), "-P", "-m", "cython", *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=timeout_s,
    )  # fmt: skip


class CythonProcess:
    """Process with Cython loaded, because loading takes most of the time of a compilation by Cython.

    It forks a child for each module, so that each is compiled as if in a new process: it imports no module of the
    user's folder, and ignores the user's locale. It inherits the priority and the CPUs of the thread that starts it,
    and ends with this process. While it runs, :func:`run_cython` uses it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._owner = os.getpid()
        self._variables = _select(os.environ)
        self._version: str | None = None  # of the Cython that it has loaded; None until it has
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start()
        _loaded.append(self)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [python(), "-P", str(_PROGRAM), str(theirs.fileno()), str(self._owner)], cwd="/",
                    env=copy_environment(LC_ALL="C"),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        self._connection = ours

    def run(
        self,
        arguments: Sequence[str],
        folder: str | os.PathLike[str],
        environment: Mapping[str, str],
        timeout_s: float | None = None,
    ) -> subprocess.CompletedProcess[str] | None:
        """Compile like :func:`run_cython`; None if the result might differ from that of a new process.

        This is so if the process is compiling another module, has ended, has loaded another version of Cython than is
        installed now, or has other environment variables for Python.
        """
        from importlib.metadata import PackageNotFoundError, version

        if os.getpid() != self._owner or _select(environment) != self._variables:
            return None
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._connection is None:
                return None
            self._connection.settimeout(timeout_s)
            if self._version is None:
                self._version = receive(self._connection)["cython"]
            if self._version != version("Cython"):
                return None
            order = {"arguments": [*arguments], "folder": os.fspath(folder), "environment": dict(environment)}
            send(self._connection, order)
            answer = receive(self._connection)
            return subprocess.CompletedProcess(
                ["cython", *arguments], answer["code"], answer["stdout"], answer["stderr"]
            )
        except (OSError, ValueError, KeyError, EOFError, PackageNotFoundError):
            self._disconnect()
            if self._is_closed:  # the program ends, so no other process is started
                return subprocess.CompletedProcess(["cython", *arguments], 1, "", "the compilation was ended")
            return None
        except BaseException:  # Ctrl-C
            self._disconnect()  # an answer that is still to come must not be taken for that to the next order
            raise
        finally:
            self._lock.release()

    @property
    def is_running(self) -> bool:
        """Return True if the process can compile."""
        process = self._process
        return self._connection is not None and process is not None and process.poll() is None

    def _disconnect(self) -> None:
        """Close the connection, so that the process ends, and a compilation in it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """End the process and its compilation. Any thread; a second call does nothing."""
        self._is_closed = True
        with suppress(ValueError):
            _loaded.remove(self)
        if os.getpid() != self._owner or self._process is None:
            return
        self._process.kill()
        self._process.wait()
        with self._lock:  # the thread that waits for an answer has seen the end
            self._disconnect()


def _select(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that Python reads only when it starts, so that a forked child ignores later values."""
    given = {name: value for name, value in environment.items() if name.startswith("PYTHON") or name == "HOME"}
    given.pop("PYTHONIOENCODING", None)  # the child has its own streams
    return given
