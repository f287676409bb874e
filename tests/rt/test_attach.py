"""Loops of other processes, with privileges: kill -9 of a real-time loop, other users, containers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rtloop

pytestmark = pytest.mark.rt

Script = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]

LOOP = """
import os, signal, sys, rtloop
loop = rtloop.RTLoop("1ms", name=sys.argv[1], **eval(sys.argv[2]))
loop.start()
print(os.getpid(), flush=True)
signal.pause()
"""
PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None}
ORDINARY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")

root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becoming another user takes root and setpriv(1)"
)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with a loop; skips where a prefix, such as another user's, cannot start Python."""
    processes: list[subprocess.Popen[str]] = []

    def run(name: str, *prefix: str, **settings: Any) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-c", LOOP, name, repr(settings)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd="/", start_new_session=True)
        processes.append(process)
        assert process.stdout is not None and process.stderr is not None
        if not process.stdout.readline().strip():
            process.kill()
            reason = process.stderr.read().strip() or "ended"
            if not prefix:
                pytest.fail(reason)
            pytest.skip(f"{prefix[0]} cannot start {sys.executable}: {reason.splitlines()[-1]}")
        return process

    yield run
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def gone(name: str) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not rtloop.running(name=name):
            return True
        time.sleep(0.01)
    return False


def died(reader: rtloop.LoopReader) -> bool:
    """The thread that the process is named after may be gone before the loop's."""
    end = time.monotonic() + 10
    while time.monotonic() < end and reader.state == "running":
        time.sleep(0.01)
    return reader.state == "died"


def shared_memory() -> int:
    """Return the bytes of shared memory of the machine, memfds included."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:"))
    return int(line.split()[1]) * 1024


def test_after_kill_9_a_loop_disappears_and_nothing_is_left(start: Start) -> None:
    def traces() -> list[str]:
        places = [place for place in ("/dev/shm", "/tmp", "/run", "/var/tmp") if os.path.isdir(place)]
        marks = ("slain", f"-{process.pid}", "rtloop:")
        return [f"{place}/{name}" for place in places for name in os.listdir(place) if any(m in name for m in marks)]

    process = start("slain", record=1 << 22)  # a block of 100 MB, to be seen in the account of the machine
    (reader,) = rtloop.running(name="slain")
    while reader.read(records=False).cycles < 20:
        time.sleep(0.01)
    assert reader.policy == "fifo 80"
    held = shared_memory()
    assert traces() == [], "a running loop leaves no name anywhere"
    process.kill()
    process.wait()
    assert gone("slain")
    assert reader.state == "died"
    assert not os.path.exists(f"/proc/{process.pid}")
    assert traces() == []
    reader.close()
    del reader
    end = time.monotonic() + 10
    while shared_memory() > held - (50 << 20) and time.monotonic() < end:
        time.sleep(0.05)
    assert shared_memory() <= held - (50 << 20), "the memory is the machine's again once the last reader lets go"


def test_a_stopped_process_is_still_read(start: Start) -> None:
    """SIGSTOP stops the thread where it is; where that was in the middle of a write, the reader is told so."""
    process = start("frozen")
    (reader,) = rtloop.running(name="frozen")
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.05)
    with contextlib.suppress(rtloop.AttachError):
        assert reader.read().state == "running"
    os.kill(process.pid, signal.SIGCONT)


@root
def test_another_users_loop_is_refused_with_the_reason(start: Start, script: Script) -> None:
    process = start("roots", **PLAIN)
    done = script(f"""
    import rtloop
    try:
        rtloop.attach(pid={process.pid})
    except PermissionError as error:
        print(type(error).__name__, error)
    print(rtloop.running(name="roots"))
    try:
        rtloop.attach(name="roots")
    except rtloop.AttachError as error:
        print(error)
    """, prefix=ORDINARY)  # fmt: skip
    if "No module named" in done.stderr or not done.stdout:
        pytest.skip(f"another user cannot start this Python: {done.stderr.strip().splitlines()[-1:]}")
    refused, listed, nobody = done.stdout.splitlines()
    assert refused.startswith(f"AttachPrivilegeError process {process.pid} belongs to user root (0), and this one to")
    assert "run this as root" in refused
    assert listed == "[]"
    assert "could not be inspected" in nobody and "try as root" in nobody


@root
def test_root_reads_every_users_loop(start: Start) -> None:
    process = start("theirs", *ORDINARY, **PLAIN)
    assert rtloop.attach(pid=process.pid).name == "theirs"


@root
def test_more_privileges_than_the_readers_are_a_reason_too(start: Start, script: Script) -> None:
    """A service with ambient capabilities is not to be looked into by its own user's shell (ptrace(2))."""
    capable = (*ORDINARY, "--inh-caps", "+sys_nice", "--ambient-caps", "+sys_nice")
    process = start("capable", *capable, **PLAIN)
    done = script(f"""
    import rtloop
    try:
        rtloop.attach(pid={process.pid})
    except rtloop.AttachPrivilegeError as error:
        print(error)
    """, prefix=(*ORDINARY, "--inh-caps", "-all", "--bounding-set", "-all"))  # fmt: skip
    if not done.stdout:
        pytest.skip(f"another user cannot start this Python: {done.stderr.strip().splitlines()[-1:]}")
    assert "CAP_SYS_PTRACE" in done.stdout and "run this as root" in done.stdout
    assert "has privileges that this one lacks" in done.stdout or "cannot be dumped" in done.stdout


@root
def test_a_loop_in_a_container_is_known_by_the_numbers_of_here(start: Start) -> None:
    """In a pid namespace of its own the process is number 1, and its block says so."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is not installed")
    start("contained", "unshare", "--fork", "--pid", "--kill-child", **PLAIN)
    (reader,) = rtloop.running(name="contained")
    assert reader._block.header["pid"] == 1  # type: ignore[union-attr]
    assert reader.pid != 1 and os.path.exists(f"/proc/{reader.pid}/task/{reader.tid}")
    stats = rtloop.attach(pid=reader.pid)
    assert stats.state == "running" and stats.page_faults.minor is not None
    os.kill(reader.pid, signal.SIGKILL)
    assert gone("contained") and died(reader)
