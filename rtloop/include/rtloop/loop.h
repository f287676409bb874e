/* The body of a loop's thread, from its first system call to its last.
 *
 *   loop_state.h       the struct, its phases and ends
 *   loop_commands.h    stop, reset of the statistics, failure of a sibling, swap
 *   loop_clock_step.h  somebody has set the loop's clock
 *   loop_wait.h        waiting for a release
 *   loop_cycle.h       one cycle, and the sequence of cycles
 *
 * rt_loop_main is inlined into its one caller with the callbacks as constants, so that a cycle makes one indirect call:
 * the user's step. A cycle makes one system call, the sleep; none if its release has passed or the margin for spinning
 * covers the wait.
 */
#ifndef RTLOOP_LOOP_H
#define RTLOOP_LOOP_H

#include "futex.h"
#include "guard_faults.h"
#include "loop_commands.h"
#include "loop_cycle.h"
#include "loop_state.h"
#include "loop_wait.h"
#include "thread.h"
#include "watch.h"

/* In a group, wait until the group has set the origin, or for a stop. Outside of a group, return at once. Nobody wakes
 * the thread, as in rt_futex_watch. The loop's thread, after enter(); blocks in futex(2); never fails. */
static inline void rt_loop_await_origin(rt_loop_t *loop) {
  if (!loop->group.is_member) return;
  rt_futex_set(&loop->phase, RT_PHASE_ENTERED);
  while (rt_futex_wait(&loop->phase, RT_PHASE_ENTERED, RT_FUTEX_LOOK_NS) == RT_PHASE_ENTERED) {
    if (rt_load_acquire(&loop->command) & RT_COMMAND_STOP) return;
  }
}

/* Let a loop whose origin is set begin, if it waits for that. The group's control thread; no system call. */
static inline void rt_loop_begin(rt_loop_t *loop) {
  uint32_t entered = RT_PHASE_ENTERED;
  rt_compare_exchange_acq_rel(&loop->phase, &entered, (uint32_t)RT_PHASE_BEGIN);
}

/* End this process if it is a child that enter() or leave() has forked, and that has returned from there: it has no
 * loop, because the loop's memory is wiped in it. A child that returns from step() ends by SIGSEGV. The loop's thread;
 * O(1). */
static inline void rt_loop_end_child(const rt_loop_t *loop) {
  static const char message[] = "rtloop: a callback of a loop has forked, and the child process ends here\n";
  if (RT_LIKELY(loop->telemetry != NULL)) return;
  if (write(STDERR_FILENO, message, sizeof message - 1) < 0) _exit(1);
  _exit(1);
}

/* Set the thread up, wait for the control thread's GO, and call enter(), the cycles and leave(). The thread has not
 * touched Python and does not. Nothing is returned: the result is in loop->end once the phase is RT_PHASE_DONE. `guard`
 * must be the constant NULL for a loop without guards. `is_sampled` is a constant: if it is 1, there are no guards, and
 * the signals are sampled after `step`. */
static inline __attribute__((always_inline)) void rt_loop_main_of(rt_loop_t *loop, rt_guard_t *guard, int is_sampled,
                                                                  void *self, int (*enter)(void *),
                                                                  int (*step)(void *, const rt_cycle_t *),
                                                                  int (*overrun)(void *, const rt_cycle_t *, int64_t),
                                                                  int (*wait)(void *, int64_t), void (*leave)(void *)) {
  loop->self = self;
  rt_thread_setup(&loop->thread.request, &loop->thread.stack, &loop->thread.report);
  loop->wakes.count = 0;
  loop->hooks.in_slack = NULL;
  loop->wakes.plain_until = &loop->plain_until;
  if (loop->wakers) rt_wakers_enter(loop->wakers, &loop->wakes);
  if (guard) rt_guard_setup(guard, loop->thread.stack.base);
  rt_futex_set(&loop->phase, RT_PHASE_READY);
  if (rt_futex_watch(&loop->phase, RT_PHASE_READY) == RT_PHASE_GO) {
    const int rc = enter(self);
    rt_loop_end_child(loop);
    if (rc == RT_CONTINUE) {
      rt_loop_await_origin(loop);
      rt_loop_start_clock(loop);
      rt_loop_start(loop, rt_loop_now(loop));
      rt_telemetry_write_usage(loop->telemetry, rt_thread_usage(), 0);
      loop->end.reason = is_sampled ? rt_loop_run_sampled_cycles(loop, self, step, overrun, wait)
                                    : rt_loop_run_guarded_cycles(loop, guard, self, step, overrun, wait);
      if (loop->is_settable) rt_loop_count_last_step(loop);
    } else if (rc != RT_STOP) {
      loop->end.reason = rt_loop_end_with(loop, RT_END_ENTER, rc);
    }
    if (rt_watch_finish(&loop->watch)) {
      loop->end.reason = RT_END_WATCHDOG; /* the watchdog has notified the siblings */
    } else if (loop->end.reason != RT_END_NORMAL) {
      rt_loop_report_failure(loop);
    }
    if (guard) rt_guard_stop(guard);
    if (rt_load_acquire(&loop->command) & RT_COMMAND_RESET) rt_loop_reset_statistics(loop);
    rt_store_relaxed(&loop->telemetry->end_reason, (uint32_t)loop->end.reason);
    rt_telemetry_write_usage(loop->telemetry, rt_thread_usage(), 1);
    if (rc == RT_CONTINUE || rc == RT_STOP) leave(loop->self);
    rt_loop_end_child(loop);
    rt_loop_call_at_end(loop);
  }
  if (loop->wakers) rt_wakers_leave(loop->wakers);
  while (loop->wakes.count) rt_wakes_run(&loop->wakes);
  rt_thread_read_back(&loop->thread.report);
  rt_futex_set(&loop->phase, RT_PHASE_DONE);
}

/* Run a loop with guards, whose signals, if any, are sampled by `step`. */
static inline __attribute__((always_inline)) void
rt_loop_guarded_main(rt_loop_t *loop, rt_guard_t *guard, void *self, int (*enter)(void *),
                     int (*step)(void *, const rt_cycle_t *), int (*overrun)(void *, const rt_cycle_t *, int64_t),
                     int (*wait)(void *, int64_t), void (*leave)(void *)) {
  rt_loop_main_of(loop, guard, 0, self, enter, step, overrun, wait, leave);
}

/* Run a loop without guards, whose signals, if any, are sampled by `step`. */
static inline __attribute__((always_inline)) void rt_loop_main(rt_loop_t *loop, void *self, int (*enter)(void *),
                                                               int (*step)(void *, const rt_cycle_t *),
                                                               int (*overrun)(void *, const rt_cycle_t *, int64_t),
                                                               int (*wait)(void *, int64_t), void (*leave)(void *)) {
  rt_loop_main_of(loop, NULL, 0, self, enter, step, overrun, wait, leave);
}

/* Run a loop without guards, and sample its signals after `step`. */
static inline __attribute__((always_inline)) void
rt_loop_sampled_main(rt_loop_t *loop, void *self, int (*enter)(void *), int (*step)(void *, const rt_cycle_t *),
                     int (*overrun)(void *, const rt_cycle_t *, int64_t), int (*wait)(void *, int64_t),
                     void (*leave)(void *)) {
  rt_loop_main_of(loop, NULL, 1, self, enter, step, overrun, wait, leave);
}

#endif
