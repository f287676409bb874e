from collections.abc import Callable
from typing import Unpack

from rtloop.loop.cycle import Cycle
from rtloop.loop.loop import RTLoop
from rtloop.settings import Duration, LoopKeywords

class PyLoop(RTLoop):
    @property
    def callable(self) -> Callable[[Cycle], int | None]: ...
    def __init__(
        self,
        callable: Callable[[Cycle], int | None],  # noqa: A002 - the name of the contract
        period: Duration,
        **settings: Unpack[LoopKeywords],
    ) -> None: ...
