/* Waiting for a release: sleep until it, or sleep until a margin before it and spin for the rest.
 *
 * All functions are called by the loop's thread. They enter the kernel only to sleep: not at all if the release has
 * passed or the margin covers the wait, once if one sleep is enough. They allocate nothing.
 */
#ifndef RTLOOP_LOOP_WAIT_H
#define RTLOOP_LOOP_WAIT_H

#include "clock.h"
#include "loop_clock_step.h"
#include "loop_commands.h"
#include "loop_state.h"
#include "spin.h"

/* Wait for the release in every case: sleep in slices, sleep again after a signal, learn the margin, and spin.
 * `now` is the present time. `rc` is what a first sleep for this release returned, or 1 if there was none.
 * Returns the time at the end, earlier than the release iff a command ends the run; or a negative errno iff
 * clock_nanosleep(2) fails with anything but EINTR. */
static __attribute__((noinline, unused)) int64_t rt_loop_wait_slow(rt_loop_t *loop, int64_t now, int64_t release,
                                                                   int rc) {
  const int64_t target = release - loop->spin.margin;
  for (;;) {
    if (rc <= 0) {
      if (RT_UNLIKELY(rc) && rc != -EINTR) return rc;
      const uint32_t command = rt_load_acquire(&loop->command);
      if (RT_UNLIKELY(command & RT_COMMAND_STOP)) return now;
      if (RT_UNLIKELY(command && now < target)) { /* handled now, because at the release it would delay the step */
        if (rt_loop_handle_commands(loop) != RT_GO_ON) return now;
        now = rt_loop_now(loop);
        if (now >= target) break; /* this lateness comes from the command: the margin must not learn it */
      }
      if (loop->spin.is_auto && now >= target) {
        rt_spin_learn(&loop->spin, now - target);
        break;
      }
    }
    if (target <= now) break;
    const int64_t until = target - now <= RT_SLICE_NS ? target : now + RT_SLICE_NS;
    rc = rt_clock_sleep_until(loop->clock, &loop->second, until - loop->offset);
    now = rt_loop_now(loop);
  }
  /* Pauses close together make a hypervisor take the CPU away (pause-loop exiting): one in RT_SPIN_READS clock
   * reads. */
  for (uint32_t reads = 1; RT_UNLIKELY(now < release); reads++) {
    if (RT_UNLIKELY(rt_load_relaxed(&loop->command) & RT_COMMAND_STOP)) return now;
    if (reads % RT_SPIN_READS == 0) rt_cpu_relax();
    now = rt_loop_now(loop);
  }
  return now;
}

/* Wait for the release on a settable clock. As rt_loop_wait_any. */
static __attribute__((noinline, cold, unused)) int64_t rt_loop_wait_settable(rt_loop_t *loop, int64_t now,
                                                                             int64_t release) {
  for (;;) {
    now = rt_loop_wait_slow(loop, now, release, 1);
    if (now < release) return now;
    const int64_t before = loop->schedule.release;
    if (RT_LIKELY(!rt_loop_follow_clock(loop, 0))) return now;
    release += loop->schedule.release - before;
    now = rt_loop_now(loop);
  }
}

/* Wait for the release on any clock. On a settable one, look for a step of it at the end of the wait; after a step the
 * release is another one, in loop->schedule.release, and is waited for. `now`, the result and the failures are as for
 * rt_loop_wait_slow. A release that is not the schedule's own moves with it. */
static inline int64_t rt_loop_wait_any(rt_loop_t *loop, int64_t now, int64_t release) {
  if (RT_LIKELY(!loop->is_settable)) return rt_loop_wait_slow(loop, now, release, 1);
  return rt_loop_wait_settable(loop, now, release);
}

/* Note whether the release has passed before the wait for it. Such a cycle is not plain, even if it ends on time. The
 * loop's thread between two cycles; O(1). */
static inline void rt_loop_note_late(rt_loop_t *loop, int64_t now, int64_t release) {
  loop->is_late = now > release;
  if (loop->is_late) rt_schedule_enter(&loop->schedule, RT_UNSETTLED);
}

/* Wait for a release before loop->plain_until: the margin for spinning is 0, nobody sets the clock, and the release is
 * at most one slice away. One sleep in most cycles. *now is the present time, then the result of rt_loop_wait_slow.
 * Returns whether that is a time. Sets loop->is_late if the release has passed. */
static inline int rt_loop_wait(rt_loop_t *loop, int64_t *now, int64_t release) {
  if (RT_LIKELY(release > *now)) {
    const clockid_t clock = loop->clock;
    (void)rt_clock_sleep_until(clock, &loop->second, release);
    *now = rt_loop_read(loop, clock);
    if (RT_LIKELY(*now >= release)) return 1;
    *now = rt_loop_wait_slow(loop, *now, release, -EINTR); /* sleeps again; an error is then seen */
  } else {
    rt_loop_note_late(loop, *now, release);
    *now = rt_loop_wait_slow(loop, *now, release, 1);
  }
  return *now >= 0;
}

/* Sleep in step until `time` on the loop's clock, as it was when the cycle began: a step of the clock does not
 * lengthen the sleep. The time is no execution, and the sleep no violation. Returns 0, also if the time has passed;
 * RT_STOP iff a command ends the run, which ends the sleep within RT_SLICE_NS; or a negative errno iff
 * clock_nanosleep(2) fails with anything but EINTR, or -EINVAL iff the loop does not run. In virtual time it returns
 * at once. The loop's thread, in step; blocks; a system call for each RT_SLICE_NS. */
static __attribute__((noinline, unused)) int rt_loop_sleep_until(rt_loop_t *loop, int64_t time) {
  rt_telemetry_t *const t = loop->telemetry;
  if (RT_UNLIKELY(t == NULL)) return -EINVAL;       /* no run, or a forked child's */
  rt_schedule_enter(&loop->schedule, RT_UNSETTLED); /* a plain cycle does not look at what it waited */
  if (RT_UNLIKELY(loop->is_simulated)) {
    const int64_t left = time - loop->cycle.start - t->waited;
    if (left > 0) t->waited += left < RT_RELEASE_MAX ? left : RT_RELEASE_MAX;
    t->has_waited = 1;
    return rt_load_acquire(&loop->command) & RT_COMMAND_STOP ? RT_STOP : 0;
  }
  rt_guard_t *const guard = loop->guard;
  const uint8_t watched = guard ? guard->selector : 0;
  if (guard) guard->selector = RT_DISPATCH_ALLOW;
  const int64_t begin = rt_loop_now(loop);
  int64_t now = begin;
  int rc = 0;
  while (now < time) {
    if (RT_UNLIKELY(rt_load_acquire(&loop->command) & RT_COMMAND_STOP)) {
      rc = RT_STOP;
      break;
    }
    const int64_t until = time - now <= RT_SLICE_NS ? time : now + RT_SLICE_NS;
    const int slept = rt_clock_sleep_until(loop->clock, &loop->second, until - loop->offset);
    now = rt_loop_now(loop);
    if (RT_UNLIKELY(slept) && slept != -EINTR) {
      rc = slept;
      break;
    }
  }
  t->waited += now - begin;
  t->has_waited = 1;
  if (guard) guard->selector = watched;
  return rc;
}

/* The default wait() of a loop, for a subclass that overrides wait() and calls it. Returns 0, or a negative errno iff
 * clock_nanosleep(2) fails with anything but EINTR; earlier than the release iff a command ends the run. */
static inline int rt_loop_default_wait(rt_loop_t *loop, int64_t release) {
  const int64_t now = rt_loop_wait_any(loop, rt_loop_now(loop), release);
  return now < 0 ? (int)now : 0;
}

#endif
