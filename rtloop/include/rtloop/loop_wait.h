/* Waiting for a release: sleep until it, or sleep until a margin before it and spin for the rest.
 *
 * All functions are called by the loop's thread. They enter the kernel only to sleep: not at all if the release has
 * passed or the margin covers the wait, once if one sleep is enough. They allocate nothing.
 */
#ifndef RTLOOP_LOOP_WAIT_H
#define RTLOOP_LOOP_WAIT_H

#include "clock.h"
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
    rc = rt_clock_sleep_until(loop->clock, &loop->second, until);
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

/* Wait for the release if the margin for spinning is 0: one sleep in most cycles. `now` is the present time.
 * Returns and fails as rt_loop_wait_slow. Sets loop->is_late if the release has passed. */
static inline int64_t rt_loop_wait(rt_loop_t *loop, int64_t now, int64_t release) {
  /* One comparison for both limits: the release lies ahead, by one slice at most. */
  if (RT_LIKELY((uint64_t)release - (uint64_t)now - 1 < (uint64_t)RT_SLICE_NS)) {
    const int rc = rt_clock_sleep_until(loop->clock, &loop->second, release);
    now = rt_loop_now(loop);
    return RT_LIKELY(rc == 0 && now >= release) ? now : rt_loop_wait_slow(loop, now, release, rc);
  }
  loop->is_late = now > release;
  return rt_loop_wait_slow(loop, now, release, 1);
}

/* The default wait() of a loop, for a subclass that overrides wait() and calls it. Returns 0, or a negative errno iff
 * clock_nanosleep(2) fails with anything but EINTR; earlier than the release iff a command ends the run. */
static inline int rt_loop_default_wait(rt_loop_t *loop, int64_t release) {
  const int64_t now = rt_loop_wait_slow(loop, rt_loop_now(loop), release, 1);
  return now < 0 ? (int)now : 0;
}

#endif
