"""What a type checker says of programs that use rtloop: read by mypy in `make lint`, never run.

Each right use has its type; each wrong one has to be an error: an `ignore` that is not needed fails, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, assert_type

import numpy as np
from numpy.typing import NDArray

import rtloop
from rtloop import (
    Cycle,
    FunctionLoop,
    Grant,
    Histogram,
    HugeBuffer,
    Latest,
    LoopGroup,
    LoopReader,
    Pool,
    ProcessLoop,
    PyLoop,
    Recorder,
    Ring,
    RTLoop,
    Stats,
)
from rtloop.pytest import Run, Simulate, assert_clean
from rtloop.settings import LoopKeywords


def a_group() -> None:
    group = LoopGroup([RTLoop("1kHz"), PyLoop(print, "10ms")], priorities="as-given", cpus=[2, None], align="1s")
    LoopGroup([RTLoop("1kHz"), rtloop.ProcessLoop("a:b", "10ms")], on_failure="hook", watchdog=5)
    LoopGroup([RTLoop("1kHz")], watchdog="200ms")
    LoopGroup([RTLoop("1kHz")], watchdog=0.2)  # type: ignore[arg-type]
    assert_type(group.run("10s"), Mapping[str, Stats])
    assert_type(group.loops, tuple[RTLoop | rtloop.ProcessLoop, ...])
    assert_type(group.state, Literal["new", "running", "stopped", "failed"])
    assert_type(group.hyperperiod_ns, int)
    with group as same:
        assert_type(same.wait("1s"), bool)
    group.stats["fast"] = group.loops[0].stats  # type: ignore[index]


def a_loop() -> None:
    loop = RTLoop("1kHz", cpu=3, priority=90, spin="20us", policy="fifo", overrun="catch-up", name="arm")
    RTLoop(1_000_000, cpu=[0, 1], align=timedelta(seconds=1), lock_memory="own", dma_latency=None, guard="count")
    assert_type(loop.run("10s"), Stats)
    assert_type(loop.run(cycles=1000), Stats)
    assert_type(loop.state, Literal["new", "running", "stopped", "failed"])
    assert_type(loop.grants, tuple[Grant, ...])
    assert_type(loop.join("1s"), bool)
    with loop as entered:
        assert_type(entered, RTLoop)

    RTLoop()  # type: ignore[call-arg]
    RTLoop(1e-3)  # type: ignore[arg-type]
    RTLoop("1kHz", "fifo")  # type: ignore[call-arg]
    RTLoop("1kHz", policy="FIFO")  # type: ignore[arg-type]
    RTLoop("1kHz", overrun="drop")  # type: ignore[arg-type]
    RTLoop("1kHz", prio=80)  # type: ignore[call-arg]
    RTLoop("1kHz", cpu="3")  # type: ignore[arg-type]
    loop.state = "running"  # type: ignore[misc]
    loop.run(duration=1.5)  # type: ignore[arg-type]
    loop.stop(None)  # type: ignore[arg-type]


def its_stats(stats: Stats) -> None:
    assert_type(stats.cycles, int)
    assert_type(stats.latency, Histogram)
    assert_type(stats.latency.percentile(99.9), float)
    assert_type(stats.latency.percentile([50, 99]), NDArray[np.float64])
    assert_type(stats.page_faults.minor, int | None)
    assert_type(stats.worst(3), NDArray[Any])
    assert_type(stats.save("run"), Path)
    assert_type(Stats.load(Path("run.npz")), Stats)
    assert_type(stats.guard_sentence, str)

    stats.cycles = 3  # type: ignore[misc]
    stats.latency.percentile("99")  # type: ignore[arg-type]
    stats.plot(3)  # type: ignore[arg-type]


def functions(address: int) -> None:
    def step(cycle: Cycle) -> int | None:
        assert_type(cycle.index, int)
        assert_type(cycle.dt, float)
        return rtloop.RT_CONTINUE

    assert_type(PyLoop(step, "100Hz").run("1s"), Stats)
    assert_type(FunctionLoop(address, "1kHz", data=np.zeros(3), strict=False).stats, Stats)
    FunctionLoop(address, "1kHz", enter=address, leave=address)
    PyLoop(lambda: 0, "100Hz")  # type: ignore[misc, arg-type]
    PyLoop("100Hz", step)  # type: ignore[arg-type]
    apart = ProcessLoop("control:step", "100Hz", setup="control:setup", leave=print, data={"kp": 2}, priority=70)
    assert_type(apart.run("1s"), Stats)
    assert_type(apart.join("1s"), bool)
    assert_type(apart.pid, int | None)
    ProcessLoop("control:step", "100Hz", safe="control:brake")
    Latest("f8", share="/run/arm/setpoint", mode=0o660)
    Ring("f8", 100, share="@arm/log", mode="0o660")  # type: ignore[arg-type]
    ProcessLoop("control:step", "100Hz", prio=70)  # type: ignore[call-arg]


def simulations(loop: RTLoop, plant: RTLoop) -> None:
    assert_type(loop.simulate("1h", latency="30us", execution=[1000, 2000], plant=plant), Stats)
    loop.simulate(cycles=10, latency={loop: 3000, plant: np.arange(3)}, plant=lambda cycle: None)
    loop.simulate("1s", "30us")  # type: ignore[arg-type]
    loop.simulate("1s", plant="motor")  # type: ignore[arg-type]


def exchanges() -> None:
    ring, latest = Ring([("t", "f8"), ("x", "f4", 3)], 1000), Latest("f8")
    assert_type(ring.push((0.0, [1, 2, 3])), int)
    assert_type(ring.drain(), NDArray[Any])
    with ring.view() as items:
        assert_type(items, NDArray[Any])
    with Recorder(ring, "run.npy", interval="10ms") as recorder:
        assert_type(recorder.written, int)
        assert_type(recorder.error, Exception | None)
    latest.write(1.5)
    Ring("f8")  # type: ignore[call-arg]
    Ring("f8", 8, when_full="block")  # type: ignore[arg-type]
    Recorder([1, 2], "run.npy")  # type: ignore[arg-type]


def memory() -> None:
    pool = Pool(256, 100, kind="shared")
    assert_type(pool.in_use, int)
    with pool.block(dtype="f8") as block:
        assert_type(block, NDArray[Any])
    assert_type(HugeBuffer("2M").array("f8"), NDArray[Any])
    assert_type(rtloop.memory.status().locked_bytes, int)
    Pool(256, 100, kind="fast")  # type: ignore[arg-type]


def others() -> None:
    assert_type(rtloop.attach(name="arm"), Stats)
    assert_type(rtloop.running(), list[LoopReader])
    assert_type(rtloop.build("servo.pyx"), ModuleType)
    rtloop.attach("arm")  # type: ignore[arg-type]


def a_test(rt_run: Run, rt_simulate: Simulate, loop: RTLoop) -> None:
    assert_type(assert_clean(rt_run(loop, "300ms"), missed=0), str)
    assert_type(rt_simulate(loop, "5s", latency="1us"), Stats)
    rt_run("300ms", loop)  # type: ignore[arg-type]


def keywords() -> None:
    settings: LoopKeywords = {"cpu": 1, "clock": "tai", "lock_memory": "own"}
    RTLoop("1kHz", **settings)
    LoopKeywords(clock="sundial")  # type: ignore[typeddict-item]
    PyLoop(print, "10ms", rate="1kHz")  # type: ignore[call-arg]
