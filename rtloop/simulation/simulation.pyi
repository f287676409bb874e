from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtloop.loop.cycle import Cycle
from rtloop.loop.loop import RTLoop
from rtloop.stats.figures import ParameterChange
from rtloop.stats.stats import Stats

_Duration = int | str | timedelta
_Model = _Duration | Sequence[_Duration] | NDArray[np.integer[Any]] | Stats | Callable[[int], _Duration]

def simulate_loop(
    loop: RTLoop,
    duration: _Duration | None,
    cycles: int | None,
    execution: _Model | Mapping[RTLoop, _Model] = 0,
    latency: _Model | Mapping[RTLoop, _Model] = 0,
    plant: RTLoop | Callable[[Cycle], int | None] | None = None,
    parameters: Iterable[ParameterChange] | None = None,
    swaps: Mapping[int, RTLoop] | None = None,
    trial: tuple[_Duration | None, Sequence[str]] = (None, ()),
    keep: str = "all",
) -> Stats: ...
def simulate(
    loops: Iterable[RTLoop],
    duration: _Duration | None = None,
    *,
    execution: _Model | Mapping[RTLoop, _Model] = 0,
    latency: _Model | Mapping[RTLoop, _Model] = 0,
    parameters: Mapping[RTLoop, Iterable[ParameterChange]] | None = None,
) -> tuple[Stats, ...]: ...
