"""Access to what an isolation reads and changes: the kernel's files, and the CPUs and the policies of threads."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from rtloop.system.cpu import parse_cpu_list
from rtloop.system.fileio import parse_fields, read_text

__all__ = ["POLICIES", "Kernel", "Thread"]

_PF_KTHREAD = 0x0020_0000
_PF_NO_SETAFFINITY = 0x0400_0000

#: Names of the policies of sched(7) whose threads have a priority, or none.
POLICIES = {os.SCHED_OTHER: "other", os.SCHED_FIFO: "fifo", os.SCHED_RR: "rr", os.SCHED_BATCH: "batch", 5: "idle"}


class Thread(NamedTuple):
    """A thread of the machine.

    Attributes
    ----------
    tid : int
        Its number.
    start : int
        The clock tick since boot in which it began, which distinguishes it from a later thread of the same number.
    name : str
        Its name, in one line: a thread may give itself any, and it becomes a comment in a script for root.
    is_kernel, can_move : bool
        True for a thread of the kernel; False if the kernel has bound it to its CPU.
    cpus : tuple of int
        The CPUs that it may run on.
    """

    tid: int
    start: int
    name: str
    is_kernel: bool
    can_move: bool
    cpus: tuple[int, ...]


class Kernel:
    """Files of the kernel below a root, and the threads that ``/proc`` lists there.

    Parameters
    ----------
    root : str
        Folder that holds ``/proc``, ``/sys`` and ``/run``; empty for this machine. Below another root only files can
        be changed.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root

    def read(self, path: str) -> str | None:
        """Return the text of a file; None if it cannot be read."""
        try:
            return read_text(self.root + path)
        except OSError:
            return None

    def text(self, path: str) -> str:
        """Return the text of a file without surrounding blanks; empty if it cannot be read."""
        return (self.read(path) or "").strip()

    def cpus(self, path: str) -> tuple[int, ...]:
        """Return the CPUs that a file lists; none if it cannot be read."""
        try:
            return parse_cpu_list(self.text(path))
        except ValueError:
            return ()

    def write(self, path: str, text: str) -> None:
        """Write a file with one call, as the kernel's files require.

        Raises
        ------
        OSError
            If the kernel refuses the file or the value.
        """
        descriptor = os.open(self.root + path, os.O_WRONLY | os.O_CLOEXEC | (os.O_TRUNC if self.root else 0))
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def exists(self, path: str) -> bool:
        """Return whether a file or a folder exists."""
        return os.path.exists(self.root + path)

    def is_writable(self, path: str) -> bool:
        """Return whether this process may write a file or a folder."""
        return os.access(self.root + path, os.W_OK)

    def is_read_only(self, path: str) -> bool:
        """Return whether a file system is mounted read-only."""
        with suppress(OSError):
            return bool(os.statvfs(self.root + path).f_flag & os.ST_RDONLY)
        return False

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, numbers in their order; none if it cannot be read."""
        with suppress(OSError):
            return sorted(os.listdir(self.root + folder), key=lambda name: (int(name) if name.isdigit() else -1, name))
        return []

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        return [name for name in self.names(folder) if os.path.isdir(f"{self.root}{folder}/{name}")]

    def make_group(self, folder: str) -> None:
        """Create a control group. Below another root, the files that the kernel would add are created as well.

        Raises
        ------
        OSError
            If the kernel refuses it.
        """
        os.mkdir(self.root + folder)
        if self.root:
            for name in ("cgroup.procs", "tasks", "cpuset.cpus", "cpuset.mems", "cpuset.cpus.partition",
                         "cpuset.sched_load_balance"):  # fmt: skip
                with open(f"{self.root}{folder}/{name}", "x") as file:
                    file.write({"cpuset.cpus.partition": "member\n", "cpuset.sched_load_balance": "1\n"}.get(name, ""))

    def remove_group(self, folder: str) -> None:
        """Remove a control group that has neither processes nor groups.

        Raises
        ------
        OSError
            If the kernel refuses it.
        """
        if self.root:
            shutil.rmtree(self.root + folder)  # the kernel's own files vanish with their folder, these do not
        else:
            os.rmdir(folder)

    def start_of(self, tid: int) -> int:
        """Return the clock tick since boot in which a thread began; 0 if there is none, or it has ended."""
        fields = self.text(f"/proc/{tid}/stat").rpartition(")")[2].split()
        return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else 0

    def threads(self) -> Iterator[Thread]:
        """Yield the threads of the machine; those that end meanwhile are left out."""
        for pid in self.names("/proc"):
            if pid.isdigit():
                for tid in self.names(f"/proc/{pid}/task"):
                    if (thread := self._thread(f"/proc/{pid}/task/{tid}")) is not None:
                        yield thread

    def _thread(self, folder: str) -> Thread | None:
        before, _, after = self.text(f"{folder}/stat").rpartition(")")
        fields = after.split()
        try:
            flags, start = int(fields[6]), int(fields[19])
            cpus = self._allowed(folder)
        except (IndexError, KeyError, ValueError):
            return None
        if fields[0] in "ZX":  # it has ended, and waits for its parent
            return None
        tid, _, comm = before.partition(" (")
        name = _in_one_line(comm)
        return Thread(int(tid), start, name, bool(flags & _PF_KTHREAD), not flags & _PF_NO_SETAFFINITY, cpus)

    def affinity(self, tid: int) -> tuple[int, ...]:
        """Return the CPUs that a thread may run on; none if there is no such thread."""
        try:
            return self._allowed(f"/proc/{tid}")
        except (KeyError, ValueError):
            return ()

    def _allowed(self, folder: str) -> tuple[int, ...]:
        return parse_cpu_list(parse_fields(self.text(f"{folder}/status"))["Cpus_allowed_list"])

    def set_affinity(self, tid: int, cpus: Iterable[int]) -> None:
        """Move a thread to other CPUs.

        Raises
        ------
        OSError
            If the kernel refuses it.
        """
        self._check_own_machine()
        os.sched_setaffinity(tid, cpus)

    def scheduler(self, tid: int) -> str:
        """Return the policy and the priority of a thread, such as ``"fifo 50"``; empty if there is no such thread."""
        try:
            self._check_own_machine()
            policy = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
            return f"{POLICIES.get(policy, policy)} {os.sched_getparam(tid).sched_priority}"
        except OSError:
            return ""

    def set_scheduler(self, tid: int, value: str) -> None:
        """Set the policy and the priority of a thread, written as :meth:`scheduler` returns them.

        Raises
        ------
        OSError
            If the kernel refuses it.
        """
        self._check_own_machine()
        name, _, priority = value.partition(" ")
        numbers = {name: number for number, name in POLICIES.items()}
        if name not in numbers:
            raise OSError(errno.EINVAL, f"a thread of policy {name} is left as it is")
        os.sched_setscheduler(tid, numbers[name], os.sched_param(int(priority)))

    def _check_own_machine(self) -> None:
        if self.root:
            raise OSError(errno.EPERM, f"threads listed in {self.root} cannot be changed")


def _in_one_line(name: str) -> str:
    """Replace control characters: a shell or a terminal would obey them."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
