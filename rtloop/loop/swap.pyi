from collections.abc import Callable
from typing import Any

from rtloop.live.parameter_set import ParameterSet
from rtloop.loop.lifecycle import Control

_Trial = tuple[int, tuple[str, ...]]

class StepChange:
    outcome: str | None
    cycle: int
    code: int
    trial: _Trial | None
    is_on_trial: bool
    def __init__(
        self,
        control: Control,
        owner: Any,
        successor: Any,
        own: Control,
        hand_over: Callable[[Any, Control], None],
        acting: Callable[[Any, Control, Control], tuple[Any, int]],
        keep: str = "all",
        trial: _Trial | None = None,
    ) -> None: ...
    @property
    def former_parameters(self) -> ParameterSet | None: ...
    def catch_up(self) -> None: ...
    def stage(self) -> None: ...
    def drop(self) -> None: ...
    def ask(self) -> None: ...
    def settle(self, must_answer: bool = False) -> None: ...
    def withdraw(self, outcome: str = "withdrawn") -> None: ...
    def finish(self) -> None: ...

def give_back(
    loop: Any, own: Control, hand_over: Callable[[Any, Control], None], is_releasing: bool = True
) -> None: ...
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
    trial: tuple[Any, Any] = (None, ()),
) -> int: ...
def check_no_change(control: Control) -> None: ...
def parse_trial(control: Control, trial: Any, revert_on: Any) -> _Trial | None: ...
def begin(
    control: Control,
    owner: Any,
    successor: Any,
    own: Control,
    hand_over: Callable[[Any, Control], None],
    acting: Callable[[Any, Control, Control], tuple[Any, int]],
    populate: Callable[[Any], None],
    keep: str = "all",
    trial: _Trial | None = None,
) -> StepChange: ...
def check_agreement(control: Control, own: Control) -> None: ...
def conclude(change: StepChange) -> int: ...
