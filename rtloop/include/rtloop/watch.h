/* The word through which a watchdog and a loop's thread agree, and the report of the watchdog.
 *
 * The word decides, once, whether a loop has ended its cycles or was found stuck. The loop's memory stays mapped while
 * the watchdog checks it. A cycle does not touch the word.
 */
#ifndef RTLOOP_WATCH_H
#define RTLOOP_WATCH_H

#include <stdint.h>

#include "atomics.h"
#include "futex.h"

enum {
  RT_WATCH_NONE = 0,    /* there is no watchdog */
  RT_WATCH_ON = 1,      /* watched, and not being checked at the moment */
  RT_WATCH_LOOKING = 2, /* the watchdog is checking the loop */
  RT_WATCH_OVER = 3,    /* the loop has ended its cycles by itself */
  RT_WATCH_TRIPPED = 4, /* the loop was found stuck, and safe() is being called */
  RT_WATCH_SAFE = 5,    /* safe() has returned */
};

/* What the watchdog found when it tripped. Valid once the word is RT_WATCH_TRIPPED or RT_WATCH_SAFE. */
typedef struct rt_trip {
  uint64_t cycles;    /* cycles that the loop had completed */
  int64_t limit;      /* time without a completed cycle after which a loop is stuck, in ns */
  int64_t acted;      /* on the loop's clock, before safe() was called */
  int64_t stuck;      /* from the end of the last cycle, or else from the first release, to `acted`, in ns */
  int64_t monotonic;  /* `acted` on CLOCK_MONOTONIC */
  int64_t safe_ended; /* on the loop's clock, after safe() had returned; valid in RT_WATCH_SAFE, as is safe_code */
  int32_t safe_code;
} rt_trip_t;

/* Start a check of the loop. Returns 1, or 0 iff the loop is no longer watched. The watchdog; one locked
 * instruction. */
static inline int rt_watch_take(uint32_t *word) {
  uint32_t on = RT_WATCH_ON;
  return __atomic_compare_exchange_n(word, &on, RT_WATCH_LOOKING, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* End a check of the loop. The watchdog; O(1). */
static inline void rt_watch_give(uint32_t *word) { rt_store_release(word, RT_WATCH_ON); }

/* Test whether a check of the loop is under way, or safe() is being called. What the caller has seen the loop's thread
 * store is visible to every check that begins later. Any thread; one locked instruction. */
static inline int rt_watch_is_taken(uint32_t *word) {
  const uint32_t now = __atomic_fetch_or(word, 0, __ATOMIC_ACQ_REL);
  return now == RT_WATCH_LOOKING || now == RT_WATCH_TRIPPED;
}

/* End the watch of a loop that has ended its cycles. Waits for a check to end, and for safe() to return if the watchdog
 * has tripped. Returns 1 iff the watchdog has tripped. A second call changes nothing. The loop's thread after its last
 * cycle, or another one in the place of a thread that was killed; blocks in futex(2); never fails. */
static inline int rt_watch_finish(uint32_t *word) {
  uint32_t was = rt_load_acquire(word);
  while (was != RT_WATCH_NONE && was != RT_WATCH_OVER && was != RT_WATCH_SAFE) {
    if (was != RT_WATCH_ON) {
      was = rt_futex_wait(word, was, 1000000); /* the end of a check wakes no one, hence the timeout */
    } else if (__atomic_compare_exchange_n(word, &was, RT_WATCH_OVER, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
      return 0;
    }
  }
  return was == RT_WATCH_SAFE;
}

#endif
