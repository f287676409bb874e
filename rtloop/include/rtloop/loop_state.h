/* The state of one loop: its settings, where its run stands, the commands it was sent, and why it ended.
 *
 * The struct lies in one locked block. The control thread fills it in before the loop's thread exists, and reads it
 * after the thread has ended. In between other threads touch only the words that are marked below.
 */
#ifndef RTLOOP_LOOP_STATE_H
#define RTLOOP_LOOP_STATE_H

#include "clock.h"
#include "cycle.h"
#include "guard.h"
#include "schedule.h"
#include "spin.h"
#include "stack.h"
#include "telemetry.h"
#include "thread.h"
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

/* Bits of the command word. */
enum {
  RT_COMMAND_STOP = 1u,
  RT_COMMAND_RESET = 2u,
  RT_COMMAND_SIBLING_FAILED = 4u, /* another loop of the group has failed: call on_peer_failure() */
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

/* What a loop does when somebody has set its clock. */
enum {
  RT_CLOCK_STEP_FOLLOW = 0, /* take the grid up again on the clock as it is now */
  RT_CLOCK_STEP_STOP = 1,   /* the loop fails */
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
  int64_t phase;  /* from the origin to the first release */
} rt_loop_grid_t;

/* Membership in a group of loops that start together. */
typedef struct rt_loop_group {
  int32_t is_member;        /* whether the group sets grid.origin */
  uint32_t failure_command; /* sent to the siblings if this loop fails: RT_COMMAND_STOP or RT_COMMAND_SIBLING_FAILED */
  struct rt_loop *next;     /* the next loop in the ring of siblings; NULL: no sibling is notified */
} rt_loop_group_t;

/* Methods that threads other than the loop's, or a command, cause to be called. NULL: not overridden. */
typedef struct rt_loop_hooks {
  void *self; /* argument of both */
  int (*on_peer_failure)(void *self);
  int (*safe)(void *self);
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
  rt_cycle_t cycle;
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
  int64_t plain_until;  /* a release before this needs one sleep and no check of the limits */
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

  _Alignas(RT_CACHE_LINE) uint32_t command; /* RT_COMMAND_... bits; written by any thread, read once per cycle */
  _Alignas(RT_CACHE_LINE) uint32_t phase;   /* RT_PHASE_...; written by the loop's thread and the control thread */
  uint32_t watch;                           /* RT_WATCH_...; written by the loop's thread and the watchdog */
} rt_loop_t;

/* Send commands to the loop's thread, which handles them before its next step. Any thread; one locked instruction;
 * never fails; no system call, so a sleeping loop is not woken. */
static inline void rt_loop_send_command(rt_loop_t *loop, uint32_t bits) {
  __atomic_fetch_or(&loop->command, bits, __ATOMIC_RELEASE);
}

/* Send the other loops of the ring the command for a failure of this one. The loop's thread after its last cycle, the
 * watchdog, or the control thread; O(loops of the group); never fails; no system call. */
static inline void rt_loop_notify_siblings(const rt_loop_t *loop) {
  for (rt_loop_t *sibling = loop->group.next; sibling && sibling != loop; sibling = sibling->group.next) {
    rt_loop_send_command(sibling, loop->group.failure_command);
  }
}

/* Read the clock that the loop sleeps on, in ns. Any thread; O(1); never fails; no system call if the vDSO can read
 * this clock. */
static inline int64_t rt_loop_read_clock(const rt_loop_t *loop) {
  struct timespec ts;
  loop->read_clock(loop->clock, &ts);
  return (int64_t)ts.tv_sec * RT_NS_PER_S + ts.tv_nsec;
}

/* Read the loop's clock, in ns. A settable clock is CLOCK_MONOTONIC plus the offset that was last seen, so that no step
 * of it lies between two times of one cycle. Any thread; O(1); never fails; no system call if the vDSO can read it. */
static inline int64_t rt_loop_now(const rt_loop_t *loop) {
  return rt_loop_read_clock(loop) + rt_load_relaxed(&loop->offset);
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
  loop->schedule.is_unsettled = RT_UNSETTLED;
}

/* Restart the statistics in the other bank, which the sender of RT_COMMAND_RESET has cleared. The loop's thread between
 * two cycles; O(1); never fails; one system call, getrusage(2). */
static __attribute__((noinline, cold, unused)) void rt_loop_reset_statistics(rt_loop_t *loop) {
  rt_telemetry_swap_banks(loop->telemetry, loop->schedule.release);
  rt_loop_use_active_bank(loop);
  rt_telemetry_write_usage(loop->telemetry, rt_thread_usage(), 0);
  if (loop->guard) rt_guard_reset(loop->guard);
  __atomic_fetch_and(&loop->command, ~RT_COMMAND_RESET, __ATOMIC_RELEASE);
}

/* Call on_peer_failure(), because one or more loops of the group have failed. Without that hook the run ends normally.
 * Returns RT_GO_ON, or the reason for which the run ends. The loop's thread between two cycles; as long as the hook. */
static __attribute__((noinline, cold, unused)) int rt_loop_handle_sibling_failure(rt_loop_t *loop) {
  /* Cleared before the call: a failure during the call sets the bit again and causes another call. */
  __atomic_fetch_and(&loop->command, ~RT_COMMAND_SIBLING_FAILED, __ATOMIC_ACQ_REL);
  const int rc = loop->hooks.on_peer_failure ? loop->hooks.on_peer_failure(loop->hooks.self) : RT_STOP;
  loop->has_run_hook = 1;
  if (rc == RT_CONTINUE) return RT_GO_ON;
  loop->end.reason_on_stop = rc == RT_STOP ? RT_END_NORMAL : RT_END_ON_PEER_FAILURE;
  loop->end.code = rc == RT_STOP ? 0 : rc;
  rt_loop_send_command(loop, RT_COMMAND_STOP); /* the wait may have called this; the cycle then finds the stop */
  return loop->end.reason_on_stop;
}

/* Take up a step of a settable clock, if there was one since the last look. The grid goes on at its first release that
 * is not before the planned one, as the stepped clock tells it; with a wait() of the loop's own the grid moves with the
 * clock. Returns 1 iff there was a step. The loop's thread between two cycles; three reads of a clock; no system call
 * if the vDSO can read it. */
static __attribute__((noinline, unused)) int rt_loop_follow_clock(rt_loop_t *loop, int is_own_wait) {
  const rt_clock_offset_t seen = rt_clock_offset(loop->read_clock, loop->set_clock);
  const int64_t offset = loop->offset;
  if (RT_LIKELY(offset >= seen.low - RT_CLOCK_STEP_MIN_NS && offset <= seen.high + RT_CLOCK_STEP_MIN_NS)) return 0;
  const int64_t now = rt_clock_best_offset(loop->read_clock, loop->set_clock), step = now - offset;
  rt_schedule_t *const schedule = &loop->schedule;
  const int64_t before = schedule->release;
  rt_store_relaxed(&loop->offset, now);
  if (is_own_wait) {
    rt_schedule_move(schedule, step, 0);
  } else {
    (void)rt_schedule_follow(schedule, step - RT_CLOCK_STEP_MIN_NS); /* the step is measured no better than that */
  }
  const int64_t gap = schedule->release - before - step;
  loop->first_release += step;
  if (loop->end_release != INT64_MAX) loop->end_release += step;
  if (loop->cycle.index) loop->cycle.dt += (double)gap * 1e-9;
  rt_telemetry_step_clock(loop->telemetry, step, gap);
  schedule->is_unsettled = RT_UNSETTLED;
  if (loop->on_clock_step == RT_CLOCK_STEP_STOP) {
    loop->end.reason_on_stop = RT_END_CLOCK_STEP;
    rt_loop_send_command(loop, RT_COMMAND_STOP);
  }
  return 1;
}

/* Handle the pending commands. Returns RT_GO_ON, or the reason for which the run ends. The loop's thread between two
 * cycles; O(1) and at most one system call, plus the time of on_peer_failure(). */
static __attribute__((noinline, cold, unused)) int rt_loop_handle_commands(rt_loop_t *loop) {
  const uint32_t command = rt_load_acquire(&loop->command);
  if (command & RT_COMMAND_STOP) return loop->end.reason_on_stop;
  if (command & RT_COMMAND_RESET) rt_loop_reset_statistics(loop);
  return command & RT_COMMAND_SIBLING_FAILED ? rt_loop_handle_sibling_failure(loop) : RT_GO_ON;
}

#endif
