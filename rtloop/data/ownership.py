"""Who takes out of a ring, and who writes a value: one each."""

from __future__ import annotations

import weakref
from typing import Any

from rtloop.errors import StateError

__all__ = ["claim_reader", "claim_writer", "release_reader", "release_writer"]

_read: weakref.WeakSet[Any] = weakref.WeakSet()
_written: weakref.WeakSet[Any] = weakref.WeakSet()


def claim_reader(ring: Any) -> None:
    """Become the one that takes items out of a ring.

    Raises
    ------
    StateError
        Where another recorder or bridge does.
    """
    if ring in _read:
        raise StateError(f"{ring!r} is being recorded already: a ring has one consumer")
    _read.add(ring)


def release_reader(ring: Any) -> None:
    """Leave the ring to others. Does nothing where nobody has claimed it."""
    _read.discard(ring)


def claim_writer(latest: Any) -> None:
    """Become the one that writes a Latest.

    Raises
    ------
    StateError
        Where another bridge does.
    """
    if latest in _written:
        raise StateError(f"{latest!r} is being written already: a Latest has one writer")
    _written.add(latest)


def release_writer(latest: Any) -> None:
    """Leave the value to others. Does nothing where nobody has claimed it."""
    _written.discard(latest)
