"""Threads that the module threading knows, found without its lock."""

from __future__ import annotations

import _thread
import threading

__all__ = ["name_of_this_thread", "python_threads"]


def python_threads() -> set[int]:
    """Return the numbers, in the kernel, of the threads of this process that the module threading knows.

    :func:`threading.enumerate` takes a lock. A signal handler may interrupt a thread that holds it and wait for the
    keeper, which would wait for that thread then.
    """
    return {thread.native_id for thread in _known() if thread.native_id is not None}


def name_of_this_thread() -> str:
    """Return the name of the calling thread; empty if the module threading does not know it.

    :func:`threading.current_thread` makes a thread known that it does not know, with the lock that
    :func:`python_threads` avoids.
    """
    ident = _thread.get_ident()
    return next((thread.name for thread in _known() if thread.ident == ident), "")


def _known() -> list[threading.Thread]:
    """Return all threads, those included that have just been created."""
    tables: list[dict[object, threading.Thread] | None] = [
        getattr(threading, name, None) for name in ("_active", "_limbo")
    ]
    if None in tables:
        return threading.enumerate()
    return [thread for table in tables if table is not None for thread in table.copy().values()]  # copy() is atomic
