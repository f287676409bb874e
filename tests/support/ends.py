"""Programs with a running loop that a test ends: what they begin with, and whether leave() ran."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PROLOGUE = """
import asyncio, os, signal, sys, threading, time, warnings
import rtloop, probes
warnings.simplefilter("ignore")
PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None}
made = []
def make(period="1ms", leave_ns=50_000_000, **settings):
    loop = probes.Probe(period, **{**PLAIN, **settings})
    loop.says_leave, loop.leave_ns = True, leave_ns
    made.append(loop)
    return loop
def send(*signals, after=0.3, every=0.2):
    def work():
        # On a busy machine the loops may take long to start, and this thread to wake; those that never start are
        # waited for in vain.
        deadline = time.monotonic() + 15
        for _ in range(2000):
            if made and all(loop.stats.cycles for loop in list(made)) or time.monotonic() > deadline:
                break
            time.sleep(0.001)
        time.sleep(after)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(every)
    threading.Thread(target=work, daemon=True).start()
def alive(loop):
    while loop.stats.cycles < 5:
        time.sleep(0.001)
"""


def run(script: Script, code: str, **options: object) -> subprocess.CompletedProcess[str]:
    lines = [line[4:] if line.startswith("    ") else line for line in code.splitlines()]
    return script(PROLOGUE + "\n".join(lines), timeout=30, **options)


def left_once(done: subprocess.CompletedProcess[str], loops: int = 1) -> bool:
    """Return True if leave() of each loop was called once, and returned."""
    said = done.stderr.split("\n")
    return said.count("leaving") == said.count("off") == loops
