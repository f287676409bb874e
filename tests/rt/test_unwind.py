"""A start that fails half-way releases everything, whichever step fails, and however often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rtloop
from rtloop import RTLoop
from rtloop.loop import dma_latency, resources, scheduling
from rtloop.memory import process_lock

pytestmark = pytest.mark.rt


DEVICE = "/dev/cpu_dma_latency"


class InjectedError(RuntimeError):
    """What the tests make fail."""


STEPS = [
    (resources, "process_wide"),
    (scheduling, "rt_bandwidth"),
    (resources, "telemetry"),
    (resources, "own_grant"),
    (dma_latency, "acquire"),
    (scheduling, "thread_grants"),
]


@pytest.mark.parametrize(("module", "step"), STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_step_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str, when: str, account: Callable[[], dict[str, Any]]
) -> None:
    RTLoop("1ms", core_dumps=False).run(cycles=3)
    loop = RTLoop("1ms", core_dumps=False)
    before = account()
    real = getattr(module, step)

    def failing(*arguments: Any) -> Any:
        if when == "after":
            list(real(*arguments)) if step == "process_wide" else real(*arguments)
        raise InjectedError(step)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, failing)
        for _ in range(3):
            with pytest.raises(InjectedError) as caught:
                loop.start()
            assert account() == before, "while its traceback still exists, too"
            assert caught.tb is not None
            assert loop.state == "new"
    assert loop.run(cycles=3).cycles == 3, "and a retry works"
    assert account() == before


def test_each_lock_of_a_range_that_is_refused_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, account: Callable[[], dict[str, Any]]
) -> None:
    RTLoop("1ms", lock_memory="own").run(cycles=3)
    before = account()
    real = process_lock.memory_lock.acquire_range
    for refused in range(4):
        calls = iter(range(100))

        def acquire_range(*range_: int, refused: int = refused, calls: Any = calls, **options: Any) -> int:
            return -12 if next(calls) == refused else real(*range_, **options)

        with monkeypatch.context() as patch:
            patch.setattr(process_lock.memory_lock, "acquire_range", acquire_range)
            with pytest.raises(rtloop.MemoryLockError, match="mlock: Cannot allocate memory"):
                RTLoop("1ms", lock_memory="own").start()
        assert account() == before


def test_a_start_with_many_refusals_checks_all_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, account: Callable[[], dict[str, Any]]
) -> None:
    RTLoop("1ms", core_dumps=False).run(cycles=3)
    loop = RTLoop("1ms", cpu=4095, spin="970us", core_dumps=False)
    before = account()
    runtime, period = (int(Path(f"/proc/sys/kernel/sched_rt_{name}_us").read_text()) for name in ("runtime", "period"))
    # The default of newer kernels is the whole period.
    refused = ["rt_bandwidth"] if 0 <= runtime <= 0.97 * period else []
    with monkeypatch.context() as patch:
        patch.setattr(process_lock.memory_lock, "acquire_range", lambda *_, **__: -12)
        for _ in range(3):
            with pytest.raises(rtloop.SetupError) as caught:
                loop.start()
            names = [grant.name for grant in caught.value.refused]
            assert names == [*refused, "telemetry", "state", "stack", "cpu"]
            assert str(caught.value).startswith("[Errno") == (not refused), "of the first of them, if it is a call"
            assert account() == before and loop.state == "new"


def test_a_warning_that_is_an_error_leaves_nothing(probes: ModuleType, account: Callable[[], dict[str, Any]]) -> None:
    import warnings

    RTLoop("1ms").run(cycles=3)
    before = account()
    loop = probes.Probe("1ms", cpu=4095, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="degraded"):
            loop.start()
    assert account() == before and loop.enters == 0
