from collections.abc import Callable
from typing import Any

from rtloop.loop.lifecycle import Control

class StepChange:
    outcome: str | None
    cycle: int
    code: int
    def __init__(
        self,
        control: Control,
        owner: Any,
        successor: Any,
        own: Control,
        hand_over: Callable[[Any, Control], None],
        acting: Callable[[Any, Control, Control], tuple[Any, int]],
        keep: str = "all",
    ) -> None: ...
    def stage(self) -> None: ...
    def ask(self) -> None: ...
    def settle(self, must_answer: bool = False) -> None: ...
    def withdraw(self, outcome: str = "withdrawn") -> None: ...
    def finish(self) -> None: ...

def give_back(loop: Any, own: Control, hand_over: Callable[[Any, Control], None]) -> None: ...
def remember(control: Control) -> tuple[Any, Any, Any, tuple[Any, ...]]: ...
def restore(
    control: Control, remembered: tuple[Any, Any, Any, tuple[Any, ...]], hand_over: Callable[[Any, Control], None]
) -> None: ...
def name_of(loop: Any) -> str: ...
def swap(
    control: Control,
    owner: Any,
    successor: Any,
    own: Control,
    hand_over: Callable[[Any, Control], None],
    acting: Callable[[Any, Control, Control], tuple[Any, int]],
    populate: Callable[[Any], None],
    timeout_ns: int,
    keep: str = "all",
) -> int: ...
def begin(
    control: Control,
    owner: Any,
    successor: Any,
    own: Control,
    hand_over: Callable[[Any, Control], None],
    acting: Callable[[Any, Control, Control], tuple[Any, int]],
    populate: Callable[[Any], None],
    keep: str = "all",
) -> StepChange: ...
def check_agreement(control: Control, own: Control) -> None: ...
def conclude(change: StepChange) -> int: ...
