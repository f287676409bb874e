"""Isolation of CPUs on machines made of files: planned, made, refused, undone, also after everything was killed."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rtloop_test_isolated_machine import CPU, FILES, TOP, VERSION_1, VERSION_2, FakeKernel, contents, make_machine
from rtloop_test_processes import is_alive
from rtloop_test_waiting import wait_until

from rtloop import ConfigError, PrivilegeError, SetupError
from rtloop.machine.isolation import isolation as isolations
from rtloop.machine.isolation.isolation import Isolation, isolated, missing_rights, stale_journals, undo
from rtloop.machine.isolation.journal import FOLDER, Journal, journals
from rtloop.machine.isolation.kernel import Kernel, Thread
from rtloop.machine.isolation.restore import restore
from rtloop.machine.isolation.step import Step
from rtloop.tools.isolate.show import make_remarks, make_rows, make_script

#: The cpuset controller is enabled from the beginning, for tests whose processes see only files.
DELEGATED = {f"{TOP}/cgroup.subtree_control": "cpuset cpu memory"}
WORKQUEUES = "/sys/devices/virtual/workqueue/cpumask"


class _NoKeeper:
    """Stand-in for the keeper: this process undoes the isolation itself."""

    is_alive = True

    def __init__(self, journal: Journal) -> None:
        self.process = type("", (), {"pid": 0})

    def restore(self) -> None:
        return None


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolations of this process have no keeper."""
    monkeypatch.setattr(isolations, "Keeper", _NoKeeper)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A machine with version 2 of control groups."""
    return make_machine(tmp_path / "machine", FILES, VERSION_2)


def isolation_of(root: str, cpus: Any = "3", **options: Any) -> Isolation:
    """Return an isolation of a machine made of files, which has threads."""
    made = Isolation(cpus, root=root, **options)
    made.kernel = FakeKernel(root)
    return made


def text(root: str, path: str) -> str:
    return (Path(root) / path.lstrip("/")).read_text().strip()


@pytest.mark.parametrize("version", [VERSION_2, VERSION_1])
@pytest.mark.usefixtures("alone")
def test_everything_moves_away_and_comes_back_byte_for_byte(tmp_path: Path, version: dict[str, str]) -> None:
    root = make_machine(tmp_path / "machine", FILES, version)
    if version is VERSION_1:
        make_machine(Path(root), {f"{TOP}/cpuset/tasks": "10\n11"})
    before = contents(root)
    isolation = isolation_of(root)
    isolation.begin()
    assert not [step for step in isolation.steps if not step.is_granted and step.kind != "note"]
    assert int(text(root, WORKQUEUES), 16) == 0b0111
    assert int(text(root, "/proc/irq/default_smp_affinity"), 16) == 0b0111
    assert text(root, "/proc/irq/24/smp_affinity_list") == "0-2"
    assert text(root, "/proc/irq/25/smp_affinity_list") == "0-2", "it had only the isolated CPU"
    assert text(root, "/proc/irq/26/smp_affinity_list") == "0-1", "it was elsewhere"
    assert text(root, "/proc/irq/27/smp_affinity_list") == "0-3", "it is not used"
    assert text(root, "/proc/sys/kernel/watchdog_cpumask") == "0-2"
    assert text(root, f"{CPU}/cpu3/cpufreq/scaling_governor") == "performance"
    assert [text(root, f"{CPU}/cpu3/cpuidle/state{n}/disable") for n in (0, 1)] == ["0", "1"], "only the deep one"
    if version is VERSION_2:
        assert text(root, f"{TOP}/cgroup.subtree_control") == "cpuset cpu memory"
        assert text(root, f"{TOP}/rtloop-cpu-3/cpuset.cpus") == "3"
        assert text(root, f"{TOP}/rtloop-cpu-3/cpuset.cpus.partition") == "isolated"
    else:
        assert text(root, f"{TOP}/cpuset/rtloop-housekeeping/cpuset.cpus") == "0-2"
        assert text(root, f"{TOP}/cpuset/rtloop-housekeeping/tasks").split() == ["10", "11"]
        assert text(root, f"{TOP}/cpuset/cpuset.sched_load_balance") == "0"
        assert text(root, f"{TOP}/cpuset/rtloop-cpu-3/cpuset.sched_load_balance") == "0"
    results = isolation.end()
    assert {result.verdict for result in results} <= {"restored", "unchanged", "gone"}
    assert contents(root) == before
    assert not list((Path(root) / "run").rglob("*.jsonl"))
    assert isolation.end() == results, "a second end does nothing"


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ESRCH])
def test_a_thread_that_cannot_be_moved_yet_is_moved_back_a_little_later(tmp_path: Path, number: int) -> None:
    """One of the kernel that has not started yet, or one that is about to end."""
    root = make_machine(tmp_path / "machine", FILES, VERSION_1)
    make_machine(Path(root), {f"{TOP}/cpuset/tasks": "10\n11"})
    before = contents(root)
    isolation = isolation_of(root)
    isolation.begin()
    refusals = iter([number] * 50)
    write = isolation.kernel.write

    def refuse_at_first(path: str, text: str) -> None:
        if path.endswith("/cpuset/tasks") and text == "11" and next(refusals, 0):
            raise OSError(number, os.strerror(number))
        write(path, text)

    isolation.kernel.write = refuse_at_first  # type: ignore[method-assign]
    results = isolation.end()
    assert {result.verdict for result in results} <= {"restored", "unchanged", "gone"}
    assert contents(root) == before and next(refusals, 0) == 0


@pytest.mark.usefixtures("alone")
def test_an_exception_in_the_block_undoes_it(root: str) -> None:
    before = contents(make_machine(Path(root), DELEGATED))
    with pytest.raises(ZeroDivisionError), isolated("3", root=root, join=False):
        assert contents(root) != before
        raise ZeroDivisionError
    assert contents(root) == before


@pytest.mark.usefixtures("alone")
def test_a_partition_that_the_kernel_calls_invalid_is_refused_with_its_reason(root: str) -> None:
    before = contents(root)
    isolation = isolation_of(root)
    answer = "isolated invalid (Parent is not a partition root)"
    isolation.kernel.answers["cpuset.cpus.partition", "isolated"] = answer  # type: ignore[attr-defined]
    with pytest.raises(SetupError, match=r"Parent is not a partition root.*on the host.*as before"):
        isolation.begin()
    assert contents(root) == before
    assert not journals(isolation.kernel)


@pytest.mark.usefixtures("alone")
def test_an_interrupt_that_cannot_be_moved_is_listed(root: str) -> None:
    isolation = isolation_of(root)
    isolation.kernel.refused["25/smp_affinity_list"] = errno.EIO  # type: ignore[attr-defined]
    isolation.begin()
    (refused,) = [step for step in isolation.steps if not step.is_granted and step.kind != "note"]
    assert refused.label == "IRQ 25 nvme0q4" and "managed_irq" in refused.why
    row = next(row for row in make_rows(isolation.steps) if row.what == "interrupts")
    assert (row.verdict, row.now) == ("in part", "2 of 3")
    assert any("IRQ 25 nvme0q4" in line for line in make_remarks(isolation.steps))
    isolation.end()
    assert text(root, "/proc/irq/25/smp_affinity_list") == "3"


@pytest.mark.usefixtures("alone")
def test_a_setting_that_somebody_else_changed_is_left_alone(root: str) -> None:
    isolation = isolation_of(root)
    isolation.begin()
    changed = Path(root) / "proc/irq/24/smp_affinity_list"
    changed.write_text("1\n")
    (Path(root) / f"{CPU}/cpu3/cpufreq/scaling_governor".lstrip("/")).write_text("powersave\n")
    results = {result.label: result for result in isolation.end()}
    assert results["IRQ 24 eth0-rx-0"].verdict == "kept" and "'1'" in results["IRQ 24 eth0-rx-0"].why
    assert results["CPU 3"].verdict == "unchanged", "somebody set what was there before"
    assert changed.read_text() == "1\n"
    assert text(root, "/proc/irq/25/smp_affinity_list") == "3", "all others are restored"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("version", [VERSION_2, VERSION_1])
@pytest.mark.usefixtures("alone")
def test_two_isolations_end_in_any_order(tmp_path: Path, version: dict[str, str], first: int) -> None:
    """The one that ends last restores what the one before it has found, so that both leave nothing behind."""
    root = make_machine(tmp_path / "machine", FILES, version)
    before = contents(root)
    both = [isolation_of(root, "3"), isolation_of(root, "2")]
    for isolation in both:
        isolation.request = isolations.check_cpus(isolation.kernel, isolation.cpus)
        isolation.begin()
    assert text(root, "/proc/irq/24/smp_affinity_list") == "0-1"
    results = both[first].end()
    assert {result.verdict for result in results} <= {"restored", "unchanged", "gone", "left", "kept"}
    rest = both[1 - first]
    assert Path(f"{root}{rest.group}").is_dir(), "the other one still has its CPU"
    if version is VERSION_2:
        assert "cpuset" in text(root, f"{TOP}/cgroup.subtree_control")
    else:
        assert text(root, f"{TOP}/cpuset/cpuset.sched_load_balance") == "0"
    rest.end()
    assert contents(root) == before


def test_cpus_that_cannot_be_isolated(root: str) -> None:
    for cpus, reason in {
        "7": "CPU 7 does not exist; online: 0-3", "": "give the CPUs", "x": "give the CPUs", "0-3": "no CPU is left",
        "1-0": "give the CPUs",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=reason):
            Isolation(cpus, root=root)
    assert Isolation([2, 3], root=root).cpus == (2, 3) and Isolation(3, root=root).cpus == (3,)
    make_machine(Path(root), {f"{CPU}/online": "0-2"})
    with pytest.raises(ConfigError, match="CPU 3 is offline"):
        Isolation("3", root=root)
    with pytest.raises(ConfigError, match="from 1 to 99"):
        Isolation("2", root=root, device_priority=100)


@pytest.mark.usefixtures("alone")
def test_a_cpu_is_isolated_once_and_the_last_one_never(root: str) -> None:
    isolation = isolation_of(root, "1-3")
    isolation.begin()
    with pytest.raises(ConfigError, match="CPU 3 is isolated already, by the isolation /run/"):
        Isolation("3", root=root)
    with pytest.raises(ConfigError, match="no CPU is left for all other work"):
        Isolation("0", root=root)
    isolation.end()
    make_machine(Path(root), {f"{TOP}/cpuset.cpus.isolated": "2-3"})
    with pytest.raises(ConfigError, match="CPU 3 is isolated already, by a partition"):
        Isolation("3", root=root)


@pytest.mark.usefixtures("alone")
def test_isolations_that_were_planned_at_once_do_not_share_a_cpu(root: str) -> None:
    before = contents(root)
    first, same, other, rest = (isolation_of(root, cpus) for cpus in ("3", "2-3", "2", "0-2"))
    first.begin()
    with pytest.raises(ConfigError, match="CPU 3 is isolated already, by the isolation /run/"):
        same.begin()
    with pytest.raises(ConfigError, match="no CPU is left for all other work"):
        rest.begin()
    other.begin()
    assert other.request.housekeeping == (0, 1), "not the CPU of the first"
    other.end()
    first.end()
    assert contents(root) == before


def test_the_name_of_a_thread_adds_no_line_to_the_commands_of_a_dry_run(root: str) -> None:
    name = "x\nreboot\x1b[2J)"
    machine = Kernel(make_machine(Path(root), {
        "/proc/77/task/77/stat": f"77 ({name}) S {' '.join(['1'] * 2)} 1 0 -1 0 {' '.join(['0'] * 12)} 500 0\n",
        "/proc/77/task/77/status": "Cpus_allowed_list:\t3\n", "/proc/77/status": "Cpus_allowed_list:\t3\n",
    }))  # fmt: skip
    isolation = Isolation("3", root=machine.root)
    lines = make_script(isolation, ("true",), isolation.plan()).split("\n")
    (line,) = {line for line in lines if "77" in line and "# 77" in line and line.startswith("taskset -pc 0-2 77 ")}
    assert "reboot" in line and line.isprintable()
    assert not any(line.startswith("reboot") for line in lines)


def test_what_is_missing_is_named_with_its_fix(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(root)
    assert missing_rights(kernel) == []
    monkeypatch.setattr(Kernel, "is_read_only", lambda self, path: path == TOP)
    assert (
        "read-only" in missing_rights(kernel)[0] and "-v /sys/fs/cgroup:/sys/fs/cgroup:rw" in missing_rights(kernel)[0]
    )
    with pytest.raises(PrivilegeError, match="CPU 3 cannot be isolated without a writable /sys/fs/cgroup"):
        Isolation("3", root=root).begin()
    monkeypatch.undo()
    monkeypatch.setattr(Kernel, "is_writable", lambda self, path: path != TOP)
    assert missing_rights(kernel) == ["root: sudo $(which rtloop) isolate ..., or a systemd unit without User="]
    monkeypatch.undo()
    make_machine(Path(root), {f"{TOP}/cgroup.controllers": "memory pids"})
    assert "lacks it, because it is not passed on to this container" in missing_rights(kernel)[0]
    (Path(root) / f"{TOP}/cgroup.controllers".lstrip("/")).unlink()
    assert "mount -t cgroup2" in missing_rights(kernel)[0]


def a_thread(tid: int, name: str, cpus: tuple[int, ...], *, kernel: bool = False, bound: bool = False) -> Thread:
    return Thread(tid, 1000 + tid, name, kernel, not bound, cpus)


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.usefixtures("alone")
def test_threads_keep_their_own_choice_of_cpus(root: str, is_old: bool) -> None:
    """Before Linux 6.2 the kernel forgot it, when a partition was made and again when it ended."""
    isolation = isolation_of(root)
    kernel: Any = isolation.kernel
    everywhere = (0, 1, 2, 3)
    threads = {
        thread.tid: thread
        for thread in (
            a_thread(10, "anywhere", everywhere),
            a_thread(11, "pinned", (2, 3)),
            a_thread(12, "only there", (3,)),
            a_thread(20, "kswapd0", everywhere, kernel=True),
            a_thread(21, "ksoftirqd/3", (3,), kernel=True, bound=True),
            a_thread(22, "irq/25-nvme0q4", (3,), kernel=True),
        )
    }
    kernel.others = dict(threads)

    def move(path: str, written: str) -> None:
        if path.endswith("cpuset.cpus.partition"):
            for tid, thread in threads.items():
                if written == "isolated":
                    kept = () if is_old else tuple(cpu for cpu in thread.cpus if cpu != 3)
                    cpus = kept or (0, 1, 2)
                else:
                    cpus = everywhere if is_old else thread.cpus
                if not thread.is_kernel:
                    kernel.set_affinity(tid, cpus)

    kernel.on_write = move
    isolation.begin()
    assert {tid: thread.cpus for tid, thread in kernel.others.items()} == {
        10: (0, 1, 2), 11: (2,), 12: (0, 1, 2), 20: (0, 1, 2), 21: (3,), 22: (0, 1, 2),
    }  # fmt: skip
    assert any("1 are bound to their CPU, such as ksoftirqd/3" in line for line in make_remarks(isolation.steps))
    del kernel.others[22]
    kernel.others[22] = a_thread(22, "irq/25-nvme0q4", (1,), kernel=True)  # where the interrupt has arrived meanwhile
    kernel.others[20] = kernel.others[20]._replace(start=5)  # another thread with this number
    isolation.end()
    assert {tid: kernel.others[tid].cpus for tid in (10, 11, 12, 22)} == {
        10: everywhere, 11: (2, 3), 12: (3,), 22: (3,),
    }  # fmt: skip
    assert kernel.others[20].cpus == (0, 1, 2), "it is not a thread that was moved"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.usefixtures("alone")
def test_threads_have_all_cpus_again_after_two_isolations(root: str, first: int) -> None:
    """The kernel gives a thread that asked for nothing what its cpuset has, when a partition begins and ends."""
    threads = {10: a_thread(10, "anywhere", (0, 1, 2, 3)), 20: a_thread(20, "kswapd0", (0, 1, 2, 3), kernel=True)}
    partitions: dict[str, str] = {}
    both = [isolation_of(root, "3"), isolation_of(root, "2")]

    def move(path: str, written: str) -> None:
        if path.endswith("cpuset.cpus.partition"):
            partitions[path] = written
            taken = {int(name.partition("cpu-")[2][0]) for name, kind in partitions.items() if kind == "isolated"}
            for tid in threads:
                both[0].kernel.set_affinity(tid, {0, 1, 2, 3} - taken)

    both[0].kernel.others = both[1].kernel.others = threads  # type: ignore[attr-defined]
    for isolation in both:
        isolation.kernel.on_write = move  # type: ignore[method-assign, attr-defined]
        isolation.request = isolations.check_cpus(isolation.kernel, isolation.cpus)
        isolation.begin()
    assert {thread.cpus for thread in threads.values()} == {(0, 1)}
    both[first].end()
    assert {thread.cpus for thread in threads.values()} == {(0, 1, 3) if first == 0 else (0, 1, 2)}
    both[1 - first].end()
    assert {thread.cpus for thread in threads.values()} == {(0, 1, 2, 3)}


@pytest.mark.usefixtures("alone")
def test_the_threads_of_a_device_are_raised(root: str) -> None:
    isolation = isolation_of(root, devices=["eth0", "nope0"], device_priority=70)
    kernel: Any = isolation.kernel
    kernel.others = {
        30: a_thread(30, "irq/24-eth0-rx-0", (0,), kernel=True),
        31: a_thread(31, "irq/25-nvme", (0,), kernel=True),
    }
    kernel.policies = {30: "fifo 50", 31: "fifo 50"}

    def thread_napi(path: str, written: str) -> None:
        if path.endswith("/threaded"):
            kernel.others[32] = a_thread(32, "napi/eth0-8193", (0, 1), kernel=True)

    kernel.on_write = thread_napi
    isolation.begin()
    assert kernel.policies == {30: "fifo 70", 31: "fifo 50", 32: "fifo 70"}
    assert text(root, "/sys/class/net/eth0/threaded") == "1"
    assert any("nope0: there is no such network device" in line for line in make_remarks(isolation.steps))
    isolation.end()
    assert kernel.policies[30] == "fifo 50" and text(root, "/sys/class/net/eth0/threaded") == "0"


@pytest.mark.usefixtures("alone")
def test_a_device_without_threads_is_refused(root: str) -> None:
    isolation = isolation_of(root, devices="eth0")
    isolation.begin()
    (refused,) = [step for step in isolation.steps if not step.is_granted and step.kind != "note"]
    assert refused.label == "napi/eth0-*" and "no such thread" in refused.why
    isolation.end()
    assert text(root, "/sys/class/net/eth0/threaded") == "0"


@pytest.mark.parametrize("version", [{**VERSION_2, **DELEGATED}, VERSION_1])
def test_the_commands_of_a_dry_run_do_the_same(tmp_path: Path, version: dict[str, str]) -> None:
    """Run by a shell on the same files, they leave what they found, and in between what an isolation makes."""
    root = make_machine(tmp_path / "machine", FILES, version)
    isolation = Isolation("3", root=root)
    before = contents(root)
    script = make_script(isolation, ["sh", "-c", "exit 0"], isolation.plan())
    assert contents(root) == before, "a dry run changes nothing"
    # Control groups of files have no files of the kernel, and are not removed while files are in them.
    script = re.sub(r"(?<=[ (])(?=/(?:sys|proc)/)", root, script)
    inner = script.partition("# Run the program inside")[0]
    subprocess.run(["sh", "-eu"], input=inner, text=True, check=True)

    def outside() -> dict[str, bytes]:
        return {name: value.strip() for name, value in contents(root).items() if "rtloop-" not in name}

    made = outside()
    script_undo = "\n".join(
        line.replace("rmdir ", "rm -r ") for line in script.partition("# Undo it")[2].splitlines()
        if not line.startswith(("for ", "if "))
    )  # fmt: skip
    subprocess.run(["sh", "-eu"], input=script_undo, text=True, check=True)
    assert contents(root) == before
    with isolated("3", root=root, join=False):
        assert outside() == made


def test_the_commands_that_undo_it_disable_what_they_have_enabled(root: str) -> None:
    make_machine(Path(root), {f"{TOP}/cgroup.subtree_control": ""})
    isolation = Isolation("3", root=root)
    begin, _, end = make_script(isolation, ["true"], isolation.plan()).partition("# Undo it")
    assert f"echo +cpuset > {TOP}/cgroup.subtree_control" in begin
    assert f"echo -cpuset > {TOP}/cgroup.subtree_control" in end


PROGRAM = """
import os, sys, time
from rtloop.machine import isolated
with isolated("3", root=sys.argv[1]) as isolation:
    print(isolation.keeper_pid, isolation.journal_path, flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int]]]:
    """Return what starts a program that is isolated, and returns it and its keeper."""
    started: list[subprocess.Popen[str]] = []

    def start(root: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, root], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline().split()[0])

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_nothing_is_changed_if_the_keeper_does_not_start(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtloop.machine.isolation.keeper.python", lambda: "/bin/false")
    before = contents(root)
    with pytest.raises(SetupError, match="did not start; nothing was changed"):
        Isolation("3", root=root).begin()
    assert contents(root) == before and not journals(Kernel(root))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_keeper_undoes_it_when_the_program_is_killed(
    tmp_path: Path, start: Callable[..., Any], number: signal.Signals
) -> None:
    root = make_machine(tmp_path / "machine", FILES, VERSION_2, DELEGATED)
    before = contents(root)
    process, keeper = start(root)
    assert contents(root) != before
    assert text(root, f"{TOP}/rtloop-cpu-3/cgroup.procs") == str(process.pid)
    process.send_signal(number)
    process.wait()
    wait_until(lambda: not is_alive(keeper), "the keeper ends")
    assert contents(root) == before and not list((Path(root) / "run").rglob("*.jsonl"))


def test_after_everything_was_killed_undo_restores_it(tmp_path: Path, start: Callable[..., Any]) -> None:
    root = make_machine(tmp_path / "machine", FILES, VERSION_2, DELEGATED)
    kernel, before = Kernel(root), contents(root)
    process, keeper = start(root)
    assert not stale_journals(kernel) and undo(kernel) == {}, "it is in use"
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not is_alive(keeper), "the keeper is killed")
    assert not stale_journals(kernel), "its owner still runs"
    process.kill()
    process.wait()
    assert [journal.cpus for journal in stale_journals(kernel)] == ["3"]
    assert contents(root) != before
    with pytest.raises(ConfigError, match=r"CPU 3 is isolated already.*--undo"):
        Isolation("3", root=root)
    results = undo(kernel)["3"]
    assert {result.verdict for result in results} <= {"restored", "unchanged", "gone"}
    assert contents(root) == before and not stale_journals(kernel)


@pytest.mark.usefixtures("alone")
def test_a_journal_that_was_cut_off_anywhere_restores_what_was_done(root: str) -> None:
    """A process may be killed between any two of its writes, and within one."""
    before = contents(root)
    isolation = isolation_of(root)
    isolation.begin()
    path = Path(root + isolation.journal_path)
    isolation.end()
    rounds = 0
    for cut in range(1, 11):
        isolation = isolation_of(root)
        count = 0

        def stop(path: str, written: str, isolation: Isolation = isolation, cut: int = cut) -> None:
            nonlocal count
            count += 1
            if count == cut:
                raise KeyboardInterrupt

        isolation.kernel.on_write = stop  # type: ignore[attr-defined]
        isolation._end = list  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            isolation.begin()
        isolation.kernel.on_write = lambda path, text: None  # type: ignore[attr-defined]
        with path.open("ab") as file:
            file.write(b'{"step": {"topic": "par')
        restore(Journal.load(isolation.kernel, str(path).removeprefix(root)))
        assert contents(root) == before, cut
        rounds += 1
    assert rounds == 10


@pytest.mark.usefixtures("alone")
def test_undo_leaves_an_isolation_that_begins_meanwhile(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process may enter itself in the journal after a search has read the journal."""
    before = contents(root)
    isolation = isolation_of(root)
    isolation.begin()
    changed = contents(root)
    found = Journal(isolation.kernel, isolation.journal_path)  # as read before the process has entered itself
    monkeypatch.setattr(isolations, "stale_journals", lambda kernel: [found])
    assert undo(isolation.kernel) == {}
    assert contents(root) == changed
    isolation.end()
    assert contents(root) == before


def test_a_journal_is_json_lines(root: str) -> None:
    kernel = Kernel(root)
    journal = Journal.create(kernel, "x", {"cpus": "3"})
    step = journal.record(Step("interrupts", "write", "/proc/irq/24/smp_affinity_list", "IRQ 24", "0-3\n", "0-2"))
    step.after = "0-2\n"
    journal.note_result(step)
    journal.take_over(step, "0-1\n")
    lines = [json.loads(line) for line in (Path(root) / FOLDER.lstrip("/") / "x.jsonl").read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["header", "step", "result", "before"]
    assert Journal.load(kernel, journal.path).steps[0].before == "0-1\n"
    assert oct((Path(root) / FOLDER.lstrip("/")).stat().st_mode & 0o777) == "0o700"


def test_help_has_examples() -> None:
    from click.testing import CliRunner

    from rtloop.tools.isolate.command import isolate

    result = CliRunner().invoke(isolate, ["--help"])
    assert result.exit_code == 0
    for words in ("--cpus 3 -- python main.py", "--undo", "--dry-run", "--device eth0"):
        assert words in result.output
    for arguments, message in {
        (): "name the CPUs", ("--cpus", "3"): "name the program", ("--undo", "--cpus", "3"): "--undo takes neither",
        ("--dryrun", "--cpus", "3", "--", "true"): "No such option",
    }.items():  # fmt: skip
        result = CliRunner().invoke(isolate, list(arguments))
        assert result.exit_code == 2 and message in result.output, textwrap.dedent(result.output)


@pytest.fixture
def command(root: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command line, for a machine made of files."""
    from click.testing import CliRunner

    from rtloop.tools.isolate import command

    make_machine(Path(root), DELEGATED)
    monkeypatch.setattr(command, "Isolation", functools.partial(Isolation, root=root))
    monkeypatch.setattr(command, "Kernel", lambda: Kernel(root))
    monkeypatch.setenv("COLUMNS", "200")  # no line is folded
    return lambda *arguments: CliRunner().invoke(command.isolate, list(arguments), standalone_mode=False)


def test_without_rights_only_what_is_missing_is_printed(
    root: str, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(root)
    monkeypatch.setattr(Kernel, "is_writable", lambda self, path: False)
    result = command("--cpus", "3", "--", "python", "main.py", "--rate", "1kHz")
    assert result.return_value == 1
    assert result.stdout == "" and "missing: root: sudo $(which rtloop) isolate" in result.stderr
    assert result.stderr.splitlines()[-1] == "rtloop: nothing was changed; --dry-run shows the commands"
    shown = command("--cpus", "3", "--dry-run", "--", "python", "main.py", "--rate", "1kHz")
    assert shown.return_value == 0 and "missing: root" in shown.stderr
    assert f"echo isolated > {TOP}/rtloop-cpu-3/cpuset.cpus.partition" in shown.stdout
    assert f"{TOP}/rtloop-cpu-3/cgroup.procs python main.py --rate 1kHz" in shown.stdout
    assert contents(root) == before
    document = json.loads(command("--cpus", "3", "--dry-run", "--json").stdout)
    assert document["cpus"] == [3] and document["housekeeping"] == [0, 1, 2] and document["cgroup_version"] == 2
    assert {step["topic"] for step in document["steps"]} >= {"partition", "workqueues", "interrupts", "governor"}


def test_the_program_runs_inside_and_its_exit_code_is_the_commands(root: str, command: Callable[..., Any]) -> None:
    before = contents(root)
    inner = f"cat {root}{TOP}/rtloop-cpu-3/cpuset.cpus.partition > {root}/run/seen; exit 7"
    result = command("--cpus", "3", "--", "sh", "-c", inner)
    assert result.return_value == 7, result.output
    assert text(root, "/run/seen") == "isolated"
    assert f"CPU 3 is isolated as {TOP}/rtloop-cpu-3; all other work runs on 0-2" in result.stderr
    assert "settings are as before" in result.stderr
    assert contents(root) == before
    handler = signal.getsignal(signal.SIGTERM)
    assert command("--cpus", "3", "--", "sh", "-c", "kill -TERM $$").return_value == 128 + signal.SIGTERM
    assert contents(root) == before and signal.getsignal(signal.SIGTERM) == handler


def test_what_was_left_behind_is_reported_and_undone(root: str, command: Callable[..., Any]) -> None:
    Journal.create(Kernel(root), "2-1", {"cpus": "2", "owners": []})
    result = command("--cpus", "3", "--", "/no/such/program")
    assert "CPU 2 is still isolated by a run whose processes were all killed" in result.stderr
    assert result.return_value == 127
    result = command("--undo")
    assert "CPU 2:" in result.stdout and result.return_value == 0
    assert "no isolation was left behind" in command("--undo").stdout
