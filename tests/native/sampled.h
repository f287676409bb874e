/* A sampler of every `gap`-th of some words, with a ring of exactly as many bytes as it needs, so that a write past its
 * end is seen. */
#ifndef SAMPLED_H
#define SAMPLED_H

#include <stdlib.h>

#include "check.h"
#include "rtloop/sampler.h"

static rt_broadcast_t *make_ring(rt_sampler_t *sampler, const uint64_t *signals, unsigned words, unsigned gap,
                                 uint64_t places) {
  void *block;
  rt_sampler_init(sampler, 1);
  for (unsigned i = 0; i < words; i++) {
    CHECK(rt_sampler_add(sampler, &signals[i * gap], 8) == (int)(RT_SAMPLER_HEAD_BYTES + 8 * i));
  }
  const uint64_t record_bytes = rt_sampler_stride(sampler), bytes = rt_broadcast_bytes(record_bytes, places, 0);
  CHECK(bytes && posix_memalign(&block, RT_CACHE_LINE, bytes) == 0);
  memset(block, 0, bytes);
  CHECK(rt_broadcast_init(&sampler->writer, block, record_bytes, places, "", 0, 0) == 0);
  return block;
}

#endif
