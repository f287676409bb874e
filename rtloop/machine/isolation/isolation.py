"""The isolation of CPUs: begun, joined by a process, and undone; ``rtloop.machine.isolated`` for a block of Python."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from rtloop.errors import ConfigError, PrivilegeError, SetupError
from rtloop.machine.isolation.journal import FOLDER, Journal, journals, locked
from rtloop.machine.isolation.keeper import Keeper
from rtloop.machine.isolation.kernel import Kernel
from rtloop.machine.isolation.plan import Hierarchy, Request, find_hierarchy, group_of, plan
from rtloop.machine.isolation.restore import Restored, restore, restore_left
from rtloop.machine.isolation.step import Step, is_satisfied, put, read
from rtloop.process.signal_shield import shielded
from rtloop.system.cgroup import controller_groups
from rtloop.system.cpu import format_cpu_list, parse_cpu_list
from rtloop.system.cpuset import describe_absent

__all__ = ["Isolation", "check_cpus", "isolated", "missing_rights", "stale_journals", "undo"]


def check_cpus(kernel: Kernel, cpus: str | int | Iterable[int]) -> Request:
    """Check CPUs that are to be isolated.

    Raises
    ------
    ConfigError
        If there are none, a CPU does not exist, is offline or is isolated already, or if no CPU would be left.
    """
    try:
        if isinstance(cpus, str):
            asked = parse_cpu_list(cpus)
        else:
            asked = tuple(sorted({cpus} if isinstance(cpus, int) else {int(cpu) for cpu in cpus}))
    except (TypeError, ValueError):
        asked = ()
    if not asked:
        raise ConfigError(f"cpus={cpus!r}: give the CPUs to isolate, such as '3' or '2-3', or a list of numbers")
    online = kernel.cpus("/sys/devices/system/cpu/online") or tuple(range(os.cpu_count() or 1))
    text = format_cpu_list(asked)
    if absent := describe_absent(asked, online, kernel.cpus("/sys/devices/system/cpu/present")):
        raise ConfigError(f"cpus={text!r}: {absent}")
    taken: dict[int, str] = {}
    for journal in journals(kernel):
        with suppress(ValueError):
            undo = "sudo $(which rtloop) isolate --undo"
            hint = "" if journal.is_kept() else f", whose processes were killed; fix: {undo}"
            taken.update(dict.fromkeys(parse_cpu_list(journal.cpus), f"the isolation {journal.path}{hint}"))
    hierarchy = find_hierarchy(kernel)
    if hierarchy.version == 2:
        apart = set(kernel.cpus(f"{hierarchy.top}/cpuset.cpus.isolated")) - set(taken)
        taken.update(dict.fromkeys(apart, "a partition, or the boot argument isolcpus"))
    boot = set(kernel.cpus("/sys/devices/system/cpu/isolated"))
    if common := sorted(set(asked) & (set(taken) - boot)):
        raise ConfigError(f"cpus={text!r}: CPU {common[0]} is isolated already, by {taken[common[0]]}")
    left = set(online) - set(taken) - boot - set(asked)
    if not left:
        others = f"; already isolated: {format_cpu_list(set(taken) | boot)}" if set(taken) | boot else ""
        raise ConfigError(
            f"cpus={text!r}: no CPU is left for all other work: this machine has {format_cpu_list(online)}{others}; "
            "isolate fewer"
        )
    return Request(asked, tuple(sorted(left)), tuple(online))


def missing_rights(kernel: Kernel) -> list[str]:
    """Return what this process lacks for an isolation, with the fix; empty if nothing is known to be missing."""
    hierarchy = find_hierarchy(kernel)
    if hierarchy.version == 0:
        if kernel.exists(f"{hierarchy.top}/cgroup.controllers"):
            return [
                f"the cpuset controller: {hierarchy.top}/cgroup.controllers lacks it, because it is not passed on to "
                "this container, or the kernel has no CONFIG_CPUSETS; run rtloop isolate on the host"
            ]
        return [f"control groups: {hierarchy.top} has no cpuset; mount -t cgroup2 none {hierarchy.top}"]
    if kernel.is_read_only(hierarchy.top):
        return [
            f"a writable {hierarchy.top}: it is mounted read-only, as in most containers; run rtloop isolate on the "
            "host, or start the container with podman run --privileged --cgroupns=host "
            "-v /sys/fs/cgroup:/sys/fs/cgroup:rw (docker takes the same)"
        ]
    missing = []
    if (not kernel.root and os.geteuid()) or not kernel.is_writable(hierarchy.top):
        missing.append("root: sudo $(which rtloop) isolate ..., or a systemd unit without User=")
    elif not kernel.root and not kernel.is_writable("/run"):
        missing.append(f"a writable /run: the journal {FOLDER} is kept there")
    return missing


def stale_journals(kernel: Kernel) -> list[Journal]:
    """Return the journals of isolations that nobody will undo, because their processes were killed."""
    return [journal for journal in journals(kernel) if not journal.is_kept()]


def undo(kernel: Kernel) -> dict[str, list[Restored]]:
    """Undo every isolation that was left, newest first; return the results by the list of CPUs."""
    found: dict[str, list[Restored]] = {}
    for journal in reversed(stale_journals(kernel)):
        results = restore_left(journal)
        if results is not None:
            found.setdefault(journal.cpus, []).extend(results)
    return found


class Isolation:
    """CPUs that are isolated from :meth:`begin` until :meth:`end`.

    Parameters
    ----------
    cpus : str, int or iterable of int
        The CPUs: ``"3"``, ``"2-3"``, ``[2, 3]``.
    devices : iterable of str
        Network devices, or names of interrupts, whose threads become SCHED_FIFO threads.
    device_priority : int
        Their priority, 1 to 99.
    idle_latency_us : int
        Idle states of the CPUs that take longer to leave are disabled.
    root : str
        Folder that holds another machine's files, for tests; empty for this machine.

    Attributes
    ----------
    steps : list of Step
        The changes in order, each with its value before, the one asked for and the one that was read back.
    restored : list of Restored
        The results of :meth:`end`.

    Raises
    ------
    ConfigError
        If the CPUs cannot be isolated.
    """

    def __init__(
        self, cpus: str | int | Iterable[int], *, devices: Iterable[str] = (),
        device_priority: int = Request.device_priority, idle_latency_us: int = Request.idle_latency_us, root: str = "",
    ) -> None:  # fmt: skip
        if not 1 <= device_priority <= 99:
            raise ConfigError(f"device_priority={device_priority!r} must be from 1 to 99")
        self.kernel = Kernel(root)
        names = (devices,) if isinstance(devices, str) else tuple(devices)
        self.request = replace(
            check_cpus(self.kernel, cpus), devices=names, device_priority=device_priority,
            idle_latency_us=idle_latency_us,
        )  # fmt: skip
        self.steps: list[Step] = []
        self.restored: list[Restored] = []
        self._journal: Journal | None = None
        self._keeper: Keeper | None = None
        self._program = 0

    @property
    def cpus(self) -> tuple[int, ...]:
        """The isolated CPUs."""
        return self.request.cpus

    @property
    def hierarchy(self) -> Hierarchy:
        """The control groups that are used."""
        return find_hierarchy(self.kernel)

    @property
    def group(self) -> str:
        """The folder of the control group."""
        return group_of(self.hierarchy, self.cpus)

    @property
    def journal_path(self) -> str:
        """The journal's file; empty before the beginning and after the end."""
        return "" if self._journal is None else self._journal.path

    @property
    def keeper_pid(self) -> int:
        """The process that undoes the isolation if this one is killed; 0 if there is none."""
        return 0 if self._keeper is None else self._keeper.process.pid

    def plan(self) -> list[Step]:
        """Return the steps of the isolation as far as they are known before the first is made."""
        return list(plan(self.kernel, self.request))

    def begin(self) -> None:
        """Isolate the CPUs.

        Raises
        ------
        ConfigError
            If another isolation has taken them meanwhile.
        PrivilegeError
            If this process may not; the message names what is missing.
        SetupError
            If the kernel refuses the partition; everything is then undone.
        """
        if missing := missing_rights(self.kernel):
            raise PrivilegeError(errno.EPERM, f"CPU {format_cpu_list(self.cpus)} cannot be isolated without "
                                 f"{'; and '.join(missing)}")  # fmt: skip
        shielded(self._begin)

    def _begin(self) -> None:
        try:
            with locked(self.kernel):
                self._journal = self._create_journal()
            self._keeper = Keeper(self._journal)
            with locked(self.kernel):
                self._apply(self._journal)
        except BaseException:
            self._end()
            raise

    def _create_journal(self) -> Journal:
        """Begin the journal, unless another isolation has taken the CPUs since this one was planned."""
        checked = check_cpus(self.kernel, self.cpus)
        self.request = replace(self.request, housekeeping=checked.housekeeping, online=checked.online)
        text = format_cpu_list(self.cpus)
        header = {"cpus": text, "group": self.group, "home": self._home(), "owners": []}
        journal = Journal.create(self.kernel, f"{text.replace(',', '_')}-{os.getpid()}", header)
        journal.add_owner(os.getpid())
        return journal

    def _apply(self, journal: Journal) -> None:
        for planned in plan(self.kernel, self.request):
            if planned.kind == "note":
                self.steps.append(planned)
                continue
            step = journal.record(planned)
            self.steps.append(step)
            now = read(self.kernel, step)
            try:
                if now is None or not is_satisfied(step, now):
                    put(self.kernel, step, step.wanted)
            except OSError as error:
                step.why = _explain(step, error)
            step.after = read(self.kernel, step)
            if not step.is_granted and not step.why:
                step.why = f"the kernel answers {(step.after or '').strip()!r}"
            journal.note_result(step)
            if step.is_essential and not step.is_granted:
                raise SetupError(
                    f"CPU {journal.cpus} cannot be isolated: {step.label} of {step.target}: {step.why}"
                    f"{_fix(step)}; everything is as before"
                )

    def _home(self) -> str:
        """Return the folder of this process's own control group."""
        hierarchy = self.hierarchy
        for version, _, path in controller_groups(Kernel().text("/proc/self/cgroup"), "cpuset"):
            if version == hierarchy.version:
                folder = f"{hierarchy.top}{path}".rstrip("/")
                return folder if self.kernel.exists(folder) else hierarchy.top
        return hierarchy.top

    def join(self, pid: int = 0) -> None:
        """Move a process with all its threads to the isolated CPUs, by default this one.

        Raises
        ------
        SetupError
            If the kernel refuses it.
        """
        try:
            self.kernel.write(f"{self.group}/cgroup.procs", str(pid or os.getpid()))
        except OSError as error:
            raise SetupError(error.errno, f"process {pid or os.getpid()} cannot join {self.group}: {error.strerror}"
                             ) from error  # fmt: skip

    def watch_program(self, pid: int) -> None:
        """Name the program inside: if this process is killed, it gets SIGTERM before its CPU is given back."""
        self._program = pid
        if self._keeper is not None:
            self._keeper.watch_program(pid)

    def keep(self) -> None:
        """Start another process that undoes the isolation, if the first was killed."""
        if self._journal is not None and self._keeper is not None and not self._keeper.is_alive:
            self._keeper = Keeper(self._journal)
            if self._program:
                self._keeper.watch_program(self._program)

    def end(self) -> list[Restored]:
        """Undo everything, and return the result of each step. A second call does nothing."""
        return shielded(self._end)

    def _end(self) -> list[Restored]:
        journal, keeper = self._journal, self._keeper
        self._journal = self._keeper = None
        if journal is not None:
            found = keeper.restore() if keeper is not None else None
            # A keeper that was killed leaves its work to this process.
            self.restored = restore(journal) if found is None else found
        return self.restored

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "cpus": list(self.cpus), "housekeeping": list(self.request.housekeeping), "group": self.group,
            "cgroup_version": self.hierarchy.version, "journal": self.journal_path,
            "steps": [{**step.to_dict(), "granted": step.is_granted} for step in self.steps if step.kind != "note"],
            "notes": [{"topic": step.topic, "label": step.label, "why": step.why} for step in self.steps
                      if step.kind == "note"],
            "restored": [dict(vars(result)) for result in self.restored],
        }  # fmt: skip


def _explain(step: Step, error: OSError) -> str:
    """Return the reason for a refusal, in words."""
    text = error.strerror or str(error)
    if step.topic == "interrupts" and error.errno in (errno.EIO, errno.EPERM, errno.EINVAL):
        return f"{text}: the kernel chooses its CPUs; only isolcpus=managed_irq,... at boot may keep it away"
    if step.kind == "group" and error.errno == errno.EROFS:
        return f"{text}: run it on the host, or in a container with a writable /sys/fs/cgroup"
    if step.target.endswith("/threaded") and error.errno == errno.EOPNOTSUPP:
        return f"{text}: its driver does not use NAPI"
    return text


def _fix(step: Step) -> str:
    """Return the fix for a partition that the kernel does not make."""
    if "not a partition root" in step.why or "Parent" in step.why:
        return "; the root of this container's control groups is not the machine's root: run rtloop isolate on the host"
    if "exclusive" in step.why:
        return "; another control group has this CPU: find it with grep . /sys/fs/cgroup/*/cpuset.cpus"
    if "housekeeping" in step.why:
        return "; the boot arguments isolcpus= or nohz_full= name some of these CPUs: isolate those, or others"
    return ""


@contextmanager
def isolated(
    cpus: str | int | Iterable[int], *, devices: Iterable[str] = (), device_priority: int = Request.device_priority,
    idle_latency_us: int = Request.idle_latency_us, join: bool = True, root: str = "",
) -> Iterator[Isolation]:  # fmt: skip
    """Isolate CPUs for the length of a ``with`` block, and run this process there.

    Besides this process, only kernel threads and interrupts that cannot be moved still run on these CPUs: an isolated
    cpuset partition is made, and unbound work, interrupts and threads are moved away. Every setting is written back
    at the end, even if this process is killed, by a process that is started for this. It needs root.

    Parameters
    ----------
    cpus : str, int or iterable of int
        The CPUs: ``"3"``, ``"2-3"``, ``[2, 3]``. At least one has to be left for all other work.
    devices : iterable of str, optional
        Network devices, such as ``"eth0"``, or names of interrupts: the threads of their interrupts and of NAPI become
        SCHED_FIFO threads.
    device_priority : int
        Priority of these threads, 1 to 99.
    idle_latency_us : int
        Idle states of these CPUs that take longer than this to leave, in microseconds, are disabled.
    join : bool
        If False, this process stays where it is, and may move others there with :meth:`Isolation.join`.
    root : str, optional
        Folder that holds another machine's files, for tests.

    Yields
    ------
    Isolation
        The changes: asked for, before, and read back.

    Raises
    ------
    ConfigError
        If the CPUs do not exist, are isolated already, or are all that are left.
    PrivilegeError
        If this process may not; the message names what is missing.
    SetupError
        If the kernel refuses the partition; everything is then as before.

    Examples
    --------
    >>> with rtloop.machine.isolated("3") as isolation:  # doctest: +SKIP
    ...     stats = Controller("1kHz").run("10s")
    """
    isolation = Isolation(
        cpus, devices=devices, device_priority=device_priority, idle_latency_us=idle_latency_us, root=root
    )
    try:
        isolation.begin()
        if join:
            isolation.join()
        yield isolation
    finally:
        isolation.end()
