/* Pools of every kind against a model; shared and mutex under threads that look for a block with two owners. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rtloop/atomics.h"

/* Where a thread has read something, another one may change it, or come between two steps: here the thread may lose the
 * CPU, or an intruder does something in its midst, at the `countdown`-th such place and the next `times` - 1. */
static _Thread_local uint64_t interruptions;
static void (*intruder)(void);
static int countdown, times;

static void interrupt(void) {
  if (intruder && --countdown <= 0) {
    void (*const intrude)(void) = intruder;
    intruder = NULL;
    intrude();
    if (--times > 0) intruder = intrude;
  }
  if (!interruptions) return;
  interruptions ^= interruptions << 13;
  interruptions ^= interruptions >> 7;
  interruptions ^= interruptions << 17;
  if (interruptions % 8 == 0) sched_yield();
}

#define INTERRUPTED_LOAD(p, order)                                                                                     \
  __extension__({                                                                                                      \
    __typeof__(*(p) + 0) loaded_ = __atomic_load_n((p), order);                                                        \
    interrupt();                                                                                                       \
    loaded_;                                                                                                           \
  })
#undef rt_load_relaxed
#undef rt_load_acquire
#undef rt_load_seq_cst
#define rt_load_relaxed(p) INTERRUPTED_LOAD(p, __ATOMIC_RELAXED)
#define rt_load_acquire(p) INTERRUPTED_LOAD(p, __ATOMIC_ACQUIRE)
#define rt_load_seq_cst(p) INTERRUPTED_LOAD(p, __ATOMIC_SEQ_CST)

#define __atomic_fetch_and(p, bits, order) (interrupt(), __atomic_fetch_and(p, bits, order))

/* Known-wrong variants, each without one thing that the header does:
 * TAKE, FREE      a leaf is read, changed and written, not changed in one step
 * HINT, RECHECK   a free does not set the hint; an alloc that has cleared it does not look at the leaf again
 * ORDER           what was written to a block before its free may become visible after the next take
 * INDEX           an offset is divided by a power of two only */
#ifdef BROKEN_TAKE
#define __atomic_compare_exchange_n(p, was, next, weak, success, failure)                                              \
  __extension__({                                                                                                      \
    const __typeof__(*(was)) now_ = __atomic_load_n((p), __ATOMIC_RELAXED);                                            \
    const int same_ = now_ == *(was);                                                                                  \
    interrupt();                                                                                                       \
    if (same_) __atomic_store_n((p), (next), __ATOMIC_RELAXED);                                                        \
    *(was) = now_;                                                                                                     \
    same_;                                                                                                             \
  })
#endif
#ifdef BROKEN_FREE
static uint64_t look_then_write(uint64_t *p, uint64_t bits) {
  const uint64_t was = __atomic_load_n(p, __ATOMIC_RELAXED);
  interrupt();
  __atomic_store_n(p, was | bits, __ATOMIC_RELAXED);
  return was;
}
#define __atomic_fetch_or(p, bits, order) look_then_write(p, bits)
#endif
#ifdef BROKEN_HINT
#define __atomic_fetch_or(p, bits, order) ((p) < pool->hints ? __sync_fetch_and_or(p, bits) : 0)
#endif
#ifdef BROKEN_RECHECK
#undef rt_load_seq_cst
#define rt_load_seq_cst(p) UINT64_C(0) /* which lets a free always set the hint */
#endif
#ifdef BROKEN_ORDER
#define __atomic_fetch_or(p, bits, order) __atomic_fetch_or(p, bits, __ATOMIC_RELAXED)
#endif
#include "rtloop/pool_check.h"

#include "check.h"

enum { THREADS = 4, OPERATIONS = 10000, HELD = 3, RACES = 2000, SHARE = 33 };

static const uint32_t kinds[] = {RT_POOL_SINGLE, RT_POOL_SHARED, RT_POOL_MUTEX};

static rt_pool_t *make(uint64_t block_bytes, uint64_t count, uint32_t kind) {
  const uint64_t bytes = rt_pool_bytes(block_bytes, count, kind);
  CHECK(bytes % RT_CACHE_LINE == 0 && bytes > 0);
  rt_pool_t *pool = aligned_alloc(RT_CACHE_LINE, bytes);
  CHECK(pool && rt_pool_init(pool, block_bytes, count, kind) == 0);
#ifdef BROKEN_INDEX
  pool->inverse = 1;
#endif
  CHECK(rt_pool_check(pool) == 0 && rt_pool_in_use(pool) == 0 && rt_pool_high_water(pool) == 0);
  return pool;
}

static void drop(rt_pool_t *pool) {
  pthread_mutex_destroy(&pool->lock);
  free(pool);
}

/* By plain division, and not by what is to be tested. */
static uint64_t number(const rt_pool_t *pool, const void *block) {
  return (uint64_t)((const char *)block - pool->blocks) / pool->stride;
}

static void *at_number(const rt_pool_t *pool, uint64_t i) { return pool->blocks + i * pool->stride; }

static void check_sizes(void) {
  for (uint32_t kind = RT_POOL_SINGLE; kind <= RT_POOL_MUTEX; kind++) {
    CHECK(rt_pool_bytes(0, 1, kind) == 0 && rt_pool_bytes(1, 0, kind) == 0 && rt_pool_bytes(1, UINT64_MAX, kind) == 0);
    CHECK(rt_pool_bytes(UINT64_MAX, 1, kind) == 0 && rt_pool_bytes((uint64_t)PTRDIFF_MAX, 1, kind) == 0);
    CHECK(rt_pool_bytes(1, RT_POOL_MAX_COUNT + 1, kind) == 0 && rt_pool_bytes(1, RT_POOL_MAX_COUNT, kind) > 0);
    CHECK(rt_pool_bytes(UINT64_C(1) << 43, RT_POOL_MAX_COUNT, kind) == 0);
    CHECK(rt_pool_bytes(UINT64_C(1) << 42, RT_POOL_MAX_COUNT, kind) > UINT64_C(1) << 62);
  }
  CHECK(rt_pool_bytes(64, 4, 0) == 0 && rt_pool_bytes(64, 4, 4) == 0);
  _Alignas(RT_CACHE_LINE) char room[2048];
  CHECK(rt_pool_init((rt_pool_t *)(void *)room, 64, 4, 0) == -EINVAL);
  CHECK(rt_pool_init((rt_pool_t *)(void *)room, 64, 4, 4) == -EINVAL);
  CHECK(rt_pool_init((rt_pool_t *)(void *)room, 64, 0, RT_POOL_SINGLE) == -EINVAL);
  CHECK(rt_pool_init((rt_pool_t *)(void *)(room + 8), 64, 4, RT_POOL_SINGLE) == -EINVAL);
}

/* The address of every block gives its index, and no other address is taken for a block. */
static void check_indices(void) {
  static char region[sizeof(rt_pool_t) + 4096];
  for (uint64_t lines = 1; lines < 300; lines++) {
    rt_pool_t *pool = make(lines * RT_CACHE_LINE - lines % 64, 5, RT_POOL_SINGLE);
    CHECK(pool->stride == lines * RT_CACHE_LINE);
    for (uint32_t i = 0; i < pool->count; i++) CHECK(number(pool, rt_pool_alloc(pool)) == i);
    for (uint64_t offset = 0; offset < 5 * pool->stride; offset += 1 + offset % 7) {
      if (offset % pool->stride) CHECK(rt_pool_free(pool, pool->blocks + offset) == -EINVAL);
    }
    for (uint64_t offset = 0; offset < 5 * pool->stride; offset += RT_CACHE_LINE) {
      CHECK(rt_pool_free(pool, pool->blocks + offset) == (offset % pool->stride ? -EINVAL : 0));
      CHECK(rt_pool_free(pool, pool->blocks + offset) == (offset % pool->stride ? -EINVAL : -EALREADY));
    }
    CHECK(rt_pool_free(pool, pool->blocks + 5 * pool->stride) == -EINVAL);
    CHECK(rt_pool_free(pool, (void *)((uintptr_t)pool->blocks - pool->stride)) == -EINVAL);
    CHECK(rt_pool_free(pool, NULL) == -EINVAL && rt_pool_free(pool, region) == -EINVAL);
    CHECK(rt_pool_free(pool, pool) == -EINVAL && rt_pool_free(pool, (void *)UINTPTR_MAX) == -EINVAL);
    CHECK(rt_pool_check(pool) == 0);
    drop(pool);
  }
}

/* The worst case of shared is short, because an alloc finds the hint of an empty leaf only if threads race. */
static int are_hints_exact(const rt_pool_t *pool) {
  for (uint64_t i = 0; pool->kind == RT_POOL_SHARED && i < rt_pool_leaf_count(pool->count); i++) {
    if ((pool->hints[i / 64] >> i % 64 & 1) != ((uint32_t)pool->leaves[i] != 0)) return 0;
  }
  return 1;
}

/* Random valid and invalid calls; after each one the pool and a plain array of flags must agree. */
static void check_model(uint32_t kind, uint64_t block_bytes, uint32_t count, uint64_t seed) {
  rt_pool_t *pool = make(block_bytes, count, kind);
  char *taken = calloc(count, 1);
  uint32_t in_use = 0, high_water = 0;
  uint64_t failures = 0;
  CHECK(taken);
  for (int i = 0; i < 20000; i++) {
    const uint32_t at = (uint32_t)(check_random(&seed) % count);
    char *const block = at_number(pool, at);
    switch (check_random(&seed) % 8) {
    case 0:
    case 1:
    case 2: {
      char *new = rt_pool_alloc(pool);
      CHECK((new == NULL) == (in_use == count));
      if (!new) {
        failures++;
        break;
      }
      const uint64_t index = number(pool, new);
      CHECK((uintptr_t)new % RT_CACHE_LINE == 0 && index < count && !taken[index]);
      memset(new, (int)index, block_bytes);
      taken[index] = 1;
      if (++in_use > high_water) high_water = in_use;
      break;
    }
    case 3:
      CHECK(rt_pool_free(pool, block + 1 + check_random(&seed) % (pool->stride - 1)) == -EINVAL);
      break;
    case 4:
      CHECK(rt_pool_free(pool, &seed) == -EINVAL);
      break;
    default:
      if (taken[at]) {
        for (uint64_t k = 0; k < block_bytes; k++) CHECK(block[k] == (char)at);
        memset(block, 0xff, block_bytes); /* whatever a user leaves behind */
      }
      CHECK(rt_pool_free(pool, block) == (taken[at] ? 0 : -EALREADY));
      in_use -= (uint32_t)taken[at];
      taken[at] = 0;
    }
    CHECK(rt_pool_in_use(pool) == in_use && rt_pool_high_water(pool) == high_water);
    CHECK(rt_pool_failures(pool) == failures);
    if (i % 64 == 0) CHECK(rt_pool_check(pool) == 0 && are_hints_exact(pool));
  }
  for (uint32_t i = 0; i < count; i++) CHECK(rt_pool_free(pool, at_number(pool, i)) == (taken[i] ? 0 : -EALREADY));
  CHECK(rt_pool_in_use(pool) == 0 && rt_pool_check(pool) == 0);
  drop(pool);
  free(taken);
}

/* The constants of a pool never change. */
static void check_checker_of_shape(uint32_t kind) {
  for (int damage = 0; damage < 9; damage++) {
    rt_pool_t *pool = make(64, 40, kind);
    const rt_pool_t sound = *pool;
    if (damage == 0) pool->blocks += RT_CACHE_LINE;
    if (damage == 1) pool->stride *= 2;
    if (damage == 2) pool->inverse ^= 8;
    if (damage == 3) pool->shift += 1;
    if (damage == 4) pool->shift = 64;
    if (damage == 5) pool->count = 4000;
    if (damage == 6) pool->kind = 7;
    if (damage == 7) pool->block_bytes = 65;
    if (damage == 8) pool->stack += 1;
    CHECK(rt_pool_check(pool) == -EUCLEAN);
    *pool = sound;
    CHECK(rt_pool_check(pool) == 0);
    drop(pool);
  }
}

/* The checker finds each kind of damage. Blocks 0 and 5 are in use, 1 is spare, 2 to 4 on the stack, 6 and 7 new. */
static void check_checker_of_stack(uint32_t kind) {
  for (int damage = 0; damage < 14; damage++) {
    rt_pool_t *pool = make(64, 8, kind);
    for (int i = 0; i < 6; i++) CHECK(rt_pool_alloc(pool) == at_number(pool, (uint64_t)i));
    for (uint64_t i = 1; i < 5; i++) CHECK(rt_pool_free(pool, at_number(pool, i)) == 0);
    CHECK(rt_pool_check(pool) == 0 && rt_pool_in_use(pool) == 2 && pool->depth == 3);
    if (damage == 0) pool->stack[1] = pool->stack[2];     /* a block twice, another one lost */
    if (damage == 1) pool->stack[1] = at_number(pool, 0); /* a block in use */
    if (damage == 2) pool->stack[1] += 1;                 /* no block */
    if (damage == 3) pool->stack[1] = at_number(pool, 6); /* a block that was never taken */
    if (damage == 4) pool->stack[1] = NULL;               /* a block less than said */
    if (damage == 5) pool->stack[0] = at_number(pool, 0); /* no end below */
    if (damage == 6) pool->depth = 2;                     /* a block that nobody has */
    if (damage == 7) pool->depth = 9;                     /* more than there are */
    if (damage == 8) pool->places[0] = 9;                 /* nowhere */
    if (damage == 9) pool->places[7] = 1;                 /* a place of a block that was never taken */
    if (damage == 10) pool->recent = at_number(pool, 3);  /* free twice */
    if (damage == 11) pool->recent += 1;                  /* no block */
    if (damage == 12) pool->recent_is = 3;                /* neither spare nor lent */
    if (damage == 13) pool->high_water = 9;               /* more than there are */
    CHECK(rt_pool_check(pool) == -EUCLEAN && rt_pool_check(pool) == -EUCLEAN);
    drop(pool);
  }
}

/* The orders of takes and frees that the fields tell apart, each with its wrong frees. */
static void check_wrong_frees(uint32_t kind) {
  rt_pool_t *pool = make(64, 4, kind);
  char *const b[] = {at_number(pool, 0), at_number(pool, 1), at_number(pool, 2), at_number(pool, 3)};
  CHECK(rt_pool_free(pool, NULL) == -EINVAL);
  for (int i = 0; i < 4; i++) CHECK(rt_pool_free(pool, b[i]) == -EALREADY); /* never taken */
  CHECK(rt_pool_alloc(pool) == b[0] && rt_pool_free(pool, b[1]) == -EALREADY && rt_pool_free(pool, NULL) == -EINVAL);
  CHECK(rt_pool_alloc(pool) == b[1] && rt_pool_alloc(pool) == b[2]);
  CHECK(rt_pool_free(pool, b[1]) == 0 && rt_pool_free(pool, b[1]) == -EALREADY); /* spare */
  CHECK(rt_pool_free(pool, b[0]) == 0 && rt_pool_free(pool, b[0]) == -EALREADY); /* on the stack */
  CHECK(rt_pool_free(pool, b[1]) == -EALREADY && rt_pool_in_use(pool) == 1);
  CHECK(rt_pool_alloc(pool) == b[1] && rt_pool_free(pool, b[0]) == -EALREADY); /* lent */
  CHECK(rt_pool_free(pool, b[1]) == 0 && rt_pool_free(pool, b[1]) == -EALREADY && rt_pool_alloc(pool) == b[1]);
  CHECK(rt_pool_free(pool, b[2]) == 0 && rt_pool_free(pool, b[2]) == -EALREADY); /* another recent one */
  CHECK(rt_pool_free(pool, b[1]) == 0 && rt_pool_free(pool, b[1]) == -EALREADY);
  CHECK(rt_pool_in_use(pool) == 0 && rt_pool_high_water(pool) == 3 && rt_pool_check(pool) == 0);
  CHECK(rt_pool_alloc(pool) == b[2] && rt_pool_alloc(pool) == b[1] && rt_pool_alloc(pool) == b[0]);
  CHECK(rt_pool_alloc(pool) == b[3] && rt_pool_alloc(pool) == NULL && rt_pool_failures(pool) == 1);
  CHECK(rt_pool_in_use(pool) == 4 && rt_pool_high_water(pool) == 4 && rt_pool_check(pool) == 0);
  drop(pool);
}

static void check_checker_of_bitmap(void) {
  for (int damage = 0; damage < 6; damage++) {
    rt_pool_t *pool = make(64, 40, RT_POOL_SHARED);
    CHECK(rt_pool_alloc(pool) && rt_pool_check(pool) == 0);
    if (damage == 0) pool->leaves[1] |= UINT64_C(1) << 8; /* one block too many */
    if (damage == 1) pool->leaves[0] &= ~UINT64_C(2);     /* a block that nobody has */
    if (damage == 2) pool->hints[0] &= ~UINT64_C(1);      /* free blocks that no alloc looks for */
    if (damage == 3) pool->hints[0] |= UINT64_C(4);       /* one leaf too many */
    if (damage == 4) pool->high_water = 0;                /* fuller than ever, and not noted */
    if (damage == 5) pool->high_water = 41;               /* more than there are */
    CHECK(rt_pool_check(pool) == -EUCLEAN);
    drop(pool);
  }
}

/* A pool in a forked child is all zeros. */
static void check_wiped(uint32_t kind) {
  rt_pool_t *pool = make(64, 8, kind);
  void *block = rt_pool_alloc(pool);
  pthread_mutex_destroy(&pool->lock);
  memset(pool, 0, rt_pool_bytes(64, 8, kind));
  CHECK(rt_pool_alloc(pool) == NULL && rt_pool_free(pool, block) == -EINVAL);
  CHECK(rt_pool_alloc_single(pool) == NULL && rt_pool_alloc_shared(pool) == NULL);
  CHECK(rt_pool_in_use(pool) == 0 && rt_pool_high_water(pool) == 0 && rt_pool_check(pool) == 0);
  free(pool);
}

static void check_inheritance(void) {
#ifdef __GLIBC__
  rt_pool_t *inheriting = make(64, 1, RT_POOL_MUTEX);
  pthread_mutex_lock(&inheriting->lock);
  CHECK(inheriting->lock.__data.__lock == (int)syscall(SYS_gettid)); /* as the kernel wants it, to know who inherits */
  pthread_mutex_unlock(&inheriting->lock);
  drop(inheriting);
#endif
}

static rt_pool_t *pool;

/* Two leaves. What an alloc or a free of the shared kind reads is changed behind its back at every place in turn. */
enum { BLOCKS = 2 * RT_POOL_LEAF, READINGS = 24 };
static char mine[BLOCKS]; /* whom a block belongs to: nobody, or the test */
static void *got;
static int hole, rc_of_intruder;

static void note(void *block) {
  if (!block) return;
  CHECK(!mine[number(pool, block)]);
  mine[number(pool, block)] = 1;
}

static void give(uint32_t i) {
  mine[i] = 0; /* before: an intruder may take it while the free is under way */
  CHECK(rt_pool_free(pool, at_number(pool, i)) == 0);
}

static void intrude_alloc(void) { note(got = rt_pool_alloc(pool)); }
static void intrude_free_3(void) { give(3); }
static void intrude_free_40(void) { give(40); }
static void intrude_free_7(void) { rc_of_intruder = rt_pool_free(pool, at_number(pool, 7)); }

/* The one free block wanders to the other leaf, as when a thread takes it that has met that leaf empty before. */
static void intrude_move(void) {
  const uint32_t to = hole ? 5 : RT_POOL_LEAF + 5;
  if (!mine[to]) return; /* the alloc under test has the free block by now */
  give(to);
  note(rt_pool_take(pool, (uint32_t)hole));
  hole = !hole;
}

static void begin(uint32_t in_use_below, void (*intrude)(void), int at, int how_often) {
  pool = make(64, BLOCKS, RT_POOL_SHARED);
  memset(mine, 0, sizeof mine);
  for (uint32_t i = 0; i < in_use_below; i++) note(rt_pool_alloc(pool));
  intruder = intrude, countdown = at, times = how_often;
}

static void end(void) {
  uint32_t in_use = 0;
  intruder = NULL;
  for (int i = 0; i < BLOCKS; i++) in_use += (uint32_t)mine[i];
  CHECK(rt_pool_in_use(pool) == in_use && rt_pool_high_water(pool) >= in_use && rt_pool_check(pool) == 0);
  drop(pool);
}

/* Three leaves, and one block free at every moment, which wanders at two of the readings, wherever it likes. */
static int where, readings, moves_at[2], moves_to[2];

static void intrude_wander(void) {
  readings++;
  for (int i = 0; i < 2; i++) {
    if (readings != moves_at[i] || moves_to[i] == where) continue;
    CHECK(rt_pool_free(pool, at_number(pool, (uint64_t)moves_to[i] * RT_POOL_LEAF + 1)) == 0);
    if (rt_pool_take(pool, (uint32_t)where)) {
      where = moves_to[i];
    } else {
      readings = INT32_MAX / 2; /* the alloc under test has it by now: the end */
    }
  }
}

static void check_wandering(void) {
  pool = make(64, UINT64_C(3) * RT_POOL_LEAF, RT_POOL_SHARED);
  for (uint32_t i = 0; i < pool->count; i++) CHECK(rt_pool_alloc(pool));
  for (int i = 0; i < 3 * 3 * 3 * 12 * 12; i++) {
    where = i % 3;
    for (int k = 0, code = i / 3; k < 2; k++, code /= 36) moves_to[k] = code % 3, moves_at[k] = code / 3 % 12;
    CHECK(rt_pool_free(pool, at_number(pool, (uint64_t)where * RT_POOL_LEAF + 1)) == 0);
    readings = 0;
    intruder = intrude_wander, countdown = 0, times = 1000;
    CHECK(rt_pool_take_any(pool) != NULL);
    intruder = NULL;
    while (rt_pool_take_any(pool)) {
    }
  }
  drop(pool);
}

static void check_intruders(void) {
  begin(RT_POOL_LEAF, NULL, 0, 0);
  pool->hints[0] |= 1; /* as a race may leave it: the next alloc clears it, and looks no further there */
  note(rt_pool_alloc(pool));
  CHECK(are_hints_exact(pool));
  end();
  for (int at = 1; at < READINGS; at++) {
    /* Two allocs do not get the same block, in the midst of a leaf, at its end, and where only one is left. */
    for (uint32_t in_use = RT_POOL_LEAF - 2; in_use < BLOCKS; in_use++) {
      begin(in_use, intrude_alloc, at, 1);
      got = NULL;
      void *const block = rt_pool_alloc(pool);
      note(block);
      CHECK(block || got || in_use == BLOCKS);
      CHECK(in_use > BLOCKS - 2 || block);
      end();
    }
    /* A block comes back to a leaf that the alloc has just left empty, or met with the hint that a race has left. */
    begin(RT_POOL_LEAF - 1, intrude_free_3, at, 1);
    note(rt_pool_alloc(pool));
    end();
    begin(RT_POOL_LEAF, intrude_free_3, at, 1);
    pool->hints[0] |= 1;
    note(rt_pool_alloc(pool));
    end();
    /* The last block comes back while the alloc is about to give up: both answers are right. */
    begin(BLOCKS, intrude_free_40, at, 1);
    note(rt_pool_alloc(pool));
    end();
    /* One block is free at every moment: the alloc gets it, however often it wanders. */
    for (int how_often = 1; how_often < READINGS; how_often++) {
      begin(BLOCKS, NULL, 0, 0);
      give(RT_POOL_LEAF + 5);
      hole = 1;
      intruder = intrude_move, countdown = at, times = how_often;
      void *const block = rt_pool_alloc(pool);
      intruder = NULL;
      CHECK(block);
      note(block);
      CHECK(rt_pool_failures(pool) == 0);
      end();
    }
    /* Exactly one of two frees of one block succeeds; two frees of two blocks, and a free and an alloc, both do. */
    begin(BLOCKS, intrude_free_7, at, 1);
    rc_of_intruder = -EALREADY;
    CHECK((rt_pool_free(pool, at_number(pool, 7)) == 0) + (rc_of_intruder == 0) == 1);
    mine[7] = 0;
    end();
    begin(BLOCKS, intrude_free_3, at, 1);
    give(7);
    end();
    begin(RT_POOL_LEAF + 8, intrude_alloc, at, 1);
    give(RT_POOL_LEAF + 1);
    end();
  }
}

static uint32_t owners[256];
static uint32_t ready, succeeded;
static void *victim;

/* Hold a few blocks at a time; each has one owner, and what was written to it stays. */
static void *allocate_and_free(void *thread) {
  uint64_t seed = 1 + (uint64_t)(uintptr_t)thread * 7919;
  interruptions = seed;
  uint64_t *held[HELD] = {0};
  for (int i = 0; i < OPERATIONS; i++) {
    uint64_t **slot = &held[check_random(&seed) % HELD];
    if (*slot) {
      const uint64_t index = number(pool, *slot);
      CHECK(**slot == (uint64_t)(uintptr_t)slot);
      CHECK(__atomic_exchange_n(&owners[index], 0u, __ATOMIC_RELAXED) == 1);
      CHECK(rt_pool_free(pool, *slot) == 0);
      *slot = NULL;
    } else if ((*slot = rt_pool_alloc(pool))) {
      const uint64_t index = number(pool, *slot);
      CHECK(index < pool->count);
      CHECK(__atomic_exchange_n(&owners[index], 1u, __ATOMIC_RELAXED) == 0); /* no other thread has it */
      **slot = (uint64_t)(uintptr_t)slot;
    }
    if (i % 16 == 0) CHECK(rt_pool_in_use(pool) <= pool->count && rt_pool_free(pool, &seed) == -EINVAL);
  }
  for (int i = 0; i < HELD; i++) {
    if (!held[i]) continue;
    __atomic_store_n(&owners[number(pool, held[i])], 0u, __ATOMIC_RELAXED);
    CHECK(rt_pool_free(pool, held[i]) == 0);
  }
  return NULL;
}

static void *free_victim(void *thread) {
  interruptions = 1 + (uint64_t)(uintptr_t)thread;
  __atomic_fetch_add(&ready, 1, __ATOMIC_RELAXED);
  while (rt_load_acquire(&ready) < THREADS) sched_yield();
  const int rc = rt_pool_free(pool, victim);
  CHECK(rc == 0 || rc == -EALREADY);
  if (rc == 0) __atomic_fetch_add(&succeeded, 1, __ATOMIC_RELAXED);
  return NULL;
}

static void run(void *(*body)(void *)) {
  pthread_t threads[THREADS];
  for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, body, (void *)i) == 0);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

/* `count` is small, so that the same blocks come and go again and again, and the pool is exhausted now and then. */
static void check_threads(uint32_t kind, uint32_t count) {
  pool = make(64, count, kind);
  if (kind == RT_POOL_SHARED) pool->leaves[0] |= UINT64_C(0xffffff00) << 32; /* the count of takes is about to wrap */
  const int can_be_exhausted = count < THREADS * HELD;
  for (int tries = 0; tries == 0 || (can_be_exhausted && rt_pool_failures(pool) == 0 && tries < 50); tries++) {
    run(allocate_and_free); /* a busy machine may let the threads run one after the other */
    CHECK(rt_pool_in_use(pool) == 0 && rt_pool_check(pool) == 0);
    CHECK(rt_pool_high_water(pool) > 0 && rt_pool_high_water(pool) <= count);
  }
  CHECK(rt_pool_failures(pool) > 0 || !can_be_exhausted);
  drop(pool);
}

/* As many blocks as all threads together ever hold: none may ever be told that there is none left, though the free ones
 * wander from leaf to leaf while it looks. */
static void *hold_all_that_is_mine(void *thread) {
  uint64_t seed = 1 + (uint64_t)(uintptr_t)thread * 104729;
  interruptions = seed;
  void *held[SHARE];
  for (int i = 0; i < SHARE; i++) CHECK((held[i] = rt_pool_alloc(pool)) != NULL);
  for (int i = 0; i < OPERATIONS; i++) {
    void **const slot = &held[check_random(&seed) % SHARE];
    CHECK(rt_pool_free(pool, *slot) == 0);
    *slot = rt_pool_alloc(pool);
    CHECK(*slot != NULL);
  }
  for (int i = 0; i < SHARE; i++) CHECK(rt_pool_free(pool, held[i]) == 0);
  return NULL;
}

static void check_exact_exhaustion(uint32_t kind) {
  pool = make(64, THREADS * SHARE, kind);
  run(hold_all_that_is_mine);
  CHECK(rt_pool_failures(pool) == 0 && rt_pool_in_use(pool) == 0 && rt_pool_check(pool) == 0);
  CHECK(rt_pool_high_water(pool) >= SHARE && rt_pool_high_water(pool) <= THREADS * SHARE);
  drop(pool);
}

static void check_races(uint32_t kind) {
  pool = make(64, 4, kind);
  for (int i = 0; i < RACES / THREADS; i++) {
    ready = succeeded = 0;
    victim = rt_pool_alloc(pool);
    CHECK(victim && rt_pool_alloc(pool));
    run(free_victim);
    CHECK(succeeded == 1 && rt_pool_in_use(pool) == 1 && rt_pool_check(pool) == 0);
    for (uint32_t k = 0; k < pool->count; k++) rt_pool_free(pool, at_number(pool, k));
    CHECK(rt_pool_in_use(pool) == 0 && rt_pool_check(pool) == 0);
  }
  drop(pool);
}

int main(void) {
  check_sizes();
  check_indices();
  for (int i = 0; i < 3; i++) {
    check_model(kinds[i], 256, 16, 42);
    check_model(kinds[i], 1, 1, 43);
    check_model(kinds[i], 200, 100, 44);
    check_wiped(kinds[i]);
  }
  check_model(RT_POOL_SHARED, 64, 4200, 45); /* three words of hints */
  check_checker_of_shape(RT_POOL_SINGLE);
  check_checker_of_shape(RT_POOL_SHARED);
  for (int i = 0; i < 3; i += 2) {
    check_checker_of_stack(kinds[i]);
    check_wrong_frees(kinds[i]);
  }
  check_checker_of_bitmap();
  check_inheritance();
  check_intruders();
  check_wandering();
  for (int i = 1; i < 3; i++) {
    check_threads(kinds[i], 4);
    check_threads(kinds[i], 16);
    check_exact_exhaustion(kinds[i]);
    check_races(kinds[i]);
  }
  return CHECK_DONE();
}
