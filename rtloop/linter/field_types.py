"""Fields that a loop declares as a parameter or a signal of another type than theirs.

A declaration such as ``self.signal("x", &self.x)`` has only an address. So a C float without ``dtype="f4"`` is read
as a double, together with the field after it, and setting a parameter overwrites that field. The C that Cython
generates shows the types of both.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rtloop.layouts import read_layouts
from rtloop.linter.c_source import closing, source_place
from rtloop.linter.reach import Found

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rtloop.linter.c_source import Function, Place, Token
    from rtloop.linter.reach import Code

__all__ = ["find_mistyped"]

#: Position of the address among the arguments of the methods that declare a field; the last argument is the type.
_ADDRESS = 2
_METHODS = ("parameter", "signal")
_VTABLE = re.compile(r"__pyx_vtabstruct_(\w+)$")
_LITERAL = re.compile(r"__pyx_(?:n|kp)_[us]_(\w+)$")
_MEMBER = re.compile(r"^(?:struct |union |enum )?([\w ]+?) +(\w+)(?:\[[^\]]*\])*$")
_C_TYPES = {
    "float": "f4", "double": "f8", "char": "i1", "signed char": "i1", "unsigned char": "u1", "short": "i2",
    "unsigned short": "u2", "int": "i4", "unsigned int": "u4", "long": "i8", "unsigned long": "u8",
    "PY_LONG_LONG": "i8", "unsigned PY_LONG_LONG": "u8", "Py_ssize_t": "i8", "size_t": "u8", "ssize_t": "i8",
    **{f"{'u' * (sign == 'u')}int{8 * size}_t": f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)},
}  # fmt: skip


class _Declaration(NamedTuple):
    """A call of ``self.parameter`` or ``self.signal``: its method, class, arguments and place."""

    method: str
    owner: str
    arguments: list[list[Token]]
    place: Place


def find_mistyped(code: Code) -> list[Found]:
    """Find the fields of loops that are declared with a type of another size, or as a float instead of an integer.

    An address, a field or a type that the C does not show is left out.
    """
    layouts = read_layouts(code.main.text)
    found = []
    for function in code.main.functions.values():
        for declaration, kind in _declarations(function):
            if code.is_loop(declaration.owner) and _is_mistyped(declaration, kind, layouts):
                method = _show_method(code, function.name, declaration.owner)
                found.append(Found("field-type", declaration.place, method, (method,), [declaration.method]))
    return found


def _show_method(code: Code, name: str, owner: str) -> str:
    """Return the name of a method as its author wrote it: Motor.setup for __pyx_pf_4main_5Motor_2setup."""
    cls = code.show(f"__pyx_vtable_{owner}")
    python = re.match(rf"__pyx_p[fw]_\w*?{len(cls)}{cls}_\d*(\w+)$", name)
    return f"{cls}.{python[1]}" if python else code.show(name)


def _declarations(function: Function) -> Iterator[tuple[_Declaration, str]]:
    """Yield each declaration in a function, and its type as given; "" if that is not a literal."""
    body, place, owner = function.body, function.place, ""
    types: dict[str, str] = {}
    for index, token in enumerate(body):
        if token.kind == "comment":
            place = source_place(token.text) or place
        if token.kind != "name":
            continue
        vtable = _VTABLE.match(token.text)
        owner = vtable[1] if vtable else owner
        follows = [one.text for one in body[index + 1 : index + 4]]
        if follows[:3] == [".", "dtype", "="] and index + 4 < len(body):
            end = next((at for at in range(index + 4, len(body)) if body[at].text == ";"), len(body))
            types[token.text] = body[end - 1].text
        elif token.text in _METHODS and follows[:1] == ["("] and body[index - 1].text in (".", "->") and place:
            arguments = _split(body[index + 2 : closing(body, index + 1)])
            if len(arguments) < _ADDRESS + 2 or not arguments[-1]:
                continue
            last = arguments[-1][-1].text
            literal = _LITERAL.match(types.get(last, ""))
            kind = "f8" if last == "NULL" else literal[1] if literal else ""
            yield _Declaration(token.text, owner, arguments, place), kind


def _split(tokens: list[Token]) -> list[list[Token]]:
    """Split arguments at their commas."""
    arguments: list[list[Token]] = [[]]
    level = 0
    for token in tokens:
        level += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token.text, 0)
        if token.text == "," and level == 0:
            arguments.append([])
        else:
            arguments[-1].append(token)
    return arguments if arguments[-1] else []


def _is_mistyped(declaration: _Declaration, kind: str, layouts: Mapping[str, str]) -> bool:
    own = _field_type(declaration, layouts)
    try:
        declared = np.dtype(kind).base if kind else None
    except TypeError:
        declared = None
    if declared is None or own not in _C_TYPES:
        return False
    field = np.dtype(_C_TYPES[own])
    if declared.kind == "b":
        return field.kind == "f"  # a byte of an integer is enough for a truth value
    return declared.itemsize != field.itemsize or (declared.kind == "f") != (field.kind == "f")


def _field_type(declaration: _Declaration, layouts: Mapping[str, str]) -> str:
    """Return the C type of the field whose address is an argument; "" if the address is not that of a field of self."""
    words = [token.text for token in declaration.arguments[_ADDRESS] if token.text not in ("(", ")")]
    if "&" not in words:
        return ""
    path = words[words.index("&") + 1 :]
    if path[:2] != ["__pyx_v_self", "->"]:
        return ""
    kind = f"__pyx_obj_{declaration.owner}"
    for before, word in pairwise(path):
        if before in (".", "->"):
            kind = _member(layouts.get(kind, ""), word)
    return kind


def _member(struct: str, name: str) -> str:
    """Return the type of a struct's member, or of an array's items; "" if there is none, or it is a pointer."""
    for text in struct.split(";"):
        member = _MEMBER.match(text.strip())
        if member and member[2] == name:
            return member[1]
    return ""
