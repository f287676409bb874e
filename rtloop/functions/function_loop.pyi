from typing import Any, Unpack

from rtloop.functions.fields import Fields, Tuning
from rtloop.loop.loop import RTLoop
from rtloop.settings import Duration, LoopKeywords

class FunctionLoop(RTLoop):
    @property
    def callback(self) -> Any: ...
    @property
    def data(self) -> Any: ...
    def __init__(
        self,
        callback: Any,
        period: Duration,
        *,
        enter: Any = None,
        leave: Any = None,
        data: Any = None,
        parameters: Tuning = (),
        signals: Fields = (),
        **settings: Unpack[LoopKeywords],
    ) -> None: ...
