from collections.abc import Callable
from typing import Any, Unpack

from numpy.typing import NDArray

from rtloop.functions.fields import Fields, Tuning
from rtloop.loop.cycle import Cycle
from rtloop.loop.loop import RTLoop
from rtloop.settings import Duration, LoopKeywords

def is_gil_enabled() -> bool: ...

class PyLoop(RTLoop):
    @property
    def callable(self) -> Callable[[Cycle], int | None]: ...
    @property
    def data(self) -> NDArray[Any] | None: ...
    def __init__(
        self,
        callable: Callable[[Cycle], int | None],  # noqa: A002 - the name of the contract
        period: Duration,
        *,
        leave: Callable[[], object] | None = None,
        data: NDArray[Any] | None = None,
        parameters: Tuning = (),
        signals: Fields = (),
        **settings: Unpack[LoopKeywords],
    ) -> None: ...
