/* Samples of signals: each value at its place, one record every n-th cycle, and whole on the other side. */
#include "rtloop/sampler.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"

static rt_sampling_t sampling;

/* Give a sampler a block, and begin a run with it. */
static rt_broadcast_t *attach(rt_sampler_t *s, uint64_t places) {
  const uint64_t bytes = rt_broadcast_bytes(rt_sampler_stride(s), places, 0);
  void *block; /* no byte more than needed, so that a write past the end is seen */
  CHECK(bytes && posix_memalign(&block, RT_CACHE_LINE, bytes) == 0);
  memset(block, 0, bytes);
  CHECK(rt_broadcast_init(&s->writer, block, rt_sampler_stride(s), places, "", 0, 0) == 0);
  rt_sampling_use(&sampling, s);
  return block;
}

/* Sample a cycle, and go on at the beginning after the last place, as a loop does. */
static void sample(rt_cycle_t cycle) {
  sampling.cycle = cycle;
  rt_sampling_take(&sampling);
  rt_sampling_turn(&sampling);
}

/* Do the same without a call, if there is code for the present words. */
static void sample_row(rt_cycle_t cycle) {
  sampling.cycle = cycle;
  sampling.cycle.start = -1;
  switch (sampling.row) {
  case 1:
    rt_sampling_take_row(&sampling, 1, cycle.start);
    break;
  case 2:
    rt_sampling_take_row(&sampling, 2, cycle.start);
    break;
  case RT_SAMPLER_INLINE:
    rt_sampling_take_row(&sampling, RT_SAMPLER_INLINE, cycle.start);
    break;
  default:
    sample(cycle);
    return;
  }
  rt_sampling_turn(&sampling);
}

static void open_reader(rt_broadcast_reader_t *reader, const rt_sampler_t *s, uint64_t places) {
  const uint64_t bytes = rt_broadcast_bytes(rt_sampler_stride(s), places, 0);
  CHECK(rt_broadcast_open(reader, s->writer.block, bytes, 1) == RT_BROADCAST_OK);
}

/* Every size, and arrays; behind each value stands what must not be copied. */
static void test_sizes(void) {
  static rt_sampler_t s;
  struct {
    uint64_t eight, three[3], after_three;
    uint32_t four, five[5], after_four;
    uint16_t two, after_two;
    uint8_t one, seven[7], after_one;
  } from = {0x8888888888888888,    {1, 2, 3}, UINT64_MAX, 0x44444444, {4, 5, 6, 7, 8}, 0xffffffff, 0x2222, 0xffff, 0x11,
            {9, 8, 7, 6, 5, 4, 3}, 0xff};
  const rt_cycle_t cycle = {.index = 7, .release = 70, .start = 77, .period = -1};
  rt_sampler_init(&s, 1);
  CHECK(rt_sampler_add(&s, &from.eight, 8) == 24 && rt_sampler_add(&s, from.three, 24) == 32);
  CHECK(rt_sampler_add(&s, &from.four, 4) == 56 && rt_sampler_add(&s, from.five, 20) == 60);
  CHECK(rt_sampler_add(&s, &from.eight, 8) == -EINVAL && rt_sampler_add(&s, &from, 0) == -EINVAL);
  CHECK(rt_sampler_add(&s, &from.two, 2) == 80 && rt_sampler_add(&s, &from.one, 1) == 82);
  CHECK(rt_sampler_add(&s, from.five, 4) == -EINVAL && rt_sampler_add(&s, from.seven, 7) == 83);
  CHECK(s.record_bytes == 90 && rt_sampler_stride(&s) == 96);
  rt_broadcast_t *const block = attach(&s, 2);
  rt_broadcast_reader_t reader;
  open_reader(&reader, &s, 2);
  char record[96], wanted[90];
  uint64_t first;
  memcpy(wanted, (const uint64_t[]){7, 70, 77}, 24);
  memcpy(wanted + 24, &from.eight, 32);
  memcpy(wanted + 56, &from.four, 24);
  memcpy(wanted + 80, &from.two, 2);
  memcpy(wanted + 82, &from.one, 8);
  for (int i = 0; i < 5; i++) {
    sample(cycle);
    CHECK(rt_broadcast_read(&reader, record, 1, &first) == 1 && first == 0);
    CHECK(memcmp(record, wanted, sizeof wanted) == 0);
  }
  free(block);
}

/* Test whether such a record is copied by a special function, not by rt_sampler_copy_any. */
static int has_function(uint32_t words, uint32_t pairs, int is_row) {
  const uint32_t others = words - 2 * pairs;
  return is_row || (pairs <= RT_SAMPLER_SMALL && others <= RT_SAMPLER_SMALL) ||
         (pairs == 0 && others <= RT_SAMPLER_SINGLE);
}

/* Check what a sampler writes of words at these addresses, and of a byte if `is_mixed`. */
static void check_words(const char *const *from, uint32_t words, int is_mixed, uint32_t pairs) {
  static rt_sampler_t s;
  const rt_cycle_t cycle = {.index = 1, .release = 2, .start = 3};
  int is_row = 1;
  rt_sampler_init(&s, 1);
  for (uint32_t i = 1; i < words; i++) is_row &= from[i] == from[i - 1] + 8;
  for (uint32_t i = 0; i < words; i++) CHECK(rt_sampler_add(&s, from[i], 8) == (int)(24 + 8 * i));
  if (is_mixed) CHECK(rt_sampler_add(&s, from[0], 1) == (int)(24 + 8 * words));
  CHECK(s.pairs == pairs && s.sample == s.copy);
  CHECK((s.copy != rt_sampler_copy_any) == (!is_mixed && has_function(words, pairs, is_row)));
  rt_broadcast_t *const block = attach(&s, 4);
  rt_broadcast_reader_t reader;
  open_reader(&reader, &s, 4);
  char record[24 + 8 * 71];
  uint64_t first;
  CHECK(sampling.row == (is_row && !is_mixed && words <= RT_SAMPLER_INLINE ? words : 0));
  for (int turn = 0; turn < 6; turn++) { /* once around */
    if (turn % 2) {
      sample(cycle);
    } else {
      sample_row(cycle);
    }
    CHECK(rt_broadcast_read(&reader, record, 4, &first) == 1);
    CHECK(memcmp(record, (const uint64_t[]){1, 2, 3}, 24) == 0);
    for (uint32_t i = 0; i < words; i++) CHECK(memcmp(record + 24 + 8 * i, from[i], 8) == 0);
    if (is_mixed) CHECK(record[24 + 8 * words] == from[0][0]);
  }
  free(block);
}

/* Every number of smaller words. */
static void test_small_words(void) {
  static rt_sampler_t s;
  static const char values[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz";
  for (uint32_t word = 4; word; word /= 2) {
    for (uint32_t words = 1; words <= 20; words++) {
      const rt_cycle_t cycle = {.index = 1, .release = 2, .start = 3};
      char record[24 + 8 * 11] = {0};
      uint64_t first;
      rt_broadcast_reader_t reader;
      rt_sampler_init(&s, 1);
      for (uint32_t i = 0; i < words; i++) CHECK(rt_sampler_add(&s, values + 3 * i, word) == (int)(24 + word * i));
      rt_broadcast_t *const block = attach(&s, 4);
      open_reader(&reader, &s, 4);
      sample(cycle);
      CHECK(rt_broadcast_read(&reader, record, 4, &first) == 1);
      for (uint32_t i = 0; i < words; i++) CHECK(memcmp(record + 24 + word * i, values + 3 * i, word) == 0);
      free(block);
    }
  }
}

/* Every number of words, at an odd address of a packed struct, with and without a byte that makes the record a mixed
 * one: in any order, and in pairs with others behind them. */
static void test_words(void) {
  static rt_sampler_t s;
  static char values[16 * RT_SAMPLER_MAX + 9];
  const char *from[70];
  for (unsigned i = 0; i < sizeof values; i++) values[i] = (char)(i * 7 + i / 256);
  for (uint32_t words = 1; words <= 70; words++) {
    for (uint32_t i = 0; i < words; i++) from[i] = values + 1 + 16 * ((i * 5) % words);
    for (int is_mixed = 0; is_mixed <= 1; is_mixed++) check_words(from, words, is_mixed, 0);
  }
  for (uint32_t pairs = 1; pairs <= 10; pairs++) {
    for (uint32_t others = 0; others <= 10; others++) {
      for (uint32_t i = 0; i < 2 * pairs; i++) from[i] = values + 1 + 8 * i;
      for (uint32_t i = 0; i < others; i++) from[2 * pairs + i] = values + 4001 - 8 * i;
      for (int is_mixed = 0; is_mixed <= 1; is_mixed++) check_words(from, 2 * pairs + others, is_mixed, pairs);
    }
  }
  for (uint32_t words = 1; words <= 70; words++) { /* one after the other, the same in runs of two, and of three */
    for (uint32_t run = 2; run <= 4; run++) {
      for (uint32_t i = 0; i < words; i++) from[i] = values + 1 + 8 * i + (run < 4 ? 8 * (i / run) : 0);
      check_words(from, words, 0, run == 3 ? words > 1 : words / 2);
    }
  }
  /* Words that follow each other after one that does not are no pair: their place in the record is not even. */
  from[0] = values;
  from[1] = values + 16;
  from[2] = values + 24;
  check_words(from, 3, 0, 0);
  rt_sampler_init(&s, 1);
  CHECK(rt_sampler_add(&s, values, 8 * RT_SAMPLER_MAX) == 24 && rt_sampler_add(&s, values, 1) == -ENOSPC);
  rt_sampler_init(&s, 1);
  CHECK(rt_sampler_add(&s, values, 8 * RT_SAMPLER_MAX + 8) == -ENOSPC && s.total == 0);
}

static void test_every(void) {
  static rt_sampler_t s;
  const uint64_t divisors[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 100, 1000, 1024, 999983, UINT64_C(1) << 47, UINT64_MAX};
  for (unsigned i = 0; i < sizeof divisors / sizeof *divisors; i++) {
    uint64_t seed = 1 + i;
    rt_sampler_init(&s, divisors[i]);
    for (uint64_t n = 0; n < 3000; n++) {
      CHECK(rt_sampler_is_due(&s, n) == (n % divisors[i] == 0));
      const uint64_t any = check_random(&seed);
      CHECK(rt_sampler_is_due(&s, any) == (any % divisors[i] == 0));
      CHECK(rt_sampler_is_due(&s, any - any % divisors[i]) == 1);
    }
  }
  rt_sampler_init(&s, 10);
  const double value = 1.5;
  CHECK(rt_sampler_add(&s, &value, 8) == 24);
  rt_broadcast_t *const block = attach(&s, 16);
  CHECK(sampling.row == 0);
  for (uint64_t i = 0; i < 100; i++) {
    const rt_cycle_t cycle = {.index = i};
    sample(cycle);
    CHECK(block->written == i / 10 + 1);
  }
  CHECK(block->written == 10);
  free(block);
}

/* Each run goes on behind the last record of the one before, and one without signals changes nothing. */
static void test_runs(void) {
  static rt_sampler_t s;
  uint64_t value = 0, record[4], first;
  rt_broadcast_reader_t reader;
  rt_sampler_init(&s, 1);
  CHECK(rt_sampler_add(&s, &value, 8) == 24);
  rt_broadcast_t *const block = attach(&s, 4);
  open_reader(&reader, &s, 4);
  for (uint64_t run = 0; run < 8; run++) {
    rt_sampling_use(&sampling, NULL);
    CHECK(rt_sampling_left(&sampling, 0) == UINT64_MAX && !rt_sampling_is_at_end(&sampling));
    sample((rt_cycle_t){.index = 99});
    rt_sampling_use(&sampling, &s);
    for (uint64_t i = 0; i < 3; i++) {
      CHECK(rt_sampling_left(&sampling, i) == 4 - value % 4);
      value++;
      sample((rt_cycle_t){.index = i});
      CHECK(rt_broadcast_read(&reader, (char *)record, 4, &first) == 1 && record[0] == i && record[3] == value);
    }
  }
  CHECK(block->written == 24 && value == 24);
  free(block);
}

/* A loop that samples every n-th cycle knows to the cycle when the ring has to be begun again. */
static void test_cycles_to_the_end(void) {
  static rt_sampler_t s;
  static const uint64_t divisors[] = {1, 2, 3, 10, 64};
  const uint64_t value = 1;
  for (unsigned i = 0; i < sizeof divisors / sizeof *divisors; i++) {
    rt_sampler_init(&s, divisors[i]);
    CHECK(rt_sampler_add(&s, &value, 8) == 24);
    rt_broadcast_t *const block = attach(&s, 4);
    uint64_t end = rt_sampling_left(&sampling, 0);
    CHECK(end == 3 * divisors[i] + 1);
    for (uint64_t index = 0; index < 1000; index++) {
      CHECK(index + rt_sampling_left(&sampling, index) == end && index < end);
      sampling.cycle = (rt_cycle_t){.index = index};
      rt_sampling_take(&sampling);
      CHECK(rt_sampling_is_at_end(&sampling) == (index + 1 == end));
      if (index + 1 == end) {
        CHECK(rt_sampling_left(&sampling, end) == 0);
        rt_sampling_turn(&sampling);
        end += 4 * divisors[i];
      }
    }
    free(block);
  }
  rt_sampler_init(&s, UINT64_MAX / 2);
  CHECK(rt_sampler_add(&s, &value, 8) == 24);
  rt_broadcast_t *const block = attach(&s, 4);
  CHECK(rt_sampling_left(&sampling, 0) == UINT64_MAX);
  free(block);
}

static rt_sampler_t shared;
static uint32_t is_done;
enum { SAMPLES = 20000, PLACES = 8 };

static void *sample_all(void *unused) {
  static uint64_t number, inverse; /* the loop's own */
  static uint32_t low;
  CHECK(rt_sampler_add(&shared, &number, 8) == 24 && rt_sampler_add(&shared, &inverse, 8) == 32);
  CHECK(rt_sampler_add(&shared, &low, 4) == 40);
  CHECK(attach(&shared, PLACES) != NULL);
  __atomic_store_n(&is_done, 1, __ATOMIC_RELEASE);
  for (uint64_t i = 0; i < SAMPLES; i++) {
    number = i;
    inverse = ~number;
    low = (uint32_t)number;
    const rt_cycle_t cycle = {.index = i, .release = (int64_t)i, .start = (int64_t)i};
    sample(cycle);
    if (i % 16 == 0) sched_yield();
  }
  __atomic_store_n(&is_done, 2, __ATOMIC_RELEASE);
  return unused;
}

/* Each record is whole and in its order. */
static void test_threads(void) {
  pthread_t thread;
  rt_broadcast_reader_t reader;
  uint64_t records[PLACES * 6], first, received = 0;
  rt_sampler_init(&shared, 1);
  CHECK(pthread_create(&thread, NULL, sample_all, NULL) == 0);
  while (rt_load_acquire(&is_done) == 0) sched_yield();
  open_reader(&reader, &shared, PLACES);
  const uint64_t begin = reader.position;
  for (int is_last = 0; !is_last;) {
    is_last = rt_load_acquire(&is_done) == 2;
    const uint64_t count = rt_broadcast_read(&reader, (char *)records, PLACES, &first);
    for (uint64_t i = first; i < first + count; i++) {
      const uint64_t *const record = records + 6 * i;
      for (int k = 1; k < 4; k++) CHECK(record[k] == record[0]);
      CHECK(record[4] == ~record[0] && (uint32_t)record[5] == record[0]);
    }
    received += count;
  }
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(begin + received + reader.lost == SAMPLES && received > 0);
  free(shared.writer.block);
}

int main(void) {
  test_sizes();
  test_words();
  test_small_words();
  test_every();
  test_runs();
  test_cycles_to_the_end();
  test_threads();
  return CHECK_DONE();
}
