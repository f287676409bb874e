"""Creation and opening of shared exchanges by their names, which are found through /proc or a socket."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rtloop.errors import StateError
from rtloop.process.nap import nap
from rtloop.sharing import found_exchanges, socket_exchanges
from rtloop.sharing.exchange_file import ExchangeFile, Plan
from rtloop.sharing.roles import is_socket_name

__all__ = ["open_exchange", "share_exchange"]


def share_exchange(name: str, plan: Plan, role: str) -> ExchangeFile:
    """Create an exchange, or take a role in the one of this name. Raises what the function for its name raises.

    Raises
    ------
    StateError
        If another process is creating it, and does not finish in time.
    """
    if is_socket_name(name):
        share, patience_s = socket_exchanges.share_by_socket, socket_exchanges.PATIENCE_S
    else:
        share, patience_s = found_exchanges.share_by_proc, found_exchanges.PATIENCE_S
    deadline = time.monotonic() + patience_s
    while True:
        made = share(name, plan, role)
        if made is not None:
            return made
        if time.monotonic() > deadline:
            raise StateError(f"another process, which may have been stopped, is creating the exchange {name!r}")
        nap(0.002)


def open_exchange(name: str, kind: str, role: str, dtype: np.dtype[Any] | None = None) -> ExchangeFile:
    """Take a role in an exchange that exists. Raises what the function for its name raises."""
    open_ = socket_exchanges.open_by_socket if is_socket_name(name) else found_exchanges.open_by_proc
    return open_(name, kind, role, dtype)
