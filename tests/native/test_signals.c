/* Records of named signals: each value at its place, one record every n-th cycle, and whole on the other side. */
#include "rtloop/signals.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"

static rt_ring_t *make(uint64_t item_bytes, uint64_t capacity) {
  const uint64_t bytes = rt_ring_bytes(item_bytes, capacity);
  void *ring; /* not a byte more than it takes, so that a write past its end is seen */
  CHECK(posix_memalign(&ring, RT_CACHE_LINE, bytes) == 0 && rt_ring_init(ring, item_bytes, capacity) == 0);
  return ring;
}

/* Every size, at addresses and in a record without gaps; behind each value stands what must not be copied. */
static void test_sizes(void) {
  static rt_signals_t log;
  struct {
    uint8_t one, after;
    uint16_t two, after_two;
    uint32_t four, after_four;
    uint64_t eight, after_eight;
  } from = {0x11, 0xff, 0x2222, 0xffff, 0x44444444, 0xffffffff, 0x8888888888888888, UINT64_MAX};
  log = (rt_signals_t){.every = 1};
  const rt_cycle_t cycle = {.index = 7, .release = 70, .start = 77};
  CHECK(rt_signals_add(&log, &from.one, 1) == 0 && rt_signals_add(&log, &from.eight, 8) == 0);
  CHECK(rt_signals_add(&log, &from.two, 2) == 0 && rt_signals_add(&log, &from.four, 4) == 0);
  CHECK(log.record_bytes == 24 + 15);
  CHECK(rt_signals_sample(&log, &cycle) == 0); /* no reader wants it yet */
  rt_ring_t *const ring = make(log.record_bytes, 2);
  rt_store_release(&log.ring, ring);
  CHECK(rt_signals_sample(&log, &cycle) == 1 && rt_signals_sample(&log, &cycle) == 1);
  CHECK(rt_signals_sample(&log, &cycle) == 0 && rt_ring_dropped(ring) == 1);
  char record[24 + 15], wanted[24 + 15];
  memcpy(wanted, (const uint64_t[]){7, 70, 77}, 24);
  memcpy(wanted + 24, &from.one, 1);
  memcpy(wanted + 25, &from.eight, 8);
  memcpy(wanted + 33, &from.two, 2);
  memcpy(wanted + 35, &from.four, 4);
  for (int i = 0; i < 2; i++) CHECK(rt_ring_pop(ring, record) && memcmp(record, wanted, sizeof record) == 0);
  free(ring);
}

static void test_every_and_most(void) {
  static rt_signals_t log;
  double value = 1.5;
  log = (rt_signals_t){.every = 10};
  for (unsigned i = 0; i < RT_SIGNALS_MAX; i++) CHECK(rt_signals_add(&log, &value, 8) == 0);
  CHECK(rt_signals_add(&log, &value, 8) == -ENOSPC && log.count == RT_SIGNALS_MAX);
  rt_ring_t *const ring = make(log.record_bytes, 16);
  log.ring = ring;
  for (uint64_t i = 0; i < 100; i++) {
    const rt_cycle_t cycle = {.index = i};
    CHECK(rt_signals_sample(&log, &cycle) == (i % 10 == 0));
  }
  uint64_t record[3 + RT_SIGNALS_MAX];
  for (uint64_t i = 0; i < 10; i++) CHECK(rt_ring_pop(ring, record) && record[0] == 10 * i);
  CHECK(!rt_ring_pop(ring, record) && rt_ring_dropped(ring) == 0);
  free(ring);
}

/* A signal that is the ring's own index: what is copied was not yet for the other side to see. */
static void test_order(void) {
  static rt_signals_t log;
  log = (rt_signals_t){.every = 1};
  rt_ring_t *const ring = make(32, 8);
  CHECK(rt_signals_add(&log, &ring->tail, 8) == 0);
  log.ring = ring;
  const rt_cycle_t cycle = {.index = 1};
  uint64_t record[4];
  for (uint64_t i = 0; i < 5; i++) {
    CHECK(rt_signals_sample(&log, &cycle) && rt_ring_pop(ring, record));
    CHECK(record[3] == i && ring->tail == i + 1);
  }
  free(ring);
}

static rt_signals_t shared;
static uint64_t cycles, logged;

static void *step(void *unused) {
  static uint64_t number, inverse; /* the loop's own */
  CHECK(rt_signals_add(&shared, &number, 8) == 0 && rt_signals_add(&shared, &inverse, 8) == 0);
  while (logged < cycles) {
    number = logged;
    inverse = ~number;
    const rt_cycle_t cycle = {.index = number, .release = (int64_t)number, .start = (int64_t)number};
    if (rt_signals_sample(&shared, &cycle))
      logged++;
    else
      sched_yield();
  }
  return unused;
}

/* The ring comes while the loop logs already; each record is whole and in its order. */
static void test_threads(uint64_t count) {
  pthread_t thread;
  uint64_t record[5];
  cycles = count;
  shared.every = 1;
  CHECK(pthread_create(&thread, NULL, step, NULL) == 0);
  rt_ring_t *const ring = make(sizeof record, 7);
  rt_store_release(&shared.ring, ring);
  for (uint64_t next = 0; next < count;) {
    if (!rt_ring_pop(ring, record)) {
      sched_yield();
      continue;
    }
    for (int i = 0; i < 4; i++) CHECK(record[i] == next);
    CHECK(record[4] == ~next);
    next++;
  }
  CHECK(pthread_join(thread, NULL) == 0);
  free(ring);
}

int main(void) {
  test_sizes();
  test_every_and_most();
  test_order();
  test_threads(200000);
  return CHECK_DONE();
}
