/* Loops in virtual time: the starts, ends and order of their cycles, and the reasons for which they end. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "rtloop/simulate.h"

#include <stdlib.h>

#include "check.h"
#include "sampled.h"

enum { PERIOD = 1000000, KEEP = 64 };

typedef struct probe {
  rt_loop_t loop;
  int64_t steps, overruns, stop_at, seen[KEEP], *log;
  int number;
  rt_sampler_t sampler;
  uint64_t signal;
} probe_t;

static int step(void *self, const rt_cycle_t *cycle) {
  probe_t *probe = self;
  CHECK(cycle->index == (uint64_t)probe->steps && cycle->start >= cycle->release && cycle->dt > 0);
  if (probe->steps < KEEP) probe->seen[probe->steps] = cycle->start - RT_SIMULATION_START_NS;
  if (probe->log) *probe->log = *probe->log * 10 + probe->number;
  probe->steps++;
  probe->signal++;
  rt_sampling_take(&probe->loop.sampling);
  return probe->steps == probe->stop_at ? RT_STOP : RT_CONTINUE;
}

static int overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  ((probe_t *)self)->overruns++;
  CHECK(missed >= 0 && cycle->period > 0);
  return RT_CONTINUE;
}

static void make(rt_simulation_t *s, int number) {
  probe_t *probe = aligned_alloc(RT_CACHE_LINE, sizeof *probe);
  rt_telemetry_t *telemetry = aligned_alloc(RT_CACHE_LINE, rt_telemetry_bytes(KEEP, 0) + 64 * KEEP);
  CHECK(probe && telemetry);
  memset(probe, 0, sizeof *probe);
  memset(telemetry, 0, rt_telemetry_bytes(KEEP, 0));
  rt_telemetry_init(telemetry, KEEP, KEEP, 0);
  probe->number = number;
  probe->loop.telemetry = telemetry;
  rt_schedule_set_period(&probe->loop.schedule, PERIOD, 0, 0);
  probe->loop.limits.max_cycles = UINT64_MAX;
  probe->loop.limits.max_duration = INT64_MAX;
  (void)make_ring(&probe->sampler, &probe->signal, 1, 1, 4);
  rt_live_init(&probe->loop.live);
  rt_live_use_sampler(&probe->loop.live, &probe->sampler);
  *s = (rt_simulation_t){.loop = &probe->loop, .self = probe};
}

static void unmake(rt_simulation_t *s) {
  const probe_t *const probe = s->self;
  rt_broadcast_t *const ring = probe->sampler.writer.block;
  CHECK(ring->written == probe->signal);
  free(ring);
  free(s->loop->telemetry);
  free(s->self);
}

static int run(rt_simulation_t *s, int count) {
  int end = RT_SIMULATION_PAUSE;
  for (int i = 0; i < count; i++) CHECK(rt_simulate_begin(&s[i]) == RT_GO_ON);
  while (end == RT_SIMULATION_PAUSE) end = rt_simulate_advance(s, count, INT64_MAX, step, overrun);
  return end;
}

static void starts(void) {
  const int64_t durations[] = {100, 2500000, 0};
  rt_simulation_t s;
  make(&s, 1);
  probe_t *probe = s.self;
  s.latency.constant = 50;
  s.execution = (rt_model_t){.values = durations, .count = 3};
  s.loop->schedule.policy = RT_OVERRUN_CATCH_UP;
  s.loop->schedule.max_burst = 1;
  s.loop->limits.max_duration = 8 * PERIOD;
  CHECK(run(&s, 1) == RT_SIMULATION_OVER);
  /* Late cycles start at once, when the one before has ended; those that slept are 50 ns late. */
  const int64_t expected[] = {50, 1000050, 3500050, 4000050, 5000050, 7500050};
  CHECK(probe->steps == 6 && probe->overruns == 4);
  for (int i = 0; i < 6; i++) CHECK(probe->seen[i] == expected[i]);
  const uint64_t cycles = s.loop->telemetry->written;
  const rt_counters_t *c = &s.loop->telemetry->banks[0].counters;
  CHECK(cycles == 6 && c->late == 2 && c->overruns == 4 && c->missed == 2);
  CHECK((int64_t)(cycles + c->missed) * PERIOD == s.loop->schedule.release - RT_SIMULATION_START_NS);
  unmake(&s);
}

/* Cycles of the warm-up are in no histogram, and the first of the others follows none. */
static void warms_up(void) {
  rt_simulation_t s;
  make(&s, 1);
  s.execution.constant = 700;
  s.loop->limits.warmup = 2;
  s.loop->limits.max_cycles = 5;
  CHECK(run(&s, 1) == 0);
  rt_bank_t *bank = aligned_alloc(RT_CACHE_LINE, sizeof *bank);
  uint64_t written;
  CHECK(bank != NULL);
  rt_bank_clear(bank);
  CHECK(rt_telemetry_snapshot(s.loop->telemetry, bank, &written, 1) == 0);
  CHECK(bank->counters.cycles == 5 && bank->counters.warmup == 2 && s.loop->telemetry->written == 5);
  CHECK(bank->histograms[RT_EXECUTION].sum == 3 * 700 && bank->histograms[RT_RESPONSE].sum == 3 * 700);
  CHECK(bank->histograms[RT_INTERVAL].sum == 2 * PERIOD);
  CHECK(bank->counters.usage_begin.minor_faults > 0); /* this process's, when the warm-up was over */
  free(bank);
  unmake(&s);
}

/* The fields that the step reads follow the schedule, and are nominal again one cycle after an overrun. */
static int tell(void *self, const rt_cycle_t *cycle) {
  static const double dt[] = {1e-3, 1e-3, 3e-3, 1e-3, 1e-3};
  static const int64_t missed[] = {0, 0, 2, 0, 0};
  (void)self;
  CHECK(cycle->dt == dt[cycle->index] && cycle->missed == missed[cycle->index]);
  return RT_CONTINUE;
}

static void tells(void) {
  const int64_t durations[] = {0, 2500000, 0, 0, 0};
  rt_simulation_t s;
  make(&s, 1);
  s.execution = (rt_model_t){.values = durations, .count = 5};
  s.loop->limits.max_cycles = 5;
  CHECK(rt_simulate_begin(&s) == RT_GO_ON);
  while (rt_simulate_advance(&s, 1, INT64_MAX, tell, overrun) == RT_SIMULATION_PAUSE) continue;
  CHECK(s.loop->cycle.index == 5 && s.loop->end.reason == RT_END_NORMAL);
  unmake(&s);
}

static void spins(void) {
  rt_simulation_t s;
  make(&s, 1);
  s.latency.constant = 300;
  rt_spin_fixed(&s.loop->spin, 1000);
  s.loop->limits.max_cycles = 3;
  CHECK(run(&s, 1) == 0 && s.loop->end.reason == RT_END_NORMAL);
  for (int i = 0; i < 3; i++) CHECK(((probe_t *)s.self)->seen[i] == i * PERIOD);
  unmake(&s);
  make(&s, 1);
  s.latency.constant = 40000;
  s.loop->limits.max_cycles = 600;
  rt_spin_auto(&s.loop->spin, PERIOD, 25);
  CHECK(run(&s, 1) == 0);
  CHECK(s.loop->spin.margin < 60000 && s.loop->spin.margin > 40000); /* learnt: less than a quarter of the period */
  unmake(&s);
}

static void recorded(void) {
  const int64_t durations[] = {2500000, 0}, latencies[] = {10, 20, 30};
  rt_simulation_t s;
  make(&s, 1);
  s.is_recorded = 1;
  s.latency = (rt_model_t){.values = latencies, .count = 3};
  s.execution = (rt_model_t){.values = durations, .count = 2};
  s.loop->schedule.policy = RT_OVERRUN_CATCH_UP;
  s.loop->schedule.max_burst = 8;
  s.loop->limits.max_cycles = 4;
  CHECK(run(&s, 1) == 0);
  const int64_t expected[] = {10, 2500030, 2500060, 5000070};
  for (int i = 0; i < 4; i++) CHECK(((probe_t *)s.self)->seen[i] == expected[i]);
  unmake(&s);
}

static void lock_step(void) {
  rt_simulation_t s[2];
  int64_t log = 0;
  make(&s[0], 1);
  make(&s[1], 2);
  ((probe_t *)s[0].self)->log = ((probe_t *)s[1].self)->log = &log;
  s[1].loop->schedule.period = 2 * PERIOD;
  s[0].loop->limits.max_duration = s[1].loop->limits.max_duration = 4 * PERIOD;
  CHECK(run(s, 2) == RT_SIMULATION_OVER);
  CHECK(log == 121121); /* at 0: 1 2, at 1: 1, at 2: 1 2, at 3: 1 */
  unmake(&s[0]);
  unmake(&s[1]);
}

static void ends(void) {
  rt_simulation_t s[2];
  make(&s[0], 1);
  make(&s[1], 2);
  ((probe_t *)s[1].self)->stop_at = 5;
  CHECK(run(s, 2) == 1 && s[1].loop->end.reason == RT_END_NORMAL);
  CHECK(((probe_t *)s[0].self)->steps == 5);
  rt_loop_send_command(s[0].loop, RT_COMMAND_STOP);
  ((probe_t *)s[0].self)->steps = ((probe_t *)s[1].self)->steps = 0;
  CHECK(run(s, 2) == 0 && ((probe_t *)s[0].self)->steps == 0);
  unmake(&s[0]);
  unmake(&s[1]);

  make(&s[0], 1);
  s[0].execution.constant = 365 * 86400 * RT_NS_PER_S;
  CHECK(run(s, 1) == 0 && s[0].loop->end.reason == RT_END_TIME);
  CHECK(((probe_t *)s[0].self)->steps == 147);
  unmake(&s[0]);
}

static double tiny = 2.2250738585072014e-308;

static int64_t fails_at_3(void *context, uint64_t index) {
  CHECK(context == &tiny);
  return index == 3 ? -1 : 7;
}

static int plant(void *context, const rt_cycle_t *cycle) {
  (void)context;
  return cycle->index == 2 ? RT_STOP : RT_CONTINUE;
}

static void asks(void) {
  rt_simulation_t s;
  make(&s, 1);
  s.loop->limits.max_cycles = 10;
  s.latency = (rt_model_t){.context = &tiny, .ask = fails_at_3};
  CHECK(run(&s, 1) == 0 && s.loop->end.reason == RT_END_MODEL);
  CHECK(((probe_t *)s.self)->steps == 3 && ((probe_t *)s.self)->seen[2] == 2 * PERIOD + 7);
  unmake(&s);
  make(&s, 1);
  s.before = plant;
  CHECK(run(&s, 1) == 0 && s.loop->end.reason == RT_END_NORMAL && ((probe_t *)s.self)->steps == 2);
  unmake(&s);
}

static int divide(void *self) {
  *(double *)self = *(volatile double *)&tiny / 4;
  return 0;
}

static void flushes(void) {
  rt_simulation_t s;
  double result = -1;
  make(&s, 1);
  void *self = s.self;
  s.self = &result;
  CHECK(rt_simulate_enter(&s, divide) == 0 && result > 0);
  s.loop->thread.request.flush_denormals = 1;
  CHECK(rt_simulate_enter(&s, divide) == 0 && result == 0);
  CHECK(*(volatile double *)&tiny / 4 > 0); /* the caller's mode is as it was */
  s.self = self;
  unmake(&s);
}

int main(void) {
  starts();
  warms_up();
  tells();
  spins();
  recorded();
  lock_step();
  ends();
  asks();
  flushes();
  return CHECK_DONE();
}
