"""Guards watch ``step`` for page faults, system calls and allocations; this is their front door.

Page faults and system calls are watched by any loop with ``guard="count"`` or ``"stop"``. Allocations are seen by a
small library that has to be loaded before the program's first allocation: :func:`reexec`.
"""

from rtloop.guard.guard_block import is_malloc_watched
from rtloop.guard.preload import library, reexec

__all__ = ["is_malloc_watched", "library", "reexec"]
