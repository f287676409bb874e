/* Waking consumers from a loop: no system call in a step, at most one in a cycle, none if nobody waits. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"

static int in_step_now, wakes_in_cycle, wakes_in_all, loads;
static void check_step_is_recorded(void);

/* Every system call of the header goes through here. */
static long counted_syscall(long number, ...) {
  va_list arguments;
  long values[6];
  va_start(arguments, number);
  for (int i = 0; i < 6; i++) values[i] = va_arg(arguments, long);
  va_end(arguments);
  if (number == SYS_futex && values[1] == 1 /* FUTEX_WAKE */) {
    CHECK(!in_step_now);
    check_step_is_recorded();
    wakes_in_cycle++;
    wakes_in_all++;
  }
  return syscall(number, values[0], values[1], values[2], values[3], values[4], values[5]);
}

/* Count every load that the loop makes in a step. */
#include "rtloop/atomics.h"
#undef rt_load_relaxed
#define rt_load_relaxed(p) ((void)(in_step_now && loads++), __atomic_load_n((p), __ATOMIC_RELAXED))
#define syscall(...) counted_syscall(__VA_ARGS__, 0L, 0L, 0L, 0L, 0L, 0L)
#include "rtloop/wakes.h"
#undef syscall
#undef rt_load_relaxed
#define rt_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)

#include "rtloop/loop.h"
#include "rtloop/ring.h"

enum { EXCHANGES = 3, CYCLES = 200 };

static rt_wakers_t wakers;
static uint32_t words[2 * RT_WAKES_MAX];
static rt_loop_t loop;
static rt_telemetry_t *block;
static int awaited_from, awaited_until, slow_cycles, steps;

/* Check that the end of the loop's last step was taken, if the loop runs. */
static void check_step_is_recorded(void) {
  if (steps) CHECK(rt_load_relaxed(&loop.telemetry->written) == (uint64_t)steps);
}

static int step(void *self, const rt_cycle_t *cycle) {
  (void)self;
  CHECK(wakes_in_cycle <= 1);
  wakes_in_cycle = 0;
  in_step_now = 1;
  if (cycle->index && loop.plain_until == INT64_MIN) slow_cycles++; /* the first release may be far away */
  const int i = (int)cycle->index;
  for (int k = 0; k < EXCHANGES; k++) {
    if (i >= awaited_from && i < awaited_until) words[k] = 1; /* somebody begins to wait */
    if (rt_is_awaited(&words[k])) rt_wake_request(&wakers, &words[k]);
  }
  in_step_now = 0;
  steps++;
  return RT_CONTINUE;
}

static int enter(void *self) {
  (void)self;
  return RT_CONTINUE;
}

static int overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  (void)self;
  (void)cycle;
  (void)missed;
  return RT_CONTINUE;
}

static int own_wait(void *self, int64_t release) {
  (void)self;
  (void)release;
  return -EINVAL;
}

static void leave(void *self) { (void)self; }

static void *run_loop(void *argument) {
  rt_loop_main(&loop, argument, enter, step, overrun, own_wait, leave);
  return NULL;
}

/* Run a loop of which each exchange is awaited in the cycles from `from` to `until`. */
static void run(int from, int until) {
  pthread_t thread;
  if (!block) block = aligned_alloc(RT_CACHE_LINE, sizeof *block + RT_CACHE_LINE);
  CHECK(block);
  memset(block, 0, sizeof *block);
  memset(&loop, 0, sizeof loop);
  memset(words, 0, sizeof words);
  rt_telemetry_init(block, 0, 0, 0);
  loop.telemetry = block;
  loop.schedule.period = 100000;
  loop.clock = CLOCK_MONOTONIC;
  loop.read_clock = clock_gettime;
  loop.limits.max_cycles = CYCLES;
  loop.limits.max_duration = INT64_MAX;
  loop.thread.request.attr.size = sizeof loop.thread.request.attr;
  loop.wakers = &wakers;
  loop.phase = RT_PHASE_STARTING;
  strcpy(loop.thread.request.name, "wakes");
  awaited_from = from;
  awaited_until = until;
  slow_cycles = wakes_in_cycle = wakes_in_all = steps = loads = 0;
  CHECK(pthread_create(&thread, NULL, run_loop, NULL) == 0);
  while (rt_futex_wait(&loop.phase, RT_PHASE_STARTING, RT_NS_PER_S) == RT_PHASE_STARTING) {
  }
  rt_store_release(&loop.phase, RT_PHASE_GO);
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(loop.end.reason == RT_END_NORMAL && loop.cycle.index == CYCLES);
  steps = 0;
  for (int i = 0; i < EXCHANGES; i++) CHECK(words[i] == 0); /* all were woken in the end */
  for (uint32_t i = 0; i < RT_WAKES_MAX_LOOPS; i++) CHECK(wakers.loops[i].thread == 0);
}

static void test_loop(void) {
  run(CYCLES, CYCLES);
  CHECK(wakes_in_all == 0 && slow_cycles == 0); /* nobody waits: one load for each exchange in a step */
  CHECK(loads == EXCHANGES * CYCLES);
  run(50, 51);
  CHECK(wakes_in_all == EXCHANGES); /* each once, in cycles one after the other */
  run(0, CYCLES);
  CHECK(wakes_in_all >= CYCLES - 1 && wakes_in_all <= CYCLES + EXCHANGES);
  CHECK(slow_cycles >= CYCLES - 1);
}

/* More words than a loop can note stay awaited, so that the next item asks again. */
static void test_many_words(void) {
  static rt_wakes_t wakes;
  int64_t plain_until = 7;
  wakes.plain_until = &plain_until;
  rt_wakers_enter(&wakers, &wakes);
  wakes_in_all = 0;
  for (uint32_t i = 0; i < 2 * RT_WAKES_MAX; i++) words[i] = 1;
  for (uint32_t i = 0; i < 2 * RT_WAKES_MAX; i++) rt_wake_request(&wakers, &words[i]);
  for (uint32_t i = 0; i < 2 * RT_WAKES_MAX; i++) rt_wake_request(&wakers, &words[i / 4]); /* they are noted */
  CHECK(wakes.count == RT_WAKES_MAX && wakes_in_all == 0 && plain_until == INT64_MIN);
  for (uint32_t i = 0; i < RT_WAKES_MAX + 3; i++) {
    CHECK(i >= RT_WAKES_MAX || words[i] == 1);
    rt_wakes_run(&wakes);
    CHECK(i >= RT_WAKES_MAX || words[i] == 0); /* in their order */
  }
  CHECK(wakes.count == 0 && wakes_in_all == RT_WAKES_MAX && words[RT_WAKES_MAX] == 1);
  rt_wakers_leave(&wakers);
  rt_wake_request(&wakers, &words[RT_WAKES_MAX]); /* not a loop's thread any more: at once */
  CHECK(words[RT_WAKES_MAX] == 0 && wakes_in_all == RT_WAKES_MAX + 1);
}

static uint32_t word;
static rt_ring_t *ring;

static void *consume(void *argument) {
  uint64_t item, expected = 0;
  while (expected < 2000) {
    if (rt_ring_pop(ring, &item)) {
      CHECK(item == expected++);
      continue;
    }
    rt_wait_announce(&word);
    if (rt_ring_length(ring) == 0) rt_wait_sleep(&word, INT64_C(20000000));
  }
  return argument;
}

/* A consumer that sleeps, and a producer outside of a loop. */
static void test_threads(void) {
  pthread_t thread;
  ring = aligned_alloc(RT_CACHE_LINE, (rt_ring_bytes(8, 64) + 63) / 64 * 64);
  CHECK(ring && rt_ring_init(ring, 8, 64) == 0 && pthread_create(&thread, NULL, consume, NULL) == 0);
  for (uint64_t i = 0; i < 2000; i++) {
    while (!rt_ring_push(ring, &i)) usleep(100);
    if (rt_is_awaited(&word)) rt_wake_request(&wakers, &word);
    if (i % 100 == 0) usleep(200); /* so that it sleeps now and then */
  }
  CHECK(pthread_join(thread, NULL) == 0);
  free(ring);
}

int main(void) {
  test_loop();
  test_many_words();
  test_threads();
  return CHECK_DONE();
}
