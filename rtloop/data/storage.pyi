import os
from typing import Self

from rtloop.sharing.exchange_file import ExchangeFile
from rtloop.sharing.waiting import Notifier
from rtloop.system.grant import Grant

class Storage:
    backing: str
    notifier: Notifier | None
    grant: Grant | None
    ends: tuple[str, str] | None
    def __new__(cls, size: int, what: str) -> Self: ...
    def __del__(self) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def is_locked(self) -> bool: ...

class SharedStorage:
    backing: str
    notifier: Notifier | None
    file: ExchangeFile
    grant: Grant | None
    ends: tuple[str, str] | None
    def __new__(cls, file: ExchangeFile) -> Self: ...
    def __del__(self) -> None: ...
    @property
    def is_locked(self) -> bool: ...
    def forget_after_fork(self) -> None: ...

def warn_unlocked(storage: Storage | SharedStorage | HugeStorage, text: str) -> None: ...

class HugeStorage:
    address: int
    backing: str
    grant: None
    ends: tuple[str, str] | None
    def __init__(self, size: int, backing: str | os.PathLike[str]) -> None: ...
    @property
    def is_locked(self) -> bool: ...
