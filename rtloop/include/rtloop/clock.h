/* Time as int64_t nanoseconds on one of the clocks that clock_nanosleep(2) accepts.
 *
 * Real-time contract: rt_clock_now reads the vDSO (tens of ns, no system call where the clocksource allows it, see
 * vdso(7)); rt_clock_sleep_until enters the kernel and blocks. Neither allocates.
 */
#ifndef RTLOOP_CLOCK_H
#define RTLOOP_CLOCK_H

#include <errno.h>
#include <stdint.h>
#include <time.h>

#define RT_NS_PER_S INT64_C(1000000000)

static inline int64_t rt_clock_now(clockid_t clock) {
  struct timespec ts;
  clock_gettime(clock, &ts);
  return (int64_t)ts.tv_sec * RT_NS_PER_S + ts.tv_nsec;
}

/* Sleep until an absolute time. Returns 0, -EINTR when a signal came first, or the negative errno of
 * clock_nanosleep(2), which returns its error rather than setting errno. */
static inline int rt_clock_sleep_until(clockid_t clock, int64_t time) {
  struct timespec ts = {.tv_sec = (time_t)(time / RT_NS_PER_S), .tv_nsec = (long)(time % RT_NS_PER_S)};
  return -clock_nanosleep(clock, TIMER_ABSTIME, &ts, NULL);
}

#endif
