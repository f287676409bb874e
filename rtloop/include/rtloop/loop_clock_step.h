/* Steps of a settable clock: somebody sets CLOCK_REALTIME or CLOCK_TAI while a loop runs on it. */
#ifndef RTLOOP_LOOP_CLOCK_STEP_H
#define RTLOOP_LOOP_CLOCK_STEP_H

#include "atomics.h"
#include "clock.h"
#include "loop_commands.h"
#include "loop_state.h"
#include "schedule.h"
#include "telemetry.h"

/* Reaction of a loop to a step of its clock. */
enum {
  RT_CLOCK_STEP_FOLLOW = 0, /* take the grid up again on the clock as it is now */
  RT_CLOCK_STEP_STOP = 1,   /* the loop fails */
};

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
  if (loop->end_release != INT64_MAX) rt_add_relaxed(&loop->end_release, step);
  if (loop->cycle.index) loop->cycle.dt += (double)gap * 1e-9;
  rt_telemetry_step_clock(loop->telemetry, step, gap);
  rt_schedule_enter(schedule, RT_UNSETTLED);
  if (loop->on_clock_step == RT_CLOCK_STEP_STOP) {
    loop->end.reason_on_stop = RT_END_CLOCK_STEP;
    rt_loop_send_command(loop, RT_COMMAND_STOP);
  }
  return 1;
}

/* Count a step of a settable clock that came after the last release of a run. The loop's thread after its last
 * cycle; three reads of a clock. */
static __attribute__((noinline, unused)) void rt_loop_count_last_step(rt_loop_t *loop) {
  const rt_clock_offset_t seen = rt_clock_offset(loop->read_clock, loop->set_clock);
  const int64_t offset = loop->offset;
  if (offset >= seen.low - RT_CLOCK_STEP_MIN_NS && offset <= seen.high + RT_CLOCK_STEP_MIN_NS) return;
  const int64_t now = rt_clock_best_offset(loop->read_clock, loop->set_clock);
  rt_store_relaxed(&loop->offset, now);
  rt_telemetry_step_clock(loop->telemetry, now - offset, 0);
}

#endif
