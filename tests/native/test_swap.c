/* A loop's thread goes on with one step after another, while the control thread frees those that it has left. */
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "check.h"
#include "rtloop/loop.h"
#include "rtloop/memory.h"
#include "sampled.h"

#ifndef PATIENCE
#define PATIENCE 600 /* tenths of a second */
#endif
enum { SWAPS = 200, CODE = -3, PERIOD = 300000, TRIAL = 4, RINGS = 5, PLACES = 4, SIGNALS = 4 };

typedef struct law {
  rt_loop_t *loop;
  int64_t total; /* steps of this law and of all before it */
  int64_t steps, last_release, taken_release;
  uint64_t last, taken_index;
  int code, taken, leaves, stops;
  int64_t fails_at, overruns_at; /* number of the step; 0: none */
  int is_slow;                   /* take_over() takes longer than a period */
  int delays;                    /* what comes before the swap takes longer than a period */
  unsigned ring;                 /* that its signals are sampled into; RINGS: it has none */
  rt_live_t live;
} law_t;

static rt_sampler_t samplers[RINGS];
static uint64_t samples[RINGS], last_sample[RINGS], signals[SIGNALS];
static const unsigned words[RINGS] = {1, 2, 3, 4, 2}, gaps[RINGS] = {1, 1, 1, 1, 3};
static int samples_in_step;

static void delay(void *unused) {
  (void)unused;
  usleep(2 * PERIOD / 1000);
}

static int enter(void *self) {
  (void)self;
  return RT_CONTINUE;
}

static int step(void *self, const rt_cycle_t *cycle) {
  law_t *const law = self;
  if (cycle->index == law->loop->swap.reverted && law->last + 1 <= law->loop->swap.cycle) {
    CHECK(law->last + 1 == law->loop->swap.cycle); /* back from the trial of another law */
  } else if (law->steps || law->taken) {
    CHECK(cycle->index == law->last + 1);
  }
  if (law->taken && law->steps == 0) CHECK(cycle->release >= law->taken_release && cycle->index == law->taken_index);
  law->last = cycle->index;
  law->last_release = cycle->release;
  law->steps++;
  law->total++;
  CHECK(law->loop->sampling.sampler == (law->ring < RINGS ? &samplers[law->ring] : NULL));
  if (law->ring < RINGS) {
    samples[law->ring]++;
    last_sample[law->ring] = cycle->index;
  }
  for (unsigned i = 0; i < SIGNALS; i++) signals[i] = ~cycle->index - i;
  if (samples_in_step) rt_sampling_take(&law->loop->sampling);
  if (rt_load_relaxed(&law->delays) && law->loop->is_swap_due) rt_loop_request_slack(law->loop, delay, law);
  if (law->stops && law->loop->is_swap_due) rt_loop_send_command(law->loop, RT_COMMAND_STOP);
  if (law->steps == law->overruns_at) usleep(2 * PERIOD / 1000);
  if (law->steps != law->fails_at) return RT_CONTINUE;
  if (law->stops) rt_loop_send_command(law->loop, RT_COMMAND_STOP);
  return CODE;
}

static int overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  (void)missed;
  CHECK(((law_t *)self)->last == cycle->index);
  return RT_CONTINUE;
}

static int wait(void *self, int64_t release) {
  (void)self;
  (void)release;
  return -EINVAL;
}

static void leave(void *self) { ((law_t *)self)->leaves++; }

static int take_over(void *successor, void *former, const rt_cycle_t *cycle) {
  law_t *const law = successor, *const before = former;
  law->taken++;
  CHECK(cycle->index == before->last + 1 && cycle->release > before->last_release && cycle->start > 0);
  if (law->code) return law->code;
  law->total = before->total;
  law->last = before->last;
  law->taken_index = cycle->index;
  law->taken_release = cycle->release;
  if (law->is_slow) usleep(2 * PERIOD / 1000);
  return RT_CONTINUE;
}

static int safe(void *self) {
  ((law_t *)self)->code = 0;
  return 0;
}

static void *body(void *argument) {
  law_t *const law = argument;
  if (samples_in_step) {
    rt_loop_main(law->loop, law, enter, step, overrun, wait, leave);
  } else {
    rt_loop_sampled_main(law->loop, law, enter, step, overrun, wait, leave);
  }
  return NULL;
}

static law_t *make(rt_loop_t *loop) {
  static unsigned count;
  law_t *const law = calloc(1, sizeof *law);
  CHECK(law != NULL);
  law->loop = loop;
  law->ring = count++ % (RINGS + 1);
  rt_live_init(&law->live);
  if (law->ring < RINGS) rt_live_use_sampler(&law->live, &samplers[law->ring]);
  return law;
}

static uint64_t answer(rt_loop_t *loop) {
  for (int ms = 0; ms < 100 * PATIENCE; ms++) {
    const uint64_t state = rt_swap_state(&loop->swap);
    if (state > RT_SWAP_TAKEN) return state;
    usleep(1000);
  }
  return RT_SWAP_ASKED;
}

/* Wait for the end of a trial. */
static uint64_t verdict(rt_loop_t *loop) {
  for (int ms = 0; ms < 100 * PATIENCE; ms++) {
    const uint64_t state = rt_swap_state(&loop->swap);
    if (state == RT_SWAP_DONE || state == RT_SWAP_REVERTED) return state;
    usleep(1000);
  }
  return RT_SWAP_ON_TRIAL;
}

static void ask(rt_loop_t *loop, law_t *now, law_t *next, uint64_t trial, uint32_t watched) {
  rt_swap_t *const swap = &loop->swap;
  swap->trial = trial;
  swap->watched = watched;
  swap->self = swap->successor = next;
  swap->former = now;
  swap->take_over = take_over;
  swap->live = next->ring < RINGS ? &next->live : NULL;
  rt_swap_ask(swap);
  rt_loop_send_command(loop, RT_COMMAND_SWAP);
}

/* Swap, refuse and withdraw. Returns the law that is in place. */
static law_t *swap_often(rt_loop_t *loop, law_t *now) {
  int done = 0, withdrawn = 0;
  for (int i = 0; i < SWAPS; i++) {
    law_t *const next = make(loop);
    next->code = i % 7 == 2 ? CODE : 0;
    ask(loop, now, next, 0, 0);
    if (i % 5 == 1 && rt_swap_withdraw(&loop->swap)) {
      CHECK(rt_swap_state(&loop->swap) == RT_SWAP_NONE && next->taken == 0);
      free(next); /* the command may still be there, and finds nothing to take */
      withdrawn++;
      continue;
    }
    const uint64_t state = answer(loop);
    CHECK(state == (next->code ? RT_SWAP_REFUSED : RT_SWAP_DONE) && loop->swap.code == next->code);
    CHECK(next->taken == 1);
    if (state == RT_SWAP_REFUSED) {
      free(next);
      continue;
    }
    CHECK(loop->swap.cycle == now->last + 1 && now->leaves == 0);
    while (rt_watch_is_taken(&loop->watch)) usleep(100);
    free(now);
    now = next;
    done++;
  }
  CHECK(done > SWAPS / 2 && withdrawn > 0);
  return now;
}

/* Put laws on trial that pass, and that fail in each way. Adds the steps of those that fail. Returns the law that is in
 * place. */
static law_t *try_often(rt_loop_t *loop, law_t *now, int64_t *failed) {
  const uint32_t everything = RT_INCIDENT_OVERRUN | RT_INCIDENT_LATE | RT_INCIDENT_NONFINITE;
  int slow = 0, forgiven = 0;
  for (int i = 0; i < SWAPS; i++) {
    law_t *const next = make(loop);
    double shown[2] = {1.0, i % 5 == 3 ? (double)INFINITY : 2.0};
    const double *const addresses[2] = {&shown[0], &shown[1]};
    rt_floats_t floats = {.doubles = addresses, .double_count = 2};
    uint32_t watched = 0, incident = 0;
    switch (i % 5) {
    case 1:
      next->fails_at = 1 + i % TRIAL;
      incident = RT_INCIDENT_CODE;
      break;
    case 2:
      next->overruns_at = 1 + i % TRIAL;
      incident = RT_INCIDENT_OVERRUN;
      break;
    case 3:
      incident = RT_INCIDENT_NONFINITE;
      break;
    case 4:
      next->is_slow = 1;
      watched = RT_INCIDENT_LATE;
      break;
    default:
      if (i % 10 != 5) break;
      rt_store_relaxed(&now->delays, 1); /* which is not the new step's fault */
      watched = RT_INCIDENT_LATE;
      break;
    }
    CHECK(rt_floats_are_finite(&floats) == (i % 5 != 3));
    loop->swap.floats = &floats;
    ask(loop, now, next, TRIAL, watched | (i % 10 == 7 ? everything : incident));
#ifdef BROKEN_TRIAL /* takes the new step for the only one, and writes over the former one */
    if (incident == RT_INCIDENT_CODE && answer(loop) == RT_SWAP_ON_TRIAL) now->total = 0;
#endif
    const uint64_t state = verdict(loop);
    CHECK(next->taken == 1 && now->leaves == 0);
    if (incident) {
      CHECK(state == RT_SWAP_REVERTED && (loop->swap.incidents & incident || i % 10 == 7)); /* or late by itself */
      if (incident == RT_INCIDENT_CODE) {
        CHECK(loop->swap.incident_end == RT_END_STEP && loop->swap.incident_code == CODE);
        CHECK(next->steps == next->fails_at);
      } else if (incident == RT_INCIDENT_NONFINITE) {
        CHECK(next->steps == 1);
      } else {
        CHECK(next->steps <= next->overruns_at); /* a busy machine may be faster */
      }
    } else if (i % 10 == 5) {
      forgiven += state == RT_SWAP_DONE;
    } else if (i % 5 == 0) {
      CHECK(state == RT_SWAP_DONE);
    }
    rt_store_relaxed(&now->delays, 0);
    if (state == RT_SWAP_REVERTED) {
      CHECK(loop->swap.reverted == loop->swap.cycle + (uint64_t)next->steps);
      CHECK(i % 10 != 5 || next->steps > 0); /* a later cycle was late by itself */
      slow += next->is_slow && next->steps == 0 && loop->swap.incidents == RT_INCIDENT_LATE;
      *failed += next->steps;
      while (rt_watch_is_taken(&loop->watch)) usleep(100);
      free(next);
      continue;
    }
    CHECK(state == RT_SWAP_DONE && loop->swap.cycle == now->last + 1);
    while (rt_watch_is_taken(&loop->watch)) usleep(100);
    free(now);
    now = next;
  }
  CHECK(slow > 0 && forgiven > 0);
  return now;
}

/* Check that the newest record of a ring is that of the last step that sampled into it. */
static void check_last(int ring) {
  uint64_t record[3 + SIGNALS];
  rt_broadcast_reader_t reader;
  const rt_broadcast_t *const block = samplers[ring].writer.block;
  const uint64_t bytes = rt_broadcast_bytes(rt_sampler_stride(&samplers[ring]), PLACES, 0);
  CHECK(rt_broadcast_open(&reader, block, bytes, 1) == RT_BROADCAST_OK);
  CHECK(rt_broadcast_latest(&reader, (char *)record, 1) && record[0] == last_sample[ring]);
  CHECK(record[2] >= record[1] && record[2] - record[1] < RT_NS_PER_S);
  for (unsigned i = 0; i < words[ring]; i++) CHECK(record[3 + i] == ~record[0] - i * gaps[ring]);
}

enum { STOPPED, SWAP_MEETS_STOP, TRIAL_MEETS_STOP, FAILURE_MEETS_STOP, ENDS };

static void run(int end) {
  samples_in_step = end == SWAP_MEETS_STOP;
  void *state = NULL, *block = NULL;
  int fd = -1;
  rt_bank_t *const bank = aligned_alloc(RT_CACHE_LINE, sizeof *bank);
  CHECK(bank && rt_memory_map(&state, sizeof(rt_loop_t)) == 0);
  CHECK(rt_memory_map_sealed("rtloop:native", rt_telemetry_bytes(64, 0), &block, &fd) == 0);
  rt_loop_t *const loop = state;
  rt_broadcast_t *rings[RINGS];
  for (int i = 0; i < RINGS; i++) {
    rings[i] = make_ring(&samplers[i], signals, words[i], gaps[i], PLACES);
    samples[i] = 0;
  }
  law_t *now = make(loop);
  loop->live = now->live;
  loop->telemetry = block;
  rt_telemetry_init(loop->telemetry, 64, 64, 0);
  loop->schedule.period = PERIOD;
  loop->clock = CLOCK_MONOTONIC;
  loop->read_clock = clock_gettime;
  loop->limits.max_cycles = UINT64_MAX;
  loop->limits.max_duration = INT64_MAX;
  loop->hooks.self = now;
  loop->hooks.safe = safe;
  loop->thread.request.attr.size = sizeof loop->thread.request.attr;
  CHECK(rt_stack_map(&loop->thread.stack, 4 << 20) == 0);
  loop->phase = RT_PHASE_STARTING;
  CHECK(rt_thread_create(&loop->thread.id, &loop->thread.stack, body, now) == 0);
  while (rt_futex_wait(&loop->phase, RT_PHASE_STARTING, RT_NS_PER_S) == RT_PHASE_STARTING) continue;
  rt_store_release(&loop->phase, RT_PHASE_GO);
  int64_t failed = 0;
  now = swap_often(loop, now);
  now = try_often(loop, now, &failed);
  law_t *last = NULL;
  if (end == SWAP_MEETS_STOP) { /* between the command and the swap: the run ends with the former step */
    law_t *const stopping = make(loop);
    stopping->stops = 1;
    ask(loop, now, stopping, 0, 0);
    CHECK(answer(loop) == RT_SWAP_DONE);
    free(now);
    now = stopping;
    last = make(loop);
    ask(loop, now, last, 0, 0);
  } else if (end == STOPPED) {
    rt_loop_send_command(loop, RT_COMMAND_STOP);
  } else { /* the new step leaves if it is in place; one that has failed is not, although the stop came before */
    law_t *const next = make(loop);
    next->stops = end == FAILURE_MEETS_STOP;
    next->fails_at = end == FAILURE_MEETS_STOP ? 3 : 0;
    ask(loop, now, next, UINT64_C(1) << 40, 0);
    if (end == TRIAL_MEETS_STOP) {
      CHECK(answer(loop) == RT_SWAP_ON_TRIAL);
      rt_loop_send_command(loop, RT_COMMAND_STOP);
    }
    pthread_join(loop->thread.id, NULL);
    CHECK(rt_swap_state(&loop->swap) == (end == TRIAL_MEETS_STOP ? RT_SWAP_ON_TRIAL : RT_SWAP_REVERTED));
    law_t *const gone = end == TRIAL_MEETS_STOP ? now : next;
    if (end == TRIAL_MEETS_STOP) now = next;
    if (end == FAILURE_MEETS_STOP) failed += next->steps;
    CHECK(gone->leaves == 0);
    free(gone);
  }
  if (end < TRIAL_MEETS_STOP) pthread_join(loop->thread.id, NULL);
  CHECK(loop->phase == RT_PHASE_DONE && loop->end.reason == RT_END_NORMAL);
  CHECK(now->leaves == 1 && loop->hooks.self == now);
  CHECK(!last || (last->taken == 0 && last->leaves == 0 && last->steps == 0));
  CHECK(!last || (rt_swap_withdraw(&loop->swap) && !rt_swap_withdraw(&loop->swap)));
  CHECK(rt_telemetry_snapshot(loop->telemetry, bank, &(uint64_t){0}, 1) == 0);
  CHECK((int64_t)bank->counters.cycles == now->total + failed); /* each cycle was a step of exactly one law */
  for (int i = 0; i < RINGS; i++) {
    CHECK(samples[i] > 0 && rings[i]->written == samples[i]);
    check_last(i);
    free(rings[i]);
  }
  free(now);
  free(last);
  rt_stack_unmap(&loop->thread.stack);
  munmap(block, rt_telemetry_bytes(64, 0));
  close(fd);
  munmap(state, sizeof(rt_loop_t));
  free(bank);
}

/* Every number of half precision, as binary16 encodes it: 2^10 + 2^10 of them are an infinity or a NaN. */
static void try_halves(void) {
  int finite = 0;
  for (uint32_t i = 0; i <= UINT16_MAX; i++) {
    const uint16_t bits = (uint16_t)i;
    const void *const address = &bits;
    const rt_floats_t floats = {.halves = &address, .half_count = 1};
    finite += rt_floats_are_finite(&floats);
  }
  CHECK(finite == UINT16_MAX + 1 - 2 * 1024);
}

int main(void) {
  try_halves();
  for (int end = 0; end < ENDS; end++) run(end);
  return CHECK_DONE();
}
