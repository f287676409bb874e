"""Creation and opening of shared exchanges by their names, which are found through /proc or a socket."""

from __future__ import annotations

from typing import Any

import numpy as np

from rtloop.sharing.exchange_file import ExchangeFile, Plan
from rtloop.sharing.found_exchanges import open_by_proc, share_by_proc
from rtloop.sharing.roles import is_socket_name
from rtloop.sharing.socket_exchanges import open_by_socket, share_by_socket

__all__ = ["open_exchange", "share_exchange"]


def share_exchange(name: str, plan: Plan, role: str) -> ExchangeFile:
    """Create an exchange, or take a role in the one of this name. Raises what the function for its name raises."""
    share = share_by_socket if is_socket_name(name) else share_by_proc
    return share(name, plan, role)


def open_exchange(name: str, kind: str, role: str, dtype: np.dtype[Any] | None = None) -> ExchangeFile:
    """Take a role in an exchange that exists. Raises what the function for its name raises."""
    open_ = open_by_socket if is_socket_name(name) else open_by_proc
    return open_(name, kind, role, dtype)
