/* The broadcast ring: every record is received or counted by every reader, none is torn, and no block makes a reader
 * leave it. */
#include "rtloop/broadcast.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"

#ifndef ROUNDS
#define ROUNDS 20000
#endif

enum { WORDS = 5, RECORD = 8 * WORDS, TEXT = 64, READERS = 3, RECORDS = 100000 };

/* Allocate no byte more than needed, so that an access past the end is seen. */
static rt_broadcast_t *make(rt_broadcast_writer_t *writer, uint64_t places) {
  const uint64_t bytes = rt_broadcast_bytes(RECORD, places, TEXT);
  void *block;
  CHECK(bytes == sizeof(rt_broadcast_t) + TEXT + places * RECORD);
  CHECK(posix_memalign(&block, RT_CACHE_LINE, bytes) == 0);
  memset(block, 0, bytes);
  CHECK(rt_broadcast_init(writer, block, RECORD, places, "about", 5, TEXT) == 0);
  return block;
}

static void write_one(rt_broadcast_writer_t *writer, uint64_t number) {
  uint64_t *const place = (uint64_t *)(void *)rt_broadcast_begin(writer);
#ifdef BROKEN_PUBLISH /* nothing orders the words before their publication */
  for (int i = 0; i < WORDS; i++) place[i] = number;
  writer->next = (char *)(place + WORDS) == writer->end ? writer->records : (char *)(place + WORDS);
  rt_store_relaxed(&writer->block->written, writer->block->written + 1);
#else
  for (int i = 0; i < WORDS; i++) rt_store_relaxed(&place[i], number);
  rt_broadcast_end(writer, (char *)place);
#endif
}

static void test_sizes(void) {
  CHECK(rt_broadcast_places(1) == 2 && rt_broadcast_places(2) == 4 && rt_broadcast_places(3) == 4);
  CHECK(rt_broadcast_places(4) == 8 && rt_broadcast_places(16384) == 32768 && rt_broadcast_places(16383) == 16384);
  CHECK(rt_broadcast_bytes(0, 2, 0) == 0 && rt_broadcast_bytes(12, 2, 0) == 0 &&
        rt_broadcast_bytes(1 << 17, 2, 0) == 0);
  CHECK(rt_broadcast_bytes(8, 1, 0) == 0 && rt_broadcast_bytes(8, 3, 0) == 0 && rt_broadcast_bytes(8, 2, 8) == 0);
  CHECK(rt_broadcast_bytes(8, UINT64_C(1) << 33, 0) == 0 && rt_broadcast_bytes(8, 2, UINT64_C(1) << 21) == 0);
  rt_broadcast_writer_t writer;
  rt_broadcast_t *const block = make(&writer, 4);
  CHECK(rt_broadcast_init(&writer, block, RECORD, 4, "", TEXT + 1, TEXT) == -EINVAL);
  free(block);
}

/* Records are read once and in order; overwritten ones are counted; the newest stays where it is. */
static void test_one_thread(void) {
  rt_broadcast_writer_t writer;
  rt_broadcast_reader_t early, late;
  rt_broadcast_t *const block = make(&writer, 8);
  const uint64_t bytes = rt_broadcast_bytes(RECORD, 8, TEXT);
  uint64_t records[8 * WORDS], first, next = 0;
  CHECK(rt_broadcast_open(&early, block, bytes, 0) == RT_BROADCAST_OK);
  CHECK(memcmp(early.text, "about", 6) == 0 && early.text_bytes == TEXT);
  CHECK(rt_broadcast_read(&early, (char *)records, 8, &first) == 0 && !rt_broadcast_latest(&early, (char *)records, 3));
  for (int turn = 0; turn < 50; turn++) {
    for (int i = 0; i < turn % 8; i++) write_one(&writer, next + (uint64_t)i);
    CHECK(rt_broadcast_available(&early) == (uint64_t)(turn % 8));
    for (int left = turn % 8; left > 0; left -= 3) { /* three at a time */
      const uint64_t count = rt_broadcast_read(&early, (char *)records, 3, &first);
      CHECK(count == (uint64_t)(left < 3 ? left : 3) && first == 0);
      for (uint64_t i = 0; i < count; i++) {
        for (int k = 0; k < WORDS; k++) CHECK(records[WORDS * i + k] == next);
        next++;
      }
    }
    CHECK(early.lost == 0 && early.position == next && block->written == next);
  }
  CHECK(rt_broadcast_latest(&early, (char *)records, 3) == 1 && records[0] == next - 1);
  for (uint64_t i = 0; i < 20; i++) write_one(&writer, next + i);
  CHECK(rt_broadcast_available(&early) == 7);
  CHECK(rt_broadcast_open(&late, block, bytes, 1) == RT_BROADCAST_OK && rt_broadcast_available(&late) == 7);
  for (rt_broadcast_reader_t *reader = &early; reader; reader = reader == &early ? &late : NULL) {
    CHECK(rt_broadcast_read(reader, (char *)records, 100, &first) == 7 && first == 0 && records[0] == next + 13);
    CHECK(reader->lost == (reader == &early ? 13 : 0) && rt_broadcast_available(reader) == 0);
  }
  free(block);
}

/* Sizes that another process has made up are refused, and whatever changes after the check moves no reader out of the
 * block: the address sanitizer would see it. */
static void test_hostile(void) {
  rt_broadcast_writer_t writer;
  rt_broadcast_reader_t reader;
  const uint64_t places = 4, bytes = rt_broadcast_bytes(RECORD, places, TEXT);
  rt_broadcast_t *const block = make(&writer, places);
  uint64_t records[4 * WORDS], first, seed = 88172645463325252u;
  for (uint64_t i = 0; i < 10; i++) write_one(&writer, i);
  const rt_broadcast_t good = *block;
  CHECK(rt_broadcast_open(&reader, block, sizeof *block - 1, 0) == RT_BROADCAST_SHORT);
  CHECK(rt_broadcast_open(&reader, block, bytes - 1, 0) == RT_BROADCAST_SIZES && reader.block == NULL);
  block->magic++;
  CHECK(rt_broadcast_open(&reader, block, bytes, 0) == RT_BROADCAST_MAGIC_);
  *block = good;
  block->version++;
  CHECK(rt_broadcast_open(&reader, block, bytes, 0) == RT_BROADCAST_VERSION_);
  *block = good;
  block->header_bytes += 8;
  CHECK(rt_broadcast_open(&reader, block, bytes, 0) == RT_BROADCAST_SIZES);
  uint64_t *const sizes[] = {&block->record_bytes, &block->places, &block->text_bytes};
  const uint64_t odd[] = {
      0, 1, 3, 5, 8, 16, 64, 1 << 20, UINT64_C(1) << 32, UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 63};
  for (unsigned i = 0; i < 3; i++) {
    for (unsigned k = 0; k < sizeof odd / sizeof *odd; k++) {
      *block = good;
      if (*sizes[i] == odd[k]) continue;
      *sizes[i] = odd[k];
      CHECK(rt_broadcast_open(&reader, block, bytes, 1) == RT_BROADCAST_SIZES);
    }
  }
  *block = good;
  for (int round = 0; round < ROUNDS; round++) {
    if (round % 16 == 0) {
      *block = good;
      block->written = check_random(&seed) >> (check_random(&seed) % 64);
      CHECK(rt_broadcast_open(&reader, block, bytes, round % 32 == 0) == RT_BROADCAST_OK);
    }
    memset(block, (int)check_random(&seed), sizeof *block); /* all sizes are other ones now */
    block->written = check_random(&seed) >> (check_random(&seed) % 64);
    const uint64_t position = reader.position, count = rt_broadcast_read(&reader, (char *)records, 4, &first);
    if ((int64_t)(block->written - position) <= 0) CHECK(count == 0 && reader.position == position);
    CHECK(count + first <= 3 && rt_broadcast_available(&reader) <= 3);
    (void)rt_broadcast_latest(&reader, (char *)records, 3);
  }
  free(block);
}

static rt_broadcast_writer_t shared;
static uint64_t shared_bytes;
static uint32_t is_done, ready;

static void *read_all(void *argument) {
  const uint64_t pause = (uint64_t)(uintptr_t)argument; /* each is slower than the one before */
  rt_broadcast_reader_t reader;
  uint64_t records[16 * WORDS], record[WORDS], first, received = 0, next = 0, newest = 0;
  CHECK(rt_broadcast_open(&reader, shared.block, shared_bytes, 1) == RT_BROADCAST_OK && reader.position == 0);
  __atomic_fetch_add(&ready, 1, __ATOMIC_RELEASE);
  for (int is_last = 0; !is_last;) {
    is_last = rt_load_acquire(&is_done) != 0;
    for (;;) {
      const uint64_t begin = reader.position, count = rt_broadcast_read(&reader, (char *)records, 16, &first);
      if (reader.position == begin) break;
      for (uint64_t i = first; i < first + count; i++) {
        for (int k = 1; k < WORDS; k++) CHECK(records[WORDS * i + k] == records[WORDS * i]);
        CHECK(records[WORDS * i] >= next);
        next = records[WORDS * i] + 1;
      }
      received += count;
      CHECK(received + reader.lost == reader.position);
    }
    if (rt_broadcast_latest(&reader, (char *)record, 100)) {
      CHECK(record[WORDS - 1] == record[0] && record[0] >= newest);
      newest = record[0];
    }
    for (uint64_t i = 0; i < pause; i++) sched_yield();
  }
  CHECK(received + reader.lost == RECORDS && received >= 15);
  return NULL;
}

static void test_threads(void) {
  pthread_t threads[READERS];
  rt_broadcast_t *const block = make(&shared, 16);
  shared_bytes = rt_broadcast_bytes(RECORD, 16, TEXT);
  for (uintptr_t i = 0; i < READERS; i++) CHECK(pthread_create(&threads[i], NULL, read_all, (void *)(20 * i)) == 0);
  while (__atomic_load_n(&ready, __ATOMIC_ACQUIRE) < READERS) sched_yield();
  for (uint64_t i = 0; i < RECORDS; i++) {
    write_one(&shared, i);
    if (i % 64 == 0) sched_yield(); /* not always faster than everybody */
  }
  rt_store_release(&is_done, 1);
  for (int i = 0; i < READERS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  free(block);
}

int main(void) {
  test_sizes();
  test_one_thread();
  test_hostile();
  test_threads();
  return CHECK_DONE();
}
