"""Resources of a loop apart from its scheduling: acquired in a fixed order, each with a Grant, and released in reverse.

Every function returns the :class:`~rtloop.system.grant.Grant`, and pushes the call that undoes it on the exit stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rtloop.memory import heap, limits, process_lock
from rtloop.memory.own_locks import own_grant
from rtloop.settings import Settings
from rtloop.system import grant_errors, refusal_cause
from rtloop.system.grant import Grant
from rtloop.telemetry.block import TelemetryBlock

if TYPE_CHECKING:
    from rtloop.culprit.run_tracer import RunTracer

__all__ = ["process_wide", "raise_if_refused", "telemetry", "tracer"]

_ADVICE = "More about this machine: rtloop doctor\nOr run degraded: strict=False"


def process_wide(settings: Settings, stack: ExitStack) -> Iterator[Grant]:
    """Acquire what all loops of the process share, one by one: limits, core dumps, the lock of all memory, malloc."""
    if settings.lock_memory != "off":
        grant = limits.memlock_limit.acquire()
        stack.callback(limits.memlock_limit.release)
        yield grant
    if not settings.core_dumps:
        grant = limits.core_dumps.acquire()
        stack.callback(limits.core_dumps.release)
        yield grant
    is_refused = False
    if settings.lock_memory in ("all", "onfault"):
        less = "or lock only what the loop itself uses: lock_memory='own'"
        grant = process_lock.memory_lock.acquire(settings.lock_memory, instead="own memory only", advice=less)
        # A grant can be partial. Whatever was acquired is released in the end.
        if not grant.errno:
            stack.callback(process_lock.memory_lock.release, settings.lock_memory)
        is_refused = not grant.ok
        yield grant
    elif settings.lock_memory == "own":
        detail = "the loop's stack, state and telemetry, as below"
        yield Grant("memory_lock", "own", "own", ok=True, detail=detail, kind="lock")
    # It cannot be undone, so it is skipped if the start is bound to fail.
    if settings.tune_malloc and not (settings.strict and is_refused):
        yield heap.tune()


def telemetry(settings: Settings, stack: ExitStack) -> tuple[Grant, TelemetryBlock]:
    """Map, seal and prefault the telemetry block, and lock it unless ``lock_memory="off"``."""
    hidden: Grant | None = None
    try:
        block = TelemetryBlock(settings.name, settings.record)
    except OSError as error:
        asked, subject = f"{settings.record} records, shared", f"record={settings.record}"
        hidden = refusal_cause.hidden_grant("telemetry", asked, subject, error, is_strict=settings.strict)
        block = TelemetryBlock(settings.name, settings.record, is_shared=False)
    stack.callback(block.close)
    try:
        rc = block.lock() if settings.lock_memory != "off" else 0
        if hidden is None:
            what = f"sealed memfd, {settings.record} records"
            hidden = own_grant(settings.lock_memory, "telemetry", what, block.size, rc)
        return hidden, block
    finally:
        del block  # the traceback of an exception would keep it mapped


def tracer(
    settings: Settings, stack: ExitStack, block: TelemetryBlock, tid: int, needs_interpreter: bool, has_own_wait: bool
) -> tuple[Grant, RunTracer | None]:
    """Begin to trace the kernel beside the thread of a loop."""
    from rtloop.culprit.acquire import acquire  # here, because few runs trace

    return acquire(settings, stack, block, tid, needs_interpreter=needs_interpreter, has_own_wait=has_own_wait)


def raise_if_refused(settings: Settings, grants: list[Grant]) -> None:
    """Raise one SetupError for all refused grants, in strict mode."""
    if settings.strict:
        grant_errors.raise_if_refused(grants, settings.name, advice=_ADVICE)
