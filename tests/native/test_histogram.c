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

static rt_histogram_t histogram;

static uint64_t total(const rt_histogram_t *h) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < RT_HISTOGRAM_BINS; i++) sum += h->counts[i];
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
  CHECK(histogram.counts[RT_HISTOGRAM_OVERFLOW] == 1);
  CHECK(histogram.counts[rt_histogram_bin(1000)] == 2);
  CHECK(total(&histogram) == 4);

  /* The sum wraps like the 64-bit number it is; it is not an undefined overflow. */
  rt_histogram_clear(&histogram);
  volatile int64_t most = INT64_MAX; /* a compiler that knows the value warns of an impossible path */
  for (int i = 0; i < 3; i++) rt_histogram_record(&histogram, most);
  CHECK(histogram.sum == (int64_t)(UINT64_C(3) * INT64_MAX));
  CHECK(histogram.counts[RT_HISTOGRAM_OVERFLOW] == 3);
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
      if (round % 3 == 0 && i % 7 == 3) value = -value;
      const uint32_t bin = rt_histogram_bin(value);
      const uint64_t before = histogram.counts[bin];
      rt_histogram_record(&histogram, value);
      CHECK(histogram.counts[bin] == before + 1);
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
    for (uint32_t i = 0; i < RT_HISTOGRAM_BINS; i++) now += rt_load_relaxed(&histogram.counts[i]);
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
  test_record();
  test_squares();
  test_limits();
  test_reader();
  return CHECK_DONE();
}
