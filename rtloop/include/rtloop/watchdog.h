/* The watchdog of a group: a thread that finds loops which complete no cycles, calls their safe(), and ends them.
 *
 * On an absolute schedule it reads the telemetry of each loop; the loops do nothing for it. A loop is stuck if no cycle
 * has completed for its limit, counted from its last cycle or else from its first release. From the last completed
 * cycle to the call of safe() it takes at least the limit, and at most
 *
 *     limit + 2 * interval + wake-up latency of this thread,
 *
 * plus the time by which the loop's grid was shifted, plus the time for which this thread itself could not run: if the
 * machine or the process stood still, no loop is stuck because of that.
 *
 * Real-time contract: a check takes constant time for each loop, allocates nothing, never waits, and makes no system
 * call; between two checks there is one, the sleep. Only a stuck loop costs more: safe(), and the wake-up of waiting
 * threads.
 */
#ifndef RTLOOP_WATCHDOG_H
#define RTLOOP_WATCHDOG_H

#include "clock.h"
#include "futex.h"
#include "loop_commands.h"
#include "loop_state.h"
#include "stack.h"
#include "thread.h"
#include "watch.h"

typedef struct rt_watched {
  rt_loop_t *loop;
  const rt_telemetry_t *remote; /* of a loop in another process, mapped in this one; NULL: the loop is in this one */
  int64_t limit;                /* in ns */
  int64_t since;     /* when progress was last seen, or its next release, on CLOCK_MONOTONIC; INT64_MAX: not yet */
  int64_t allowance; /* by how much a shift has delayed its next release, in ns */
  int64_t last_end;  /* as last seen, like the fields below */
  int64_t shifted;
  uint64_t written;
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

/* Compute the bytes of a watchdog for `count` loops. O(1). */
static inline uint64_t rt_watchdog_bytes(uint32_t count) {
  return sizeof(rt_watchdog_t) + count * sizeof(rt_watched_t);
}

/* Read the clock of a loop, whose own reader is a function of another process if it is remote. The watchdog; O(1). */
static inline int64_t rt_watched_now(const rt_watched_t *w) {
  return w->remote ? rt_clock_now(w->loop->clock) + rt_load_relaxed(&w->loop->offset) : rt_loop_now(w->loop);
}

/* Test whether a loop is stuck at `now`, on CLOCK_MONOTONIC. The watchdog, between rt_watch_take and rt_watch_give;
 * O(1); no system call. */
static inline int rt_watchdog_is_stuck(rt_watched_t *w, int64_t now) {
  const rt_loop_t *const loop = w->loop;
  const rt_telemetry_t *const t = w->remote ? w->remote : loop->telemetry;
  if (rt_load_acquire(&loop->phase) != RT_PHASE_BEGIN) { /* in enter(), or waiting for the origin */
    w->since = INT64_MAX;
    return 0;
  }
  const uint32_t bank = rt_load_relaxed(&t->active) & 1u;
  const rt_counters_t *const c = &t->banks[bank].counters;
  const uint64_t written = rt_load_relaxed(&t->written); /* a record for each cycle of the run */
  const int64_t last_end = rt_load_relaxed(&c->last_end), shifted = rt_load_relaxed(&c->shifted);
  const int has_got_on = bank != w->bank || written != w->written || last_end != w->last_end || shifted != w->shifted;
  /* Before the first cycle, of the run or after a reset, last_end is the release that the loop waits for. */
  const int64_t next = last_end ? last_end : loop->grid.origin + loop->grid.phase;
  const int64_t ahead = written == rt_load_relaxed(&c->first_record) ? next - rt_watched_now(w) : 0;
  if (has_got_on) {
    if (bank != w->bank) w->shifted = shifted;
    w->allowance = shifted > w->shifted ? shifted - w->shifted : 0;
    w->bank = bank;
    w->written = written;
    w->last_end = last_end;
    w->shifted = shifted;
  }
  if (has_got_on || ahead > 0 || w->since == INT64_MAX) {
    /* Read after the cycle was seen, and counted from the release: otherwise it could act before the limit. */
    w->since = rt_clock_now(CLOCK_MONOTONIC) + (ahead > 0 ? ahead : 0);
    return 0;
  }
  return now - w->since - w->allowance >= w->limit;
}

/* End a stuck loop: forbid further steps, call its safe(), then notify its siblings. The watchdog, after rt_watch_take;
 * as long as safe(); never fails. */
static __attribute__((noinline, cold, unused)) void rt_watchdog_trip(rt_watched_t *w) {
  rt_loop_t *const loop = w->loop;
  rt_trip_t *const trip = &loop->trip;
  trip->cycles = w->written;
  trip->limit = w->limit;
  trip->monotonic = rt_clock_now(CLOCK_MONOTONIC);
  trip->acted = rt_watched_now(w);
  trip->stuck = trip->acted - (w->last_end ? w->last_end : loop->grid.origin + loop->grid.phase);
  rt_loop_send_command(loop, RT_COMMAND_STOP);
  rt_store_release(&loop->watch, RT_WATCH_TRIPPED);
  /* The `safe` of a remote loop is a function in its own process, which calls it after RT_WATCH_SAFE. */
  trip->safe_code = !w->remote && loop->hooks.safe ? loop->hooks.safe(rt_load_acquire(&loop->hooks.self)) : 0;
  trip->safe_ended = rt_watched_now(w);
  rt_loop_notify_siblings(loop);
  rt_futex_set(&loop->watch, RT_WATCH_SAFE); /* from here on the loop's thread may end */
}

/* Check every loop once. Returns 1, or 0 iff no loop is watched any more. The watchdog; O(count). */
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

/* Extend the limits of all loops by the delay of this thread's own wake-up, if that is an interval or more: what kept
 * this thread from running may have stopped the loops as well. `planned` is the time that the wake-up was planned for.
 * Returns the time of the last check that was due by `now`. The watchdog; O(count). */
static inline int64_t rt_watchdog_allow_for_delay(rt_watchdog_t *dog, int64_t planned, int64_t now) {
  const int64_t late = now - planned;
  if (RT_LIKELY(late < dog->interval)) return planned;
  for (uint32_t i = 0; i < dog->count; i++) {
    if (dog->loops[i].since != INT64_MAX) dog->loops[i].since += late;
  }
  return planned + late / dog->interval * dog->interval;
}

/* Check until every loop has ended or was found stuck. The watchdog; sleeps between two checks. */
static inline void rt_watchdog_run(rt_watchdog_t *dog) {
  int64_t now = rt_clock_now(CLOCK_MONOTONIC), planned = now;
  rt_second_t second = {0};
  for (uint32_t i = 0; i < dog->count; i++) dog->loops[i].since = INT64_MAX;
  while (rt_watchdog_check(dog, now)) {
    planned += dog->interval;
    int rc;
    while ((rc = rt_clock_sleep_until(CLOCK_MONOTONIC, &second, planned)) == -EINTR) continue;
    now = rt_clock_now(CLOCK_MONOTONIC);
    if (RT_UNLIKELY(rc) && now < planned) { /* a seccomp filter forbids clock_nanosleep(2) */
      rt_futex_wait(&dog->phase, RT_PHASE_GO, planned - now);
      now = rt_clock_now(CLOCK_MONOTONIC);
    }
    planned = rt_watchdog_allow_for_delay(dog, planned, now);
  }
}

/* The body of the watchdog's thread, which has not touched Python and does not. */
static inline void rt_watchdog_main(rt_watchdog_t *dog) {
  rt_thread_setup(&dog->request, &dog->stack, &dog->report);
  rt_futex_set(&dog->phase, RT_PHASE_READY);
  if (rt_futex_watch(&dog->phase, RT_PHASE_READY) == RT_PHASE_GO) rt_watchdog_run(dog);
  rt_thread_read_back(&dog->report);
  rt_futex_set(&dog->phase, RT_PHASE_DONE);
}

#endif
