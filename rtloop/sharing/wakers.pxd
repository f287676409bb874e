from libc.stdint cimport int64_t, uint32_t

from rtloop.headers.ring cimport rt_is_awaited, rt_wakers_t

ctypedef bint (*rt_has_news_t)(const void *exchange) noexcept nogil


cdef rt_wakers_t *loops_of_process() noexcept nogil
cdef void wake(uint32_t *word) noexcept nogil


cdef inline void wake_awaited(uint32_t *word) noexcept nogil:
    if rt_is_awaited(word):
        wake(word)


cdef class Sleep:
    cdef int64_t _until
    cdef int64_t _slice

    cdef bint is_over(self) except -1
    cdef int once(self, uint32_t *word, rt_has_news_t has_news, const void *exchange) except -1
