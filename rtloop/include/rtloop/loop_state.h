/* The state of one loop: its settings, where its run stands, and why it ended.
 *
 * The struct lies in one locked block. The control thread fills it in before the loop's thread exists, and reads it
 * after the thread has ended. In between other threads touch only the words that are marked below.
 */
#ifndef RTLOOP_LOOP_STATE_H
#define RTLOOP_LOOP_STATE_H

#include "clock.h"
#include "cycle.h"
#include "guard.h"
#include "live.h"
#include "schedule.h"
#include "spin.h"
#include "stack.h"
#include "swap.h"
#include "telemetry.h"
#include "thread.h"
#include "wakes.h"
#include "watch.h"

/* The phase of a run: a futex word that the control thread and the loop's thread set in turn. */
enum {
  RT_PHASE_IDLE = 0, /* no thread; also what a forked child reads, because the kernel wipes its copy of the state */
  RT_PHASE_STARTING = 1,
  RT_PHASE_READY = 2, /* the thread has asked the kernel for everything and waits for GO or ABORT */
  RT_PHASE_GO = 3,
  RT_PHASE_ABORT = 4,
  RT_PHASE_DONE = 5,
  RT_PHASE_ENTERED = 6, /* in a group: enter() has returned; the thread waits for the group's origin */
  RT_PHASE_BEGIN = 7,   /* in a group: the origin is set */
};

/* The reason for which a run ended. */
enum {
  RT_END_NORMAL = 0,          /* stop(), RT_STOP, or a limit of run() */
  RT_END_ENTER = 1,           /* enter() failed */
  RT_END_STEP = 2,            /* step() failed */
  RT_END_OVERRUN = 3,         /* overrun() failed */
  RT_END_WAIT = 4,            /* wait() failed */
  RT_END_CLOCK = 5,           /* clock_nanosleep(2) failed */
  RT_END_OVERRUNS = 6,        /* the overrun policy ended the run */
  RT_END_GUARD = 7,           /* a guard found a violation, and the loop was set to stop on it */
  RT_END_ON_PEER_FAILURE = 8, /* on_peer_failure() failed */
  RT_END_WATCHDOG = 9,        /* the watchdog found the loop stuck, whatever its step returned later */
  RT_END_CLOCK_STEP = 10,     /* the clock was set, and the loop was set to stop on it */
  RT_GO_ON = -1,              /* not ended: there is a next cycle */
};

/* Place of the siblings of a loop. */
enum {
  RT_REMOTE_NONE = 0,     /* in this process */
  RT_REMOTE_RUNNING = 1,  /* in the parent of this process, which `next` belongs to */
  RT_REMOTE_REPORTED = 2, /* in the parent, which has been sent the end of the run */
};

/* Longest single sleep. A longer wait is divided into slices, so that a stop is noticed within one slice. */
#define RT_SLICE_NS INT64_C(50000000)

/* Limits of a run, set before the thread starts. */
typedef struct rt_loop_limits {
  uint64_t warmup;      /* index of the first cycle that counts in the histograms */
  uint64_t max_cycles;  /* the run ends after this many cycles */
  int64_t max_duration; /* the run ends before the first release at or after first_release + max_duration, in ns */
} rt_loop_limits_t;

/* Position of the first release on the loop's clock, in ns. */
typedef struct rt_loop_grid {
  int64_t origin; /* set by the group before RT_PHASE_BEGIN, with rt_loop.offset; 0: the loop chooses its own */
  int64_t align;  /* the loop's own origin is a multiple of this; 0: any */
  int64_t phase;  /* from the origin to the first release, rounded down */
  int64_t part;   /* the fraction of the phase, in 1 / schedule.unit ns; 0 if schedule.unit is 0 */
} rt_loop_grid_t;

/* Membership in a group of loops that start together. */
typedef struct rt_loop_group {
  int32_t is_member;        /* whether the group sets grid.origin */
  uint32_t failure_command; /* sent to the siblings if this loop fails: RT_COMMAND_STOP or RT_COMMAND_SIBLING_FAILED */
  struct rt_loop *next;     /* the next loop in the ring of siblings; NULL: no sibling is notified */
  uint32_t remote;          /* RT_REMOTE_...: whether the ring is in another process, which has mapped this struct */
  int32_t failure_fd;       /* eventfd(2) that a remote loop writes to if it fails */
} rt_loop_group_t;

/* Methods that threads other than the loop's, or a command, cause to be called. NULL: not overridden. */
typedef struct rt_loop_hooks {
  void *self; /* argument of both; changed by a swap, and read by the watchdog */
  int (*on_peer_failure)(void *self);
  int (*safe)(void *self);
  void (*at_end)(void); /* set by a callback, and called once after leave(), whoever the step belongs to by then */
  void (*in_slack)(void *slack_self); /* set by rt_loop_request_slack, and called once before the next wait */
  void *slack_self;
} rt_loop_hooks_t;

/* The thread: what it asks of the kernel, what it was granted, and its stack. */
typedef struct rt_loop_thread {
  rt_thread_request_t request;
  rt_thread_report_t report;
  rt_stack_t stack;
  pthread_t id;
} rt_loop_thread_t;

/* How the run ended. Written by the loop's thread, read once the phase is RT_PHASE_DONE. */
typedef struct rt_loop_end {
  int32_t reason;         /* RT_END_... */
  int32_t code;           /* what the callback returned, or a negative errno; 0 after a normal end */
  int32_t reason_on_stop; /* the reason to report when RT_COMMAND_STOP ends the run */
} rt_loop_end_t;

typedef struct rt_loop {
  /* Written by the loop's thread in every cycle. */
  rt_schedule_t schedule;
  union {
    rt_cycle_t cycle;
    rt_sampling_t sampling; /* begins with the cycle */
  };
  rt_spin_t spin;

  /* Constant during a run, except `second`, `bank`, `is_late` and `has_run_hook`, which the loop's thread writes. */
  rt_telemetry_t *telemetry;
  clockid_t clock;               /* read and slept on; CLOCK_MONOTONIC for a settable clock */
  int32_t has_own_wait;          /* whether a subclass overrides wait() */
  clockid_t set_clock;           /* the settable clock, if is_settable */
  int32_t is_settable;           /* whether the loop's clock can be set: CLOCK_REALTIME or CLOCK_TAI */
  int32_t on_clock_step;         /* RT_CLOCK_STEP_... */
  int32_t is_simulated;          /* whether the time is virtual, and nothing sleeps */
  int64_t offset;                /* of the loop's clock to `clock`; changed between two cycles only */
  rt_clock_reader_t *read_clock; /* from rt_clock_reader() */
  rt_second_t second;            /* the second in which the last sleep ended */
  int64_t first_release;
  int64_t end_release;  /* the run ends before a release at or after this */
  int64_t plain_until;  /* a release before this needs one sleep of at most a slice, and no check of the limits */
  rt_bank_t *bank;      /* the active bank of the telemetry */
  int32_t is_late;      /* whether the release of the current cycle had passed before the wait for it began */
  int32_t has_run_hook; /* whether on_peer_failure() has run since the last step; the guard ignores what it did */
  rt_guard_t *guard;    /* NULL: nothing is guarded */

  rt_loop_limits_t limits;
  rt_loop_grid_t grid;
  rt_loop_group_t group;
  rt_loop_hooks_t hooks;
  rt_loop_thread_t thread;
  rt_loop_end_t end;
  rt_trip_t trip; /* written by the watchdog */
  rt_live_t live;
  void *self;          /* argument of the callbacks; changed by a swap. The loop's thread */
  int32_t is_swap_due; /* whether a swap comes before the next wait. The loop's thread */
  rt_swap_t swap;
  rt_trial_t trial;

  _Alignas(RT_CACHE_LINE) uint32_t command; /* RT_COMMAND_... bits; written by any thread, read once per cycle */
  _Alignas(RT_CACHE_LINE) uint32_t phase;   /* RT_PHASE_...; written by the loop's thread and the control thread */
  uint32_t watch;                           /* RT_WATCH_...; written by the loop's thread and the watchdog */

  _Alignas(RT_CACHE_LINE) rt_wakes_t wakes; /* consumers that sleep for what the step has written */
  rt_wakers_t *wakers;                      /* the loops of the process; NULL: steps wake at once */
} rt_loop_t;

/* Get the loop of the cycle that its callbacks are given. Any thread; no instruction if the compiler knows the loop. */
static inline rt_loop_t *rt_loop_of(const rt_cycle_t *cycle) {
  return (rt_loop_t *)(void *)((uintptr_t)cycle - offsetof(rt_loop_t, cycle));
}

/* Read a clock with the loop's reader, in ns. As rt_loop_read_clock. */
static inline int64_t rt_loop_read(const rt_loop_t *loop, clockid_t clock) {
  struct timespec ts;
  loop->read_clock(clock, &ts);
  return (int64_t)ts.tv_sec * RT_NS_PER_S + ts.tv_nsec;
}

/* Read the clock that the loop sleeps on, in ns. Any thread; O(1); never fails; no system call if the vDSO can read
 * this clock. */
static inline int64_t rt_loop_read_clock(const rt_loop_t *loop) { return rt_loop_read(loop, loop->clock); }

/* Read the loop's clock, in ns. A settable clock is CLOCK_MONOTONIC plus the offset that was last seen, so that no step
 * of it lies between two times of one cycle. Any thread; O(1); never fails; no system call if the vDSO can read it. */
static inline int64_t rt_loop_now(const rt_loop_t *loop) {
  return rt_loop_read_clock(loop) + rt_load_relaxed(&loop->offset);
}

/* Test whether a limit of the run has passed, so that no further cycle begins. A control thread of the loop's process,
 * before the run has been released; O(1); never fails. */
static inline int rt_loop_is_past_limit(const rt_loop_t *loop, const rt_telemetry_t *telemetry) {
  const int64_t end = rt_load_relaxed(&loop->end_release); /* 0: the first release is not known yet */
  if (rt_load_relaxed(&telemetry->written) >= loop->limits.max_cycles) return 1;
  return end != 0 && end != INT64_MAX && rt_loop_now(loop) >= end;
}

/* Set the code with which the run ends, and return the reason. The loop's thread; O(1). */
static inline int rt_loop_end_with(rt_loop_t *loop, int reason, int code) {
  loop->end.code = code;
  return reason;
}

/* Record into the bank that is active now, and force the next cycle onto the slow path, because no interval ends with
 * it. The loop's thread; O(1); never fails; no system call. */
static inline void rt_loop_use_active_bank(rt_loop_t *loop) {
  loop->bank = rt_telemetry_active_bank(loop->telemetry);
  rt_schedule_enter(&loop->schedule, RT_UNSETTLED);
}

#endif
