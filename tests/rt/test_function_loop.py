"""A step compiled by Numba keeps the real-time contract: no page fault, whatever Python does meanwhile."""

from __future__ import annotations

import ctypes
import errno
import threading
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop.memory.process_lock import memory_lock

pytestmark = pytest.mark.rt


def test_a_numba_pid_takes_no_page_fault_beside_a_thread_that_has_the_gil() -> None:
    numba = pytest.importorskip("numba")
    import rtloop.numba

    @numba.cfunc(rtloop.numba.signature)
    def pid(cycle: Any, data: Any) -> int:
        s = numba.carray(data, (4,), dtype=np.float64)  # target, position, integral, cycles
        dt = numba.carray(cycle, 1)[0].dt
        error = s[0] - s[1]
        s[2] += error * dt
        s[1] += (8.0 * error + 2.0 * s[2]) * dt
        s[3] += 1
        return rtloop.RT_CONTINUE

    stop = threading.Event()

    def hog() -> None:
        while not stop.is_set():
            blocks = [bytearray(1 << 20) for _ in range(8)]
            sum(len(block) for block in blocks)

    state = np.array([1.0, 0.0, 0.0, 0.0])
    thread = threading.Thread(target=hog)
    thread.start()
    try:
        loop = rtloop.FunctionLoop(pid, "1kHz", data=state)
        stats = loop.run(cycles=3000)
    finally:
        stop.set()
        thread.join()
    assert all(grant.ok for grant in loop.grants)
    assert {"data", "memory_lock"} <= {grant.name for grant in loop.grants}
    assert stats.page_faults == (0, 0)
    assert state[3] == stats.cycles == 3000
    assert state[1] == pytest.approx(1.0, abs=0.2)


def test_the_data_stays_present_while_the_loop_runs_and_is_unlocked_after_it() -> None:
    data = np.zeros(1 << 18)
    function = ctypes.CDLL(None).sched_yield  # takes no notice of arguments, and returns 0
    loop = rtloop.FunctionLoop(function, "1ms", data=data, lock_memory="own")
    before = rtloop.memory.status().locked_bytes
    loop.start()
    locked = rtloop.memory.status().locked_bytes
    loop.stop()
    assert locked - before >= data.nbytes
    assert rtloop.memory.status().locked_bytes == before


def test_what_the_user_has_locked_stays_locked_after_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.zeros(1 << 18)
    rtloop.memory.lock(data)
    before = rtloop.memory.status().locked_bytes
    loop = rtloop.FunctionLoop(ctypes.CDLL(None).sched_yield, "1ms", data=data, lock_memory="own", strict=False)
    loop.run(cycles=3)
    assert rtloop.memory.status().locked_bytes == before

    real = memory_lock.acquire_range

    def refuse(address: int, size: int, **options: Any) -> int:
        return -errno.ENOMEM if address == data.ctypes.data else real(address, size, **options)

    monkeypatch.setattr(memory_lock, "acquire_range", refuse)
    with pytest.warns(rtloop.RTSetupWarning, match="data: asked for 2 MiB, locked"):
        loop.run(cycles=3)
    assert rtloop.memory.status().locked_bytes == before
    rtloop.memory.unlock(data)
