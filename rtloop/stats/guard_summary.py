"""Summaries of what the guards of a run found: counts, groups of like violations, and sentences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtloop.system.grant import Grant

__all__ = [
    "GRANTS",
    "KINDS",
    "UNAVAILABLE",
    "count",
    "describe",
    "groups",
    "sentence",
    "summarise",
    "unlisted",
    "when",
]

#: Grants of the guards, by what they count.
GRANTS = {
    "page_faults": "guard_page_faults",
    "system_calls": "guard_system_calls",
    "allocations": "guard_allocations",
}
#: Kinds of violations, in the order in which telemetry.h counts them.
KINDS = ("minor fault", "major fault", "system call", "allocation")
#: Value of such a grant if the guard does not work here.
UNAVAILABLE = "unavailable"
#: Part of a grant's detail, before the reason, if C++ allocates without malloc.
UNCOUNTED_NEW = "calls of C++'s operator new are not counted: "
#: A part of the guard of allocations that is named if it is not counted.
_OPERATOR_NEW = "operator_new"
_LABELS = {"page_faults": "page fault", "system_calls": "system call", "allocations": "allocation"}


def describe(violation: dict[str, Any]) -> str:
    """Return a violation and its place as text: ``system call getppid in servo.Servo.step (servo.pyx:12)``."""
    text = f"{violation['kind']} {violation['detail']}"
    if violation["symbol"]:
        text += f" in {violation['symbol']}"
    if violation["line"]:
        text += f" ({os.path.basename(violation['file'])}:{violation['line']})"
    if violation["through"]:
        text += f" through {violation['through'][0]}"
    return text + (f", {violation['note']}" if violation["note"] else "")


def when(violation: dict[str, Any]) -> str:
    """Return the cycles of a place's violations as text: ``in cycle 20`` or ``in cycles 20 to 49``."""
    first, last = violation["cycle"], violation.get("last_cycle", violation["cycle"])
    return f"in cycle {first:,}" if first == last else f"in cycles {first:,} to {last:,}"


def groups(guard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the listed violations, one dict for each place.

    An older rtloop saved each violation alone, without `count` and `last_cycle`; those at one place are merged here.
    """
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for v in guard.get("violations", []):
        detail = v["kind"] if "fault" in v["kind"] else v["detail"]  # each fault has an address of its own
        found.setdefault((v["kind"], detail, v["address"], v["note"] != ""), []).append(v)
    return [
        alike[0]
        | {
            "count": sum(v.get("count", 1) for v in alike),
            "last_cycle": max(v.get("last_cycle", v["cycle"]) for v in alike),
        }
        for alike in found.values()
    ]


def unlisted(guard: dict[str, Any]) -> list[str]:
    """Return how many violations are not listed, by kind, as texts: ``144 system calls``."""
    missing = guard.get("unlisted") or {}
    if isinstance(missing, int):  # saved by an older rtloop
        missing = {"violation": missing}
    return [_counted(number, kind) for kind, number in missing.items()]


def summarise(
    settings: dict[str, Any], given: Sequence[Grant], counters: dict[str, Any], listed: list[dict[str, Any]]
) -> dict[str, Any]:
    """Make ``Stats.guard``: empty without guards; None for what was not counted, with the reason in `unavailable`."""
    mode = settings.get("guard", "off")
    if mode == "off":
        return {}
    minor, major, system_calls, allocations = counters["guard"]
    counts: dict[str, Any] = {
        "page_faults": {"minor": minor, "major": major},
        "system_calls": system_calls,
        "allocations": allocations,
    }
    by_name = {grant.name: grant for grant in given}
    unavailable = {}
    for what, name in GRANTS.items():
        grant = by_name.get(name)
        if "simulation" in settings:
            unavailable[what] = "they are not applied to a simulated run"
        elif grant is None:
            unavailable[what] = "it is not known whether it was watched for"
        elif grant.granted == UNAVAILABLE:
            unavailable[what] = grant.detail
            if grant.lost is not None:
                unavailable[what] += f"; {counts[what]} counted until then"
        if what in unavailable:
            counts[what] = None
        elif grant is not None and UNCOUNTED_NEW in grant.detail:
            unavailable[_OPERATOR_NEW] = grant.detail.split(UNCOUNTED_NEW, 1)[1]
    kept = dict.fromkeys(KINDS, 0)
    for v in listed:
        kept[v["kind"]] = kept.get(v["kind"], 0) + v["count"]
    missing = {kind: number - kept[kind] for kind, number in zip(KINDS, counters["guard"], strict=True)}
    return {
        "mode": mode,
        "allowed": list(settings.get("guard_allow") or ()),
        "cycles": 0 if GRANTS.keys() <= unavailable.keys() else counters["cycles"] - counters["warmup"],
        **counts,
        "unavailable": unavailable,
        "violations": listed,
        "unlisted": {kind: number for kind, number in missing.items() if number > 0},
    }


def count(guard: dict[str, Any]) -> int:
    """Return the number of violations in a ``Stats.guard``."""
    faults = guard.get("page_faults") or {}
    others = sum(guard.get(name) or 0 for name in ("system_calls", "allocations"))
    return int(sum(faults.values()) + others)


def sentence(guard: dict[str, Any]) -> str:
    """Return the findings of the guards: ``100 000 cycles: 0 page faults, 0 system calls, 0 allocations in step``.

    What was not counted is named, never shown as zero. Empty without guards.
    """
    if not guard:
        return ""
    unavailable = guard.get("unavailable", {})
    parts = []
    for what, label in _LABELS.items():
        if what not in unavailable:
            value = guard.get(what) or 0
            number = sum(value.values()) if isinstance(value, dict) else value
            parts.append(_counted(number, label))
            if what == "system_calls" and guard.get("allowed"):
                parts[-1] += f" other than the allowed ({', '.join(guard['allowed'])})"
            if what == "allocations" and number:
                parts[-1] = f"{_counted(number, 'call')} of malloc, free and the like"
    names = {what: f"{label}s" for what, label in _LABELS.items()} | {_OPERATOR_NEW: "calls of C++'s operator new"}
    missing = [f"{names[what]} not counted ({why})" for what, why in unavailable.items()]
    reasons = list(unavailable.values())
    if not parts and len(set(reasons)) == 1:
        return f"The guards counted nothing: {reasons[0]}"
    if not parts:
        return f"The guards counted nothing: {'; '.join(missing)}"
    text = f"{_counted(guard.get('cycles', 0), 'cycle')}: {', '.join(parts)} in step"
    return "; ".join([text, *missing])


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
