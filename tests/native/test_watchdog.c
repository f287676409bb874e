/* The watchdog of a group: its arithmetic with simulated loops, and its thread next to real loops that hang. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <time.h>

/* Sleep, or refuse to, as below a seccomp filter. */
static int is_forbidden;

static int sleep_or_refuse(clockid_t clock, int flags, const struct timespec *time, struct timespec *left) {
  return is_forbidden ? EPERM : clock_nanosleep(clock, flags, time, left);
}

#define clock_nanosleep sleep_or_refuse

#include "rtloop/loop.h"
#include "rtloop/memory.h"
#include "rtloop/watchdog.h"

#include "check.h"

#define HOUR (3600 * RT_NS_PER_S)
#define MS INT64_C(1000000)

typedef struct subject {
  rt_loop_t *loop;
  int64_t steps, hang_at, hang_ns, steps_when_safe;
  int32_t safes, leaves, asked, let_go; /* read by other threads */
  int32_t safe_tid, was_safe_when_left;
} subject_t;

static int64_t made_up_time; /* what the loops' clock shows, where no thread runs */

static int made_up_clock(clockid_t clock, struct timespec *time) {
  (void)clock;
  *time = (struct timespec){.tv_sec = (time_t)(made_up_time / RT_NS_PER_S), .tv_nsec = made_up_time % RT_NS_PER_S};
  return 0;
}

static int safe(void *self) {
  subject_t *s = self;
  s->safe_tid = (int32_t)syscall(SYS_gettid);
  s->steps_when_safe = rt_load_relaxed(&s->steps);
  usleep(2000);
  __atomic_fetch_add(&s->safes, 1, __ATOMIC_RELEASE);
  return 42;
}

static int asked(void *self) {
  __atomic_fetch_add(&((subject_t *)self)->asked, 1, __ATOMIC_RELAXED);
  return RT_CONTINUE;
}

static int enter(void *self) {
  (void)self;
  return RT_CONTINUE;
}

static int step(void *self, const rt_cycle_t *cycle) {
  subject_t *s = self;
  rt_store_relaxed(&s->steps, s->steps + 1);
  if ((int64_t)cycle->index == s->hang_at) {
    const int64_t until = rt_clock_now(CLOCK_MONOTONIC) + s->hang_ns;
    while (rt_clock_now(CLOCK_MONOTONIC) < until && !rt_load_acquire(&s->let_go)) {
      if (s->hang_ns > 100 * MS) usleep(100);
    }
  }
  return RT_CONTINUE;
}

static int overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  (void)self;
  (void)cycle;
  (void)missed;
  return RT_CONTINUE;
}

static int wait(void *self, int64_t release) {
  (void)self;
  (void)release;
  return -EINVAL;
}

static void leave(void *self) {
  subject_t *s = self;
  s->was_safe_when_left = rt_load_acquire(&s->safes);
  rt_store_release(&s->leaves, s->leaves + 1);
}

static void *body(void *self) {
  subject_t *s = self;
  rt_loop_main(s->loop, s, enter, step, overrun, wait, leave);
  return NULL;
}

static void *dog_body(void *dog) {
  rt_watchdog_main(dog);
  return NULL;
}

/* A loop with a period of a millisecond, in its grid. */
static void make(subject_t *s) {
  void *state = NULL, *block = NULL;
  int fd = -1;
  CHECK(rt_memory_map(&state, sizeof(rt_loop_t)) == 0);
  CHECK(rt_memory_map_sealed("rtloop:native", rt_telemetry_bytes(0, 0), &block, &fd) == 0);
  close(fd);
  *s = (subject_t){.loop = state, .hang_at = -1};
  rt_loop_t *loop = s->loop;
  loop->telemetry = block;
  rt_telemetry_init(loop->telemetry, 0, 0, 0);
  loop->schedule.period = MS;
  loop->clock = CLOCK_MONOTONIC;
  loop->read_clock = clock_gettime;
  loop->limits.max_cycles = UINT64_MAX;
  loop->limits.max_duration = INT64_MAX;
  loop->group.is_member = 1;
  loop->hooks.self = s;
  loop->hooks.safe = safe;
  loop->hooks.on_peer_failure = asked;
  loop->group.failure_command = RT_COMMAND_STOP;
  loop->thread.request.attr.size = sizeof loop->thread.request.attr;
  loop->watch = RT_WATCH_ON;
}

static void discard(subject_t *s) {
  munmap(s->loop->telemetry, rt_telemetry_bytes(0, 0));
  munmap(s->loop, sizeof(rt_loop_t));
}

static rt_watchdog_t *make_dog(subject_t *subjects, uint32_t count, int64_t limit, int64_t interval) {
  void *address = NULL;
  CHECK(rt_memory_map(&address, rt_watchdog_bytes(count)) == 0);
  rt_watchdog_t *dog = address;
  dog->interval = interval;
  dog->count = count;
  dog->request.attr.size = sizeof dog->request.attr;
  for (uint32_t i = 0; i < count; i++) {
    dog->loops[i].loop = subjects[i].loop;
    dog->loops[i].limit = limit;
  }
  return dog;
}

static void complete(subject_t *s, int64_t end) {
  rt_telemetry_t *t = s->loop->telemetry;
  t->written++;
  t->banks[t->active].counters.last_end = end;
}

static void check_arithmetic(void) {
  subject_t s;
  make(&s);
  rt_watchdog_t *dog = make_dog(&s, 1, 4 * HOUR, HOUR);
  rt_watched_t *w = &dog->loops[0];
  rt_loop_t *loop = s.loop;
  const int64_t now = rt_clock_now(CLOCK_MONOTONIC);
  rt_counters_t *c = &loop->telemetry->banks[0].counters;

  /* Not begun, for however long. */
  loop->read_clock = made_up_clock;
  for (uint32_t phase = RT_PHASE_STARTING; phase <= RT_PHASE_ENTERED; phase++) {
    loop->phase = phase;
    CHECK(!rt_watchdog_is_stuck(w, now + 100 * HOUR) && w->since == INT64_MAX);
    CHECK(rt_watchdog_allow_for_delay(dog, now, now + HOUR) == now + HOUR && w->since == INT64_MAX);
  }
  /* Begun, and waiting for its first release, by the loop's clock. */
  loop->phase = RT_PHASE_BEGIN;
  loop->grid.origin = HOUR;
  loop->grid.phase = HOUR;
  for (made_up_time = 0; made_up_time < 2 * HOUR; made_up_time += HOUR / 2) {
    CHECK(!rt_watchdog_is_stuck(
        w, now + 200 * HOUR)); /* the limit counts from the release, not from the check before it */
    CHECK(w->since >= now + 2 * HOUR - made_up_time && w->since < now + 2 * HOUR - made_up_time + HOUR / 2);
  }
  const int64_t release = w->since;
  made_up_time = 2 * HOUR;
  CHECK(!rt_watchdog_is_stuck(w, release + 4 * HOUR - 1));
  CHECK(rt_watchdog_is_stuck(w, release + 4 * HOUR)); /* its thread has not even come so far */
  rt_telemetry_begin_run(loop->telemetry, 3 * HOUR);
  CHECK(!rt_watchdog_is_stuck(w, now + 204 * HOUR) && w->since >= now + HOUR && w->since < now + 2 * HOUR);
  CHECK(!rt_watchdog_is_stuck(w, now + 300 * HOUR) && w->since < now + 2 * HOUR);
  /* A release that had come before the grid was first looked at. */
  w->since = INT64_MAX;
  made_up_time = 4 * HOUR;
  CHECK(!rt_watchdog_is_stuck(w, now + 300 * HOUR) && w->since >= now && w->since < now + HOUR / 2);
  made_up_time = 2 * HOUR;

  /* Each completed cycle begins the time anew, when it has been seen; after that a clock set back is no excuse. */
  complete(&s, 3 * HOUR);
  CHECK(!rt_watchdog_is_stuck(w, now + 400 * HOUR));
  CHECK(w->since >= now && w->since < now + HOUR && w->written == 1);
  made_up_time = 0;
  CHECK(!rt_watchdog_is_stuck(w, w->since + 4 * HOUR - 1) && rt_watchdog_is_stuck(w, w->since + 4 * HOUR));
  complete(&s, 3 * HOUR); /* at the same time on a clock that was set back */
  CHECK(!rt_watchdog_is_stuck(w, w->since + 4 * HOUR));

  /* A cycle that has shifted the grid puts the next one off, once. */
  complete(&s, 5 * HOUR);
  c->shifted += 3 * HOUR;
  CHECK(!rt_watchdog_is_stuck(w, now));
  CHECK(!rt_watchdog_is_stuck(w, w->since + 7 * HOUR - 1) && rt_watchdog_is_stuck(w, w->since + 7 * HOUR));
  complete(&s, 6 * HOUR);
  c->shifted -= HOUR;
  CHECK(!rt_watchdog_is_stuck(w, now) && w->allowance == 0);
  CHECK(rt_watchdog_is_stuck(w, w->since + 4 * HOUR));
  complete(&s, 7 * HOUR);
  CHECK(!rt_watchdog_is_stuck(w, now));
  c->shifted += HOUR; /* seen a check later, for it is written after the count */
  CHECK(!rt_watchdog_is_stuck(w, w->since + 4 * HOUR));
  CHECK(!rt_watchdog_is_stuck(w, w->since + 5 * HOUR - 1) && rt_watchdog_is_stuck(w, w->since + 5 * HOUR));

  /* A reset of the statistics in between: the count goes on, the planned release is waited for, and shifts are counted
   * from 0 again. */
  c->shifted = -7 * HOUR;
  CHECK(!rt_watchdog_is_stuck(w, now) && w->allowance == 0);
  complete(&s, 8 * HOUR);
  made_up_time = 9 * HOUR;
  rt_bank_clear(&loop->telemetry->banks[1]);
  rt_telemetry_swap_banks(loop->telemetry, 10 * HOUR);
  CHECK(!rt_watchdog_is_stuck(w, now) && w->written == 6 && w->allowance == 0);
  CHECK(!rt_watchdog_is_stuck(w, now + 100 * HOUR) && w->since >= now + HOUR && w->since < now + 2 * HOUR);
  complete(&s, 11 * HOUR);
  CHECK(!rt_watchdog_is_stuck(w, now));

  /* A delay of the watchdog's own thread does not count against a loop. */
  const int64_t since = w->since;
  CHECK(rt_watchdog_allow_for_delay(dog, now, now + HOUR - 1) == now && w->since == since);
  CHECK(rt_watchdog_allow_for_delay(dog, now, now + 5 * HOUR + 7) == now + 5 * HOUR &&
        w->since == since + 5 * HOUR + 7);

  /* It trips once: the report, the loop's stop, safe() and the siblings, in this order. After that it no longer checks
   * the loop. */
  subject_t other;
  make(&other);
  loop->group.next = other.loop;
  other.loop->group.next = loop;
  made_up_time = 20 * HOUR;
  CHECK(rt_watchdog_check(dog, now) == 1 && loop->watch == RT_WATCH_ON && s.safes == 0 && dog->checks == 1);
  CHECK(rt_watchdog_check(dog, now + 10 * HOUR) == 0 && dog->checks == 2);
  CHECK(loop->watch == RT_WATCH_SAFE && s.safes == 1 && loop->command == RT_COMMAND_STOP &&
        loop->end.reason_on_stop == 0);
  CHECK(other.loop->command == RT_COMMAND_STOP && other.safes == 0);
  const rt_trip_t *trip = &loop->trip;
  CHECK(trip->cycles == 7 && trip->acted == 20 * HOUR && trip->stuck == 9 * HOUR && trip->limit == 4 * HOUR);
  CHECK(trip->safe_code == 42 && trip->safe_ended == 20 * HOUR && trip->monotonic >= now);
  CHECK(rt_watchdog_check(dog, now + 99 * HOUR) == 0 && s.safes == 1);
  CHECK(rt_watch_finish(&loop->watch) == 1);

  /* A loop that has ended by itself is left alone, and so is one without a watchdog. */
  CHECK(rt_watch_finish(&other.loop->watch) == 0 && other.loop->watch == RT_WATCH_OVER);
  CHECK(!rt_watch_take(&other.loop->watch));
  other.loop->watch = RT_WATCH_NONE;
  CHECK(rt_watch_finish(&other.loop->watch) == 0 && other.loop->watch == RT_WATCH_NONE);
  munmap(dog, rt_watchdog_bytes(1));
  discard(&s);
  discard(&other);
}

typedef struct leaver {
  uint32_t word;
  int32_t was_acted_on, has_left;
} leaver_t;

static void *leave_watch(void *argument) {
  leaver_t *leaver = argument;
  leaver->was_acted_on = rt_watch_finish(&leaver->word);
  rt_store_release(&leaver->has_left, 1);
  return NULL;
}

/* A loop that ends waits for a check to end, and for safe() to return if the watchdog trips. */
static void check_leaving(int is_acted_on) {
  leaver_t leaver = {.word = RT_WATCH_ON};
  pthread_t thread;
  CHECK(rt_watch_take(&leaver.word) && !rt_watch_take(&leaver.word));
  CHECK(pthread_create(&thread, NULL, leave_watch, &leaver) == 0);
  usleep(20000);
  CHECK(!rt_load_acquire(&leaver.has_left));
  if (is_acted_on) {
    rt_store_release(&leaver.word, RT_WATCH_TRIPPED);
    usleep(20000);
    CHECK(!rt_load_acquire(&leaver.has_left));
    rt_futex_set(&leaver.word, RT_WATCH_SAFE);
  } else {
    rt_watch_give(&leaver.word);
  }
  pthread_join(thread, NULL);
  CHECK(leaver.was_acted_on == is_acted_on && leaver.word == (is_acted_on ? RT_WATCH_SAFE : RT_WATCH_OVER));
  CHECK(rt_watch_finish(&leaver.word) == is_acted_on); /* as the one who finds that its thread is gone */
}

static void launch(subject_t *s) {
  rt_loop_t *loop = s->loop;
  CHECK(rt_stack_map(&loop->thread.stack, 4 << 20) == 0);
  loop->phase = RT_PHASE_STARTING;
  CHECK(rt_thread_create(&loop->thread.id, &loop->thread.stack, body, s) == 0);
  while (rt_futex_wait(&loop->phase, RT_PHASE_STARTING, RT_NS_PER_S) == RT_PHASE_STARTING) continue;
}

static void launch_dog(rt_watchdog_t *dog) {
  CHECK(rt_stack_map(&dog->stack, 4 << 20) == 0);
  dog->phase = RT_PHASE_STARTING;
  CHECK(rt_thread_create(&dog->thread, &dog->stack, dog_body, dog) == 0);
  while (rt_futex_wait(&dog->phase, RT_PHASE_STARTING, RT_NS_PER_S) == RT_PHASE_STARTING) continue;
  CHECK(dog->report.tid > 0 && dog->phase == RT_PHASE_READY);
  rt_store_release(&dog->phase, RT_PHASE_GO);
}

static void begin(subject_t *subjects, int count) {
  for (int i = 0; i < count; i++) rt_store_release(&subjects[i].loop->phase, RT_PHASE_GO);
  for (int i = 0; i < count; i++) {
    uint32_t *phase = &subjects[i].loop->phase;
    while (rt_futex_wait(phase, RT_PHASE_GO, RT_NS_PER_S) == RT_PHASE_GO) continue;
  }
  const int64_t origin = rt_clock_now(CLOCK_MONOTONIC) + 2 * MS;
  for (int i = 0; i < count; i++) {
    subjects[i].loop->grid.origin = origin;
    rt_loop_begin(subjects[i].loop);
  }
}

/* Join a thread that ends, and soon. */
static void join(pthread_t thread, uint32_t *phase) {
  for (int tries = 0; tries < 200 && rt_load_acquire(phase) != RT_PHASE_DONE; tries++) {
    rt_futex_wait(phase, rt_load_acquire(phase), 100 * MS);
  }
  CHECK(rt_load_acquire(phase) == RT_PHASE_DONE);
  pthread_join(thread, NULL);
}

enum { NOBODY, STOPS, ASKS };

/* Three loops; the second hangs in its step 20 until it is released (NOBODY: none hangs). */
static void run_group(int command) {
  enum { LOOPS = 3 };
  subject_t subjects[LOOPS];
  for (int i = 0; i < LOOPS; i++) make(&subjects[i]);
  for (int i = 0; i < LOOPS; i++) {
    subjects[i].loop->group.next = subjects[(i + 1) % LOOPS].loop;
    subjects[i].loop->group.failure_command = command == ASKS ? RT_COMMAND_SIBLING_FAILED : RT_COMMAND_STOP;
    launch(&subjects[i]);
  }
  subject_t *stuck = &subjects[1];
  rt_loop_t *loop = stuck->loop;
  if (command != NOBODY) {
    stuck->hang_at = 20;
    stuck->hang_ns = HOUR;
  }
  const int64_t limit = 500 * MS; /* a busy machine may keep an innocent one from running for some time */
  rt_watchdog_t *dog = make_dog(subjects, LOOPS, limit, MS);
  launch_dog(dog);
  begin(subjects, LOOPS);
  if (command == NOBODY) {
    usleep(150000);
    for (int i = 0; i < LOOPS; i++) {
      CHECK(rt_load_acquire(&subjects[i].loop->watch) != RT_WATCH_OVER);
      rt_loop_send_command(subjects[i].loop, RT_COMMAND_STOP);
    }
  } else {
    while (rt_load_acquire(&loop->watch) != RT_WATCH_SAFE) usleep(1000);
    CHECK(loop->trip.safe_code == 42 && loop->trip.cycles == 20 && loop->trip.stuck >= limit);
    const rt_counters_t *c = &loop->telemetry->banks[0].counters;
    CHECK(loop->trip.acted - loop->trip.stuck == rt_load_relaxed(&c->last_end));
    CHECK(stuck->safe_tid == dog->report.tid && stuck->safe_tid != loop->thread.report.tid &&
          stuck->steps_when_safe == 21);
    CHECK(rt_load_acquire(&loop->phase) == RT_PHASE_BEGIN && rt_load_acquire(&stuck->leaves) == 0);
    if (command == ASKS) {
      while (!rt_load_relaxed(&subjects[0].asked) || !rt_load_relaxed(&subjects[2].asked)) usleep(1000);
      const int64_t steps = rt_load_relaxed(&subjects[0].steps);
      while (rt_load_relaxed(&subjects[0].steps) < steps + 5) usleep(1000);
      rt_loop_send_command(subjects[0].loop, RT_COMMAND_STOP);
      rt_loop_send_command(subjects[2].loop, RT_COMMAND_STOP);
    }
    join(subjects[0].loop->thread.id, &subjects[0].loop->phase);
    join(subjects[2].loop->thread.id, &subjects[2].loop->phase);
    join(dog->thread, &dog->phase); /* its work is done, although the loop still hangs */
    rt_store_release(&stuck->let_go, 1);
  }
  for (int i = 0; i < LOOPS; i++) {
    const int is_joined = command != NOBODY && i != 1;
    if (!is_joined) join(subjects[i].loop->thread.id, &subjects[i].loop->phase);
    const int is_stuck = command != NOBODY && i == 1;
    CHECK(subjects[i].loop->end.reason == (is_stuck ? RT_END_WATCHDOG : RT_END_NORMAL));
    CHECK(subjects[i].safes == is_stuck && subjects[i].leaves == 1 && subjects[i].was_safe_when_left == is_stuck);
    CHECK(!is_stuck || (subjects[i].steps == 21 && subjects[i].asked == 0));
  }
  if (command == NOBODY) join(dog->thread, &dog->phase);
  CHECK(dog->checks > 10);
  rt_stack_unmap(&dog->stack);
  munmap(dog, rt_watchdog_bytes(LOOPS));
  for (int i = 0; i < LOOPS; i++) {
    rt_stack_unmap(&subjects[i].loop->thread.stack);
    discard(&subjects[i]);
  }
}

/* A loop whose slow step ends just when the watchdog would trip: exactly one of the two happens. The memory of a loop
 * that has ended is unmapped, so the watchdog must no longer read it. */
static int run_race(uint64_t *seed) {
  subject_t s;
  make(&s);
  launch(&s);
  s.hang_at = 2;
  s.hang_ns = 2 * MS + (int64_t)(check_random(seed) % 1000000);
  rt_watchdog_t *dog = make_dog(&s, 1, 2 * MS, 50000);
  launch_dog(dog);
  s.loop->limits.max_cycles = 3 + check_random(seed) % 2;
  begin(&s, 1);
  join(s.loop->thread.id, &s.loop->phase);
  const int is_stuck = s.loop->end.reason == RT_END_WATCHDOG;
  munmap(s.loop->telemetry, rt_telemetry_bytes(0, 0));
  CHECK(is_stuck || s.loop->end.reason == RT_END_NORMAL);
  CHECK(s.safes == is_stuck && s.was_safe_when_left == is_stuck && s.leaves == 1);
  CHECK(rt_load_acquire(&s.loop->watch) == (is_stuck ? RT_WATCH_SAFE : RT_WATCH_OVER));
  /* One step may have begun before the stop was asked for, and none after it. */
  CHECK(!is_stuck || s.steps <= s.steps_when_safe + 1);
  join(dog->thread, &dog->phase);
  rt_stack_unmap(&dog->stack);
  rt_stack_unmap(&s.loop->thread.stack);
  munmap(dog, rt_watchdog_bytes(1));
  munmap(s.loop, sizeof(rt_loop_t));
  return is_stuck;
}

/* A thread that is never released. */
static void run_abort(void) {
  subject_t s;
  make(&s);
  rt_watchdog_t *dog = make_dog(&s, 1, MS, MS);
  CHECK(rt_stack_map(&dog->stack, 4 << 20) == 0);
  dog->phase = RT_PHASE_STARTING;
  CHECK(rt_thread_create(&dog->thread, &dog->stack, dog_body, dog) == 0);
  rt_futex_wait(&dog->phase, RT_PHASE_STARTING, 20 * RT_NS_PER_S);
  rt_store_release(&dog->phase, RT_PHASE_ABORT);
  join(dog->thread, &dog->phase);
  CHECK(dog->checks == 0 && s.loop->watch == RT_WATCH_ON);
  rt_stack_unmap(&dog->stack);
  munmap(dog, rt_watchdog_bytes(1));
  discard(&s);
}

/* Below a filter on clock_nanosleep(2) the watchdog waits in another way: it watches as before, and does not spin. */
static void check_filtered(void) {
  subject_t s;
  make(&s);
  rt_watchdog_t *dog = make_dog(&s, 1, 60 * MS, 5 * MS);
  const int64_t begin = rt_clock_now(CLOCK_MONOTONIC);
  s.loop->phase = RT_PHASE_BEGIN;
  s.loop->grid.origin = begin;
  dog->phase = RT_PHASE_GO;
  is_forbidden = 1;
  rt_watchdog_run(dog);
  is_forbidden = 0;
  const int64_t took = rt_clock_now(CLOCK_MONOTONIC) - begin;
  CHECK(took >= 60 * MS && s.safes == 1 && s.loop->watch == RT_WATCH_SAFE);
  CHECK((int64_t)dog->checks <= took / (5 * MS) + 2);
  munmap(dog, rt_watchdog_bytes(1));
  discard(&s);
}

int main(void) {
  check_arithmetic();
  check_filtered();
  check_leaving(0);
  check_leaving(1);
  run_abort();
  run_group(NOBODY);
  run_group(STOPS);
  run_group(ASKS);
  uint64_t seed = 88172645463325252u;
  int stuck = 0;
  for (int i = 0; i < 60; i++) stuck += run_race(&seed);
  printf("%d of 60 stuck\n", stuck);
  return CHECK_DONE();
}
