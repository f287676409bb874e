"""Threads that Python has started, found without a lock."""

from __future__ import annotations

import threading

__all__ = ["python_threads"]


def python_threads() -> set[int]:
    """Return the numbers, in the kernel, of the threads of this process that the module threading knows.

    :func:`threading.enumerate` takes a lock. A signal handler may interrupt a thread that holds it and wait for the
    keeper, which would wait for that thread then.
    """
    known: dict[int, threading.Thread] | None = getattr(threading, "_active", None)
    found = threading.enumerate() if known is None else known.copy().values()  # the copy is one step
    return {thread.native_id for thread in found if thread.native_id is not None}
