"""Declarations of simulate.h."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from rtloop.headers.loop cimport rt_cycle_t, rt_loop_t


cdef extern from "../include/rtloop/simulate.h" nogil:
    enum:
        RT_GO_ON
        RT_END_MODEL
        RT_END_TIME
        RT_SIMULATION_PAUSE
        RT_SIMULATION_OVER

    ctypedef struct rt_model_t:
        int64_t constant
        const int64_t *values
        uint64_t count
        void *context
        int64_t (*ask)(void *context, uint64_t index) noexcept nogil

    ctypedef struct rt_simulation_t:
        rt_loop_t *loop
        void *self
        uint64_t swap_at
        int32_t is_decided
        int32_t is_recorded
        rt_model_t latency
        rt_model_t execution
        void *plant
        int (*before)(void *plant, const rt_cycle_t *cycle) noexcept nogil

    int rt_simulate_begin(rt_simulation_t *s)
    int rt_simulate_enter(rt_simulation_t *s, int (*enter)(void *) noexcept nogil)
    void rt_simulate_leave(rt_simulation_t *s, void (*leave)(void *) noexcept nogil)
    int rt_simulate_is_swap_due(const rt_simulation_t *s)
    void rt_simulate_swap(rt_simulation_t *s)
    int rt_simulate_advance(
        rt_simulation_t *simulations,
        int count,
        int64_t pause,
        int (*step)(void *, const rt_cycle_t *) noexcept nogil,
        int (*overrun)(void *, const rt_cycle_t *, int64_t) noexcept nogil,
    )
    int64_t rt_clock_now(int clock)
    enum:
        CLOCK_MONOTONIC
    # Declared with all its fields; loop.pxd declares only those that it uses.
    ctypedef struct rt_full_cycle_t "rt_cycle_t":
        uint64_t index
        int64_t release
        int64_t start
        int64_t period
        int64_t missed
        double t
        double dt
