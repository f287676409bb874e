"""Declarations of signals.h."""

from libc.stdint cimport uint32_t, uint64_t

from rtloop.headers.ring cimport rt_ring_t


cdef extern from "../include/rtloop/signals.h" nogil:
    ctypedef struct rt_cycle_t:
        pass

    ctypedef struct rt_signals_t:
        rt_ring_t *ring
        uint64_t every

    int rt_signals_add(rt_signals_t *signals, const void *address, uint32_t bytes)
    int rt_signals_sample(rt_signals_t *signals, const rt_cycle_t *cycle)
    void rt_store_release(rt_ring_t **to, rt_ring_t *value)
