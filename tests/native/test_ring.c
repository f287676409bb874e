/* The ring in sequence against a model of it, its sizes, and between two threads. */
#include "rtloop/ring.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"

typedef struct item {
  uint64_t number, inverse, noise[3];
} item_t;

static rt_ring_t *make(uint64_t item_bytes, uint64_t capacity) {
  const uint64_t bytes = rt_ring_bytes(item_bytes, capacity);
  CHECK(bytes);
  rt_ring_t *const ring = aligned_alloc(RT_CACHE_LINE, (bytes + 63) / 64 * 64);
  CHECK(ring && rt_ring_init(ring, item_bytes, capacity) == 0);
  return ring;
}

static void test_sizes(void) {
  CHECK(rt_ring_bytes(8, 0) == 0 && rt_ring_bytes(0, 8) == 0);
  CHECK(rt_ring_bytes(8, UINT64_C(1) << 62) == 0 && rt_ring_bytes(UINT64_C(1) << 62, 8) == 0);
  CHECK(rt_ring_bytes(1, PTRDIFF_MAX) == 0 && rt_ring_bytes(1, UINT64_MAX) == 0);
  CHECK(rt_ring_places(1) == 1 && rt_ring_places(2) == 2 && rt_ring_places(3) == 4 && rt_ring_places(8) == 8);
  CHECK(rt_ring_bytes(24, 5) == sizeof(rt_ring_t) + 8 * 24);
  _Alignas(64) char region[512];
  CHECK(rt_ring_init((rt_ring_t *)(void *)(region + 8), 8, 1) == -EINVAL);
  CHECK(rt_ring_init((rt_ring_t *)(void *)region, 0, 1) == -EINVAL);
}

/* All calls in random order against a plain array of what should be in the ring. */
static void test_sequence(uint64_t capacity, uint64_t begin) {
  rt_ring_t *const ring = make(sizeof(item_t), capacity);
  ring->head = ring->tail = ring->watched = ring->tail_seen = begin; /* to see it wrap after 2^64 */
  uint64_t seed = 88172645463325252u + capacity, next = 0, oldest = 0, dropped = 0, high = 0;
  item_t items[64];
  for (int i = 0; i < 20000; i++) {
    const uint64_t fill = next - oldest, wanted = 1 + check_random(&seed) % 20, choice = check_random(&seed) % 5;
    uint64_t taken = 0;
    if (choice < 2) {
      for (uint64_t k = 0; k < wanted; k++) items[k] = (item_t){.number = next + k, .inverse = ~(next + k)};
      const uint64_t asked = choice ? wanted : 1;
      taken = choice ? rt_ring_push_many(ring, items, wanted) : (uint64_t)rt_ring_push(ring, items);
      CHECK(taken == (asked < capacity - fill ? asked : capacity - fill));
      next += taken;
      dropped += asked - taken;
      if (next - oldest > high) high = next - oldest;
    } else {
      const uint64_t asked = choice == 2 ? 1 : wanted;
      if (choice == 2) taken = (uint64_t)rt_ring_pop(ring, items);
      if (choice == 3) taken = rt_ring_pop_many(ring, items, wanted);
      if (choice == 4) {
        const item_t *const front = rt_ring_front(ring, &taken);
        CHECK(taken <= fill && !taken == !fill);
        if (taken > asked) taken = asked;
        memcpy(items, front, taken * sizeof *front);
        rt_ring_consume(ring, taken);
      } else {
        CHECK(taken == (asked < fill ? asked : fill));
      }
      for (uint64_t k = 0; k < taken; k++) CHECK(items[k].number == oldest + k && items[k].inverse == ~(oldest + k));
      oldest += taken;
    }
    CHECK(rt_ring_length(ring) == next - oldest && rt_ring_dropped(ring) == dropped);
    const uint64_t step = capacity < 16 ? 1 : capacity / 16, rounded = (high + step - 1) / step * step;
    CHECK(rt_ring_high_water(ring) == (rounded < capacity ? rounded : capacity));
  }
  CHECK(rt_ring_push_many(ring, items, 0) == 0 && rt_ring_pop_many(ring, items, 0) == 0);
  CHECK(high == capacity && dropped > 0);
  free(ring);
}

/* A ring in a forked child has no room and no item, and no call crashes. */
static void test_wiped(void) {
  rt_ring_t *const ring = make(8, 4);
  memset(ring, 0, rt_ring_bytes(8, 4));
  uint64_t item = 5, count = 9;
  CHECK(!rt_ring_push(ring, &item) && !rt_ring_pop(ring, &item) && rt_ring_pop_many(ring, &item, 1) == 0);
  CHECK(rt_ring_push_many(ring, &item, 1) == 0 && rt_ring_length(ring) == 0);
  (void)rt_ring_front(ring, &count);
  CHECK(count == 0 && item == 5);
  free(ring);
}

static uint64_t total;
static rt_ring_t *shared;
static uint64_t accepted;

static void *produce(void *unused) {
  uint64_t seed = 1234567;
  item_t items[16];
  for (uint64_t next = 0; next < total;) {
    uint64_t wanted = 1 + check_random(&seed) % 16;
    if (wanted > total - next) wanted = total - next;
    for (uint64_t k = 0; k < wanted; k++) items[k] = (item_t){.number = next + k, .inverse = ~(next + k)};
    const uint64_t taken = wanted % 2 ? (uint64_t)rt_ring_push_sized(shared, items, sizeof *items)
                                      : rt_ring_push_many(shared, items, wanted);
    next += taken;
    accepted += taken;
    if (!taken) sched_yield();
  }
  return unused;
}

/* Every item arrives once, whole, and in order, however the two threads run. */
static void test_threads(uint64_t capacity, uint64_t count) {
  pthread_t producer;
  item_t items[16];
  uint64_t seed = 7654321, next = 0, taken = 0;
  shared = make(sizeof(item_t), capacity);
  accepted = 0;
  total = count;
  CHECK(pthread_create(&producer, NULL, produce, NULL) == 0);
  while (next < total) {
    const uint64_t choice = check_random(&seed) % 3;
    if (choice == 0) taken = (uint64_t)rt_ring_pop_sized(shared, items, sizeof *items);
    if (choice == 1) taken = rt_ring_pop_many(shared, items, 16);
    if (choice == 2) {
      const item_t *const front = rt_ring_front(shared, &taken);
      if (taken > 16) taken = 16;
      memcpy(items, front, taken * sizeof *front);
      rt_ring_consume(shared, taken);
    }
    for (uint64_t k = 0; k < taken; k++, next++) CHECK(items[k].number == next && items[k].inverse == ~next);
    CHECK(rt_ring_length(shared) <= capacity);
    if (!taken) sched_yield();
  }
  CHECK(pthread_join(producer, NULL) == 0);
  CHECK(accepted == total && rt_ring_length(shared) == 0 && rt_ring_high_water(shared) <= capacity);
  free(shared);
}

int main(void) {
  const char *const asked = getenv("RT_ITEMS"); /* 100000000 for a night */
  const uint64_t count = asked ? strtoull(asked, NULL, 10) : 300000;
  test_sizes();
  const uint64_t capacities[] = {1, 2, 3, 5, 8, 13, 50};
  for (int i = 0; i < 7; i++) {
    test_sequence(capacities[i], 0);
    test_sequence(capacities[i], UINT64_MAX - 1000);
  }
  test_wiped();
  test_threads(1, count / 10);
  test_threads(7, count / 10);
  test_threads(1024, count);
  return CHECK_DONE();
}
