"""Grants of locked memory: the cause of a refused lock, and the fix."""

from __future__ import annotations

from rtloop.system import refusal_cause
from rtloop.system.grant import Grant
from rtloop.system.refusal_cause import lock_limit
from rtloop.units import format_size

__all__ = ["explain_lock", "range_lock_grant"]


def range_lock_grant(
    name: str, size: int, rc: int, *, detail: str, is_asked: bool = True, call: str = "mlock"
) -> Grant:
    """Return the grant for locking one range.

    Parameters
    ----------
    name : str
        The grant's name.
    size : int
        Of the range, in bytes.
    rc : int
        0, or the negative errno of mlock(2).
    detail : str
        The grant's detail if it is locked.
    is_asked : bool
        False if no lock was asked for.
    call : str
        The system call that was made.
    """
    asked = f"{format_size(size)}, locked" if is_asked else format_size(size)
    if rc == 0:
        return Grant(name, asked, asked, ok=True, detail=detail, kind="lock" if is_asked else "memory")
    why, fix = explain_lock(call, -rc)
    return Grant(name, asked, f"{format_size(size)}, not locked", ok=False, detail=why, fix=fix, errno=-rc, kind="lock")


def explain_lock(call: str, error: int) -> tuple[str, str]:
    """Return why the kernel refused to lock memory, such as a filter or the limit, and the fix."""
    cause = lock_limit()  # if it is ok, the limit is not the cause
    why, fix = refusal_cause.explain(call, error, is_privileged=cause.verdict == "ok")
    return (why, fix) if fix or cause.verdict == "ok" else (f"{why}; {cause.found}", cause.fix)
