"""The forms of rtloop.memory on addresses, to cimport: ``noexcept nogil``, returning 0 or a negative errno.

All of them enter the kernel and may take long: they are for set-up, enter() and leave(), never for step(). Locks made
here are the kernel's own and are not counted: keep what must outlive loops in a Pool, a HugeBuffer, or locked from
Python.
"""

from rtloop.memory.kernel cimport advise_region as advise
from rtloop.memory.kernel cimport forbid_core_dumps as disable_core_dumps
from rtloop.memory.kernel cimport lock_all_memory as lock_all
from rtloop.memory.kernel cimport lock_region as lock
from rtloop.memory.kernel cimport prefault_region as prefault
from rtloop.memory.kernel cimport prefault_stack_region as prefault_stack
from rtloop.memory.kernel cimport raise_memlock_limit as raise_limit
from rtloop.memory.kernel cimport tune_heap as tune_malloc
from rtloop.memory.kernel cimport unlock_all_memory as unlock_all
from rtloop.memory.kernel cimport unlock_region as unlock
