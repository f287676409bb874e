/* A queue from one thread to one other: wait-free on both sides, without malloc, page fault or system call.
 *
 *   | rt_ring_t | items, one behind the other |
 *
 * `tail` counts the items ever pushed and is the producer's, `head` those ever popped and is the consumer's; both only
 * grow, and wrap after 2^64. Item n is at n modulo the number of places, a power of two. A push writes the item and then
 * releases the tail; a pop acquires the tail, reads the item, and then releases the head, which the producer acquires
 * before it uses the place again. Each side remembers how far it may go without a look at the other, so that the two do
 * not fight for a cache line with every item; where that would be for this one item only, it spares itself the note.
 *
 * High water. The producer looks at the head again where the ring may be full, and where it may be fuller than ever. For
 * that not to be with every push of a ring that is nearly empty, fullness is told in sixteenths of the capacity, rounded
 * up: the figure is never lower than the most items that were ever in the ring.
 *
 * A full ring drops the newest: what is in it stays, and the drop is counted.
 *
 * In a forked child a region of rt_memory_map is all zeros, and with it the ring: it has no room and no item.
 *
 * Worst case of push and pop of one item: about 15 instructions, a copy, and one load that may miss the cache; no loop,
 * no locked instruction. Of n items: the same, and n copies.
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

  /* Each index has its line for itself: a load from the line of an index that the other side looks at would have to wait
   * until the line has come back. */
  _Alignas(RT_CACHE_LINE) uint64_t tail; /* written by the producer */
  _Alignas(RT_CACHE_LINE) uint64_t head; /* written by the consumer */

  /* The producer's own. */
  _Alignas(
      RT_CACHE_LINE) uint64_t watched; /* as long as the tail is not beyond it, neither full nor fuller than ever */
  uint64_t high_water;                 /* rounded up to a sixteenth of the capacity, and never more than that */
  uint64_t dropped;

  /* The consumer's own. */
  _Alignas(RT_CACHE_LINE) uint64_t tail_seen;
} rt_ring_t;

/* The number of places for so many items: the next power of two. */
static inline uint64_t rt_ring_places(uint64_t capacity) {
  return capacity < 2 ? 1 : UINT64_C(1) << (64 - __builtin_clzll(capacity - 1));
}

/* Bytes of the region that a ring needs. Any thread, O(1), no system call. 0 iff `item_bytes` or `capacity` is 0, or the
 * sum exceeds PTRDIFF_MAX. */
static inline uint64_t rt_ring_bytes(uint64_t item_bytes, uint64_t capacity) {
  const uint64_t most = (uint64_t)PTRDIFF_MAX - sizeof(rt_ring_t);
  if (item_bytes == 0 || capacity == 0 || capacity > most / 2 || rt_ring_places(capacity) > most / item_bytes) return 0;
  return sizeof(rt_ring_t) + rt_ring_places(capacity) * item_bytes;
}

/* Make an empty ring of a region of rt_ring_bytes(item_bytes, capacity), aligned to RT_CACHE_LINE.
 * Before any other thread knows the ring; O(1), no system call. Returns 0, or fails with -EINVAL iff a size or the
 * alignment is wrong. */
static inline int rt_ring_init(rt_ring_t *ring, uint64_t item_bytes, uint64_t capacity) {
  if (rt_ring_bytes(item_bytes, capacity) == 0 || (uintptr_t)ring % RT_CACHE_LINE) return -EINVAL;
  *ring = (rt_ring_t){.items = (char *)ring + sizeof *ring,
                      .mask = rt_ring_places(capacity) - 1,
                      .capacity = capacity,
                      .item_bytes = item_bytes};
  return 0;
}

/* The same as rt_ring_room, where the ring is full or fuller than ever: it had so many items right now. */
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

/* How many of `wanted` items, at least 1, the producer may write now. */
static inline uint64_t rt_ring_room(rt_ring_t *ring, uint64_t tail, uint64_t wanted) {
  if ((int64_t)(ring->watched - (tail + wanted)) < 0) {
    const uint64_t head = rt_load_acquire(&ring->head), high = rt_load_relaxed(&ring->high_water);
    const uint64_t below = head + high - tail;
    if (RT_UNLIKELY(below < wanted)) return rt_ring_update_high_water(ring, tail - head, wanted);
    if (below > wanted) ring->watched = tail + below; /* else it is used up by this push: a store less */
  }
  return wanted;
}

/* Put in one item of `item_bytes`, which has to be what the ring was made with: a constant there spares the call of
 * memcpy. Returns 1, or 0 iff the ring is full; then the item is dropped, and counted.
 * The producer; wait-free, with the worst case above; allocates nothing, no system call. */
static inline int rt_ring_push_sized(rt_ring_t *ring, const void *item, size_t item_bytes) {
  const uint64_t tail = rt_load_relaxed(&ring->tail);
  if (RT_UNLIKELY(!rt_ring_room(ring, tail, 1))) return 0;
  memcpy((char *)(ring + 1) + (tail & ring->mask) * item_bytes, item, item_bytes);
  rt_store_release(&ring->tail, tail + 1);
  return 1;
}

/* The same with the size that the ring knows. */
static inline int rt_ring_push(rt_ring_t *ring, const void *item) {
  return rt_ring_push_sized(ring, item, ring->item_bytes);
}

/* Take out the oldest item, of `item_bytes`, as in rt_ring_push_sized. Returns 1, or 0 iff the ring is empty.
 * The consumer; wait-free, with the worst case above; allocates nothing, no system call. */
static inline int rt_ring_pop_sized(rt_ring_t *ring, void *item, size_t item_bytes) {
  const uint64_t head = rt_load_relaxed(&ring->head);
  if ((int64_t)(ring->tail_seen - (head + 1)) < 0) {
    const uint64_t tail = rt_load_acquire(&ring->tail);
    if (tail == head) return 0;
    if (tail - head > 1) ring->tail_seen = tail; /* else it is used up by this pop: a store less */
  }
  memcpy(item, (char *)(ring + 1) + (head & ring->mask) * item_bytes, item_bytes);
  rt_store_release(&ring->head, head + 1);
  return 1;
}

/* The same with the size that the ring knows. */
static inline int rt_ring_pop(rt_ring_t *ring, void *item) { return rt_ring_pop_sized(ring, item, ring->item_bytes); }

/* Put in as many of `count` items as there is room for, all at once to the consumer's eye. Returns how many; the rest is
 * dropped, and counted.
 * The producer; O(count), wait-free; allocates nothing, no system call. */
static inline uint64_t rt_ring_push_many(rt_ring_t *ring, const void *items, uint64_t count) {
  const uint64_t tail = rt_load_relaxed(&ring->tail), size = ring->item_bytes;
  const uint64_t taken = count ? rt_ring_room(ring, tail, count) : 0;
  if (!taken) return 0;
  const uint64_t place = tail & ring->mask, places = ring->mask + 1;
  const uint64_t first = taken < places - place ? taken : places - place;
  memcpy(ring->items + place * size, items, first * size);
  memcpy(ring->items, (const char *)items + first * size, (taken - first) * size);
  rt_store_release(&ring->tail, tail + taken);
  return taken;
}

/* The oldest items that are one piece of memory, and how many: 0 iff the ring is empty. They stay until
 * rt_ring_consume().
 * The consumer; O(1), wait-free; allocates nothing, no system call. */
static inline const void *rt_ring_front(rt_ring_t *ring, uint64_t *count) {
  const uint64_t head = rt_load_relaxed(&ring->head), place = head & ring->mask;
  ring->tail_seen = rt_load_acquire(&ring->tail);
  const uint64_t all = ring->tail_seen - head, piece = ring->mask + 1 - place;
  *count = all < piece ? all : piece;
  return *count ? ring->items + place * ring->item_bytes : ring->items; /* which is NULL in a forked child */
}

/* Give back the oldest `count` items, of which there have to be so many. The consumer; O(1), wait-free. */
static inline void rt_ring_consume(rt_ring_t *ring, uint64_t count) {
  rt_store_release(&ring->head, rt_load_relaxed(&ring->head) + count);
}

/* Take out at most `count` of the oldest items. Returns how many.
 * The consumer; O(count), wait-free; allocates nothing, no system call. */
static inline uint64_t rt_ring_pop_many(rt_ring_t *ring, void *items, uint64_t count) {
  const uint64_t head = rt_load_relaxed(&ring->head), size = ring->item_bytes;
  ring->tail_seen = rt_load_acquire(&ring->tail);
  const uint64_t all = ring->tail_seen - head, taken = all < count ? all : count;
  if (!taken) return 0;
  const uint64_t place = head & ring->mask, places = ring->mask + 1;
  const uint64_t first = taken < places - place ? taken : places - place;
  memcpy(items, ring->items + place * size, first * size);
  memcpy((char *)items + first * size, ring->items, (taken - first) * size);
  rt_store_release(&ring->head, head + taken);
  return taken;
}

/* How many items are in the ring; while the other side works, an estimate. Any thread, O(1), no system call. */
static inline uint64_t rt_ring_length(const rt_ring_t *ring) {
  const uint64_t head = rt_load_acquire(&ring->head), length = rt_load_relaxed(&ring->tail) - head;
  return length < ring->capacity ? length : ring->capacity; /* it may have been filled again between the two */
}

/* How many items were dropped. Any thread, O(1), no system call. */
static inline uint64_t rt_ring_dropped(const rt_ring_t *ring) { return rt_load_relaxed(&ring->dropped); }

/* The most items that were ever in the ring, rounded up as above. Any thread, O(1), no system call. */
static inline uint64_t rt_ring_high_water(const rt_ring_t *ring) { return rt_load_relaxed(&ring->high_water); }

#endif
