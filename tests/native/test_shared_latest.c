/* The newest value for several readers: in sequence, after damage, and between threads. */
#include "rtloop/shared_latest.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"

#ifndef ROUNDS
#define ROUNDS 20000
#endif

enum { WORDS = 21, READERS = 3, VALUES = 100000 };

static rt_shared_latest_block_t *make(void) {
  const uint64_t bytes = rt_shared_latest_bytes(8 * WORDS, READERS);
  rt_shared_latest_block_t *const block = aligned_alloc(RT_CACHE_LINE, bytes);
  CHECK(block && bytes % RT_CACHE_LINE == 0);
  memset(block, 0, bytes);
  return block;
}

static rt_shared_latest_t write_side(rt_shared_latest_block_t *block) {
  rt_shared_latest_t s;
  CHECK(rt_shared_latest_open(&s, block, 8 * WORDS, READERS) == 0);
  rt_shared_latest_begin_writing(&s);
  return s;
}

static void read_side(rt_shared_latest_t *s, rt_shared_latest_block_t *block, uint32_t reader) {
  CHECK(rt_shared_latest_open(s, block, 8 * WORDS, READERS) == 0);
  CHECK(rt_shared_latest_begin_reading(s, reader) == 0);
}

static void put(rt_shared_latest_t *s) {
  uint64_t value[WORDS];
  for (int k = 0; k < WORDS; k++) value[k] = s->number + 1;
  if (value[0] % 3) {
    rt_shared_latest_write(s, value);
  } else {
    rt_shared_latest_write_at(s, value, (int64_t)value[0]);
  }
}

static uint64_t take(rt_shared_latest_t *s, int *is_new) {
  uint64_t value[WORDS];
  *is_new = rt_shared_latest_read(s, value);
  for (int k = 1; k < WORDS; k++) CHECK(value[k] == value[0]);
  return value[0];
}

static void test_sequence(void) {
  rt_shared_latest_block_t *const block = make();
  rt_shared_latest_t writer = write_side(block), readers[READERS];
  uint64_t seed = 5, seen[READERS] = {0};
  int is_new;
  for (uint32_t i = 0; i < READERS; i++) read_side(&readers[i], block, i);
  for (int i = 0; i < ROUNDS; i++) {
    const uint32_t which = (uint32_t)(check_random(&seed) % (READERS + 2)), back = writer.back;
    if (which == READERS) {
      put(&writer);
      CHECK(writer.back != back && writer.back < READERS + 2);
    } else if (which > READERS) { /* a successor */
      if (check_random(&seed) % 2) {
        writer = write_side(block);
      } else {
        read_side(&readers[i % READERS], block, (uint32_t)(i % READERS));
        seen[i % READERS] = 0;
      }
    } else {
      const uint64_t written = rt_shared_latest_written(&writer);
      CHECK(rt_shared_latest_is_new(&readers[which]) == (seen[which] != written));
      CHECK(take(&readers[which], &is_new) == written && is_new == (seen[which] != written));
      CHECK(rt_shared_latest_age(&readers[which], (int64_t)written + 9) <= (written % 3 || !written ? INT64_MAX : 9));
      seen[which] = written;
    }
  }
  CHECK(writer.number > 1000);
  free(block);
}

static void test_sizes_and_ages(void) {
  rt_shared_latest_block_t *const block = make();
  rt_shared_latest_t writer = write_side(block), reader, none = {.block = NULL};
  uint64_t value[WORDS] = {0};
  CHECK(rt_shared_latest_bytes(0, 1) == 0 && rt_shared_latest_bytes(8, 0) == 0 && rt_shared_latest_bytes(8, 33) == 0);
  CHECK(rt_shared_latest_bytes(UINT64_MAX, 1) == 0 && rt_shared_latest_bytes(UINT64_C(1) << 47, 1) == 0);
  CHECK(rt_shared_latest_bytes(8, 32) == sizeof(rt_shared_latest_block_t) + 32 * 64 + 34 * 64);
  CHECK(rt_shared_latest_open(&reader, (rt_shared_latest_block_t *)(void *)((char *)block + 8), 8, 1) == -EINVAL);
  read_side(&reader, block, READERS - 1);
  CHECK(rt_shared_latest_begin_reading(&reader, READERS) == -EINVAL);
  CHECK(rt_shared_latest_age(&reader, 5) == RT_LATEST_NEVER);
  rt_shared_latest_write_at(&writer, value, 1000);
  CHECK(block->written_at == 1000 && rt_shared_latest_age(&reader, 1000) == RT_LATEST_NEVER); /* not read yet */
  CHECK(rt_shared_latest_read(&reader, value) == 1 && rt_shared_latest_age(&reader, 1025) == 25);
  CHECK(rt_shared_latest_age_cycles(&reader, 1021, 10) == 3);
  writer.base.is_settable = 1;
  rt_shared_latest_write_at(&writer, value, 2000);
  CHECK(block->written_at_monotonic > 0);
  /* A closed side, and that of a forked child. */
  rt_shared_latest_write(&none, value);
  rt_shared_latest_write_at(&none, value, 7);
  CHECK(rt_shared_latest_read(&none, value) == 0 && rt_shared_latest_written(&none) == 0);
  CHECK(rt_shared_latest_age(&none, 1) == RT_LATEST_NEVER && rt_shared_latest_age_cycles(&none, 1, 1) > 1);
  CHECK(!rt_shared_latest_is_new(&none));
  free(block);
}

/* Another process may write anything anywhere: nothing is read or written outside of the block, and no call hangs. */
static void test_damage(void) {
  rt_shared_latest_block_t *const block = make();
  const uint64_t bytes = rt_shared_latest_bytes(8 * WORDS, READERS);
  rt_shared_latest_t writer = write_side(block), reader;
  uint64_t seed = 11, value[WORDS] = {0};
  read_side(&reader, block, 1);
  for (int i = 0; i < ROUNDS; i++) {
    const uint64_t noise = check_random(&seed);
    uint64_t *const word = (uint64_t *)(void *)block + (i % 3 ? noise % (bytes / 8) : noise % 3 * 8);
    *word = noise % 5 == 0 ? RT_SHARED_LATEST_WANTED : noise;
    rt_shared_latest_write(&writer, value);
    (void)rt_shared_latest_read(&reader, value);
    (void)rt_shared_latest_age_cycles(&reader, 1, 1);
    CHECK(writer.back < READERS + 2);
    if (i % 7 == 0) writer = write_side(block);
    if (i % 11 == 0) read_side(&reader, block, 1);
  }
  free(block);
}

static rt_shared_latest_block_t *common;

static void *write_values(void *argument) {
  rt_shared_latest_t writer = write_side(common);
  while (writer.number < VALUES) {
    put(&writer);
    if (writer.number % 1000 == 0) sched_yield();
    if (writer.number % 7777 == 0) writer = write_side(common);
  }
  return argument;
}

static void *read_values(void *argument) {
  rt_shared_latest_t reader;
  uint64_t seen = 0;
  int is_new;
  read_side(&reader, common, (uint32_t)(uintptr_t)argument);
  while (seen < VALUES) {
    const uint64_t value = take(&reader, &is_new);
    CHECK(value >= seen && is_new == (value > seen));
    if (!is_new) sched_yield();
    seen = value;
  }
  return NULL;
}

static void test_threads(void) {
  pthread_t threads[READERS + 1];
  common = make();
  for (uintptr_t i = 0; i < READERS; i++) CHECK(!pthread_create(&threads[i], NULL, read_values, (void *)i));
  CHECK(!pthread_create(&threads[READERS], NULL, write_values, NULL));
  for (int i = 0; i <= READERS; i++) CHECK(!pthread_join(threads[i], NULL));
  free(common);
}

int main(void) {
  test_sequence();
  test_sizes_and_ages();
  test_damage();
  test_threads();
  return CHECK_DONE();
}
