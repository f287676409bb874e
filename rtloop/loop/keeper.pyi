from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

def look_with(function: Callable[[], bool]) -> None: ...
def shielded(function: Callable[[], _T]) -> _T: ...
