from datetime import timedelta
from typing import Self

class Sleep:
    def __new__(cls, timeout: int | str | timedelta | None) -> Self: ...
