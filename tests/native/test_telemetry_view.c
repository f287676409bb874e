/* A damaged block is refused, or read within its bounds, as the sanitizers verify. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "rtloop/telemetry_view.h"

#include "check.h"

enum { CAPACITY = 8, KEEP = 5, TEXT = 16, PERIOD = 1000, CYCLES = 20, WARMUP = 3 };

#ifndef ROUNDS
#define ROUNDS 20000 /* of damage at random; a tenth of them notices each mutation */
#endif

static const uint64_t BYTES = sizeof(rt_telemetry_t) + CAPACITY * sizeof(rt_record_t) + TEXT;

/* Memory of exactly these bytes, so that a read beyond them is seen. Cycle k starts 10 + k ns late and takes 5 ns. */
static rt_telemetry_t *make_block(void) {
  rt_telemetry_t *t = NULL;
  CHECK(posix_memalign((void **)&t, RT_CACHE_LINE, BYTES) == 0);
  memset(t, 0, BYTES);
  rt_telemetry_init(t, CAPACITY, KEEP, TEXT);
  CHECK(rt_telemetry_write_text(t, "seventeen letters", 17) == -E2BIG && t->text_bytes == 0);
  CHECK(rt_telemetry_write_text(t, "{\"a\": 1}", 8) == 0);
  rt_schedule_t s = {.release = PERIOD, .period = PERIOD, .policy = RT_OVERRUN_SKIP};
  rt_telemetry_begin_run(t, s.release);
  for (int i = 0; i < CYCLES; i++) {
    const int64_t release = s.release, start = release + 10 + i, end = start + 5;
    const int overran = rt_schedule_next(&s, end);
    rt_telemetry_record(t, &s, (rt_record_t){release, start, end}, 0, overran, i < WARMUP);
  }
  return t;
}

static rt_bank_t *make_bank(void) {
  rt_bank_t *bank = aligned_alloc(RT_CACHE_LINE, sizeof *bank);
  CHECK(bank != NULL);
  rt_bank_clear(bank);
  return bank;
}

static void test_a_good_block_is_read(void) {
  rt_telemetry_t *t = make_block();
  rt_bank_t *bank = make_bank();
  rt_view_t view;
  uint64_t written;
  char text[TEXT];
  rt_record_t records[KEEP];
  CHECK(rt_view_open(&view, t, BYTES) == RT_VIEW_OK);
  CHECK(view.record_capacity == CAPACITY && view.record_keep == KEEP && view.text_capacity == TEXT);
  CHECK(rt_telemetry_snapshot(view.block, bank, &written, 1) == 0 && written == CYCLES);
  CHECK(rt_view_is_sound(bank));
  CHECK(rt_view_count(&view, 0, written, UINT64_MAX) == KEEP && rt_view_count(&view, 0, written, 2) == 2);
  CHECK(rt_view_count(&view, 18, written, UINT64_MAX) == 2 && rt_view_count(&view, 21, written, UINT64_MAX) == 0);
  CHECK(rt_view_copy_records(&view, records, written, KEEP) == KEEP);
  CHECK(records[KEEP - 1].release == CYCLES * PERIOD && records[0].release == (CYCLES - KEEP + 1) * PERIOD);
  CHECK(rt_view_copy_text(&view, text) == 8 && memcmp(text, "{\"a\": 1}", 8) == 0);
  free(bank);
  free(t);
}

#define REFUSES(field, value, reason)                                                                                  \
  do {                                                                                                                 \
    rt_telemetry_t *t = make_block();                                                                                  \
    rt_view_t view;                                                                                                    \
    t->field = (value);                                                                                                \
    CHECK(rt_view_open(&view, t, BYTES) == (reason));                                                                  \
    CHECK(view.record_capacity + view.record_keep + view.text_capacity == 0);                                          \
    free(t);                                                                                                           \
  } while (0)

static void test_damaged_headers_are_refused(void) {
  REFUSES(magic, 0, RT_VIEW_MAGIC);
  REFUSES(magic, RT_TELEMETRY_MAGIC + 1, RT_VIEW_MAGIC);
  REFUSES(version, RT_TELEMETRY_VERSION - 1, RT_VIEW_VERSION);
  REFUSES(version, RT_TELEMETRY_VERSION + 1, RT_VIEW_VERSION);
  REFUSES(header_bytes, sizeof(rt_telemetry_t) - 64, RT_VIEW_HEADER);
  REFUSES(header_bytes, UINT32_MAX, RT_VIEW_HEADER);
  REFUSES(total_bytes, BYTES + 1, RT_VIEW_TOTAL);
  REFUSES(total_bytes, UINT64_MAX, RT_VIEW_TOTAL);
  REFUSES(record_capacity, 2 * CAPACITY, RT_VIEW_TOTAL);
  REFUSES(record_capacity, CAPACITY - 1, RT_VIEW_RECORDS);
  REFUSES(record_capacity, UINT64_C(1) << 61, RT_VIEW_RECORDS); /* whose bytes wrap around to 0 */
  REFUSES(record_keep, CAPACITY + 1, RT_VIEW_RECORDS);
  REFUSES(record_keep, UINT64_MAX, RT_VIEW_RECORDS);
  REFUSES(text_capacity, TEXT + 1, RT_VIEW_TOTAL);
  REFUSES(text_capacity, UINT64_MAX - 100, RT_VIEW_TEXT);
}

static void test_files_of_another_size_are_refused(void) {
  rt_view_t view;
  rt_telemetry_t *t = make_block();
  for (uint64_t bytes = 0; bytes < BYTES; bytes += bytes < 64 ? 1 : 61) {
    void *part = NULL; /* of exactly that size: reading on is seen */
    CHECK(posix_memalign(&part, RT_CACHE_LINE, bytes ? bytes : 1) == 0);
    memcpy(part, t, bytes);
    if (bytes >= 12) CHECK(rt_view_open(&view, part, bytes) == (bytes < sizeof *t ? RT_VIEW_SHORT : RT_VIEW_TOTAL));
    if (bytes < 12) CHECK(rt_view_open(&view, part, bytes) == RT_VIEW_SHORT);
    free(part);
  }
  free(t);
}

static void test_text_that_says_it_is_longer_than_its_room_is_refused(void) {
  rt_telemetry_t *t = make_block();
  rt_view_t view;
  char text[TEXT];
  CHECK(rt_view_open(&view, t, BYTES) == RT_VIEW_OK);
  t->text_bytes = TEXT + 1;
  CHECK(rt_view_copy_text(&view, text) == -EBADMSG);
  t->text_bytes = UINT64_MAX;
  CHECK(rt_view_copy_text(&view, text) == -EBADMSG);
  free(t);
}

static void test_a_header_that_changes_after_the_check_changes_nothing(void) {
  rt_telemetry_t *t = make_block();
  rt_view_t view;
  char text[TEXT];
  rt_record_t records[KEEP];
  CHECK(rt_view_open(&view, t, BYTES) == RT_VIEW_OK);
  t->record_capacity = t->record_keep = t->text_capacity = t->total_bytes = UINT64_C(1) << 40;
  t->written = (UINT64_C(1) << 40) - 3;
  t->text_bytes = TEXT;
  CHECK(rt_view_count(&view, 0, t->written, UINT64_MAX) == KEEP);
  CHECK(rt_view_copy_records(&view, records, t->written, KEEP) <= KEEP);
  CHECK(rt_view_copy_text(&view, text) == TEXT);
  free(t);
}

static void test_a_writer_that_died_in_the_middle_ends_the_reader_too(void) {
  rt_telemetry_t *t = make_block();
  rt_bank_t *bank = make_bank();
  uint64_t written;
  rt_seqlock_write_begin(&t->lock);
  CHECK(rt_telemetry_snapshot(t, bank, &written, 1000) == -EAGAIN);
  free(bank);
  free(t);
}

#define UNSOUND(change)                                                                                                \
  do {                                                                                                                 \
    rt_bank_clear(bank);                                                                                               \
    CHECK(rt_telemetry_snapshot(t, bank, &written, 1) == 0);                                                           \
    CHECK(rt_view_is_sound(bank));                                                                                     \
    change;                                                                                                            \
    CHECK(!rt_view_is_sound(bank));                                                                                    \
  } while (0)

static void test_histograms_that_contradict_the_counters_are_unsound(void) {
  rt_telemetry_t *t = make_block();
  rt_bank_t *bank = make_bank();
  uint64_t written;
  rt_histogram_t *h = bank->histograms;
  UNSOUND(h[RT_LATENCY].counts[rt_histogram_counter(h[RT_LATENCY].min)] += 1);
  UNSOUND(h[RT_EXECUTION].counts[rt_histogram_counter(5)] -= 1);
  UNSOUND((h[RT_RESPONSE].min = 0, h[RT_RESPONSE].counts[0] = h[RT_RESPONSE].counts[1] = UINT64_C(1) << 63)); /* 0 */
  UNSOUND((h[RT_INTERVAL].counts[rt_histogram_counter(1001)] -= 1));
  UNSOUND(bank->counters.cycles += 1);
  UNSOUND(bank->counters.cycles = UINT64_MAX);
  UNSOUND(bank->counters.warmup = CYCLES + 1);
  UNSOUND(h[RT_LATENCY].max = INT64_MAX);
  UNSOUND((h[RT_LATENCY].min = 7, h[RT_LATENCY].max = 6));
  UNSOUND(h[RT_LATENCY].min += 1);
  UNSOUND(h[RT_RESPONSE].min = 0);
  free(bank);
  free(t);
}

/* For any bytes, reading ends and stays within them. */
static void test_noise(void) {
  uint64_t seed = 4711, opened = 0;
  rt_telemetry_t *t = make_block();
  rt_telemetry_t *good = make_block();
  rt_bank_t *bank = make_bank();
  for (int round = 0; round < ROUNDS; round++) {
    const uint64_t header = offsetof(rt_telemetry_t, banks) + sizeof(rt_counters_t);
    memcpy(t, good, BYTES);
    for (uint64_t n = check_random(&seed) % 4 + 1; n > 0; n--) {
      const uint64_t where = check_random(&seed) % (round % 2 ? header : BYTES);
      ((unsigned char *)t)[where] = (unsigned char)check_random(&seed);
    }
    rt_view_t view;
    if (rt_view_open(&view, t, BYTES) != RT_VIEW_OK) continue;
    opened++;
    CHECK(view.record_keep <= view.record_capacity && view.record_capacity == CAPACITY);
    char text[TEXT];
    CHECK(rt_view_copy_text(&view, text) <= TEXT);
    uint64_t written;
    if (rt_telemetry_snapshot(view.block, bank, &written, 3)) continue;
    (void)rt_view_is_sound(bank);
    rt_record_t *records = malloc(KEEP * sizeof *records);
    const uint64_t count = rt_view_count(&view, bank->counters.first_record, written, UINT64_MAX);
    CHECK(count <= CAPACITY);
    if (count > KEEP) records = realloc(records, count * sizeof *records); /* record_keep is only a value */
    CHECK(rt_view_copy_records(&view, records, written, count) <= count);
    free(records);
  }
  CHECK(opened > ROUNDS / 10 && opened < ROUNDS); /* both were met */
  free(bank);
  free(good);
  free(t);
}

int main(void) {
  test_a_good_block_is_read();
  test_damaged_headers_are_refused();
  test_files_of_another_size_are_refused();
  test_text_that_says_it_is_longer_than_its_room_is_refused();
  test_a_header_that_changes_after_the_check_changes_nothing();
  test_a_writer_that_died_in_the_middle_ends_the_reader_too();
  test_histograms_that_contradict_the_counters_are_unsound();
  test_noise();
  return CHECK_DONE();
}
