"""Description of a loop in its telemetry block, as JSON: its settings, its grants, and the machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.settings import SETTING_KINDS, Settings, is_setting
from rtloop.stats.figures import Swap
from rtloop.system.grant import Grant
from rtloop.system.time_sync import tai_offset_s
from rtloop.telemetry.gc_watch import watch_collector

if TYPE_CHECKING:
    from rtloop.telemetry.block import TelemetryBlock

__all__ = ["About", "clean", "read", "write"]

#: Swaps that are described, the last ones.
_MOST_SWAPS = 8
_SCALARS = (str, int, float, type(None))


class About(NamedTuple):
    """Description of a loop; empty if it was not written yet, or is too long for its block.

    `swaps` has the number of swaps in the run, and the first cycle of the present step. `last_swaps` has the last few
    of them, or none if the description would be too long.
    """

    settings: dict[str, Any]
    grants: tuple[Grant, ...]
    host: dict[str, Any]
    started_ns: int
    blocks: dict[str, int] = {}  # noqa: RUF012 - never changed
    descriptors: dict[str, int] = {}  # noqa: RUF012 - never changed
    swaps: tuple[int, int] = (0, 0)
    last_swaps: tuple[Swap, ...] = ()


def write(
    block: TelemetryBlock,
    settings: Settings,
    grants: Sequence[Grant],
    *,
    has_own_wait: bool,
    group: str | None = None,
    blocks: Mapping[str, int] = {},
    descriptors: Mapping[str, int] = {},
    swaps: tuple[int, int] = (0, 0),
    last_swaps: Sequence[Swap] = (),
) -> None:
    """Write the description into the block, before the loop runs and after a swap; shortened if it does not fit.

    `group` is the name of the loop's group, if it runs in one. `blocks` has the inodes of its further blocks of shared
    memory, by their kind; `descriptors` the numbers of the files that it holds open for a grant, by its name. `swaps`
    is the number of swaps so far, and the first cycle of the present step; `last_swaps` are the last of them.
    """
    import json  # here, because importing rtloop has to be quick

    from rtloop.telemetry.assemble import machine

    watch_collector()
    content: dict[str, Any] = {
        "settings": settings.to_dict()
        | ({"has_own_wait": True} if has_own_wait else {})
        | ({} if group is None else {"group": group}),
        "started_ns": time.time_ns(),
        "descriptors": dict(descriptors),
        "host": machine() | {"tai_offset_start_s": tai_offset_s()},
        "blocks": dict(blocks),
        "swaps": list(swaps),
    }
    every = [grant.to_dict() for grant in grants]
    brief = [{**grant, "detail": "", "fix": ""} for grant in every]
    named = {"last_swaps": [tuple(one) for one in last_swaps[-_MOST_SWAPS:]]} if last_swaps else {}
    for more in ({"grants": every} | named, {"grants": brief} | named, named, {}):
        if block.describe(json.dumps(content | more, default=str).encode()):
            return


def read(text: bytes) -> About:
    """Parse an untrusted description; :func:`write` makes valid ones.

    Raises
    ------
    ValueError
        If it does not have the form of a description. The returned values have the types of their fields, and contain
        no control characters.
    """
    import json

    if not text:
        return About({}, (), {}, 0)
    try:
        content = json.loads(text)
        settings = {key: _setting(key, value) for key, value in content["settings"].items() if key in SETTING_KINDS}
        grants = tuple(_grant(values) for values in content.get("grants", ()))
        host = {clean(key): _scalar(value) for key, value in content["host"].items()}
        started = content["started_ns"]
        blocks = {clean(key): _inode(value) for key, value in content.get("blocks", {}).items()}
        descriptors = {clean(key): _descriptor(value) for key, value in content.get("descriptors", {}).items()}
        count, cycle = (_natural(value) for value in content.get("swaps", (0, 0)))
        last_swaps = tuple(_swap(*values) for values in content.get("last_swaps", ())[:_MOST_SWAPS])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its text is not the description of a loop: {error}") from None
    started = started if type(started) is int else 0
    return About(settings, grants, host, started, blocks, descriptors, (count, cycle), last_swaps)


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError("a number of swaps or of a cycle is not an integer of 64 bits")
    return value


def _swap(cycle: object, former: object, successor: object, reason: object) -> Swap:
    if not isinstance(former, str) or not isinstance(successor, str) or not isinstance(reason, (str, type(None))):
        raise ValueError("a name of a swap is of a wrong type")
    return Swap(_natural(cycle), clean(former), clean(successor), None if reason is None else clean(reason))


def _inode(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 64:
        raise ValueError("the inode of a block is not a positive integer of 64 bits")
    return value


def _descriptor(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError("the number of an open file is of a wrong type")
    return value


def _setting(key: str, value: object) -> Any:
    if not is_setting(key, value):
        raise ValueError(f"{key} is of a wrong type")
    return clean(value) if isinstance(value, str) else value


def _scalar(value: object) -> Any:
    if not isinstance(value, _SCALARS) or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 63):
        raise ValueError("a value is of a wrong type")
    return clean(value) if isinstance(value, str) else value


def _grant(values: Mapping[str, Any]) -> Grant:
    grant = Grant(**{key: _scalar(value) for key, value in values.items() if key in Grant._fields})
    texts = (grant.name, grant.detail, grant.fix, grant.kind)
    numbers = (grant.errno, grant.lost or 0, grant.value or 0)
    if (
        type(grant.ok) is not bool
        or not all(type(number) is int for number in numbers)
        or not all(isinstance(text, str) for text in texts)
    ):
        raise ValueError("a grant is of a wrong type")
    return grant


def clean(text: str) -> str:
    """Replace control characters, which a terminal would obey; line feeds stay."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
