/* Loops in virtual time: the cycles of loop_cycle.h, with models instead of the clock.
 *
 * The schedule, the accounting and the callbacks are those of the real loop. Two models replace the kernel and the CPU:
 * how late the loop wakes up, and how long its step takes. Nothing sleeps, and a clock is read only for pauses, so the
 * same models and callbacks give bit-identical results.
 *
 * Several loops share one virtual clock, as if each had a CPU of its own. The loop with the earliest start runs next;
 * at equal times they run in their order. What a step writes is visible to the other loops from the start of that step.
 *
 * Every function is for the one thread that runs the simulation, and allocates nothing.
 */
#ifndef RTLOOP_SIMULATE_H
#define RTLOOP_SIMULATE_H

#include "loop_cycle.h"
#include "thread.h"

/* The virtual time of the first release, before `phase` and `align`. It is not 0, which programs use for "never". */
#define RT_SIMULATION_START_NS RT_NS_PER_S
/* The loop is ready this much earlier, so that it sleeps before its first release as well. */
#define RT_SIMULATION_LEAD_NS INT64_C(1000000)

/* Results of rt_simulate_advance other than the number of a loop that has ended. */
enum { RT_SIMULATION_PAUSE = -1, RT_SIMULATION_OVER = -2 };

/* Ends of a simulated run in addition to those of loop_state.h: a model or a plant failed, or the virtual clock ran
 * out. */
enum { RT_END_MODEL = 100, RT_END_TIME = 101 };

/* A model of durations, one for each cycle: a constant, a repeated sequence, or the results of a function. */
typedef struct rt_model {
  int64_t constant;
  const int64_t *values; /* NULL: the constant */
  uint64_t count;
  uint64_t at;
  void *context;
  int64_t (*ask)(void *context, uint64_t index); /* a negative result ends the run */
} rt_model_t;

/* Get the duration of cycle `index`, in ns; negative iff the model's function failed. O(1), or as long as the
 * function. */
static inline int64_t rt_model_next(rt_model_t *model, uint64_t index) {
  if (RT_UNLIKELY(model->ask != NULL)) return model->ask(model->context, index);
  if (model->values == NULL) return model->constant;
  const int64_t value = model->values[model->at];
  if (++model->at == model->count) model->at = 0;
  return value;
}

/* One loop in virtual time. */
typedef struct rt_simulation {
  rt_loop_t *loop;
  void *self;
  int64_t now;          /* the end of its last cycle */
  int64_t start;        /* of its next cycle; INT64_MAX when its duration is over */
  uint64_t swap_at;     /* index of the cycle before which the simulation pauses for a swap; 0: none */
  int32_t is_decided;   /* 1 if a trial has ended since the last pause; another pause follows */
  int32_t is_recorded;  /* whether the latency is a recorded one, which includes every cause of a late start */
  rt_model_t latency;   /* from the time at which the loop wants to wake up */
  rt_model_t execution; /* of the step, and of overrun() after it */
  void *plant;          /* context of: */
  int (*before)(void *plant, const rt_cycle_t *cycle); /* called before the step; NULL: nothing */
} rt_simulation_t;

/* Compute the start of the next cycle. Returns RT_GO_ON, or the reason for which the run ends. O(1), plus the model. */
static inline int rt_simulate_plan(rt_simulation_t *s) {
  rt_loop_t *const loop = s->loop;
  if (RT_UNLIKELY(loop->trial.is_on) && rt_loop_judge(loop, s->now)) {
    s->self = loop->self;
    s->is_decided = 1;
  }
  rt_sampling_turn(&loop->sampling);
  const int64_t release = loop->schedule.release;
  if (RT_UNLIKELY(loop->cycle.index >= loop->limits.max_cycles)) return RT_END_NORMAL;
  if (RT_UNLIKELY(release >= loop->end_release)) {
    s->start = INT64_MAX;
    return RT_GO_ON;
  }
  int64_t now = s->now;
  if (RT_UNLIKELY(now > RT_RELEASE_MAX || release > RT_RELEASE_MAX)) return RT_END_TIME;
  loop->is_late = now > release;
  const int64_t latency = rt_model_next(&s->latency, loop->cycle.index);
  if (RT_UNLIKELY(latency < 0)) return RT_END_MODEL;
  if (s->is_recorded) {
    now = (now > release ? now : release) + latency;
  } else {
    /* As rt_loop_wait: sleep until the margin for spinning begins, if there is time, and spin to the release. */
    const int64_t target = release - loop->spin.margin;
    if (target > now) {
      now = target + latency;
      if (loop->spin.is_auto) rt_spin_learn(&loop->spin, latency);
    }
    if (now < release) now = release;
  }
  s->start = now;
  return RT_GO_ON;
}

/* Begin a run, after enter(). Returns as rt_simulate_plan. O(1), plus the model. */
static inline int rt_simulate_begin(rt_simulation_t *s) {
  rt_loop_t *const loop = s->loop;
  loop->is_simulated = 1;
  loop->self = s->self;
  s->now = RT_SIMULATION_START_NS - RT_SIMULATION_LEAD_NS;
  rt_loop_start_at(loop, rt_schedule_origin(s->now, RT_SIMULATION_LEAD_NS, loop->grid.align));
  return rt_simulate_plan(s);
}

/* Call a callback in the floating-point mode that the loop's thread would have. */
#define RT_SIMULATE_FLUSHED(s, call)                                                                                   \
  do {                                                                                                                 \
    const int is_flushed_ = (s)->loop->thread.request.flush_denormals;                                                 \
    const uint64_t control_ = RT_UNLIKELY(is_flushed_) ? rt_thread_float_control() : 0;                                \
    if (RT_UNLIKELY(is_flushed_)) (void)rt_thread_flush_denormals();                                                   \
    call;                                                                                                              \
    if (RT_UNLIKELY(is_flushed_)) rt_thread_set_float_control(control_);                                               \
  } while (0)

/* Call enter() in the loop's floating-point mode. Returns what it returns. */
static inline int rt_simulate_enter(rt_simulation_t *s, int (*enter)(void *)) {
  int rc;
  RT_SIMULATE_FLUSHED(s, rc = enter(s->self));
  return rc;
}

/* Handle a pending reset, as rt_loop_main does, and call leave() in the loop's floating-point mode. */
static inline void rt_simulate_leave(rt_simulation_t *s, void (*leave)(void *)) {
  if (rt_load_acquire(&s->loop->command) & RT_COMMAND_RESET) rt_loop_reset_statistics(s->loop);
  RT_SIMULATE_FLUSHED(s, leave(s->self));
  rt_loop_call_at_end(s->loop);
}

/* Run one cycle. Returns RT_GO_ON, or the reason for which the run ends. As long as the callbacks and the models. */
static inline __attribute__((always_inline)) int
rt_simulate_cycle(rt_simulation_t *s, int (*step)(void *, const rt_cycle_t *),
                  int (*overrun)(void *, const rt_cycle_t *, int64_t)) {
  rt_loop_t *const loop = s->loop;
  const uint32_t command = rt_load_acquire(&loop->command);
  if (RT_UNLIKELY(command)) {
    if (command & RT_COMMAND_STOP) return RT_END_NORMAL;
    if (command & RT_COMMAND_RESET) rt_loop_reset_statistics(loop);
  }
  rt_loop_begin_cycle(loop, loop->schedule.release, s->start);
  if (RT_UNLIKELY(s->before != NULL)) {
    const int rc = s->before(s->plant, &loop->cycle);
    if (rc) return rc == RT_STOP ? RT_END_NORMAL : RT_END_MODEL;
  }
  int rc, reason, overran;
  RT_SIMULATE_FLUSHED(s, rc = step(s->self, &loop->cycle));
  if (RT_UNLIKELY(loop->telemetry == NULL)) return RT_END_MODEL; /* in a forked child the state is wiped */
  const int64_t execution = rt_model_next(&s->execution, loop->cycle.index);
  if (RT_UNLIKELY(execution < 0)) return RT_END_MODEL;
  s->now = s->start + execution + loop->telemetry->waited;
  const rt_record_t record = {loop->cycle.release, s->start, s->now};
  RT_SIMULATE_FLUSHED(s, reason = rt_loop_finish_cycle(loop, record, rc, &overran, overrun));
  if (RT_UNLIKELY(reason != RT_GO_ON) && !rt_loop_outlives(loop, reason)) return reason;
  if (RT_UNLIKELY(overran)) rt_loop_note_incident(loop, RT_INCIDENT_OVERRUN);
  return rt_simulate_plan(s);
}

/* Test whether the next cycle of a loop is the one that a swap comes before. O(1). */
static inline int rt_simulate_is_swap_due(const rt_simulation_t *s) {
  return s->swap_at && s->start != INT64_MAX && s->loop->cycle.index >= s->swap_at;
}

/* Take the swap that was asked for, in the loop's floating-point mode. As long as take_over(). */
static inline void rt_simulate_swap(rt_simulation_t *s) {
  __atomic_fetch_and(&s->loop->command, ~RT_COMMAND_SWAP, __ATOMIC_ACQ_REL);
  RT_SIMULATE_FLUSHED(s, rt_loop_swap(s->loop, s->now));
  s->self = s->loop->self;
}

/* Run cycles of all loops in the order of virtual time, until one ends by itself, all have reached their duration, a
 * swap is due, a trial is over, or the real time is `pause` on CLOCK_MONOTONIC. Returns the number of the loop that has
 * ended, whose end.reason is set, or RT_SIMULATION_...; O(count) for each cycle. */
static inline __attribute__((always_inline)) int
rt_simulate_advance(rt_simulation_t *simulations, int count, int64_t pause, int (*step)(void *, const rt_cycle_t *),
                    int (*overrun)(void *, const rt_cycle_t *, int64_t)) {
  for (uint32_t cycles = 1;; cycles++) {
    rt_simulation_t *next = simulations;
    for (int i = 1; i < count; i++) {
      if (simulations[i].start < next->start) next = &simulations[i];
    }
    if (RT_UNLIKELY(next->start == INT64_MAX)) return RT_SIMULATION_OVER;
    if (RT_UNLIKELY(rt_simulate_is_swap_due(next))) return RT_SIMULATION_PAUSE;
    const int reason = rt_simulate_cycle(next, step, overrun);
    if (RT_UNLIKELY(reason != RT_GO_ON)) {
      next->loop->end.reason = reason;
      return (int)(next - simulations);
    }
    if (RT_UNLIKELY(next->is_decided)) return RT_SIMULATION_PAUSE;
    if (RT_UNLIKELY(cycles % 64 == 0) && rt_clock_now(CLOCK_MONOTONIC) >= pause) return RT_SIMULATION_PAUSE;
  }
}

#endif
