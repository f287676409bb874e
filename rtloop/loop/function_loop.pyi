from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal

from rtloop.loop.loop import RTLoop

class FunctionLoop(RTLoop):
    @property
    def callback(self) -> Any: ...
    @property
    def data(self) -> Any: ...
    def __init__(
        self,
        callback: Any,
        period: int | str | timedelta,
        *,
        data: Any = None,
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
