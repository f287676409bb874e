"""A step that exchanges data with Python keeps the real-time contract, and all data arrives intact."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rtloop

pytestmark = pytest.mark.rt


def test_no_page_fault_in_20000_cycles_at_10_khz_that_each_log_into_a_ring(exchanges: ModuleType) -> None:
    """The ring holds half a second: every place of it is written to several times."""
    loop = exchanges.Servo("100us", capacity=5000)
    ring = loop.log.ring
    assert ring.is_locked
    parts = []
    loop.start()
    while loop.stats.cycles < 20_000:
        assert loop.state == "running"
        parts.append(ring.drain())
        time.sleep(0.01)
    loop.stop()
    parts.append(ring.drain())
    log, stats = np.concatenate(parts), loop.stats
    assert stats.page_faults == (0, 0)
    assert len(log) + ring.dropped == stats.cycles
    assert np.all(log["s7"] == log["cycle"] + 7), "every record is whole"
    assert np.all(np.diff(log["cycle"].astype("i8")) > 0)


def test_parameters_that_change_1000_times_a_second_are_read_whole(exchanges: ModuleType) -> None:
    loop = exchanges.Checker("100us")
    assert loop.parameters.is_locked
    value = np.zeros((), loop.parameters.dtype)
    count, begin = 3000, time.monotonic()
    with loop:
        for i in range(1, count + 1):
            value["values"] = i * np.array([1.0, 1.25, 1.5, 1.75, 3, 5])
            value["check"] = np.bitwise_xor.reduce(value["values"].view("u8"))
            loop.parameters.write(value)
            time.sleep(max(0, begin + i / 1000 - time.monotonic()))
        while loop.last != count:
            assert loop.state == "running"
        stats = loop.stats
    assert loop.torn == 0
    assert count // 10 < loop.fresh <= loop.parameters.written == count
    assert stats.page_faults == (0, 0)


def test_exchanges_stay_locked_when_a_lock_of_everything_ends(exchanges: ModuleType) -> None:
    ring, latest = rtloop.Ring("f8", 10_000), rtloop.Latest([("x", "f8", 5000)])
    exchanges.Checker("1ms", lock_memory="all").run(cycles=20)
    assert ring.is_locked and latest.is_locked


def test_a_recorder_that_a_real_time_thread_makes_is_an_ordinary_one_on_all_cpus(tmp_path: Path) -> None:
    cpus = os.sched_getaffinity(0)
    seen: dict[str, object] = {}

    def make() -> None:
        os.sched_setaffinity(0, {min(cpus)})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
        seen["size before"] = threading.stack_size()
        with rtloop.Recorder(rtloop.Ring("f8", 1), tmp_path / "run.npy") as recorder:
            seen["size after"] = threading.stack_size()
            recorder.flush()
            tid = recorder._tid
            seen["policy"], seen["cpus"] = os.sched_getscheduler(tid), os.sched_getaffinity(tid)
            fd = recorder._file._fd  # type: ignore[attr-defined]
            seen["inherited"] = os.get_inheritable(fd)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(30)
    assert seen == {"size before": 0, "size after": 0, "policy": os.SCHED_OTHER, "cpus": cpus, "inherited": False}


MADE = """
import sys, rtloop
setpoint = rtloop.Latest("f8", share=sys.argv[1])
setpoint.write(2.5)
print("made", flush=True)
sys.stdin.read()
"""
OPENED = """
import sys, rtloop
try:
    print(float(rtloop.Latest.open(sys.argv[1]).read()))
except rtloop.AttachError as error:
    print(error)
"""
USER = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
PRIVILEGED = (*USER, "--inh-caps", "+sys_nice", "--ambient-caps", "+sys_nice")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becoming another user takes root and setpriv(1)"
)
def test_a_process_of_the_same_user_without_the_privileges_of_the_other_is_told_so() -> None:
    """The kernel does not let it look into the other one's files: ptrace(2)."""

    def command(user: tuple[str, ...], code: str) -> list[str]:
        return [*user, sys.executable, "-W", "ignore", "-c", code, f"privileged-{os.getpid()}"]

    def opened(user: tuple[str, ...]) -> str:
        return subprocess.run(command(user, OPENED), stdout=subprocess.PIPE, text=True, check=True, cwd="/").stdout

    pipe = subprocess.PIPE
    with subprocess.Popen(command(PRIVILEGED, MADE), stdin=pipe, stdout=pipe, text=True, cwd="/") as maker:
        assert maker.stdin is not None and maker.stdout is not None
        if maker.stdout.readline() != "made\n":
            pytest.skip(f"an ordinary user cannot start {sys.executable}")
        assert opened(PRIVILEGED) == "2.5\n"
        told = opened(USER)
        assert f"{maker.pid} (" in told and "privileges that this process lacks" in told
        maker.stdin.close()
