"""Isolation of a CPU of this machine, for a fraction of a second: what runs there, and what is left after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rtloop_test_processes import is_alive
from rtloop_test_waiting import wait_until

from rtloop.machine.isolation.isolation import missing_rights, stale_journals, undo
from rtloop.machine.isolation.journal import Journal, journals
from rtloop.machine.isolation.kernel import Kernel
from rtloop.machine.isolation.plan import find_hierarchy

KERNEL = Kernel()
CPU = KERNEL.cpus("/sys/devices/system/cpu/online")[-1]


def why_not() -> str:
    """Return why no CPU can be isolated here; empty if one can."""
    if os.geteuid():
        return "needs root"
    if missing := missing_rights(KERNEL):
        return f"needs {missing[0]}"
    if len(KERNEL.cpus("/sys/devices/system/cpu/online")) < 2:
        return "needs two CPUs"
    if CPU in KERNEL.cpus("/sys/devices/system/cpu/isolated"):
        return f"CPU {CPU} is isolated at boot"
    hierarchy = find_hierarchy(KERNEL)
    if hierarchy.version == 2 and KERNEL.exists(f"{hierarchy.top}/cgroup.type"):
        return f"{hierarchy.top} is not the root of the machine's control groups, as in a container"
    for name in KERNEL.folders(hierarchy.top) if hierarchy.version == 1 else ():
        if CPU in KERNEL.cpus(f"{hierarchy.top}/{name}/cpuset.cpus"):
            return f"the cpuset /{name} has CPU {CPU} as well, and keeps it"
    return ""


pytestmark = [pytest.mark.rt, pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can")]

Start = Callable[..., "tuple[subprocess.Popen[str], Journal, int]"]


@pytest.fixture
def start(tmp_path: Any) -> Iterator[Start]:
    """Return what runs a command on the isolated CPU, and returns it with its journal and the program's process."""
    started: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], Journal, int]:
        command = [sys.executable, "-m", "rtloop", "isolate", "--cpus", str(CPU), "--", "sh", "-c"]
        process = subprocess.Popen(
            [*command, "echo $$; exec sleep 300"], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        (journal,) = (
            one for one in journals(KERNEL) if [process.pid, KERNEL.start_of(process.pid)] in one.header["owners"]
        )
        return process, journal, int(line)

    yield start
    for process in started:
        process.kill()
        process.wait()
    undo(KERNEL)
    assert not stale_journals(KERNEL)


def touched(journal: Journal) -> dict[str, str]:
    """Return what every file that was written had before, but those of the control groups that were created."""
    created = [step.target for step in journal.steps if step.kind == "group"]
    return {
        step.target: step.before
        for step in journal.steps
        if step.kind in ("write", "controller")
        and step.before.strip() != step.wanted
        and not step.target.startswith(tuple(created))
    }


def test_the_cpu_is_the_programs_alone_and_comes_back_after_sigkill(start: Start) -> None:
    """First the command is killed, and the keeper ends the program and restores everything."""
    own = os.sched_getaffinity(0)
    process, journal, program = start()
    before = touched(journal)
    assert KERNEL.affinity(program) == (CPU,)
    inside = {program}
    shared = [
        thread for thread in KERNEL.threads() if CPU in thread.cpus and thread.can_move and thread.tid not in inside
    ]
    assert not [thread for thread in shared if not thread.is_kernel], "another program may run there"
    process.kill()
    wait_until(lambda: not KERNEL.exists(journal.path), "the keeper restores everything")
    assert not is_alive(program)
    assert {path: KERNEL.read(path) for path in before} == before
    assert os.sched_getaffinity(0) == own and not KERNEL.exists(str(journal.header["group"]))


def test_after_everything_was_killed_it_is_undone_from_the_journal(start: Start) -> None:
    process, journal, program = start()
    before = touched(journal)
    assert any(KERNEL.read(path) != text for path, text in before.items())
    keeper = next(pid for pid, _ in journal.header["owners"] if pid != process.pid)
    for pid in (keeper, process.pid, program):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not is_alive(keeper), "the keeper is killed")
    assert [stale.path for stale in stale_journals(KERNEL)] == [journal.path]
    results = undo(KERNEL)[str(CPU)]
    assert not [result for result in results if result.verdict in ("kept", "refused")]
    assert {path: KERNEL.read(path) for path in before} == before
