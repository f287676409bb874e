/* One writer, two readers, resets: every snapshot is a consistent whole. It also runs under the thread sanitizer. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>

#ifdef BROKEN_SEQLOCK /* a known-wrong variant: the writer does not mark that it is writing */
#include "rtloop/histogram.h"
#include "rtloop/seqlock.h"
#define rt_histogram_bin_within(value) (sched_yield(), (rt_histogram_bin_within)(value)) /* a reader gets its chance */
#define rt_seqlock_write_begin(lock) ((void)(lock))
#define rt_seqlock_write_end(lock) rt_store_release(&(lock)->sequence, rt_load_relaxed(&(lock)->sequence) + 2u)
#endif
#include "rtloop/telemetry.h"

#include "check.h"

enum { CAPACITY = 256, CYCLES = 400000, PERIOD = 1000 };

static rt_telemetry_t *block;
static uint32_t done, reset;

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
      rt_telemetry_record_plain(block, rt_telemetry_active_bank(block), record);
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
  for (int i = 0; i < RT_HISTOGRAM_BINS; i++) sum += h->counts[i];
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
    CHECK(c->cycles == written - c->first_record);
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
static void test_account(void) {
  const rt_counters_t *const c = &block->banks[0].counters;
  const rt_histogram_t *const h = block->banks[0].histograms;
  rt_schedule_t s = {.release = 1000, .period = 1000, .policy = RT_OVERRUN_SKIP};
  rt_telemetry_begin_run(block, 1000);
  rt_telemetry_record(block, &s, (rt_record_t){1000, 1010, 1020}, 0, 0, 1);
  CHECK(c->warmup == 1 && h[RT_LATENCY].sum == 0);
  rt_telemetry_record(block, &s, (rt_record_t){2000, 2200, 2300}, 0, 0, 0);
  CHECK(h[RT_INTERVAL].max == INT64_MIN); /* the one before was of the warm-up */
  rt_telemetry_record_plain(block, rt_telemetry_active_bank(block), (rt_record_t){3000, 3150, 3250});
  s.release = 4000;
  const int overran = rt_schedule_next(&s, 6500);
  rt_telemetry_record(block, &s, (rt_record_t){4000, 4500, 6500}, 1, overran, 0);
  rt_telemetry_record_plain(block, rt_telemetry_active_bank(block), (rt_record_t){7000, 7001, 7002});
  CHECK(overran == 1 && c->cycles == 5 && c->late == 1 && c->overruns == 1 && c->missed == 2 && c->last_end == 7002);
  CHECK(h[RT_LATENCY].sum == 200 + 150 + 500 + 1 && h[RT_LATENCY].min == 1 && h[RT_LATENCY].max == 500);
  CHECK(h[RT_EXECUTION].sum == 100 + 100 + 2000 + 1 && h[RT_RESPONSE].sum == 300 + 250 + 2500 + 2);
  CHECK(h[RT_INTERVAL].sum == 7001 - 2200 && h[RT_INTERVAL].min == 950 && h[RT_INTERVAL].max == 2501);
  CHECK(block->written == 5);
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
  test_account();
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
