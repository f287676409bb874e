/* The schedule with made-up times: conservation and the grid under every policy, with any lateness. */
#include "rtloop/schedule.h"

#include "check.h"

static void conserves(int policy, int64_t period, int64_t worst, uint64_t seed) {
  rt_schedule_t s = {.release = 1000000, .period = period, .policy = policy, .max_burst = 3};
  const int64_t first = s.release;
  int64_t cycles = 0, missed = 0, moved = 0, now = first;
  for (int i = 0; i < 20000; i++) {
    const int64_t release = s.release;
    const int64_t start = now > release ? now : release;
    const int64_t end = start + (int64_t)(check_random(&seed) % (uint64_t)worst);
    cycles++;
    int64_t shift = 0;
    if (check_random(&seed) % 16 == 0) {
      shift = (int64_t)(check_random(&seed) % (uint64_t)period) - period / 2;
      CHECK(rt_schedule_shift(&s, shift) == 0);
    }
    const int overran = rt_schedule_next(&s, end);
    missed += s.missed;
    moved += s.moved;
    CHECK(overran == (end > release + period + shift));
    CHECK(s.release > release);
    CHECK(s.missed >= 0);
    if (policy == RT_OVERRUN_SKIP) CHECK(s.release >= end || !overran);
    if (policy == RT_OVERRUN_SHIFT && overran) CHECK(s.release == end && s.missed == 0);
    CHECK(s.burst <= s.max_burst);
    /* The grid: whole periods from the first release, apart from what was moved on purpose. */
    CHECK((s.release - first - moved) % period == 0);
    CHECK((s.release - first - moved) / period == cycles + missed);
    now = end;
  }
}

static void ends(void) {
  rt_schedule_t s = {.release = 0, .period = 1000, .policy = RT_OVERRUN_STOP};
  CHECK(rt_schedule_next(&s, 1000) == 0); /* ending exactly at the next release is not an overrun */
  CHECK(rt_schedule_next(&s, 2001) == -EOVERFLOW && s.late == 1);
  s = (rt_schedule_t){.release = 0, .period = 1000, .policy = RT_OVERRUN_SKIP, .max_overruns = 2};
  CHECK(rt_schedule_next(&s, 1500) == 1 && s.missed == 1 && s.release == 2000);
  CHECK(rt_schedule_next(&s, 2500) == 0 && s.overruns_in_row == 0);
  CHECK(rt_schedule_next(&s, 4500) == 1);
  CHECK(rt_schedule_next(&s, s.release + 1001) == -EOVERFLOW);
  CHECK(s.missed == 1); /* the count is right even if the overrun ends the loop */
}

static void bursts(void) {
  rt_schedule_t s = {.release = 0, .period = 1000, .policy = RT_OVERRUN_CATCH_UP, .max_burst = 3};
  for (int i = 1; i <= 3; i++) CHECK(rt_schedule_next(&s, 9500) == 1 && s.missed == 0 && s.release == i * 1000);
  CHECK(rt_schedule_next(&s, 9500) == 1 && s.missed == 6 && s.release == 10000);  /* enough: the rest is dropped */
  CHECK(rt_schedule_next(&s, 12500) == 1 && s.missed == 0 && s.release == 11000); /* and the next burst may begin */
  CHECK(rt_schedule_next(&s, 11100) == 0 && s.burst == 0);
}

static void stalls(void) {
  rt_schedule_t s = {.release = 0, .period = 1000, .policy = RT_OVERRUN_SKIP};
  CHECK(rt_schedule_next(&s, 3600 * RT_NS_PER_S) == 1);
  CHECK(s.stalled && s.missed == 3600 * RT_NS_PER_S / 1000 - 1);
  CHECK(s.release == 3600 * RT_NS_PER_S);
  CHECK(rt_schedule_next(&s, s.release + 2500) == 1 && !s.stalled);
}

static void shifts(void) {
  rt_schedule_t s = {.release = 0, .period = 1000};
  CHECK(rt_schedule_shift(&s, -1000) == -ERANGE);
  CHECK(rt_schedule_shift(&s, -600) == 0 && rt_schedule_shift(&s, -600) == -ERANGE && s.shift == -600);
  CHECK(rt_schedule_shift(&s, INT64_MAX) == -ERANGE && rt_schedule_shift(&s, INT64_MIN) == -ERANGE);
  CHECK(rt_schedule_next(&s, 10) == 0 && s.release == 400 && s.moved == -600);
  CHECK(rt_schedule_next(&s, 410) == 0 && s.release == 1400 && s.moved == 0);
}

/* However often and far the grid is moved, the release stays within 64 bits and goes forward. */
static void shifts_far(void) {
  const int64_t steps[] = {INT64_MAX / 4, INT64_MAX / 8, INT64_MAX / 2, INT64_MAX, 1};
  for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    rt_schedule_t s = {.release = INT64_MAX / 5, .period = 1000}; /* the time of day in the year 2028 */
    int refused = 0;
    for (int k = 0; k < 100; k++) {
      const int64_t before = s.release, pending = s.shift;
      const int rc = rt_schedule_shift(&s, steps[i]);
      CHECK(rc == 0 || (rc == -ERANGE && s.shift == pending));
      refused += rc != 0;
      CHECK(rt_schedule_next(&s, before) == 0);
      CHECK(s.release > before && s.release <= RT_RELEASE_MAX + 100 * s.period);
    }
    CHECK((refused > 0) == (steps[i] > 1));
  }
  rt_schedule_t s = {.release = RT_RELEASE_MAX - 1500, .period = 1000};
  CHECK(rt_schedule_shift(&s, 501) == -ERANGE && rt_schedule_shift(&s, 500) == 0);
  CHECK(rt_schedule_shift(&s, 1) == -ERANGE && rt_schedule_shift(&s, -1) == 0 && s.shift == 499);
}

static void aligns(void) {
  CHECK(rt_schedule_first(1234, 100, 0, 5) == 1339);
  CHECK(rt_schedule_first(1234, 100, 1000, 5) == 2005);
  CHECK(rt_schedule_first(1900, 100, 1000, 0) == 2000); /* a multiple itself */
  CHECK(rt_schedule_first(1901, 100, 1000, 0) == 3000);
}

int main(void) {
  for (int policy = RT_OVERRUN_SKIP; policy <= RT_OVERRUN_SHIFT; policy++) {
    conserves(policy, 1000, 900, 1);
    conserves(policy, 1000, 1100, 2);
    conserves(policy, 1000, 5000, 3);
    conserves(policy, 7, 100, 4);
    conserves(policy, 1000000, 900000000, 5);
  }
  ends();
  bursts();
  stalls();
  shifts();
  shifts_far();
  aligns();
  return CHECK_DONE();
}
