"""The body of the thread of a loop with guards: the same cycles as in :mod:`rtloop.loop.loop`, with guards around step.

It is a module of its own, so that the loop without guards is compiled as if there were none.
"""

from libc.stdint cimport int64_t

from rtloop.loop.hooks cimport call_enter, call_leave, call_overrun, call_step, call_wait
from rtloop.loop.loop cimport _RTLoop_1
from rtloop.loop.thread cimport rt_cycle_t, rt_loop_t
from rtloop.system.guard cimport rt_guard_t


cdef extern from "../include/rtloop/loop.h" nogil:
    void rt_loop_guarded_main(
        rt_loop_t *loop,
        rt_guard_t *guard,
        void *self,
        int (*enter)(void *) noexcept nogil,
        int (*step)(void *, const rt_cycle_t *) noexcept nogil,
        int (*overrun)(void *, const rt_cycle_t *, int64_t) noexcept nogil,
        int (*wait)(void *, int64_t) noexcept nogil,
        void (*leave)(void *) noexcept nogil,
    )


cdef void *_body(void *self) noexcept nogil:
    cdef rt_loop_t *loop = <rt_loop_t *>(<_RTLoop_1>self)._rt
    rt_loop_guarded_main(loop, loop.guard, self, call_enter, call_step, call_overrun, call_wait, call_leave)
    return NULL


def body_address():
    """Return the address of the body, a ``void *(*)(void *)`` that takes the loop object."""
    return <size_t><void *>_body
