"""Validation of untrusted files of saved stats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rtloop.settings import is_setting
from rtloop.stats.explanation import KINDS, Explanation, Share

if TYPE_CHECKING:
    import zipfile

__all__ = ["check_archive", "check_fields", "check_kind"]

#: First bytes or suffix of files of signals, and what reads them.
_SIGNALS = (
    (b"\x93NUMPY", ".npy", "numpy.load"),
    (b"\x89MCAP", ".mcap", "Foxglove, or the Python package mcap"),
    (None, ".csv", "numpy.genfromtxt or a spreadsheet"),
)
_COUNTS = ("cycles", "missed", "overruns", "late", "stalls", "warmup", "duration_ns")
_INT64_MAX = 2**63 - 1
#: More than the longest record takes, with its stats.
_MAX_BYTES = 2 << 30
#: A sum of 2**63 values of 64 bits each stays below it, and a float holds it.
_MAX_TOTAL = 1 << 127
#: A sum of 2**63 squares of 64-bit values stays below it.
_MAX_SQUARES = 1 << 190


def check_kind(content: bytes, suffix: str) -> None:
    """Refuse a file of signals, which is the one most often mistaken for a file of stats.

    Raises
    ------
    ValueError
        With the kind of the file, and the programs that read it.
    """
    for start, kind, reader in _SIGNALS:
        if content.startswith(start) if start else suffix == kind:
            raise ValueError(
                f"it is a {kind} file, as a Recorder and rtloop record write signals; {reader} reads it. Timing is "
                "saved by stats.save and by rtloop run --record"
            )


def check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse an archive that is not a file of stats, or would not fit into memory.

    Raises
    ------
    ValueError
        With the reason.
    """
    names = archive.namelist()
    if "stats.npy" not in names:
        if "records.npy" in names:
            raise ValueError("it has records but no stats: it may be the signals of a Recorder, which numpy.load reads")
        raise ValueError("it has no stats in it")
    size = sum(info.file_size for info in archive.infolist())
    if size > _MAX_BYTES:
        raise ValueError(f"unpacked it would take {size >> 20} MiB of memory")


def check_fields(fields: dict[str, Any]) -> None:
    """Refuse values of a wrong type or range, so that readers of a Stats need no checks.

    Raises
    ------
    ValueError
        With the name and the value of the first one.
    """
    for name in ("name", "state"):
        _check(name, fields[name], "printable text", _is_text(fields[name]))
    for name in _COUNTS:
        _check(name, fields[name], "count", _is_count(fields[name]))
    shifted = fields.get("shifted_ns")
    _check("shifted_ns", shifted, "time", shifted is None or _is_int(shifted, -_INT64_MAX, _INT64_MAX))
    for name in ("device_cycles", "device_missed"):
        _check(name, fields.get(name), "count", fields.get(name) is None or _is_count(fields[name]))
    _check("forks", fields["forks"], "count", fields["forks"] is None or _is_count(fields["forks"]))
    steps = fields.get("clock_steps", 0)
    _check("clock_steps", steps, "count", _is_count(steps))
    for name in ("clock_step_sizes", "clock_step_cycles"):
        value = fields.get(name, [])
        is_right = isinstance(value, list) and all(_is_int(item, -_INT64_MAX, _INT64_MAX) for item in value)
        _check(name, value, "list of numbers", is_right)
    sizes, cycles = fields.get("clock_step_sizes", []), fields.get("clock_step_cycles", [])
    _check("clock_step_cycles", cycles, "list of counts, one a size", len(sizes) == len(cycles) <= steps)
    _check("clock_step_cycles", cycles, "list of counts", all(item >= 0 for item in cycles))
    gap = fields.get("clock_gap_ns", 0)
    _check("clock_gap_ns", gap, "number", _is_int(gap, -_INT64_MAX, _INT64_MAX))
    changes = fields.get("parameter_changes", [])
    is_list = changes is None or (isinstance(changes, list) and all(map(_is_change, changes)))
    _check("parameter_changes", changes, "list of changes", is_list)
    swaps = fields.get("swaps", [])
    _check("swaps", swaps, "list of swaps", swaps is None or (isinstance(swaps, list) and all(map(_is_swap, swaps))))
    explained = fields.get("explanations")
    is_list = explained is None or (isinstance(explained, list) and all(map(_is_explanation, explained)))
    _check("explanations", explained, "list of explanations", is_list)
    for name in ("lost_parameter_changes", "refused_parameter_sets"):
        _check(name, fields.get(name, 0), "count", _is_count(fields.get(name, 0)))
    for name in ("page_faults", "context_switches", "stack"):
        pair = fields[name]
        _check(
            name,
            pair,
            "pair of counts",
            isinstance(pair, dict) and all(v is None or _is_count(v) for v in pair.values()),
        )
    _check("stack", fields["stack"], "size", fields["stack"].get("size") is not None)
    for name in ("guard", "settings", "host"):
        _check(name, fields[name], "table", isinstance(fields[name], dict))
    for key, value in fields["host"].items():
        _check(key, value, "fact", not isinstance(value, int) or _is_int(int(value), -_INT64_MAX, _INT64_MAX))
    _check("guard", fields["guard"], "summary of guards", _is_guard(fields["guard"]))
    settings = fields["settings"]
    _check("period_ns", settings.get("period_ns"), "period", _is_count(settings.get("period_ns", 0)))
    for key, value in settings.items():
        _check(key, value, "setting", is_setting(key, value))
    models = settings.get("simulation") or {"latency": "", "execution": ""}
    _check(
        "simulation", models, "pair of models", isinstance(models, dict) and {"latency", "execution"} <= models.keys()
    )
    _check("grants", fields["grants"], "list", isinstance(fields["grants"], list))
    for grant in fields["grants"]:
        _check("grants", grant, "grant", isinstance(grant, dict) and _is_grant(grant))
    for name in fields.keys() & {"latency", "execution", "response", "interval", "waiting"}:
        _check(name, fields[name], "histogram", isinstance(fields[name], dict) and _is_histogram(fields[name]))


def _check(name: str, value: object, kind: str, is_right: bool) -> None:
    if not is_right:
        text = repr(value)
        raise ValueError(f"{name} is {text if len(text) < 80 else text[:80] + '...'}, which is not a {kind}")


def _is_int(value: object, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_count(value: object) -> bool:
    return _is_int(value, 0, _INT64_MAX)


def _is_text(value: object) -> bool:
    """Return whether it is a text without control characters, which a terminal would obey."""
    return isinstance(value, str) and value.replace("\n", "").isprintable()


def _is_line(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_grant(grant: dict[str, Any]) -> bool:
    texts = all(_is_text(grant.get(name, "")) for name in ("name", "detail", "fix"))
    return texts and isinstance(grant.get("ok"), bool) and _is_int(grant.get("errno", 0), 0, _INT64_MAX)


def _is_change(change: object) -> bool:
    """Return whether it has the form of a ParameterChange."""
    return (
        isinstance(change, dict)
        and change.keys() == {"cycle", "values", "pid", "tid", "host", "program"}
        and _is_int(change["cycle"], 0, 2**64 - 1)
        and isinstance(change["values"], dict)
        and all(map(_is_text, change["values"]))
        and all(map(_is_value, change["values"].values()))
        and all(_is_int(change[name], -_INT64_MAX, _INT64_MAX) for name in ("pid", "tid"))
        and all(_is_text(change[name]) for name in ("host", "program"))
    )


def _is_swap(swap: object) -> bool:
    """Return whether it has the form of a Swap."""
    return (
        isinstance(swap, dict)
        and swap.keys() - {"reason"} == {"cycle", "former", "successor"}
        and (swap.get("reason") is None or _is_text(swap["reason"]))
        and _is_int(swap["cycle"], 0, 2**64 - 1)
        and all(_is_text(swap[name]) for name in ("former", "successor"))
    )


def _is_explanation(one: object) -> bool:
    """Return whether it has the form of an Explanation."""
    return (
        isinstance(one, dict)
        and one.keys() - {"sentence"} == {*Explanation._fields}
        and all(_is_line(one[name]) for name in ("name", "text"))
        and one["what"] in ("start", "execution")
        and isinstance(one["culprit"], str)
        and one["culprit"] in KINDS
        and all(_is_int(one[name], -_INT64_MAX, _INT64_MAX) for name in ("cycle", "release_ns", "delay_ns", "cpu"))
        and isinstance(one["shares"], list)
        and all(map(_is_share, one["shares"]))
    )


def _is_share(share: object) -> bool:
    return (
        isinstance(share, dict)
        and share.keys() == {*Share._fields}
        and isinstance(share["kind"], str)
        and share["kind"] in KINDS
        and _is_line(share["name"])
        and _is_count(share["ns"])
        and _is_count(share["pieces"])
    )


def _is_value(value: object, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < 64 and all(_is_value(item, depth + 1) for item in value)
    return isinstance(value, bool | int | float)


def _is_guard(guard: dict[str, Any]) -> bool:
    """Return whether it has the form that guard_summary.summarise makes."""
    if not guard:
        return True
    faults, reasons, listed = guard.get("page_faults"), guard.get("unavailable"), guard.get("violations")
    missing = guard.get("unlisted")
    if isinstance(missing, dict) and not all(map(_is_text, missing)):
        return False
    counts = [guard.get("cycles"), *(missing.values() if isinstance(missing, dict) else [missing])]
    counts += [guard[name] for name in ("system_calls", "allocations") if guard.get(name) is not None]
    if faults is not None:
        if not isinstance(faults, dict) or set(faults) != {"minor", "major"}:
            return False
        counts += faults.values()
    return (
        _is_text(guard.get("mode"))
        and isinstance(guard.get("allowed", []), list)
        and all(_is_text(name) for name in guard.get("allowed", []))
        and all(_is_count(number) for number in counts)
        and isinstance(reasons, dict)
        and set(reasons) <= {"page_faults", "system_calls", "allocations", "operator_new"}
        and all(_is_text(why) for why in reasons.values())
        and isinstance(listed, list)
        and all(isinstance(violation, dict) and _is_violation(violation) for violation in listed)
    )


def _is_violation(violation: dict[str, Any]) -> bool:
    texts = all(_is_text(violation.get(name)) for name in ("kind", "detail", "note"))
    maybe = all(violation.get(name) is None or _is_text(violation[name]) for name in ("symbol", "file"))
    through, line = violation.get("through"), violation.get("line")
    return (
        texts
        and maybe
        and _is_count(violation.get("cycle"))
        and _is_count(violation.get("last_cycle", 0))
        and _is_count(violation.get("count", 1))
        and _is_int(violation.get("address"), 0, 2**64 - 1)
        and (line is None or (_is_count(line) and violation.get("file") is not None))
        and isinstance(through, list)
        and all(_is_text(name) for name in through)
    )


def _is_histogram(values: dict[str, Any]) -> bool:
    counts, limits = values["counts"], (values["min_ns"], values["max_ns"])
    return (
        isinstance(counts, list)
        and all(_is_count(count) for count in counts)
        and sum(counts) <= _INT64_MAX
        and all(_is_int(limit, -_INT64_MAX, _INT64_MAX) for limit in limits)
        and _is_int(values["total_ns"], -_MAX_TOTAL, _MAX_TOTAL)
        and (values.get("squares_ns2") is None or _is_int(values["squares_ns2"], 0, _MAX_SQUARES))
    )
