/* The broadcast ring in every interleaving of its writer and a reader, and with every value that the memory model lets a
 * load return. */
#include "model.h"

#include "rtloop/broadcast.h"

enum { RING = 2, WORDS = 2, RECORD = 8 * WORDS, MOST = 8 };

static _Alignas(64) char region[sizeof(rt_broadcast_t) + RING * RECORD];
static rt_broadcast_t *const block = (rt_broadcast_t *)(void *)region;
static rt_broadcast_writer_t writer;
static rt_broadcast_reader_t reader;
static uint64_t received[MOST], received_count, to_write;

static void write_one(uint64_t number) {
  uint64_t *const place = (uint64_t *)(void *)rt_broadcast_begin(&writer);
  for (int i = 0; i < WORDS; i++) rt_store_relaxed(&place[i], 100 + number);
  rt_broadcast_end(&writer, (char *)place);
}

static void before(void) {
  memset(region, 0, sizeof region);
  CHECK(rt_broadcast_init(&writer, block, RECORD, RING, "", 0, 0) == 0);
  CHECK(rt_broadcast_open(&reader, block, sizeof region, 1) == RT_BROADCAST_OK);
  received_count = 0;
  model_share(&block->written, 0, LEFT);
  for (uint64_t i = 0; i < RING * WORDS; i++) model_share(writer.records + 8 * i, 0, LEFT);
}

/* A word of the block is one of two places by number: model.h knows an address, not what it holds. */
static void write_all(void) {
  for (uint64_t i = 0; i < to_write; i++) write_one(i);
}

static void read_some(void) {
  uint64_t records[RING * WORDS], first;
  const uint64_t begin = reader.position, lost = reader.lost;
  const uint64_t count = rt_broadcast_read(&reader, (char *)records, RING, &first);
  for (uint64_t i = first; i < first + count; i++) {
    for (int k = 1; k < WORDS; k++) CHECK(records[WORDS * i + k] == records[WORDS * i]); /* never torn */
    received[received_count++] = records[WORDS * i] - 100;
  }
  CHECK(count + reader.lost - lost == reader.position - begin); /* received or counted as lost */
}

static void read_twice(void) {
  read_some();
  read_some();
}

static void look_at_latest(void) {
  uint64_t record[WORDS];
  if (rt_broadcast_latest(&reader, (char *)record, 2)) {
    CHECK(record[1] == record[0] && record[0] >= 100 && record[0] < 100 + to_write);
    received_count++;
  }
}

static void after(void) {
  while (rt_broadcast_available(&reader)) read_some();
  CHECK(received_count + reader.lost == to_write && received_count >= 1);
  for (uint64_t i = 1; i < received_count; i++) CHECK(received[i] > received[i - 1]); /* in order, and none twice */
  CHECK(received[received_count - 1] == to_write - 1); /* the newest one is always there */
}

static void after_latest(void) {
  look_at_latest();
  CHECK(received_count >= 1);
}

int main(void) {
  uint64_t runs = 0;
  for (to_write = 1; to_write <= 3; to_write++) {
    const uint64_t found = model_explore(before, write_all, read_twice, after);
    const uint64_t latest = model_explore(before, write_all, look_at_latest, after_latest);
    CHECK(found > 10 && latest > 5);
    printf("%d: %llu, %llu\n", (int)to_write, (unsigned long long)found, (unsigned long long)latest);
    runs += found + latest;
  }
  printf("%llu executions\n", (unsigned long long)runs);
  return CHECK_DONE();
}
