"""The doctor's measurements: CPU hogs, stolen time, clocks, timers, experiments, and time synchronisation."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from rtloop_test_machines import by_name, unpack

from rtloop.machine.doctor import samples
from rtloop.machine.doctor.checks.clocks import ClockCost
from rtloop.machine.doctor.machine_files import Machine
from rtloop.machine.doctor.run_all import TOPICS, Evidence, examine
from rtloop.machine.doctor.trial_loop import examine as examine_probe
from rtloop.machine.doctor.trial_loop import run_probe
from rtloop.system.time_sync import TimeSync, read_time_sync


def stat(tid: int, name: str, policy: int, priority: int, ticks: int, flags: int = 0) -> str:
    """Write a line of /proc/<pid>/task/<tid>/stat."""
    values = [0] * 52
    values[9], values[14], values[39], values[40], values[41] = flags, ticks, 1, priority, policy
    return f"{tid} ({name}) R " + " ".join(str(value) for value in values[4:])


def hog_machine(root: Path, ticks: int, run_ns: int | None) -> Machine:
    files = {"/proc/1/stat": "1 (init) S 0", "/proc/stat": f"cpu 0 0 0 {1000 + ticks} 0 0 0 {ticks} 0 0"}
    for tid, name, policy, priority in ((500, "spin) R 1 (", 1, 1), (501, "quiet", 2, 50), (502, "plain", 0, 0)):
        files[f"/proc/{tid}/task/{tid}/stat"] = stat(tid, name, policy, priority, ticks if tid != 501 else 0)
        if run_ns is not None:
            files[f"/proc/{tid}/task/{tid}/schedstat"] = f"{run_ns if tid != 501 else 0} 0 1"
    return unpack(files, root)


@pytest.mark.parametrize("has_schedstat", [True, False])
def test_a_real_time_hog_is_named_with_its_share(tmp_path: Path, has_schedstat: bool) -> None:
    before = samples.take_sample(hog_machine(tmp_path / "a", 0, 0 if has_schedstat else None))
    later = hog_machine(tmp_path / "b", 60, 600_000_000 if has_schedstat else None)
    after = samples.take_sample(later)._replace(seconds=before.seconds + 1)
    (check,) = samples.examine(later, before, after)
    assert check.verdict == "warn"
    assert "spin) R 1 ( (pid 500, tid 500, fifo 1) took 60 % of a CPU in 1.0 s, last on CPU 1" in check.found
    assert "chrt --other --pid 0 500" in check.fix

    (check,) = samples.examine(later, after._replace(seconds=0), after)
    assert check.verdict == "ok" and check.found.startswith("2 visible, 2 of them in user programs")
    assert examine(later, Evidence(before, after))[0].topic == "probe"


def test_steal_between_two_looks_counts_too(tmp_path: Path) -> None:
    before = samples.take_sample(hog_machine(tmp_path / "a", 0, None))
    later = hog_machine(tmp_path / "b", 4, None)  # 4 of 1008 ticks since boot would be by chance
    after = samples.take_sample(later)._replace(seconds=before.seconds + 1)
    check = by_name(examine(later, Evidence(before, after)))["stolen time"]
    assert check.verdict == "warn" and "50.0 % in the last 1.0 s" in check.found


@pytest.mark.parametrize(
    ("cost", "verdict", "words"),
    [
        (ClockCost(23, 180, 1), "ok", "23 ns; the bare system call takes 180 ns: through the vDSO"),
        (ClockCost(190, 180, 1), "warn", "not through the vDSO"),
        (ClockCost(1500, 1600, 1), "warn", "not through the vDSO"),
    ],
)
def test_a_clock_without_vdso_is_found(tmp_path: Path, cost: ClockCost, verdict: str, words: str) -> None:
    check = by_name(examine(Machine(str(tmp_path)), Evidence(cost=cost)))["clock_gettime"]
    assert check.verdict == verdict and words in check.found


def test_the_clock_of_this_machine_is_measured() -> None:
    import time

    from rtloop.errors import SetupError
    from rtloop.machine.doctor.clock_cost import clock_cost

    call, bare = clock_cost(time.CLOCK_MONOTONIC)
    assert 0 < call < 1e6 and 0 < bare < 1e6
    # This clock has no vDSO: both ways enter the kernel, and cost more than a read through the vDSO can save.
    call, bare = clock_cost(time.CLOCK_THREAD_CPUTIME_ID)
    assert call > 0.6 * bare
    with pytest.raises(SetupError, match="clock 99"):
        clock_cost(99)


def test_a_coarse_timer_fails(tmp_path: Path) -> None:
    evidence = Evidence(cost=ClockCost(20, 100, 4_000_000))
    check = by_name(examine(Machine(str(tmp_path)), evidence))["timer resolution"]
    assert check.verdict == "fail" and check.found == "4 ms" and check.fix


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL: a finite RLIMIT_RTTIME"),
        ("raise RuntimeError('no such luck')", "did not start: RuntimeError: no such luck"),
        ("import time; time.sleep(60)", "did not end within 0.3 s"),
        ("pass", "did not start: exit code 0"),
    ],
)
def test_an_experiment_that_goes_wrong_fails(program: str, words: str) -> None:
    (check,) = examine_probe(run_probe(program, 0.3 if "sleep" in program else 20))
    assert check.verdict == "fail" and words in check.found


def test_the_examination_of_this_machine_reads_and_does_not_write() -> None:
    """No file is opened for writing but by the child that holds the idle latency."""
    import sys

    from rtloop.machine.doctor.run_all import gather

    opened: list[tuple[object, object]] = []
    is_on = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if is_on and event == "open":
            mode, flags = arguments[1], int(str(arguments[2] or 0))
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or (isinstance(mode, str) and set(mode) & set("wax+")):
                opened.append((arguments[0], mode))

    sys.addaudithook(hook)
    machine = Machine()
    limits = Path("/proc/self/limits").read_text()
    checks = examine(machine, gather(machine, 0.05))
    is_on = False
    assert [path for path in opened if not isinstance(path[0], int) and "pyc" not in str(path[0])] == []
    assert Path("/proc/self/limits").read_text() == limits
    assert {check.topic for check in checks} >= set(TOPICS) - {"measured"}


@pytest.mark.parametrize(
    ("sync", "running", "name", "verdict", "words", "fix"),
    [
        (None, (), "TAI offset", "note", "not read", ""),
        (TimeSync(37, True, 0, 0), (), "TAI offset", "ok", "37 s", ""),
        (TimeSync(0, True, 0, 0), (), "TAI offset", "note", "not set", "phc2sys -a -r"),
        (TimeSync(0, False, 10**10, 0), (), "time of day", "note", "no PTP and no NTP service runs here; not sync", ""),
        (TimeSync(37, True, 500_000, -90), ("ptp4l", "phc2sys"), "time of day", "ok", "by phc2sys, ptp4l; sync", ""),
        (TimeSync(37, True, 500_000, -90), ("ptp4l", "phc2sys"), "time of day", "ok", "90 ns left to correct", ""),
        (TimeSync(37, True, 0, 0), ("ptp4l",), "time of day", "note", "the network card's clock", "phc2sys -a -r"),
        (TimeSync(37, True, 0, 0), ("chronyd",), "time of day", "note", "kept by chronyd", ""),
        (TimeSync(37, True, 0, 0), ("phc2sys", "ptp4l", "chronyd"), "time of day", "warn", "two services keep",
         "systemctl stop chronyd"),
    ],
)  # fmt: skip
def test_who_keeps_the_clock_among_hosts_is_said(
    tmp_path: Path, sync: TimeSync | None, running: tuple[str, ...], name: str, verdict: str, words: str, fix: str
) -> None:
    for pid, comm in enumerate((*running, "bash"), 100):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{comm}\n")
    check = by_name(examine(Machine(str(tmp_path)), Evidence(sync=sync)))[name]
    assert check.verdict == verdict and words in check.found and fix in check.fix, check


def test_the_kernels_offset_of_tai_is_read() -> None:
    sync = read_time_sync()
    offset = round((time.clock_gettime_ns(time.CLOCK_TAI) - time.clock_gettime_ns(time.CLOCK_REALTIME)) * 1e-9)
    assert sync is None or sync.tai_offset_s == offset
    assert sync is None or sync.max_error_ns >= 0
