"""Forks of this process: their number, their times, and the memory lock that follows each in the parent.

It notices forks by the C library's fork() (pthread_atfork(3)). A real-time thread that forks keeps its stack for the
child, which continues on it.
"""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from rtloop._os cimport (
    mlockall,
    pthread_atfork,
    pthread_getspecific,
    pthread_key_create,
    pthread_key_t,
    pthread_setspecific,
)
from rtloop.headers.loop cimport rt_stack_keep_for_own_child, rt_stack_t, rt_stack_wipe_again
from rtloop.headers.memory cimport rt_fork_watch_t


cdef rt_fork_watch_t _watch
# Times at which the last forks began, on CLOCK_MONOTONIC, to recognise violations that a fork has caused. The fork of a
# large process takes many cycles, and each page that was copied to the child is copy-on-write from then on.
cdef int64_t _fork_times[16]
cdef int64_t _began
# For each real-time thread its rt_stack_t, which exists as long as the thread.
cdef pthread_key_t _own_stack


cdef void _before_fork() noexcept nogil:
    global _began
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    _began = now.tv_sec * 1_000_000_000 + now.tv_nsec
    cdef rt_stack_t *stack = <rt_stack_t *>pthread_getspecific(_own_stack)
    if stack is not NULL:
        rt_stack_keep_for_own_child(stack)


cdef void _after_fork_in_parent() noexcept nogil:
    # The fork made every locked private page copy-on-write. Locking again copies them here instead of in a cycle.
    _fork_times[_watch.forks % 16] = _began
    _watch.forks += 1
    cdef rt_stack_t *stack = <rt_stack_t *>pthread_getspecific(_own_stack)
    if stack is not NULL:
        rt_stack_wipe_again(stack)
    if _watch.lock_flags:
        mlockall(_watch.lock_flags)


cdef void _after_fork_in_child() noexcept nogil:
    # Memory locks are not inherited (mlockall(2)).
    _watch.lock_flags = 0


cdef void keep_stack_in_own_forks(rt_stack_t *stack) noexcept nogil:
    """Keep the calling thread's stack in the children that the thread itself forks: for `rt_stack_t.on_begin`."""
    pthread_setspecific(_own_stack, stack)  # without it, such a child ends by SIGSEGV


cdef void lock_after_fork(int flags) noexcept nogil:
    """Set the flags of mlockall(2) with which the parent locks again after each fork; 0: it does not."""
    _watch.lock_flags = flags


cdef int lock_flags_after_fork() noexcept nogil:
    """Return the flags of :func:`lock_after_fork`."""
    return _watch.lock_flags


def fork_count():
    """Return the number of forks of this process with the C library's fork()."""
    return _watch.forks


def fork_times():
    """Return the times at which the last forks began, at most 16, in ns on CLOCK_MONOTONIC."""
    return sorted([_fork_times[i] for i in range(min(_watch.forks, 16))])


if pthread_key_create(&_own_stack, NULL):
    raise MemoryError("pthread_key_create failed: the process has too many thread-specific keys")
if pthread_atfork(_before_fork, _after_fork_in_parent, _after_fork_in_child):
    raise MemoryError("pthread_atfork failed")
