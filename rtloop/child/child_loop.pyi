from collections.abc import Callable
from typing import Any, Unpack

from numpy.typing import NDArray

from rtloop.child.child_process import Membership
from rtloop.child.slack_collector import SlackCollector
from rtloop.functions.fields import Fields, Tuning
from rtloop.functions.python_loop import PyLoop
from rtloop.loop.cycle import Cycle
from rtloop.settings import Duration, LoopKeywords

class ChildLoop(PyLoop):
    def __init__(
        self,
        callable: Callable[[Cycle], int | None],  # noqa: A002 - the name of the contract
        period: Duration,
        *,
        leave: Callable[[], object] | None = None,
        collector: SlackCollector | None = None,
        data: NDArray[Any] | None = None,
        parameters: Tuning = (),
        signals: Fields = (),
        **settings: Unpack[LoopKeywords],
    ) -> None: ...
    def prepare(self, cycles: int | None, duration_ns: int | None, membership: Membership | None = None) -> None: ...
    def note_reported(self) -> None: ...
    def await_trip(self) -> bool: ...
    def is_tripped(self) -> bool: ...
    def note_safe(self, code: int) -> None: ...
    def release(self) -> None: ...
    def withdraw(self) -> None: ...
    def request_stop(self) -> None: ...
