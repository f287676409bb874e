"""Journal of an isolation: each change is written there before it is made, so that any process can undo it.

The journals of all isolations of a machine are in ``/run``, which is empty after a boot, as the changes are. A journal
is a file of JSON lines that only grows: a header, then for each step the step itself and its result.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rtloop.machine.isolation.kernel import Kernel
from rtloop.machine.isolation.step import Step

__all__ = ["FOLDER", "Journal", "journals", "locked"]

FOLDER = "/run/rtloop-isolation"
VERSION = 1


class Journal:
    """Steps of one isolation, in the order in which they were made.

    Parameters
    ----------
    kernel : Kernel
        The machine.
    path : str
        The file, without the machine's root.

    Attributes
    ----------
    header : dict
        The isolated CPUs, and the processes that keep them so: ``"cpus"``, ``"owners"``, ``"home"``.
    steps : list of Step
        The steps.
    """

    def __init__(self, kernel: Kernel, path: str) -> None:
        self.kernel, self.path = kernel, path
        self.header: dict[str, Any] = {}
        self.steps: list[Step] = []

    @classmethod
    def create(cls, kernel: Kernel, name: str, header: dict[str, Any]) -> Journal:
        """Begin a journal.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        os.makedirs(kernel.root + FOLDER, mode=0o700, exist_ok=True)
        journal = cls(kernel, f"{FOLDER}/{name}.jsonl")
        with open(kernel.root + journal.path, "x"):
            pass
        journal._append({"header": {"version": VERSION, **header}})
        return journal

    @classmethod
    def load(cls, kernel: Kernel, path: str) -> Journal:
        """Read a journal as far as it was written."""
        journal = cls(kernel, path)
        for line in (kernel.read(path) or "").split("\n"):
            try:
                journal._fold(json.loads(line))
            except (ValueError, TypeError, KeyError, IndexError):
                continue  # the end of a line that was being written
        return journal

    @property
    def cpus(self) -> str:
        """The list of the isolated CPUs."""
        return str(self.header.get("cpus", ""))

    def is_kept(self) -> bool:
        """Return whether a process still runs that will undo it."""
        machine = Kernel()  # the processes are this machine's, whichever files are changed
        return any(machine.start_of(pid) == start != 0 for pid, start in self.header.get("owners", ()))

    def add_owner(self, pid: int) -> None:
        """Enter a process that will undo it."""
        self._append({"owner": [pid, Kernel().start_of(pid)]})

    def record(self, step: Step) -> Step:
        """Enter a step that is about to be made, and return the journal's own."""
        step.sequence = time.monotonic_ns()
        self._append({"step": step.to_dict()})
        return self.steps[-1]

    def note_result(self, step: Step) -> None:
        """Enter the value of one of its steps that was read back, and the reason for a refusal."""
        self._append({"result": [self._number(step), step.after, step.why]})

    def take_over(self, step: Step, before: str) -> None:
        """Make this isolation the one that restores what a former one has found."""
        self._append({"before": [self._number(step), before]})

    def _number(self, step: Step) -> int:
        return next(number for number, own in enumerate(self.steps) if own is step)

    def remove(self) -> None:
        """Delete the file: nothing is left to be undone."""
        with suppress(FileNotFoundError):
            os.unlink(self.kernel.root + self.path)

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.kernel.root + self.path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
        self._fold(line)

    def _fold(self, line: dict[str, Any]) -> None:
        if "header" in line:
            self.header = line["header"]
        elif "owner" in line:
            self.header.setdefault("owners", []).append(line["owner"])
        elif "step" in line:
            self.steps.append(Step(**line["step"]))
        elif "result" in line:
            number, after, why = line["result"]
            self.steps[number].after, self.steps[number].why = after, why
        elif "before" in line:
            number, before = line["before"]
            self.steps[number].before = before


def journals(kernel: Kernel) -> list[Journal]:
    """Return the journals of all isolations of the machine."""
    names = [name for name in kernel.names(FOLDER) if name.endswith(".jsonl")]
    return [Journal.load(kernel, f"{FOLDER}/{name}") for name in names]


@contextmanager
def locked(kernel: Kernel) -> Iterator[None]:
    """Keep all other isolations from being made or undone in the block.

    Raises
    ------
    OSError
        If the lock's file cannot be written.
    """
    os.makedirs(kernel.root + FOLDER, mode=0o700, exist_ok=True)
    with open(f"{kernel.root}{FOLDER}/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by SIGKILL
        yield
