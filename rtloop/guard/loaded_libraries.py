"""Libraries that are loaded into this process, as the dynamic linker has them: without ``/proc``, and quickly."""

from __future__ import annotations

import ctypes
import os
from typing import ClassVar

__all__ = ["library_changes", "loaded_libraries"]


class _Info(ctypes.Structure):
    """The begin of struct dl_phdr_info of <link.h>."""

    _fields_: ClassVar = [
        ("address", ctypes.c_void_p), ("name", ctypes.c_char_p), ("headers", ctypes.c_void_p),
        ("count", ctypes.c_uint16), ("adds", ctypes.c_ulonglong), ("subs", ctypes.c_ulonglong),
    ]  # fmt: skip


_Callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_size_t, ctypes.c_void_p)


def library_changes() -> tuple[int, int]:
    """Return how many libraries were loaded and unloaded so far: another pair of numbers after any change."""
    found = (0, 0)

    def look(info: ctypes._Pointer[_Info], size: int, data: int | None) -> int:
        nonlocal found
        found = info.contents.adds, info.contents.subs
        return 1  # the first one tells

    ctypes.PyDLL(None).dl_iterate_phdr(_Callback(look), None)
    return found


def loaded_libraries() -> list[str]:
    """Return the paths of the loaded libraries, as they were when each was loaded (dl_iterate_phdr(3))."""
    found: list[str] = []

    def add(info: ctypes._Pointer[_Info], size: int, data: int | None) -> int:
        name = info.contents.name
        if name:  # the program itself has none
            found.append(os.fsdecode(name))
        return 0

    # The GIL is kept: another thread that waits for it must not meet one that holds the linker's lock.
    ctypes.PyDLL(None).dl_iterate_phdr(_Callback(add), None)
    return found
