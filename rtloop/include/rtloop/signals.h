/* Named signals of a step: each sample copies them into a ring as one record.
 *
 * A record is the cycle's index, release and start, 8 bytes each, followed by the signals without gaps.
 */
#ifndef RTLOOP_SIGNALS_H
#define RTLOOP_SIGNALS_H

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"
#include "cycle.h"
#include "ring.h"

#define RT_SIGNALS_MAX 255u

typedef struct rt_signal {
  const void *address;
  uint32_t bytes; /* 1, 2, 4 or 8 */
  uint32_t offset;
} rt_signal_t;

typedef struct rt_signals {
  rt_ring_t *ring; /* NULL until a reader wants the records */
  uint32_t count;
  uint32_t record_bytes;
  uint64_t every; /* record every n-th cycle */
  rt_signal_t signals[RT_SIGNALS_MAX];
} rt_signals_t;

/* Add a signal of 1, 2, 4 or 8 bytes, read at every sample from `address`. Before the ring is set; O(1).
 * Returns 0, or fails with -ENOSPC iff there are RT_SIGNALS_MAX. */
static inline int rt_signals_add(rt_signals_t *s, const void *address, uint32_t bytes) {
  if (s->count == RT_SIGNALS_MAX) return -ENOSPC;
  if (s->count == 0) s->record_bytes = 24;
  s->signals[s->count++] = (rt_signal_t){.address = address, .bytes = bytes, .offset = s->record_bytes};
  s->record_bytes += bytes;
  return 0;
}

/* Put a record into the ring. Returns 1, or 0 iff no reader wants records, this cycle is not an n-th one, or the ring
 * is full; a record that a full ring drops is counted.
 * The loop's thread; wait-free, as a push and a copy of each signal; allocates nothing, no system call. */
static inline int rt_signals_sample(rt_signals_t *s, const rt_cycle_t *cycle) {
  rt_ring_t *const ring = rt_load_acquire(&s->ring);
  if (!ring || (s->every > 1 && cycle->index % s->every)) return 0;
  const uint64_t tail = rt_load_relaxed(&ring->tail);
  if (RT_UNLIKELY(!rt_ring_room(ring, tail, 1))) return 0;
  char *const record = ring->items + (tail & ring->mask) * s->record_bytes;
  memcpy(record, &cycle->index, 8);
  memcpy(record + 8, &cycle->release, 8);
  memcpy(record + 16, &cycle->start, 8);
  for (uint32_t i = 0; i < s->count; i++) {
    const rt_signal_t *const signal = &s->signals[i];
    char *const to = record + signal->offset;
    switch (signal->bytes) { /* of constant size, each is a load and a store */
    case 8:
      memcpy(to, signal->address, 8);
      break;
    case 4:
      memcpy(to, signal->address, 4);
      break;
    case 2:
      memcpy(to, signal->address, 2);
      break;
    default:
      memcpy(to, signal->address, 1);
    }
  }
  rt_store_release(&ring->tail, tail + 1);
  return 1;
}

#endif
