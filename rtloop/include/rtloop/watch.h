/* Who has a loop that a watchdog looks at: one word between the two threads, and what the watchdog has found.
 *
 * The word decides, once, whether a loop has ended its cycles or has been found stuck. What belongs to the loop stays where
 * it is for as long as the watchdog looks at it. A cycle does not touch the word.
 */
#ifndef RTLOOP_WATCH_H
#define RTLOOP_WATCH_H

#include <stdint.h>

#include "atomics.h"
#include "futex.h"

enum {
  RT_WATCH_NONE = 0,    /* there is no watchdog */
  RT_WATCH_ON = 1,      /* nobody has the loop */
  RT_WATCH_LOOKING = 2, /* the watchdog has it */
  RT_WATCH_OVER = 3,    /* it has ended its cycles by itself */
  RT_WATCH_TRIPPED = 4, /* it was found stuck, and safe() is being called */
  RT_WATCH_SAFE = 5,    /* safe() has returned */
};

/* What the watchdog found when it acted; to be read once the word says that it has. */
typedef struct rt_trip {
  uint64_t cycles;    /* how many the loop had completed */
  int64_t limit;      /* after how long it is stuck, in ns */
  int64_t acted;      /* on the loop's clock, before safe() was called */
  int64_t stuck;      /* how long before that the last cycle had ended, or else the first release had come */
  int64_t monotonic;  /* `acted` on CLOCK_MONOTONIC */
  int64_t safe_ended; /* when safe() had returned, on the loop's clock; valid once it has, as is: */
  int32_t safe_code;
} rt_trip_t;

/* The watchdog takes the loop to look at it. Returns whether it is still to be watched. */
static inline int rt_watch_take(uint32_t *word) {
  uint32_t on = RT_WATCH_ON;
  return __atomic_compare_exchange_n(word, &on, RT_WATCH_LOOKING, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* It gives it back. */
static inline void rt_watch_give(uint32_t *word) { rt_store_release(word, RT_WATCH_ON); }

/* The loop has ended its cycles: from now on the watchdog leaves it alone. Waits while it looks, a millisecond at most, and
 * until safe() has returned where it has acted. Returns whether it has. */
static inline int rt_watch_finish(uint32_t *word) {
  uint32_t was = rt_load_acquire(word);
  while (was != RT_WATCH_NONE && was != RT_WATCH_SAFE) {
    if (was != RT_WATCH_ON) {
      was = rt_futex_wait(word, was, 1000000); /* nobody is woken after a look */
    } else if (__atomic_compare_exchange_n(word, &was, RT_WATCH_OVER, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
      return 0;
    }
  }
  return was == RT_WATCH_SAFE;
}

#endif
