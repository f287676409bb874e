/* Wraps rtloop's ring and latest value in plain functions for peers.cpp, because C++ cannot include their C11. */
#include <stdint.h>
#include <stdlib.h>

#include "rtloop/latest.h"
#include "rtloop/ring.h"

/* Forces an item into memory as a whole: the compiler can neither assemble it in registers nor omit unread parts. */
#define WHOLE(item) __asm__ volatile("" : "+m"(item)::"memory")

enum { CAPACITY = 1024 };

void *ours_make(size_t item_bytes) {
  rt_ring_t *ring = aligned_alloc(RT_CACHE_LINE, (rt_ring_bytes(item_bytes, CAPACITY) + 63) / 64 * 64);
  if (!ring || rt_ring_init(ring, item_bytes, CAPACITY)) abort();
  return ring;
}

void *ours_make_latest(size_t value_bytes) {
  const size_t bytes = rt_latest_bytes(value_bytes);
  rt_latest_t *latest = aligned_alloc(RT_CACHE_LINE, bytes);
  if (!latest) abort();
  memset(latest, 0, bytes);
  if (rt_latest_init(latest, value_bytes)) abort();
  return latest;
}

typedef struct item {
  uint64_t words[8];
} item_t;

#define FIRST(item) (*(uint64_t *)&(item))

#define MAKE(type, name)                                                                                               \
  void ours_pairs_##name(void *ring, long count) {                                                                     \
    type in = {0}, out;                                                                                                \
    for (long i = 0; i < count; i++) {                                                                                 \
      FIRST(in) = (uint64_t)i;                                                                                         \
      WHOLE(in);                                                                                                       \
      if (!rt_ring_push_sized(ring, &in, sizeof in)) abort();                                                          \
      if (!rt_ring_pop_sized(ring, &out, sizeof out)) abort();                                                         \
      WHOLE(out);                                                                                                      \
      if (FIRST(out) != (uint64_t)i) abort();                                                                          \
    }                                                                                                                  \
  }                                                                                                                    \
  void ours_produce_##name(void *ring, long count) {                                                                   \
    type in = {0};                                                                                                     \
    for (long i = 0; i < count; i++) {                                                                                 \
      FIRST(in) = (uint64_t)i;                                                                                         \
      WHOLE(in);                                                                                                       \
      while (!rt_ring_push_sized(ring, &in, sizeof in)) rt_cpu_relax();                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  void ours_consume_##name(void *ring, long count) {                                                                   \
    type out;                                                                                                          \
    for (long i = 0; i < count; i++) {                                                                                 \
      while (!rt_ring_pop_sized(ring, &out, sizeof out)) rt_cpu_relax();                                               \
      WHOLE(out);                                                                                                      \
      if (FIRST(out) != (uint64_t)i) abort();                                                                          \
    }                                                                                                                  \
  }

MAKE(uint64_t, 8)
MAKE(item_t, 64)

void ours_latest(void *latest, long count) {
  item_t in = {{0}}, out;
  for (long i = 1; i <= count; i++) {
    in.words[0] = (uint64_t)i;
    WHOLE(in);
    rt_latest_write_sized(latest, &in, sizeof in);
    if (!rt_latest_read_sized(latest, &out, sizeof out)) abort();
    WHOLE(out);
    if (out.words[0] != (uint64_t)i) abort();
  }
}
