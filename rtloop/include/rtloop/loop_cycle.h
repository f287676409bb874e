/* One cycle and the sequence of cycles: wait for the release, call step, take the time, record, move the schedule on.
 *
 * A plain cycle starts and ends on time, on the grid, after another cycle of the same run. It takes the fast path.
 * Every other cycle takes the slow path, and so does the one after it, because the schedule has to settle.
 *
 * All functions are called by the loop's thread, except where one says otherwise. They allocate nothing. Apart from the
 * wait, a cycle makes no system call; the exceptions are the end of the warm-up and a reset, with one getrusage(2)
 * each.
 */
#ifndef RTLOOP_LOOP_CYCLE_H
#define RTLOOP_LOOP_CYCLE_H

#include "cycle.h"
#include "guard.h"
#include "loop_clock_step.h"
#include "loop_commands.h"
#include "loop_state.h"
#include "loop_wait.h"
#include "schedule.h"
#include "telemetry.h"

/* Test whether the schedule's release may be more than a slice away. Before its cycle; O(1). */
static inline int rt_loop_is_far(const rt_loop_t *loop) {
  return loop->schedule.period > RT_SLICE_NS || loop->schedule.release - loop->cycle.start > RT_SLICE_NS;
}

/* Compute until when a cycle needs one sleep and no check of the limits of the run, if `index` is that of the cycle at
 * the schedule's release: until the end of the duration, or the first release at which the cycles, or the places for
 * samples of the signals, can be used up. Called anew after each cycle that is not plain, because a release may have
 * been moved. O(1); never fails. */
static inline void rt_loop_limit_plain(rt_loop_t *loop, uint64_t index) {
  const uint64_t most = loop->limits.max_cycles, places = rt_sampling_left(&loop->sampling, index);
  const uint64_t cycles = most > index ? most - index : 0, left = cycles < places ? cycles : places;
  int64_t length, until;
  loop->plain_until = loop->end_release;
  if (loop->has_own_wait || loop->spin.margin || loop->is_settable || loop->wakes.count || loop->hooks.in_slack ||
      loop->is_swap_due || loop->trial.is_on || rt_loop_is_far(loop)) {
    loop->plain_until = INT64_MIN;
  } else if (!__builtin_mul_overflow(left, loop->schedule.period, &length) &&
             !__builtin_add_overflow(loop->schedule.release, length, &until) && until < loop->end_release) {
    loop->plain_until = loop->schedule.unit ? until - 1 : until; /* the release may be a tie that is rounded down */
  }
}

/* Prepare the first cycle of a run, whose release is a phase after `origin`, in ns on the loop's clock.
 * O(1); never fails. */
static inline void rt_loop_start_at(rt_loop_t *loop, int64_t origin) {
  const int64_t duration = loop->limits.max_duration;
  rt_schedule_set_first(&loop->schedule, origin + loop->grid.phase, loop->grid.part);
  const int64_t first = loop->schedule.release;
  loop->first_release = first;
  rt_store_relaxed(&loop->end_release, first > INT64_MAX - duration ? INT64_MAX : first + duration);
  loop->is_late = 0;
  loop->cycle =
      (rt_cycle_t){.period = rt_schedule_nominal(&loop->schedule), .dt = rt_schedule_exact(&loop->schedule) * 1e-9};
  rt_sampling_use(&loop->sampling, loop->live.sampler);
  rt_loop_limit_plain(loop, 0);
  rt_telemetry_begin_run(loop->telemetry, first);
  rt_loop_use_active_bank(loop);
}

/* Prepare the first cycle of a run at the group's first release, or else at the earliest one that the loop can make.
 * `now` is the time on the loop's clock. A group's release may have passed: the first cycle is then late, and the loop
 * stays on the group's grid. O(1); never fails. */
static inline void rt_loop_start(rt_loop_t *loop, int64_t now) {
  const rt_loop_grid_t *const grid = &loop->grid;
  if (grid->origin) {
    rt_loop_start_at(loop, grid->origin);
    return;
  }
  const int64_t period = loop->schedule.period;
  const int64_t lead = period < 1000000 ? period : 1000000;
  rt_loop_start_at(loop, rt_schedule_origin(now, lead, grid->align));
}

/* Measure the offset of a settable clock before the first cycle, unless the group has. Three reads of a clock and more;
 * no system call if the vDSO can read it. */
static inline void rt_loop_start_clock(rt_loop_t *loop) {
  if (!loop->is_settable || loop->grid.origin) return;
  rt_store_relaxed(&loop->offset, rt_clock_best_offset(loop->read_clock, loop->set_clock));
}

/* Fill in what the callbacks read of the cycle that starts now. O(1); never fails. */
static inline void rt_loop_begin_cycle(rt_loop_t *loop, int64_t release, int64_t start) {
  rt_cycle_t *const cycle = &loop->cycle;
  cycle->release = release;
  rt_store_relaxed(&cycle->start, start); /* plain, gcc would spend four instructions on joining the two stores */
  cycle->t = rt_double(release - loop->first_release) * 1e-9;
}

/* Record a cycle that is not plain, which ended at `end`, and move the schedule on. Returns as rt_schedule_next.
 * O(1). */
static __attribute__((noinline, cold, unused)) int rt_loop_finish_cycle_slow(rt_loop_t *loop, int64_t end) {
  rt_cycle_t *const cycle = &loop->cycle;
  const int is_warmup = cycle->index < loop->limits.warmup;
  const rt_record_t record = {cycle->release, cycle->start, end};
  const int overran = rt_schedule_next(&loop->schedule, end);
  rt_telemetry_record(loop->telemetry, &loop->schedule, record, loop->is_late, overran, is_warmup);
  loop->is_late = 0;
  if (!loop->telemetry->has_previous)
    rt_schedule_enter(&loop->schedule, RT_UNSETTLED); /* nor does an interval end with the next */
  rt_loop_limit_plain(loop, cycle->index + 1);
  if (is_warmup && cycle->index + 1 == loop->limits.warmup) {
    rt_telemetry_write_usage(loop->telemetry, rt_thread_usage(), 0);
  }
  return overran;
}

/* Wake one of the consumers that sleep for what the steps have written. Returns the present time without the offset of
 * a settable clock. Between two cycles; one system call. */
static __attribute__((noinline, cold, unused)) int64_t rt_loop_wake(rt_loop_t *loop) {
  rt_wakes_run(&loop->wakes);
  rt_loop_limit_plain(loop, loop->cycle.index);
  return rt_loop_read_clock(loop);
}

/* Go on at the beginning of the ring of samples. Between two cycles; O(1). */
static __attribute__((noinline, cold, unused)) void rt_loop_turn_samples(rt_loop_t *loop) {
  rt_sampling_turn(&loop->sampling);
  rt_loop_limit_plain(loop, loop->cycle.index);
}

/* Request one call of a function with `self`, after the present step has been timed and before the wait for the next
 * release. The call may take the time that is left until then. In virtual time it is not made. In step only; O(1);
 * never fails; no system call. */
static inline void rt_loop_request_slack(rt_loop_t *loop, void (*call)(void *), void *self) {
  loop->hooks.slack_self = self;
  loop->hooks.in_slack = call;
  loop->plain_until = INT64_MIN;
}

/* Make the call that a step has requested. Returns the present time without the offset of a settable clock. The loop's
 * thread between two cycles; takes as long as the call. */
static __attribute__((noinline, cold, unused)) int64_t rt_loop_use_slack(rt_loop_t *loop) {
  void (*const call)(void *) = loop->hooks.in_slack;
  loop->hooks.in_slack = NULL;
  call(loop->hooks.slack_self);
  rt_loop_limit_plain(loop, loop->cycle.index);
  return rt_loop_read_clock(loop);
}

/* Compute the time from the release of this cycle to the next, in s, after the schedule has moved on. A fraction of a
 * ns is not rounded away, so that a sum of these does not drift. O(1). */
static inline double rt_loop_next_dt(const rt_loop_t *loop) {
  const rt_schedule_t *const s = &loop->schedule;
  if (RT_LIKELY(s->unit == 0)) return (double)(s->release - loop->cycle.release) * 1e-9;
  return ((double)(1 + s->missed) * rt_schedule_exact(s) + (double)s->moved) * 1e-9;
}

/* Get the reason for which a run ends after a step that returned `rc`, which is not RT_CONTINUE. O(1). */
static inline int rt_loop_end_after(rt_loop_t *loop, int rc) {
  return rc == RT_STOP ? RT_END_NORMAL : rt_loop_end_with(loop, RT_END_STEP, rc);
}

/* Record the cycle, whose step returned `rc`, move the schedule on, and call overrun() after an overrun.
 * Returns RT_GO_ON, or the reason for which the run ends, with the code in loop->end.code. *overran is 0 iff there was
 * no overrun. record.end is without the offset of a settable clock, whose cycles are never plain.
 * O(1), plus the time of overrun(). */
static inline __attribute__((always_inline)) int
rt_loop_finish_cycle(rt_loop_t *loop, rt_record_t record, int rc, int *overran,
                     int (*overrun)(void *, const rt_cycle_t *, int64_t)) {
  rt_schedule_t *const schedule = &loop->schedule;
  rt_cycle_t *const cycle = &loop->cycle;
  *overran = 0;
  /* A late cycle and the first one of a run are never plain: rt_schedule_is_plain is false while the schedule
   * settles. */
  if (RT_LIKELY(rt_schedule_is_plain(schedule, record.release, record.end))) {
    rt_telemetry_record_plain(loop->telemetry, loop->bank, record);
    rt_add_relaxed(&cycle->index, 1);
    rt_schedule_advance(schedule, record.release); /* at the end, so that the next cycle finds it in a register */
    return RT_LIKELY(rc == RT_CONTINUE) ? RT_GO_ON : rt_loop_end_after(loop, rc);
  }
  record.end += loop->offset;
  if (RT_LIKELY(rt_schedule_is_carried(schedule, record.end))) {
    rt_schedule_carry(schedule);
    rt_telemetry_record_plain(loop->telemetry, loop->bank, record);
    cycle->index += 1;
    return RT_LIKELY(rc == RT_CONTINUE) ? RT_GO_ON : rt_loop_end_after(loop, rc);
  }
  *overran = rt_loop_finish_cycle_slow(loop, record.end);
  if (rc) {
    cycle->index += 1;
    return rt_loop_end_after(loop, rc);
  }
  const int code = *overran ? overrun(loop->self, cycle, schedule->missed) : RT_CONTINUE;
  cycle->index += 1;
  cycle->missed = schedule->missed;
  cycle->dt = rt_loop_next_dt(loop);
  if (code && code != RT_STOP) return rt_loop_end_with(loop, RT_END_OVERRUN, code);
  if (*overran < 0) return RT_END_OVERRUNS; /* before RT_STOP: a run that the policy ends has not ended normally */
  return code == RT_STOP ? RT_END_NORMAL : RT_GO_ON;
}

/* Make another object the argument of the callbacks. The loop's thread between two cycles; O(1). */
static inline void rt_loop_use_step(rt_loop_t *loop, void *self) {
  loop->self = self;
  rt_store_release(&loop->hooks.self, self); /* the watchdog's */
}

/* Go on with the step that was asked for, unless it refuses or the run is about to end. `now` is the time on the loop's
 * clock. The loop's thread between two cycles; as long as take_over(); no system call. */
static __attribute__((noinline, cold, unused)) void rt_loop_swap(rt_loop_t *loop, int64_t now) {
  rt_swap_t *const swap = &loop->swap;
  rt_cycle_t next = loop->cycle;
  loop->is_swap_due = 0;
  rt_loop_limit_plain(loop, next.index);
  if (rt_load_acquire(&loop->command) & RT_COMMAND_STOP || !rt_swap_take(swap)) return;
  next.release = loop->schedule.release;
  next.start = now;
  next.t = rt_double(next.release - loop->first_release) * 1e-9;
  if (swap->live && swap->live->parameters) rt_parameters_begin_at(swap->live->parameters, next.index);
  swap->cycle = next.index;
  swap->code = swap->take_over(swap->successor, swap->former, &next);
  if (swap->code) {
    rt_swap_answer(swap, RT_SWAP_REFUSED);
    return;
  }
  if (swap->trial) {
    loop->trial = (rt_trial_t){.is_on = 1,
                               .watched = swap->watched | RT_INCIDENT_CODE,
                               .until = next.index + swap->trial,
                               .was_late = now > next.release,
                               .former = loop->self,
                               .live = loop->live};
  }
  rt_live_replace(&loop->live, swap->live);
  rt_sampling_use(&loop->sampling, loop->live.sampler);
  rt_loop_limit_plain(loop, next.index);
  rt_loop_use_step(loop, swap->self);
  rt_swap_answer(swap, swap->trial ? RT_SWAP_ON_TRIAL : RT_SWAP_DONE);
}

/* Note an incident if a step is on trial and the trial watches for it. The loop's thread; O(1). */
static inline void rt_loop_note_incident(rt_loop_t *loop, uint32_t incident) {
  loop->trial.seen |= incident & loop->trial.watched;
}

/* Test whether the trial covers this reason to end the run: if it does, the loop goes back to the former step instead
 * of ending. Returns 0 without a trial. The loop's thread after a cycle; O(1). */
static __attribute__((noinline, cold, unused)) int rt_loop_outlives(rt_loop_t *loop, int reason) {
  rt_trial_t *const trial = &loop->trial;
  uint32_t incident = 0;
  if (reason == RT_END_OVERRUNS) incident = RT_INCIDENT_OVERRUN;
  if (reason == RT_END_STEP || reason == RT_END_OVERRUN || reason == RT_END_WAIT) incident = RT_INCIDENT_CODE;
  if (!(incident & trial->watched)) return 0;
  trial->seen |= incident;
  if (incident == RT_INCIDENT_CODE) {
    trial->end = reason;
    trial->code = loop->end.code;
  }
  if (reason == RT_END_STEP) { /* nothing was told of the next cycle */
    loop->cycle.missed = loop->schedule.missed;
    loop->cycle.dt = rt_loop_next_dt(loop);
  }
  loop->end.code = 0;
  return 1;
}

/* Go back to the step before the one on trial. Its parameters are those that it had when it was replaced. The loop's
 * thread between two cycles; O(bytes of parameters); no system call. */
static inline void rt_loop_revert(rt_loop_t *loop) {
  rt_swap_t *const swap = &loop->swap;
  const rt_trial_t *const trial = &loop->trial;
  swap->incidents = trial->seen;
  swap->incident_end = trial->end;
  swap->incident_code = trial->code;
  swap->reverted = loop->cycle.index;
  rt_live_replace(&loop->live, &trial->live);
  rt_sampling_use(&loop->sampling, loop->live.sampler);
  if (trial->live.parameters) rt_parameters_resume_at(trial->live.parameters, loop->cycle.index);
  rt_loop_use_step(loop, trial->former);
}

/* Decide about the step on trial: go back to the former one after an incident, or end the trial. `now` is the time on
 * the loop's clock. Returns 1 iff the trial is over. The loop's thread between two cycles; O(signals), and the bytes of
 * the former step's parameters; no system call. */
static __attribute__((noinline, cold, unused)) int rt_loop_judge(rt_loop_t *loop, int64_t now) {
  rt_trial_t *const trial = &loop->trial;
  const uint64_t index = loop->cycle.index;
  if (trial->watched & RT_INCIDENT_NONFINITE && index > loop->swap.cycle && loop->swap.floats &&
      !rt_floats_are_finite(loop->swap.floats))
    rt_loop_note_incident(loop, RT_INCIDENT_NONFINITE);
  const int is_excused = trial->was_late && index == loop->swap.cycle;
  if (index < trial->until && now > loop->schedule.release && !is_excused)
    rt_loop_note_incident(loop, RT_INCIDENT_LATE);
  if (!trial->seen && index < trial->until) return 0;
  if (trial->seen) rt_loop_revert(loop);
  const uint64_t outcome = trial->seen ? RT_SWAP_REVERTED : RT_SWAP_DONE;
  trial->is_on = 0;
  trial->watched = trial->seen = 0;
  rt_loop_limit_plain(loop, index);
  rt_swap_answer(&loop->swap, outcome);
  return 1;
}

/* Take a cycle that starts before its release, or long after it or after the cycle before, off the fast path, whose
 * differences of times have 32 bits. Only a wait() of the loop's own starts such a cycle. O(1). */
static inline void rt_loop_check_own_wait(rt_loop_t *loop, int64_t now, int64_t release) {
  const uint64_t latency = (uint64_t)now - (uint64_t)release;
  const uint64_t interval = (uint64_t)now - (uint64_t)loop->telemetry->previous_start;
  if (latency >= (uint64_t)RT_PLAIN_PERIOD_NS || interval >= (uint64_t)RT_PLAIN_PERIOD_NS)
    rt_schedule_enter(&loop->schedule, RT_UNSETTLED);
}

#define RT_ROW_NONE (-1)

/* Sample the signals after a step that began at `start`; `row` as for rt_loop_run_cycles_of. The loop's thread; O(words
 * of the signals); no system call. */
static inline __attribute__((always_inline)) void rt_loop_sample(rt_loop_t *loop, int row, int64_t start) {
  if (row == 0) rt_sampling_take(&loop->sampling);
  if (row > 0) rt_sampling_take_row(&loop->sampling, (uint32_t)row, start);
}

/* Run cycles until the run ends. Returns the reason, with the code in loop->end.code. Two arguments must be constants,
 * so that the compiler removes what is not used: `guard`, which is NULL for a loop without guards, and `row`, which is
 * RT_ROW_NONE if this is not to sample, or else loop->sampling.row. Returns RT_GO_ON before the first cycle for which a
 * swap has changed that row. */
static inline __attribute__((always_inline)) int
rt_loop_run_cycles_of(rt_loop_t *loop, rt_guard_t *guard, int row, void *self, int (*step)(void *, const rt_cycle_t *),
                      int (*overrun)(void *, const rt_cycle_t *, int64_t), int (*wait)(void *, int64_t)) {
  rt_schedule_t *const schedule = &loop->schedule;
  rt_cycle_t *const cycle = &loop->cycle;
  loop->self = self;

  int64_t now = rt_loop_read_clock(loop); /* from one cycle to the next, without the offset of a settable clock */
  for (;;) {
    int64_t release = schedule->release;
    if (RT_LIKELY(release < loop->plain_until)) {
      if (RT_UNLIKELY(!rt_loop_wait(loop, &now, release))) return rt_loop_end_with(loop, RT_END_CLOCK, (int)now);
    } else {
      if (RT_UNLIKELY(rt_sampling_is_at_end(&loop->sampling))) rt_loop_turn_samples(loop);
      if (RT_UNLIKELY(loop->wakes.count)) now = rt_loop_wake(loop);
      if (RT_UNLIKELY(loop->trial.is_on) && rt_loop_judge(loop, now + loop->offset) && guard) rt_guard_skip(guard);
      if (RT_UNLIKELY(loop->hooks.in_slack != NULL)) {
        now = rt_loop_use_slack(loop);
        if (guard) rt_guard_skip(guard);
      }
      if (release >= loop->end_release || cycle->index >= loop->limits.max_cycles) return RT_END_NORMAL;
      now += loop->offset;
      if (RT_UNLIKELY(loop->is_swap_due)) {
        rt_loop_swap(loop, now);
        if (guard) rt_guard_skip(guard);
        now = rt_loop_now(loop);
        if (loop->trial.is_on) (void)rt_loop_judge(loop, now); /* take_over() may have taken too long */
      }
      if (row != RT_ROW_NONE && RT_UNLIKELY(loop->sampling.row != (uint32_t)row)) return RT_GO_ON;
      rt_loop_note_late(loop, now, release);
      if (!loop->has_own_wait) {
        now = rt_loop_wait_any(loop, now, release);
        if (RT_UNLIKELY(now < 0)) return rt_loop_end_with(loop, RT_END_CLOCK, (int)now);
      } else {
        const int rc = wait(loop->self, release);
        if (guard) rt_guard_skip(guard);
        now = rt_loop_now(loop);
        if (RT_UNLIKELY(rc == RT_STOP)) return RT_END_NORMAL;
        if (RT_UNLIKELY(rc)) {
          const int reason = rt_loop_end_with(loop, RT_END_WAIT, rc);
          if (!rt_loop_outlives(loop, reason)) return reason;
          now = rt_loop_read_clock(loop);
          continue;
        }
        if (RT_UNLIKELY(loop->is_settable) && rt_loop_follow_clock(loop, 1)) now = rt_loop_now(loop);
        rt_loop_check_own_wait(loop, now, release);
      }
      release = schedule->release; /* after a step of the clock, another one */
    }
    if (RT_UNLIKELY(!rt_is_zero_acquire(&loop->command))) {
      const int reason = rt_loop_handle_commands(loop);
      if (reason != RT_GO_ON) return reason;
      now = rt_loop_now(loop); /* the time of the commands is not the step's */
    }
    if (guard && loop->has_run_hook) {
      loop->has_run_hook = 0;
      rt_guard_skip(guard);
    }

    const int64_t start = now;
    rt_loop_begin_cycle(loop, release, start);
    if (guard) rt_guard_begin(guard, cycle->index);
    const int rc = step(loop->self, cycle);
    rt_loop_sample(loop, row, start);
    if (guard) rt_guard_end(guard);
    now = rt_loop_read_clock(loop);
    int overran, must_stop = 0;
    if (guard && RT_UNLIKELY(rt_guard_check(guard, cycle->index, loop->telemetry))) {
      rt_loop_note_incident(loop, RT_INCIDENT_GUARD);
      must_stop = guard->is_stopping;
    }
    const int reason = rt_loop_finish_cycle(loop, (rt_record_t){release, start, now}, rc, &overran, overrun);
    if (RT_UNLIKELY(must_stop)) {
      const int is_forgiven = reason == RT_GO_ON && loop->trial.seen & RT_INCIDENT_GUARD;
      if ((reason == RT_GO_ON || reason == RT_END_NORMAL) && !is_forgiven) return RT_END_GUARD;
    }
    if (RT_UNLIKELY(reason != RT_GO_ON) && !rt_loop_outlives(loop, reason)) return reason;
    if (RT_UNLIKELY(overran)) {
      rt_loop_note_incident(loop, RT_INCIDENT_OVERRUN);
      if (guard) rt_guard_skip(guard);
      now = rt_loop_read_clock(loop);
    }
  }
}

/* Run cycles of a loop whose signals, if any, are sampled by its step. As rt_loop_run_cycles_of. */
static inline __attribute__((always_inline)) int
rt_loop_run_guarded_cycles(rt_loop_t *loop, rt_guard_t *guard, void *self, int (*step)(void *, const rt_cycle_t *),
                           int (*overrun)(void *, const rt_cycle_t *, int64_t), int (*wait)(void *, int64_t)) {
  return rt_loop_run_cycles_of(loop, guard, RT_ROW_NONE, self, step, overrun, wait);
}

/* Run cycles of a loop without guards, and sample its signals after each step by code for their number, where there is
 * such. Returns the reason for which the run ends, with the code in loop->end.code. */
static inline __attribute__((always_inline)) int
rt_loop_run_sampled_cycles(rt_loop_t *loop, void *self, int (*step)(void *, const rt_cycle_t *),
                           int (*overrun)(void *, const rt_cycle_t *, int64_t), int (*wait)(void *, int64_t)) {
  int reason;
  loop->self = self;
  do {
    switch (loop->sampling.row) {
    case 1:
      reason = rt_loop_run_cycles_of(loop, NULL, 1, loop->self, step, overrun, wait);
      break;
    case 2:
      reason = rt_loop_run_cycles_of(loop, NULL, 2, loop->self, step, overrun, wait);
      break;
    case RT_SAMPLER_INLINE:
      reason = rt_loop_run_cycles_of(loop, NULL, RT_SAMPLER_INLINE, loop->self, step, overrun, wait);
      break;
    default:
      reason = rt_loop_run_cycles_of(loop, NULL, 0, loop->self, step, overrun, wait);
    }
  } while (RT_UNLIKELY(reason == RT_GO_ON));
  return reason;
}

/* Run cycles of a loop without guards until the run ends. Returns the reason, with the code in loop->end.code. */
static inline __attribute__((always_inline)) int rt_loop_run_cycles(rt_loop_t *loop, void *self,
                                                                    int (*step)(void *, const rt_cycle_t *),
                                                                    int (*overrun)(void *, const rt_cycle_t *, int64_t),
                                                                    int (*wait)(void *, int64_t)) {
  return rt_loop_run_guarded_cycles(loop, NULL, self, step, overrun, wait);
}

#endif
