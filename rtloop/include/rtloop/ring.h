/* A queue from one thread to another: wait-free on both sides, without malloc, page fault or system call.
 *
 *   | rt_ring_t | items, one after the other |
 *
 * `tail` counts the items ever pushed and belongs to the producer. `head` counts the items ever popped and belongs to
 * the consumer. Both only grow, and wrap after 2^64. Item n is in place n modulo the number of places, a power of two.
 * A push writes the item and then releases the tail. A pop acquires the tail, reads the item, and then releases the
 * head, which the producer acquires before it uses the place again. Each side remembers how far it may go without
 * reading the other side's index, so that the cache line of an index does not move with every item.
 *
 * High water. The producer reads the head if the ring may be full, or fuller than ever before. The high water is
 * counted in sixteenths of the capacity, rounded up, so that a nearly empty ring does not read the head with every
 * push. It is never lower than the greatest number of items that were ever in the ring.
 *
 * A full ring drops the newest item: the items in it stay, and the drop is counted.
 *
 * In a forked child a region of rt_memory_map is all zeros: a ring there has no room and no item.
 *
 * Between processes. Each index is one word with one writer, and an item is behind it before it moves. So a side that
 * is killed at any instruction leaves a ring that its successor goes on with: at most the item in its hand is gone.
 * What each side remembers of the other stays true, because indexes only grow. Sizes and addresses are in the first
 * cache line, which is private memory of each process (rt_ring_open), so damaged indexes lead to wrong items, not
 * outside.
 *
 * Worst case of a push or a pop of one item: about 15 instructions, a copy, and one load that may miss the cache; no
 * loop, no locked instruction. For n items it is the same with n copies.
 */
#ifndef RTLOOP_RING_H
#define RTLOOP_RING_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"

typedef struct rt_ring {
  /* Constant after rt_ring_init. */
  _Alignas(RT_CACHE_LINE) char *items;
  uint64_t mask; /* number of places, minus 1 */
  uint64_t capacity;
  uint64_t item_bytes;

  /* Each index has a cache line of its own. Otherwise a load from the line of an index that the other side reads would
   * have to wait until the line has come back. */
  _Alignas(RT_CACHE_LINE) uint64_t tail; /* written by the producer */
  _Alignas(RT_CACHE_LINE) uint64_t head; /* written by the consumer */

  /* The producer's own. */
  _Alignas(RT_CACHE_LINE) uint64_t watched; /* up to this tail the ring is neither full nor fuller than ever */
  uint64_t high_water;                      /* rounded up to a sixteenth of the capacity, and never more than that */
  uint64_t dropped;

  /* The consumer's own. */
  _Alignas(RT_CACHE_LINE) uint64_t tail_seen;
  uint32_t awaited; /* whether the consumer sleeps; see wakes.h */
} rt_ring_t;

/* Compute the number of places for `capacity` items: the next power of two. O(1). */
static inline uint64_t rt_ring_places(uint64_t capacity) {
  return capacity < 2 ? 1 : UINT64_C(1) << (64 - __builtin_clzll(capacity - 1));
}

/* Compute the bytes of the region that a ring needs. Any thread, O(1), no system call. 0 iff `item_bytes` or `capacity`
 * is 0, or the sum exceeds PTRDIFF_MAX. */
static inline uint64_t rt_ring_bytes(uint64_t item_bytes, uint64_t capacity) {
  const uint64_t most = (uint64_t)PTRDIFF_MAX - sizeof(rt_ring_t);
  if (item_bytes == 0 || capacity == 0 || capacity > most / 2 || rt_ring_places(capacity) > most / item_bytes) return 0;
  return sizeof(rt_ring_t) + rt_ring_places(capacity) * item_bytes;
}

/* Set what is constant in a ring, and leave its indexes as they are. Its first cache line may be private memory, in
 * front of shared memory with all others, so that no other process can change a size or an address. Before this thread
 * uses it; O(1), no system call. Returns 0, or fails with -EINVAL iff a size or the alignment is wrong. */
static inline int rt_ring_open(rt_ring_t *ring, uint64_t item_bytes, uint64_t capacity) {
  if (rt_ring_bytes(item_bytes, capacity) == 0 || (uintptr_t)ring % RT_CACHE_LINE) return -EINVAL;
  ring->items = (char *)ring + sizeof *ring;
  ring->mask = rt_ring_places(capacity) - 1;
  ring->capacity = capacity;
  ring->item_bytes = item_bytes;
  return 0;
}

/* Make an empty ring of a region of rt_ring_bytes(item_bytes, capacity), aligned to RT_CACHE_LINE.
 * Call this before any other thread has the address; O(1), no system call. Returns 0, or fails with -EINVAL iff a size
 * or the alignment is wrong. */
static inline int rt_ring_init(rt_ring_t *ring, uint64_t item_bytes, uint64_t capacity) {
  if (rt_ring_bytes(item_bytes, capacity) == 0 || (uintptr_t)ring % RT_CACHE_LINE) return -EINVAL;
  *ring = (rt_ring_t){.items = NULL};
  return rt_ring_open(ring, item_bytes, capacity);
}

/* Count what a full ring drops, and raise the high water if the ring becomes fuller than ever. `fill` is the number of
 * items in the ring now. Returns as rt_ring_room. The producer; O(1). */
static inline uint64_t rt_ring_update_high_water(rt_ring_t *ring, uint64_t fill, uint64_t wanted) {
  const uint64_t room = ring->capacity - fill;
  if (RT_UNLIKELY(wanted > room)) {
    rt_add_relaxed(&ring->dropped, wanted - room);
    wanted = room;
  }
  if (fill + wanted > rt_load_relaxed(&ring->high_water)) {
    const uint64_t step = ring->capacity < 16 ? 1 : ring->capacity / 16;
    const uint64_t high = (fill + wanted + step - 1) / step * step;
    rt_store_relaxed(&ring->high_water, high < ring->capacity ? high : ring->capacity);
  }
  return wanted;
}

/* Compute how many of `wanted` items, at least 1, the producer may write now; those for which there is no room are
 * counted as dropped. The producer; O(1), wait-free. */
static inline uint64_t rt_ring_room(rt_ring_t *ring, uint64_t tail, uint64_t wanted) {
  if (RT_UNLIKELY((int64_t)(ring->watched - (tail + wanted)) < 0)) {
    const uint64_t head = rt_load_acquire(&ring->head), high = rt_load_relaxed(&ring->high_water);
    const uint64_t below = head + high - tail;
    if (RT_UNLIKELY(below < wanted)) return rt_ring_update_high_water(ring, tail - head, wanted);
    if (below > wanted) ring->watched = tail + below; /* otherwise this push uses it up, and the store is saved */
  }
  return wanted;
}

/* Put in one item. `item_bytes` must be the size that the ring was made with; with a constant, the compiler needs no
 * call of memcpy. Returns 1, or 0 iff the ring is full; the item is then dropped, and counted.
 * The producer; wait-free: about 15 instructions and a copy; allocates nothing, no system call. */
static inline int rt_ring_push_sized(rt_ring_t *ring, const void *item, size_t item_bytes) {
  const uint64_t tail = rt_load_relaxed(&ring->tail);
  if (RT_UNLIKELY(!rt_ring_room(ring, tail, 1))) return 0;
  memcpy((char *)(ring + 1) + (tail & ring->mask) * item_bytes, item, item_bytes);
  rt_store_release(&ring->tail, tail + 1);
  return 1;
}

/* Put in one item of the size that the ring was made with. Returns 1, or 0 iff the ring is full; the item is then
 * dropped, and counted.
 * The producer; wait-free: about 15 instructions and a copy; allocates nothing, no system call. */
static inline int rt_ring_push(rt_ring_t *ring, const void *item) {
  return rt_ring_push_sized(ring, item, ring->item_bytes);
}

/* Take out the oldest item. `item_bytes` must be the size that the ring was made with; with a constant, the compiler
 * needs no call of memcpy. Returns 1, or 0 iff the ring is empty.
 * The consumer; wait-free: about 15 instructions and a copy; allocates nothing, no system call. */
static inline int rt_ring_pop_sized(rt_ring_t *ring, void *item, size_t item_bytes) {
  const uint64_t head = rt_load_relaxed(&ring->head);
  const uint64_t next = head + 1;
  if ((int64_t)(ring->tail_seen - next) < 0) {
    const uint64_t tail = rt_load_acquire(&ring->tail);
    if (RT_UNLIKELY(tail != next)) { /* otherwise this pop uses it up, and the store is saved */
      if (tail == head) return 0;
      ring->tail_seen = tail;
    }
  }
  memcpy(item, (char *)(ring + 1) + (head & ring->mask) * item_bytes, item_bytes);
  rt_store_release(&ring->head, next);
  return 1;
}

/* Take out the oldest item, of the size that the ring was made with. Returns 1, or 0 iff the ring is empty.
 * The consumer; wait-free: about 15 instructions and a copy; allocates nothing, no system call. */
static inline int rt_ring_pop(rt_ring_t *ring, void *item) { return rt_ring_pop_sized(ring, item, ring->item_bytes); }

/* Put in as many of `count` items as there is room for; the consumer sees all of them at once. Returns their number.
 * The rest is dropped, and counted.
 * The producer; O(count), wait-free; allocates nothing, no system call. */
static inline uint64_t rt_ring_push_many(rt_ring_t *ring, const void *items, uint64_t count) {
  const uint64_t tail = rt_load_relaxed(&ring->tail), size = ring->item_bytes;
  uint64_t taken = count ? rt_ring_room(ring, tail, count) : 0;
  if (taken > ring->capacity) taken = ring->capacity; /* only if another process has damaged the indexes */
  if (!taken) return 0;
  const uint64_t place = tail & ring->mask, places = ring->mask + 1;
  const uint64_t first = taken < places - place ? taken : places - place;
  memcpy(ring->items + place * size, items, first * size);
  memcpy(ring->items, (const char *)items + first * size, (taken - first) * size);
  rt_store_release(&ring->tail, tail + taken);
  return taken;
}

/* Get the address of the oldest items that are contiguous in memory, and their number in *count: 0 iff the ring is
 * empty. They stay until rt_ring_consume().
 * The consumer; O(1), wait-free; allocates nothing, no system call. */
static inline const void *rt_ring_front(rt_ring_t *ring, uint64_t *count) {
  const uint64_t head = rt_load_relaxed(&ring->head), place = head & ring->mask;
  ring->tail_seen = rt_load_acquire(&ring->tail);
  const uint64_t all = ring->tail_seen - head, piece = ring->mask + 1 - place;
  *count = all < piece ? all : piece;
  return *count ? ring->items + place * ring->item_bytes : ring->items; /* which is NULL in a forked child */
}

/* Give the places of the oldest `count` items back; the ring must have that many. The consumer; O(1), wait-free. */
static inline void rt_ring_consume(rt_ring_t *ring, uint64_t count) {
  rt_store_release(&ring->head, rt_load_relaxed(&ring->head) + count);
}

/* Take out at most `count` of the oldest items. Returns their number.
 * The consumer; O(count), wait-free; allocates nothing, no system call. */
static inline uint64_t rt_ring_pop_many(rt_ring_t *ring, void *items, uint64_t count) {
  const uint64_t head = rt_load_relaxed(&ring->head), size = ring->item_bytes;
  ring->tail_seen = rt_load_acquire(&ring->tail);
  const uint64_t all = ring->tail_seen - head;
  uint64_t taken = all < count ? all : count;
  if (taken > ring->capacity) taken = ring->capacity; /* only if another process has damaged the indexes */
  if (!taken) return 0;
  const uint64_t place = head & ring->mask, places = ring->mask + 1;
  const uint64_t first = taken < places - place ? taken : places - place;
  memcpy(items, ring->items + place * size, first * size);
  memcpy((char *)items + first * size, ring->items, (taken - first) * size);
  rt_store_release(&ring->head, head + taken);
  return taken;
}

/* Count the items in the ring; an estimate while a side is working. Any thread, O(1), no system call. */
static inline uint64_t rt_ring_length(const rt_ring_t *ring) {
  const uint64_t head = rt_load_acquire(&ring->head), length = rt_load_relaxed(&ring->tail) - head;
  return length < ring->capacity ? length : ring->capacity; /* a push may have come between the two loads */
}

/* Count the items that were dropped. Any thread, O(1), no system call. */
static inline uint64_t rt_ring_dropped(const rt_ring_t *ring) { return rt_load_relaxed(&ring->dropped); }

/* Get the greatest number of items that were ever in the ring, rounded up to a sixteenth of the capacity. Any thread,
 * O(1), no system call. */
static inline uint64_t rt_ring_high_water(const rt_ring_t *ring) { return rt_load_relaxed(&ring->high_water); }

#endif
