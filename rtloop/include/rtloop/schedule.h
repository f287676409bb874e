/* The next release: the grid, the four overrun policies, the grid shift and the step of a clock, as exact arithmetic.
 *
 * A period is a fraction: `period` whole nanoseconds and `part / unit` of one. Release k is at the exact time
 * first + k * period, rounded to the nearest nanosecond, a tie to the even one. `first` has a fraction of the same unit
 * if the phase has one. The fraction of the present release is carried in `rest`, so nothing adds up to a drift. A
 * period of whole nanoseconds has unit 0 and carries nothing.
 *
 * Pure: no clock, no system call, no memory but the struct. The loop drives it with measured times, the tests with
 * made-up ones. One invariant holds under every policy:
 *
 *     cycles run + releases missed == releases elapsed on the grid.
 *
 * Definitions: an overrun is a cycle that ends later than the next release; a missed release is one without a cycle.
 */
#ifndef RTLOOP_SCHEDULE_H
#define RTLOOP_SCHEDULE_H

#include <errno.h>
#include <stdint.h>

#include "atomics.h"
#include "clock.h"

enum {
  RT_OVERRUN_SKIP = 0,     /* late releases are dropped, the grid is kept */
  RT_OVERRUN_CATCH_UP = 1, /* up to max_burst late releases run back to back, then skip */
  RT_OVERRUN_SHIFT = 2,    /* the grid moves to now */
  RT_OVERRUN_STOP = 3,     /* the loop fails */
};

/* A release missed by more than this is a stall: a suspended machine, a stopped process, a stepped clock. */
#define RT_STALL_NS RT_NS_PER_S

/* Values of rt_schedule_t.state. */
enum {
  RT_SETTLED = 0,   /* if the cycle is on time, the next release is a period later */
  RT_UNSETTLED = 1, /* a shift is pending, or something of the last move has to be taken back */
  RT_CARRIED = 2,   /* nothing to settle, but a fraction to carry to the next release */
};

/* A longer period is always unsettled, which costs its cycles some 50 instructions more: the responses and intervals of
 * plain cycles are below 2^31 ns. */
#define RT_PLAIN_PERIOD_NS ((INT64_C(1) << 30) - 1)

typedef struct rt_schedule {
  int64_t release;      /* of the current cycle */
  int64_t period;       /* the whole nanoseconds of it */
  int64_t shift;        /* pending move of the grid, from rt_schedule_shift */
  int64_t missed;       /* releases dropped between the last cycle and the current one */
  int64_t max_overruns; /* consecutive ones that end the loop; 0: no limit */
  int64_t overruns_in_row;
  int32_t policy;
  int32_t max_burst;
  int32_t burst;     /* late releases already run back to back */
  int32_t stalled;   /* whether the last move of the schedule crossed a stall */
  int64_t moved;     /* how far the last move shifted the grid: by rt_schedule_shift, or by RT_OVERRUN_SHIFT */
  int64_t late;      /* how long after the next release the last overrun ended */
  int64_t state;     /* RT_SETTLED, RT_UNSETTLED or RT_CARRIED; by rt_schedule_enter */
  uint64_t plain_ns; /* 1 more than the longest response of a plain cycle; 0: no cycle is plain */
  int64_t part;      /* the fraction of the period: part / unit ns, below 1 */
  int64_t unit;      /* 0: the period is a whole number of ns */
  int64_t rest;      /* exact time of the release: release + (rest - rt_schedule_half) / unit */
  int64_t tie;       /* the rest of an exact time half-way between two ns; -1: there is no such time */
} rt_schedule_t;

/* The greatest unit of a fraction, so that sums of two fractions stay within 64 bits. */
#define RT_UNIT_MAX (INT64_MAX / 4)

__extension__ typedef __int128 rt_int128_t;

/* Get the rest of an exact time that is a whole number of ns. O(1). */
static inline int64_t rt_schedule_half(const rt_schedule_t *s) { return s->unit / 2; }

/* Set the state. O(1). */
static inline void rt_schedule_enter(rt_schedule_t *s, int64_t state) {
  s->state = s->period > RT_PLAIN_PERIOD_NS ? RT_UNSETTLED : state;
  s->plain_ns = s->state == RT_SETTLED ? (uint64_t)s->period + 1 : 0;
}

/* Set the period to `period` + `part` / `unit` ns, with 0 <= part < unit <= RT_UNIT_MAX. With unit 0 it is a whole
 * number of ns and cycles may be plain; with any other unit no cycle is. Before the run; O(1). */
static inline void rt_schedule_set_period(rt_schedule_t *s, int64_t period, int64_t part, int64_t unit) {
  s->period = period;
  s->part = part;
  s->unit = unit;
  s->tie = unit && unit % 2 == 0 ? 0 : -1;
  s->rest = rt_schedule_half(s);
  rt_schedule_enter(s, unit ? RT_CARRIED : RT_SETTLED);
}

/* Get the period, rounded to the nearest ns. O(1). */
static inline int64_t rt_schedule_nominal(const rt_schedule_t *s) {
  return s->period + (s->unit && s->part >= s->unit - s->part);
}

/* Get the period in ns, as a double. O(1). */
static inline double rt_schedule_exact(const rt_schedule_t *s) {
  return (double)s->period + (s->unit ? (double)s->part / (double)s->unit : 0.0);
}

/* Set the present release to a whole number of ns, from which the grid goes on. O(1). */
static inline void rt_schedule_set_release(rt_schedule_t *s, int64_t release) {
  s->release = release;
  s->rest = rt_schedule_half(s);
}

/* Round the release, with `rest` below `unit`: of the two ns around a tie, take the even one. The rest is then `unit`
 * if it was rounded down, which stands for the same time and takes no part in what follows. O(1). */
static inline void rt_schedule_round(rt_schedule_t *s) {
  if (RT_UNLIKELY(s->rest == s->tie) && s->release % 2) {
    s->release -= 1;
    s->rest = s->unit;
  }
}

/* Set the first release to the exact time `whole` + `part` / `unit` ns, with 0 <= part < unit; with unit 0 the part is
 * 0. After rt_schedule_set_period; O(1). */
static __attribute__((noinline, cold, unused)) void rt_schedule_set_first(rt_schedule_t *s, int64_t whole,
                                                                          int64_t part) {
  rt_schedule_set_release(s, whole);
  if (s->unit == 0) return;
  const int is_above = s->rest + part >= s->unit; /* half a ns or more, which is rounded up */
  s->release += is_above;
  s->rest += part - (is_above ? s->unit : 0);
  rt_schedule_round(s);
}

/* Move the release on by one period that has a fraction. O(1). */
static inline void rt_schedule_carry(rt_schedule_t *s) {
  s->release += s->period;
  s->rest += s->part;
  if (s->rest >= s->unit) {
    s->rest -= s->unit;
    s->release += 1;
  }
  rt_schedule_round(s);
}

/* Move the release by `ns` and by `periods`, either of which may be negative. O(1). */
static __attribute__((noinline, cold, unused)) void rt_schedule_move(rt_schedule_t *s, int64_t ns, int64_t periods) {
  if (s->unit == 0) {
    s->release += ns + periods * s->period;
    return;
  }
  rt_int128_t rest = (rt_int128_t)periods * s->part + s->rest;
  rt_int128_t whole = rest / s->unit;
  if (rest % s->unit < 0) whole -= 1;
  s->rest = (int64_t)(rest - whole * s->unit);
  s->release += ns + periods * s->period + (int64_t)whole;
  rt_schedule_round(s);
}

/* Compute the least number of periods that move the release by at least `ns`, which may be negative. O(1). */
static __attribute__((noinline, cold, unused)) int64_t rt_schedule_periods(const rt_schedule_t *s, int64_t ns) {
  if (s->unit == 0) return ns / s->period + (ns % s->period > 0);
  /* In fractions of a ns, rounded down; then as many as it takes for the rounded release. */
  const rt_int128_t period = (rt_int128_t)s->period * s->unit + s->part;
  const rt_int128_t needed = (rt_int128_t)ns * s->unit - s->rest;
  const int64_t periods = (int64_t)(needed / period);
  rt_schedule_t at = *s;
  rt_schedule_move(&at, 0, periods);
  return at.release - s->release < ns ? periods + 1 : periods;
}

/* No release is moved beyond this, 146 years on the clock, so that no sum of times leaves 64 bits. */
#define RT_RELEASE_MAX (INT64_MAX / 2)

/* Move the next release by `ns`. The loop's thread; O(1). Returns 0, or -ERANGE, and moves nothing, iff the release
 * would be at or before the current one, or beyond RT_RELEASE_MAX. */
static inline int rt_schedule_shift(rt_schedule_t *s, int64_t ns) {
  int64_t total, next;
  const int64_t least = s->unit ? 2 - s->period : 1 - s->period; /* a fraction may be rounded down */
  if (__builtin_add_overflow(s->shift, ns, &total) || total < least) return -ERANGE;
  if (__builtin_add_overflow(s->release + s->period, total, &next) || next > RT_RELEASE_MAX) return -ERANGE;
  s->shift = total;
  rt_schedule_enter(s, RT_UNSETTLED);
  return 0;
}

/* Apply the overrun policy to a cycle that ended at `end`, later than the next release, to which the schedule has moved
 * on. O(1). Returns 1, or -EOVERFLOW iff the overrun ends the loop. */
static inline int rt_schedule_overrun(rt_schedule_t *s, int64_t end) {
  const int64_t late = end - s->release;
  s->late = late;
  s->stalled = late > RT_STALL_NS;
  s->overruns_in_row += 1;
  if (s->policy == RT_OVERRUN_SHIFT) {
    s->moved += late;
    rt_schedule_set_release(s, end);
  } else if (s->policy == RT_OVERRUN_CATCH_UP && s->burst < s->max_burst) {
    s->burst += 1;
  } else {
    s->burst = 0;
    s->missed = rt_schedule_periods(s, late);
    rt_schedule_move(s, 0, s->missed);
  }
  if (s->policy == RT_OVERRUN_STOP) return -EOVERFLOW;
  if (s->max_overruns && s->overruns_in_row >= s->max_overruns) return -EOVERFLOW;
  return 1;
}

/* Move on to the next release in every case that is not plain. Returns as rt_schedule_next. O(1). */
static __attribute__((noinline, cold, unused)) int rt_schedule_settle(rt_schedule_t *s, int64_t end) {
  if (s->unit && s->shift == 0) {
    rt_schedule_carry(s);
  } else {
    rt_schedule_move(s, s->shift, 1);
  }
  rt_schedule_enter(s, s->shift != 0 || end > s->release ? RT_UNSETTLED : s->unit ? RT_CARRIED : RT_SETTLED);
  s->moved = s->shift;
  s->shift = 0;
  s->missed = 0;
  if (end > s->release) return rt_schedule_overrun(s, end);
  s->burst = 0;
  s->overruns_in_row = 0;
  return 0;
}

/* Test whether the next release is exactly one period after the present one, `release`: no overrun, no shift, nothing
 * to settle, and an end that is not before the release. One comparison covers all. O(1). */
static inline int rt_schedule_is_plain(const rt_schedule_t *s, int64_t release, int64_t end) {
  return (uint64_t)end - (uint64_t)release < s->plain_ns;
}

/* Test the same of a period with a unit: rt_schedule_carry() then moves on to the next release. O(1). */
static inline int rt_schedule_is_carried(const rt_schedule_t *s, int64_t end) {
  return s->state == RT_CARRIED &&
         (uint64_t)end - (uint64_t)s->release < (uint64_t)s->period; /* a tie goes down by 1 */
}

/* Move on to the next release after a plain cycle at `release`. O(1). */
static inline void rt_schedule_advance(rt_schedule_t *s, int64_t release) { s->release = release + s->period; }

/* Move on to the next release after a cycle that ended at `end`. O(1). Returns 0 iff the cycle was on time, 1 after an
 * overrun, -EOVERFLOW iff an overrun ends the loop. */
static inline int rt_schedule_next(rt_schedule_t *s, int64_t end) {
  if (RT_UNLIKELY(!rt_schedule_is_plain(s, s->release, end))) return rt_schedule_settle(s, end);
  rt_schedule_advance(s, s->release);
  return 0;
}

/* Take the grid up again after the clock has stepped by `step` ns, which may be negative: move the release by the least
 * number of periods that is at least the step. What the clock jumped over has not elapsed, so nothing is missed.
 * Returns by how much the release has moved, in ns. The loop's thread between two cycles; O(1). */
static __attribute__((noinline, cold, unused)) int64_t rt_schedule_follow(rt_schedule_t *s, int64_t step) {
  const int64_t before = s->release;
  rt_schedule_move(s, 0, rt_schedule_periods(s, step));
  return s->release - before;
}

/* Compute the origin of the grid: `lead` from now, or with `align` the next multiple of it that is at least `lead`
 * away. O(1); never fails. */
static inline int64_t rt_schedule_origin(int64_t now, int64_t lead, int64_t align) {
  int64_t origin = now + lead;
  if (align > 0) origin += (align - origin % align) % align;
  return origin;
}

#endif
