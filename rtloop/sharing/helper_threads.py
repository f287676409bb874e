"""Threads of exchanges, next to those of the program: of ordinary priority, on all CPUs, and with signals blocked."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from rtloop.errors import SetupError
from rtloop.process.signal_shield import become_ordinary, block_signals, start_thread
from rtloop.system.refusal_cause import describe_thread_failure

__all__ = ["start_helper"]

_STACK_BYTES = 256 * 1024


def start_helper(function: Callable[..., object], arguments: tuple[Any, ...], what: str) -> None:
    """Start a thread, which may be needed by a real-time thread but does not inherit its policy or its CPUs.

    Parameters
    ----------
    function, arguments
        Function that the thread calls.
    what : str
        Purpose of the thread, for the error.

    Raises
    ------
    SetupError
        If the thread cannot be created.
    """
    try:
        start_thread(_call, (function, arguments), _STACK_BYTES, "rtloop-exchange")
    except RuntimeError as error:
        raise SetupError(errno.EAGAIN, describe_thread_failure(f"{what}: {error}; ", errno.EAGAIN)) from error


def _call(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    become_ordinary()
    block_signals()
    function(*arguments)
