"""Loops of other processes: a list of those that run, and their Stats, read without disturbing them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rtloop.errors import AttachError, AttachPrivilegeError, ConfigError
from rtloop.stats.stats import Stats
from rtloop.telemetry.denied import describe_denied, describe_denied_count, describe_skipped
from rtloop.telemetry.loop_reader import LoopReader
from rtloop.telemetry.scan import Scan, scan
from rtloop.units import as_index, show

__all__ = ["attach", "find_loop", "running"]


def running(pid: int | None = None, name: str | None = None) -> list[LoopReader]:
    """Return the loops that run on this machine now, of all processes that may be inspected.

    Those are the processes of the same user without greater privileges, or all for root and with CAP_SYS_PTRACE.

    Parameters
    ----------
    pid : int, optional
        Process to search.
    name : str, optional
        Name of the loops to return, such as ``"motor"``, or ``"arm/motor"`` for that of the group ``arm``.

    Returns
    -------
    list of LoopReader
        Ordered by name. Each keeps its loop's telemetry mapped until it is closed or deleted.

    Raises
    ------
    AttachPrivilegeError
        If the process `pid` may not be inspected.
    """
    return list(_matching(_checked(pid), name, scan(pid)))


def _checked(pid: int | None) -> int | None:
    number = None if pid is None or isinstance(pid, bool) else as_index(pid)
    if pid is not None and (number is None or not 0 < number < 1 << 31):
        raise ConfigError(f"pid={show(pid)} must be the number of a process")
    return number


def _matching(pid: int | None, name: str | None, found: Scan) -> Iterator[LoopReader]:
    if pid is not None and found.denied:
        raise AttachPrivilegeError(describe_denied(pid))
    return (loop for loop in found.loops if name is None or loop.is_called(name))


def attach(pid: int | None = None, name: str | None = None) -> Stats:
    """Return the statistics of a loop that runs in another process, or in this one.

    Reading copies what the loop writes anyway, without making it wait.

    Parameters
    ----------
    pid : int, optional
        Process of the loop; needed if loops of several processes have the name.
    name : str, optional
        Name of the loop; needed if the process runs several loops. Without both, only one loop may be running. In a
        group its name may begin with that of the group: ``"arm/motor"``.

    Returns
    -------
    Stats
        The present statistics. Use the readers of :func:`running` for repeated reading.

    Raises
    ------
    AttachError
        If no running loop matches, or more than one; the message lists those that run.
    AttachPrivilegeError
        If the process may not be inspected; also a PermissionError.

    Examples
    --------
    >>> print(rtloop.attach(name="Controller-1"))
    """
    with find_loop(pid, name, "attach()") as loop:
        return loop.stats


def find_loop(pid: int | None, name: str | None, caller: str) -> LoopReader:
    """Return the one running loop of that process and name, for a function of this name.

    Raises
    ------
    AttachError, AttachPrivilegeError
        As :func:`attach`.
    """
    found = scan(_checked(pid))
    chosen: LoopReader | None = None
    try:
        matching = list(_matching(pid, name, found))
        if len(matching) != 1:
            raise AttachError(_explain(pid, name, matching, found, caller))
        chosen = matching[0]
        return chosen
    finally:
        for loop in found.loops:
            if loop is not chosen:
                loop.close()


def _explain(pid: int | None, name: str | None, matching: list[LoopReader], found: Scan, caller: str) -> str:
    """Return the reason why not exactly one loop matches."""
    asked = ", ".join(f"{key}={show(value)}" for key, value in (("pid", pid), ("name", name)) if value is not None)
    if matching:
        listed = ", ".join(_label(loop) for loop in matching)
        choice = "choose one with pid= and name=, in a command with --pid and NAME"
        if len({(loop.pid, loop.label) for loop in matching}) < len(matching):
            choice = "give each loop its own name="
        return f"{asked or caller}: {len(matching)} loops match, {listed}: {choice}"
    if pid is not None and not os.path.exists(f"/proc/{pid}"):
        return f"pid={pid}: there is no such process"
    text = f"{asked}: no such loop is running" if asked else "no loop is running"
    where = "in that process" if pid is not None else "here"
    if found.loops:
        text += f"; running {where}: {', '.join(_label(loop) for loop in found.loops)}"
    elif asked:
        text += f", and no other {where}"
    if found.faulty:
        file, fault = next(iter(found.faulty.items()))
        text += f"; {file.path} looks like a loop's telemetry, but {fault}"
    if found.denied:
        text += f"; {describe_denied_count(len(found.denied))}"
    text += "".join(f"; {describe_skipped(uid)}" for uid in found.skipped)
    return text


def _label(loop: LoopReader) -> str:
    return f"{loop.label!r} in process {loop.pid}"
