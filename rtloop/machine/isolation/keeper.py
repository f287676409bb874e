"""Keeper of an isolation: a process of its own that undoes it when its owner asks, or has ended in whatever way.

The owner and the keeper have a socket between them: the owner sends JSON lines, and gets one back for each.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

from rtloop.errors import SetupError
from rtloop.machine.isolation.journal import Journal
from rtloop.machine.isolation.kernel import Kernel
from rtloop.machine.isolation.restore import Restored, restore
from rtloop.process.environment import copy_environment
from rtloop.process.interpreter import python

__all__ = ["Keeper", "main"]

#: A program whose command was killed is asked to end, and has this long before its CPU is given back.
GRACE_S = 5.0
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


class Keeper:
    """The owner's side: starts the process, and speaks with it.

    Parameters
    ----------
    journal : Journal
        Of the isolation.

    Raises
    ------
    SetupError
        If the process does not start.
    """

    def __init__(self, journal: Journal) -> None:
        own, its = socket.socketpair()
        code = "import sys; from rtloop.machine.isolation.keeper import main; main(sys.argv[1:])"
        arguments = [journal.kernel.root, journal.path, str(its.fileno()), str(os.getpid())]
        with its:
            self.process = subprocess.Popen(
                [python(), "-P", "-c", code, *arguments], pass_fds=[its.fileno()], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env=copy_environment(PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
            )  # fmt: skip
        self._socket = own
        self._stream = own.makefile("rw")
        if self._receive() != "ready":
            self._stream.close()
            own.close()
            self.process.kill()
            self.process.wait()
            raise SetupError("the process that would undo the isolation did not start; nothing was changed")
        journal.add_owner(self.process.pid)

    @property
    def is_alive(self) -> bool:
        """True if the process runs."""
        return self.process.poll() is None

    def watch_program(self, pid: int) -> None:
        """Name the program inside, which the keeper ends if the owner is killed."""
        self._send({"program": pid})
        self._receive()

    def restore(self) -> list[Restored] | None:
        """Undo the isolation; None if the keeper was killed meanwhile."""
        self._send({"restore": True})
        answer = self._receive()
        self._stream.close()
        self._socket.close()
        self.process.wait()
        return None if answer is None else [Restored(**fields) for fields in answer]

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # it was killed: there is no answer
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def _receive(self) -> Any:
        with suppress(OSError, ValueError):
            if line := self._stream.readline():
                return json.loads(line)
        return None


def main(arguments: list[str]) -> None:
    """Keep an isolation until its owner asks to undo it, or ends; then undo it."""
    root, path, number, owner = arguments
    for ignored in _IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    kernel = Kernel(root)
    _leave_group(kernel)
    try:
        pidfd = os.pidfd_open(int(owner))
    except ProcessLookupError:
        return  # before the first change
    channel = socket.socket(fileno=int(number))
    stream = channel.makefile("rw")

    def answer(content: Any) -> None:
        with suppress(OSError):
            stream.write(json.dumps(content) + "\n")
            stream.flush()

    answer("ready")
    program = -1
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        message: dict[str, Any] = {}
        if channel.fileno() in ready:
            with suppress(OSError, ValueError):
                message = json.loads(stream.readline() or "{}")
        if "program" in message:
            with suppress(ProcessLookupError):
                program = os.pidfd_open(message["program"])
            answer(True)
        elif "restore" in message:
            answer([vars(result) for result in restore(Journal.load(kernel, path))])
            return
        elif pidfd in ready:
            break
        elif channel.fileno() in ready:  # closed by a process that lives on, such as one that has executed another
            poll.unregister(channel)
    if program >= 0:
        _end(program)
    results = restore(Journal.load(kernel, path))
    _tell(path, results)


def _leave_group(kernel: Kernel) -> None:
    """Leave the service's control group, which systemd ends as a whole, and be killed last if memory runs out."""
    if kernel.root:
        return
    for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"):
        with suppress(OSError):
            kernel.write(f"{folder}/cgroup.procs", str(os.getpid()))
    with suppress(OSError):
        kernel.write("/proc/self/oom_score_adj", "-1000")


def _end(program: int) -> None:
    """Ask a program to end, and wait until it has."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(program, signal.SIGTERM)
        select.select([program], [], [], GRACE_S)


def _tell(path: str, results: list[Restored]) -> None:
    """Report on stderr, if it is still open, what could not be restored."""
    if not results:
        return
    with suppress(OSError):
        count = sum(result.verdict == "restored" for result in results)
        print(f"rtloop: the owner of {os.path.basename(path)} was killed; {count} settings restored", file=sys.stderr)
        for result in results:
            if result.verdict in ("kept", "refused"):
                print(f"rtloop: not restored: {result.label}: {result.why}", file=sys.stderr, flush=True)
