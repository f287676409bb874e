from collections.abc import Iterable, Sequence
from typing import NamedTuple

class RawViolation(NamedTuple):
    cycle: int
    last_cycle: int
    times: int
    time_ns: int
    last_time_ns: int
    kind: int
    detail: int
    least: int
    most: int
    function: int
    frames: tuple[int, ...]

class GuardBlock:
    migrated: int
    moved: int | None
    def __init__(
        self, *, is_stopping: bool, warmup: int, allowed: Iterable[int], code: Sequence[tuple[int, int, bool]]
    ) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    def register(self, low: int, size: int) -> int: ...
    @property
    def faults_are_sampled(self) -> bool | None: ...
    @property
    def results(self) -> tuple[int, int, int]: ...
    def violations(self) -> list[RawViolation]: ...
    @property
    def unkept(self) -> tuple[int, ...]: ...
    def close(self) -> None: ...

def is_malloc_watched() -> bool: ...
def has_signal() -> bool: ...
