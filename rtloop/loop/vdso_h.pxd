"""Declarations of include/rtloop/vdso.h, for rtloop's own modules."""

from rtloop.loop.loop_h cimport rt_clock_reader_t


cdef extern from "../include/rtloop/vdso.h" nogil:
    rt_clock_reader_t *rt_clock_reader()
