/* A word that one thread sets and another waits for (futex(2)), also in memory that processes share. Blocks and enters
 * the kernel: never per cycle. */
#ifndef RTLOOP_FUTEX_H
#define RTLOOP_FUTEX_H

#include <errno.h>
#include <linux/futex.h>
#include <limits.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"

#define RT_FUTEX_LOOK_NS INT64_C(1000000)

/* Store a value with release order and wake every thread that waits for the word. Any thread; one system call; never
 * fails. */
static inline void rt_futex_set(uint32_t *word, uint32_t value) {
  rt_store_release(word, value);
  syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Wait while the word has this value, at most timeout_ns (relative). Returns the word at the end of the wait, which is
 * still `value` after a timeout or a signal. Any thread; blocks; at most one system call; never fails. */
static inline uint32_t rt_futex_wait(uint32_t *word, uint32_t value, int64_t timeout_ns) {
  struct timespec ts = {.tv_sec = (time_t)(timeout_ns / 1000000000), .tv_nsec = (long)(timeout_ns % 1000000000)};
  if (rt_load_acquire(word) == value) syscall(SYS_futex, word, FUTEX_WAIT, value, &ts, NULL, 0);
  return rt_load_acquire(word);
}

/* Wait while the word has this value, and look at it once a millisecond: a timer's interrupt ends each sleep. For a
 * real-time thread that waits for one of lower priority, which stores the word and must not wake it (the kernel's
 * monitor rtapp). Returns the other value. Blocks; a system call for each look; never fails. */
static inline uint32_t rt_futex_watch(uint32_t *word, uint32_t value) {
  uint32_t is = rt_load_acquire(word);
  while (is == value) is = rt_futex_wait(word, value, RT_FUTEX_LOOK_NS);
  return is;
}

#endif
