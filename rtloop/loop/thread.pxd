from libc.stdint cimport int64_t, uint32_t

from rtloop.headers.loop cimport rt_cycle_t, rt_loop_t
from rtloop.live.live cimport Live

# Longest wait of a control thread before it checks for signals, in ns.
cdef enum:
    SLICE_NS = 50_000_000

# Bodies of a loop's thread: of a loop that declares neither parameters nor signals, signals alone, or parameters.
cdef enum:
    PLAIN_BODY, SAMPLED_BODY, LIVE_BODY
    BODIES

# Method of the loop that another thread calls, or that a command triggers.
ctypedef int (*rt_hook_t)(void *self) noexcept nogil
# The body of a thread, which takes the loop object.
ctypedef void *(*rt_body_t)(void *self) noexcept nogil
# Method of a step that a running loop is to go on with.
ctypedef int (*rt_take_over_t)(void *self, void *former, const rt_cycle_t *cycle) noexcept nogil


cdef class LoopThread:
    cdef object __weakref__
    cdef rt_loop_t *rt
    cdef rt_body_t[BODIES] _bodies
    cdef rt_body_t[BODIES] _guarded_bodies
    cdef rt_hook_t _on_peer_failure
    cdef rt_hook_t _safe
    cdef rt_take_over_t _take_over
    cdef void *_owner
    cdef readonly bint has_own_wait
    cdef readonly int kind
    # Objects are in the dict, because other threads read them while a run begins or ends (see lifecycle.pxd).
    cdef dict __dict__

    cdef void bind(self, rt_hook_t on_peer_failure, rt_hook_t safe, bint has_own_wait)
    cdef void bind_body(self, int kind, rt_body_t body, rt_body_t guarded_body)
    cdef int _kind(self) except -1
    cdef void bind_swap(self, rt_take_over_t take_over)
    cdef Live make_live(self)
    cdef uint32_t phase(self) noexcept nogil
    cdef uint32_t wait_while(self, uint32_t phase, int64_t timeout_ns)
    cdef bint is_pending(self, uint32_t command) noexcept nogil
    cdef void send(self, uint32_t command) noexcept nogil
