"""What was asked of the kernel, and what it granted."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Grant", "describe_refused"]


class Grant(NamedTuple):
    """One thing asked of the kernel, with what the kernel really gave, read back from it.

    Attributes
    ----------
    name : str
        What it is about: ``"memory_lock"``, ``"policy"``, ``"cpu"``, ``"stack"`` and so on.
    requested : object
        What the settings asked for.
    granted : object
        What the kernel reports now.
    ok : bool
        Whether the one satisfies the other.
    detail : str
        How it was read back, or why it was refused.
    fix : str
        What to do about a refusal, in the exact lines to write; empty where ``ok``.
    errno : int
        The errno of the refused call, 0 where none was made or none failed.
    """

    name: str
    requested: Any
    granted: Any
    ok: bool
    detail: str = ""
    fix: str = ""
    errno: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the grant as a dict that JSON can hold."""
        return self._asdict()

    def __str__(self) -> str:
        mark = "ok" if self.ok else "REFUSED"
        text = f"{self.name}: asked {self.requested}, granted {self.granted} [{mark}]"
        return f"{text} {self.detail}" if self.detail else text


def describe_refused(*grants: Grant) -> str:
    """Write refused grants as an error message: what, with which value, why; then each fix once."""
    lines = []
    fixes: dict[str, list[str]] = {}
    for grant in grants:
        why = f" ({grant.detail})" if grant.detail else ""
        lines.append(f"{grant.name}: asked for {grant.requested}, granted {grant.granted}{why}")
        if grant.fix:
            fixes.setdefault(grant.fix, []).append(grant.name)
    for fix, names in fixes.items():
        what = f" {', '.join(names)}" if len(grants) > 1 else ""
        lines += [f"How to fix{what}:", *("  " + line for line in fix.splitlines())]
    return "\n".join(lines)
