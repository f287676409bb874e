/* The newest value in sequence, its sizes, and between two threads. */
#include "rtloop/latest.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"

typedef struct value {
  uint64_t words[37];
} value_t;

static rt_latest_t *make(uint64_t value_bytes) {
  const uint64_t bytes = rt_latest_bytes(value_bytes);
  rt_latest_t *const latest = aligned_alloc(RT_CACHE_LINE, bytes);
  CHECK(latest);
  memset(latest, 0, bytes);
  CHECK(rt_latest_init(latest, value_bytes) == 0);
  return latest;
}

static void fill(value_t *value, uint64_t number) {
  for (int i = 0; i < 37; i++) value->words[i] = number;
}

static uint64_t number_of(const value_t *value) {
  for (int i = 1; i < 37; i++) CHECK(value->words[i] == value->words[0]);
  return value->words[0];
}

static void test_sequence(void) {
  rt_latest_t *const latest = make(sizeof(value_t));
  value_t value;
  uint64_t seed = 5, written = 0, seen = 0;
  fill(&value, 1);
  CHECK(rt_latest_read(latest, &value) == 0 && number_of(&value) == 0);
  for (int i = 0; i < 10000; i++) {
    if (check_random(&seed) % 2) {
      fill(&value, ++written);
      rt_latest_write(latest, &value);
    } else {
      CHECK(rt_latest_is_new(latest) == (written != seen));
      CHECK(rt_latest_read(latest, &value) == (written != seen));
      CHECK(number_of(&value) == written);
      seen = written;
    }
    CHECK(rt_latest_written(latest) == written);
    CHECK(latest->back < 3 && latest->front < 3 && latest->back != latest->front);
  }
  free(latest);
}

static void test_sizes(void) {
  CHECK(rt_latest_bytes(0) == 0 && rt_latest_bytes(UINT64_MAX) == 0 && rt_latest_bytes(PTRDIFF_MAX / 3) == 0);
  CHECK(rt_latest_bytes(40) == sizeof(rt_latest_t) + 192 && rt_latest_bytes(41) == sizeof(rt_latest_t) + 384);
  CHECK(rt_latest_bytes(1) == sizeof(rt_latest_t) + 192 && rt_latest_bytes(65) == sizeof(rt_latest_t) + 384);
  _Alignas(64) char region[1024] = {0};
  CHECK(rt_latest_init((rt_latest_t *)(void *)(region + 8), 8) == -EINVAL);
  CHECK(rt_latest_init((rt_latest_t *)(void *)region, 0) == -EINVAL);
  memset(region, 0, sizeof region); /* what a forked child finds */
  uint64_t value = 7;
  rt_latest_t *const wiped = (rt_latest_t *)(void *)region;
  wiped->places = region;
  CHECK(rt_latest_read(wiped, &value) == 0 && value == 7);
}

static void test_age(void) {
  rt_latest_t *const latest = make(sizeof(value_t));
  value_t value;
  CHECK(rt_latest_age(latest, 5) == RT_LATEST_NEVER && rt_latest_age_cycles(latest, 5, 10) == RT_LATEST_NEVER);
  fill(&value, 1);
  rt_latest_write_at(latest, &value, 1000);
  CHECK(rt_latest_written_at(latest) == 1000);
  CHECK(rt_latest_age(latest, 1000) == RT_LATEST_NEVER); /* it was not read yet */
  CHECK(rt_latest_read(latest, &value) == 1 && number_of(&value) == 1);
  CHECK(rt_latest_stamp(latest).time == 1000 && rt_latest_stamp(latest).count == 1);
  CHECK(rt_latest_age(latest, 1000) == 0 && rt_latest_age(latest, 900) == 0 && rt_latest_age(latest, 1025) == 25);
  CHECK(rt_latest_age_cycles(latest, 1000, 10) == 0 && rt_latest_age_cycles(latest, 1001, 10) == 1);
  CHECK(rt_latest_age_cycles(latest, 1020, 10) == 2 && rt_latest_age_cycles(latest, 1021, 10) == 3);
  /* A value written without a time has an older stamp or none, whichever place it uses. */
  for (int i = 0; i < 5; i++) {
    rt_latest_write(latest, &value);
    rt_latest_read(latest, &value);
    CHECK(rt_latest_age(latest, 1025) >= 25);
  }
  rt_latest_write_at(latest, &value, 2000);
  rt_latest_write_at(latest, &value, 2010);
  rt_latest_read(latest, &value);
  CHECK(rt_latest_stamp(latest).count == 8 && rt_latest_age(latest, 2013) == 3);
  free(latest);
  _Alignas(64) rt_latest_t wiped = {0}; /* what a forked child finds */
  rt_latest_write_at(&wiped, &value, 7);
  CHECK(rt_latest_age(&wiped, 7) == RT_LATEST_NEVER && rt_latest_written_at(&wiped) == 0);
}

static uint64_t total = 100000; /* or RT_ITEMS of the environment */
static rt_latest_t *shared;

static void *produce(void *unused) {
  value_t value;
  for (uint64_t i = 1; i <= total; i++) {
    if (i % 3 == 0) {
      fill(&value, i);
      rt_latest_write_at(shared, &value, (int64_t)i);
    } else if (i % 3 == 1) {
      fill(&value, i);
      rt_latest_write_sized(shared, &value, sizeof value);
    } else {
      fill(rt_latest_back(shared), i);
      rt_latest_publish(shared);
    }
  }
  return unused;
}

static void test_threads(void) {
  pthread_t producer;
  value_t value;
  uint64_t seen = 0, news = 0;
  shared = make(sizeof(value_t));
  CHECK(pthread_create(&producer, NULL, produce, NULL) == 0);
  while (seen < total) {
    const int is_new = rt_latest_read_sized(shared, &value, sizeof value);
    const uint64_t number = number_of(&value);
    CHECK(number >= seen && is_new == (number > seen));
    seen = number;
    news += (uint64_t)is_new;
    if (!is_new) sched_yield();
    CHECK(number_of(rt_latest_front(shared)) == seen);
    const rt_latest_stamp_t stamp = rt_latest_stamp(shared);
    CHECK(seen == 0 || seen % 3 != 0 ? stamp.count <= seen : stamp.count == seen && stamp.time == (int64_t)seen);
  }
  CHECK(pthread_join(producer, NULL) == 0);
  CHECK(news >= 1 && news <= total && rt_latest_written(shared) == total);
  free(shared);
}

int main(void) {
  if (getenv("RT_ITEMS")) total = strtoull(getenv("RT_ITEMS"), NULL, 10);
  test_sizes();
  test_sequence();
  test_age();
  test_threads();
  return CHECK_DONE();
}
