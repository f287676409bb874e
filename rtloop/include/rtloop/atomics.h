/* Atomic accesses to data with a single writer, and the CPU's spin hint.
 *
 * A datum that one thread writes and others read must be accessed atomically, or the compiler may tear it.
 * With one writer no read-modify-write is needed: on x86-64 and arm64 each of these is a plain load or store.
 */
#ifndef RTLOOP_ATOMICS_H
#define RTLOOP_ATOMICS_H

#include <stdint.h>

#if UINTPTR_MAX <= 0xffffffffu
#error "rtloop needs a 64-bit machine: its counters and times are 64-bit words that are read and written at once"
#endif

#define RT_CACHE_LINE 64
#define RT_LIKELY(x) __builtin_expect(!!(x), 1)
#define RT_UNLIKELY(x) __builtin_expect(!!(x), 0)

#define rt_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define rt_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define rt_load_seq_cst(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define rt_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define rt_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

#define rt_exchange_acq_rel(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
#define rt_exchange_seq_cst(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)

/* Replace *p by v if it equals *expected, otherwise load it into *expected. Evaluates to 1 iff it was replaced. */
#define rt_compare_exchange_acq_rel(p, expected, v)                                                                    \
  __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)
#define rt_compare_exchange_seq_cst(p, expected, v)                                                                    \
  __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define RT_IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define RT_IS_SANITIZED 1
#endif
#endif

/* Defined where every access to shared data has to be an atomic one that a sanitizer knows. */
#if defined(__SANITIZE_THREAD__)
#define RT_IS_RACE_CHECKED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RT_IS_RACE_CHECKED 1
#endif
#endif

/* rt_add_relaxed adds to a 64-bit datum and rt_add32_relaxed to a 32-bit one that only this thread writes. On x86-64
 * that is one instruction without a lock prefix, where compilers make three of an atomic load and an atomic store. A
 * sanitizer has to see the load and the store. */
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED)
#define rt_add_relaxed(p, v) __asm__ __volatile__("addq %1, %0" : "+m"(*(p)) : "er"((int64_t)(v)) : "cc")
#define rt_add32_relaxed(p, v) __asm__ __volatile__("addl %1, %0" : "+m"(*(p)) : "ir"(v) : "cc")
#else
#define rt_add_relaxed(p, v) rt_store_relaxed((p), rt_load_relaxed(p) + (v))
#define rt_add32_relaxed(p, v) rt_add_relaxed((p), (v))
#endif

/* Add to a 64-bit value that only this thread writes; its earlier stores become visible first. */
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED)
#define rt_add_release(p, v) __asm__ __volatile__("addq %1, %0" : "+m"(*(p)) : "er"((int64_t)(v)) : "cc", "memory")
#else
#define rt_add_release(p, v) rt_store_release((p), rt_load_relaxed(p) + (v))
#endif

/* Add a 64-bit value to a 128-bit sum of two 64-bit halves that only this thread writes. A reader needs a seqlock,
 * because the halves are two stores. */
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED)
#define rt_add128_relaxed(low, high, v)                                                                                \
  __asm__ __volatile__("addq %2, %0\n\tadcq $0, %1" : "+m"(*(low)), "+m"(*(high)) : "r"((uint64_t)(v)) : "cc")
#else
static inline void rt_add128_relaxed(uint64_t *low, uint64_t *high, uint64_t value) {
  const uint64_t sum = rt_load_relaxed(low) + value;
  rt_store_relaxed(low, sum);
  rt_store_relaxed(high, rt_load_relaxed(high) + (sum < value));
}
#endif

/* Test a 32-bit datum for 0, with acquire order: on x86-64 every load is an acquire. This is a macro, as are the
 * additions, because the address of a function's operand would take a register. */
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED)
#define rt_is_zero_acquire(p)                                                                                          \
  __extension__({                                                                                                      \
    int rt_is_zero_;                                                                                                   \
    __asm__ __volatile__("cmpl $0, %1" : "=@cce"(rt_is_zero_) : "m"(*(p)) : "memory");                                 \
    rt_is_zero_;                                                                                                       \
  })
#else
#define rt_is_zero_acquire(p) (rt_load_acquire(p) == 0)
#endif

/* Test whether a 64-bit datum has one of the bits of a constant, all of them below bit 7: one instruction on x86-64,
 * where compilers make two of an atomic load. A macro for the same reason. */
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED)
#define rt_has_bits_relaxed(p, bits)                                                                                   \
  __extension__({                                                                                                      \
    int rt_has_bits_;                                                                                                  \
    __asm__ __volatile__("testb %2, %1" : "=@ccne"(rt_has_bits_) : "m"(*(const uint8_t *)(p)), "i"((int)(bits)));      \
    rt_has_bits_;                                                                                                      \
  })
#else
#define rt_has_bits_relaxed(p, bits) ((rt_load_relaxed(p) & (bits)) != 0)
#endif

/* Tell the core that this is a spin-wait, which saves power and leaves resources to the other hardware thread. Any
 * thread; tens of cycles; no system call. */
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
