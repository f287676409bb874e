/* Samples of a loop's signals: after a step, its fields are copied into a broadcast ring as one record.
 *
 * A record is the cycle's index, release and start, 8 bytes each, followed by the signals without gaps and, at the end,
 * up to 7 unused bytes. The signals are sorted by the largest word that divides their size, 8, 4, 2 or 1 bytes, largest
 * first. So each word is aligned, and the place of the n-th word of a size needs no table. A scalar is one word, an
 * array several.
 *
 * Copies of 8-byte words are straight-line code that is entered at the number of words: a word costs a load of its
 * address, a load and a store.
 */
#ifndef RTLOOP_SAMPLER_H
#define RTLOOP_SAMPLER_H

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"
#include "broadcast.h"
#include "cycle.h"

#define RT_SAMPLER_HEAD_BYTES 24u
#define RT_SAMPLER_MAX 1024u /* words of a record */

typedef struct rt_sampler {
  rt_broadcast_writer_t writer;
  uint32_t entry;     /* the words of 8 bytes if there are no others and at most 64, else 65 */
  uint32_t words;     /* of 8 bytes */
  uint32_t counts[3]; /* words of 4, 2 and 1 bytes */
  uint32_t total;
  uint32_t record_bytes; /* without the unused bytes at the end */
  /* Samples are taken of the cycles whose index is divisible by `every`. */
  uint64_t every;
  uint64_t inverse; /* of the odd part of `every`, modulo 2^64 */
  uint64_t quotients;
  uint32_t twos;
  const char *from[RT_SAMPLER_MAX];
} rt_sampler_t;

/* Make an empty sampler that takes every n-th cycle, n at least 1. O(1). */
static inline void rt_sampler_init(rt_sampler_t *s, uint64_t every) {
  memset(s, 0, sizeof *s);
  s->record_bytes = RT_SAMPLER_HEAD_BYTES;
  s->every = every;
  s->twos = (uint32_t)__builtin_ctzll(every);
  s->quotients = UINT64_MAX / every;
  const uint64_t odd = every >> s->twos;
  s->inverse = odd; /* correct in its lowest 3 bits; each Newton step doubles their number */
  for (int i = 0; i < 5; i++) s->inverse *= 2 - odd * s->inverse;
}

/* Test whether `index` is divisible by `every`, without a division. Granlund and Montgomery, "Division by invariant
 * integers using multiplication", PLDI 1994, section 9. O(1). */
static inline int rt_sampler_is_due(const rt_sampler_t *s, uint64_t index) {
  const uint64_t q = index * s->inverse;
  return (q >> s->twos | (s->twos ? q << (64 - s->twos) : 0)) <= s->quotients;
}

/* Compute the largest word that divides a size: 8, 4, 2 or 1. */
static inline uint32_t rt_sampler_word(uint32_t bytes) { return bytes % 8 ? bytes % 4 ? bytes % 2 ? 1 : 2 : 4 : 8; }

/* Add a signal of `bytes` at `address`, which has to stay valid. Before the writer is set; O(bytes). Returns the offset
 * of the signal in the record, or fails with -EINVAL iff it has no size, or a signal of smaller words came before it,
 * and with -ENOSPC iff the record would have too many words. */
static inline int rt_sampler_add(rt_sampler_t *s, const void *address, uint32_t bytes) {
  if (bytes == 0) return -EINVAL;
  const uint32_t word = rt_sampler_word(bytes), shift = word == 8 ? 0 : word == 4 ? 1 : word == 2 ? 2 : 3;
  for (uint32_t i = shift; i < 3; i++) {
    if (s->counts[i]) return -EINVAL; /* of smaller words */
  }
  if (bytes / word > RT_SAMPLER_MAX - s->total) return -ENOSPC;
  const uint32_t offset = s->record_bytes;
  for (uint32_t done = 0; done < bytes; done += word) s->from[s->total++] = (const char *)address + done;
  if (shift) {
    s->counts[shift - 1] += bytes / word;
  } else {
    s->words += bytes / 8;
  }
  s->entry = s->total == s->words && s->words <= 64 ? s->words : 65;
  s->record_bytes += bytes;
  return (int)offset;
}

/* Compute the bytes of a record in the ring. */
static inline uint64_t rt_sampler_stride(const rt_sampler_t *s) { return (s->record_bytes + UINT64_C(7)) / 8 * 8; }

#define RT_SAMPLER_COPY(type, to, address)                                                                             \
  do {                                                                                                                 \
    type word_; /* the field of a packed struct need not be aligned */                                                 \
    memcpy(&word_, (address), sizeof word_);                                                                           \
    rt_store_relaxed((type *)(void *)(to), word_);                                                                     \
  } while (0)

/* Copy the cycle's index, release and start. On x86-64 one move copies two words, without tearing either, and saves two
 * instructions. */
static inline void rt_sampler_copy_head(char *to, const rt_cycle_t *cycle) {
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED)
  typedef long long two_t __attribute__((vector_size(16), aligned(8), may_alias));
  *(volatile two_t *)(void *)to = *(const two_t *)(const void *)&cycle->index;
#else
  RT_SAMPLER_COPY(uint64_t, to, &cycle->index);
  RT_SAMPLER_COPY(uint64_t, to + 8, &cycle->release);
#endif
  RT_SAMPLER_COPY(uint64_t, to + 16, &cycle->start);
}

/* Write a record of words of any size. As rt_sampler_write, with about 5 instructions for a word. */
static __attribute__((noinline, unused)) void rt_sampler_write_any(rt_sampler_t *s, char *place) {
  char *to = place + RT_SAMPLER_HEAD_BYTES;
  const char *const *from = s->from;
  for (uint32_t left = s->words; left; left--, to += 8) RT_SAMPLER_COPY(uint64_t, to, *from++);
  for (uint32_t left = s->counts[0]; left; left--, to += 4) RT_SAMPLER_COPY(uint32_t, to, *from++);
  for (uint32_t left = s->counts[1]; left; left--, to += 2) RT_SAMPLER_COPY(uint16_t, to, *from++);
  for (uint32_t left = s->counts[2]; left; left--, to += 1) RT_SAMPLER_COPY(uint8_t, to, *from++);
  rt_broadcast_end(&s->writer, place);
}

/* clang-format off */
#define RT_SAMPLER_UP(X)                                                                                               \
  X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20)       \
  X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31) X(32) X(33) X(34) X(35) X(36) X(37) X(38) X(39)    \
  X(40) X(41) X(42) X(43) X(44) X(45) X(46) X(47) X(48) X(49) X(50) X(51) X(52) X(53) X(54) X(55) X(56) X(57) X(58)    \
  X(59) X(60) X(61) X(62) X(63) X(64)
#define RT_SAMPLER_DOWN(X)                                                                                             \
  X(64) X(63) X(62) X(61) X(60) X(59) X(58) X(57) X(56) X(55) X(54) X(53) X(52) X(51) X(50) X(49) X(48) X(47) X(46)    \
  X(45) X(44) X(43) X(42) X(41) X(40) X(39) X(38) X(37) X(36) X(35) X(34) X(33) X(32) X(31) X(30) X(29) X(28) X(27)    \
  X(26) X(25) X(24) X(23) X(22) X(21) X(20) X(19) X(18) X(17) X(16) X(15) X(14) X(13) X(12) X(11) X(10) X(9) X(8)      \
  X(7) X(6) X(5) X(4) X(3) X(2) X(1)
/* clang-format on */
#define RT_SAMPLER_LABEL(n) &&words_##n,
#define RT_SAMPLER_WORD(n) words_##n : RT_SAMPLER_COPY(uint64_t, to + 8 * ((n) - 1), from[(n) - 1]);

/* Write a record of the present values. The writer must be set. The loop's thread; wait-free; allocates nothing, no
 * system call. About 16 instructions and 3 for each word, if there are no more than 64 and all have 8 bytes; otherwise
 * about 35 and 5. */
static inline void rt_sampler_write(rt_sampler_t *s, const rt_cycle_t *cycle) {
  /* GNU C: the jump of a switch would cost five more instructions. */
  __extension__ static const void *const labels[] = {&&words_0, RT_SAMPLER_UP(RT_SAMPLER_LABEL) && any};
  char *const place = rt_broadcast_begin(&s->writer);
  rt_sampler_copy_head(place, cycle);
  char *const to = place + RT_SAMPLER_HEAD_BYTES;
  const char *const *const from = s->from;
  __extension__({ goto *labels[s->entry]; });
any:
  rt_sampler_write_any(s, place);
  return;
  RT_SAMPLER_DOWN(RT_SAMPLER_WORD)
words_0:
  rt_broadcast_end(&s->writer, place);
}

/* Write a record if the cycle's index is divisible by `every`. Returns 1 if it did, else 0. As rt_sampler_write. */
static inline int rt_sampler_sample(rt_sampler_t *s, const rt_cycle_t *cycle) {
  if (s->every != 1 && !rt_sampler_is_due(s, cycle->index)) return 0;
  rt_sampler_write(s, cycle);
  return 1;
}

#endif
