/* The newest value in every interleaving of two threads, and with every value that the memory model lets a load
 * return. */
#include "model.h"
#include "rtloop/latest.h"

enum { WRITES = 4, READS = 4, WORDS = 5, STRIDE = 64 }; /* of a value and its stamp */

static _Alignas(64) char region[sizeof(rt_latest_t) + 3 * STRIDE];
static rt_latest_t *const latest = (rt_latest_t *)(void *)region;
static uint64_t seen[READS + 1];
static int news;

static void before(void) {
  memset(region, 0, sizeof region);
  CHECK(rt_latest_init(latest, 8 * WORDS) == 0 && rt_latest_bytes(8 * WORDS) == sizeof region);
  model_share(&latest->between, latest->between, BOTH);
  model_data(latest->places, 8, 3 * STRIDE / 8);
  news = 0;
}

static void write_all(void) {
  for (uint64_t i = 1; i <= WRITES; i++) {
    uint64_t value[WORDS];
    for (int k = 0; k < WORDS; k++) value[k] = i;
    if (i % 2) {
      rt_latest_write_at(latest, value, (int64_t)(100 * i));
    } else {
      rt_latest_write(latest, value); /* without a time */
    }
  }
}

static void read_once(int i) {
  uint64_t value[WORDS];
  const uint64_t former = i ? seen[i - 1] : 0;
  const int is_new = rt_latest_read(latest, value);
  for (int k = 1; k < WORDS; k++) CHECK(value[k] == value[0]);
  CHECK(value[0] >= former && is_new == (value[0] > former)); /* only ever newer, and told whether it is */
  const rt_latest_stamp_t stamp = rt_latest_stamp(latest);
  if (value[0] % 2) {
    CHECK(stamp.time == (int64_t)(100 * value[0]) && stamp.count == value[0]);
  } else {
    CHECK(stamp.time == (int64_t)(100 * stamp.count) &&
          (stamp.count < value[0] || stamp.count == 0)); /* an older one's */
  }
  seen[i] = value[0];
  news += is_new;
}

static void read_all(void) {
  for (int i = 0; i < READS; i++) read_once(i);
}

static void after(void) {
  read_once(READS);
  CHECK(seen[READS] == WRITES); /* in the end the newest one */
}

int main(void) {
  const uint64_t runs = model_explore(before, write_all, read_all, after);
  CHECK(runs > 100);
  printf("%llu executions\n", (unsigned long long)runs);
  return CHECK_DONE();
}
