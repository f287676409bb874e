/* Relaxed single-writer accesses and the CPU's spin hint.
 *
 * A datum that one thread writes and others read must be accessed atomically, or the compiler may tear it.
 * With one writer no read-modify-write is needed: on x86-64 and arm64 each of these is a plain load or store.
 */
#ifndef RTLOOP_ATOMICS_H
#define RTLOOP_ATOMICS_H

#include <stdint.h>

#define RT_CACHE_LINE 64
#define RT_LIKELY(x) __builtin_expect(!!(x), 1)
#define RT_UNLIKELY(x) __builtin_expect(!!(x), 0)

#define rt_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define rt_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define rt_load_seq_cst(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define rt_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define rt_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

#define rt_exchange_acq_rel(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)

/* Add to a datum that only this thread writes. */
#define rt_add_relaxed(p, v) rt_store_relaxed((p), rt_load_relaxed(p) + (v))

/* Tell the core that this is a spin-wait: spares power and the sibling thread. */
static inline void rt_cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb" ::: "memory"); /* "yield" is a no-op on most cores; isb pauses like x86's pause */
#else
  __asm__ __volatile__("" ::: "memory");
#endif
}

#endif
