"""Examination of the machine, and its isolation: the doctor, measured latencies, CPUs kept for a loop."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtloop.machine.isolation.isolation import Isolation, isolated

__all__ = ["Isolation", "isolated"]


def __getattr__(name: str) -> object:
    """Import the isolation when it is first used; the doctor does not need it."""
    if name not in __all__:
        raise AttributeError(f"module 'rtloop.machine' has no attribute {name!r}")
    from rtloop.machine.isolation import isolation

    return getattr(isolation, name)
