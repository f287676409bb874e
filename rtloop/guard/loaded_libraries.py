"""Libraries that are loaded into this process, as the dynamic linker has them: without ``/proc``, and quickly."""

from __future__ import annotations

import ctypes
import os
from typing import ClassVar

__all__ = ["loaded_libraries"]


class _Info(ctypes.Structure):
    """The begin of struct dl_phdr_info of <link.h>."""

    _fields_: ClassVar = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]


_Callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_size_t, ctypes.c_void_p)


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
