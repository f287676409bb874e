"""Exceptions of another process: sent as bytes and text, and raised in this one with their traceback."""

from __future__ import annotations

import os
import pickle
import traceback
from types import TracebackType
from typing import NamedTuple

from rtloop.child.channel import loads
from rtloop.errors import RtloopError
from rtloop.loop.outcome.failure import add_note

__all__ = ["CarriedError", "RemoteTracebackError", "carry", "restore"]

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class RemoteTracebackError(Exception):
    """Traceback of an exception in the process of a loop, as text: the cause of the exception raised here."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class CarriedError(NamedTuple):
    """Exception in a message: pickled, or None if impossible; its type and message; its traceback if that is useful."""

    pickled: bytes | None
    brief: str
    text: str


def carry(error: BaseException) -> CarriedError:
    """Prepare an exception for a message."""
    trace = _without_own_frames(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, trace))
    if isinstance(error, RtloopError) and (trace is None or _is_own(trace)):
        text = ""  # one of rtloop's own, whose message is complete
    brief = "".join(traceback.format_exception_only(type(error), error)).strip()
    try:
        pickled = pickle.dumps(error)
    except Exception:
        pickled = None
    return CarriedError(pickled, brief, text)


def _without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of rtloop that come before those of the program."""
    while trace is not None and trace.tb_next is not None and _is_own(trace):
        trace = trace.tb_next
    return trace


def _is_own(trace: TracebackType) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return file.startswith(_PACKAGE) or (file.startswith("rtloop/") and file.endswith(".pyx"))


def restore(carried: CarriedError, name: str) -> BaseException:
    """Return the exception. Its cause contains the traceback of the other process.

    An exception that cannot be pickled or unpickled becomes an RtloopError with its type and message.
    """
    error: object = None
    if carried.pickled is not None:
        try:
            error = loads(carried.pickled)
        except Exception:
            error = None
    if not isinstance(error, BaseException):
        error = RtloopError(f"{name}: {carried.brief}")
        add_note(error, "This exception of the loop's process cannot be pickled, so it has another type here.")
    if carried.text:
        error.__cause__ = RemoteTracebackError(carried.text)
    return error
