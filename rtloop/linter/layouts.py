"""Layouts: the C structs of a module's classes, compared to test whether a new build can read objects of a former one.

``take_over`` of a loop casts the former step to a class, and Cython does not check that cast. Two builds of one file
agree on a class if the text of its struct, and of each struct in it, is the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["find_disagreement", "read_layouts", "rename_module"]

_STRUCT = re.compile(r"^struct (__pyx_(?:obj|vtabstruct|t)_\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_NAME = re.compile(r"\b__pyx_\w+")
_TAKE_OVER = re.compile(r"^\s+cdef\s+int\s+take_over\s*\(\s*self\s*,\s*(?:\w+\s+)?(\w+)", re.MULTILINE)


def read_layouts(text: str) -> dict[str, str]:
    """Return the text of the structs in the C of a module, by name: of classes, their methods, and its declarations."""
    return {name: " ".join(body.split()) for name, body in _STRUCT.findall(_COMMENT.sub(" ", text))}


def rename_module(layouts: Mapping[str, str], modules: Iterable[str]) -> dict[str, str]:
    """Return layouts without the names of these modules, to compare those of two modules with different names."""
    names = "|".join(f"{len(name)}{re.escape(name)}" for name in modules)
    mangled = re.compile(rf"(__pyx_[a-z_]+_)(?:{names})_")
    return {mangled.sub(r"\1", name): mangled.sub(r"\1", text) for name, text in layouts.items()}


def find_disagreement(
    source: str, former: Iterable[str], before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[int, str]:
    """Find a cast of the former step that would read fields from places where the former build has not written them.

    Parameters
    ----------
    source : str
        The new .pyx.
    former : iterable of str
        Names of the former step's class and its bases.
    before, after : mapping
        Layouts of the two builds.

    Returns
    -------
    line : int
        Line of the cast; 0 if there is no such cast.
    reason : str
        Reason.
    """
    former = list(former)
    for signature in _TAKE_OVER.finditer(source):
        name = re.escape(signature[1])
        for cast in re.finditer(rf"<\s*([\w.]+)\s*>\s*{name}\b\s*(\)\s*\.\s*\w+\s*\()?", source):
            kind, is_called = cast[1].rpartition(".")[2], cast[2] is not None
            line = source.count("\n", 0, cast.start()) + 1
            if kind not in former:
                return line, f"take_over() reads the former step as a {kind}, and it is a {former[0]}"
            changed = _changed(kind, before, after, is_called=is_called)
            if changed:
                return line, f"take_over() reads the former step as a {kind}, and the {changed} of {kind} have changed"
    return 0, ""


def _changed(kind: str, before: Mapping[str, str], after: Mapping[str, str], *, is_called: bool) -> str:
    """Return what has changed of a class: its fields, its methods, or nothing."""
    waiting = [min((name for name in after if name.endswith(f"_{kind}") and "_obj_" in name), key=len, default="")]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        then, now = before.get(name, ""), after.get(name, "")
        if "_vtabstruct_" in name:
            # Methods that are added at the end do not move the others.
            if then != now and (is_called or not now.startswith(then)):
                return "methods"
            continue
        if then != now:
            return "fields"
        waiting += [used for used in _NAME.findall(now) if used in after]
    return ""
