/* A loop of PERIOD ns for CYCLES cycles on a clock that nobody waits for: what it executes is the same in each cycle,
 * and can be counted. Usage: cycle_instructions PERIOD CYCLES */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "check.h"

static int64_t present = 1000000;

static int read_present(clockid_t which, struct timespec *time) {
  (void)which;
  present += 50;
  *time = (struct timespec){.tv_sec = present / 1000000000, .tv_nsec = present % 1000000000};
  return 0;
}

static int sleep_until(clockid_t which, int flags, const struct timespec *time, struct timespec *left) {
  (void)which;
  (void)flags;
  (void)left;
  present = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec + 5000;
  return 0;
}

#define clock_gettime read_present
#define clock_nanosleep sleep_until
#include "rtloop/loop.h"

static int step(void *self, const rt_cycle_t *cycle) {
  (void)self;
  (void)cycle;
  return RT_CONTINUE;
}

static int overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  (void)missed;
  return step(self, cycle);
}

static int own_wait(void *self, int64_t release) {
  (void)self;
  return release < 0;
}

static __attribute__((noinline)) int run(rt_loop_t *loop, int (*called)(void *, const rt_cycle_t *)) {
  return rt_loop_run_cycles(loop, NULL, called, overrun, own_wait);
}

int main(int argc, char **argv) {
  static rt_loop_t loop;
  CHECK(argc == 3);
  rt_telemetry_t *const telemetry = aligned_alloc(RT_CACHE_LINE, sizeof *telemetry + RT_CACHE_LINE);
  CHECK(telemetry != NULL);
  memset(telemetry, 0, sizeof *telemetry + RT_CACHE_LINE);
  rt_telemetry_init(telemetry, 0, 0, 0);
  loop.telemetry = telemetry;
  loop.clock = CLOCK_MONOTONIC;
  loop.read_clock = clock_gettime;
  rt_schedule_set_period(&loop.schedule, strtoll(argv[1], NULL, 10), 0, 0);
  loop.limits.max_cycles = strtoull(argv[2], NULL, 10);
  loop.limits.max_duration = INT64_MAX;
  rt_loop_start(&loop, present);
  CHECK(run(&loop, step) == RT_END_NORMAL && loop.cycle.index == loop.limits.max_cycles);
  const rt_counters_t *const c = &telemetry->banks[0].counters;
  CHECK(telemetry->written == loop.limits.max_cycles && c->overruns == 0 && c->late == 0);
  free(telemetry);
  return CHECK_DONE();
}
