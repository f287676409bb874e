"""Declarations of ring.h and wakes.h."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "../include/rtloop/ring.h" nogil:
    ctypedef struct rt_ring_t:
        uint64_t capacity
        uint64_t item_bytes
        uint32_t awaited

    uint64_t rt_ring_bytes(uint64_t item_bytes, uint64_t capacity)
    int rt_ring_open(rt_ring_t *ring, uint64_t item_bytes, uint64_t capacity)
    int rt_ring_init(rt_ring_t *ring, uint64_t item_bytes, uint64_t capacity)
    int rt_ring_push(rt_ring_t *ring, const void *item)
    int rt_ring_pop(rt_ring_t *ring, void *item)
    uint64_t rt_ring_push_many(rt_ring_t *ring, const void *items, uint64_t count)
    uint64_t rt_ring_pop_many(rt_ring_t *ring, void *items, uint64_t count)
    const void *rt_ring_front(rt_ring_t *ring, uint64_t *count)
    void rt_ring_consume(rt_ring_t *ring, uint64_t count)
    uint64_t rt_ring_length(const rt_ring_t *ring)
    uint64_t rt_ring_dropped(const rt_ring_t *ring)
    uint64_t rt_ring_high_water(const rt_ring_t *ring)


cdef extern from "../include/rtloop/wakes.h" nogil:
    const int64_t RT_WAIT_FIRST_NS
    const int64_t RT_WAIT_SLICE_NS

    ctypedef struct rt_wakers_t:
        pass

    bint rt_is_awaited(const uint32_t *word)
    void rt_wake_request(rt_wakers_t *wakers, uint32_t *word)
    void rt_wait_announce(uint32_t *word)
    void rt_wait_sleep(uint32_t *word, int64_t ns)
