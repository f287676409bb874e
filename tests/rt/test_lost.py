"""What was granted at the start and is lost later is shown as lost: by the loop, by other processes, and at the end."""

from __future__ import annotations

import ctypes
import os
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import rtloop_test_processes as processes

import rtloop
from rtloop.stats.findings import find
from rtloop.system.grant import Grant
from rtloop.telemetry.live_grants import LiveGrants

pytestmark = pytest.mark.rt

Script = Callable[..., Any]

PROLOGUE = """
import ctypes, os, resource, subprocess, sys, time, warnings
import rtloop
from rtloop.stats.findings import find

def lost(stats):
    return {g.name: str(g.granted) for g in stats.grants if g.lost is not None}

warnings.simplefilter("error")
FIRST = min(os.sched_getaffinity(0))
keywords = dict(name="grip", cpu=FIRST, core_dumps=False)
"""

#: A device that is open for other code as well, and a number that is another file's by now.
REOPEN = "kept = os.open('/dev/cpu_dma_latency', os.O_RDWR); close_device(kept)"
REPLACE = "null = os.open('/dev/null', os.O_RDWR); os.dup2(null, numbers()[0]); os.close(null)"
LOSSES = {
    "policy": ("os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))", "other"),
    "cpu": ("os.sched_setaffinity(tid, set(range(os.cpu_count())) - {FIRST} or {FIRST})", None),
    "memory_lock": ("ctypes.CDLL(None).munlockall()", "nothing"),
    "state": ("ctypes.CDLL(None).munlockall()", "not locked"),
    "stack": ("ctypes.CDLL(None).munlockall()", "not locked"),
    "core_dumps": ("resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.RLIM_INFINITY))", "4096"),
    "dma_latency": ("close_device()", "nothing"),
    "dma_latency while other code has it open": (REOPEN, "nothing"),
    "dma_latency whose number is another file's": (REPLACE, "nothing"),
}


def program(action: str) -> str:
    return f"""{PROLOGUE}
def numbers():
    links = {{int(name): "/proc/self/fd/" + name for name in os.listdir("/proc/self/fd")}}
    return [n for n, link in links.items() if os.path.lexists(link) and "cpu_dma_latency" in os.readlink(link)]
def close_device(kept=-1):
    for number in numbers():
        if number != kept:
            os.close(number)

loop = rtloop.RTLoop("1kHz", **keywords)
loop.start()
time.sleep(0.1)
assert lost(loop.stats) == {{}}
tid = loop.stats and next(reader.tid for reader in rtloop.running(pid=os.getpid()))
before = time.time_ns()
{action}
time.sleep(0.05)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    stats, again = loop.stats, loop.stats
code = "import rtloop; r = rtloop.running(pid=%d)[0]; print(r.policy, *(g.name for g in r.stats.grants if g.lost))"
seen = subprocess.run([sys.executable, "-P", "-c", code % os.getpid()], capture_output=True, text=True, check=True)
loop.stop()
found = lost(stats)
assert found.keys() == lost(again).keys() == lost(loop.stats).keys(), (found, lost(loop.stats))
assert all(before <= g.lost <= time.time_ns() for g in stats.grants if g.lost is not None)
assert [g.lost for g in stats.grants] == [g.lost for g in again.grants], "when it was first seen"
print(found, len(caught), [str(w.message) for w in caught][:1], find(stats)[0].text, str(stats), seen.stdout,
      sep="@")
"""


def test_another_runtime_of_a_deadline_thread_is_told(script: Script) -> None:
    done = script(f"""{PROLOGUE}
import struct
from rtloop.system.syscalls import number_of
warnings.simplefilter("ignore")
loop = rtloop.RTLoop("1kHz", policy="deadline", runtime="100us", deadline="1ms", dma_latency=None)
try:
    loop.start()
except rtloop.SetupError as error:
    sys.exit(f"refused: {{error}}")
tid = next(reader.tid for reader in rtloop.running(pid=os.getpid()))
attr = struct.pack("=IIQiIQQQ", 48, 6, 1, 0, 0, 50_000, 2_000_000, 2_000_000)
assert ctypes.CDLL(None).syscall(number_of("sched_setattr"), int(tid), attr, 0) == 0
print(lost(loop.stats))
loop.stop()
print(lost(loop.stats))
""")
    if "refused: " in done.stderr:
        pytest.skip(f"no SCHED_DEADLINE here: {done.stderr}")
    assert done.stdout.splitlines() == ["{'policy': 'deadline 50 us/2 ms/2 ms'}"] * 2, done.stderr


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_lost_is_told(script: Script, name: str) -> None:
    """Every snapshot handed on the grants of the start."""
    action, now = LOSSES[name]
    name = name.split()[0]
    if name == "cpu" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    done = script(program(action))
    assert done.returncode == 0, done.stderr
    found, warned, text, finding, table, seen = (part.strip() for part in done.stdout.split("@")[:6])
    assert f"'{name}'" in found and (now is None or now in found)
    assert warned == "1" and "grip no longer has what it was granted" in text and "lost: was " in text, "once"
    assert finding.startswith("Lost while the loop ran: "), "it stands first"
    assert "\nLOST " in table and "first seen" in table
    assert name in seen.split(), "another process sees it, too"
    if name == "policy":
        assert seen.startswith("other ") and "other instead of fifo 80" in table


def test_what_comes_back_is_granted_again() -> None:
    loop = rtloop.RTLoop("1kHz", name="back")
    with loop:
        time.sleep(0.05)
        tid = next(reader.tid for reader in rtloop.running(pid=os.getpid(), name="back"))
        os.sched_setscheduler(tid, os.SCHED_RR, os.sched_param(70))
        with pytest.warns(rtloop.RTSetupWarning, match="was fifo 80, is now rr 70"):
            lost = next(grant for grant in loop.stats.grants if grant.name == "policy")
        assert (lost.granted, lost.ok) == ("rr 70", False) and lost.lost is not None and lost.fix
        os.sched_setscheduler(tid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(80))
        back = next(grant for grant in loop.stats.grants if grant.name == "policy")
        assert (back.granted, back.ok, back.lost) == ("fifo 80", True, None)


def test_what_is_lost_shortly_before_the_end_is_told_at_the_end(script: Script) -> None:
    """The thread itself reads its policy and its CPUs again when it ends: afterwards nobody can."""
    done = script(f"""{PROLOGUE}
loop = rtloop.RTLoop("1kHz", **keywords)
loop.start()
time.sleep(0.1)
tid = next(reader.tid for reader in rtloop.running(pid=os.getpid()))
os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
loop.stop()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(lost(loop.stats), len(caught), find(loop.stats)[0].text.partition(":")[0])
""")
    assert done.stdout.strip() == "{'policy': 'other'} 1 Lost while the loop ran", done.stderr


def test_a_loop_that_loses_nothing_tells_of_no_loss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = rtloop.RTLoop("1kHz").run(cycles=50)
        assert all(grant.lost is None for grant in stats.grants)
        assert not any("Lost" in finding.text for finding in find(stats))


@pytest.mark.parametrize("when", ["while it runs", "at the end"])
def test_a_handler_of_SIGSYS_set_during_a_guarded_run_is_noticed(script: Script, when: str) -> None:
    """The guards' handler is gone, and they reported 0 system calls of steps that they no longer saw."""
    done = script(f"""{PROLOGUE}
import signal
loop = rtloop.RTLoop("1kHz", guard="count", **keywords)
loop.start()
time.sleep(0.1)
assert loop.stats.guard["system_calls"] == 0 and lost(loop.stats) == {{}}
signal.signal(signal.SIGSYS, lambda *about: None)
warnings.simplefilter("always")
if {when!r} == "while it runs":
    assert "guard_system_calls" in lost(loop.stats)
loop.stop()
print(lost(loop.stats), loop.stats.guard["system_calls"], loop.stats.guard["unavailable"]["system_calls"], sep="@")
print(loop.stats)
""")
    found, count, why = done.stdout.splitlines()[0].split("@")
    assert found == "{'guard_system_calls': 'unavailable'}" and count == "None", done.stderr
    assert "other code has set a handler of SIGSYS" in why and why.endswith("0 counted until then")
    assert "0 system calls" not in done.stdout and "system calls not counted (lost:" in " ".join(done.stdout.split())
    assert done.stderr.count("no longer has what it was granted") == 1


def test_a_raised_memlock_limit_is_not_lost_and_a_lowered_one_is() -> None:
    start = Grant("memlock_limit", "as high as allowed", "128 KiB", True, kind="limit", value=128 << 10)
    live = LiveGrants((start,), os.getpid(), os.getpid(), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = []
    try:
        for kib in (128, 192, 64):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (kib << 10, hard))
            now = live.now()[0]
            found.append((now.granted, now.ok, now.lost is not None))
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    assert found == [("128 KiB", True, False), ("192 KiB", True, False), ("64 KiB", False, True)]


def test_a_lock_that_was_refused_at_the_start_is_shown_as_it_was() -> None:
    start = Grant("stack", "512 KiB, locked", "512 KiB, not locked", False, kind="lock", errno=1)
    live = LiveGrants((start,), os.getpid(), os.getpid(), {})
    nothing_locked = {f"/proc/{os.getpid()}/status": "VmLck:\t       0 kB\n"}
    assert live.now(files=nothing_locked) == (start,)


@pytest.mark.parametrize(
    ("is_held", "most_ns", "count"),
    [(True, 10**12, 1), (True, -1, 2), (False, 10**12, 2)],
    ids=["read ahead", "too long ago", "while it was released"],
)
def test_the_end_of_a_run_reads_only_what_was_not_read_ahead(
    is_held: bool, most_ns: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtloop.telemetry.live_grants._AHEAD_NS", most_ns)
    read: list[str] = []

    def gone(start: Grant) -> Grant:
        read.append(start.name)
        return start._replace(granted="nothing", ok=False)

    start = Grant("device", "open", "open", True, "", kind="device")
    live = LiveGrants((start,), os.getpid(), os.getpid(), {}, {"device": gone})
    live.read_ahead(lambda: is_held)
    report = {"attr": {"size": 0}}
    assert live.now(report)[0].lost is not None and len(read) == count
    live.now()
    assert len(read) == count + 1, "a run that goes on is read each time"


def test_a_loss_that_was_seen_after_the_grants_were_read_ahead_is_in_the_last_grants() -> None:
    now = Grant("device", "open", "open", True, "", kind="device")
    live = LiveGrants((now,), os.getpid(), os.getpid(), {}, {"device": lambda _: now})
    live.read_ahead(lambda: True)
    now = now._replace(granted="nothing", ok=False)
    assert [grant.lost is not None for grant in live.now()] == [True]
    assert [grant.lost is not None for grant in live.now({"attr": {"size": 0}})] == [True]


@pytest.mark.parametrize("name", ["policy", "memory_lock"])
@pytest.mark.parametrize("seen", ["while it runs", "at the end"])
def test_what_a_watchdog_loses_is_told(name: str, seen: str) -> None:
    """A group's watchdog reads its grants again when they are asked for, and at its end."""
    group = rtloop.LoopGroup([rtloop.RTLoop("1kHz", name="arm", lock_memory="own")], watchdog=1000)
    with warnings.catch_warnings(record=True, action="always") as caught:
        group.start()
        time.sleep(0.05)
        assert all(grant.ok for grant in group.grants["watchdog"])
        if name == "policy":
            tid = next(tid for tid, name in processes.thread_names().items() if name == "rtloop-watchdog")
            os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
        else:
            ctypes.CDLL(None).munlockall()
        if seen == "while it runs":
            lost = {grant.name for grant in group.grants["watchdog"] if grant.lost is not None}
            assert (name if name == "policy" else "state") in lost
        group.stop()
        lost = {grant.name for grant in group.grants["watchdog"] if grant.lost is not None}
    assert (name if name == "policy" else "state") in lost
    texts = [str(w.message) for w in caught if "watchdog no longer has" in str(w.message)]
    assert len(texts) == 1, "once"
