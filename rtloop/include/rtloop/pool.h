/* A pool of equal blocks in one region of memory: alloc and free without malloc, page fault or system call.
 *
 *   | rt_pool_t | tables | blocks, each at a multiple of the cache line |
 *
 * Three kinds. single: one thread. shared: lock-free, any threads. mutex: any threads, with priority inheritance.
 * The pool's own data is in the tables, not in the blocks, so writing to a block after its free cannot harm the pool.
 *
 * single and mutex: a stack with the addresses of free blocks, a position for each block, and the recent block.
 *
 *   stack   NULL [ blocks that were freed | NULL ... ]     places[i]: last position of block i     recent, recent_is
 *                                        ^ depth
 *
 * Blocks from number high_water on have never been taken, and are not on the stack. An alloc takes the first of them
 * if the stack is empty, which the NULL at its bottom marks. An alloc stores NULL in place of the block that it takes,
 * so a block is on the stack iff stack[places[i]] is its address. `recent` is a block that is not on the stack; it is
 * either spare (free) or lent (in use). If there is no spare block, a free makes its block the recent one, and spare;
 * otherwise it puts its block on the stack. An alloc takes the spare block first. A free is valid iff the block has
 * been taken before, is not on the stack, and is not the spare one.
 *
 * In the most frequent pattern, alloc and free in turn, both calls change only `recent_is`, between two constants.
 * This matters, because a load of a value that was just stored takes 4 to 8 cycles. The CPU predicts the
 * branches that depend on `recent_is`, so no call waits for that value, and `recent` itself does not change. A free of
 * the recent block does not have to compute its index either.
 *
 * shared: a bitmap, first fit.
 *
 *   leaves    {number of takes, a bit for each of 32 blocks: 1 iff free}     hints    a bit for each leaf: see below
 *
 * A take is one compare-and-swap that clears the lowest bit and counts. A free is one fetch-or, whose former value
 * reveals a double free, even of two threads at once. There is no ABA problem, because a bit is the whole state of a
 * block.
 *
 * A hint means that its leaf may have a free block. An alloc that empties a leaf, or finds one empty, clears the hint,
 * reads the leaf again, and sets the hint again if there was a free in between. A free sets its bit, then reads the
 * hint, and sets it if it is 0. All four accesses are sequentially consistent, so at least one of the two sees what the
 * other did. A hint can be wrong only in the middle of an alloc or a free, so an alloc that finds no hint reads all
 * leaves. It reads them until all were empty twice with no take in between. A leaf that was empty both times without a
 * take had no free either, so between the two readings every block was in use. A pool of as many blocks as all threads
 * together ever hold is therefore never exhausted. (The count of takes wraps after 2^32: a wrong answer needs exactly
 * that many takes of one leaf between two readings, which take more than a minute.)
 *
 * High water of single and mutex: an alloc takes a new block only if all blocks that were ever taken are in use, so the
 * number of blocks ever taken is the greatest number in use. High water of shared: first fit takes block i only if
 * all blocks below it are in use. In sequential use the number of the highest block ever taken, plus 1, is therefore
 * the greatest number in use. With several threads, blocks below may be freed while an alloc searches: the figure is
 * then too high by at most their number, and never too low.
 *
 * A second free of a block that another caller has taken since then looks like the free of its new owner: no pool can
 * tell them apart. Every other invalid free is refused.
 *
 * In a forked child a region of rt_memory_map is all zeros: a pool there is empty and owns no block.
 *
 * Worst case, with n blocks:
 *
 *            alloc                                                    free
 *   single   about 30 instructions                                    about 20 instructions
 *   shared   n / 2048 words of hints read, 3 locked instructions:     2 locked instructions: the bit; where the leaf
 *            the take; where it empties the leaf, the hint; where     was empty, the hint
 *            the pool is fuller than ever, the high water.
 *            Exhausted: n / 16 leaves read and one locked
 *            instruction more
 *   mutex    as single, after those that wait with a higher           as alloc
 *            priority and one holder, who inherits, each of
 *            them once at least; with waiters, 2 system calls
 *
 * On shared, an alloc exceeds this only because other threads take and free blocks at the same time; a thread that is
 * interrupted half-way delays no other. A free has no loop if compiler and CPU have an atomic fetch-or that returns a
 * bit (gcc on x86-64; arm64 with LSE).
 */
#ifndef RTLOOP_POOL_H
#define RTLOOP_POOL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "atomics.h"

#define RT_POOL_SINGLE 1u /* not 0, which is the kind of a pool that a fork has wiped */
#define RT_POOL_SHARED 2u
#define RT_POOL_MUTEX 3u

#define RT_POOL_MAX_COUNT (UINT64_C(1) << 20) /* bounds the worst case of shared: 512 words of hints */
#define RT_POOL_LEAF 32                       /* blocks of a leaf */
#define RT_POOL_TAKE (UINT64_C(1) << RT_POOL_LEAF)

/* Values of rt_pool_t.recent_is. 0 is the state of a new pool, and of one that a fork has wiped. */
#define RT_POOL_SPARE 1u /* `recent` is free */
#define RT_POOL_LENT 2u  /* `recent` is in use */

/* A rare case, out of line: inline code with more calls would first save registers, and a locked instruction waits for
 * these stores. */
#define RT_POOL_RARE static __attribute__((noinline, cold, unused))

#if __GCC_ATOMIC_LLONG_LOCK_FREE != 2
#error "the shared pool needs lock-free 64-bit atomics"
#endif

typedef struct rt_pool {
  /* Constant after rt_pool_init, the first line of it for all of alloc and free. */
  _Alignas(RT_CACHE_LINE) char *blocks;
  uint64_t stride;  /* odd << shift */
  uint64_t inverse; /* of odd, modulo 2^64 */
  union {
    char **stack;     /* single and mutex; always directly behind this struct */
    uint64_t *leaves; /* shared */
  };
  union {
    uint32_t *places; /* single and mutex */
    uint64_t *hints;  /* shared */
  };
  uint64_t block_bytes;
  uint32_t shift;
  uint32_t count;
  uint32_t kind;
  uint32_t hint_words;

  /* Written by every call of single and mutex; of shared only if more blocks are in use than ever before. The lock
   * shares a cache line with the data that it protects. */
  _Alignas(RT_CACHE_LINE) pthread_mutex_t lock;
  char *recent;       /* single and mutex: a block that is not on the stack, if recent_is is not 0 */
  uint32_t recent_is; /* RT_POOL_SPARE or RT_POOL_LENT */
  uint32_t depth;     /* single and mutex: the number of blocks on the stack */
  uint32_t high_water;

  /* Written by the calls that find the pool exhausted. */
  _Alignas(RT_CACHE_LINE) uint64_t failures;
} rt_pool_t;

static inline void *rt_pool_alloc(rt_pool_t *pool) __attribute__((always_inline));
static inline int rt_pool_free(rt_pool_t *pool, void *block) __attribute__((always_inline));

/* Round up to a multiple of the cache line. O(1). */
static inline uint64_t rt_pool_round_up(uint64_t bytes) {
  return (bytes + RT_CACHE_LINE - 1) & -(uint64_t)RT_CACHE_LINE;
}

/* Compute the number of leaves for `count` blocks. O(1). */
static inline uint64_t rt_pool_leaf_count(uint64_t count) { return (count + RT_POOL_LEAF - 1) / RT_POOL_LEAF; }

/* Compute the number of words of hints for `count` blocks. O(1). */
static inline uint64_t rt_pool_hint_words(uint64_t count) { return (rt_pool_leaf_count(count) + 63) / 64; }

/* Compute the bytes of the first table, the stack or the leaves. O(1). */
static inline uint64_t rt_pool_first_bytes(uint64_t count, uint32_t kind) {
  return rt_pool_round_up(8 * (kind == RT_POOL_SHARED ? rt_pool_leaf_count(count) : count + 1));
}

/* Compute the bytes of the second table, the places or the hints. O(1). */
static inline uint64_t rt_pool_second_bytes(uint64_t count, uint32_t kind) {
  return rt_pool_round_up(kind == RT_POOL_SHARED ? 8 * rt_pool_hint_words(count) : 4 * count);
}

/* Compute the bytes of the region that a pool needs. Any thread, O(1), no system call. 0 iff `block_bytes` is 0,
 * `count` is not from 1 to RT_POOL_MAX_COUNT, the kind is unknown, or the sum exceeds PTRDIFF_MAX. */
static inline uint64_t rt_pool_bytes(uint64_t block_bytes, uint64_t count, uint32_t kind) {
  if (block_bytes == 0 || block_bytes > (uint64_t)PTRDIFF_MAX || count == 0 || count > RT_POOL_MAX_COUNT) return 0;
  if (kind < RT_POOL_SINGLE || kind > RT_POOL_MUTEX) return 0;
  const uint64_t before = sizeof(rt_pool_t) + rt_pool_first_bytes(count, kind) + rt_pool_second_bytes(count, kind);
  const uint64_t stride = rt_pool_round_up(block_bytes);
  return stride > ((uint64_t)PTRDIFF_MAX - before) / count ? 0 : before + stride * count;
}

/* Get the address of block `index`. O(1). */
static inline void *rt_pool_address(const rt_pool_t *pool, uint64_t index) {
  return pool->blocks + index * pool->stride;
}

/* Find the index of the block that begins at `block`; `count` or more iff none does. O(1), without division.
 * Multiplying with the inverse of the odd part and rotating by the rest divides exactly if the offset is a multiple of
 * the stride. Both steps are permutations of the 64-bit numbers, and the multiples use up all small results: every
 * other offset, those before the first block included, gives a number that is too large. */
static inline uint64_t rt_pool_index(const rt_pool_t *pool, const void *block) {
  const uint64_t product = ((uint64_t)(uintptr_t)block - (uint64_t)(uintptr_t)pool->blocks) * pool->inverse;
  return product >> (pool->shift & 63) | product << (-pool->shift & 63);
}

/* Compute the bits that a leaf may have: RT_POOL_LEAF of them, or fewer in the last leaf. O(1). */
static inline uint32_t rt_pool_leaf_mask(uint64_t count, uint64_t leaf) {
  const uint64_t blocks = count - leaf * RT_POOL_LEAF;
  return blocks >= RT_POOL_LEAF ? UINT32_MAX : (UINT32_C(1) << blocks) - 1;
}

/* Compute the bits that a word of hints may have: one for each leaf. O(1). */
static inline uint64_t rt_pool_hint_mask(uint64_t count, uint64_t word) {
  const uint64_t leaves = rt_pool_leaf_count(count) - word * 64;
  return leaves >= 64 ? UINT64_MAX : (UINT64_C(1) << leaves) - 1;
}

/* Make a pool of a region of rt_pool_bytes(block_bytes, count, kind), aligned to RT_CACHE_LINE. The lowest block is
 * taken first.
 *
 * Call this before any other thread has the address; O(count); writes the head of the region and no block; no system
 * call. Returns 0, or fails with -EINVAL iff a size, the kind or the alignment is wrong, or with the error of
 * pthread_mutex_init(3) iff the system has no priority inheritance. */
static inline int rt_pool_init(rt_pool_t *pool, uint64_t block_bytes, uint64_t count, uint32_t kind) {
  if (rt_pool_bytes(block_bytes, count, kind) == 0 || (uintptr_t)pool % RT_CACHE_LINE) return -EINVAL;
  char *const first = (char *)pool + sizeof *pool, *const second = first + rt_pool_first_bytes(count, kind);
  pool->blocks = second + rt_pool_second_bytes(count, kind);
  pool->stride = rt_pool_round_up(block_bytes);
  pool->shift = (uint32_t)__builtin_ctzll(pool->stride);
  /* Newton: an odd number is its own inverse modulo 8, and each step doubles the number of right bits. */
  const uint64_t odd = pool->stride >> pool->shift;
  pool->inverse = odd;
  for (int bits = 3; bits < 64; bits *= 2) pool->inverse *= 2 - odd * pool->inverse;
  pool->block_bytes = block_bytes;
  pool->count = (uint32_t)count;
  pool->kind = kind;
  pool->hint_words = 0;
  pool->recent = NULL;
  pool->recent_is = pool->depth = pool->high_water = 0;
  pool->failures = 0;
  if (kind == RT_POOL_SHARED) {
    pool->leaves = (uint64_t *)(void *)first;
    pool->hints = (uint64_t *)(void *)second;
    pool->hint_words = (uint32_t)rt_pool_hint_words(count);
    for (uint64_t i = 0; i < rt_pool_leaf_count(count); i++) pool->leaves[i] = rt_pool_leaf_mask(count, i);
    for (uint64_t i = 0; i < pool->hint_words; i++) pool->hints[i] = rt_pool_hint_mask(count, i);
  } else {
    pool->stack = (char **)(void *)first;
    pool->places = (uint32_t *)(void *)second;
    for (uint64_t i = 0; i <= count; i++) pool->stack[i] = NULL;
    for (uint64_t i = 0; i < count; i++) pool->places[i] = 0;
  }
  pthread_mutexattr_t attr;
  int rc = pthread_mutexattr_init(&attr);
  if (rc) return -rc;
  if (kind == RT_POOL_MUTEX) rc = pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
  if (!rc) rc = pthread_mutex_init(&pool->lock, &attr);
  pthread_mutexattr_destroy(&attr);
  return -rc;
}

/* Get the stack of a pool of kind single or mutex, without reading its address. O(1). */
static inline char **rt_pool_stack(rt_pool_t *pool) { return (char **)(void *)(pool + 1); }

/* Take the first block of a pool of kind single or mutex that was never taken. NULL iff there is none. O(1). */
RT_POOL_RARE void *rt_pool_take_new(rt_pool_t *pool) {
  const uint32_t index = rt_load_relaxed(&pool->high_water);
  if (index >= pool->count) {
    rt_add_relaxed(&pool->failures, 1);
    return NULL;
  }
  rt_store_relaxed(&pool->high_water, index + 1);
  return rt_pool_address(pool, index);
}

/* Take a block of a pool of kind single. NULL iff every block is in use.
 * The pool's one thread; 5 instructions if the last call freed a block, otherwise about 10, or 30 for a block that was
 * never taken before; no loop; allocates nothing, never waits, no system call. */
static inline void *rt_pool_alloc_single(rt_pool_t *pool) {
  if (RT_LIKELY(rt_load_relaxed(&pool->recent_is) == RT_POOL_SPARE)) {
    rt_store_relaxed(&pool->recent_is, RT_POOL_LENT);
    return pool->recent;
  }
  const uint32_t depth = rt_load_relaxed(&pool->depth);
  char *const block = rt_pool_stack(pool)[depth];
  if (RT_UNLIKELY(!block)) return rt_pool_take_new(pool);
  rt_pool_stack(pool)[depth] = NULL;
  rt_store_relaxed(&pool->depth, depth - 1);
  return block;
}

/* Give a block back to a pool of kind single. Returns 0, or fails, and changes nothing, with
 * -EINVAL iff no block of this pool begins at `block` (NULL is none), -EALREADY iff the block is free.
 * The pool's one thread; 6 instructions if the block is the one freed last, otherwise about 20, no loop; allocates
 * nothing, never waits, no system call. */
static inline int rt_pool_free_single(rt_pool_t *pool, void *block) {
  const uint32_t recent_is = rt_load_relaxed(&pool->recent_is);
  /* In this order of the tests, compilers lay out the usual case as straight-line code, without a taken jump. */
  if (RT_LIKELY(recent_is == RT_POOL_LENT && (char *)block == pool->recent)) {
    rt_store_relaxed(&pool->recent_is, RT_POOL_SPARE);
    return 0;
  }
  if (recent_is == RT_POOL_SPARE && (char *)block == pool->recent) return -EALREADY;
  const uint64_t index = rt_pool_index(pool, block);
  if (RT_UNLIKELY(index >= rt_load_relaxed(&pool->high_water))) return index < pool->count ? -EALREADY : -EINVAL;
  if (RT_UNLIKELY(rt_pool_stack(pool)[pool->places[index]] == (char *)block)) return -EALREADY;
  if (recent_is != RT_POOL_SPARE) {
    pool->recent = (char *)block;
    rt_store_relaxed(&pool->recent_is, RT_POOL_SPARE);
    return 0;
  }
  const uint32_t depth = rt_load_relaxed(&pool->depth) + 1;
  rt_pool_stack(pool)[depth] = (char *)block;
  pool->places[index] = depth;
  rt_store_relaxed(&pool->depth, depth);
  return 0;
}

/* Raise the high water to at least `index` + 1. Any thread; lock-free: one attempt, and one more each time that another
 * thread raises it. */
RT_POOL_RARE void rt_pool_raise_high_water(rt_pool_t *pool, uint32_t index) {
  uint32_t high = rt_load_relaxed(&pool->high_water);
  while (high <= index &&
         !__atomic_compare_exchange_n(&pool->high_water, &high, index + 1, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

/* Clear the hint of an empty leaf. Returns 1 iff a block was freed in the meantime; the hint is then set. Any thread;
 * two or three locked instructions. */
RT_POOL_RARE int rt_pool_clear_hint(rt_pool_t *pool, uint32_t leaf) {
  uint64_t *const hints = &pool->hints[leaf / 64];
  const uint64_t hint = UINT64_C(1) << (leaf % 64);
  __atomic_fetch_and(hints, ~hint, __ATOMIC_SEQ_CST);
  if (RT_LIKELY(!(uint32_t)rt_load_seq_cst(&pool->leaves[leaf]))) return 0;
  __atomic_fetch_or(hints, hint, __ATOMIC_SEQ_CST);
  return 1;
}

/* Try once to take the lowest free block of a leaf whose state was *was. NULL iff the leaf has changed meanwhile, or
 * the compare-and-swap failed spuriously; *was is then the present state. Any thread. */
static inline void *rt_pool_try_take(rt_pool_t *pool, uint32_t leaf, uint64_t *was) {
  /* The count of takes wraps in the upper half and carries nowhere. */
  const uint64_t next = (*was & (*was - 1)) + RT_POOL_TAKE;
  const uint32_t index = leaf * RT_POOL_LEAF + (uint32_t)__builtin_ctzll(*was);
  /* The release matters: a thread that sees this take in rt_pool_take_any() must also see what this thread freed
   * before. Otherwise it could find the pool exhausted although there was a free block at every moment. */
  if (!__atomic_compare_exchange_n(&pool->leaves[leaf], was, next, 1, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return NULL;
  if (RT_UNLIKELY(!(uint32_t)next)) rt_pool_clear_hint(pool, leaf);
  if (RT_UNLIKELY(rt_load_relaxed(&pool->high_water) <= index)) rt_pool_raise_high_water(pool, index);
  return rt_pool_address(pool, index);
}

/* Take the lowest free block of a leaf. NULL iff it has none. Any thread; lock-free. */
RT_POOL_RARE void *rt_pool_take(rt_pool_t *pool, uint32_t leaf) {
  uint64_t was = rt_load_relaxed(&pool->leaves[leaf]);
  while ((uint32_t)was) {
    void *const block = rt_pool_try_take(pool, leaf, &was);
    if (block) return block;
  }
  return NULL;
}

/* Read all leaves and take the first free block. NULL iff there was a moment at which every block was in use. Any
 * thread; lock-free: O(count / 32) without other threads. */
RT_POOL_RARE void *rt_pool_take_any(rt_pool_t *pool) {
  const uint32_t leaves = (uint32_t)rt_pool_leaf_count(pool->count);
  uint64_t former = UINT64_MAX; /* which no sum of 32-bit counts reaches */
  for (;;) {
    uint64_t takes = 0;
    for (uint32_t leaf = 0; leaf < leaves; leaf++) {
      const uint64_t word = rt_load_acquire(&pool->leaves[leaf]);
      takes += word >> RT_POOL_LEAF;
      if (!(uint32_t)word) continue;
      void *const block = rt_pool_take(pool, leaf);
      if (block) return block;
      takes = UINT64_MAX; /* another thread took it: start again */
      break;
    }
    if (takes == former && takes != UINT64_MAX) return NULL;
    former = takes;
  }
}

/* Take a block of a pool of kind shared, from any leaf: the general case of rt_pool_alloc_shared. */
RT_POOL_RARE void *rt_pool_search(rt_pool_t *pool) {
  void *block = NULL;
  for (uint32_t i = 0; i < pool->hint_words; i++) {
    for (uint64_t hints = rt_load_relaxed(&pool->hints[i]); hints; hints &= hints - 1) {
      const uint32_t leaf = i * 64 + (uint32_t)__builtin_ctzll(hints);
      block = rt_pool_take(pool, leaf);
      if (block) return block;
      /* Another thread has just emptied the leaf, or was interrupted between the steps of its call. */
      if (rt_pool_clear_hint(pool, leaf) && (block = rt_pool_take(pool, leaf))) return block;
    }
  }
  block = rt_pool_take_any(pool);
  if (!block) __atomic_fetch_add(&pool->failures, 1, __ATOMIC_RELAXED);
  return block;
}

/* Take a block of a pool of kind shared. NULL iff there was a moment during the call at which every block was in use.
 * Any thread, a signal handler included; lock-free, with the worst case above. Allocates nothing, never waits, no
 * system call. */
static inline void *rt_pool_alloc_shared(rt_pool_t *pool) {
  const uint64_t hints = RT_LIKELY(pool->hint_words) ? rt_load_relaxed(&pool->hints[0]) : 0;
  if (RT_LIKELY(hints)) {
    const uint32_t leaf = (uint32_t)__builtin_ctzll(hints);
    uint64_t was = rt_load_relaxed(&pool->leaves[leaf]);
    if (RT_LIKELY((uint32_t)was)) {
      void *const block = rt_pool_try_take(pool, leaf, &was);
      if (RT_LIKELY(block)) return block;
    }
  }
  return rt_pool_search(pool);
}

/* Give a block back to a pool of kind shared. Returns 0, or fails, and changes nothing, with
 * -EINVAL iff no block of this pool begins at `block` (NULL is none), -EALREADY iff the block is free: of several frees
 * at the same time exactly one succeeds. Any thread, a signal handler included; lock-free, with the worst case above.
 * Allocates nothing, never waits, no system call. */
static inline int rt_pool_free_shared(rt_pool_t *pool, void *block) {
  const uint64_t index = rt_pool_index(pool, block);
  if (RT_UNLIKELY(index >= pool->count)) return -EINVAL;
  const uint64_t leaf = index / RT_POOL_LEAF, bit = UINT64_C(1) << (index % RT_POOL_LEAF);
  /* In this form x86-64 needs no compare-and-swap: lock bts. */
  if (RT_UNLIKELY(__atomic_fetch_or(&pool->leaves[leaf], bit, __ATOMIC_SEQ_CST) & bit)) return -EALREADY;
  uint64_t *const hints = &pool->hints[leaf / 64];
  const uint64_t hint = UINT64_C(1) << (leaf % 64);
  if (RT_UNLIKELY(!(rt_load_seq_cst(hints) & hint))) __atomic_fetch_or(hints, hint, __ATOMIC_SEQ_CST);
  return 0;
}

/* Take a block of a pool of kind mutex. NULL iff every block is in use.
 * Any thread, but no signal handler; the time of rt_pool_alloc_single, after at most one such section of every thread
 * that waits with a higher priority and one of the holder, who inherits ours. Allocates nothing; enters the kernel
 * only to wait (futex(2), FUTEX_LOCK_PI) or to let a waiter go. */
static inline void *rt_pool_alloc_mutex(rt_pool_t *pool) {
  pthread_mutex_lock(&pool->lock); /* rtloop: allow pthread_mutex_lock: inherits priority, see above for the time */
  void *block = rt_pool_alloc_single(pool);
  pthread_mutex_unlock(&pool->lock);
  return block;
}

/* Give a block back to a pool of kind mutex. Returns and fails as rt_pool_free_single, takes as rt_pool_alloc_mutex. */
static inline int rt_pool_free_mutex(rt_pool_t *pool, void *block) {
  pthread_mutex_lock(&pool->lock); /* rtloop: allow pthread_mutex_lock: inherits priority, see above for the time */
  const int rc = rt_pool_free_single(pool, block);
  pthread_mutex_unlock(&pool->lock);
  return rc;
}

/* Take a block of a pool of any kind: NULL iff every block is in use, or the pool belongs to the parent of this forked
 * process. One predictable branch more than the function of the kind, whose threads and cost it has. Always inlined,
 * because a call would take longer than the rest. */
static inline void *rt_pool_alloc(rt_pool_t *pool) {
  const uint32_t kind = pool->kind;
  if (RT_LIKELY(kind == RT_POOL_SINGLE)) return rt_pool_alloc_single(pool);
  if (kind == RT_POOL_SHARED) return rt_pool_alloc_shared(pool);
  return kind == RT_POOL_MUTEX ? rt_pool_alloc_mutex(pool) : NULL;
}

/* Give a block back to a pool of any kind. Returns 0, -EINVAL or -EALREADY as the function of the kind does, whose
 * threads and cost it has; -EINVAL in a forked child. */
static inline int rt_pool_free(rt_pool_t *pool, void *block) {
  const uint32_t kind = pool->kind;
  if (RT_LIKELY(kind == RT_POOL_SINGLE)) return rt_pool_free_single(pool, block);
  if (kind == RT_POOL_SHARED) return rt_pool_free_shared(pool, block);
  return kind == RT_POOL_MUTEX ? rt_pool_free_mutex(pool, block) : -EINVAL;
}

/* Count the blocks in use. Any thread, never fails, no system call. O(1) for single and mutex; O(count / 32) for
 * shared, and there only an estimate while other threads take and free. */
static inline uint32_t rt_pool_in_use(const rt_pool_t *pool) {
  if (pool->kind != RT_POOL_SHARED) {
    const uint32_t is_spare = rt_load_relaxed(&pool->recent_is) == RT_POOL_SPARE;
    const uint32_t left = rt_load_relaxed(&pool->depth) + is_spare, high = rt_load_relaxed(&pool->high_water);
    return high < left ? 0 : high - left; /* another thread may read them apart */
  }
  uint32_t left = 0;
  for (uint64_t leaf = 0; leaf < rt_pool_leaf_count(pool->count); leaf++) {
    left += (uint32_t)__builtin_popcount((uint32_t)rt_load_relaxed(&pool->leaves[leaf]));
  }
  return pool->count - left;
}

/* Get the greatest number of blocks that were ever in use; on shared possibly too high under concurrent use, never too
 * low. Any thread, O(1), never fails, no system call. */
static inline uint32_t rt_pool_high_water(const rt_pool_t *pool) { return rt_load_relaxed(&pool->high_water); }

/* Count the calls that found no free block. Any thread, O(1), never fails, no system call. */
static inline uint64_t rt_pool_failures(const rt_pool_t *pool) { return rt_load_relaxed(&pool->failures); }

#endif
