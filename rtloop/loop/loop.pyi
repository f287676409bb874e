from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rtloop.loop.cycle import Cycle
from rtloop.settings import Settings
from rtloop.stats.stats import Stats
from rtloop.system.grant import Grant

_Duration = int | str | timedelta
_Model = _Duration | Sequence[_Duration] | NDArray[np.integer[Any]] | Stats | Callable[[int], _Duration]

class RTLoop:
    def __init__(
        self,
        period: int | str | timedelta,
        *,
        phase: int | str | timedelta = 0,
        align: int | str | timedelta | None = None,
        clock: Literal["monotonic", "boottime", "tai", "realtime"] = "monotonic",
        policy: Literal["fifo", "rr", "other", "deadline"] = "fifo",
        priority: int = 80,
        runtime: int | str | timedelta | None = None,
        deadline: int | str | timedelta | None = None,
        cpu: Literal["auto"] | int | Iterable[int] | None = "auto",
        spin: int | str | timedelta = 0,
        overrun: Literal["skip", "catch-up", "shift", "stop"] = "skip",
        max_burst: int = 8,
        max_overruns: int | None = None,
        warmup: int = 10,
        strict: bool = True,
        lock_memory: Literal["all", "onfault", "own", "off"] = "all",
        stack_size: int | str = "512K",
        tune_malloc: bool = False,
        core_dumps: bool = True,
        dma_latency: int | str | timedelta | None = 0,
        flush_denormals: bool = False,
        guard: Literal["off", "count", "stop"] = "off",
        guard_allow: Iterable[str] = (),
        record: int = 65536,
        name: str | None = None,
    ) -> None: ...
    def setup(self) -> None: ...
    def start(self) -> None: ...
    def stop(self, timeout: int | str | timedelta = "2s") -> None: ...
    def join(self, timeout: int | str | timedelta | None = None) -> bool: ...
    def run(self, duration: int | str | timedelta | None = None, cycles: int | None = None) -> Stats: ...
    def simulate(
        self,
        duration: int | str | timedelta | None = None,
        cycles: int | None = None,
        *,
        execution: _Model | Mapping[RTLoop, _Model] = 0,
        latency: _Model | Mapping[RTLoop, _Model] = 0,
        plant: RTLoop | Callable[[Cycle], int | None] | None = None,
    ) -> Stats: ...
    def reset_stats(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    @property
    def state(self) -> Literal["new", "running", "stopped", "failed"]: ...
    @property
    def stats(self) -> Stats: ...
    @property
    def grants(self) -> tuple[Grant, ...]: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def name(self) -> str: ...
