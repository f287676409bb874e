/* A histogram of durations with logarithmic buckets: constant-time recording, better than 1 % resolution.
 *
 * Layout, known to every reader of a snapshot:
 *   values below 256 have a bin each; from there on every power of two is divided into 128 bins,
 *   so a bin is never wider than 1/128 (0.8 %) of its lower edge;
 *   values of 2^40 ns (18 minutes) and more go to the last bin, the overflow bin; negative ones to bin 0.
 * The smallest, the largest and the sum of the values are kept exactly.
 *
 * Real-time contract: rt_histogram_record runs in constant time, allocates nothing and makes no system call.
 * One thread writes; others may read any counter at any time, and read all of them consistently under a seqlock.
 */
#ifndef RTLOOP_HISTOGRAM_H
#define RTLOOP_HISTOGRAM_H

#include <stdint.h>

#include "atomics.h"

#define RT_HISTOGRAM_SUB_BITS 7
#define RT_HISTOGRAM_MAX_BITS 40
/* 33 octaves of 128 bins above the first 128, and the overflow bin. */
#define RT_HISTOGRAM_BINS (((RT_HISTOGRAM_MAX_BITS - RT_HISTOGRAM_SUB_BITS + 1) << RT_HISTOGRAM_SUB_BITS) + 1)
#define RT_HISTOGRAM_OVERFLOW (RT_HISTOGRAM_BINS - 1)

typedef struct rt_histogram {
  int64_t min; /* INT64_MAX while empty */
  int64_t max; /* INT64_MIN while empty */
  int64_t sum; /* wraps after 292 years of summed durations */
  int64_t unused;
  uint64_t counts[RT_HISTOGRAM_BINS];
} rt_histogram_t;

/* The bin of a value. */
static inline uint32_t rt_histogram_bin(int64_t value) {
  if (RT_UNLIKELY((uint64_t)value >> RT_HISTOGRAM_MAX_BITS)) return value < 0 ? 0 : RT_HISTOGRAM_OVERFLOW;
  uint32_t octave =
      (63u - RT_HISTOGRAM_SUB_BITS) - (uint32_t)__builtin_clzll((uint64_t)value | (1u << RT_HISTOGRAM_SUB_BITS));
  return (octave << RT_HISTOGRAM_SUB_BITS) + (uint32_t)((uint64_t)value >> octave);
}

/* The lower edge of a bin, in nanoseconds; rt_histogram_edge(RT_HISTOGRAM_OVERFLOW) is 2^40. */
static inline int64_t rt_histogram_edge(uint32_t bin) {
  uint32_t octave = bin >> RT_HISTOGRAM_SUB_BITS;
  if (octave == 0) return bin;
  octave -= 1;
  return (int64_t)(bin - (octave << RT_HISTOGRAM_SUB_BITS)) << octave;
}

static inline void rt_histogram_clear(rt_histogram_t *h) {
  rt_store_relaxed(&h->min, INT64_MAX);
  rt_store_relaxed(&h->max, INT64_MIN);
  rt_store_relaxed(&h->sum, (int64_t)0);
  for (uint32_t i = 0; i < RT_HISTOGRAM_BINS; i++) rt_store_relaxed(&h->counts[i], (uint64_t)0);
}

static inline void rt_histogram_record(rt_histogram_t *h, int64_t value) {
  uint64_t *count = &h->counts[rt_histogram_bin(value)];
  rt_add_relaxed(count, 1); /* 2^64 cycles are 584 years at 1 GHz: saturation needs no branch */
  rt_store_relaxed(&h->sum, (int64_t)((uint64_t)rt_load_relaxed(&h->sum) + (uint64_t)value));
  if (RT_UNLIKELY(value < rt_load_relaxed(&h->min))) rt_store_relaxed(&h->min, value);
  if (RT_UNLIKELY(value > rt_load_relaxed(&h->max))) rt_store_relaxed(&h->max, value);
}

#endif
