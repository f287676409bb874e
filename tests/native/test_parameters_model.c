/* Sets of parameters in every interleaving of the loop and the holder of the writers' lock, which may be killed before
 * each of its steps, with every value that the memory model lets a load return. */
#include "model.h"
#include "rtloop/parameters.h"

enum { WRITES = 4, TAKES = 2, SET = 16, PLACE = 192 };

static _Alignas(64) char region[sizeof(rt_parameters_block_t) + 3 * PLACE + SET];
static _Alignas(8) char staged[sizeof(rt_parameters_writer_t) + SET], records[16 * 256];
static uint64_t used[SET / 8], fields[2], seen[TAKES + 1];
static const rt_parameter_t items[] = {
    {.address = &fields[0], .offset = 0, .bytes = 8, .count = 1, .type = RT_PARAMETER_U8, .high.natural = WRITES},
    {.address = &fields[1], .offset = 8, .bytes = 8, .count = 1, .type = RT_PARAMETER_U8, .high.natural = WRITES},
};
static rt_parameters_t parameters;
static uint64_t published; /* by the writers that were not killed */

static void fill(char *place, uint64_t value) {
  rt_parameters_writer_t writer = {.pid = (int64_t)value};
  memset(place, 0, sizeof writer + SET);
  __builtin_memcpy(place, &writer, sizeof writer);
  for (int i = 0; i < SET / 8; i++) __builtin_memcpy(place + sizeof writer + 8 * i, &value, 8);
}

static void before(void) {
  char place[sizeof(rt_parameters_writer_t) + SET];
  memset(region, 0, sizeof region);
  rt_parameters_block_t *const block = (rt_parameters_block_t *)(void *)region;
  parameters = (rt_parameters_t){.view = {.block = block, .set_bytes = SET},
                                 .items = items,
                                 .count = 2,
                                 .staged = staged,
                                 .records = records,
                                 .capacity = 16,
                                 .used = used};
  CHECK(rt_parameters_place_bytes(SET) == PLACE && rt_parameters_bytes(SET, 0) == sizeof region);
  fill(place, 0);
  rt_parameters_begin(&parameters, place, 1);
  model_share(&block->state, block->state, BOTH);
  model_data(rt_parameters_place(&parameters.view, 0), 8, 3 * PLACE / 8);
  published = 0;
}

/* A writer that is killed with a part of its set written. The next one has the lock. */
static void begin_to_write(const char *place) {
  const uint64_t state = rt_load_acquire(&parameters.view.block->state);
  const uint32_t back = 3 - RT_PARAMETERS_FRONT(state) - RT_PARAMETERS_BETWEEN(state);
  rt_parameters_store_words((uint64_t *)(void *)rt_parameters_place(&parameters.view, back), place, 144);
}

static void write_all(void) {
  char place[sizeof(rt_parameters_writer_t) + SET];
  for (uint64_t i = 1; i <= WRITES; i++) {
    fill(place, i);
    if (i > 2 && model_choose(2)) begin_to_write(place);
    CHECK(rt_parameters_publish(&parameters.view, place) == 0);
    published = i;
  }
}

static void take_once(int i) {
  const rt_cycle_t cycle = {.index = (uint64_t)i};
  rt_parameters_apply(&parameters, &cycle);
  CHECK(fields[0] == fields[1]); /* all of a set or none of it */
  CHECK(parameters.refused == 0 && fields[0] == parameters.number);
  CHECK(fields[0] >= (i ? seen[i - 1] : 0)); /* only ever newer ones */
  rt_parameters_record_t last;
  __builtin_memcpy(&last, rt_parameters_record(&parameters, parameters.written - 1), sizeof last);
  CHECK(last.number == fields[0] && last.writer.pid == (int64_t)fields[0]); /* with the name of who wrote it */
  seen[i] = fields[0];
}

static void take_all(void) {
  for (int i = 0; i < TAKES; i++) take_once(i);
}

static void after(void) {
  take_once(TAKES);
  CHECK(seen[TAKES] == published && published == WRITES); /* in the end the last one */
}

int main(void) {
  const uint64_t runs = model_explore(before, write_all, take_all, after);
  CHECK(runs > 100);
  printf("%llu executions\n", (unsigned long long)runs);
  return CHECK_DONE();
}
