"""Atomics, and a mutex that is only tried."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from *:
    """
    static int more(int *p) { return __atomic_add_fetch(p, 1, __ATOMIC_RELAXED); }
    """
    int more(int *p) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef class Loop(RTLoop):
    cdef int n
    cdef pthread_mutex_t lock

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = more(&self.n)
        if pthread_mutex_trylock(&self.lock) == 0:
            pthread_mutex_unlock(&self.lock)
        return RT_CONTINUE
