/* One writer, two readers, resets: every snapshot is a consistent whole. It also runs under the thread sanitizer. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>

#ifdef BROKEN_SEQLOCK /* a known-wrong variant: the writer does not mark that it is writing */
#include "rtloop/histogram.h"
#include "rtloop/seqlock.h"
/* A reader gets its chance. */
#define rt_histogram_counter_within(value) (sched_yield(), (rt_histogram_counter_within)(value))
#define rt_seqlock_write_begin(lock) ((void)(lock))
#define rt_seqlock_write_end(lock) rt_store_release(&(lock)->sequence, rt_load_relaxed(&(lock)->sequence) + 2u)
#endif
#include "rtloop/telemetry.h"

#include "check.h"

enum { CAPACITY = 256, CYCLES = 400000, PERIOD = 1000 };

static rt_telemetry_t *block;
static uint32_t done, reset;

static void record_plain(rt_record_t record) {
  rt_telemetry_record_plain(block, rt_telemetry_active_bank(block), record);
}

static void *write_cycles(void *unused) {
  (void)unused;
  rt_schedule_t s = {.release = PERIOD, .period = PERIOD, .policy = RT_OVERRUN_SKIP};
  rt_telemetry_begin_run(block, s.release);
  uint64_t seed = 99;
  int64_t now = 0;
  for (int i = 0; i < CYCLES; i++) {
    if (rt_load_acquire(&reset)) {
      rt_telemetry_swap_banks(block, s.release);
      rt_store_release(&reset, 0u);
    }
    const int64_t release = s.release;
    const int is_late = now > release;
    const int64_t start = (is_late ? now : release) + (int64_t)(check_random(&seed) % 300);
    now = start + (int64_t)(check_random(&seed) % 1200);
    const int overran = rt_schedule_next(&s, now);
    const rt_record_t record = {release, start, now};
    if (!is_late && !overran && block->has_previous) {
      record_plain(record);
    } else {
      rt_telemetry_record(block, &s, record, is_late, overran, i < 100);
    }
    if (i % 64 == 0) sched_yield();
  }
  rt_store_release(&done, 1u);
  return NULL;
}

static uint64_t total(const rt_histogram_t *h) {
  uint64_t sum = 0;
  for (int i = 0; i < RT_HISTOGRAM_COUNTERS; i++) sum += h->counts[i];
  return sum;
}

static void read_snapshots(rt_bank_t *bank, rt_record_t *records) {
  uint64_t written, snapshots = 0;
  while (!rt_load_acquire(&done) || snapshots == 0) {
    if (rt_telemetry_snapshot(block, bank, &written, 1000000)) continue;
    snapshots++;
    const rt_counters_t *c = &bank->counters;
    const uint64_t counted = c->cycles - c->warmup;
    CHECK(total(&bank->histograms[RT_LATENCY]) == counted);
    CHECK(total(&bank->histograms[RT_EXECUTION]) == counted);
    CHECK(total(&bank->histograms[RT_RESPONSE]) == counted);
    CHECK(total(&bank->histograms[RT_INTERVAL]) == (counted ? counted - 1 : 0));
    CHECK(bank->histograms[RT_RESPONSE].sum == bank->histograms[RT_LATENCY].sum + bank->histograms[RT_EXECUTION].sum);
    CHECK(c->overruns <= c->missed && c->late == 0);
    const uint64_t first = written > CAPACITY ? written - CAPACITY : 0;
    const uint64_t n = rt_telemetry_copy_records(block, CAPACITY, records, first, written);
    CHECK(n <= written - first);
    for (uint64_t i = 0; i < n; i++) {
      CHECK(records[i].release % PERIOD == 0 && records[i].start >= records[i].release &&
            records[i].end >= records[i].start);
      if (i) CHECK(records[i].release > records[i - 1].release && records[i].start >= records[i - 1].end);
    }
  }
}

static void *read_and_reset(void *unused) {
  (void)unused;
  for (int i = 0; !rt_load_acquire(&done); i++) {
    if (!rt_load_acquire(&reset)) {
      rt_bank_clear(&block->banks[(rt_load_relaxed(&block->active) & 1u) ^ 1u]);
      rt_store_release(&reset, 1u);
    }
    for (int k = 0; k < 50; k++) sched_yield();
  }
  return NULL;
}

/* Plain cycles and others, recorded in turn, give one consistent account. */
static void test_account(rt_bank_t *bank) {
  const rt_counters_t *const c = &bank->counters;
  const rt_histogram_t *const h = bank->histograms;
  uint64_t written;
  rt_schedule_t s = {.release = 1000, .period = 1000, .policy = RT_OVERRUN_SKIP};
  rt_telemetry_begin_run(block, 1000);
  rt_telemetry_record(block, &s, (rt_record_t){1000, 1010, 1020}, 0, 0, 1);
  CHECK(rt_telemetry_snapshot(block, bank, &written, 1) == 0);
  CHECK(c->warmup == 1 && h[RT_LATENCY].sum == 0);
  rt_telemetry_record(block, &s, (rt_record_t){2000, 2200, 2300}, 0, 0, 0);
  CHECK(rt_telemetry_snapshot(block, bank, &written, 1) == 0);
  CHECK(h[RT_INTERVAL].max == INT64_MIN && h[RT_INTERVAL].sum == 0); /* the one before was of the warm-up */
  record_plain((rt_record_t){3000, 3150, 3250});
  s.release = 4000;
  const int overran = rt_schedule_next(&s, 6500);
  rt_telemetry_record(block, &s, (rt_record_t){4000, 4500, 6500}, 1, overran, 0);
  record_plain((rt_record_t){7000, 7001, 7002});
  CHECK(rt_telemetry_snapshot(block, bank, &written, 1) == 0);
  CHECK(overran == 1 && c->cycles == 5 && c->late == 1 && c->overruns == 1 && c->missed == 2 && c->last_end == 7002);
  CHECK(h[RT_LATENCY].sum == 200 + 150 + 500 + 1 && h[RT_LATENCY].min == 1 && h[RT_LATENCY].max == 500);
  CHECK(h[RT_EXECUTION].sum == 100 + 100 + 2000 + 1 && h[RT_RESPONSE].sum == 300 + 250 + 2500 + 2);
  CHECK(h[RT_INTERVAL].sum == 7001 - 2200 && h[RT_INTERVAL].min == 950 && h[RT_INTERVAL].max == 2501);
  CHECK(h[RT_INTERVAL].squares_low == 950 * 950 + 1350 * 1350 + 2501 * 2501 && h[RT_INTERVAL].squares_high == 0);
  CHECK(block->written == 5 && written == 5);
}

/* What a cycle records, counted one value at a time. */
typedef struct expected {
  rt_histogram_t histograms[RT_PLAIN_HISTOGRAMS];
} expected_t;

static void expect(expected_t *e, rt_record_t record, int64_t before) {
  rt_histogram_record(&e->histograms[RT_LATENCY], record.start - record.release);
  rt_histogram_record(&e->histograms[RT_EXECUTION], record.end - record.start);
  rt_histogram_record(&e->histograms[RT_RESPONSE], record.end - record.release);
  rt_histogram_record(&e->histograms[RT_INTERVAL], record.start - before);
}

static void compare(const expected_t *e, rt_bank_t *bank) {
  uint64_t written;
  CHECK(rt_telemetry_snapshot(block, bank, &written, 1) == 0);
  for (int i = 0; i < RT_PLAIN_HISTOGRAMS; i++) {
    const rt_histogram_t *const a = &e->histograms[i], *const b = &bank->histograms[i];
    CHECK(a->min == b->min && a->max == b->max && a->sum == b->sum);
    CHECK(a->squares_low == b->squares_low && a->squares_high == b->squares_high);
    CHECK(memcmp(a->counts, b->counts, sizeof a->counts) == 0);
  }
}

/* Begin with an empty block, and a reference that is as empty. */
static expected_t *begin(rt_bank_t *bank) {
  expected_t *const e = malloc(sizeof *e);
  CHECK(e != NULL);
  for (int i = 0; i < RT_PLAIN_HISTOGRAMS; i++) rt_histogram_clear(&e->histograms[i]);
  memset(block, 0, rt_telemetry_bytes(CAPACITY, 0));
  rt_telemetry_init(block, CAPACITY, CAPACITY, 0);
  rt_telemetry_begin_run(block, 0);
  rt_bank_clear(bank);
  return e;
}

/* Record a cycle of the warm-up, after which a cycle is plain. */
static void begin_plain(rt_record_t record) {
  const rt_schedule_t s = {.period = PERIOD, .policy = RT_OVERRUN_SKIP};
  rt_telemetry_record(block, &s, record, 0, 0, 1);
  block->previous_start = record.start;
  block->has_previous = 1;
}

/* Test whether vector instructions have counted the last plain cycle, `before` being the sum that they had added up. */
static int is_added_up(int64_t before) {
#ifdef RT_PLAIN_VECTORS
  return rt_telemetry_active_bank(block)->plain.sums[RT_RESPONSE] != before;
#else
  (void)before;
  return 1;
#endif
}

static int64_t added_up(void) { return rt_telemetry_active_bank(block)->plain.sums[RT_RESPONSE]; }

/* Get a value below 2^bits, in one of three cases at an edge of a bin. */
static int64_t value_of(uint64_t *seed, uint32_t bits) {
  const int64_t value = (int64_t)(check_random(seed) % (UINT64_C(1) << bits));
  const uint64_t kind = check_random(seed) % 6;
  const int64_t edge = rt_histogram_edge(rt_histogram_bin(value));
  return kind == 0 ? edge : kind == 1 && edge > 0 ? edge - 1 : value;
}

/* Values of every size, among cycles that are not plain. */
static void test_plain_cycles_are_exact(rt_bank_t *bank, uint32_t bits) {
  expected_t *const e = begin(bank);
  const rt_schedule_t s = {.period = PERIOD, .policy = RT_OVERRUN_SKIP};
  uint64_t seed = 12 + bits;
  int64_t release = 1000, before = 0;
  for (int i = 0; i < 70000; i++) {
    const uint32_t most = i % 2 ? bits : (uint32_t)i % (bits + 1);
    const int64_t start = release + value_of(&seed, most), end = start + value_of(&seed, i % 7 ? most : 8);
    const rt_record_t record = {release, start, end};
    if (i % 30011 == 0) {
      rt_telemetry_record(block, &s, record, 0, 0, 0);
    } else {
      record_plain(record);
    }
    if (i) {
      expect(e, record, before);
    } else {
      rt_histogram_record(&e->histograms[RT_LATENCY], start - release);
      rt_histogram_record(&e->histograms[RT_EXECUTION], end - start);
      rt_histogram_record(&e->histograms[RT_RESPONSE], end - release);
    }
    before = start;
    release = end + (i % 3 ? 0 : value_of(&seed, 10));
    if (i % 20011 == 0 || i == 536) compare(e, bank);
  }
  compare(e, bank);
  free(e);
}

/* Values just below a power of two, as often as plain cycles may add them up and more: the sums of squares do not wrap
 * around, and no value is rounded up to the next bin. The times of two cycles need not be those of one after the other:
 * with a short interval, the response alone is that great. */
static void test_great_values_are_exact(rt_bank_t *bank, uint32_t bits, int64_t interval) {
  expected_t *const e = begin(bank);
  const rt_schedule_t s = {.period = PERIOD, .policy = RT_OVERRUN_SKIP};
  const int64_t great = (INT64_C(1) << bits) - 1, cycles = INT64_C(1) << (64 - 2 * bits);
  int64_t start = 0;
  begin_plain((rt_record_t){0, 0, 0});
  for (int64_t i = 0; i < 3 * cycles + 100; i++) {
    const int64_t before = start, response = i < 5 ? 1000 : great, sum = added_up();
    start += i < 5 ? 1000 : interval;
    const rt_record_t record = {start - response + 200, start, start + 200};
    if (i == 2 * cycles) {
      rt_telemetry_record(block, &s, record, 0, 0, 0);
    } else {
      record_plain(record);
      if (i < 10) CHECK(is_added_up(sum));
    }
    expect(e, record, before);
  }
  compare(e, bank);
  CHECK(bank->histograms[RT_RESPONSE].squares_high >= 2); /* 64 bits have been used up more than once */
  free(e);
}

/* Plain cycles give their sums away only when the squares could need more than 64 bits. */
static void test_plain_cycles_are_added_up_in_a_row(rt_bank_t *bank) {
  expected_t *const e = begin(bank);
  begin_plain((rt_record_t){0, 0, 0});
  for (int i = 1; i <= 1000; i++) {
    const rt_record_t record = {PERIOD * i, PERIOD * i, PERIOD * i + 500};
    record_plain(record);
    expect(e, record, PERIOD * (i - 1));
  }
#ifdef RT_PLAIN_VECTORS
  CHECK(added_up() == 1000 * 500);
#endif
  compare(e, bank);
  free(e);
}

/* What a loop that spins measures, and a step that does next to nothing. */
static void test_short_values_are_plain(rt_bank_t *bank) {
  expected_t *const e = begin(bank);
  const int64_t latencies[] = {0, 127, 1, 60, 128};
  begin_plain((rt_record_t){0, 0, 0});
  int64_t before = 0;
  for (int i = 1; i < 100; i++) {
    const int64_t release = 1000 * i, start = release + latencies[i % 5], sum = added_up();
    const rt_record_t record = {release, start, start + latencies[i % 3] + 1};
    record_plain(record);
    expect(e, record, before);
    before = start;
    CHECK(is_added_up(sum));
  }
  compare(e, bank);
  free(e);
}

/* A cycle that is not plain may have widened a histogram, to a value of more than 32 bits. */
static void test_plain_cycles_follow_others(rt_bank_t *bank) {
  expected_t *const e = begin(bank);
  const rt_schedule_t s = {.period = PERIOD, .policy = RT_OVERRUN_SKIP};
  begin_plain((rt_record_t){0, 0, 0});
  const rt_record_t records[] = {{1000, 1010, 1020},
                                 {2000, 2010, INT64_C(3) << 32},
                                 {INT64_C(4) << 32, (INT64_C(4) << 32) + 500, (INT64_C(4) << 32) + 900}};
  rt_telemetry_record(block, &s, records[0], 0, 0, 0);
  rt_telemetry_record(block, &s, records[1], 0, 0, 0);
  rt_telemetry_record(block, &s, records[2], 0, 0, 0);
  int64_t before = 0;
  for (int i = 0; i < 3; i++) {
    expect(e, records[i], before);
    before = records[i].start;
  }
  for (int i = 1; i < 20; i++) {
    const int64_t release = records[2].release + 1000 * i, sum = added_up();
    const rt_record_t record = {release, release + 5 + i % 4, release + 700 + i % 3};
    record_plain(record);
    expect(e, record, before);
    before = record.start;
    CHECK(is_added_up(sum));
  }
  compare(e, bank);
  free(e);
}

/* The bank that a reset takes into use again has forgotten all about its plain cycles. */
static void test_a_reset_forgets_plain_cycles(rt_bank_t *bank) {
  expected_t *const e = begin(bank);
  for (int reset_number = 0; reset_number < 3; reset_number++) {
    for (int i = 0; i < RT_PLAIN_HISTOGRAMS; i++) rt_histogram_clear(&e->histograms[i]);
    begin_plain((rt_record_t){0, 0, 0});
    int64_t before = 0;
    for (int i = 1; i < 20; i++) {
      const int64_t release = 1000 * i, width = 10 - 4 * reset_number;
      const rt_record_t record = {release, release + 20 + i % width, release + 60 + i % width};
      record_plain(record);
      expect(e, record, before);
      before = record.start;
    }
    compare(e, bank);
    rt_bank_clear(&block->banks[block->active ^ 1u]);
    rt_telemetry_swap_banks(block, 20000);
  }
  free(e);
}

/* A ring of which no record is being written is whole; the oldest one is not while the writer is in its section. */
static void test_full_ring(rt_record_t *records) {
  CHECK(block->written > CAPACITY);
  const uint64_t first = block->written - CAPACITY;
  CHECK(rt_telemetry_copy_records(block, CAPACITY, records, first, block->written) == CAPACITY);
  const int64_t second = records[1].release;
  rt_seqlock_write_begin(&block->lock);
  CHECK(rt_telemetry_copy_records(block, CAPACITY, records, first, block->written) == CAPACITY - 1);
  CHECK(records[0].release == second);
  rt_seqlock_write_end(&block->lock);
}

int main(void) {
  const uint64_t bytes = rt_telemetry_bytes(CAPACITY, 0);
  block = aligned_alloc(RT_CACHE_LINE, (bytes + RT_CACHE_LINE - 1) / RT_CACHE_LINE * RT_CACHE_LINE);
  rt_bank_t *bank = aligned_alloc(RT_CACHE_LINE, sizeof *bank);
  rt_record_t *records = malloc(CAPACITY * sizeof *records);
  CHECK(block && bank && records);
  memset(block, 0, bytes);
  rt_telemetry_init(block, CAPACITY, CAPACITY, 0);
  rt_bank_clear(bank);
  test_account(bank);
  test_short_values_are_plain(bank);
  test_plain_cycles_follow_others(bank);
  test_a_reset_forgets_plain_cycles(bank);
  for (uint32_t bits = 1; bits <= 30; bits += bits == 22 ? 1 : 7) test_plain_cycles_are_exact(bank, bits);
  for (uint32_t bits = 24; bits <= 31; bits++) test_great_values_are_exact(bank, bits, (INT64_C(1) << bits) - 1);
  test_great_values_are_exact(bank, 27, 1000);
#ifdef RT_PLAIN_VECTORS
  _MM_SET_ROUNDING_MODE(_MM_ROUND_UP); /* as a step may do */
  test_great_values_are_exact(bank, 31, 1000);
  _MM_SET_ROUNDING_MODE(_MM_ROUND_NEAREST);
#endif
  test_plain_cycles_are_added_up_in_a_row(bank);
  memset(block, 0, bytes);
  rt_telemetry_init(block, CAPACITY, CAPACITY, 0);
  CHECK(memcmp(block, "RTLTEL01", 8) == 0 && block->total_bytes == bytes);
  rt_bank_clear(bank);
  pthread_t writer, resetter;
  CHECK(pthread_create(&writer, NULL, write_cycles, NULL) == 0);
  CHECK(pthread_create(&resetter, NULL, read_and_reset, NULL) == 0);
  read_snapshots(bank, records);
  pthread_join(writer, NULL);
  pthread_join(resetter, NULL);
  test_full_ring(records);
  free(block);
  free(bank);
  free(records);
  return CHECK_DONE();
}
