"""Guards: watch ``step`` for page faults, system calls and allocations.

A loop with ``guard="count"`` or ``"stop"`` watches page faults and system calls. Watching allocations as well needs a
small library, which must be loaded before the program's first allocation: :func:`reexec`.
"""

from rtloop.guard.guard_block import is_malloc_watched
from rtloop.guard.preload import library, reexec

__all__ = ["is_malloc_watched", "library", "reexec"]
