/* The whole loop without Python: its thread, its stack, its schedule, a reader and a stop. Under every sanitizer. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "rtloop/loop.h"
#include "rtloop/memory.h"

#include "check.h"
#include "sampled.h"

#ifndef PATIENCE
#define PATIENCE 100 /* how often 100 ms are waited for a loop that ends by itself; a mutation needs less */
#endif

enum { MOST_SIGNALS = 4 };

typedef struct probe {
  rt_loop_t *loop;
  int64_t enters, steps, overruns, leaves, missed;
  int64_t start, requests, slacks; /* of the slack after a step */
  int is_in_step, samples_in_step;
  uint64_t signals[MOST_SIGNALS];
} probe_t;

static int enter(void *self) {
  ((probe_t *)self)->enters++;
  return RT_CONTINUE;
}

/* In the slack after a step: its end was taken, and the schedule has moved on. */
static void use_slack(void *self) {
  probe_t *probe = self;
  probe->slacks++;
  CHECK(!probe->is_in_step && probe->slacks == probe->requests);
  CHECK(rt_load_relaxed(&probe->loop->bank->counters.last_end) >= probe->start);
  CHECK(probe->loop->schedule.release > probe->start - probe->loop->schedule.period);
}

static int step(void *self, const rt_cycle_t *cycle) {
  probe_t *probe = self;
  probe->is_in_step = 1;
  probe->start = cycle->start;
  CHECK(probe->slacks == probe->requests); /* once for each request, before the next step */
  CHECK(cycle->index == (uint64_t)probe->steps && cycle->start >= cycle->release && cycle->dt > 0);
  probe->steps++;
  probe->missed += cycle->missed;
  if (probe->steps % 40 == 0) {
    const int64_t until = cycle->start + 3 * cycle->period;
    while (rt_clock_now(CLOCK_MONOTONIC) < until) rt_cpu_relax();
  }
  if (probe->steps % 7 == 0) {
    probe->requests++;
    for (int i = 0; i < 2; i++) rt_loop_request_slack(probe->loop, use_slack, probe);
  }
  probe->is_in_step = 0;
  for (unsigned i = 0; i < MOST_SIGNALS; i++) probe->signals[i] = ~cycle->index - i;
  if (probe->samples_in_step) rt_sampling_take(&probe->loop->sampling);
  return RT_CONTINUE;
}

static int overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  (void)cycle;
  (void)missed;
  ((probe_t *)self)->overruns++;
  return RT_CONTINUE;
}

static int wait(void *self, int64_t release) {
  (void)self;
  (void)release;
  return -EINVAL;
}

static void leave(void *self) { ((probe_t *)self)->leaves++; }

static void *body(void *argument) {
  probe_t *probe = argument;
  if (probe->samples_in_step) {
    rt_loop_main(probe->loop, probe, enter, step, overrun, wait, leave);
  } else {
    rt_loop_sampled_main(probe->loop, probe, enter, step, overrun, wait, leave);
  }
  return NULL;
}

/* Read what there is: a sample of each cycle, in order. Returns how many were written over before. */
static uint64_t read_samples(rt_broadcast_reader_t *reader, uint64_t *cycles) {
  uint64_t record[3 + MOST_SIGNALS], first;
  while (rt_broadcast_available(reader)) {
    const uint64_t lost = reader->lost;
    if (rt_broadcast_read(reader, (char *)record, 1, &first) == 0) {
      *cycles += reader->lost - lost;
      continue;
    }
    *cycles += reader->lost - lost;
    CHECK(record[0] == *cycles && record[2] >= record[1] && record[2] - record[1] < RT_NS_PER_S);
    for (unsigned i = 3; i < reader->record_bytes / 8; i++) CHECK(record[i] == ~record[0] - (i - 3));
    *cycles += 1;
  }
  return reader->lost;
}

static void run(int is_auto, int is_refused, uint64_t places, unsigned words, int samples_in_step) {
  void *state = NULL, *block = NULL;
  int fd = -1;
  probe_t probe = {.samples_in_step = samples_in_step};
  rt_bank_t *bank = aligned_alloc(RT_CACHE_LINE, sizeof *bank);
  CHECK(bank && rt_memory_map(&state, sizeof(rt_loop_t)) == 0);
  CHECK(rt_memory_map_sealed("rtloop:native", rt_telemetry_bytes(64, 0), &block, &fd) == 0);
  CHECK(ftruncate(fd, 0) == -1 && errno == EPERM);
  rt_loop_t *loop = probe.loop = state;
  loop->telemetry = block;
  rt_memory_prefault(block, rt_telemetry_bytes(64, 0));
  rt_telemetry_init(loop->telemetry, 64, 64, 0);
  CHECK(rt_memory_resident_bytes(block, rt_telemetry_bytes(64, 0)) >= (int64_t)rt_telemetry_bytes(64, 0));
  loop->schedule.period = 500000;
  loop->clock = CLOCK_MONOTONIC;
  loop->read_clock = clock_gettime;
  loop->limits.warmup = 5;
  static rt_sampler_t sampler;
  rt_broadcast_reader_t reader;
  rt_broadcast_t *const ring = make_ring(&sampler, probe.signals, words, 1, places);
  CHECK(rt_broadcast_open(&reader, ring, rt_broadcast_bytes(24 + 8 * words, places, 0), 1) == RT_BROADCAST_OK);
  rt_live_init(&loop->live);
  rt_live_use_sampler(&loop->live, &sampler);
  loop->limits.max_cycles = UINT64_MAX;
  loop->limits.max_duration = INT64_MAX;
  if (is_auto) rt_spin_auto(&loop->spin, loop->schedule.period, 25);
  loop->thread.request.attr.size = sizeof loop->thread.request.attr;
  loop->thread.request.attr.sched_flags = RT_SCHED_FLAG_RESET_ON_FORK;
  if (is_refused) loop->thread.request.attr.sched_policy = 77;
  strcpy(loop->thread.request.name, "native");
  CHECK(rt_stack_map(&loop->thread.stack, 4 << 20) == 0); /* a thread under TSan needs almost 1 MiB for itself */
  rt_stack_paint(&loop->thread.stack);
  CHECK(rt_stack_high_water(&loop->thread.stack) == 0);
  loop->phase = RT_PHASE_STARTING;
  CHECK(rt_thread_create(&loop->thread.id, &loop->thread.stack, body, &probe) == 0);
  while (rt_futex_wait(&loop->phase, RT_PHASE_STARTING, RT_NS_PER_S) == RT_PHASE_STARTING) continue;
  CHECK(loop->thread.report.tid > 0 && loop->thread.report.slack_ns == 1 && loop->thread.report.signal_stack_rc == 0);
  CHECK((loop->thread.report.policy_rc != 0) == is_refused && loop->thread.report.attr.size > 0);
  if (is_refused) {
    rt_store_release(&loop->phase, RT_PHASE_ABORT);
  } else {
    rt_store_release(&loop->phase, RT_PHASE_GO);
    rt_bank_clear(bank);
    uint64_t written = 0, sampled = 0;
    while (written < 300) {
      if (rt_telemetry_snapshot(loop->telemetry, bank, &written, 1000)) continue;
      (void)read_samples(&reader, &sampled);
      usleep(1000);
    }
    rt_bank_clear(&loop->telemetry->banks[1]);
    rt_loop_send_command(loop, RT_COMMAND_RESET);
    while (rt_load_acquire(&loop->command) & RT_COMMAND_RESET) usleep(1000);
    rt_loop_send_command(loop, RT_COMMAND_STOP);
  }
  pthread_join(loop->thread.id, NULL);
  CHECK(loop->phase == RT_PHASE_DONE && loop->end.reason == RT_END_NORMAL && loop->end.code == 0);
  CHECK(probe.enters == !is_refused && probe.leaves == !is_refused);
  CHECK(rt_stack_high_water(&loop->thread.stack) > 0 &&
        rt_stack_high_water(&loop->thread.stack) < loop->thread.stack.bytes);
  if (!is_refused) {
    CHECK(rt_telemetry_snapshot(loop->telemetry, bank, &(uint64_t){0}, 1) == 0);
    CHECK((int64_t)bank->counters.cycles < probe.steps && bank->counters.warmup == 0);
    CHECK(probe.overruns > 0 && probe.missed > 0 && probe.requests > 0);
    uint64_t cycles = reader.position;
    (void)read_samples(&reader, &cycles);
    CHECK(ring->written == (uint64_t)probe.steps && cycles == ring->written);
    CHECK(probe.slacks == probe.requests || probe.slacks == probe.requests - 1); /* the stop may have come first */
  }
  rt_stack_unmap(&loop->thread.stack);
  munmap(block, rt_telemetry_bytes(64, 0));
  close(fd);
  munmap(state, sizeof(rt_loop_t));
  free(ring);
  free(bank);
}

/* A loop of a group: it fails in step `fail_at`, or sees that its first release is the group's. */
typedef struct member {
  rt_loop_t *loop;
  int64_t steps, fail_at, off_grid;
  int asked, answer, leaves;
} member_t;

static int member_enter(void *self) {
  (void)self;
  return RT_CONTINUE;
}

static int member_step(void *self, const rt_cycle_t *cycle) {
  member_t *m = self;
  const int64_t since = cycle->release - m->loop->grid.origin - m->loop->grid.phase;
  m->off_grid += since < 0 || since % cycle->period != 0 || (m->steps == 0 && since != 0);
  return m->steps++ == m->fail_at ? -EIO : RT_CONTINUE;
}

static int member_overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  (void)self;
  (void)cycle;
  (void)missed;
  return RT_CONTINUE;
}

static void member_leave(void *self) { ((member_t *)self)->leaves++; }

static int member_asked(void *self) {
  ((member_t *)self)->asked++;
  return ((member_t *)self)->answer;
}

static void *member_body(void *argument) {
  member_t *m = argument;
  rt_loop_main(m->loop, m, member_enter, member_step, member_overrun, wait, member_leave);
  return NULL;
}

/* Three loops wait for one origin; the second fails and sends its siblings `command`. is_stopped: all are stopped while
 * they wait. In on_peer_failure() the first loop continues until it is stopped, and the third, whose next release is an
 * hour away, fails. */
static void run_group(int is_stopped, uint32_t command) {
  enum { LOOPS = 3 };
  member_t members[LOOPS] = {0};
  void *states[LOOPS] = {0}, *blocks[LOOPS] = {0};
  int fds[LOOPS];
  for (int i = 0; i < LOOPS; i++) {
    CHECK(rt_memory_map(&states[i], sizeof(rt_loop_t)) == 0);
    CHECK(rt_memory_map_sealed("rtloop:native", rt_telemetry_bytes(64, 0), &blocks[i], &fds[i]) == 0);
    rt_loop_t *loop = members[i].loop = states[i];
    members[i].fail_at = i == 1 ? 20 : -1;
    loop->telemetry = blocks[i];
    rt_telemetry_init(loop->telemetry, 64, 64, 0);
    loop->schedule.period = i == 2 && command == RT_COMMAND_SIBLING_FAILED ? 3600 * RT_NS_PER_S : 1000000 * (i + 1);
    loop->group.failure_command = command;
    loop->hooks.self = &members[i];
    loop->hooks.on_peer_failure = member_asked;
    members[i].answer = i == 2 ? -7 : RT_CONTINUE;
    loop->grid.phase = 1000 * i;
    loop->clock = CLOCK_MONOTONIC;
    loop->read_clock = clock_gettime;
    loop->limits.max_cycles = UINT64_MAX;
    loop->limits.max_duration = INT64_MAX;
    loop->group.is_member = 1;
    loop->thread.request.attr.size = sizeof loop->thread.request.attr;
    CHECK(rt_stack_map(&loop->thread.stack, 4 << 20) == 0);
    loop->phase = RT_PHASE_STARTING;
    CHECK(rt_thread_create(&loop->thread.id, &loop->thread.stack, member_body, &members[i]) == 0);
    while (rt_futex_wait(&loop->phase, RT_PHASE_STARTING, RT_NS_PER_S) == RT_PHASE_STARTING) continue;
  }
  for (int i = 0; i < LOOPS; i++) members[i].loop->group.next = members[(i + 1) % LOOPS].loop;
  for (int i = 0; i < LOOPS; i++) rt_store_release(&members[i].loop->phase, RT_PHASE_GO);
  for (int i = 0; i < LOOPS; i++) {
    uint32_t *phase = &members[i].loop->phase;
    while (rt_futex_wait(phase, RT_PHASE_GO, RT_NS_PER_S) == RT_PHASE_GO) continue;
    CHECK(rt_load_acquire(phase) == RT_PHASE_ENTERED && members[i].steps == 0);
  }
  if (is_stopped) {
    for (int i = 0; i < LOOPS; i++) rt_loop_send_command(members[i].loop, RT_COMMAND_STOP);
  } else {
    const int64_t origin = rt_clock_now(CLOCK_MONOTONIC) + 2000000;
    for (int i = 0; i < LOOPS; i++) {
      members[i].loop->grid.origin = origin;
      rt_loop_begin(members[i].loop);
    }
  }
  const int is_asked = command == RT_COMMAND_SIBLING_FAILED && !is_stopped;
  for (int i = LOOPS - 1; i >= 0; i--) {
    rt_loop_t *loop = members[i].loop;
    if (i == 0 && is_asked) {
      usleep(20000); /* time for a second on_peer_failure(), because of the third loop, and for more cycles */
      rt_loop_send_command(loop, RT_COMMAND_STOP);
    }
    for (int tries = 0; tries < PATIENCE && rt_load_acquire(&loop->phase) != RT_PHASE_DONE; tries++) {
      rt_futex_wait(&loop->phase, rt_load_acquire(&loop->phase), 100000000);
    }
    CHECK(rt_load_acquire(&loop->phase) == RT_PHASE_DONE);
    pthread_join(loop->thread.id, NULL);
    const int ends[] = {RT_END_NORMAL, RT_END_STEP, is_asked ? RT_END_ON_PEER_FAILURE : RT_END_NORMAL};
    CHECK(loop->phase == RT_PHASE_DONE && loop->end.reason == (is_stopped ? RT_END_NORMAL : ends[i]));
    CHECK(loop->end.code == (loop->end.reason == RT_END_STEP              ? -EIO
                             : loop->end.reason == RT_END_ON_PEER_FAILURE ? -7
                                                                          : 0));
    CHECK(members[i].off_grid == 0 && (is_stopped ? members[i].steps == 0 : members[i].steps > 0));
    CHECK(members[i].leaves == 1 && (is_asked && i != 1 ? members[i].asked >= 1 : members[i].asked == 0));
  }
  CHECK(!is_asked ||
        (members[0].asked <= 2 && members[0].steps > 40 && members[2].asked == 1 && members[2].steps == 1));
  /* A loop that does not wait for its origin is not moved. */
  rt_loop_begin(members[0].loop);
  CHECK(members[0].loop->phase == RT_PHASE_DONE);
  for (int i = 0; i < LOOPS; i++) {
    rt_stack_unmap(&members[i].loop->thread.stack);
    munmap(blocks[i], rt_telemetry_bytes(64, 0));
    close(fds[i]);
    munmap(states[i], sizeof(rt_loop_t));
  }
}

int main(void) {
  run_group(0, RT_COMMAND_STOP);
  run_group(1, RT_COMMAND_STOP);
  run_group(0, RT_COMMAND_SIBLING_FAILED);
  run_group(1, RT_COMMAND_SIBLING_FAILED);
  for (unsigned words = 1; words <= MOST_SIGNALS; words++) run(0, 0, UINT64_C(1) << words, words, 0);
  run(1, 0, 4, 1, 1);
  run(0, 1, 2, 1, 0);
  return CHECK_DONE();
}
