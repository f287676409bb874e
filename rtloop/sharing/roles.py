"""Names, roles and modes of shared exchanges, as the arguments give them."""

from __future__ import annotations

import posixpath

from rtloop.errors import ConfigError
from rtloop.units import as_index, show

__all__ = ["DEFAULT_MODE", "KINDS", "MODES", "MOST_READERS", "check_role", "is_socket_name", "parse_share_name"]

#: RT_SHARED_LATEST_MAX_READERS of shared_latest.h.
MOST_READERS = 32
#: The role that writes and the role that reads, by the kind of exchange, and its class.
KINDS = {"latest": ("writer", "reader", "Latest"), "ring": ("producer", "consumer", "Ring")}
#: Users who may open an exchange, by its mode.
MODES = {0o600: "this user", 0o660: "also the socket's group", 0o666: "every user"}
DEFAULT_MODE = 0o600
_MOST_NAME = 200
#: Bytes of sockaddr_un.sun_path, without the one that ends a path, or begins an abstract name.
_MOST_SOCKET_NAME = 107


def parse_share_name(name: object) -> str:
    """Return the name of a shared exchange.

    Raises
    ------
    ConfigError
        If it is not a printable text of 1 to 200 bytes without a space at its ends.
    """
    if (
        not isinstance(name, str) or not name.isprintable() or name != name.strip()
        or not 0 < len(name.encode(errors="replace")) <= _MOST_NAME
    ):  # fmt: skip
        raise ConfigError(
            f'{show(name)} is not a name: give printable text of up to {_MOST_NAME} bytes, as "arm/setpoint"'
        )
    if is_socket_name(name):
        _check_socket_name(name)
    return name


def is_socket_name(name: str) -> bool:
    """Return whether a socket finds an exchange of this name: it is a path, or begins with an @ (abstract)."""
    return name.startswith(("/", "@"))


def _check_socket_name(name: str) -> None:
    if len(name.encode(errors="replace")) > _MOST_SOCKET_NAME:
        raise ConfigError(f"{show(name)} has more than {_MOST_SOCKET_NAME} bytes, the limit for the name of a socket")
    if name[0] == "/" and (posixpath.normpath(name) != name or name == "/"):
        raise ConfigError(
            f"{show(name)} is not the path of a socket: give a path without //, . and .., and without / at its end"
        )
    if name == "@":
        raise ConfigError('"@" is not a name: give a name after it, such as "@arm/setpoint"')


def _check_mode(share: object, mode: object) -> None:
    number = as_index(mode)
    if number not in MODES:
        shown = show(mode) if number is None else f"{number:#o}"
        every = ", ".join(f"{one:#o} ({who})" for one, who in MODES.items())
        raise ConfigError(
            f"mode={shown} must be one of {every}. There is no read-only access, because both sides of an exchange "
            "write into its memory"
        )
    if number == DEFAULT_MODE:
        return
    if share is None:
        raise ConfigError(f"mode={number:#o} needs share=: without it, only this process has the exchange")
    if not str(share).startswith("/"):
        raise ConfigError(
            f"mode={number:#o} needs a path, such as share='/run/arm/setpoint': only processes of the same user find "
            f"an exchange with a name like {show(share)}"
        )


def check_role(kind: str, share: object, role: object, readers: object = 1, mode: object = DEFAULT_MODE) -> None:
    """Check the arguments of an exchange that may be shared; `share` is None if it is not.

    Raises
    ------
    ConfigError
        If one is invalid, or has no meaning without `share`.
    """
    roles = KINDS[kind][:2]
    if role not in roles:
        raise ConfigError(f"role={show(role)} must be one of {', '.join(roles)}")
    number = as_index(readers)
    if number is None or not 1 <= number <= MOST_READERS:
        raise ConfigError(f"readers={show(readers)} is not a number of readers from 1 to {MOST_READERS}")
    _check_mode(share, mode)
    if share is None:
        if number != 1:
            raise ConfigError(f"readers={number} needs share=: without it, an exchange has one reader")
        if role != roles[0]:
            raise ConfigError(f"role={show(role)} needs share=: without it, an exchange has both sides in this process")
        return
    parse_share_name(share)
