"""Reasons for which loops of other processes were not read: a missing permission, or too many files."""

from __future__ import annotations

import os

from rtloop.sharing.block_files import MOST_BLOCKS
from rtloop.system.fileio import parse_fields, read_text

__all__ = ["describe_denied", "describe_denied_count", "describe_skipped"]


def describe_denied(pid: int) -> str:
    """Return why a process may not be inspected, and the fix."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        effective = int(parse_fields(read_text(f"/proc/{pid}/status"))["Uid"].split()[1])
    except (OSError, KeyError):
        return f"process {pid} has ended"
    if effective != os.geteuid():
        return (
            f"process {pid} belongs to user {_user(effective)}, and this one to {_user(os.geteuid())}: "
            "run this as root, or as that user"
        )
    why = "cannot be dumped (prctl(2), PR_SET_DUMPABLE)" if uid != effective else "has privileges that this one lacks"
    return (
        f"process {pid} {why}, so inspecting it requires CAP_SYS_PTRACE (ptrace(2)): "
        "run this as root, or with the same capabilities"
    )


def describe_denied_count(count: int) -> str:
    """Return a sentence on the number of processes that may not be inspected."""
    what = "1 process" if count == 1 else f"{count} processes"
    how = "try as root" if os.geteuid() else "root needs CAP_SYS_PTRACE, which it lacks here"
    return f"{what} could not be inspected (of other users, or more privileged): {how}"


def describe_skipped(uid: int) -> str:
    """Return a sentence on a user whose files were too many, or took too long, to be inspected."""
    return (
        f"user {_user(uid)}: files that look like telemetry of loops were skipped, because there are more than "
        f"{MOST_BLOCKS} or their inspection takes too long"
    )


def _user(uid: int) -> str:
    import pwd  # here, because importing rtloop has to be quick

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)
