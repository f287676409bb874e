"""Warnings of a loop or a group: refused requests, lost grants, unreported failures, and data that was too old."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rtloop.errors import warn_of_setup
from rtloop.loop.outcome.failure import describe
from rtloop.process.helper_thread import call_aside
from rtloop.process.signal_shield import is_keeper
from rtloop.settings import Settings
from rtloop.stats.figures import Swap
from rtloop.system.grant import Grant, describe_refused

__all__ = [
    "warn_degraded",
    "warn_failed",
    "warn_lost",
    "warn_off_keeper",
    "warn_reverted",
    "warn_stale",
    "warn_tai",
]


def warn_off_keeper(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function that warns; if this is the keeper, on another thread, for which it waits up to a second.

    What shows a warning is the program's: logging.captureWarnings(), a `showwarning`, the file sys.stderr. It may need
    a lock that a thread holds whose signal handler waits for the keeper.
    """
    if is_keeper():
        call_aside(function, *arguments)
    else:
        function(*arguments)


def warn_tai(settings: Settings, offset_s: int) -> None:
    """Warn of a loop on CLOCK_TAI without a TAI offset: the clock then equals the time of day, and steps with it."""
    if settings.clock == "tai" and offset_s == 0:
        warn_of_setup(
            f"{settings.name} is on clock='tai', but the kernel has a TAI offset of 0, so this clock equals the time "
            "of day. Once the offset is set, this clock jumps by it (by 37 s since 2017). Let chrony (leapsectz) or "
            "ptp4l set the offset before the loop starts"
        )


def warn_degraded(grants: tuple[Grant, ...], name: str) -> None:
    """Warn of a degraded loop, with all requests that were refused."""
    if refused := tuple(grant for grant in grants if not grant.ok):
        count = "1 request was" if len(refused) == 1 else f"{len(refused)} requests were"
        text = describe_refused(*refused)
        message = f"{name} runs degraded: {count} refused:\n{text}\nMore about this machine: rtloop doctor"
        warn_of_setup(message, refused)


def warn_lost(lost: Sequence[Grant], name: str) -> None:
    """Warn of grants that a running loop has lost."""
    if lost:
        text = "\n".join(f"{grant.name}: {grant.detail}" for grant in lost)
        warn_of_setup(f"{name} no longer has what it was granted:\n{text}\n{lost[0].fix}")


def warn_reverted(name: str, made: Swap, back: Swap, error: BaseException | None) -> None:
    """Warn that a loop has gone back to its former step; `error` is what the step on trial has raised."""
    raised = "" if error is None else f" ({describe(error)})"
    warn_of_setup(
        f"{name} has gone back to {back.successor} before cycle {back.cycle:,}: {made.successor}, on trial since cycle "
        f"{made.cycle:,}, has failed its trial: {back.reason}{raised}. Correct it, and swap again"
    )


def warn_failed(error: BaseException | None) -> None:
    """Warn that a loop had failed before it was stopped, if nothing has raised the reason."""
    if error is not None:
        message = f"the loop had already failed when it was stopped; join() would have raised this: {describe(error)}"
        warn_of_setup(message)


def warn_stale(name: str, lines: Sequence[str]) -> None:
    """Warn of a group's chains whose data was older than intended."""
    if lines:
        text = "\n".join(lines)
        warn_of_setup(f"{name}: data was older than intended:\n{text}")
