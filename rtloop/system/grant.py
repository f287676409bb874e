"""Grants: requests to the kernel, each with what the kernel gave."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Grant", "GrantKind", "describe_refused", "describe_refused_briefly"]

#: Subject of a grant. ``lock`` is about locked memory, ``memory`` about everything else concerning memory.
GrantKind = Literal["lock", "memory", "priority", "cpu", "limit", "device", "guard", "thread", "other"]


class Grant(NamedTuple):
    """Request to the kernel, with what the kernel really gave, read back from it.

    Attributes
    ----------
    name : str
        Name of the request: ``"memory_lock"``, ``"policy"``, ``"cpu"``, ``"stack"`` and so on.
    requested : object
        Value that the settings request.
    granted : object
        Value that the kernel reports.
    ok : bool
        True if `granted` satisfies `requested`.
    detail : str
        How it was read back, or why it was refused.
    fix : str
        Exact lines to have it granted; empty if ``ok``.
    errno : int
        The errno of the refused call; 0 if no call was made or none failed.
    kind : str
        Its subject: ``"lock"``, ``"memory"``, ``"priority"``, ``"cpu"``, ``"limit"``, ``"device"``, ``"guard"``,
        ``"thread"`` or ``"other"``.
    lost : int or None
        Time at which a later check first found it gone, in ns since 1970. None if it is still granted or never was.
    value : int or None
        The number in `granted`, for programs: the limit of ``memlock_limit`` in bytes (-1 if there
        is none), the ns of CPU time that busy ``thread_pools`` used, the number of ``started_threads``. Else None.
    """

    name: str
    requested: Any
    granted: Any
    ok: bool
    detail: str = ""
    fix: str = ""
    errno: int = 0
    kind: GrantKind = "other"
    lost: int | None = None
    value: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the grant as a dict that JSON can hold."""
        return self._asdict()

    def __str__(self) -> str:
        mark = "ok" if self.ok else "REFUSED" if self.lost is None else "LOST"
        text = f"{self.name}: asked {self.requested}, granted {self.granted} [{mark}]"
        return f"{text} {self.detail}" if self.detail else text


def describe_refused(*grants: Grant) -> str:
    """Format refused grants for an error message: name, value and cause of each, then every fix once."""
    return "\n".join([*map(_cause, grants), *_fixes(grants, several=len(grants) > 1)])


def describe_refused_briefly(*grants: Grant) -> str:
    """Format refused grants for the terminal, as `describe_refused`, but a command that fixes several stands alone.

    The other ways to fix those, for a systemd unit or a container, are in each grant's `fix` and in the doctor's
    report.
    """
    fixed_by: dict[str, list[Grant]] = {}
    for grant in grants:
        fixed_by.setdefault(_command(grant.fix), []).append(grant)
    shared = {command: some for command, some in fixed_by.items() if command and len(some) > 1}
    lines = [*map(_cause, grants)]
    for command, some in shared.items():
        lines += [f"How to fix {', '.join(grant.name for grant in some)}:", f"  {command}   # then log in again"]
        lines += [f"  {line}" for grant in some for line in grant.fix.splitlines() if line.startswith("or ")]
        lines.append("  by hand, or in a systemd unit or a container: see rtloop doctor")
    rest = [grant for grant in grants if _command(grant.fix) not in shared]
    return "\n".join([*lines, *_fixes(rest, several=len(grants) > 1)])


def _cause(grant: Grant) -> str:
    why = f" ({grant.detail})" if grant.detail else ""
    return f"{grant.name}: asked for {grant.requested}, granted {grant.granted}{why}"


def _fixes(grants: Sequence[Grant], *, several: bool) -> list[str]:
    fixes: dict[str, list[str]] = {}
    for grant in grants:
        if grant.fix:
            fixes.setdefault(grant.fix, []).append(grant.name)
    lines = []
    for fix, names in fixes.items():
        what = f" {', '.join(names)}" if several else ""
        lines += [f"How to fix{what}:", *("  " + line for line in fix.splitlines())]
    return lines


def _command(fix: str) -> str:
    """Return the one command of a fix that gives a user all privileges of a loop, empty if it has none."""
    found = re.search(r"^login: +(.*\bsetup-privileges\b.*?) +# ", fix, re.MULTILINE)
    return found[1] if found else ""
