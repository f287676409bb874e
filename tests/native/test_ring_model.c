/* The ring in every interleaving of two threads, and with every value that the memory model lets a load return. */
#include "model.h"

#include <stdlib.h>

#include "rtloop/ring.h"

enum { PLACES_OF_RING = 4, MOST = 8 };

static uint64_t capacity;
static _Alignas(64) char region[sizeof(rt_ring_t) + PLACES_OF_RING * 8];
static rt_ring_t *const ring = (rt_ring_t *)(void *)region;
static uint64_t accepted[MOST], received[MOST];
static uint64_t given, accepted_count, received_count;

static void before(void) {
  memset(region, 0, sizeof region);
  CHECK(rt_ring_init(ring, 8, capacity) == 0);
  model_share(&ring->head, 0, RIGHT);
  model_share(&ring->tail, 0, LEFT);
  model_data(ring->items, 8, rt_ring_places(capacity));
  given = accepted_count = received_count = 0;
}

static void push(uint64_t count) {
  uint64_t items[MOST];
  for (uint64_t i = 0; i < count; i++) items[i] = 100 + given + i;
  given += count;
  const uint64_t taken = count == 1 ? (uint64_t)rt_ring_push(ring, items) : rt_ring_push_many(ring, items, count);
  for (uint64_t i = 0; i < taken; i++) accepted[accepted_count++] = items[i];
}

static void pop(void) {
  if (rt_ring_pop(ring, &received[received_count])) received_count++;
}

static void pop_many(void) { received_count += rt_ring_pop_many(ring, &received[received_count], 2); }

static void look_and_consume(void) {
  uint64_t count;
  const void *items = rt_ring_front(ring, &count);
  model_copy(&received[received_count], items, count * 8);
  received_count += count;
  rt_ring_consume(ring, count);
}

static void one_by_one(void) {
  for (int i = 0; i < 3; i++) push(1);
}

static void pairs(void) {
  push(2);
  push(2);
}

static void mixed(void) {
  push(1);
  push(2);
}

static void pop_singly(void) {
  for (int i = 0; i < 2; i++) pop();
}

static void pop_pairs(void) {
  pop_many();
  pop();
}

static void look(void) {
  look_and_consume();
  pop();
}

/* Nothing is lost, nothing comes twice, and the order is kept. */
static void after(void) {
  for (int i = 0; i < 2; i++) pop_many(); /* two at a time: capacity is 3 at most */
  CHECK(received_count == accepted_count && accepted_count + rt_ring_dropped(ring) == given);
  for (uint64_t i = 0; i < received_count; i++) CHECK(received[i] == accepted[i]);
  CHECK(accepted_count >= capacity && accepted[0] == 100); /* there was room */
  CHECK(rt_ring_high_water(ring) >= 1 && rt_ring_high_water(ring) <= capacity && rt_ring_length(ring) == 0);
}

int main(void) {
  void (*const lefts[])(void) = {one_by_one, pairs, mixed};
  void (*const rights[])(void) = {pop_singly, pop_pairs, look};
  uint64_t runs = 0;
  for (capacity = 1; capacity <= 3; capacity++) {
    for (int i = 0; i < 9; i++) {
      const uint64_t found = model_explore(before, lefts[i / 3], rights[i % 3], after);
      CHECK(found > 20);
      if (getenv("RT_VERBOSE")) printf("%d %d: %llu\n", (int)capacity, i, (unsigned long long)found);
      runs += found;
    }
  }
  printf("%llu executions\n", (unsigned long long)runs);
  return CHECK_DONE();
}
