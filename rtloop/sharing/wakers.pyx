"""Sleeping until there is something in an exchange, and waking whoever sleeps. See include/rtloop/wakes.h."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from rtloop.headers.ring cimport (
    RT_WAIT_FIRST_NS,
    RT_WAIT_SLICE_NS,
    rt_wait_announce,
    rt_wait_sleep,
    rt_wake_request,
    rt_wakers_t,
)

from functools import lru_cache
from time import monotonic_ns

from rtloop.units import parse_timeout


_parse_text = lru_cache(64)(parse_timeout)  # a consumer waits with the same text a thousand times a second

cdef rt_wakers_t _wakers


cdef rt_wakers_t *loops_of_process() noexcept nogil:
    """Return the loops of this process, for their threads to enter themselves."""
    return &_wakers


cdef void wake(uint32_t *word) noexcept nogil:
    """Wake all that sleep for a word: at once, or in a step at its end."""
    rt_wake_request(&_wakers, word)


cdef class Sleep:
    """Sleep(timeout)
--

    One wait for an exchange, as a number of sleeps.

    Parameters
    ----------
    timeout : duration or None
        Longest wait; None: no limit.
    """

    def __cinit__(self, timeout):
        if timeout is None:
            self._until = INT64_MAX
        else:
            self._until = monotonic_ns() + (_parse_text if type(timeout) is str else parse_timeout)(timeout)
        self._slice = RT_WAIT_FIRST_NS

    cdef bint is_over(self) except -1:
        """Tell whether the time is up."""
        return self._until != INT64_MAX and monotonic_ns() >= self._until

    cdef int once(self, uint32_t *word, rt_has_news_t has_news, const void *exchange) except -1:
        """Sleep until the word is woken, or for a slice; at once if there is something. Runs signal handlers."""
        cdef int64_t ns = self._slice
        if self._until != INT64_MAX:
            ns = max(1, min(ns, self._until - <int64_t>monotonic_ns()))
        with nogil:
            rt_wait_announce(word)
            if not has_news(exchange):
                rt_wait_sleep(word, ns)
        self._slice = RT_WAIT_SLICE_NS
        PyErr_CheckSignals()
        return 0
