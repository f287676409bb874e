"""Memory of a real-time process: limits, locks, prefaulting, advice and accounting, with or without a loop.

In Cython, ``from rtloop.memory cimport lock, unlock, prefault, ...`` gives ``nogil`` functions that take addresses and
return 0 or a negative errno. All of them enter the kernel: call them during set-up, not in ``step``.
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
