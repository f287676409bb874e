from typing import Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike

from rtloop.data.exchange.exchange import Exchange

class Latest(Exchange):
    def __init__(
        self,
        dtype: DTypeLike,
        *,
        clock: Literal["monotonic", "boottime", "tai", "realtime"] = "monotonic",
        share: str | None = None,
        role: Literal["writer", "reader"] = "writer",
        readers: int = 1,
        mode: int = 0o600,
    ) -> None: ...
    @classmethod
    def open(
        cls, name: str, role: Literal["reader", "writer"] = "reader", *, dtype: DTypeLike | None = None
    ) -> Self: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def clock(self) -> str: ...
    @property
    def age_ns(self) -> int | None: ...
    @property
    def is_new(self) -> bool: ...
    @property
    def written(self) -> int: ...
    def write(self, value: Any) -> None: ...
    def read(self) -> Any: ...
