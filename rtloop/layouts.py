"""C structs of compiled classes, compared to test whether a new build can read objects of a former one.

``take_over`` of a loop casts the former step to a class, and neither Cython nor C checks that cast. Two builds of one
file agree on a class if the text of its struct, and of each struct in it, is the same. ``rtloop.build`` stores the
layouts and the casts of a module in a file next to it, and `check_casts` compares them before a swap.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from rtloop.errors import SwapError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

__all__ = [
    "Cast",
    "Layouts",
    "TakeOver",
    "check_casts",
    "find_disagreement",
    "find_take_overs",
    "keep_layouts",
    "read_layouts",
    "remember_module",
    "rename_module",
    "select_casts",
]

_STRUCT = re.compile(
    r"^(?:struct|union) (?:__Pyx_PACKED )?(__pyx_(?:obj|vtabstruct|t)_\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL
)
_TYPEDEF = re.compile(
    r"^typedef (?!struct |union |enum )(?:[^;\n]*\(\*(__pyx_t_\w+)\)[^;\n]*|[^;\n]*?(__pyx_t_\w+)(?:\[[^;\n]*)?);",
    re.MULTILINE,
)
_ENUM = re.compile(r"^enum __pyx_\w+ \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/|^#line [^\n]*", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"\b__pyx_\w+")
_TAKE_OVER = re.compile(r"^([ \t]+)cdef\s+int\s+take_over\s*\(\s*self\s*,\s*(?:[\w.]+\s+)?(\w+)", re.MULTILINE)
_CLASS = re.compile(r"^(?:cdef\s+(?:(?:public|api)\s+)*)?class\s+(\w+)", re.MULTILINE)
#: Strings and comments.
_NO_CODE = re.compile(r"(\"\"\"|\'\'\').*?\1|\"(?:\\.|[^\"\\\n])*\"|\'(?:\\.|[^\'\\\n])*\'|\#[^\n]*", re.DOTALL)
_CIMPORT = re.compile(r"\bcimport\s+(\([^)]*\)|[^\n]*)")
_ALIAS = re.compile(r"\b(\w+)\s+as\s+(\w+)")
_CTYPEDEF = re.compile(r"^[ \t]*ctypedef\s+(\w+)\s+(\w+)[ \t]*$", re.MULTILINE)
_OF_BASE = re.compile(r"\b(\w+)\s*\.\s*take_over\s*\(")
_KEPT = "layouts.json"


class Cast(NamedTuple):
    """Cast of the former step in a ``take_over``.

    Attributes
    ----------
    line : int
        Its line in the .pyx.
    kind : str
        The class.
    is_called : bool
        True if a method is called on the result of the cast.
    """

    line: int
    kind: str
    is_called: bool


class TakeOver(NamedTuple):
    """A ``take_over`` of a class.

    Attributes
    ----------
    casts : tuple of Cast
        Its casts of the former step, without those in a line with the comment ``# rtloop: cast CLASS: reason``.
    bases : tuple of str
        Classes whose ``take_over`` it calls.
    """

    casts: tuple[Cast, ...]
    bases: tuple[str, ...]


class Layouts(NamedTuple):
    """Layouts and casts of a build.

    Attributes
    ----------
    name : str
        The module's name.
    file : str
        Name of the .pyx.
    structs : dict
        The text of its structs, from `read_layouts`.
    take_overs : dict
        The `TakeOver` of each class that has one.
    """

    name: str
    file: str
    structs: dict[str, str]
    take_overs: dict[str, TakeOver]


#: By class, its module, and the layouts of its build as JSON.
_known: WeakKeyDictionary[type[Any], tuple[ModuleType, str]] = WeakKeyDictionary()
_lock = threading.RLock()


def read_layouts(text: str) -> dict[str, str]:
    """Return the text of the types in a module's C code, by name: of its classes, methods and declarations.

    The text of an enumerator, which may be the length of an array, contains the enumerators before it.
    """
    text = _COMMENT.sub(" ", text)
    found = {name: " ".join(body.split()) for name, body in _STRUCT.findall(text)}
    found |= {one[1] or one[2]: " ".join(one[0].split()) for one in _TYPEDEF.finditer(text)}
    for body in _ENUM.findall(text):
        found |= {one[0]: " ".join(body[: body.find(",", one.end())].split()) for one in _NAME.finditer(body)}
    return found


def rename_module(layouts: Mapping[str, str], modules: Iterable[str]) -> dict[str, str]:
    """Return layouts without the names of these modules, to compare two modules with different names."""
    names = "|".join(f"{len(name)}{re.escape(name)}" for name in modules)
    mangled = re.compile(rf"(__pyx_[a-z_]+_)(?:{names})_")
    return {mangled.sub(r"\1", name): mangled.sub(r"\1", text) for name, text in layouts.items()}


def find_take_overs(source: str) -> dict[str, TakeOver]:
    """Return each ``take_over`` in a .pyx, by the name of its class."""
    found: dict[str, TakeOver] = {}
    lines = source.split("\n")
    source = _NO_CODE.sub(lambda one: re.sub(r"[^\n]", " ", one[0]), source)
    names = {alias: name for names in _CIMPORT.findall(source) for name, alias in _ALIAS.findall(names)}
    names |= {alias: name for name, alias in _CTYPEDEF.findall(source)}
    owners = [(one.start(), one[1]) for one in _CLASS.finditer(source)]
    for signature in _TAKE_OVER.finditer(source):
        owner = next((name for start, name in reversed(owners) if start < signature.start()), "")
        end = re.compile(rf"^(?!{signature[1]}[ \t]|[ \t]*(?:#.*)?$)", re.MULTILINE).search(source, signature.end())
        body = source[: end.start() if end else None]
        casts = []
        for cast in re.compile(rf"<\s*([\w.]+)\s*>\s*{re.escape(signature[2])}\b\s*(\)\s*\.\s*\w+\s*\()?").finditer(
            body, signature.end()
        ):
            kind, line = cast[1].rpartition(".")[2], source.count("\n", 0, cast.start()) + 1
            if not re.search(rf"#\s*rtloop:\s*cast\s+{kind}\s*:", lines[line - 1]):
                casts.append(Cast(line, names.get(kind, kind), cast[2] is not None))
        bases = (names.get(base, base) for base in _OF_BASE.findall(body, signature.end()))
        found[owner] = TakeOver(tuple(casts), tuple(bases))
    return found


def find_disagreement(
    casts: Iterable[Cast], former: Iterable[str], before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[int, str]:
    """Find a cast of the former step that would read fields at offsets at which the former build has others.

    Parameters
    ----------
    casts : iterable of Cast
        Casts of the new step.
    former : iterable of str
        Names of the former step's class and its bases.
    before, after : mapping
        Structs of the two builds.

    Returns
    -------
    line : int
        Line of the cast; 0 if there is no such cast.
    reason : str
        Reason.
    """
    former = list(former)
    for line, kind, is_called in casts:
        if kind == "RTLoop":
            continue
        if kind not in former:
            return line, f"take_over() reads the former step as a {kind}, but it is a {former[0]}"
        changed = _changed(kind, before, after, is_called=is_called)
        if changed:
            return line, f"take_over() reads the former step as a {kind}, but the {changed} of {kind} have changed"
    return 0, ""


def select_casts(take_overs: Mapping[str, TakeOver], kinds: Iterable[str]) -> list[Cast]:
    """Return the casts that the ``take_over`` of a class makes.

    Parameters
    ----------
    take_overs : mapping
        The ``take_over`` methods of its module.
    kinds : iterable of str
        Names of the class and its bases.
    """
    waiting = [name for name in kinds if name in take_overs][:1]
    seen: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in take_overs and name not in seen:
            seen.append(name)
            waiting += take_overs[name].bases
    return sorted(cast for name in seen for cast in take_overs[name].casts)


def _changed(kind: str, before: Mapping[str, str], after: Mapping[str, str], *, is_called: bool) -> str:
    """Return the part of a class that has changed: "fields", "methods" or ""."""
    waiting = [min((name for name in after if name.endswith(f"_{kind}") and "_obj_" in name), key=len, default="")]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        then, now = before.get(name, ""), after.get(name, "")
        if "_vtabstruct_" in name:
            # Methods that are added at the end do not shift the others.
            if then != now and (is_called or not now.startswith(then)):
                return "methods"
            continue
        if then != now:
            return "fields"
        waiting += [used for used in _NAME.findall(now) if used in after]
    return ""


def keep_layouts(module: Path, layouts: Layouts) -> None:
    """Write the layouts and casts of a build next to its module.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    import tempfile  # here, because `rtloop run` of a compiled file has to be quick

    target = module.with_name(_KEPT)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, encoding="utf-8", delete=False) as file:
        try:
            json.dump(layouts, file)
            file.flush()
            os.fchmod(file.fileno(), module.stat().st_mode & 0o666)  # for the other users of the cache
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def remember_module(module: ModuleType, path: Path) -> None:
    """Remember the layouts of a module's classes, because the cache may be emptied while the module is in use.

    Parameters
    ----------
    module : module
        The imported module.
    path : pathlib.Path
        Its file.
    """
    own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    text = ""
    with suppress(OSError):
        text = path.with_name(_KEPT).read_text(encoding="utf-8", errors="replace")
    with _lock:
        _known.update({kind: (module, text) for kind in own if kind not in _known})


def _find_layouts(kind: type[Any]) -> tuple[ModuleType, Layouts] | None:
    """Return the module of a class and the layouts of its build; None if `rtloop.build` has not built it."""
    with _lock:
        found = _known.get(kind)
    if found is None:
        return None
    module, text = found
    try:
        name, file, structs, take_overs = json.loads(text)
        return module, Layouts(
            name, file, dict(structs),
            {
                owner: TakeOver(tuple(Cast(*cast) for cast in casts), tuple(bases))
                for owner, (casts, bases) in take_overs.items()
            },
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError):
        return None


def check_casts(former: object, successor: object) -> None:
    """Check the casts in the ``take_over`` of a step that was built by ``rtloop.build``.

    Parameters
    ----------
    former, successor : RTLoop
        The present step, and the step that is to replace it.

    Raises
    ------
    SwapError
        If a cast would read fields that the former step does not have.
    """
    own, theirs = type(successor), type(former)
    builds = ((base, _find_layouts(base)) for base in own.__mro__)
    found = next((build for base, build in builds if build and base.__name__ in build[1].take_overs), None)
    if found is None:
        return
    module, new = found
    wrong = []
    for cast in select_casts(new.take_overs, [one.__name__ for one in own.__mro__]):
        same = [getattr(module, cast.kind, None), *(one for one in own.__mro__ if one.__name__ == cast.kind)]
        if not any(isinstance(one, type) and issubclass(theirs, one) for one in same):
            wrong.append(cast)
    if not wrong:
        return
    names = [one.__name__ for one in theirs.__mro__]
    old = next(filter(None, map(_find_layouts, theirs.__mro__)), None)
    if old is None:
        strange = [cast for cast in wrong if cast.kind in names]
        line, reason = find_disagreement((cast for cast in wrong if cast.kind not in names), names, {}, {})
        if not reason and strange:
            line, kind, _ = strange[0]
            reason = (
                f"take_over() reads the former step as a {kind}, but the fields of that {kind} are unknown, because "
                "rtloop.build has not built it"
            )
    else:
        both = {new.name, old[1].name}
        before, after = rename_module(old[1].structs, both), rename_module(new.structs, both)
        line, reason = find_disagreement(wrong, names, before, after)
        for cast in wrong if not reason else ():
            built = (one for one in theirs.__mro__ if one.__name__ == cast.kind and _find_layouts(one))
            then = next((one.__basicsize__ for one in built), None)  # a class of Python with that name is larger
            now = getattr(getattr(module, cast.kind, None), "__basicsize__", None)
            if None not in (now, then) and now != then:  # a struct of the user's C
                line = cast.line
                reason = f"take_over() reads the former step as a {cast.kind}, whose size was {then} bytes and is {now}"
                break
    if reason:
        raise SwapError(
            f"{new.file}:{line}: {reason}; fix: keep the fields that it reads in a base class that does not change, "
            "and cast to that class; or omit take_over() for this swap; or stop the loop and start it again"
        )


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it


os.register_at_fork(after_in_child=_reset_after_fork)
