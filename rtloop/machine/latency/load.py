"""Loads for a latency measurement: small generators of our own, stress-ng and hackbench."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from rtloop.demo.hog import Hog
from rtloop.errors import RtloopError
from rtloop.process.interpreter import python

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LOADS", "Load"]

# Each ends when its parent has gone, which changes its parent's number.
_UNTIL_ORPHANED = """
import os, sys
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # not the policy of the measurement
parent = int(sys.argv[1])
def is_wanted():
    return os.getppid() == parent
"""

_PROGRAMS = {
    "cpu": "while is_wanted():\n    sum(range(100_000))\n",
    "memory": "while is_wanted():\n    block = bytearray(64 << 20)\n    block[::4096] = bytes(len(block[::4096]))\n",
    "io": """
import tempfile
while is_wanted():
    # A nameless file goes with the process, however that ends; /tmp may not be on a disk.
    with tempfile.TemporaryFile(dir="/var/tmp" if os.access("/var/tmp", os.W_OK) else None) as file:
        for _ in range(16):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
""",
    "fork": """
while is_wanted():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
""",
}

# Other programs survive their parent: a keeper of ours in between ends them.
_KEEPER = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
process = subprocess.Popen(sys.argv[2:], process_group=0)
try:
    while process.poll() is None and is_wanted():
        time.sleep(0.2)
finally:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(1)
            time.sleep(0.1)  # its children's turn
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
"""

#: Available loads: our own, and other programs with their arguments.
LOADS = ("none", *_PROGRAMS, "gil", "stress-ng", "hackbench")

_OTHERS = {
    "stress-ng": [
        "stress-ng",
        "--quiet",
        "--cpu",
        "0",
        "--vm",
        "1",
        "--vm-bytes",
        "128M",
        "--timer",
        "1",
        "--fork",
        "1",
    ],
    "hackbench": ["hackbench", "--loops", "1000000000"],
}
_PACKAGES = {"stress-ng": "stress-ng", "hackbench": "rt-tests"}


class Load(AbstractContextManager["Load"]):
    """A load for the time of a ``with`` statement.

    Parameters
    ----------
    kind : str
        One of `LOADS`. ``cpu``, ``memory``, ``io`` and ``fork`` are one ordinary process for each CPU; ``gil`` is a
        thread of this process that never rests.

    Raises
    ------
    RtloopError
        If the program is not installed, or ends at once.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Load:
        if self.kind == "gil":
            self._stack.enter_context(Hog())
        elif self.kind in _PROGRAMS:
            for _ in os.sched_getaffinity(0):
                self._start(_PROGRAMS[self.kind])
        elif self.kind in _OTHERS:
            if shutil.which(self.kind) is None:
                raise RtloopError(f"{self.kind} is not installed; fix: sudo apt install {_PACKAGES[self.kind]}")
            self._start(_KEEPER, *_OTHERS[self.kind])
        return self

    def _start(self, program: str, *arguments: str) -> None:
        command = [python(), "-S", "-c", _UNTIL_ORPHANED + program, str(os.getpid()), *arguments]
        # A session of its own: Ctrl-C ends the measurement first, and then the load.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._processes.append(process)
        self._stack.callback(_end, process)

    @property
    def is_running(self) -> bool:
        """True while all of its processes run."""
        return all(process.poll() is None for process in self._processes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(2)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
