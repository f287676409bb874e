"""Refusals: the cause of a refused call, and the one place that turns refused grants into an exception."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rtloop.errors import SetupError, setup_error
from rtloop.system import checks
from rtloop.system.checks import Check
from rtloop.system.fixes import filter_fix
from rtloop.system.grant import Grant, describe_refused
from rtloop.system.privilege import CAP_IPC_LOCK, has_seccomp_filter, is_capable, read_limit

__all__ = [
    "explain",
    "lock_limit",
    "may_lock_future",
    "raise_if_refused",
    "refusal_error",
    "setup_errors",
]

#: Errnos of a call that a filter forbids. Only EPERM and EACCES can also mean a missing privilege.
_FILTERED = (errno.EPERM, errno.EACCES, errno.ENOSYS)


def explain(call: str, error: int, *, is_privileged: bool = True) -> tuple[str, str]:
    """Return why a call was refused, with its name and errno, and the fix if a seccomp filter is the cause.

    Parameters
    ----------
    call : str
        The system call, such as ``"sched_setattr"``.
    error : int
        Its positive errno.
    is_privileged : bool
        True if no privilege that the call needs is missing; then only a filter can have answered EPERM.
    """
    text = f"{call}: {os.strerror(error)} ({errno.errorcode.get(error, error)})"
    if error in _FILTERED and (is_privileged or error == errno.ENOSYS) and has_seccomp_filter():
        return f"{text}; a seccomp filter forbids {call}", filter_fix(call)
    return text, ""


def lock_limit() -> Check:
    """Judge the present RLIMIT_MEMLOCK."""
    limit = read_limit(resource.RLIMIT_MEMLOCK)[0]
    return checks.locked_memory(limit, is_capable=is_capable(CAP_IPC_LOCK))


def may_lock_future() -> bool:
    """Return True if locking all future memory is safe: with CAP_IPC_LOCK, or without a limit.

    Under a finite limit the lock succeeds, but later allocations, thread starts and the growth of the stack fail.
    """
    return lock_limit().verdict == "ok"


def _is_privilege(grant: Grant) -> bool:
    """Return True if a missing privilege or a limit is the cause of a refusal."""
    by_limit = grant.kind == "lock" and grant.errno in (errno.ENOMEM, errno.EAGAIN) and not may_lock_future()
    return by_limit or grant.errno in (errno.EPERM, errno.EACCES)


def refusal_error(
    grants: Iterable[Grant], name: str | None = None, *, advice: str = "", every: Sequence[Grant] = ()
) -> SetupError:
    """Make the exception for refused grants: all of them in one, of the type that fits the first.

    Parameters
    ----------
    grants : iterable of Grant
        All requests; at least one of them was refused.
    name : str, optional
        Name of the loop or process, for the message if several were refused.
    advice : str
        Lines to add to the message.
    every : sequence of Grant
        ``grants`` of the exception; by default `grants`.
    """
    grants = tuple(grants)
    refused = [grant for grant in grants if not grant.ok]
    first = refused[0]
    text = describe_refused(*refused)
    if len(refused) > 1:
        text = f"{name}: {len(refused)} requests were refused:\n{text}"
    return setup_error(
        first.errno,
        f"{text}\n{advice}" if advice else text,
        memory_lock=first.kind == "lock",
        privilege=_is_privilege(first),
        grants=tuple(every) or grants,
    )


def raise_if_refused(grants: Sequence[Grant], name: str | None = None, *, advice: str = "") -> None:
    """Raise one SetupError for all refused grants; return if there are none."""
    if not all(grant.ok for grant in grants):
        raise refusal_error(grants, name, advice=advice)


@contextmanager
def setup_errors(name: str, grants: list[Grant]) -> Iterator[None]:
    """Turn any other system error of a start, such as no free file descriptor, into a SetupError.

    `grants` is the list that the start fills. The SetupError carries it, and a note about earlier refusals.
    """
    try:
        yield
    except SetupError as error:
        _add_grants(error, grants)
        raise
    except OSError as error:
        setup = SetupError(error.errno or 0, f"{name} could not be set up: {error}")
        _add_grants(setup, grants)
        raise setup from error


def _add_grants(error: SetupError, grants: list[Grant]) -> None:
    if error.grants:
        return
    error.grants = tuple(grants)
    if error.refused:
        error.add_note("Refused before that:\n" + describe_refused(*error.refused))
