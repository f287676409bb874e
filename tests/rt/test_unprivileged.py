"""An ordinary user: a strict loop raises with the fix and leaks nothing, a degraded one reports what is missing."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="becoming an ordinary user takes root and setpriv(1); an ordinary user's own run covers it",
)

#: Without sys_resource, too, with which a process raises its own limits.
TAKEN = "-ipc_lock,-sys_nice,-sys_resource"
DROP = ("setpriv", "--bounding-set", TAKEN, "--inh-caps", TAKEN)
ORDINARY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


@functools.cache
def why_not(prefix: tuple[str, ...]) -> str:
    """Say why this Python cannot be started with a prefix, such as for one below root's home; "" where it can."""
    program = (
        "import importlib.util as i, sys; sys.exit(i.find_spec('rtloop') is None and 'rtloop is out of its reach')"
    )
    command = [*prefix, sys.executable, "-c", program]
    try:
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        return str(error)
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""


@pytest.fixture
def script(script: Script) -> Script:
    def run(code: str, *, prefix: tuple[str, ...]) -> Any:
        if reason := why_not(prefix):
            pytest.skip(f"{' '.join(prefix[:3])} cannot start {sys.executable}: {reason}")
        return script(code, prefix=prefix)

    return run


ACCOUNT = (Path(__file__).parents[1] / "support" / "account.py").read_text() + "import rtloop, sys, warnings\n"


@pytest.mark.parametrize("prefix", [DROP, ORDINARY], ids=["without capabilities", "another user"])
def test_strict_raises_with_the_fix_and_leaks_nothing(script: Script, prefix: tuple[str, ...]) -> None:
    code = ACCOUNT + """
for mode in ("all", "onfault"):
    loop = rtloop.RTLoop("1ms", lock_memory=mode, core_dumps=False)
    try: loop.start()
    except PermissionError: pass
    before = account()
    for _ in range(3):
        try:
            loop.start()
        except PermissionError as error:
            text = str(error)
            assert isinstance(error, (rtloop.MemoryLockError, rtloop.SetupError)), type(error)
            assert isinstance(error, rtloop.MemoryLockError)
    assert account() == before, (account(), before)
    words = ("RLIMIT_MEMLOCK", "limits.d", "memlock", "LimitMEMLOCK", "docker", "CAP_IPC_LOCK", "strict=False", "own")
    for word in words:
        assert word in text, (word, text)
loop = rtloop.RTLoop("1ms", lock_memory="off", dma_latency=None, core_dumps=False)
try: loop.start()
except PermissionError: pass
before = account()
for _ in range(3):
    try:
        loop.start()
    except rtloop.PrivilegeError as error:
        text = str(error)
assert account() == before, (account(), before)
for word in ("RLIMIT_RTPRIO is 0", "rtprio", "LimitRTPRIO=95", "docker", "CAP_SYS_NICE", "fifo 80"):
    assert word in text, (word, text)
assert loop.state == "new"
print("done")
"""  # fmt: skip
    done = script(code, prefix=prefix)
    assert done.stdout.strip() == "done", done.stderr


def test_degraded_runs_and_one_warning_lists_everything(script: Script) -> None:
    code = (
        ACCOUNT
        + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loop = rtloop.RTLoop("1ms", strict=False)
    stats = loop.run(cycles=50)
text, = [str(w.message) for w in caught if w.category is rtloop.RTSetupWarning]
for word in ("memory_lock", "policy", "dma_latency", "limits.d"):
    assert word in text, (word, text)
refused = {g.name: g.granted for g in loop.grants if not g.ok}
print(stats.cycles, refused, [g.granted for g in loop.grants if g.name == "timer_slack"])
"""
    )
    done = script(code, prefix=ORDINARY)
    assert done.stdout.strip() == (
        "50 {'memory_lock': 'own memory only', 'dma_latency': 'nothing', 'policy': 'other'} ['1 ns']"
    ), done.stdout + done.stderr


def test_own_works_without_privilege_within_the_limit(script: Script) -> None:
    code = (
        ACCOUNT
        + """
loop = rtloop.RTLoop("1ms", lock_memory="own", policy="other", dma_latency=None)
loop.start()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck")] != ["0"])
loop.stop()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
try:
    loop.start()
except rtloop.MemoryLockError as error:
    print("65536" in str(error), "LimitMEMLOCK" in str(error), isinstance(error, PermissionError))
"""
    )
    done = script(code, prefix=ORDINARY)
    assert done.stdout.split() == ["True"] * 4, done.stdout + done.stderr


def test_a_finite_limit_without_the_capability_never_locks_the_future(script: Script) -> None:
    """The deadly combination: threads and allocations must go on working beside a degraded loop."""
    code = (
        ACCOUNT
        + """
import threading
warnings.simplefilter("ignore")
with rtloop.RTLoop("1ms", strict=False) as loop:
    blocks = [bytearray(4 << 20) for _ in range(16)]
    threads = [threading.Thread(target=lambda: None) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
print(len(blocks))
"""
    )
    done = script(code, prefix=DROP)
    assert done.stdout.strip() == "16", done.stderr
