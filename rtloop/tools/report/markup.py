"""HTML and SVG made of elements; every text and attribute is escaped."""

from __future__ import annotations

import html
from typing import Any

__all__ = ["Markup", "join", "tag", "text"]

_VOID = {"meta", "br", "rect", "line", "path", "circle", "polygon"}
# Characters that HTML cannot hold, and those that change the direction of text.
_UNPRINTABLE = dict.fromkeys(
    (*range(9), 11, 12, *range(14, 32), *range(127, 160), *range(8234, 8239), *range(8294, 8298)), "�"
)


class Markup(str):
    """Text that is already markup: only :func:`tag`, :func:`text` and :func:`join` make it."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """Escape any value, unless it is markup."""
    if isinstance(value, Markup):
        return value
    plain = str(value).encode("utf-8", "replace").decode("utf-8").translate(_UNPRINTABLE)
    return Markup(html.escape(plain))


def join(*parts: Any) -> Markup:
    """Concatenate texts and elements; None is skipped."""
    return Markup("".join(text(part) for part in parts if part is not None))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Return an element.

    Parameters
    ----------
    name : str
        Its name.
    *children : object
        Markup is kept, anything else is escaped as text; None is skipped.
    **attributes : object
        Its attributes; ``class_`` means class, ``_`` within a name is ``-``. None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = join(*children)
    if name in _VOID and not inner:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{inner}</{name}>")
