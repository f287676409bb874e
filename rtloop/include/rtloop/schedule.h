/* The next release: the grid, the four overrun policies and the grid shift, as arithmetic on int64 nanoseconds.
 *
 * Pure: no clock, no system call, no memory but the struct. The loop drives it with measured times, the tests with
 * made-up ones. One invariant holds under every policy:
 *
 *     cycles run + releases missed == releases elapsed on the grid.
 *
 * Definitions: an overrun is a cycle that ends later than the next release; a missed release is one that never runs.
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

typedef struct rt_schedule {
  int64_t release; /* of the current cycle */
  int64_t period;
  int64_t shift;        /* pending move of the grid, from rt_schedule_shift */
  int64_t missed;       /* releases dropped between the last cycle and the current one */
  int64_t max_overruns; /* consecutive ones that end the loop; 0: no limit */
  int64_t overruns_in_row;
  int32_t policy;
  int32_t max_burst;
  int32_t burst;        /* late releases already run back to back */
  int32_t stalled;      /* whether the last move of the schedule crossed a stall */
  int64_t moved;        /* how far the last move shifted the grid: by rt_schedule_shift, or by RT_OVERRUN_SHIFT */
  int64_t late;         /* how long after the next release the last overrun ended */
  int64_t is_unsettled; /* whether a shift is pending, or something of the last move has to be taken back */
} rt_schedule_t;

/* No release is moved beyond this, 146 years on the clock, so that no sum of times leaves 64 bits. */
#define RT_RELEASE_MAX (INT64_MAX / 2)

/* Move the next release by `ns`. The loop's thread; O(1). Returns 0, or -ERANGE, and moves nothing, iff the release
 * would be at or before the current one, or beyond RT_RELEASE_MAX. */
static inline int rt_schedule_shift(rt_schedule_t *s, int64_t ns) {
  int64_t total, next;
  if (__builtin_add_overflow(s->shift, ns, &total) || total <= -s->period) return -ERANGE;
  if (__builtin_add_overflow(s->release + s->period, total, &next) || next > RT_RELEASE_MAX) return -ERANGE;
  s->shift = total;
  s->is_unsettled = 1;
  return 0;
}

/* Apply the overrun policy to a cycle that ended at `end`, later than the release `next`. O(1). Returns 1, or
 * -EOVERFLOW iff the overrun ends the loop. */
static inline int rt_schedule_overrun(rt_schedule_t *s, int64_t next, int64_t end) {
  const int64_t late = end - next;
  s->late = late;
  s->stalled = late > RT_STALL_NS;
  s->overruns_in_row += 1;
  if (s->policy == RT_OVERRUN_SHIFT) {
    s->moved += late;
    s->release = end;
  } else if (s->policy == RT_OVERRUN_CATCH_UP && s->burst < s->max_burst) {
    s->burst += 1;
    s->release = next;
  } else {
    s->burst = 0;
    s->missed = (late + s->period - 1) / s->period;
    s->release = next + s->missed * s->period;
  }
  if (s->policy == RT_OVERRUN_STOP) return -EOVERFLOW;
  if (s->max_overruns && s->overruns_in_row >= s->max_overruns) return -EOVERFLOW;
  return 1;
}

/* Move on to the next release in every case that is not plain. Returns as rt_schedule_next. O(1). */
static __attribute__((noinline, cold, unused)) int rt_schedule_settle(rt_schedule_t *s, int64_t end) {
  const int64_t next = s->release + s->period + s->shift;
  s->is_unsettled = s->shift != 0 || end > next;
  s->moved = s->shift;
  s->shift = 0;
  s->missed = 0;
  if (end > next) return rt_schedule_overrun(s, next, end);
  s->release = next;
  s->burst = 0;
  s->overruns_in_row = 0;
  return 0;
}

/* Test whether the next release is exactly one period later: no overrun, no shift, nothing to settle. O(1). */
static inline int rt_schedule_is_plain(const rt_schedule_t *s, int64_t end) {
  return end <= s->release + s->period && !s->is_unsettled;
}

/* Move on to the next release after a cycle that ended at `end`. O(1). Returns 0 iff the cycle was on time, 1 after an
 * overrun, -EOVERFLOW iff an overrun ends the loop. */
static inline int rt_schedule_next(rt_schedule_t *s, int64_t end) {
  if (RT_UNLIKELY(!rt_schedule_is_plain(s, end))) return rt_schedule_settle(s, end);
  s->release += s->period;
  return 0;
}

/* Compute the first release. The origin is `lead` from now, or with `align` the next multiple of it that is at least
 * `lead` away. The release is `phase` after the origin. O(1); never fails. */
static inline int64_t rt_schedule_first(int64_t now, int64_t lead, int64_t align, int64_t phase) {
  int64_t origin = now + lead;
  if (align > 0) origin += (align - origin % align) % align;
  return origin + phase;
}

#endif
