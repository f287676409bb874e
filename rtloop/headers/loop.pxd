"""Declarations of loop.h, of the headers that it includes, and of vdso.h."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from rtloop._os cimport pthread_t
from rtloop.headers.guard cimport rt_guard_t
from rtloop.headers.live cimport rt_live_t, rt_sampling_t
from rtloop.headers.ring cimport rt_wakers_t
from rtloop.headers.telemetry cimport rt_telemetry_t


cdef extern from "../include/rtloop/loop.h" nogil:
    enum:
        RT_PHASE_IDLE
        RT_PHASE_STARTING
        RT_PHASE_READY
        RT_PHASE_GO
        RT_PHASE_ABORT
        RT_PHASE_DONE
        RT_PHASE_ENTERED
        RT_COMMAND_STOP
        RT_COMMAND_RESET
        RT_COMMAND_SIBLING_FAILED
        RT_COMMAND_SWAP
        RT_SWAP_NONE
        RT_SWAP_ASKED
        RT_SWAP_TAKEN
        RT_SWAP_DONE
        RT_SWAP_REFUSED
        RT_SWAP_ON_TRIAL
        RT_SWAP_REVERTED
        RT_INCIDENT_CODE
        RT_INCIDENT_OVERRUN
        RT_INCIDENT_GUARD
        RT_INCIDENT_LATE
        RT_INCIDENT_NONFINITE
        RT_WATCH_NONE
        RT_REMOTE_NONE
        RT_REMOTE_RUNNING
        RT_REMOTE_REPORTED
        RT_WATCH_ON
        RT_WATCH_LOOKING
        RT_WATCH_TRIPPED
        RT_WATCH_SAFE
        RT_SCHED_FLAG_RESET_ON_FORK
        RT_CPU_WORDS
        RT_STACK_SIGNAL_BYTES

    ctypedef struct rt_schedule_t:
        int64_t release
        int64_t period
        int64_t shift
        int64_t max_overruns
        int64_t late
        int32_t policy
        int32_t max_burst

    ctypedef struct rt_cycle_t:
        uint64_t index

    ctypedef struct rt_spin_t:
        int64_t margin

    ctypedef struct rt_sched_attr_t:
        uint32_t size
        uint32_t sched_policy
        uint64_t sched_flags
        int32_t sched_nice
        uint32_t sched_priority
        uint64_t sched_runtime
        uint64_t sched_deadline
        uint64_t sched_period

    ctypedef struct rt_thread_request_t:
        rt_sched_attr_t attr
        int32_t is_pinned
        int32_t flush_denormals
        char name[16]
        uint64_t cpus[128]

    ctypedef struct rt_thread_report_t:
        int32_t tid
        int32_t signal_stack_rc
        int32_t name_rc
        int32_t cpu_rc
        int32_t slack_rc
        int32_t policy_rc
        int32_t denormals_flushed
        int32_t slack_ns
        int32_t mask_rc
        rt_sched_attr_t attr
        uint64_t cpus[128]
        uint64_t allowed[128]

    ctypedef struct rt_stack_t:
        void *mapping
        size_t mapping_bytes
        void *signal_stack
        void *base
        size_t bytes
        void (*on_begin)(rt_stack_t *) noexcept nogil

    enum:
        RT_END_NORMAL
        RT_END_ENTER
        RT_END_STEP
        RT_END_OVERRUN
        RT_END_WAIT
        RT_END_CLOCK
        RT_END_OVERRUNS
        RT_END_GUARD
        RT_END_ON_PEER_FAILURE
        RT_END_WATCHDOG
        RT_END_CLOCK_STEP

    ctypedef struct rt_trip_t:
        uint64_t cycles
        int64_t limit
        int64_t acted
        int64_t stuck
        int64_t monotonic
        int64_t safe_ended
        int32_t safe_code

    ctypedef int rt_clock_reader_t(int clock, void *time) noexcept nogil

    ctypedef struct rt_loop_limits_t:
        uint64_t warmup
        uint64_t max_cycles
        int64_t max_duration

    ctypedef struct rt_loop_grid_t:
        int64_t origin
        int64_t align
        int64_t phase
        int64_t part

    ctypedef struct rt_loop_group_t:
        int32_t is_member
        uint32_t failure_command
        rt_loop_t *next
        uint32_t remote
        int32_t failure_fd

    ctypedef struct rt_loop_hooks_t:
        void *self
        int (*on_peer_failure)(void *) noexcept nogil
        int (*safe)(void *) noexcept nogil
        void (*at_end)() noexcept nogil

    ctypedef struct rt_loop_thread_t:
        rt_thread_request_t request
        rt_thread_report_t report
        rt_stack_t stack
        pthread_t id

    ctypedef struct rt_loop_end_t:
        int32_t reason
        int32_t code

    ctypedef struct rt_floats_t:
        const double **doubles
        const float **floats
        const void **halves
        uint64_t double_count
        uint64_t float_count
        uint64_t half_count

    ctypedef struct rt_trial_t:
        int32_t is_on

    ctypedef struct rt_swap_t:
        void *self
        void *successor
        void *former
        int (*take_over)(void *, void *, const rt_cycle_t *) noexcept nogil
        const rt_live_t *live
        uint64_t trial
        const rt_floats_t *floats
        uint32_t watched
        uint64_t cycle
        int32_t code
        uint32_t incidents
        int32_t incident_end
        int32_t incident_code
        uint64_t reverted

    ctypedef struct rt_loop_t:
        rt_schedule_t schedule
        rt_cycle_t cycle
        rt_sampling_t sampling
        rt_spin_t spin
        rt_telemetry_t *telemetry
        int clock
        int32_t has_own_wait
        int set_clock
        int32_t is_settable
        int32_t on_clock_step
        int64_t offset
        rt_clock_reader_t *read_clock
        int64_t first_release
        rt_guard_t *guard
        rt_loop_limits_t limits
        rt_loop_grid_t grid
        rt_loop_group_t group
        rt_loop_hooks_t hooks
        rt_loop_thread_t thread
        rt_loop_end_t end
        rt_trip_t trip
        rt_live_t live
        rt_swap_t swap
        rt_trial_t trial
        uint32_t command
        uint32_t phase
        uint32_t watch
        rt_wakers_t *wakers

    void rt_check_cycle "RT_CHECK_CYCLE"(...)  # when it is compiled, not when it is called
    rt_loop_t *rt_loop_of(const rt_cycle_t *cycle)
    void rt_live_before_step(rt_live_t *live, const rt_cycle_t *cycle)
    void rt_sampling_take(rt_sampling_t *sampling)
    int rt_schedule_shift(rt_schedule_t *s, int64_t ns)
    void rt_schedule_set_period(rt_schedule_t *s, int64_t period, int64_t part, int64_t unit)
    int64_t rt_clock_best_offset(rt_clock_reader_t *read_clock, int clock)
    void rt_spin_fixed(rt_spin_t *s, int64_t margin)
    void rt_spin_auto(rt_spin_t *s, int64_t period, int64_t budget_percent)
    int rt_stack_map(rt_stack_t *stack, size_t size)
    void rt_stack_paint(const rt_stack_t *stack)
    size_t rt_stack_high_water(const rt_stack_t *stack)
    void rt_stack_keep_for_own_child(const rt_stack_t *stack)
    void rt_stack_wipe_again(const rt_stack_t *stack)
    void rt_stack_unmap(rt_stack_t *stack)
    int rt_thread_create(pthread_t *thread, rt_stack_t *stack, void *(*body)(void *) noexcept nogil, void *arg)
    void rt_futex_set(uint32_t *word, uint32_t value)
    uint32_t rt_futex_wait(uint32_t *word, uint32_t value, int64_t timeout_ns)
    void rt_loop_begin(rt_loop_t *loop)
    int rt_loop_default_wait(rt_loop_t *loop, int64_t release)
    int rt_loop_sleep_until(rt_loop_t *loop, int64_t time)
    void rt_loop_request_slack(rt_loop_t *loop, void (*call)(void *) noexcept nogil, void *self)
    int64_t rt_loop_now(const rt_loop_t *loop)
    int rt_loop_is_past_limit(const rt_loop_t *loop, const rt_telemetry_t *telemetry)
    int rt_watch_is_taken(uint32_t *word)
    int rt_watch_finish(uint32_t *word)
    void rt_swap_ask(rt_swap_t *s)
    uint64_t rt_swap_state(const rt_swap_t *s)
    int rt_swap_withdraw(rt_swap_t *s)
    void rt_loop_send_command(rt_loop_t *loop, uint32_t bits)
    void rt_loop_notify_siblings(const rt_loop_t *loop)
    void rt_loop_main(
        rt_loop_t *loop,
        void *self,
        int (*enter)(void *) noexcept nogil,
        int (*step)(void *, const rt_cycle_t *) noexcept nogil,
        int (*overrun)(void *, const rt_cycle_t *, int64_t) noexcept nogil,
        int (*wait)(void *, int64_t) noexcept nogil,
        void (*leave)(void *) noexcept nogil,
    )
    void rt_loop_sampled_main(
        rt_loop_t *loop,
        void *self,
        int (*enter)(void *) noexcept nogil,
        int (*step)(void *, const rt_cycle_t *) noexcept nogil,
        int (*overrun)(void *, const rt_cycle_t *, int64_t) noexcept nogil,
        int (*wait)(void *, int64_t) noexcept nogil,
        void (*leave)(void *) noexcept nogil,
    )
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


cdef extern from "../include/rtloop/vdso.h" nogil:
    rt_clock_reader_t *rt_clock_reader()
