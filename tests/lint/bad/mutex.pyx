"""A mutex, of which nobody knows whether it inherits priority."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef class Loop(RTLoop):
    cdef pthread_mutex_t lock

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        pthread_mutex_lock(&self.lock)  # BAD: blocking
        pthread_mutex_unlock(&self.lock)
        return RT_CONTINUE
