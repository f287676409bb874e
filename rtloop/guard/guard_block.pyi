from collections.abc import Iterable, Sequence
from typing import NamedTuple

class RawViolation(NamedTuple):
    cycle: int
    time_ns: int
    kind: int
    detail: int
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
    def close(self) -> None: ...

def is_malloc_watched() -> bool: ...
