/* The newest value for several readers in every interleaving of two threads, with every value that the memory model
 * lets a load return, and with one side killed at each of its steps. */
#include "model.h"
#include "rtloop/shared_latest.h"

enum { WORDS = 5, STRIDE = 64, MOST_READERS = 2 }; /* of a value and its stamp */

static int readers, victim, reads;
static uint64_t writes;
static uint64_t abandoned; /* the word that the second reader left behind, when it died before all this */
static _Alignas(64) char region[sizeof(rt_shared_latest_block_t) + MOST_READERS * 64 + (MOST_READERS + 2) * STRIDE];
static rt_shared_latest_block_t *const block = (rt_shared_latest_block_t *)(void *)region;
static rt_shared_latest_t writer, sides[MOST_READERS];
static uint64_t seen[MOST_READERS];
static int done;

static void before(void) {
  memset(region, 0, sizeof region);
  CHECK(rt_shared_latest_bytes(8 * WORDS, (uint64_t)readers) ==
        sizeof region - (size_t)(MOST_READERS - readers) * (64 + STRIDE));
  model_share(&block->newest, 0, BOTH);
  for (int i = 0; i < readers; i++) {
    block->held[i].word = i == 1 ? abandoned : 0;
    model_share(&block->held[i].word, block->held[i].word, BOTH);
  }
  model_data(region + sizeof(rt_shared_latest_block_t) + (size_t)readers * 64, 8, (size_t)(readers + 2) * STRIDE / 8);
  memset(seen, 0, sizeof seen);
  done = 0;
  model.victim = victim;
  model.deaths = victim != MAIN;
}

/* A value is its number, so that a successor goes on with what its predecessor has not published. */
static void write_all(void) {
  CHECK(rt_shared_latest_open(&writer, block, 8 * WORDS, (uint64_t)readers) == 0);
  rt_shared_latest_begin_writing(&writer);
  while (writer.number < writes) {
    uint64_t value[WORDS];
    for (int k = 0; k < WORDS; k++) value[k] = writer.number + 1;
    if (writer.number % 2) {
      rt_shared_latest_write(&writer, value); /* without a time */
    } else {
      rt_shared_latest_write_at(&writer, value, (int64_t)(100 * value[0]));
    }
    CHECK(writer.number == value[0] && writer.back < (uint32_t)readers + 2);
  }
}

static void write_all_as_victim(void) {
  (void)setjmp(model.successor);
  write_all();
}

static void begin(int i) {
  CHECK(rt_shared_latest_open(&sides[i], block, 8 * WORDS, (uint64_t)readers) == 0);
  CHECK(rt_shared_latest_begin_reading(&sides[i], (uint32_t)i) == 0);
}

static void read_once(int i) {
  uint64_t value[WORDS];
  const uint64_t former = sides[i].number;
  const int is_new = rt_shared_latest_read(&sides[i], value);
  for (int k = 1; k < WORDS; k++) CHECK(value[k] == value[0]);
  CHECK(value[0] == sides[i].number && value[0] >= seen[i] && is_new == (value[0] > former));
  const rt_latest_stamp_t stamp = *sides[i].stamp;
  if (value[0] % 2) {
    CHECK(stamp.time == (int64_t)(100 * value[0]) && stamp.count == value[0]);
  } else {
    CHECK(stamp.count < value[0] || stamp.count == 0); /* an older one's */
  }
  seen[i] = value[0];
}

static void read_all(void) {
  const int others = abandoned ? 1 : readers;
  for (int i = 0; i < others; i++) begin(i);
  for (; done < reads; done++) read_once(done % others);
}

static void read_all_as_victim(void) {
  (void)setjmp(model.successor);
  read_all();
}

static void after(void) {
  begin(0);
  read_once(0);
  CHECK(seen[0] == writes); /* in the end the newest one */
}

static uint64_t explore(int of_readers, int killed, uint64_t left_behind, uint64_t to_write, int to_read) {
  readers = of_readers;
  victim = killed;
  abandoned = left_behind;
  writes = to_write;
  reads = to_read;
  const uint64_t runs = model_explore(before, victim == LEFT ? write_all_as_victim : write_all,
                                      victim == RIGHT ? read_all_as_victim : read_all, after);
  CHECK(runs > 100);
  return runs;
}

int main(void) {
  uint64_t runs = explore(1, MAIN, 0, 3, 2) + explore(1, LEFT, 0, 3, 1) + explore(1, RIGHT, 0, 2, 1);
  runs += explore(2, MAIN, RT_SHARED_LATEST_WANTED, 2, 1) + explore(2, MAIN, 0, 1, 2) + explore(2, LEFT, 0, 1, 1);
  printf("%llu executions\n", (unsigned long long)runs);
  return CHECK_DONE();
}
