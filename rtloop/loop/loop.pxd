"""Binary interface of rtloop, against which subclasses are compiled.

The order of the methods, the size of the object and the fields of Cycle are frozen. To change them, rename the class
below, and write "recompile" into CHANGELOG.md.
"""

from libc.stdint cimport int64_t, uint64_t


cdef enum:
    RT_CONTINUE = 0
    RT_STOP = 1


cdef struct Cycle:
    uint64_t index
    int64_t release
    int64_t start
    int64_t period
    int64_t missed
    double t
    double dt


# A module built against another interface looks up another name; __getattr__ then raises "recompile".
cdef class _RTLoop_2:
    cdef void *_rt
    cdef object _control
    cdef void *_reserved_a
    cdef void *_reserved_b
    cdef object __weakref__

    cdef int enter(self) noexcept nogil
    cdef int step(self, const Cycle *cycle) noexcept nogil
    cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept nogil
    cdef int wait(self, int64_t release) noexcept nogil
    cdef void leave(self) noexcept nogil
    cdef int shift(self, int64_t ns) noexcept nogil
    cdef int safe(self) noexcept nogil
    cdef int on_peer_failure(self) noexcept nogil
    cdef int sleep_until(self, int64_t ns) noexcept nogil
    cdef object parameter(self, name, void *address, value, dtype=*)
    cdef object signal(self, name, const void *address, dtype=*)
    cdef int take_over(self, _RTLoop_2 former, const Cycle *cycle) noexcept nogil
    cdef int _reserved_4(self) noexcept nogil
    cdef int _reserved_5(self) noexcept nogil
    cdef int _reserved_6(self) noexcept nogil
    cdef int _reserved_7(self) noexcept nogil
    cdef int _reserved_8(self) noexcept nogil
    cdef int _reserved_9(self) noexcept nogil
    cdef int _reserved_10(self) noexcept nogil
    cdef int _reserved_11(self) noexcept nogil
    cdef int _reserved_12(self) noexcept nogil
    cdef int _reserved_13(self) noexcept nogil
    cdef int _reserved_14(self) noexcept nogil
    cdef int _reserved_15(self) noexcept nogil
    cdef int _reserved_16(self) noexcept nogil
    cdef int _reserved_17(self) noexcept nogil
    cdef int _reserved_18(self) noexcept nogil
    cdef int _reserved_19(self) noexcept nogil
    cdef int _reserved_20(self) noexcept nogil
    cdef int _reserved_21(self) noexcept nogil
    cdef int _reserved_22(self) noexcept nogil
    cdef int64_t device_cycle(self, uint64_t number) noexcept nogil
