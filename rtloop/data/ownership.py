"""Ownership of the two ends of an exchange: a ring has one consumer, a Latest one writer."""

from __future__ import annotations

import weakref
from typing import Any

from rtloop.errors import StateError

__all__ = ["claim_reader", "claim_writer", "release_reader", "release_writer"]

# The owner's token of each exchange. setdefault() is atomic, so that of several threads one becomes the owner.
_consumed: weakref.WeakKeyDictionary[Any, object] = weakref.WeakKeyDictionary()
_written: weakref.WeakKeyDictionary[Any, object] = weakref.WeakKeyDictionary()


def claim_reader(ring: Any) -> None:
    """Become the one consumer of a ring.

    Raises
    ------
    StateError
        If another recorder or bridge is its consumer.
    """
    token = object()
    if _consumed.setdefault(ring, token) is not token:
        raise StateError(f"{ring!r} is already being recorded: a ring has one consumer")


def release_reader(ring: Any) -> None:
    """Stop being the consumer of a ring. Does nothing if nobody has claimed it."""
    _consumed.pop(ring, None)


def claim_writer(latest: Any) -> None:
    """Become the one writer of a Latest.

    Raises
    ------
    StateError
        If another bridge is its writer.
    """
    token = object()
    if _written.setdefault(latest, token) is not token:
        raise StateError(f"{latest!r} is already being written: a Latest has one writer")


def release_writer(latest: Any) -> None:
    """Stop being the writer of a Latest. Does nothing if nobody has claimed it."""
    _written.pop(latest, None)
