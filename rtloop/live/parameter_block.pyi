from collections.abc import Sequence
from typing import NamedTuple

from rtloop.live.declared_parameters import Parameter

MOST: int
MOST_BYTES: int

class Writer(NamedTuple):
    pid: int
    tid: int
    time_ns: int
    host: str
    program: str

class Asked(NamedTuple):
    number: int
    values: bytes
    writer: Writer

class Used(NamedTuple):
    number: int
    cycle: int
    refused: int
    values: bytes

class ParameterView:
    @property
    def size(self) -> int: ...
    @property
    def fd(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def has_ended(self) -> bool: ...
    def publish(self, values: bytes, writer: Writer) -> None: ...
    def asked(self) -> Asked: ...
    def used(self) -> Used: ...
    def close(self) -> None: ...

class ForeignParameters(ParameterView):
    def __init__(self, fd: int, size: int, is_writable: bool, name: str) -> None: ...
    @property
    def set_bytes(self) -> int: ...
    def text(self) -> bytes: ...

class ParameterRun(ParameterView):
    def __init__(
        self,
        items: Sequence[tuple[Parameter, int]],
        values: bytes,
        writer: Writer,
        text: bytes,
        name: str,
        *,
        is_shared: bool,
        is_tunable: bool,
        is_later: bool,
    ) -> None: ...
    @property
    def inode(self) -> int | None: ...
    @property
    def is_wiped(self) -> bool: ...
    @property
    def own_bytes(self) -> int: ...
    @property
    def ranges(self) -> tuple[tuple[int, int], tuple[int, int]]: ...
    def attach(self, live: int) -> None: ...
    def is_sound(self, values: bytes) -> bool: ...
    def records(self) -> tuple[list[tuple[int, Writer, bytes]], int]: ...
    def end(self) -> None: ...

def pack_place(writer: Writer, values: bytes) -> bytes: ...
def assign(address: int, value: bytes) -> None: ...
