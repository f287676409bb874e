/* The watchdog of a group: a thread that finds loops which do not complete their cycles, calls their safe(), and ends them.
 *
 * It looks, on an absolute schedule, at what each loop tells in its telemetry; the loops do nothing for it. A loop is stuck
 * when its grid has begun and it has been seen without a completed cycle for its limit, counting from its first planned
 * release. From its last completed cycle to the call of safe() it is at least the limit, and at most
 *
 *     limit + 2 * interval + wake-up latency of this thread,
 *
 * and longer by as much as its grid was moved meanwhile (shift), and by as much as this thread itself was kept from running:
 * when the machine, or the process, has stood still, no loop is stuck for that.
 *
 * Real-time contract: a check is constant time for each loop, allocates nothing, waits for nobody, and makes no system call;
 * the one between two checks is the sleep. Only where a loop is stuck are there more: safe(), and waking those who wait.
 */
#ifndef RTLOOP_WATCHDOG_H
#define RTLOOP_WATCHDOG_H

#include "clock.h"
#include "futex.h"
#include "loop_state.h"
#include "stack.h"
#include "thread.h"
#include "watch.h"

typedef struct rt_watched {
  rt_loop_t *loop;
  int64_t limit; /* in ns */
  int64_t since; /* when it was last seen to get on, or its release comes, on CLOCK_MONOTONIC; INT64_MAX: never yet */
  int64_t allowance; /* how much further away than usual its next release is, since its step has shifted it */
  int64_t last_end;  /* as last seen, as are: */
  int64_t shifted;
  uint64_t cycles; /* in the bank in use */
  uint64_t before; /* in the banks before that */
  uint32_t bank;
} rt_watched_t;

typedef struct rt_watchdog {
  int64_t interval; /* from one check to the next */
  uint64_t checks;
  rt_thread_request_t request;
  rt_thread_report_t report;
  rt_stack_t stack;
  pthread_t thread;
  _Alignas(RT_CACHE_LINE) uint32_t phase; /* RT_PHASE_..., as a loop's */
  uint32_t count;
  rt_watched_t loops[];
} rt_watchdog_t;

static inline uint64_t rt_watchdog_bytes(uint32_t count) {
  return sizeof(rt_watchdog_t) + count * sizeof(rt_watched_t);
}

/* Whether a loop that this thread has taken is stuck at `now`, on CLOCK_MONOTONIC. */
static inline int rt_watchdog_is_stuck(rt_watched_t *w, int64_t now) {
  const rt_loop_t *const loop = w->loop;
  const rt_telemetry_t *const t = loop->telemetry;
  if (rt_load_acquire(&loop->phase) != RT_PHASE_BEGIN) { /* in enter(), or waiting for that of others */
    w->since = INT64_MAX;
    return 0;
  }
  const uint32_t bank = rt_load_relaxed(&t->active) & 1u;
  const rt_counters_t *const c = &t->banks[bank].counters;
  const uint64_t cycles = rt_load_relaxed(&c->cycles);
  const int64_t last_end = rt_load_relaxed(&c->last_end), shifted = rt_load_relaxed(&c->shifted);
  const int has_got_on = bank != w->bank || cycles != w->cycles || last_end != w->last_end || shifted != w->shifted;
  /* Before the first cycle, of the run or after a reset, last_end is the release that the loop waits for. */
  const int64_t next = last_end ? last_end : loop->grid.origin + loop->grid.phase;
  const int64_t ahead = cycles == 0 ? next - rt_loop_now(loop) : 0;
  if (has_got_on) {
    if (bank != w->bank) {
      w->before += rt_load_relaxed(&t->banks[w->bank].counters.cycles);
      w->shifted = shifted;
    }
    w->allowance = shifted > w->shifted ? shifted - w->shifted : 0;
    w->bank = bank;
    w->cycles = cycles;
    w->last_end = last_end;
    w->shifted = shifted;
  }
  if (has_got_on || ahead > 0 || w->since == INT64_MAX) {
    /* Read after the cycle was seen, and no earlier than the release: or it would act before the limit. */
    w->since = rt_clock_now(CLOCK_MONOTONIC) + (ahead > 0 ? ahead : 0);
    return 0;
  }
  return now - w->since - w->allowance >= w->limit;
}

/* A loop that this thread has taken is stuck: safe() first, and then the others. It begins no further step meanwhile. */
static __attribute__((noinline, cold, unused)) void rt_watchdog_trip(rt_watched_t *w) {
  rt_loop_t *const loop = w->loop;
  rt_trip_t *const trip = &loop->trip;
  trip->cycles = w->before + w->cycles;
  trip->limit = w->limit;
  trip->monotonic = rt_clock_now(CLOCK_MONOTONIC);
  trip->acted = rt_loop_now(loop);
  trip->stuck = trip->acted - (w->last_end ? w->last_end : loop->grid.origin + loop->grid.phase);
  rt_loop_send_command(loop, RT_COMMAND_STOP);
  rt_store_release(&loop->watch, RT_WATCH_TRIPPED);
  trip->safe_code = loop->hooks.safe ? loop->hooks.safe(loop->hooks.self) : 0;
  trip->safe_ended = rt_loop_now(loop);
  rt_loop_notify_siblings(loop);
  rt_futex_set(&loop->watch, RT_WATCH_SAFE); /* the loop may end now */
}

/* Look at every loop once. Returns whether any is left to be watched. */
static inline int rt_watchdog_check(rt_watchdog_t *dog, int64_t now) {
  int is_left = 0;
  for (uint32_t i = 0; i < dog->count; i++) {
    rt_watched_t *const w = &dog->loops[i];
    if (!rt_watch_take(&w->loop->watch)) continue;
    if (RT_UNLIKELY(rt_watchdog_is_stuck(w, now))) {
      rt_watchdog_trip(w);
    } else {
      rt_watch_give(&w->loop->watch);
      is_left = 1;
    }
  }
  rt_add_relaxed(&dog->checks, 1);
  return is_left;
}

/* Take account of a wake-up at `now` that was planned for `planned`: no loop is to blame for what kept this thread from
 * running. Returns the last check that should have been by now. */
static inline int64_t rt_watchdog_allow_for_delay(rt_watchdog_t *dog, int64_t planned, int64_t now) {
  const int64_t late = now - planned;
  if (RT_LIKELY(late < dog->interval)) return planned;
  for (uint32_t i = 0; i < dog->count; i++) {
    if (dog->loops[i].since != INT64_MAX) dog->loops[i].since += late;
  }
  return planned + late / dog->interval * dog->interval;
}

/* Check until every loop has ended, or was found stuck. */
static inline void rt_watchdog_run(rt_watchdog_t *dog) {
  int64_t now = rt_clock_now(CLOCK_MONOTONIC), planned = now;
  rt_second_t second = {0};
  for (uint32_t i = 0; i < dog->count; i++) dog->loops[i].since = INT64_MAX;
  while (rt_watchdog_check(dog, now)) {
    planned += dog->interval;
    while (rt_clock_sleep_until(CLOCK_MONOTONIC, &second, planned) == -EINTR) continue;
    now = rt_clock_now(CLOCK_MONOTONIC);
    planned = rt_watchdog_allow_for_delay(dog, planned, now);
  }
}

/* The body of the watchdog's thread. It has not touched Python and does not. */
static inline void rt_watchdog_main(rt_watchdog_t *dog) {
  rt_thread_setup(&dog->request, &dog->stack, &dog->report);
  rt_futex_set(&dog->phase, RT_PHASE_READY);
  uint32_t verdict = RT_PHASE_READY;
  while (verdict == RT_PHASE_READY) verdict = rt_futex_wait(&dog->phase, RT_PHASE_READY, RT_NS_PER_S);
  if (verdict == RT_PHASE_GO) rt_watchdog_run(dog);
  rt_futex_set(&dog->phase, RT_PHASE_DONE);
}

#endif
