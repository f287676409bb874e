"""Every call that a start makes fails in turn, once and for ever, and nothing stays acquired.

The calls fail in a process of their own, where tests/support/faults.c is preloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[..., "subprocess.CompletedProcess[str]"]

SUPPORT = Path(__file__).parents[1] / "support"

PROGRAM = (
    (SUPPORT / "account.py").read_text()
    + """
import ctypes, json, os, resource, warnings
import rtloop

faults = ctypes.CDLL(os.environ["LD_PRELOAD"])
faults.faults_disarm.restype = ctypes.c_char_p
kept = []  # the exception, whose traceback has the variables of the functions that it came from
def start(loop, number, for_ever):
    said = {"ok": False, "text": "", "kind": ""}
    kept.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        faults.faults_arm(number, for_ever)
        try:
            loop.start()
            said["ok"], said["text"] = True, "".join(str(w.message) for w in caught)
        except Exception as error:
            kept.append(error)
            said["kind"], said["text"] = type(error).__name__, str(error)
            said["typed"] = isinstance(error, rtloop.SetupError)
        said["call"] = faults.faults_disarm().decode()
    return said

settings = json.loads(os.environ["SETTINGS"])
if settings["core_dumps"] is False:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
loop = rtloop.RTLoop("1ms", record=100, stack_size="64K", **settings)
for _ in range(5):  # so often that whatever the C library caches, such as the stacks of ended threads, is there
    loop.start(); loop.stop()
before = account()
for for_ever in (False, True):
    number = 0
    while True:
        said = start(loop, number, for_ever)
        loop.stop()
        if not said["call"]:
            break
        after = account()
        said["left"] = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
        said["number"], said["for_ever"], said["state"] = number, for_ever, loop.state
        print(json.dumps(said))
        number += 1
        assert number < 1000
"""
)

#: What each call is for, as the error of a strict start or the warning of a degraded one has it.
SAYS = {
    "mlockall": ("memory_lock", "mlockall: Cannot allocate memory"),
    "memfd_create": ("telemetry", "Too many open files"),
    "ftruncate": ("telemetry", "Input/output error"),
    "mlock": ("not locked", "mlock: Cannot allocate memory"),
    "mprotect": ("stack_size", "Cannot allocate memory"),
    "pthread_create": ("pthread_create", "Resource temporarily unavailable"),
    "pthread_attr_setstack": ("pthread_create", "Invalid argument"),
    "sigaltstack": ("signal_stack",),
    "sched_setattr": ("policy", "sched_setattr: Operation not permitted"),
    "sched_getattr": ("policy", "sched_getattr"),
    "write": ("/dev/cpu_dma_latency", "Input/output error"),
    "pread": ("/dev/cpu_dma_latency", "Input/output error"),
}
#: Where a refusal may be of no consequence: advice, names, a second way, and a limit that need not be raised.
MAY_BE_REFUSED = {
    "madvise", "prctl", "fcntl", "mmap", "mincore", "open", "setrlimit", "sched_getaffinity", "sched_setaffinity",
    "capget",
}  # fmt: skip

#: Of a real-time loop that asks for everything, of one that locks its own memory, and of anybody's.
ALL = {"cpu": min(os.sched_getaffinity(0)), "core_dumps": False}
OWN = ALL | {"lock_memory": "own"}
PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None, "core_dumps": True}
BARE_CALLS = {
    "memfd_create", "ftruncate", "fcntl", "mmap", "mprotect", "madvise", "pthread_create", "sigaltstack", "prctl",
    "sched_getaffinity", "sched_setaffinity", "sched_setattr", "sched_getattr",
}  # fmt: skip
CALLS = BARE_CALLS | {"mlock", "open", "pread", "write", "setrlimit"}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory, compiler: list[str]) -> Path:
    """The library that makes calls fail."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    options = ["-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC", str(SUPPORT / "faults.c"), "-o", str(library), "-ldl"]
    subprocess.run([*compiler, *options], check=True)
    return library


def is_trial_of_a_lock(said: dict[str, Any]) -> bool:
    """Return whether the lock of a page was refused that only shows whether the kernel tells what is locked."""
    return bool(said["call"] == "mlock" and said["ok"] and not said["text"])


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "degraded"])
@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        pytest.param(ALL, CALLS | {"mlockall"}, marks=pytest.mark.rt, id="all"),
        pytest.param(OWN, CALLS, marks=pytest.mark.rt, id="own"),
        pytest.param(PLAIN, BARE_CALLS, id="plain"),
    ],
)
def test_every_call_of_a_start_fails_in_turn_and_nothing_stays(
    script: Script, faults: Path, settings: dict[str, Any], calls: set[str], strict: bool
) -> None:
    environment = {"LD_PRELOAD": str(faults), "SETTINGS": json.dumps(settings | {"strict": strict})}
    done = script(PROGRAM, env=environment, timeout=150)  # some hundred starts
    assert done.returncode == 0, done.stderr
    starts = [json.loads(line) for line in done.stdout.splitlines()]
    for said in starts:
        call = said["call"].removesuffix("64")
        assert said["left"] == {}, said
        assert said["state"] == "stopped", said
        assert said["ok"] or said["typed"], said
        if call not in MAY_BE_REFUSED and not is_trial_of_a_lock(said):
            assert all(word in said["text"] for word in SAYS[call]), said
            assert not (said["ok"] and strict), said
    assert sum(map(is_trial_of_a_lock, starts)) <= 2
    assert calls <= {said["call"].removesuffix("64") for said in starts}
