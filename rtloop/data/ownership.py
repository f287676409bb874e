"""Ownership of the two ends of an exchange: a ring has one consumer, a Latest one writer."""

from __future__ import annotations

import weakref
from typing import Any

from rtloop.errors import StateError

__all__ = ["claim_reader", "claim_writer", "release_reader", "release_writer"]

_consumed: weakref.WeakSet[Any] = weakref.WeakSet()
_written: weakref.WeakSet[Any] = weakref.WeakSet()


def claim_reader(ring: Any) -> None:
    """Become the one consumer of a ring.

    Raises
    ------
    StateError
        If another recorder or bridge is its consumer.
    """
    if ring in _consumed:
        raise StateError(f"{ring!r} is already being recorded: a ring has one consumer")
    _consumed.add(ring)


def release_reader(ring: Any) -> None:
    """Stop being the consumer of a ring. Does nothing if nobody has claimed it."""
    _consumed.discard(ring)


def claim_writer(latest: Any) -> None:
    """Become the one writer of a Latest.

    Raises
    ------
    StateError
        If another bridge is its writer.
    """
    if latest in _written:
        raise StateError(f"{latest!r} is already being written: a Latest has one writer")
    _written.add(latest)


def release_writer(latest: Any) -> None:
    """Stop being the writer of a Latest. Does nothing if nobody has claimed it."""
    _written.discard(latest)
