"""The classes of a module that are meant to be run: those from which no other class of the module is derived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["leaf_classes"]


def leaf_classes(module: ModuleType, is_wanted: Callable[[type[Any]], bool]) -> dict[str, type[Any]]:
    """Return the classes of one kind that a module defines, without the bases of others of them.

    Parameters
    ----------
    module : module
        The module. A name that begins with an underscore is private, and not returned.
    is_wanted : callable
        Whether a class is of the kind.

    Returns
    -------
    dict
        Each class by its first name in the module.
    """
    public = {name: one for name, one in vars(module).items() if isinstance(one, type) and not name.startswith("_")}
    own = {name: one for name, one in public.items() if one.__module__ == module.__name__ and is_wanted(one)}
    found: dict[str, type[Any]] = {}
    for name, one in own.items():
        is_base = any(other is not one and issubclass(other, one) for other in own.values())
        if not is_base and one not in found.values():
            found[name] = one
    return found
