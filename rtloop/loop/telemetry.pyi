from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtloop.data.histogram import Histogram

record_dtype: np.dtype[Any]

class Snapshot(NamedTuple):
    counters: dict[str, Any]
    histograms: tuple[Histogram, ...]
    records: NDArray[Any]

class TelemetryBlock:
    @property
    def size(self) -> int: ...
    @property
    def fd(self) -> int: ...
    def __init__(self, name: str, record: int) -> None: ...
    def lock(self) -> int: ...
    def close(self) -> None: ...
    def reset_idle_bank(self) -> None: ...
    def snapshot(self, *, records: bool = True) -> Snapshot: ...
