/* A sequence lock with one writer that never waits and any number of readers that retry.
 *
 * The writer makes the sequence odd, writes, and makes it even again; a reader whose sequence was odd or changed has
 * read a mixture and tries again. Data under the lock is accessed with relaxed atomics (atomics.h); the order is
 * Boehm's: "Can seqlocks get along with programming language memory models?", MSPC 2012.
 *
 * Real-time contract: the writer's two calls are a store each, in constant time, whatever the readers do.
 */
#ifndef RTLOOP_SEQLOCK_H
#define RTLOOP_SEQLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "atomics.h"

typedef struct rt_seqlock {
  uint32_t sequence;
} rt_seqlock_t;

/* Enter the section of the writer. The one writer; O(1); never waits. */
static inline void rt_seqlock_write_begin(rt_seqlock_t *lock) {
  rt_add32_relaxed(&lock->sequence, 1u);
  __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* Leave the section of the writer. The one writer; O(1); never waits. */
static inline void rt_seqlock_write_end(rt_seqlock_t *lock) {
  __atomic_thread_fence(__ATOMIC_RELEASE);
  rt_add32_relaxed(&lock->sequence, 1u);
}

/* Start an attempt to read. Returns the sequence to pass to rt_seqlock_read_valid. Any thread; O(1); never waits. */
static inline uint32_t rt_seqlock_read_begin(const rt_seqlock_t *lock) { return rt_load_acquire(&lock->sequence); }

/* Test whether what was read since rt_seqlock_read_begin is consistent; otherwise read again. Any thread; O(1). */
static inline bool rt_seqlock_read_valid(const rt_seqlock_t *lock, uint32_t begin) {
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  return (begin & 1u) == 0 && rt_load_relaxed(&lock->sequence) == begin;
}

#endif
