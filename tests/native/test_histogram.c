/* Tests of histogram.h. With one of the BROKEN_ macros the header has a known fault, and the program must fail. */
#include <string.h>

#include "rtloop/atomics.h"

#include "check.h"

#if defined BROKEN_OCTAVE /* bins of the wrong octave */
#define memcpy(to, from, bytes) (memcpy(to, from, bytes), *(to) += UINT64_C(1) << 52)
#elif defined BROKEN_COUNT /* counts that do not add up */
#undef rt_add_relaxed
#define rt_add_relaxed(p, v) rt_store_relaxed((p), (v))
#elif defined BROKEN_RANGE /* no branch for values out of range */
#undef RT_UNLIKELY
#define RT_UNLIKELY(x) ((void)(x), 0)
#elif defined BROKEN_STORE /* stores that are not atomic: only TSan can see it */
#undef rt_store_relaxed
#define rt_store_relaxed(p, v) (*(p) = (v))
#endif

#include "rtloop/histogram.h"

#include <pthread.h>

#define END (INT64_C(1) << RT_HISTOGRAM_MAX_BITS)

/* Every bin: edges rise, and the first and the last value of a bin belong to it. With test_order, that is every
 * value. */
static void test_edges(void) {
  CHECK(rt_histogram_edge(0) == 0);
  CHECK(rt_histogram_edge(RT_HISTOGRAM_OVERFLOW) == END);
  for (uint32_t bin = 0; bin < RT_HISTOGRAM_OVERFLOW; bin++) {
    const int64_t edge = rt_histogram_edge(bin), next = rt_histogram_edge(bin + 1);
    CHECK(next > edge);
    CHECK(edge < 256 ? next - edge == 1 : (next - edge) * 128 <= edge);
    CHECK(rt_histogram_bin(edge) == bin);
    CHECK(rt_histogram_bin(next - 1) == bin);
  }
}

/* Bins never fall as values rise: densely where bins are narrow, then at random over the whole range. */
static void test_order(void) {
  uint32_t last = 0;
  for (int64_t value = 0; value < INT64_C(1) << 21; value++) {
    const uint32_t bin = rt_histogram_bin(value);
    CHECK(bin == last || bin == last + 1);
    CHECK(rt_histogram_edge(bin) <= value && value < rt_histogram_edge(bin + 1));
    last = bin;
  }
  uint64_t state = 1;
  for (int i = 0; i < 1000000; i++) {
    const int64_t value = (int64_t)(check_random(&state) >> (24 + i % 40));
    const uint32_t bin = rt_histogram_bin(value);
    CHECK(bin < RT_HISTOGRAM_OVERFLOW);
    CHECK(rt_histogram_edge(bin) <= value && value < rt_histogram_edge(bin + 1));
  }
}

static void test_out_of_range(void) {
  CHECK(rt_histogram_bin(END - 1) == RT_HISTOGRAM_OVERFLOW - 1);
  for (int64_t value = END; value > 0 && value < INT64_MAX / 2; value *= 2) {
    CHECK(rt_histogram_bin(value) == RT_HISTOGRAM_OVERFLOW);
    CHECK(rt_histogram_bin(2 * value - 1) == RT_HISTOGRAM_OVERFLOW);
    CHECK(rt_histogram_bin(-value) == 0);
  }
  CHECK(rt_histogram_bin(INT64_MAX) == RT_HISTOGRAM_OVERFLOW);
  CHECK(rt_histogram_bin(INT64_MIN) == 0);
  CHECK(rt_histogram_bin(-1) == 0);
}

/* Counters never fall as values rise either, and all of them belong to a bin: those of values to the value's. */
static void test_counters(void) {
  uint32_t before = 0;
  CHECK(rt_histogram_bin_of_counter(0) == 0);
  CHECK(rt_histogram_bin_of_counter(RT_HISTOGRAM_COUNTERS - 1) == RT_HISTOGRAM_OVERFLOW);
  for (uint32_t i = 1; i < RT_HISTOGRAM_COUNTERS; i++) {
    const uint32_t bin = rt_histogram_bin_of_counter(i);
    CHECK(bin == before || bin == before + 1);
    before = bin;
  }
  uint32_t last = 0;
  for (int64_t value = 1; value < 100000; value++) {
    const uint32_t counter = rt_histogram_counter(value);
    CHECK(counter > last || (value >= 256 && counter == last));
    CHECK(rt_histogram_bin_of_counter(counter) == rt_histogram_bin(value));
    last = counter;
  }
}

static rt_histogram_t histogram;

static uint64_t total(const rt_histogram_t *h) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < RT_HISTOGRAM_COUNTERS; i++) sum += h->counts[i];
  return sum;
}

static void test_record(void) {
  memset(&histogram, 0xA5, sizeof histogram);
  rt_histogram_clear(&histogram);
  CHECK(total(&histogram) == 0);
  CHECK(histogram.min > histogram.max);

  rt_histogram_record(&histogram, 1000);
  CHECK(histogram.min == 1000);
  CHECK(histogram.max == 1000);
  rt_histogram_record(&histogram, -5);
  rt_histogram_record(&histogram, END);
  rt_histogram_record(&histogram, 1000);
  CHECK(histogram.min == -5);
  CHECK(histogram.max == END);
  CHECK(histogram.sum == 2 * 1000 - 5 + END);
  CHECK(histogram.counts[0] == 1);
  CHECK(histogram.counts[RT_HISTOGRAM_COUNTERS - 1] == 1);
  CHECK(histogram.counts[rt_histogram_counter(1000)] == 2);
  CHECK(total(&histogram) == 4);

  /* The sum wraps like the 64-bit number it is; it is not an undefined overflow. */
  rt_histogram_clear(&histogram);
  volatile int64_t most = INT64_MAX; /* a compiler that knows the value warns of an impossible path */
  for (int i = 0; i < 3; i++) rt_histogram_record(&histogram, most);
  CHECK(histogram.sum == (int64_t)(UINT64_C(3) * INT64_MAX));
  CHECK(histogram.counts[RT_HISTOGRAM_COUNTERS - 1] == 3);
}

/* A reader finds every value in its bin, and no value is lost, whatever the counters hold. */
static void test_counts(void) {
  static uint64_t counts[RT_HISTOGRAM_BINS], expected[RT_HISTOGRAM_BINS];
  uint64_t state = 5, sum = 0;
  rt_histogram_clear(&histogram);
  memset(expected, 0, sizeof expected);
  for (int i = 0; i < 20000; i++) {
    const int64_t value = i < 600 ? i / 2 - 3 : (int64_t)(check_random(&state) >> (22 + i % 42));
    rt_histogram_record(&histogram, value);
    expected[rt_histogram_bin(value)] += 1;
  }
  memset(counts, 0xA5, sizeof counts);
  rt_histogram_counts(&histogram, counts);
  CHECK(memcmp(counts, expected, sizeof counts) == 0);
  for (uint32_t i = 0; i < RT_HISTOGRAM_COUNTERS; i++) histogram.counts[i] = 1;
  rt_histogram_counts(&histogram, counts);
  for (uint32_t i = 0; i < RT_HISTOGRAM_BINS; i++) sum += counts[i];
  CHECK(sum == RT_HISTOGRAM_COUNTERS);
}

/* Squares below 2^64 whose sum is not: the carry goes into the upper half. */
static void test_squares(void) {
  rt_histogram_clear(&histogram);
  for (int i = 0; i < 5; i++) rt_histogram_record(&histogram, (INT64_C(1) << 32) - 1);
  for (int i = 0; i < 3; i++) rt_histogram_record(&histogram, INT64_C(1) << 32);
  const rt_uint128_t small = (UINT64_C(1) << 32) - 1, squares = 5 * small * small + ((rt_uint128_t)3 << 64);
  CHECK(histogram.squares_low == (uint64_t)squares && histogram.squares_high == (uint64_t)(squares >> 64));
  rt_histogram_clear(&histogram);
  CHECK(histogram.squares_low == 0 && histogram.squares_high == 0);
}

/* In any order of values, the limits, the sums and the bins are those of a simple reference. */
static void test_limits(void) {
  uint64_t state = 3;
  for (int round = 0; round < 2000; round++) {
    int64_t min = INT64_MAX, max = INT64_MIN;
    uint64_t sum = 0;
    rt_uint128_t squares = 0;
    rt_histogram_clear(&histogram);
    for (int i = 0; i < 40; i++) {
      int64_t value = (int64_t)(check_random(&state) >> (20 + check_random(&state) % 44));
      if (round % 3 == 0 && i % 7 == round % 5) value = -value;
      const uint32_t counter = rt_histogram_counter(value);
      const uint64_t before = histogram.counts[counter];
      rt_histogram_record(&histogram, value);
      CHECK(histogram.counts[counter] == before + 1);
      min = value < min ? value : min;
      max = value > max ? value : max;
      sum += (uint64_t)value;
      squares += (rt_uint128_t)(value < 0 ? -value : value) * (rt_uint128_t)(value < 0 ? -value : value);
      CHECK(histogram.min == min && histogram.max == max && histogram.sum == (int64_t)sum);
      CHECK(histogram.squares_low == (uint64_t)squares && histogram.squares_high == (uint64_t)(squares >> 64));
    }
    CHECK(total(&histogram) == 40);
  }
}

#define RECORDS 200000

static void *write_records(void *argument) {
  (void)argument;
  uint64_t state = 7;
  for (int i = 0; i < RECORDS; i++) rt_histogram_record(&histogram, (int64_t)(check_random(&state) >> 40));
  return NULL;
}

/* One thread writes while another reads any counter: no race, no torn value, no count that falls. */
static void test_reader(void) {
  pthread_t writer;
  rt_histogram_clear(&histogram);
  CHECK(pthread_create(&writer, NULL, write_records, NULL) == 0);
  uint64_t before = 0;
  do {
    uint64_t now = 0;
    for (uint32_t i = 0; i < RT_HISTOGRAM_COUNTERS; i++) now += rt_load_relaxed(&histogram.counts[i]);
    CHECK(now >= before && now <= RECORDS);
    CHECK(rt_load_relaxed(&histogram.max) < INT64_C(1) << 24);
    before = now;
  } while (before < RECORDS);
  CHECK(pthread_join(writer, NULL) == 0);
  CHECK(total(&histogram) == RECORDS);
}

int main(void) {
  test_edges();
  test_order();
  test_out_of_range();
  test_counters();
  test_record();
  test_counts();
  test_squares();
  test_limits();
  test_reader();
  return CHECK_DONE();
}
