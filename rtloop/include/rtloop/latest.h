/* The newest value from one thread to another: wait-free on both sides, always whole, without malloc or system call.
 *
 *   | rt_latest_t | three places for a value, each on cache lines of its own |
 *
 * The writer owns one place, the reader owns another, and the third is between them. A write fills the writer's place
 * and exchanges it for the one between. A read exchanges the reader's place for the one between if that is new. Neither
 * side touches a place of the other, so a value is never seen half-written, however slow either side is. Each exchange
 * releases what this side did to its place and acquires what the other side did to the place that comes back.
 *
 * In a forked child a region of rt_memory_map is all zeros: a value there has no places and a size of 0 bytes. The
 * `_sized` functions must not be called on it.
 *
 * After each value its place holds a stamp: the time of the write and the number of the value. rt_latest_write_at sets
 * the stamp. rt_latest_write leaves the one that the place had, which belongs to an older value or to none, so a value
 * never seems younger than it is.
 *
 * Worst case: a write is a copy and one locked instruction. A read is a copy, and one locked instruction if there is a
 * new value. Neither has a loop.
 */
#ifndef RTLOOP_LATEST_H
#define RTLOOP_LATEST_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"
#include "clock.h"

#define RT_LATEST_NEW 4u          /* flag next to the number of a place, 0 to 2 */
#define RT_LATEST_NEVER INT64_MAX /* the age of a value that was written without a time, or not at all */

/* A stamp further in the future than this was made before its clock was set back. */
#define RT_LATEST_FUTURE_NS INT64_C(1000000)

typedef struct rt_latest_stamp {
  int64_t written; /* when it was written, ns on CLOCK_MONOTONIC; only with is_settable */
  int64_t time;    /* ns on the clock that the writer uses */
  uint64_t count;  /* the values written until then, this one included; 0: there is no stamp */
} rt_latest_stamp_t;

typedef struct rt_latest {
  /* Constant after rt_latest_init. */
  _Alignas(RT_CACHE_LINE) char *places;
  uint64_t stride;
  uint64_t value_bytes;
  int64_t clock;       /* the clockid_t of the stamps; read here only with is_settable */
  int64_t is_settable; /* whether somebody can set that clock, so that the difference of two times is no age */

  _Alignas(RT_CACHE_LINE) uint32_t between; /* written by both */

  /* Written by the writer. */
  _Alignas(RT_CACHE_LINE) uint32_t back;
  uint64_t written;
  int64_t written_at;           /* the time of the newest stamp; 0 before the first */
  int64_t written_at_monotonic; /* the same on CLOCK_MONOTONIC; only with is_settable */

  /* Written by the reader. */
  _Alignas(RT_CACHE_LINE) uint32_t front;
  uint32_t awaited; /* whether the reader sleeps; see wakes.h */
} rt_latest_t;

/* Compute the bytes from one place to the next. O(1). */
static inline uint64_t rt_latest_stride(uint64_t value_bytes) {
  return (value_bytes + sizeof(rt_latest_stamp_t) + RT_CACHE_LINE - 1) & -(uint64_t)RT_CACHE_LINE;
}

/* Compute the bytes of the region that is needed. Any thread, O(1), no system call. 0 iff `value_bytes` is 0, or the
 * sum exceeds PTRDIFF_MAX. */
static inline uint64_t rt_latest_bytes(uint64_t value_bytes) {
  if (value_bytes == 0 || value_bytes > ((uint64_t)PTRDIFF_MAX - sizeof(rt_latest_t)) / 3 - 2 * RT_CACHE_LINE) return 0;
  return sizeof(rt_latest_t) + 3 * rt_latest_stride(value_bytes);
}

/* Make a value of a zeroed region of rt_latest_bytes(value_bytes), aligned to RT_CACHE_LINE. It is all zeros and not
 * new. Call this before any other thread has the address; O(1), no system call. Returns 0, or fails with -EINVAL iff
 * the size or the alignment is wrong. */
static inline int rt_latest_init(rt_latest_t *latest, uint64_t value_bytes) {
  if (rt_latest_bytes(value_bytes) == 0 || (uintptr_t)latest % RT_CACHE_LINE) return -EINVAL;
  *latest = (rt_latest_t){.places = (char *)latest + sizeof *latest,
                          .stride = rt_latest_stride(value_bytes),
                          .value_bytes = value_bytes,
                          .between = 0,
                          .back = 1,
                          .front = 2};
  return 0;
}

/* Get the place in which the writer may assemble the next value; it still holds a former value. The writer; O(1). */
static inline void *rt_latest_back(rt_latest_t *latest) { return latest->places + latest->back * latest->stride; }

/* Make the content of rt_latest_back() the newest value, and take another place. The writer; one locked instruction. */
static inline void rt_latest_publish(rt_latest_t *latest) {
  const uint32_t was = rt_exchange_acq_rel(&latest->between, latest->back | RT_LATEST_NEW);
  latest->back = was & ~RT_LATEST_NEW;
  rt_add_relaxed(&latest->written, 1);
}

/* Select the newest value for rt_latest_front(). Returns 1 iff it was not selected before. The reader; one load, and
 * one locked instruction if the value is new. */
static inline int rt_latest_update(rt_latest_t *latest) {
  if (!(rt_load_relaxed(&latest->between) & RT_LATEST_NEW)) return 0;
  const uint32_t was = rt_exchange_acq_rel(&latest->between, latest->front);
  latest->front = was & ~RT_LATEST_NEW;
  return 1;
}

/* Get the value that rt_latest_update() has selected; it does not change until the next call of that. The reader;
 * O(1). */
static inline const void *rt_latest_front(const rt_latest_t *latest) {
  return latest->places + latest->front * latest->stride;
}

/* Write a value. `value_bytes` must be the size that it was made with; with a constant, the compiler needs no call of
 * memcpy. The writer; wait-free: a copy and one locked instruction; allocates nothing, no system call. */
static inline void rt_latest_write_sized(rt_latest_t *latest, const void *value, size_t value_bytes) {
  memcpy(rt_latest_back(latest), value, value_bytes);
  rt_latest_publish(latest);
}

/* Write a value of the size that it was made with. The writer; wait-free: a copy and one locked instruction; allocates
 * nothing, no system call. */
static inline void rt_latest_write(rt_latest_t *latest, const void *value) {
  rt_latest_write_sized(latest, value, latest->value_bytes);
}

/* Read the newest value, which is all zeros before the first write. Returns 1 iff it was not read before. `value_bytes`
 * must be the size that it was made with. The reader; wait-free: a copy and at most one locked instruction; allocates
 * nothing, no system call. */
static inline int rt_latest_read_sized(rt_latest_t *latest, void *value, size_t value_bytes) {
  const int is_new = rt_latest_update(latest);
  memcpy(value, rt_latest_front(latest), value_bytes);
  return is_new;
}

/* Read the newest value, of the size that it was made with; it is all zeros before the first write. Returns 1 iff it
 * was not read before. The reader; wait-free: a copy and at most one locked instruction; allocates nothing, no system
 * call. */
static inline int rt_latest_read(rt_latest_t *latest, void *value) {
  return rt_latest_read_sized(latest, value, latest->value_bytes);
}

/* Get the stamp of a place. The owner of the place; O(1). */
static inline rt_latest_stamp_t *rt_latest_stamp_of(const rt_latest_t *latest, uint32_t place) {
  return (rt_latest_stamp_t *)(void *)(latest->places + (place + 1) * latest->stride - sizeof(rt_latest_stamp_t));
}

/* Write a value and stamp it with `time`, in ns on the clock that the reader will compare with. In a forked child this
 * does nothing. The writer; wait-free: two copies and one locked instruction; allocates nothing, no system call. */
static inline void rt_latest_write_at(rt_latest_t *latest, const void *value, int64_t time) {
  if (latest->value_bytes == 0) return; /* a forked child's */
  const int64_t written = RT_UNLIKELY(latest->is_settable) ? rt_clock_now(CLOCK_MONOTONIC) : 0;
  const rt_latest_stamp_t stamp = {.written = written, .time = time, .count = rt_load_relaxed(&latest->written) + 1};
  memcpy(rt_latest_back(latest), value, latest->value_bytes);
  memcpy(rt_latest_stamp_of(latest, latest->back), &stamp, sizeof stamp);
  rt_store_relaxed(&latest->written_at, time);
  rt_store_relaxed(&latest->written_at_monotonic, written);
  rt_latest_publish(latest);
}

/* Get the stamp of the value that was read last; all zeros iff it has none. The reader; O(1), no system call. */
static inline rt_latest_stamp_t rt_latest_stamp(const rt_latest_t *latest) {
  rt_latest_stamp_t stamp = {0, 0, 0};
  if (latest->value_bytes != 0) memcpy(&stamp, rt_latest_stamp_of(latest, latest->front), sizeof stamp);
  return stamp;
}

/* Compute an age by the settable clock `age` or by CLOCK_MONOTONIC, whichever is greater: after a step of the clock the
 * value is never too young. RT_LATEST_NEVER iff the stamp is in the future, so that the clock was set back. The reader;
 * O(1), two reads of a clock. */
static __attribute__((noinline, unused)) int64_t rt_latest_settable_age(const rt_latest_t *latest,
                                                                        rt_latest_stamp_t stamp, int64_t age) {
  const int64_t elapsed = rt_clock_now(CLOCK_MONOTONIC) - stamp.written;
  if (stamp.time > rt_clock_now((clockid_t)latest->clock) + RT_LATEST_FUTURE_NS) return RT_LATEST_NEVER;
  return age > elapsed ? age : elapsed;
}

/* Compute the age at `now` of a value with this stamp, in ns, at least 0. RT_LATEST_NEVER iff it has none, so that it
 * counts as older than any limit. The reader; O(1), no system call. */
static inline int64_t rt_latest_age_of(const rt_latest_t *latest, rt_latest_stamp_t stamp, int64_t now) {
  if (stamp.count == 0) return RT_LATEST_NEVER;
  const int64_t age = now > stamp.time ? now - stamp.time : 0;
  return RT_UNLIKELY(latest->is_settable) ? rt_latest_settable_age(latest, stamp, age) : age;
}

/* Compute the age at `now` of a value with this stamp, in periods, rounded up. RT_LATEST_NEVER iff it has none, or one
 * more than a period in the future. `period` must be positive. The reader; O(1), no system call. */
static inline int64_t rt_latest_age_cycles_of(const rt_latest_t *latest, rt_latest_stamp_t stamp, int64_t now,
                                              int64_t period) {
  const int64_t age = rt_latest_age_of(latest, stamp, now);
  if (RT_UNLIKELY(age == 0) && stamp.time - now > period) return RT_LATEST_NEVER;
  return age == RT_LATEST_NEVER ? age : age / period + (age % period != 0);
}

/* Compute the age at `now` of the value that was read last, in ns, at least 0. RT_LATEST_NEVER iff the value has no
 * stamp, so that it counts as older than any limit. The reader; O(1), no system call. */
static inline int64_t rt_latest_age(const rt_latest_t *latest, int64_t now) {
  return rt_latest_age_of(latest, rt_latest_stamp(latest), now);
}

/* Compute the age at `now` of the value that was read last, in periods, rounded up. RT_LATEST_NEVER iff the value has
 * no stamp, or one more than a period in the future. `period` must be positive. The reader; O(1), no system call. */
static inline int64_t rt_latest_age_cycles(const rt_latest_t *latest, int64_t now, int64_t period) {
  return rt_latest_age_cycles_of(latest, rt_latest_stamp(latest), now, period);
}

/* Get the time of the newest stamp; 0 before the first. Any thread, O(1), no system call. */
static inline int64_t rt_latest_written_at(const rt_latest_t *latest) { return rt_load_relaxed(&latest->written_at); }

/* Test whether there is a value that was not read yet. Any thread, O(1), no system call. */
static inline int rt_latest_is_new(const rt_latest_t *latest) {
  return (rt_load_relaxed(&latest->between) & RT_LATEST_NEW) != 0;
}

/* Count the values that were written. Any thread, O(1), no system call. */
static inline uint64_t rt_latest_written(const rt_latest_t *latest) { return rt_load_relaxed(&latest->written); }

#endif
