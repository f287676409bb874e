/* A consistency check of a pool's tables, for tests and for finding stray writes. */
#ifndef RTLOOP_POOL_CHECK_H
#define RTLOOP_POOL_CHECK_H

#include "pool.h"

/* Test the pool's constants against its size. O(1). */
static inline int rt_pool_is_shape_sound(const rt_pool_t *pool) {
  const char *const first = (const char *)pool + sizeof *pool;
  if (rt_pool_bytes(pool->block_bytes, pool->count, pool->kind) == 0) return 0;
  const char *const second = first + rt_pool_first_bytes(pool->count, pool->kind);
  const char *const blocks = second + rt_pool_second_bytes(pool->count, pool->kind);
  const int is_shared = pool->kind == RT_POOL_SHARED;
  const char *const tables[] = {is_shared ? (const char *)pool->leaves : (const char *)pool->stack,
                                is_shared ? (const char *)pool->hints : (const char *)pool->places};
  return tables[0] == first && tables[1] == second && pool->blocks == blocks &&
         pool->stride == rt_pool_round_up(pool->block_bytes) && pool->shift < 64 &&
         (pool->stride >> pool->shift) * pool->inverse == 1;
}

/* Test the leaves and hints of a shared pool. O(count / 32). */
static inline int rt_pool_is_bitmap_sound(const rt_pool_t *pool) {
  if (pool->hint_words != rt_pool_hint_words(pool->count)) return 0;
  for (uint64_t leaf = 0; leaf < rt_pool_leaf_count(pool->count); leaf++) {
    const uint32_t bits = (uint32_t)rt_load_relaxed(&pool->leaves[leaf]);
    if (bits & ~rt_pool_leaf_mask(pool->count, leaf)) return 0;
    if (bits && !(rt_load_relaxed(&pool->hints[leaf / 64]) >> leaf % 64 & 1)) return 0;
  }
  for (uint64_t i = 0; i < pool->hint_words; i++) {
    if (rt_load_relaxed(&pool->hints[i]) & ~rt_pool_hint_mask(pool->count, i)) return 0;
  }
  return 1;
}

/* Test the stack, the places and the recent block of a single or mutex pool. O(count). */
static inline int rt_pool_is_stack_sound(const rt_pool_t *pool) {
  const uint32_t depth = rt_load_relaxed(&pool->depth), high = rt_load_relaxed(&pool->high_water);
  const uint32_t recent_is = rt_load_relaxed(&pool->recent_is);
  if (high > pool->count || depth > high || recent_is > RT_POOL_LENT) return 0;
  for (uint32_t i = 0; i <= pool->count; i++) {
    if (i > 0 && i <= depth) {
      const uint64_t index = rt_pool_index(pool, pool->stack[i]);
      if (index >= high || pool->places[index] != i) return 0; /* also if a block is there twice */
    } else if (pool->stack[i]) {
      return 0;
    }
  }
  for (uint32_t i = 0; i < pool->count; i++) {
    if (pool->places[i] > (i < high ? pool->count : 0)) return 0;
  }
  if (!recent_is) return depth == 0;
  const uint64_t index = rt_pool_index(pool, pool->recent);
  return index < high && pool->stack[pool->places[index]] != pool->recent;
}

/* Check the pool's own tables: every bit, hint and place is possible, no block is listed twice, the counters agree, and
 * the constants match the size. Any thread, while no other uses the pool; O(count), no system call. Returns 0, or fails
 * with -EUCLEAN iff they contradict each other, because something has overwritten them. A leaked block is not found. */
static inline int rt_pool_check(rt_pool_t *pool) {
  if (pool->kind == 0 && pool->count == 0) return 0; /* wiped by a fork */
  if (!rt_pool_is_shape_sound(pool)) return -EUCLEAN;
  const uint32_t in_use = rt_pool_in_use(pool), high = rt_pool_high_water(pool);
  if (in_use > high || high > pool->count) return -EUCLEAN;
  return (pool->kind == RT_POOL_SHARED ? rt_pool_is_bitmap_sound(pool) : rt_pool_is_stack_sound(pool)) ? 0 : -EUCLEAN;
}

#endif
