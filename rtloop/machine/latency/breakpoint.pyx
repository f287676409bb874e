"""Loop that only stops itself, and the kernel's trace, at the first wake-up that is too late."""

from libc.errno cimport errno
from libc.stdint cimport int64_t

from rtloop._os cimport write
from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, RTLoop

from rtloop.errors import ConfigError


cdef class BreakpointLoop(RTLoop):
    """BreakpointLoop(period, *, limit_ns, trace_fd=-1, **settings)
--

    Stop at the first wake-up latency of more than a limit.

    Parameters
    ----------
    period : int or str
        As of :class:`rtloop.RTLoop`.
    limit_ns : int
        The limit, nanoseconds; 0: none.
    trace_fd : int
        File that gets a "0" at that moment: ``tracing_on`` of a trace of the kernel. -1: none.
    """

    cdef int64_t _limit
    cdef int64_t _left  # of the warm-up
    cdef int _fd
    cdef readonly int64_t hit_ns

    def __init__(self, period, *, limit_ns, trace_fd=-1, **settings):
        super().__init__(period, **settings)
        if limit_ns < 0:
            raise ConfigError(f"limit_ns={limit_ns!r} is negative")
        self._limit = limit_ns
        self._fd = trace_fd

    def setup(self):
        self._left = self.settings.warmup
        self.hit_ns = 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int64_t latency = cycle.start - cycle.release
        if self._left > 0:
            self._left -= 1
            return RT_CONTINUE
        if self._limit == 0 or latency <= self._limit:
            return RT_CONTINUE
        # rtloop: allow write: one byte to the trace, once, before the loop ends
        if self._fd >= 0 and write(self._fd, b"0", 1) != 1:
            self._fd = -errno
        self.hit_ns = latency
        return RT_STOP
