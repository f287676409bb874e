/* Wraps the pools of rtloop/pool.h in plain functions for peers.cpp, because C++ cannot include their C11. */
#include <stdlib.h>

#include "rtloop/pool_check.h"

/* Hides from the compiler that a block is freed at once, and prevents it from keeping the pool in registers. */
#define OPAQUE(p) __asm__ volatile("" : "+r"(p)::"memory")
/* Hides from the next alloc what the last free has written. */
#define BARRIER() __asm__ volatile("" ::: "memory")

void *ours_make(unsigned kind, size_t block_bytes, size_t count) {
  const size_t bytes = rt_pool_bytes(block_bytes, count, kind);
  void *pool = aligned_alloc(RT_CACHE_LINE, bytes);
  if (!pool || rt_pool_init(pool, block_bytes, count, kind)) abort();
  for (size_t i = 0; i < count; i++) *(volatile char *)rt_pool_address(pool, i) = 1;
  return pool;
}

void ours_pairs(void *pool, long pairs) {
  for (long i = 0; i < pairs; i++) {
    void *block = rt_pool_alloc(pool);
    OPAQUE(block);
    if (rt_pool_free(pool, block)) abort();
    BARRIER();
  }
}

void ours_batches(void *pool, long pairs, int size) {
  void *blocks[64];
  for (long i = 0; i < pairs; i += size) {
    for (int k = 0; k < size; k++) {
      blocks[k] = rt_pool_alloc(pool);
      OPAQUE(blocks[k]);
    }
    for (int k = 0; k < size; k++) {
      if (rt_pool_free(pool, blocks[k])) abort();
      BARRIER();
    }
  }
}

void *ours_alloc(void *pool) { return rt_pool_alloc(pool); }

void ours_free(void *pool, void *block) {
  if (rt_pool_free(pool, block)) abort();
}

int ours_check(void *pool) { return rt_pool_check(pool); }
