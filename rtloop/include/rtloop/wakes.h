/* Waking consumers that sleep until there is something in an exchange, without a system call in a step.
 *
 * A consumer that is going to sleep sets a word of the exchange to 1, looks once more, and sleeps (futex(2)) while the
 * word is 1. A producer looks at the word after each item. While it is 0, that one load is all. If it is 1, somebody
 * has to be woken, which is a system call: outside of a loop it is made at once. In a loop, the word is noted instead,
 * and the next cycle is forced onto the slow path, which wakes before it waits for its release: after the end of the
 * step was taken. A cycle wakes for one word, so it makes at most one system call more; further words follow in the
 * next cycles.
 *
 * A producer's store of an item and its load of the word may be exchanged by the CPU. A consumer that begins to wait at
 * this moment can miss that one item; therefore its first sleep is short (RT_WAIT_FIRST_NS). From then on its word is
 * visible. All sleeps are limited (RT_WAIT_SLICE_NS), so that a signal, or an item of a producer that looks at no word,
 * is noticed.
 *
 * The word may lie in shared memory, where any process can set it: at worst, a loop makes one system call a cycle.
 */
#ifndef RTLOOP_WAKES_H
#define RTLOOP_WAKES_H

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"

#define RT_WAKES_MAX 8u        /* words that one loop has noted */
#define RT_WAKES_MAX_LOOPS 64u /* threads that note words; further ones wake at once */
#define RT_WAIT_FIRST_NS INT64_C(1000000)
#define RT_WAIT_SLICE_NS INT64_C(20000000)

/* The words that a loop has to wake. Used by its thread alone. */
typedef struct rt_wakes {
  uint32_t count;
  uint32_t *words[RT_WAKES_MAX];
  int64_t *plain_until; /* set to INT64_MIN, it forces the next cycle onto the slow path */
} rt_wakes_t;

/* The loops of this process, by their threads. All zeros is an empty one. */
typedef struct rt_wakers {
  struct {
    uint64_t thread; /* from pthread_self(); 0: free */
    rt_wakes_t *wakes;
  } loops[RT_WAKES_MAX_LOOPS];
} rt_wakers_t;

/* Test whether somebody sleeps for a word. The producer; one load. */
static inline int rt_is_awaited(const uint32_t *word) { return rt_load_relaxed(word) != 0; }

/* Wake all that sleep for a word. Any thread but in a step; one system call; never fails. */
static inline void rt_wake_now(uint32_t *word) {
  rt_store_release(word, 0u);
  (void)syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Note this thread as one of a loop, whose cycles call rt_wakes_run. Its thread, before its first cycle; O(loops).
 * Without a free entry, the loop's producers wake at once. */
static inline void rt_wakers_enter(rt_wakers_t *wakers, rt_wakes_t *wakes) {
  const uint64_t self = (uint64_t)pthread_self();
  for (uint32_t i = 0; i < RT_WAKES_MAX_LOOPS; i++) {
    uint64_t none = 0;
    if (rt_load_relaxed(&wakers->loops[i].thread) == 0 &&
        rt_compare_exchange_acq_rel(&wakers->loops[i].thread, &none, self)) {
      wakers->loops[i].wakes = wakes;
      return;
    }
  }
}

/* Forget this thread. Its thread, after its last cycle; O(loops). */
static inline void rt_wakers_leave(rt_wakers_t *wakers) {
  const uint64_t self = (uint64_t)pthread_self();
  for (uint32_t i = 0; i < RT_WAKES_MAX_LOOPS; i++) {
    if (rt_load_relaxed(&wakers->loops[i].thread) == self) rt_store_release(&wakers->loops[i].thread, (uint64_t)0);
  }
}

/* Wake all that sleep for a word, later if this is the thread of a loop. The producer, if rt_is_awaited; O(loops); a
 * system call iff it is not a loop's thread. */
static __attribute__((noinline, unused)) void rt_wake_request(rt_wakers_t *wakers, uint32_t *word) {
  const uint64_t self = (uint64_t)pthread_self();
  for (uint32_t i = 0; i < RT_WAKES_MAX_LOOPS; i++) {
    if (rt_load_relaxed(&wakers->loops[i].thread) != self) continue;
    rt_wakes_t *const wakes = wakers->loops[i].wakes;
    for (uint32_t k = 0; k < wakes->count; k++) {
      if (wakes->words[k] == word) return;
    }
    if (wakes->count == RT_WAKES_MAX) return; /* the word is still 1, and the next item asks again */
    wakes->words[wakes->count++] = word;
    *wakes->plain_until = INT64_MIN;
    return;
  }
  rt_wake_now(word);
}

/* Wake for the word that was noted first. The loop's thread between two steps; one system call, none if there is no
 * word. */
static __attribute__((noinline, cold, unused)) void rt_wakes_run(rt_wakes_t *wakes) {
  if (wakes->count == 0) return;
  uint32_t *const word = wakes->words[0];
  wakes->count--;
  for (uint32_t k = 0; k < wakes->count; k++) wakes->words[k] = wakes->words[k + 1];
  rt_wake_now(word);
}

/* Announce that this thread is going to sleep for a word. Look for an item after this, and then call rt_wait_sleep. */
static inline void rt_wait_announce(uint32_t *word) { (void)__atomic_exchange_n(word, 1u, __ATOMIC_SEQ_CST); }

/* Sleep until somebody wakes the word, a signal comes, or ns have passed. Any thread; blocks; never fails. */
static inline void rt_wait_sleep(uint32_t *word, int64_t ns) {
  const struct timespec time = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
  (void)syscall(SYS_futex, word, FUTEX_WAIT, 1u, &time, NULL, 0);
}

#endif
