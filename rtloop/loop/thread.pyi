from typing import Any

from rtloop.loop.settings import Settings
from rtloop.system.grant import Grant

class ThreadHolder:
    @property
    def settings(self) -> Settings: ...
    @property
    def grants(self) -> tuple[Grant, ...]: ...
    def trip(self) -> dict[str, Any] | None: ...
