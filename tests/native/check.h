/* The minimum for a native test: a check that counts, reports its place when it fails, and ends the program. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static long check_count;

/* A program that checks millions of times in its only thread defines CHECK_BY_ONE_THREAD. */
#ifdef CHECK_BY_ONE_THREAD
#define CHECK_COUNT_ONE() ((void)check_count++)
#else
#define CHECK_COUNT_ONE() ((void)__atomic_fetch_add(&check_count, 1, __ATOMIC_RELAXED))
#endif

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    CHECK_COUNT_ONE();                                                                                                 \
    if (!(condition)) {                                                                                                \
      fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);                                    \
      exit(1);                                                                                                         \
    }                                                                                                                  \
  } while (0)

/* A small deterministic generator (xorshift64, Marsaglia 2003). */
static inline uint64_t check_random(uint64_t *seed) {
  *seed ^= *seed << 13;
  *seed ^= *seed >> 7;
  *seed ^= *seed << 17;
  return *seed;
}

#define CHECK_DONE() (printf("%ld checks passed\n", check_count), 0)

#endif
