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

/* The exact time of release k after `first` is k * num / den ns. Check that `release` is that, rounded to the nearest ns,
 * and to the even one of two. */
static void is_exact(int64_t first, int64_t release, int64_t k, int64_t num, int64_t den) {
  const rt_int128_t off = (rt_int128_t)(release - first) * den - (rt_int128_t)k * num;
  const rt_int128_t twice = off < 0 ? -2 * off : 2 * off;
  CHECK(twice <= den);
  CHECK(twice < den || release % 2 == 0);
}

static rt_schedule_t schedule_of(int64_t first, int64_t num, int64_t den, int policy) {
  rt_schedule_t s = {.policy = policy, .max_burst = 3};
  rt_schedule_set_period(&s, num / den, num % den, den);
  rt_schedule_set_release(&s, first);
  return s;
}

/* Releases of periods that are no whole number of ns never drift: one multiplication apiece shows it. */
static void never_drifts(void) {
  const int64_t periods[][2] = {
      {1000000, 3},    /* 3 kHz */
      {62500, 3},      /* 48 kHz */
      {25000000, 3},   /* 120 Hz */
      {50000000, 3},   /* 60 Hz */
      {10000000, 441}, /* 44.1 kHz */
      {100100000, 3},  /* 30000/1001 Hz */
      {1953125, 2},    /* 1024 Hz, with a tie at every other release */
      {7, 3},          /* and what is not allowed, but near the ends of the arithmetic */
  };
  const char *asked = getenv("RTLOOP_RELEASES");
  const int64_t count = asked ? atoll(asked) : 3000000;
  for (size_t i = 0; i < sizeof periods / sizeof periods[0]; i++) {
    const int64_t num = periods[i][0], den = periods[i][1], first = 1000000001;
    rt_schedule_t s = schedule_of(first, num, den, RT_OVERRUN_SKIP);
    int64_t exact = 0; /* k * num */
    long bad = 0;
    for (int64_t k = 1; k <= count; k++) {
      rt_schedule_carry(&s);
      exact += num;
      const int64_t off = (s.release - first) * den - exact, twice = off < 0 ? -2 * off : 2 * off;
      bad += twice > den || (twice == den && s.release % 2);
    }
    CHECK(bad == 0);
    is_exact(first, s.release, count, num, den);
  }
}

/* Each release is first + part / unit + k * (period + share / unit) ns, rounded to the nearest and to the even one of
 * two: also if the first release has a fraction, and if it alone has one. */
static void starts_at_a_fraction(void) {
  const int64_t cases[][4] = {
      /* period, share, part, unit */
      {333333, 2, 4, 6},      {333333, 2, 1, 6}, {1000001, 0, 1, 2},      {976562, 1, 1, 2},
      {22675, 325, 440, 441}, {2000, 0, 6, 7},   {2001, 1000, 999, 1001}, {1000, 0, 0, 1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const int64_t period = cases[i][0], share = cases[i][1], part = cases[i][2], unit = cases[i][3];
    for (int64_t first = 1000000000; first < 1000000002; first++) {
      rt_schedule_t s = {.policy = RT_OVERRUN_SKIP};
      rt_schedule_set_period(&s, period, share, unit);
      rt_schedule_set_first(&s, first, part);
      for (int64_t k = 0; k < 2000; k++) {
        const int64_t twice = 2 * ((s.release - first - k * period) * unit - part - k * share);
        CHECK(twice <= unit && twice >= -unit);
        CHECK((twice != unit && twice != -unit) || s.release % 2 == 0);
        rt_schedule_t jumped = s;
        rt_schedule_set_first(&jumped, first, part);
        rt_schedule_move(&jumped, 0, k);
        CHECK(jumped.release == s.release);
        rt_schedule_carry(&s);
      }
    }
  }
}

/* Whatever a fractional schedule goes through, each release is a whole number of exact periods after the first, apart
 * from what was moved on purpose. After the grid has moved to now, exact periods are counted from there. */
static void conserves_fractions(int policy, int64_t num, int64_t den, int64_t worst, uint64_t seed) {
  int64_t first = 1000000 + (int64_t)(check_random(&seed) % 1000), k = 0, now = first;
  rt_schedule_t s = schedule_of(first, num, den, policy);
  for (int i = 0; i < 20000; i++) {
    const int64_t release = s.release, start = now > release ? now : release;
    const int64_t end = start + (int64_t)(check_random(&seed) % (uint64_t)worst);
    if (check_random(&seed) % 16 == 0) {
      const int64_t shift = (int64_t)(check_random(&seed) % (uint64_t)(num / den)) - num / den / 2;
      if (rt_schedule_shift(&s, shift) == 0) first += shift;
    }
    if (check_random(&seed) % 64 == 0) { /* the clock is set, either way */
      const int64_t step = (int64_t)(check_random(&seed) % 2000000) - 1000000;
      rt_schedule_t at = s;
      const int64_t moved = rt_schedule_follow(&at, step), periods = rt_schedule_periods(&s, step);
      CHECK(moved >= step && moved - step <= num / den + 1);
      is_exact(first - s.shift, at.release, k + periods, num, den);
    }
    const int is_carried = rt_schedule_is_carried(&s, end);
    int overran = 0;
    if (is_carried) {
      rt_schedule_carry(&s);
    } else {
      overran = rt_schedule_next(&s, end);
    }
    k += 1 + (is_carried ? 0 : s.missed);
    CHECK(s.release > release && (!is_carried || s.release >= end));
    if (policy == RT_OVERRUN_SHIFT && overran) {
      CHECK(s.release == end);
      first = end;
      k = 0;
    }
    if (policy == RT_OVERRUN_SKIP) CHECK(s.release >= end);
    is_exact(first, s.release, k, num, den);
    now = end;
  }
}

static void skips_to_the_first_release(void) {
  uint64_t seed = 9;
  for (int i = 0; i < 20000; i++) {
    const int64_t den = 2 + (int64_t)(check_random(&seed) % 1000),
                  num = 5 * den + (int64_t)(check_random(&seed) % 99999);
    rt_schedule_t s = schedule_of(1000, num, den, RT_OVERRUN_SKIP), before = s;
    const int64_t end = 1000 + num / den + 2 + (int64_t)(check_random(&seed) % 100000);
    CHECK(rt_schedule_next(&s, end) == 1 && s.release >= end);
    rt_schedule_move(&before, 0, s.missed); /* the one before it, which was the first that it could have been */
    CHECK(before.release < end);
  }
}

static void follows_a_clock(void) {
  rt_schedule_t s = {.release = 5000, .period = 1000};
  CHECK(rt_schedule_follow(&s, 86400 * RT_NS_PER_S) == 86400 * RT_NS_PER_S && s.missed == 0);
  CHECK(rt_schedule_follow(&s, -86400 * RT_NS_PER_S) == -86400 * RT_NS_PER_S && s.release == 5000);
  CHECK(rt_schedule_follow(&s, 1) == 1000 && rt_schedule_follow(&s, -1) == 0 && rt_schedule_follow(&s, -1999) == -1000);
}

/* The times of a plain cycle differ by less than 2^31 ns, so no cycle of a longer period is plain. */
static void a_long_period_is_never_plain(void) {
  for (int64_t den = 1; den <= 3; den += 2) {
    for (int is_longer = 0; is_longer < 2; is_longer++) {
      rt_schedule_t s = schedule_of(5000, den * (RT_PLAIN_PERIOD_NS + is_longer), den, RT_OVERRUN_SKIP);
      if (den == 1) rt_schedule_set_period(&s, s.period, 0, 0);
      for (int i = 0; i < 3; i++) {
        const int64_t end = s.release + 10;
        CHECK((rt_schedule_is_plain(&s, s.release, end) || rt_schedule_is_carried(&s, end)) == !is_longer);
        CHECK(rt_schedule_next(&s, end) == 0 && s.missed == 0);
        CHECK(s.release == 5000 + (i + 1) * (RT_PLAIN_PERIOD_NS + is_longer));
      }
      CHECK(!rt_schedule_is_plain(&s, s.release, s.release - 1) && !rt_schedule_is_carried(&s, s.release - 1));
    }
  }
}

static void rounds_settings(void) {
  rt_schedule_t s = schedule_of(0, 10000000, 441, RT_OVERRUN_SKIP);
  CHECK(s.period == 22675 && rt_schedule_nominal(&s) == 22676);
  CHECK(rt_schedule_exact(&s) > 22675.7369 && rt_schedule_exact(&s) < 22675.737);
  s = schedule_of(0, 1000, 1, RT_OVERRUN_SKIP); /* of a settable clock: a whole number that is carried */
  CHECK(rt_schedule_nominal(&s) == 1000 && s.state == RT_CARRIED);
  rt_schedule_carry(&s);
  CHECK(s.release == 1000 && rt_schedule_shift(&s, -999) == -ERANGE && rt_schedule_shift(&s, -998) == 0);
}

static void aligns(void) {
  CHECK(rt_schedule_origin(1234, 100, 0) == 1334);
  CHECK(rt_schedule_origin(1234, 100, 1000) == 2000);
  CHECK(rt_schedule_origin(1900, 100, 1000) == 2000); /* a multiple itself */
  CHECK(rt_schedule_origin(1901, 100, 1000) == 3000);
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
  rounds_settings();
  a_long_period_is_never_plain();
  follows_a_clock();
  skips_to_the_first_release();
  never_drifts();
  starts_at_a_fraction();
  for (int policy = RT_OVERRUN_SKIP; policy <= RT_OVERRUN_SHIFT; policy++) {
    conserves_fractions(policy, 10000000, 441, 20000, 1);
    conserves_fractions(policy, 10000000, 441, 30000, 2);
    conserves_fractions(policy, 1953125, 2, 5000000, 3);
    conserves_fractions(policy, 1000000, 3, 900000000, 4);
    conserves_fractions(policy, INT64_C(2305843009213693951), INT64_C(230584300921369), 25000, 5);
  }
  aligns();
  return CHECK_DONE();
}
