"""Values and limits of parameters and signals: as JSON holds them, as text, and in tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["format_limits", "format_value", "html_table", "plain_value"]


def html_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as HTML. All text is escaped, because it may come from another process."""

    def cells(tag: str, values: Iterable[object]) -> str:
        return "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption><tr>{cells('th', heads)}</tr>{body}</table>"


def plain_value(value: Any) -> Any:
    """Return a value as JSON holds it: an array as a list, and a number of NumPy as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def format_value(value: Any) -> str:
    """Format the value of a parameter or a signal: a number, a bool, or a list or an array of them."""
    value = plain_value(value)
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    return f"{value:.10g}" if isinstance(value, float) else str(value).lower()


def format_limits(low: Any, high: Any) -> str:
    """Format limits: ``0 to 50``, ``at least 0``. None is the limit of the type; empty if both are None."""
    if low is not None and high is not None:
        return f"{format_value(low)} to {format_value(high)}"
    if low is not None:
        return f"at least {format_value(low)}"
    return "" if high is None else f"at most {format_value(high)}"
