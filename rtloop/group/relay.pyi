from collections.abc import Sequence

from rtloop.child.child_member import ChildMember

class Relay:
    def __init__(self, members: Sequence[ChildMember], priority: int | None) -> None: ...
    def wait(self, timeout_ns: int) -> bool: ...
