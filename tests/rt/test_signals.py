"""Signals of a loop at 1 kHz with readers in other processes, one of which is killed again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rtloop

pytestmark = pytest.mark.rt

READER = """
import sys, time
import numpy as np
import rtloop

with rtloop.connect(sys.argv[1], int(sys.argv[2])) as loop:
    reader = loop.signals.reader("begin")
    print("ready", flush=True)
    received, is_whole, is_last = 0, True, False
    while not is_last:
        is_last = loop.state != "running"
        records = reader.read()
        number = records["number"]
        is_whole &= bool(np.all(records["inverse"] == ~number) and np.all(records["third"][:, 2] == number + 2))
        received += len(records)
        time.sleep(float(sys.argv[3]))
    print(received, reader.lost, is_whole, flush=True)
"""


def start(name: str, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", READER, name, str(os.getpid()), str(pause)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_readers_that_come_and_die_change_nothing_for_the_loop(signalled: ModuleType) -> None:
    """Each reader receives or counts every sample; those that are killed leave no trace."""
    loop = signalled.Counting("1kHz", name=f"signals-{os.getpid()}", signals_capacity=255, guard="count")
    seed = random.Random(5)
    with loop:
        readers = [start(loop.name, pause) for pause in (0.001, 0.4)]  # the second comes too late for most
        for _ in range(4):
            victim = start(loop.name, 0.0)
            victim.send_signal(signal.SIGSTOP if seed.random() < 0.3 else signal.SIGCONT)
            victim.kill()
            victim.wait()
            assert victim.stdout is not None
            victim.stdout.close()
        loop.stop()
        written = loop.signals.written
        results = [reader.communicate(timeout=60)[0].split() for reader in readers]
    stats = loop.stats
    assert written == stats.cycles and stats.page_faults.minor + stats.page_faults.major == 0
    assert stats.guard is not None and not stats.guard["violations"]
    for received, lost, is_whole in results:
        assert int(received) + int(lost) == written and is_whole == "True"
    assert int(results[1][1]) > 0, "a slow reader has lost some, and knows how many"
    own = loop.signals.read()
    assert len(own) + loop.signals.lost == written and np.all(own["inverse"] == ~own["number"])
    assert {"signals", "sampler"} <= {grant.name for grant in loop.grants if grant.ok}


def test_a_foreign_reader_cannot_write_the_block(signalled: ModuleType) -> None:
    loop = signalled.Counting("1kHz", name=f"sealed-{os.getpid()}")
    with loop:
        (reader,) = rtloop.running(os.getpid(), loop.name)
        block = next(
            path for path in Path("/proc/self/fd").iterdir()
            if path.exists() and path.stat().st_ino == reader.blocks["signals"]
        )  # fmt: skip
        with block.open("rb+", buffering=0) as file, pytest.raises(PermissionError):
            file.write(b"x")
        with pytest.raises(PermissionError):
            os.truncate(block, 0)
        reader.close()
