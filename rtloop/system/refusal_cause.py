"""Cause of a refused call: a missing privilege, a limit, or a seccomp filter."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Callable

from rtloop.errors import SetupError
from rtloop.system import checks
from rtloop.system.cgroup import thread_room
from rtloop.system.checks import Check
from rtloop.system.fixes import NO_FILE, filter_fix, group_threads_fix, no_file_fix
from rtloop.system.grant import Grant
from rtloop.system.privilege import (
    CAP_IPC_LOCK,
    CAP_SYS_ADMIN,
    CAP_SYS_RESOURCE,
    has_seccomp_filter,
    is_capable,
    read_limit,
)

__all__ = [
    "describe_thread_failure",
    "explain",
    "explain_thread",
    "is_privilege_missing",
    "lock_limit",
    "may_lock_future",
]

#: Errnos that the kernel itself answers to calls with these arguments: their cause is the state of the machine or of
#: the process. A filter may answer any errno (SystemCallErrorNumber= of systemd), and is the cause of all others.
_OF_THE_KERNEL = frozenset(
    {
        errno.E2BIG, errno.EAGAIN, errno.EBADF, errno.EBUSY, errno.EEXIST, errno.EFAULT, errno.EFBIG, errno.EINTR,
        errno.EINVAL, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOENT,
        errno.ENOMEM, errno.ENOSPC, errno.ENOTDIR, errno.ENXIO, errno.EOVERFLOW, errno.EROFS, errno.ESRCH,
        errno.ETXTBSY,
    }
)  # fmt: skip


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
    may_be_filter = is_privileged if error in (errno.EPERM, errno.EACCES) else error not in _OF_THE_KERNEL
    if may_be_filter and has_seccomp_filter():
        return f"{text}; a seccomp filter forbids {call}", filter_fix(call)
    if error == errno.EFBIG:
        fix = "ulimit -f unlimited, or LimitFSIZE=infinity in a systemd unit"
        return f"{text}; RLIMIT_FSIZE limits shared memory, too", fix
    if error in NO_FILE:
        why, fix = no_file_fix(error)
        return f"{text}; {why}", fix
    return text, ""


def describe_thread_failure(beginning: str, error: int) -> str:
    """Return a text for the error about a thread that cannot be created: a beginning, the cause, and the fix if known.

    Parameters
    ----------
    beginning : str
        Purpose of the thread, with the punctuation before the cause.
    error : int
        As for :func:`explain_thread`.
    """
    why, fix = explain_thread(error)
    return f"{beginning}{why}" + (f"\n{fix}" if fix else "")


def explain_thread(error: int) -> tuple[str, str]:
    """Return why pthread_create(3) failed, and the fix if a filter or a limit is the cause.

    Parameters
    ----------
    error : int
        Its positive errno. Python does not report it: for its own threads pass EAGAIN, the errno of all limits.
    """
    text = f"pthread_create: {os.strerror(error)} ({errno.errorcode.get(error, error)})"
    if error == errno.EAGAIN:
        for path, (room, most) in thread_room().items():
            if not room:
                return f"{text}; {path} allows {most:,} threads and processes, all in use", group_threads_fix(path)
        most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        is_exempt = os.getuid() == 0 or is_capable(CAP_SYS_RESOURCE) or is_capable(CAP_SYS_ADMIN)
        if most != resource.RLIM_INFINITY and not is_exempt:
            return (
                f"{text}; RLIMIT_NPROC allows this user {most:,} threads and processes in all",
                "ulimit -u unlimited, or LimitNPROC=infinity in a systemd unit",
            )
    if error != errno.ENOMEM and has_seccomp_filter():
        # An older kernel's clone is tried only after ENOSYS.
        why = "a seccomp filter forbids clone3, or another call that pthread_create makes"
        return f"{text}; {why}", filter_fix("clone3")
    return text, ""


def _refused_call() -> str:
    """Try the calls that create shared memory for one page, and return the one that is refused."""
    try:
        fd = os.memfd_create("rtloop-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return "memfd_create"
    calls: dict[str, Callable[[], object]] = {
        "ftruncate": lambda: os.ftruncate(fd, mmap.PAGESIZE),
        "fcntl": lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
        "mmap": lambda: mmap.mmap(fd, mmap.PAGESIZE).close(),
    }
    try:
        for name, call in calls.items():
            try:
                call()
            except OSError:
                return name
    finally:
        os.close(fd)
    return "memfd_create"  # it is not refused now, or was refused only for this size


def hidden_grant(name: str, asked: str, subject: str, error: OSError, *, is_strict: bool) -> Grant:
    """Return the grant for memory that the kernel refused to share (memfd_create(2)), so that only this process has it.

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
    why, fix = explain(_refused_call(), number)
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
