"""One finding about the machine or this session: what was found and where, whether that is good, why, and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["VERDICTS", "Check", "worst"]

#: From the best to the worst. A value that could not be read is a note, never ok.
VERDICTS = ("ok", "note", "warn", "fail")


class Check(NamedTuple):
    """What was looked at, and what to think of it.

    Attributes
    ----------
    topic : str
        The group that it is shown in: ``"session"``, ``"kernel"`` and so on.
    name : str
        What was looked at.
    found : str
        The value that was found.
    source : str
        Where it was read: a file, a system call, or an experiment.
    verdict : {"ok", "note", "warn", "fail"}
        ``fail``: a loop with the default settings does not start, or will be stopped. ``warn``: it costs latency.
        ``note``: worth knowing, or not readable.
    why : str
        Why it matters, in one line.
    fix : str
        What to do about it, in the exact lines to write.
    """

    topic: str
    name: str
    found: str
    source: str
    verdict: str
    why: str = ""
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the check as a dict that JSON can hold."""
        return self._asdict()


def worst(checks: Iterable[Check]) -> str:
    """Return the worst verdict of all, ``"ok"`` where there is none."""
    return VERDICTS[max((VERDICTS.index(check.verdict) for check in checks), default=0)]
