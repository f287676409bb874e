/* Parameters: types and limits, a hostile word, the record, and writers, readers and the loop as threads. */
#include "rtloop/live.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"

enum { WORDS = 37, SET = 8 * WORDS, CAPACITY = 16 };

static uint64_t fields[WORDS];
static rt_parameter_t items[WORDS];
static rt_parameters_t parameters;
static rt_live_t live;

static void fill(char *place, uint64_t value) {
  rt_parameters_writer_t writer = {.pid = (int64_t)value, .tid = -(int64_t)value};
  memcpy(place, &writer, sizeof writer);
  for (int i = 0; i < WORDS; i++) memcpy(place + sizeof writer + 8 * i, &value, 8);
}

static void make(uint64_t high) {
  char place[sizeof(rt_parameters_writer_t) + SET];
  const uint64_t bytes = rt_parameters_bytes(SET, 5);
  rt_parameters_block_t *const block = aligned_alloc(RT_CACHE_LINE, (bytes + 63) / 64 * 64);
  CHECK(block);
  memset(block, 0, bytes);
  for (int i = 0; i < WORDS; i++) {
    items[i] = (rt_parameter_t){.address = &fields[i],
                                .offset = (uint32_t)(8 * i),
                                .bytes = 8,
                                .count = 1,
                                .type = RT_PARAMETER_U8,
                                .high.natural = high};
  }
  parameters = (rt_parameters_t){.view = {.block = block, .set_bytes = SET, .text_bytes = 5},
                                 .items = items,
                                 .count = WORDS,
                                 .staged = malloc(sizeof place),
                                 .records = malloc(CAPACITY * rt_parameters_record_bytes(SET)),
                                 .capacity = CAPACITY,
                                 .used = malloc(SET)};
  fill(place, 0);
  rt_parameters_begin(&parameters, place, 1);
  memcpy(rt_parameters_text(&parameters.view), "about", 5);
  rt_live_init(&live);
  const rt_cycle_t cycle = {.index = 0};
  rt_live_before_step(&live, &cycle); /* a loop without parameters */
  rt_live_use_parameters(&live, &parameters);
}

static void release(void) {
  free(parameters.view.block);
  free(parameters.staged);
  free(parameters.records);
  free(parameters.used);
}

static void publish(uint64_t value) {
  char place[sizeof(rt_parameters_writer_t) + SET];
  fill(place, value);
  CHECK(rt_parameters_publish(&parameters.view, place) == 0);
}

static void step(uint64_t index) {
  const rt_cycle_t cycle = {.index = index};
  rt_live_before_step(&live, &cycle);
  for (int i = 1; i < WORDS; i++) CHECK(fields[i] == fields[0]);
}

static int is_within(uint32_t type, const void *value, size_t bytes, rt_parameter_limit_t low,
                     rt_parameter_limit_t high) {
  char two[16];
  memcpy(two, value, bytes);
  memcpy(two + bytes, value, bytes);
  const rt_parameter_t item = {.count = 2, .bytes = (uint32_t)(2 * bytes), .type = type, .low = low, .high = high};
  return rt_parameter_is_within(&item, two);
}

#define WHOLE(type, kind, value, l, h)                                                                                 \
  is_within(kind, &(type){(type)(value)}, sizeof(type), (rt_parameter_limit_t){.whole = (l)},                          \
            (rt_parameter_limit_t){.whole = (h)})
#define NATURAL(type, kind, value, l, h)                                                                               \
  is_within(kind, &(type){(type)(value)}, sizeof(type), (rt_parameter_limit_t){.natural = (l)},                        \
            (rt_parameter_limit_t){.natural = (h)})
#define REAL(type, kind, value, l, h)                                                                                  \
  is_within(kind, &(type){(type)(value)}, sizeof(type), (rt_parameter_limit_t){.real = (l)},                           \
            (rt_parameter_limit_t){.real = (h)})
#define CHECK_WHOLE(type, kind)                                                                                        \
  CHECK(WHOLE(type, kind, -5, -5, 5) && WHOLE(type, kind, 5, -5, 5));                                                  \
  CHECK(!WHOLE(type, kind, -6, -5, 5) && !WHOLE(type, kind, 6, -5, 5))
#define CHECK_NATURAL(type, kind)                                                                                      \
  CHECK(NATURAL(type, kind, 2, 2, 200) && NATURAL(type, kind, 200, 2, 200));                                           \
  CHECK(!NATURAL(type, kind, 1, 2, 200) && !NATURAL(type, kind, 201, 2, 200))
#define CHECK_REAL(type, kind, most)                                                                                   \
  CHECK(REAL(type, kind, -0.5, -0.5, 2) && REAL(type, kind, 2, -0.5, 2) && REAL(type, kind, -most, -most, most));      \
  CHECK(!REAL(type, kind, -0.5625, -0.5, 2) && !REAL(type, kind, 2.125, -0.5, 2));                                     \
  CHECK(!REAL(type, kind, (double)NAN, -most, most) && !REAL(type, kind, (double)INFINITY, -most, most) &&             \
        !REAL(type, kind, -(double)INFINITY, -most, most))

static void test_types(void) {
  CHECK_WHOLE(int8_t, RT_PARAMETER_I1);
  CHECK_WHOLE(int16_t, RT_PARAMETER_I2);
  CHECK_WHOLE(int32_t, RT_PARAMETER_I4);
  CHECK_WHOLE(int64_t, RT_PARAMETER_I8);
  CHECK_NATURAL(uint8_t, RT_PARAMETER_U1);
  CHECK_NATURAL(uint16_t, RT_PARAMETER_U2);
  CHECK_NATURAL(uint32_t, RT_PARAMETER_U4);
  CHECK_NATURAL(uint64_t, RT_PARAMETER_U8);
  CHECK(NATURAL(uint64_t, RT_PARAMETER_U8, UINT64_MAX, 0, UINT64_MAX));
  CHECK(WHOLE(int64_t, RT_PARAMETER_I8, INT64_MIN, INT64_MIN, INT64_MAX));
  CHECK(NATURAL(uint8_t, RT_PARAMETER_BOOL, 1, 0, 1) && !NATURAL(uint8_t, RT_PARAMETER_BOOL, 2, 0, 1));
  CHECK_REAL(float, RT_PARAMETER_F4, (double)FLT_MAX);
  CHECK_REAL(double, RT_PARAMETER_F8, DBL_MAX);
  CHECK(!NATURAL(uint64_t, 99, 1, 0, 2)); /* no type */
  const double pair[2] = {1, 3};          /* each element counts */
  const rt_parameter_t both = {.count = 2, .bytes = 16, .type = RT_PARAMETER_F8, .high.real = 2};
  CHECK(!rt_parameter_is_within(&both, (const char *)pair));
}

static void test_sequence(void) {
  uint64_t seed = 5, published = 0, about[3], number;
  char place[sizeof(rt_parameters_writer_t) + SET], values[SET];
  make(UINT64_MAX);
  for (uint64_t i = 0; i < 10000; i++) {
    if (check_random(&seed) % 2) {
      publish(++published);
    } else {
      step(i);
      CHECK(fields[0] == published && parameters.number == published);
    }
    CHECK(rt_parameters_is_state(parameters.view.block->state));
    CHECK(rt_parameters_read_asked(&parameters.view, place, &number, 1) == 0 && number == published);
    CHECK(((rt_parameters_writer_t *)(void *)place)->pid == (int64_t)published);
    CHECK(rt_parameters_read_shown(&parameters.view, values, about, 1) == 0);
    CHECK(memcmp(values, fields, SET) == 0 && about[0] == fields[0] && about[2] == 0);
    CHECK(rt_parameters_read_used(&parameters, values, about, 1) == 0);
    CHECK(memcmp(values, fields, SET) == 0 && about[0] == fields[0]);
  }
  CHECK(memcmp(rt_parameters_text(&parameters.view), "about", 5) == 0);
  release();
}

static void test_refusal(void) {
  make(10);
  publish(10);
  step(1);
  publish(11);
  step(2);
  CHECK(fields[0] == 10 && parameters.refused == 1 && parameters.view.block->refused == 1 && parameters.cycle == 1);
  step(3);
  CHECK(parameters.refused == 1); /* once */
  publish(9);
  step(4);
  CHECK(fields[0] == 9 && parameters.cycle == 4);
  for (uint64_t places = 0; places < 16; places++) { /* a word that is no state */
    const uint64_t state = UINT64_C(77) << 8 | RT_PARAMETERS_NEW | places, refused = parameters.refused;
    if (rt_parameters_is_state(state)) continue;
    parameters.view.block->state = state;
    step(5 + places);
    CHECK(fields[0] == 9 && parameters.refused == refused + 1);
    CHECK(rt_parameters_is_state(parameters.view.block->state));
    parameters.view.block->state = state & ~RT_PARAMETERS_NEW; /* nor does a writer use it */
    publish(8);
    step(6 + places);
    CHECK(fields[0] == 8);
    publish(9);
    step(7 + places);
  }
  fields[3] = 77; /* the step has changed one: it is left alone as long as its value is the same */
  publish(9);
  const rt_cycle_t cycle = {.index = 90};
  rt_live_before_step(&live, &cycle);
  CHECK(fields[3] == 77 && fields[4] == 9);
  release();
}

static void test_record(void) {
  char copied[CAPACITY * 512];
  uint64_t first = 99;
  const uint64_t bytes = rt_parameters_record_bytes(SET);
  CHECK(bytes <= 512);
  make(UINT64_MAX);
  for (uint64_t i = 1; i <= 40; i++) {
    publish(i);
    step(10 * i);
  }
  CHECK(parameters.written == 41);
  const uint64_t count = rt_parameters_copy_records(&parameters, 0, copied, CAPACITY, &first);
  CHECK(count == CAPACITY - 1 && first == 26); /* the oldest one may be overwritten at any time */
  for (uint64_t i = 0; i < count; i++) {
    rt_parameters_record_t record;
    uint64_t value;
    memcpy(&record, copied + i * bytes, sizeof record);
    memcpy(&value, copied + i * bytes + sizeof record, 8);
    CHECK(record.number == first + i && record.cycle == 10 * (first + i) && value == first + i);
    CHECK(record.writer.tid == -(int64_t)(first + i));
  }
  CHECK(rt_parameters_copy_records(&parameters, 39, copied, CAPACITY, &first) == 2 && first == 39);
  CHECK(rt_parameters_copy_records(&parameters, 41, copied, CAPACITY, &first) == 0 && first == 41);
  release();
}

static void test_open(void) {
  rt_parameters_view_t view;
  make(10);
  rt_parameters_block_t *const block = parameters.view.block;
  const uint64_t bytes = rt_parameters_bytes(SET, 5);
  CHECK(rt_parameters_open(&view, block, bytes) == 0 && view.set_bytes == SET && view.text_bytes == 5);
  CHECK(rt_parameters_open(&view, block, bytes - 1) == -EPROTO && rt_parameters_open(&view, block, 8) == -EPROTO);
  block->set_bytes = SET + 8;
  CHECK(rt_parameters_open(&view, block, bytes) == -EPROTO);
  block->set_bytes = UINT32_MAX;
  CHECK(rt_parameters_open(&view, block, bytes) == -EPROTO);
  block->set_bytes = SET;
  block->text_bytes = UINT32_MAX;
  CHECK(rt_parameters_open(&view, block, bytes) == -EPROTO);
  block->text_bytes = 5;
  block->header_bytes++;
  CHECK(rt_parameters_open(&view, block, bytes) == -EPROTO);
  block->header_bytes--;
  block->version++;
  CHECK(rt_parameters_open(&view, block, bytes) == -ENOTSUP);
  block->version--;
  block->magic++;
  CHECK(rt_parameters_open(&view, block, bytes) == -EPROTO);
  release();
}

static uint64_t total = 20000; /* or RT_ITEMS of the environment */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t published;
static uint32_t is_over;

static void *write_sets(void *unused) {
  char place[sizeof(rt_parameters_writer_t) + SET];
  for (uint64_t i = 0; i < total / 2; i++) {
    pthread_mutex_lock(&mutex);
    fill(place, ++published);
    CHECK(rt_parameters_publish(&parameters.view, place) == 0);
    pthread_mutex_unlock(&mutex);
    if (i % 64 == 0) sched_yield();
  }
  return unused;
}

static uint64_t number_of(const char *values) {
  for (int i = 1; i < WORDS; i++) CHECK(memcmp(values, values + 8 * i, 8) == 0);
  uint64_t number;
  memcpy(&number, values, 8);
  return number;
}

static void *read_sets(void *unused) {
  char place[sizeof(rt_parameters_writer_t) + SET], values[SET], copied[CAPACITY * 512];
  uint64_t number, about[3], first, asked = 0, shown = 0, used = 0;
  while (!rt_load_acquire(&is_over)) {
    if (rt_parameters_read_asked(&parameters.view, place, &number, 100) == 0) {
      CHECK(number_of(place + sizeof(rt_parameters_writer_t)) == number && number >= asked);
      asked = number;
    }
    if (rt_parameters_read_shown(&parameters.view, values, about, 100) == 0) {
      CHECK(number_of(values) == about[0] && about[0] >= shown);
      shown = about[0];
    }
    if (rt_parameters_read_used(&parameters, values, about, 100) == 0) {
      CHECK(number_of(values) == about[0] && about[0] >= used);
      used = about[0];
    }
    const uint64_t count = rt_parameters_copy_records(&parameters, 0, copied, CAPACITY, &first);
    for (uint64_t i = 0; i < count; i++) {
      const char *const record = copied + i * rt_parameters_record_bytes(SET);
      memcpy(&number, record, 8);
      CHECK(number_of(record + sizeof(rt_parameters_record_t)) == number);
    }
    sched_yield();
  }
  return unused;
}

static void test_threads(void) {
  pthread_t writers[2], reader;
  uint64_t index = 0, taken = 0;
  make(UINT64_MAX);
  published = 0;
  for (int i = 0; i < 2; i++) CHECK(pthread_create(&writers[i], NULL, write_sets, NULL) == 0);
  CHECK(pthread_create(&reader, NULL, read_sets, NULL) == 0);
  while (taken < total) {
    step(index++);
    CHECK(fields[0] >= taken);
    if (fields[0] == taken) sched_yield();
    taken = fields[0];
  }
  rt_store_release(&is_over, 1u);
  for (int i = 0; i < 2; i++) CHECK(pthread_join(writers[i], NULL) == 0);
  CHECK(pthread_join(reader, NULL) == 0);
  CHECK(parameters.refused == 0 && fields[0] == total);
  release();
}

int main(void) {
  if (getenv("RT_ITEMS")) total = strtoull(getenv("RT_ITEMS"), NULL, 10);
  test_types();
  test_sequence();
  test_refusal();
  test_record();
  test_open();
  test_threads();
  return CHECK_DONE();
}
