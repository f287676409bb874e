"""docs/explanation/reliability.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    text = (ROOT / "docs/explanation/reliability.md").read_text()
    named = set(re.findall(r"`(?:python )?(tests/[\w/.]+)`", text))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_no_fault_in_its_table_left_anything_behind() -> None:
    text = (ROOT / "docs/explanation/reliability.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| `\w+` \| E", line)]
    assert len(rows) > 40
    assert {row[-1] for row in rows} == {"0"}
