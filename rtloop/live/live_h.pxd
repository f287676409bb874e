"""Declarations of include/rtloop/live.h, for rtloop's own modules."""

from libc.stdint cimport uint64_t

from rtloop.live.parameters_h cimport rt_parameters_t


cdef extern from "../include/rtloop/live.h" nogil:
    ctypedef struct rt_live_t:
        const uint64_t *state

    void rt_live_init(rt_live_t *live)
    void rt_live_use_parameters(rt_live_t *live, rt_parameters_t *parameters)
