/* A histogram of durations with logarithmic buckets: constant-time recording, better than 1 % resolution.
 *
 * Layout, known to every reader of a snapshot:
 *   values below 256 have a bin each; from there on every power of two is divided into 128 bins,
 *   so a bin is never wider than 1/128 (0.8 %) of its lower edge;
 *   values of 2^40 ns (18 minutes) and more go to the last bin, the overflow bin; negative ones to bin 0.
 * While values are counted, every power of two has 128 counters, even below 128, where most of them stay 0. A value is
 * then counted without a branch: the number of its counter is the upper bits of a floating-point number.
 * rt_histogram_counts adds the counters up into the bins.
 * The smallest and the largest value, the sum of the values and that of their squares are kept exactly, from which
 * readers compute the exact mean and standard deviation.
 *
 * Real-time contract: rt_histogram_record runs in constant time, allocates nothing and makes no system call.
 * One thread writes; others may read any counter at any time, and read all of them consistently under a seqlock.
 */
#ifndef RTLOOP_HISTOGRAM_H
#define RTLOOP_HISTOGRAM_H

#include <stdint.h>
#include <string.h>

#include "atomics.h"

#define RT_HISTOGRAM_SUB_BITS 7
#define RT_HISTOGRAM_MAX_BITS 40
/* 33 octaves of 128 bins above the first 128, and the overflow bin. */
#define RT_HISTOGRAM_BINS (((RT_HISTOGRAM_MAX_BITS - RT_HISTOGRAM_SUB_BITS + 1) << RT_HISTOGRAM_SUB_BITS) + 1)
#define RT_HISTOGRAM_OVERFLOW (RT_HISTOGRAM_BINS - 1)
/* A counter for 0 and all negative values, 40 octaves of 128 counters, and one for what goes to the overflow bin. */
#define RT_HISTOGRAM_COUNTERS ((RT_HISTOGRAM_MAX_BITS << RT_HISTOGRAM_SUB_BITS) + 2)
/* The square of a value below 2^32 ns (4.3 s) has 64 bits. */
#define RT_HISTOGRAM_SQUARE_BITS 32

__extension__ typedef unsigned __int128 rt_uint128_t; /* of every 64-bit machine, but not of ISO C */

typedef struct rt_histogram {
  int64_t min;          /* INT64_MAX while empty */
  int64_t max;          /* INT64_MIN while empty */
  int64_t sum;          /* wraps after 292 years of summed durations */
  uint64_t squares_low; /* the sum of the squares, 128 bits */
  uint64_t squares_high;
  int64_t low; /* values low..low + span - 1 change neither min nor max; used by the writer alone */
  uint64_t span;
  uint64_t counts[RT_HISTOGRAM_COUNTERS];
} rt_histogram_t;

/* Convert to floating point. On x86-64 that is one instruction, where compilers clear the register first, to break a
 * dependency that does not matter in a cycle. O(1), without a branch. */
static inline double rt_double(int64_t value) {
#if defined(__x86_64__)
  double number;
  __asm__("cvtsi2sdq %1, %0" : "=x"(number) : "r"(value));
  return number;
#else
  return (double)value;
#endif
}

/* Compute the counter of a value from 0 to 2^40 - 1. The conversion to floating point (IEEE 754) is exact; its exponent
 * is the octave, and the upper bits of its fraction are the place in the octave. 0, whose bits are 0, has the counter
 * before that of 1. O(1), without a branch. */
static inline uint64_t rt_histogram_counter_within(int64_t value) {
  const uint64_t before = (UINT64_C(1023) << RT_HISTOGRAM_SUB_BITS) - 1;
  const double number = rt_double(value);
  uint64_t bits;
  memcpy(&bits, &number, sizeof bits);
  bits >>= 52 - RT_HISTOGRAM_SUB_BITS;
  return bits > before ? bits - before : 0;
}

/* Compute the counter of any value. O(1); never fails. */
static inline uint32_t rt_histogram_counter(int64_t value) {
  if (RT_UNLIKELY((uint64_t)value >> RT_HISTOGRAM_MAX_BITS)) return value < 0 ? 0 : RT_HISTOGRAM_COUNTERS - 1;
  return (uint32_t)rt_histogram_counter_within(value);
}

/* Compute the bin to which a counter belongs. O(1); never fails. */
static inline uint32_t rt_histogram_bin_of_counter(uint32_t counter) {
  const uint32_t octaves = RT_HISTOGRAM_SUB_BITS; /* whose values have a bin each, but not a counter each */
  if (counter == 0) return 0;
  const uint32_t octave = (counter - 1) >> RT_HISTOGRAM_SUB_BITS;
  if (octave >= octaves) return counter - 1 - ((octaves - 1) << RT_HISTOGRAM_SUB_BITS);
  return (counter - 1 - (octave << RT_HISTOGRAM_SUB_BITS) + (1u << RT_HISTOGRAM_SUB_BITS)) >> (octaves - octave);
}

/* Compute the bin of any value. O(1); never fails. */
static inline uint32_t rt_histogram_bin(int64_t value) {
  return rt_histogram_bin_of_counter(rt_histogram_counter(value));
}

/* Compute the lower edge of a bin, in nanoseconds; that of RT_HISTOGRAM_OVERFLOW is 2^40. O(1); never fails. */
static inline int64_t rt_histogram_edge(uint32_t bin) {
  uint32_t octave = bin >> RT_HISTOGRAM_SUB_BITS;
  if (octave == 0) return bin;
  octave -= 1;
  return (int64_t)(bin - (octave << RT_HISTOGRAM_SUB_BITS)) << octave;
}

/* Empty a histogram. The writer; O(RT_HISTOGRAM_COUNTERS). */
static inline void rt_histogram_clear(rt_histogram_t *h) {
  rt_store_relaxed(&h->min, INT64_MAX);
  rt_store_relaxed(&h->max, INT64_MIN);
  rt_store_relaxed(&h->sum, (int64_t)0);
  rt_store_relaxed(&h->squares_low, UINT64_C(0));
  rt_store_relaxed(&h->squares_high, UINT64_C(0));
  rt_store_relaxed(&h->low, (int64_t)0);
  rt_store_relaxed(&h->span, (uint64_t)0);
  for (uint32_t i = 0; i < RT_HISTOGRAM_COUNTERS; i++) rt_store_relaxed(&h->counts[i], (uint64_t)0);
}

/* Add any value to the sum and its square to that of the squares, which cannot overflow: 2^48 values of 2^39 ns (9
 * minutes) are below 2^127. The writer; O(1). */
static inline void rt_histogram_add_any(rt_histogram_t *h, int64_t value) {
  const uint64_t size = value < 0 ? -(uint64_t)value : (uint64_t)value;
  const rt_uint128_t square = (rt_uint128_t)size * size;
  rt_add128_relaxed(&h->squares_low, &h->squares_high, (uint64_t)square);
  rt_store_relaxed(&h->squares_high, h->squares_high + (uint64_t)(square >> 64));
  rt_store_relaxed(&h->sum, (int64_t)((uint64_t)h->sum + (uint64_t)value));
}

/* Count a value that rt_histogram_is_within refuses: a new minimum or maximum, or one that is out of range. The writer;
 * O(1). */
static __attribute__((noinline, unused)) void rt_histogram_extend(rt_histogram_t *h, int64_t value) {
  if (value < h->min) rt_store_relaxed(&h->min, value);
  if (value > h->max) rt_store_relaxed(&h->max, value);
  const int64_t low = h->min > 0 ? h->min : 0;
  const int is_within = (uint64_t)h->max >> RT_HISTOGRAM_SQUARE_BITS == 0;
  rt_store_relaxed(&h->low, low);
  rt_store_relaxed(&h->span, is_within ? (uint64_t)(h->max - low) + 1 : 0);
  rt_add_relaxed(&h->counts[rt_histogram_counter(value)], 1);
  rt_histogram_add_any(h, value);
}

/* Test whether rt_histogram_count may count a value. One comparison covers both limits, because a value below wraps
 * around. The writer; O(1). */
static inline int rt_histogram_is_within(const rt_histogram_t *h, int64_t value) {
  return (uint64_t)value - (uint64_t)h->low < h->span; /* plain loads: only this thread writes them */
}

/* Count a value that rt_histogram_is_within accepts. The writer; O(1), without a branch. */
static inline void rt_histogram_count(rt_histogram_t *h, int64_t value) {
  rt_add_relaxed(&h->counts[rt_histogram_counter_within(value)], 1); /* 2^64 cycles are 584 years at 1 GHz */
  rt_add_relaxed(&h->sum, value);                                    /* within them, it takes centuries to overflow */
  rt_add128_relaxed(&h->squares_low, &h->squares_high, (uint64_t)value * (uint64_t)value);
}

/* Count any value. The writer; O(1); allocates nothing, no system call. */
static inline void rt_histogram_record(rt_histogram_t *h, int64_t value) {
  if (RT_LIKELY(rt_histogram_is_within(h, value))) {
    rt_histogram_count(h, value);
  } else {
    rt_histogram_extend(h, value);
  }
}

/* Find the counters that may be in use, *first to *end - 1: all others are 0. Returns 0 iff none is. O(1). */
static inline int rt_histogram_find_used(const rt_histogram_t *h, uint32_t *first, uint32_t *end) {
  if (h->min > h->max) return 0;
  *first = rt_histogram_counter(h->min);
  *end = rt_histogram_counter(h->max) + 1;
  return 1;
}

/* Add the counters up into the bins of the layout, counts[0..RT_HISTOGRAM_BINS - 1]. A reader, of a copy; O(bins). */
static inline void rt_histogram_counts(const rt_histogram_t *h, uint64_t *counts) {
  memset(counts, 0, RT_HISTOGRAM_BINS * sizeof *counts);
  uint32_t i, end;
  if (!rt_histogram_find_used(h, &i, &end)) return;
  for (; i < end; i++) counts[rt_histogram_bin_of_counter(i)] += h->counts[i];
}

#endif
