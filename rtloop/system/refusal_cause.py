"""Cause of a refused call: a missing privilege, a limit, or a seccomp filter."""

from __future__ import annotations

import errno
import os
import resource

from rtloop.errors import SetupError
from rtloop.system import checks
from rtloop.system.checks import Check
from rtloop.system.fixes import filter_fix, sysctl_fix
from rtloop.system.grant import Grant
from rtloop.system.privilege import CAP_IPC_LOCK, has_seccomp_filter, is_capable, read_limit

__all__ = ["explain", "is_privilege_missing", "lock_limit", "may_lock_future"]

#: Errnos of a call that a filter forbids. Only EPERM and EACCES can also mean a missing privilege.
_FILTERED = (errno.EPERM, errno.EACCES, errno.ENOSYS)


def explain(call: str, error: int, *, is_privileged: bool = True) -> tuple[str, str]:
    """Return why a call was refused, with its name and errno, and the fix if a filter or a limit is the cause.

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
    if error == errno.EFBIG:
        fix = "ulimit -f unlimited, or LimitFSIZE=infinity in a systemd unit"
        return f"{text}; RLIMIT_FSIZE limits shared memory, too", fix
    if error == errno.EMFILE:
        fix = "ulimit -n 65536, or LimitNOFILE=65536 in a systemd unit"
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"{text}; this process has all {limit:,} file descriptors open that RLIMIT_NOFILE allows", fix
    if error == errno.ENFILE:
        return f"{text}; all processes together have as many files open as fs.file-max allows", sysctl_fix(
            "fs.file-max", 2**20
        )
    return text, ""


def hidden_grant(name: str, asked: str, subject: str, error: OSError, *, is_strict: bool) -> Grant:
    """Return the grant for memory that memfd_create(2) refused to share, so that it is of this process alone.

    Parameters
    ----------
    name, asked : str
        Name of the grant, and what was asked for.
    subject : str
        What the memory is for, for the error.
    error : OSError
        The refusal.
    is_strict : bool
        True if the loop is to start with everything or not at all.

    Raises
    ------
    SetupError
        In strict mode, and if neither a filter nor a limit is the cause: then there is no memory to go on with.
    """
    number = error.errno or 0
    why, fix = explain("memfd_create", number)
    if is_strict or not fix:
        raise SetupError(number, f"{subject}: {error.strerror}" + (f"; {why}\n{fix}" if fix else "")) from error
    detail = f"{why}; no other process can see the {name}"
    return Grant(name, asked, "of this process alone", ok=False, detail=detail, fix=fix, errno=number)


def lock_limit() -> Check:
    """Judge the present RLIMIT_MEMLOCK."""
    limit = read_limit(resource.RLIMIT_MEMLOCK)[0]
    return checks.locked_memory(limit, is_capable=is_capable(CAP_IPC_LOCK))


def may_lock_future() -> bool:
    """Return True if locking all future memory is safe: with CAP_IPC_LOCK, or without a limit.

    Under a finite limit the lock succeeds, but later allocations, thread starts and the growth of the stack fail.
    """
    return lock_limit().verdict == "ok"


def is_privilege_missing(grant: Grant) -> bool:
    """Return True if a missing privilege or a limit is the cause of a refusal."""
    by_limit = grant.kind == "lock" and grant.errno in (errno.ENOMEM, errno.EAGAIN) and not may_lock_future()
    return by_limit or grant.errno in (errno.EPERM, errno.EACCES)
