/* A side of an exchange is killed after each of its instructions, one after the other, and its successor goes on.
 *
 * The sides of a loop's parameters and signals that other processes may take are among them.
 *
 * The victim is a child that works on shared memory for ever. It is stepped through its instructions with ptrace(2) and
 * killed; then this process takes its side over, and looks at what is there. The other side works on between steps.
 * Usage: test_killed [kills]
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "rtloop/broadcast.h"
#include "rtloop/parameters.h"
#include "rtloop/ring.h"
#include "rtloop/shared_latest.h"
#include "rtloop/wakes.h"

#ifdef __OPTIMIZE__
enum { KILLS = 2000, STEP = 1, DEPTH = 320 }; /* instructions: about two writes */
#else
enum { KILLS = 1336, STEP = 5, DEPTH = 1200 }; /* for broken variants */
#endif

enum { WORDS = 5, READERS = 2, CAPACITY = 4, SLEEP_NS = 20000, SET = 8 * WORDS, PLACES = 4, SETS_KEPT = 4 };

static struct shared {
  _Alignas(64) char latest[sizeof(rt_shared_latest_block_t) + READERS * 64 + (READERS + 2) * 64];
  _Alignas(64) char ring[sizeof(rt_ring_t) + CAPACITY * 8 * WORDS];
  _Alignas(64) char parameters[sizeof(rt_parameters_block_t) + 3 * 192 + SET];
  _Alignas(64) char signals[sizeof(rt_broadcast_t) + PLACES * SET];
  _Alignas(64) uint64_t seen; /* by the side that is killed */
} *shared;

static rt_shared_latest_t writer, readers[READERS];
static rt_ring_t *ring;
static rt_wakers_t wakers; /* with this thread as a loop's, also in a child, which is a copy */
static rt_wakes_t wakes;
static int64_t plain_until;

/* The loop's side of its parameters, with the fields of its step, and of its signals; and a reader's. */
static uint64_t fields[WORDS], cycle_index, samples;
static rt_parameter_t items[WORDS];
static rt_parameters_t parameters;
static rt_broadcast_writer_t sampler;
static rt_broadcast_reader_t watcher;
static uint64_t staged[64], used[WORDS], records[SETS_KEPT * 64];

static void fill(uint64_t *value, uint64_t number) {
  for (int k = 0; k < WORDS; k++) value[k] = number;
}

static uint64_t number_of(const uint64_t *value) {
  for (int k = 1; k < WORDS; k++) CHECK(value[k] == value[0]); /* else it is torn */
  return value[0];
}

static void begin_writing(void) {
  CHECK(rt_shared_latest_open(&writer, (rt_shared_latest_block_t *)(void *)shared->latest, 8 * WORDS, READERS) == 0);
  rt_shared_latest_begin_writing(&writer);
}

static void begin_reading(uint32_t i) {
  CHECK(rt_shared_latest_open(&readers[i], (rt_shared_latest_block_t *)(void *)shared->latest, 8 * WORDS, READERS) ==
        0);
  CHECK(rt_shared_latest_begin_reading(&readers[i], i) == 0);
}

static void write_one(void) {
  uint64_t value[WORDS];
  fill(value, writer.number + 1);
  if (value[0] % 2) {
    rt_shared_latest_write(&writer, value);
  } else {
    rt_shared_latest_write_at(&writer, value, (int64_t)value[0]);
  }
}

static uint64_t read_one(uint32_t i) {
  uint64_t value[WORDS];
  const uint64_t former = readers[i].number;
  (void)rt_shared_latest_read(&readers[i], value);
  CHECK(number_of(value) == readers[i].number && readers[i].number >= former);
  return value[0];
}

/* Items are their numbers, so that a successor goes on with the one that its predecessor has not put in. */
static void push_one(void) {
  uint64_t value[WORDS];
  fill(value, ring->tail + 1);
  if (value[0] % 3 == 0) {
    (void)rt_ring_push_many(ring, value, 1);
  } else {
    (void)rt_ring_push(ring, value);
  }
}

static uint64_t pop_one(void) {
  uint64_t value[WORDS] = {0};
  return (ring->head % 3 ? rt_ring_pop(ring, value) : (int)rt_ring_pop_many(ring, value, 1)) ? number_of(value) : 0;
}

/* As a loop does: note who has to be woken in the step, and wake after it. */
static void push_and_wake(void) {
  push_one();
  if (rt_is_awaited(&ring->awaited)) rt_wake_request(&wakers, &ring->awaited);
  rt_wakes_run(&wakes);
}

static uint64_t wait_and_pop(void) {
  rt_wait_announce(&ring->awaited);
  if (rt_ring_length(ring) == 0) rt_wait_sleep(&ring->awaited, SLEEP_NS);
  return pop_one();
}

/* The values of a set are its number. */
static void set_one(void) {
  uint64_t place[sizeof(rt_parameters_writer_t) / 8 + WORDS] = {0};
  fill(place + sizeof(rt_parameters_writer_t) / 8, RT_PARAMETERS_NUMBER(parameters.view.block->state) + 1);
  CHECK(rt_parameters_publish(&parameters.view, (const char *)place) == 0);
}

static void begin_loop(void) {
  const uint64_t place[sizeof(rt_parameters_writer_t) / 8 + WORDS] = {0};
  CHECK(rt_parameters_bytes(SET, 0) == sizeof shared->parameters && rt_broadcast_bytes(SET, PLACES, 0) != 0);
  for (int k = 0; k < WORDS; k++) {
    items[k] = (rt_parameter_t){.address = &fields[k],
                                .offset = (uint32_t)(8 * k),
                                .bytes = 8,
                                .count = 1,
                                .type = RT_PARAMETER_U8,
                                .high.natural = UINT64_MAX};
  }
  parameters =
      (rt_parameters_t){.view = {.block = (rt_parameters_block_t *)(void *)shared->parameters, .set_bytes = SET},
                        .items = items,
                        .count = WORDS,
                        .staged = (char *)staged,
                        .records = (char *)records,
                        .capacity = SETS_KEPT,
                        .used = used};
  rt_parameters_begin(&parameters, (const char *)place, 1);
  CHECK(rt_broadcast_init(&sampler, (rt_broadcast_t *)(void *)shared->signals, SET, PLACES, "", 0, 0) == 0);
}

static void begin_watching(void) {
  CHECK(rt_broadcast_open(&watcher, shared->signals, sizeof shared->signals, 1) == RT_BROADCAST_OK);
}

/* A cycle: a set is taken over whole, and the fields are sampled. */
static void cycle_once(void) {
  const rt_cycle_t cycle = {.index = cycle_index++};
  rt_parameters_apply(&parameters, &cycle);
  CHECK(number_of(fields) == parameters.number && parameters.refused == 0);
  char *const place = rt_broadcast_begin(&sampler);
  samples++;
  for (int k = 0; k < WORDS; k++) rt_store_relaxed((uint64_t *)(void *)(place + 8 * k), samples);
  rt_broadcast_end(&sampler, place);
}

static void watch_some(void) {
  uint64_t found[PLACES * WORDS], first;
  const uint64_t before = watcher.position, lost = watcher.lost;
  const uint64_t count = rt_broadcast_read(&watcher, (char *)found, PLACES, &first);
  CHECK(watcher.position - before == count + watcher.lost - lost);
  for (uint64_t i = 0; i < count; i++) {
    CHECK(number_of(found + WORDS * (first + i)) == watcher.position - count + i + 1);
  }
}

static void victim_sets(void) { set_one(); }
static void victim_watches(void) { watch_some(); }
static void victim_writes(void) { write_one(); }
static void victim_reads(void) { shared->seen = read_one(0); }
static void victim_pushes(void) { push_one(); }
static void victim_wakes(void) { push_and_wake(); }
static void victim_pops(void) {
  const uint64_t number = pop_one();
  if (number) shared->seen = number;
}
static void victim_waits(void) {
  const uint64_t number = wait_and_pop();
  if (number) shared->seen = number;
}

static uint64_t popped;

static void other_cycles(void) { cycle_once(); }
static void other_reads(void) { (void)(read_one(0) + read_one(1)); }
static void other_writes(void) { write_one(); }
static void other_pops(void) {
  const uint64_t number = pop_one();
  CHECK(number == 0 || number == popped + 1); /* nothing is lost, and nothing comes twice */
  if (number) popped = number;
}
static void other_pushes(void) { push_one(); }
static void other_is_about_to_sleep(void) {
  rt_wait_announce(&ring->awaited);
  other_pops();
}
static void other_wakes(void) { push_and_wake(); }

static void setter_is_replaced(void) {
  for (int i = 0; i < 3; i++) {
    set_one();
    const uint64_t number = RT_PARAMETERS_NUMBER(parameters.view.block->state);
    cycle_once();
    CHECK(fields[0] == number);
  }
}

static void watcher_is_replaced(void) {
  begin_watching();
  for (int i = 0; i < 3; i++) {
    watch_some();
    CHECK(watcher.position == samples && watcher.lost == 0);
    cycle_once();
  }
}

static void writer_is_replaced(void) {
  begin_writing();
  const uint64_t before = writer.number;
  CHECK(read_one(0) == before && read_one(1) == before);
  for (uint64_t i = 1; i <= 5; i++) {
    write_one();
    CHECK(read_one(1) == before + i && (i % 2 || read_one(0) == before + i));
  }
}

static void reader_is_replaced(void) {
  begin_reading(0);
  CHECK(read_one(0) == writer.number && shared->seen <= writer.number);
  for (int i = 0; i < 5; i++) {
    write_one();
    CHECK(read_one(0) == writer.number);
  }
  shared->seen = writer.number;
}

static void producer_is_replaced(void) {
  for (int i = 0; i < 3 * CAPACITY; i++) {
    push_one();
    other_pops();
  }
  while (ring->head != ring->tail) other_pops();
  CHECK(popped == ring->tail);
}

static void consumer_is_replaced(void) {
  uint64_t last = shared->seen;
  for (int i = 0; i < 3 * CAPACITY; i++) {
    const uint64_t number = pop_one();
    /* The item in the hand of the victim is gone, if it was killed before it could note it. */
    CHECK(number == 0 || number == last + 1 || (i == 0 && number == last + 2));
    if (number) last = number;
    push_one();
  }
  shared->seen = last;
}

/* Whoever sleeps is woken by the next item, whatever the victim was about to do. */
static void waker_is_replaced(void) {
  rt_wait_announce(&ring->awaited);
  push_and_wake();
  CHECK(!rt_is_awaited(&ring->awaited));
  producer_is_replaced();
}

/* What the victim has announced costs one system call more, and then nothing. */
static void waiter_is_replaced(void) {
  push_and_wake();
  CHECK(!rt_is_awaited(&ring->awaited));
  consumer_is_replaced();
  for (int i = 0; i < 3 * CAPACITY; i++) {
    const uint64_t number = wait_and_pop();
    CHECK(number == 0 || number == shared->seen + 1);
    if (number) shared->seen = number;
    push_and_wake();
    CHECK(!rt_is_awaited(&ring->awaited) && rt_ring_length(ring) > 0);
  }
}

static const struct {
  void (*victim)(void), (*other)(void), (*successor)(void);
} sides[] = {
    {victim_sets, other_cycles, setter_is_replaced},   {victim_watches, other_cycles, watcher_is_replaced},
    {victim_writes, other_reads, writer_is_replaced},  {victim_reads, other_writes, reader_is_replaced},
    {victim_pushes, other_pops, producer_is_replaced}, {victim_wakes, other_is_about_to_sleep, waker_is_replaced},
    {victim_pops, other_pushes, consumer_is_replaced}, {victim_waits, other_wakes, waiter_is_replaced},
};
enum { SIDES = sizeof sides / sizeof *sides, FIRST_CONSUMER = 6 };

static int wait_for_stop(pid_t child) {
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  return status;
}

/* Kill a victim after so many instructions; the other side takes a turn after every `stride` of them. Returns 0 iff
 * this system does not allow it. */
static int kill_after(int side, int instructions, int stride) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL)) _exit(77);
    raise(SIGSTOP);
    for (;;) sides[side].victim();
  }
  int status = wait_for_stop(child);
  if (WIFEXITED(status)) return 0;
  for (int i = 0; i < instructions; i++) {
    CHECK(WIFSTOPPED(status));
    if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL)) {
      CHECK(i == 0 && (errno == EIO || errno == ENOSYS));
      kill(child, SIGKILL);
      (void)wait_for_stop(child);
      return 0;
    }
    status = wait_for_stop(child);
    if (i % stride == stride - 1) sides[side].other();
  }
  CHECK(kill(child, SIGKILL) == 0);
  CHECK(WIFSIGNALED(wait_for_stop(child)));
  sides[side].successor();
  return 1;
}

int main(int argc, char **argv) {
  const long kills = argc > 1 ? atol(argv[1]) : KILLS;
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED && rt_shared_latest_bytes(8 * WORDS, READERS) == sizeof shared->latest);
  ring = (rt_ring_t *)(void *)shared->ring;
  CHECK(rt_ring_init(ring, 8 * WORDS, CAPACITY) == 0);
  begin_loop();
  begin_watching();
  begin_writing();
  for (uint32_t i = 0; i < READERS; i++) begin_reading(i);
  wakes.plain_until = &plain_until;
  rt_wakers_enter(&wakers, &wakes);
  const long each = kills < SIDES ? 1 : kills / SIDES; /* of each side, each some instructions further than the last */
  for (long i = 0; i < SIDES * each; i++) {
    if (i == FIRST_CONSUMER * each) {
      while (ring->head != ring->tail) other_pops();
      shared->seen = popped; /* the consumer is the victim from here on */
    }
    const long nth = i % each;
    if (!kill_after((int)(i / each), (int)(nth * STEP % DEPTH), 1 + (int)(nth / DEPTH + nth) % 13)) {
      printf("skipped: ptrace cannot step here\n");
      return 0;
    }
  }
  printf("%ld kills\n", SIDES * each);
  return CHECK_DONE();
}
