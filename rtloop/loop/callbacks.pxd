"""Functions through which loop.h, which is C, calls the methods of a loop; it passes the object as a pointer."""

from libc.stdint cimport int64_t

from rtloop.loop.loop cimport Cycle, _RTLoop_2
from rtloop.headers.loop cimport (
    rt_check_cycle, rt_cycle_t, rt_live_before_step, rt_loop_of, rt_sampling_take,
)


cdef inline int call_enter(void *self) noexcept nogil:
    return (<_RTLoop_2>self).enter()


cdef inline int call_step(void *self, const rt_cycle_t *cycle) noexcept nogil:
    rt_check_cycle(<const Cycle *>NULL)
    return (<_RTLoop_2>self).step(<const Cycle *>cycle)


# The step of a loop that has parameters, and whose signals are sampled elsewhere.
cdef inline int call_tuned_step(void *self, const rt_cycle_t *cycle) noexcept nogil:
    rt_live_before_step(&rt_loop_of(cycle).live, cycle)
    return (<_RTLoop_2>self).step(<const Cycle *>cycle)


# The step of a loop that has parameters, and perhaps signals.
cdef inline int call_live_step(void *self, const rt_cycle_t *cycle) noexcept nogil:
    cdef int rc
    rt_live_before_step(&rt_loop_of(cycle).live, cycle)
    rc = (<_RTLoop_2>self).step(<const Cycle *>cycle)
    rt_sampling_take(&rt_loop_of(cycle).sampling)
    return rc


cdef inline int call_overrun(void *self, const rt_cycle_t *cycle, int64_t missed) noexcept nogil:
    return (<_RTLoop_2>self).overrun(<const Cycle *>cycle, missed)


cdef inline int call_wait(void *self, int64_t release) noexcept nogil:
    return (<_RTLoop_2>self).wait(release)


cdef inline void call_leave(void *self) noexcept nogil:
    (<_RTLoop_2>self).leave()


cdef inline int call_take_over(void *self, void *former, const rt_cycle_t *cycle) noexcept nogil:
    return (<_RTLoop_2>self).take_over(<_RTLoop_2>former, <const Cycle *>cycle)


cdef inline int call_on_peer_failure(void *self) noexcept nogil:
    return (<_RTLoop_2>self).on_peer_failure()


cdef inline int call_safe(void *self) noexcept nogil:
    return (<_RTLoop_2>self).safe()
