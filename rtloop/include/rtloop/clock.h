/* Time as int64_t nanoseconds on one of the clocks that clock_nanosleep(2) accepts.
 *
 * Real-time contract: rt_clock_now reads the vDSO (tens of ns, no system call if the clocksource allows it, see
 * vdso(7)); rt_clock_sleep_until enters the kernel and blocks. Neither allocates.
 */
#ifndef RTLOOP_CLOCK_H
#define RTLOOP_CLOCK_H

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

#include "atomics.h"

#define RT_NS_PER_S INT64_C(1000000000)

/* A function that reads a clock, with the signature of clock_gettime(2). */
typedef int rt_clock_reader_t(clockid_t clock, struct timespec *time);

/* Read a clock, in ns. Any thread; O(1); never fails for a clock that the kernel knows. */
static inline int64_t rt_clock_now(clockid_t clock) {
  struct timespec ts;
  clock_gettime(clock, &ts);
  return (int64_t)ts.tv_sec * RT_NS_PER_S + ts.tv_nsec;
}

/* A step of a settable clock that is smaller than this is not told from the time between two reads. Steps add up until
 * they are not. */
#define RT_CLOCK_STEP_MIN_NS INT64_C(2000)

/* The limits between which a clock is ahead of CLOCK_MONOTONIC, in ns. */
typedef struct rt_clock_offset {
  int64_t low;
  int64_t high;
} rt_clock_offset_t;

/* Measure by how much a clock is ahead of CLOCK_MONOTONIC. Any thread; three reads of a clock. */
static inline rt_clock_offset_t rt_clock_offset(rt_clock_reader_t *read_clock, clockid_t clock) {
  struct timespec before, at, after;
  read_clock(CLOCK_MONOTONIC, &before);
  read_clock(clock, &at);
  read_clock(CLOCK_MONOTONIC, &after);
  const int64_t ns = (int64_t)at.tv_sec * RT_NS_PER_S + at.tv_nsec;
  return (rt_clock_offset_t){ns - (int64_t)after.tv_sec * RT_NS_PER_S - after.tv_nsec,
                             ns - (int64_t)before.tv_sec * RT_NS_PER_S - before.tv_nsec};
}

/* Measure the same as one number, the best of several tries. Any thread; some tens of reads of a clock. */
static __attribute__((noinline, unused)) int64_t rt_clock_best_offset(rt_clock_reader_t *read_clock, clockid_t clock) {
  rt_clock_offset_t best = rt_clock_offset(read_clock, clock);
  for (int i = 0; i < 8; i++) {
    const rt_clock_offset_t next = rt_clock_offset(read_clock, clock);
    /* The clock may have stepped in between: the newest counts unless it says the same less exactly. */
    if (next.high < best.low || next.low > best.high || next.high - next.low < best.high - best.low) best = next;
  }
  return best.low + (best.high - best.low) / 2;
}

/* Call clock_nanosleep(2) with an absolute time. The system call is made directly, because the C library's wrapper only
 * adds what pthread_cancel(3) needs; sanitizers and tests have to see the library's function. Any thread; blocks until
 * the time. Returns 0 or a negative errno. */
static inline int rt_clock_nanosleep(clockid_t clock, const struct timespec *time) {
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED) && !defined(clock_nanosleep)
  register void *left __asm__("r10") = NULL;
  long rc;
  __asm__ __volatile__("syscall"
                       : "=a"(rc)
                       : "a"((long)SYS_clock_nanosleep), "D"(clock), "S"((long)TIMER_ABSTIME), "d"(time), "r"(left)
                       : "rcx", "r11", "memory");
  return (int)rc;
#elif defined(__aarch64__) && !defined(RT_IS_SANITIZED) && !defined(clock_nanosleep)
  register long number __asm__("x8") = SYS_clock_nanosleep;
  register long rc __asm__("x0") = clock;
  register long flags __asm__("x1") = TIMER_ABSTIME;
  register const struct timespec *until __asm__("x2") = time;
  register void *left __asm__("x3") = NULL;
  __asm__ __volatile__("svc 0" : "+r"(rc) : "r"(number), "r"(flags), "r"(until), "r"(left) : "memory");
  return (int)rc;
#else
  return -clock_nanosleep(clock, TIMER_ABSTIME, time, NULL);
#endif
}

/* The time of the last sleep, as the kernel reads it, and the second in which it lies. Kept from one sleep to the next,
 * so that most cycles need no division, and store the nanoseconds alone. */
typedef struct rt_second {
  int64_t begin; /* in ns */
  struct timespec time;
} rt_second_t;

/* Sleep until an absolute time, in ns. The thread that owns `second`; blocks; one system call. Returns 0, -EINTR iff a
 * signal came first, or another negative errno. */
static inline int rt_clock_sleep_until(clockid_t clock, rt_second_t *second, int64_t time) {
  uint64_t part = (uint64_t)time - (uint64_t)second->begin;
  if (RT_UNLIKELY(part >= (uint64_t)RT_NS_PER_S)) {
    second->time.tv_sec = (time_t)(time / RT_NS_PER_S);
    second->begin = second->time.tv_sec * RT_NS_PER_S;
    part = (uint64_t)time - (uint64_t)second->begin;
  }
  second->time.tv_nsec = (long)part;
  return rt_clock_nanosleep(clock, &second->time);
}

#endif
