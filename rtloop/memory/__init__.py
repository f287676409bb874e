"""Memory of a real-time process: limits, locks, prefaulting, advice, and the account of it, with or without a loop.

In Cython, ``from rtloop.memory cimport lock, unlock, prefault, ...`` gives the forms on addresses: ``nogil``, and
returning 0 or a negative errno. All of it is set-up, which enters the kernel; nothing here belongs in ``step``.
"""

from rtloop.memory.locking import (
    ADVICE,
    advise,
    disable_core_dumps,
    lock,
    lock_all,
    prefault,
    prefault_stack,
    raise_limit,
    setup,
    tune_malloc,
    unlock,
    unlock_all,
)
from rtloop.memory.report import MemoryStatus, status

__all__ = [
    "ADVICE",
    "MemoryStatus",
    "advise",
    "disable_core_dumps",
    "lock",
    "lock_all",
    "prefault",
    "prefault_stack",
    "raise_limit",
    "setup",
    "status",
    "tune_malloc",
    "unlock",
    "unlock_all",
]
