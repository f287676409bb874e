"""Tables of values for notebooks, which show an object by its ``_repr_html_``."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["html_table", "show_limits"]


def html_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as HTML. All text is escaped, because it may come from another process."""

    def cells(tag: str, values: Iterable[object]) -> str:
        return "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption><tr>{cells('th', heads)}</tr>{body}</table>"


def show_limits(low: object, high: object) -> str:
    """Return limits as text: ``0 to 50``, ``at least 0``, or an empty string without any."""
    if low is None or high is None:
        return f"at most {high}" if high is not None else f"at least {low}" if low is not None else ""
    return f"{low} to {high}"
