/* The loop on a simulated clock, in one thread: its sleeps, their deadlines and number, and the handling of their
 * results.
 *
 * clock_gettime and clock_nanosleep are replaced below, so that time passes only where a test lets it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "check.h"

enum { MAX_SLEEPS = 4096 };

static struct {
  int64_t now;
  int64_t read_ns;         /* duration of one read of the clock */
  int64_t lateness;        /* of a wake-up */
  int64_t interrupt_after; /* how long an interrupted sleep lasts */
  int interrupts;          /* how many of the next sleeps end with EINTR */
  int error;               /* what the next sleeps that are not interrupted return */
  int sleeps, reads;
  int64_t until[MAX_SLEEPS];
  void (*on_sleep)(void);
} clock_;

static int fake_gettime(clockid_t which, struct timespec *time) {
  (void)which;
  CHECK(++clock_.reads < 20000000); /* a spin that never ends */
  clock_.now += clock_.read_ns;
  *time = (struct timespec){.tv_sec = clock_.now / 1000000000, .tv_nsec = clock_.now % 1000000000};
  return 0;
}

static int fake_nanosleep(clockid_t which, int flags, const struct timespec *time, struct timespec *left) {
  const int64_t until = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec;
  CHECK(which == CLOCK_MONOTONIC && flags == TIMER_ABSTIME && left == NULL);
  CHECK(clock_.sleeps < MAX_SLEEPS);
  clock_.until[clock_.sleeps++] = until;
  if (clock_.on_sleep) clock_.on_sleep();
  if (clock_.interrupts) {
    clock_.interrupts--;
    clock_.now += clock_.interrupt_after;
    return EINTR;
  }
  if (clock_.error) return clock_.error;
  if (until > clock_.now) clock_.now = until;
  clock_.now += clock_.lateness;
  return 0;
}

#define clock_gettime fake_gettime
#define clock_nanosleep fake_nanosleep
#include "rtloop/loop.h"

enum { PERIOD = 1000000, START = 5000000 };

static rt_loop_t loop;

static struct {
  int64_t steps, missed, early, overruns, waits;
  int64_t busy_ns, busy_every, jitter_ns;
  int resets;
  int64_t slack_every; /* after so many steps, a call between two cycles ends half a period after the next release */
  uint64_t seed;
  rt_counters_t sum; /* of the banks that a reset has retired */
} user;

static void begin(void) {
  static rt_telemetry_t *block;
  if (!block) block = aligned_alloc(RT_CACHE_LINE, sizeof *block + RT_CACHE_LINE); /* of one record */
  CHECK(block);
  memset(block, 0, sizeof *block);
  rt_telemetry_init(block, 0, 0, 0);
  memset(&loop, 0, sizeof loop);
  memset(&user, 0, sizeof user);
  memset(&clock_, 0, sizeof clock_);
  user.seed = 1;
  clock_.now = START;
  loop.telemetry = block;
  loop.clock = CLOCK_MONOTONIC;
  loop.read_clock = clock_gettime;
  loop.schedule.period = PERIOD;
  loop.limits.max_cycles = UINT64_MAX;
  loop.limits.max_duration = INT64_MAX;
}

static uint64_t counted(int which, int histogram) {
  const rt_histogram_t *h = &loop.telemetry->banks[which].histograms[histogram];
  uint64_t sum = 0;
  for (uint32_t i = 0; i < RT_HISTOGRAM_COUNTERS; i++) sum += h->counts[i];
  return sum;
}

static int idle_bank(void) { return (int)loop.telemetry->active ^ 1; }

static void add(int which) {
  const rt_counters_t *c = &loop.telemetry->banks[which].counters;
  user.sum.cycles += counted(which, RT_RESPONSE);
  user.sum.missed += c->missed;
  user.sum.overruns += c->overruns;
}

static void pass_the_release(void *self) {
  (void)self;
  clock_.now += PERIOD + PERIOD / 2;
}

static int step(void *self, const rt_cycle_t *cycle) {
  (void)self;
  if (user.slack_every) {
    CHECK((int64_t)loop.bank->counters.late == (user.steps ? (user.steps - 1) / user.slack_every : 0));
    if ((user.steps + 1) % user.slack_every == 0) rt_loop_request_slack(&loop, pass_the_release, NULL);
  }
  user.early += cycle->start < cycle->release;
  user.missed += cycle->missed;
  user.steps++;
  if (user.busy_every && user.steps % user.busy_every == 0) clock_.now += user.busy_ns;
  if (user.jitter_ns) clock_.now += (int64_t)(check_random(&user.seed) % (uint64_t)user.jitter_ns);
  if (user.resets && check_random(&user.seed) % 3 == 0 && !(loop.command & RT_COMMAND_RESET)) {
    add(idle_bank());
    rt_bank_clear(&loop.telemetry->banks[idle_bank()]);
    rt_loop_send_command(&loop, RT_COMMAND_RESET);
  }
  return RT_CONTINUE;
}

static int overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  (void)self;
  (void)cycle;
  (void)missed;
  user.overruns++;
  return RT_CONTINUE;
}

static int own_wait(void *self, int64_t release) {
  (void)self;
  user.waits++;
  return rt_loop_default_wait(&loop, release);
}

static int run(uint64_t cycles) {
  loop.limits.max_cycles = cycles;
  rt_loop_start(&loop, rt_clock_now(loop.clock));
  return rt_loop_run_cycles(&loop, NULL, step, overrun, own_wait);
}

static int64_t wait_for(int64_t release, int *rc) {
  int64_t now = rt_clock_now(loop.clock);
  if (loop.spin.margin || release - now > RT_SLICE_NS) {
    now = rt_loop_wait_slow(&loop, now, release, 1);
  } else {
    CHECK(rt_loop_wait(&loop, &now, release) == (now >= 0));
  }
  *rc = now < 0 ? (int)now : 0;
  return now;
}

static struct {
  rt_histogram_t latency, interval;
  int64_t start;
} noted;

enum { SHORT_WAITS = 513 };

/* Wait for 20 releases, with latencies from 0 to nearly a period; then return at once, and in the end wait again. */
static int hasty_wait(void *self, int64_t release) {
  (void)self;
  user.waits++;
  if (user.waits <= 20 || user.waits > 20 + SHORT_WAITS)
    clock_.now = release + (user.waits % 2 ? 0 : loop.schedule.period - 2 * clock_.read_ns);
  return 0;
}

static int note(void *self, const rt_cycle_t *cycle) {
  (void)self;
  rt_histogram_record(&noted.latency, cycle->start - cycle->release);
  if (cycle->index) rt_histogram_record(&noted.interval, cycle->start - noted.start);
  noted.start = cycle->start;
  return RT_CONTINUE;
}

static void check_equal(const rt_histogram_t *found, const rt_histogram_t *expected) {
  CHECK(found->min == expected->min && found->max == expected->max && found->sum == expected->sum);
  CHECK(found->squares_low == expected->squares_low && found->squares_high == expected->squares_high);
  CHECK(memcmp(found->counts, expected->counts, sizeof found->counts) == 0);
}

/* A wait() of the loop's own may return at any time, even 2^32 ns before the release: what is recorded is exact. */
static void counts_cycles_before_their_release(void) {
  static rt_bank_t bank;
  uint64_t written;
  begin();
  rt_histogram_clear(&noted.latency);
  rt_histogram_clear(&noted.interval);
  clock_.read_ns = 100;
  loop.has_own_wait = 1;
  loop.schedule.period = 1 << 23;
  loop.limits.max_cycles = 20 + SHORT_WAITS + 20;
  rt_loop_start(&loop, START);
  CHECK(rt_loop_run_cycles(&loop, NULL, note, overrun, hasty_wait) == RT_END_NORMAL);
  CHECK(noted.latency.min < -INT64_C(4200000000) && noted.interval.max > INT64_C(1) << 32);
  rt_bank_clear(&bank);
  CHECK(rt_telemetry_snapshot(loop.telemetry, &bank, &written, 1) == 0);
  check_equal(&bank.histograms[RT_LATENCY], &noted.latency);
  check_equal(&bank.histograms[RT_INTERVAL], &noted.interval);
}

static void sleeps_once_until_the_release(void) {
  begin();
  int rc;
  CHECK(wait_for(START + 700000, &rc) == START + 700000 && rc == 0);
  CHECK(clock_.sleeps == 1 && clock_.until[0] == START + 700000);
}

/* A signal ends the sleep, and the next sleep has the same deadline. */
static void sleeps_again_after_a_signal(void) {
  begin();
  clock_.interrupts = 3;
  clock_.interrupt_after = 100000;
  int rc;
  CHECK(wait_for(START + 700000, &rc) == START + 700000 && rc == 0);
  CHECK(clock_.sleeps == 4 && clock_.interrupts == 0);
  for (int i = 0; i < 4; i++) CHECK(clock_.until[i] == START + 700000);
  CHECK(clock_.reads == 1 + 4); /* it has slept, not spun */

  begin();
  clock_.interrupts = 1;
  clock_.interrupt_after = 800000; /* the signal's handler outlasts the release */
  CHECK(wait_for(START + 700000, &rc) == START + 800000 && rc == 0);
  CHECK(clock_.sleeps == 1);

  begin();
  rt_spin_fixed(&loop.spin, 1000);
  clock_.interrupts = 1;
  clock_.interrupt_after = 800000;
  CHECK(wait_for(START + 700000, &rc) == START + 800000 && rc == 0);
  CHECK(clock_.sleeps == 1);

  for (int has_own_wait = 0; has_own_wait < 2; has_own_wait++) {
    begin();
    loop.has_own_wait = has_own_wait;
    clock_.interrupts = 50;
    clock_.interrupt_after = 1000;
    CHECK(run(100) == RT_END_NORMAL && loop.end.code == 0);
    CHECK(user.steps == 100 && user.early == 0 && clock_.sleeps == 150);
    CHECK(user.waits == 100 * has_own_wait);
  }
}

/* Any other error ends the loop, with the error as its code. */
static void fails_with_any_other_error(void) {
  const int errors[] = {EINVAL, ENOTSUP, EFAULT, EPERM};
  for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
    begin();
    clock_.error = errors[i];
    int rc;
    wait_for(START + 700000, &rc);
    CHECK(rc == -errors[i] && clock_.sleeps == 2);

    begin();
    clock_.error = errors[i];
    clock_.interrupts = 2;
    CHECK(run(10) == RT_END_CLOCK);
    CHECK(loop.end.code == -errors[i] && user.steps == 0 && clock_.sleeps == 3);
  }
}

/* A release that has passed costs no system call. */
static void does_not_sleep_for_a_release_that_has_passed(void) {
  int rc;
  for (int64_t late = 0; late < 3; late++) {
    begin();
    CHECK(wait_for(START - late * PERIOD, &rc) == START && rc == 0);
    CHECK(clock_.sleeps == 0 && clock_.reads == 1);
  }
  begin();
  loop.schedule.policy = RT_OVERRUN_CATCH_UP;
  loop.schedule.max_burst = 100;
  user.busy_every = 10;
  user.busy_ns = 4 * PERIOD + PERIOD / 2; /* the releases at 1, 2, 3 and 4 periods find the loop late */
  CHECK(run(100) == RT_END_NORMAL);
  CHECK(user.steps == 100 && user.missed == 0 && user.early == 0);
  CHECK(clock_.sleeps == 100 - 9 * 4); /* and the tenth time ends the run */
  CHECK(loop.telemetry->banks[0].counters.late == 9 * 4);
}

/* A cycle that begins late, because of a call between two cycles, is counted as late even if it ends on time. */
static void counts_a_late_cycle_that_ends_on_time(void) {
  for (int has_own_wait = 0; has_own_wait < 2; has_own_wait++) {
    begin();
    loop.has_own_wait = has_own_wait;
    user.slack_every = 10;
    CHECK(run(100) == RT_END_NORMAL);
    CHECK(user.steps == 100 && user.overruns == 0 && user.missed == 0);
    CHECK(loop.telemetry->banks[0].counters.late == 9); /* the tenth call comes after the last cycle */
  }
}

static void does_not_sleep_where_the_margin_covers_the_wait(void) {
  begin();
  rt_spin_fixed(&loop.spin, 300000);
  clock_.read_ns = 50;
  int rc;
  int64_t now = wait_for(START + 200000, &rc);
  CHECK(rc == 0 && clock_.sleeps == 0 && now >= START + 200000 && now < START + 200000 + 100);
  now = wait_for(START + 900000, &rc);
  CHECK(rc == 0 && clock_.sleeps == 1 && clock_.until[0] == START + 600000);
  CHECK(now >= START + 900000 && now < START + 900000 + 100);
}

static void a_long_sleep_is_taken_in_slices(void) {
  begin();
  const int64_t release = START + 10 * RT_SLICE_NS + 123;
  int rc;
  CHECK(wait_for(release, &rc) == release && rc == 0);
  CHECK(clock_.sleeps == 11 && clock_.until[10] == release);
  for (int i = 0; i < 10; i++) CHECK(clock_.until[i] == START + (i + 1) * RT_SLICE_NS);

  begin();
  loop.schedule.period = 10 * RT_SLICE_NS + 123;
  CHECK(run(3) == RT_END_NORMAL);
  CHECK(clock_.sleeps == 1 + 2 * 11); /* the first release is a millisecond away */

  begin();
  rt_loop_start(&loop, START);
  CHECK(rt_schedule_shift(&loop.schedule, 3 * RT_SLICE_NS) == 0);
  loop.limits.max_cycles = 4;
  CHECK(rt_loop_run_cycles(&loop, NULL, step, overrun, own_wait) == RT_END_NORMAL);
  CHECK(clock_.sleeps == 1 + 4 + 1 + 1);
}

static void stop_in_sleep(void) {
  if (clock_.sleeps == 3) rt_loop_send_command(&loop, RT_COMMAND_STOP);
}

static void a_stop_ends_a_long_sleep_with_its_slice(void) {
  begin();
  loop.schedule.period = 100 * RT_SLICE_NS;
  clock_.on_sleep = stop_in_sleep;
  rt_loop_start(&loop, START);
  loop.schedule.release += loop.schedule.period;
  CHECK(rt_loop_run_cycles(&loop, NULL, step, overrun, own_wait) == RT_END_NORMAL);
  CHECK(user.steps == 0 && clock_.sleeps == 3);
}

/* spin="auto": once it has learnt how late wake-ups are, every cycle starts at its release, within the budget. */
static void learns_to_wake_early_enough(void) {
  const int64_t lateness[] = {3000, 40000, 3000};
  begin();
  clock_.read_ns = 40;
  rt_spin_auto(&loop.spin, PERIOD, 25);
  rt_loop_start(&loop, START);
  uint64_t cycles = 0;
  for (size_t i = 0; i < sizeof lateness / sizeof lateness[0]; i++) {
    clock_.lateness = lateness[i];
    loop.limits.max_cycles = cycles += 500;
    CHECK(rt_loop_run_cycles(&loop, NULL, step, overrun, own_wait) == RT_END_NORMAL);
    CHECK(loop.spin.margin > lateness[i] && loop.spin.margin < lateness[i] * 2);
    clock_.sleeps = 0;
  }
  CHECK(user.steps == 1500 && user.early == 0);
  const rt_histogram_t *latency = &loop.telemetry->banks[0].histograms[RT_LATENCY];
  int64_t late = 0;
  for (uint32_t i = rt_histogram_counter(200); i < RT_HISTOGRAM_COUNTERS; i++) late += (int64_t)latency->counts[i];
  CHECK(late <= 2); /* the two that revealed the greater load */
}

/* With resets at any time, all banks together have counted every cycle and every missed release once. */
static void resets_lose_nothing(void) {
  for (int policy = RT_OVERRUN_SKIP; policy <= RT_OVERRUN_CATCH_UP; policy++) {
    for (int has_own_wait = 0; has_own_wait < 2; has_own_wait++) {
      begin();
      loop.schedule.policy = policy;
      loop.schedule.max_burst = 2;
      loop.has_own_wait = has_own_wait;
      user.resets = 1;
      user.jitter_ns = 3 * PERIOD;
      CHECK(run(3000) == RT_END_NORMAL);
      add(0);
      add(1);
      const int64_t releases = (loop.schedule.release - loop.first_release) / PERIOD;
      CHECK(user.sum.cycles == 3000 && user.steps == 3000);
      CHECK((int64_t)(user.sum.cycles + user.sum.missed) == releases);
      CHECK((int64_t)user.sum.overruns == user.overruns && user.overruns > 500);
    }
  }
}

/* No interval reaches back beyond the warm-up, a reset or the begin of a run, and each of them has a bank of its
 * own. */
static void statistics_begin_anew(void) {
  begin();
  loop.limits.warmup = 10;
  CHECK(run(100) == RT_END_NORMAL);
  CHECK(counted(0, RT_LATENCY) == 90 && counted(0, RT_INTERVAL) == 89);
  rt_loop_send_command(&loop, RT_COMMAND_RESET);
  loop.limits.max_cycles = 200;
  CHECK(rt_loop_run_cycles(&loop, NULL, step, overrun, own_wait) == RT_END_NORMAL);
  CHECK(loop.telemetry->written == 200 && loop.telemetry->banks[1].counters.first_record == 100);
  CHECK(counted(1, RT_LATENCY) == 100 && counted(1, RT_INTERVAL) == 99);
  loop.limits.warmup = 0;
  clock_.now += 5 * PERIOD;
  CHECK(run(50) == RT_END_NORMAL);
  CHECK(counted(1, RT_LATENCY) == 150 && counted(1, RT_INTERVAL) == 99 + 49);
  CHECK(counted(0, RT_LATENCY) == 90);
}

int main(void) {
  sleeps_once_until_the_release();
  sleeps_again_after_a_signal();
  fails_with_any_other_error();
  does_not_sleep_for_a_release_that_has_passed();
  counts_a_late_cycle_that_ends_on_time();
  does_not_sleep_where_the_margin_covers_the_wait();
  a_long_sleep_is_taken_in_slices();
  a_stop_ends_a_long_sleep_with_its_slice();
  learns_to_wake_early_enough();
  resets_lose_nothing();
  statistics_begin_anew();
  counts_cycles_before_their_release();
  return CHECK_DONE();
}
