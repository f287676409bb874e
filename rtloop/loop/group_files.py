"""What a group's loops have done, as each loop's Stats that say which group's, and as files of these."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from rtloop.loop import member

if TYPE_CHECKING:
    from pathlib import Path

    from rtloop.loop.loop import RTLoop
    from rtloop.loop.stats import Stats

__all__ = ["save_all", "stats_of"]


def stats_of(loop: RTLoop) -> Stats:
    """Return a loop's statistics; after a group's run its settings tell `group`, the name, and `origin_ns`."""
    run = member.run_of(loop)  # before the statistics: those of a later run are not taken for this one's
    stats = loop.stats
    if run is None or run.origin_ns is None or stats.is_simulated:
        return stats
    return replace(stats, settings={**stats.settings, "group": run.name, "origin_ns": run.origin_ns})


def save_all(every: Mapping[str, Stats], folder: str | os.PathLike[str]) -> list[Path]:
    """Write each loop's statistics to a file in the folder, named as the loop, and return the files."""
    from pathlib import Path  # here, for an import of rtloop is to be quick

    target = Path(folder)
    target.mkdir(exist_ok=True)
    names: list[str] = []
    for name in every:
        plain = re.sub(r"[^\w.-]+", "_", name).strip(".") or "loop"
        names.append(plain if plain not in names else f"{plain}-{len(names) + 1}")
    return [stats.save(target / f"{name}.npz") for name, stats in zip(names, every.values(), strict=True)]
