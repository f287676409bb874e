"""The doctor where something is really missing: it reports the same cause and fix as the loop's own refusal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rtloop.machine.doctor import samples
from rtloop.machine.doctor.machine_files import Machine
from rtloop.system.checks import Check

pytest.importorskip("click", reason="the command line needs rtloop[cli]")

#: Without sys_resource, too, with which a process raises its own limits.
TAKEN = "-ipc_lock,-sys_nice,-sys_resource"
DROP = ("setpriv", "--bounding-set", TAKEN, "--inh-caps", TAKEN)
# It may enter any folder: Python may be installed below one of root's own.
ENTER = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
ORDINARY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *ENTER)

by_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("prlimit") is None,
    reason="taking privileges away takes root, setpriv(1) and prlimit(1)",
)


def doctor(*prefix: str) -> tuple[int, dict[str, Check]]:
    """Run the doctor behind a prefix; returns its exit code, and its checks by name."""
    command = [*prefix, sys.executable, "-P", "-m", "rtloop", "doctor", "--json"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=100)
    assert done.stdout, done.stderr
    checks = [Check(**{name: check[name] for name in Check._fields}) for check in json.loads(done.stdout)["checks"]]
    return done.returncode, {f"{check.topic}: {check.name}": check for check in checks}


def refusal(*prefix: str) -> str:
    """Return the error of a strict loop behind a prefix."""
    program = "import rtloop\ntry: rtloop.RTLoop('1ms').run(cycles=1)\nexcept rtloop.SetupError as error: print(error)"
    return subprocess.run(
        [*prefix, sys.executable, "-P", "-c", program], cwd="/", capture_output=True, text=True
    ).stdout


@by_root
@pytest.mark.parametrize("prefix", [DROP, ORDINARY], ids=["without capabilities", "another user"])
def test_one_cause_has_one_text_and_one_fix(prefix: tuple[str, ...]) -> None:
    """In the doctor's judgement of the limits, in its experiment, and in the error of a strict loop."""
    code, checks = doctor("prlimit", "--memlock=4194304:4194304", "--", *prefix)
    assert code == 1
    error = refusal("prlimit", "--memlock=4194304:4194304", "--", *prefix)
    for judged, tried in (("real-time priority", "real-time thread"), ("locked memory", "locking all memory")):
        cause, probe = checks[f"session: {judged}"], checks[f"probe: {tried}"]
        assert cause.verdict == probe.verdict == "fail"
        assert cause.found in probe.found and cause.found in error
        assert cause.fix.splitlines() == probe.fix.splitlines()[: cause.fix.count("\n") + 1]
        assert all(line in error for line in cause.fix.splitlines())
    assert checks["session: real-time priority"].found == "RLIMIT_RTPRIO is 0 and CAP_SYS_NICE is missing"


@by_root
def test_a_device_that_is_refused_has_its_fix() -> None:
    _, checks = doctor(*ORDINARY)
    check = checks["probe: limiting idle states"]
    assert check.verdict == "fail" and "/dev/cpu_dma_latency: Permission denied" in check.found
    assert 'KERNEL=="cpu_dma_latency"' in check.fix


@by_root
def test_a_finite_limit_of_cpu_time_is_reported() -> None:
    _, checks = doctor("prlimit", "--rttime=200000:200000", "--")
    check = checks["session: real-time CPU time"]
    assert check.verdict == "warn" and check.found == "RLIMIT_RTTIME is 200000 us without blocking"
    assert "LimitRTTIME=infinity" in check.fix
    assert checks["probe: real-time CPU time"].verdict == "ok", "a loop of 1 ms has room in it"
    _, checks = doctor("prlimit", "--rttime=900:unlimited", "--")
    tried = checks["probe: real-time CPU time"]
    assert tried.verdict == "fail" and tried.fix == check.fix


@pytest.mark.rt
def test_a_real_time_hog_is_reported() -> None:
    cpu = max(os.sched_getaffinity(0))
    program = f"""
import os, time
os.sched_setaffinity(0, [{cpu}])
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
print("ready", flush=True)
end = time.monotonic() + 5
while time.monotonic() < end: pass
"""
    machine = Machine()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as hog:
        try:
            assert hog.stdout is not None and hog.stdout.readline() == "ready\n"
            before = samples.take_sample(machine)
            time.sleep(0.5)
            found: list[Any] = list(samples.examine(machine, before, samples.take_sample(machine)))
        finally:
            hog.kill()
    (check,) = [check for check in found if f"tid {hog.pid}" in check.found]
    assert check.verdict == "warn" and "fifo 1)" in check.found and f"last on CPU {cpu}" in check.found
    assert f"chrt --other --pid 0 {hog.pid}" in check.fix


@pytest.mark.rt
def test_the_experiment_leaves_the_caller_as_it_was() -> None:
    from rtloop.machine.doctor.trial_loop import run_probe

    def state() -> list[str]:
        names = ("VmLck", "Cpus_allowed")
        return [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(names)] + [
            Path("/proc/self/limits").read_text(), str(len(os.listdir("/proc/self/fd"))), str(os.sched_getscheduler(0)),
        ]  # fmt: skip

    before = state()
    found = run_probe()
    assert found["cycles"] == 20
    assert {grant["name"] for grant in found["grants"] if grant["ok"]} >= {"policy", "memory_lock", "dma_latency"}
    assert state() == before
