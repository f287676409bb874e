"""Names and roles of shared exchanges, as the arguments give them."""

from __future__ import annotations

from rtloop.errors import ConfigError
from rtloop.units import as_index, show

__all__ = ["KINDS", "MOST_READERS", "check_role", "parse_share_name"]

#: RT_SHARED_LATEST_MAX_READERS of shared_latest.h.
MOST_READERS = 32
#: The role that writes and the role that reads, by the kind of exchange, and its class.
KINDS = {"latest": ("writer", "reader", "Latest"), "ring": ("producer", "consumer", "Ring")}
_MOST_NAME = 200


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
    return name


def check_role(kind: str, share: object, role: object, readers: object = 1) -> None:
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
    if share is None:
        if number != 1:
            raise ConfigError(f"readers={number} needs share=: without it, an exchange has one reader")
        if role != roles[0]:
            raise ConfigError(f"role={show(role)} needs share=: without it, an exchange has both sides in this process")
        return
    parse_share_name(share)
