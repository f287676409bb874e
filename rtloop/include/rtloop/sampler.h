/* Samples of a loop's signals: after a step, its fields are copied into a broadcast ring as one record.
 *
 * A record is the cycle's index, release and start, 8 bytes each, followed by pieces of memory without gaps and, at the
 * end, up to 7 unused bytes. A piece is a signal, or the words of 8 bytes that contain one or more signals. The pieces
 * are sorted by the largest word that divides their size, 8, 4, 2 or 1 bytes, largest first. So each word is aligned,
 * and the place of the n-th word of a size needs no table.
 *
 * Words of 8 bytes that follow each other in memory as in the record are copied two at a time, as long as the record
 * begins with such pairs. Straight-line code copies a record of few words of 8 bytes, by a function for exactly these
 * numbers. On x86-64 one store writes two words, wherever they come from, and such a record takes as many instructions:
 *
 *   n words that follow each other in memory, n at most 32: 12 + n
 *   at most 8 pairs and 8 other words, or 16 words without pairs: 12, 3 for a pair, 5 for two other words, 2 for the
 *   last of an odd number without pairs, or 3 with pairs, and 1 more where gcc 12 copies a register
 *
 * These include 3 to call the function and to return from it. More than 32 words that follow each other are copied in
 * blocks of 16: about 45 instructions, and 1.25 for each word. Any other record is copied in blocks of 8: about 35
 * instructions, 15 to 20 for each kind that it has (pairs, other words of 8 bytes, and words of 4, 2 and 1 byte), and
 * 3.5 for each pair and each other word.
 *
 * The loop writes a record of up to RT_SAMPLER_INLINE words that follow each other without a call, by code for exactly
 * this number: one word or two take 10 instructions on x86-64, three take 12.
 *
 * A sample does not look for the end of the ring. Its caller does, with rt_sampling_turn before a sample that may be
 * the first one after the last place, which the loop knows rt_sampling_left cycles ahead.
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

/* Limits of the records that have a function of their own: pairs and other words in a record with both, other words in
 * a record without pairs, and words in a record whose words all follow each other. */
#define RT_SAMPLER_SMALL 8u
#define RT_SAMPLER_SINGLE 16u
#define RT_SAMPLER_ROW 32u

/* Limit of the words that all follow each other and that the loop copies without a call. */
#define RT_SAMPLER_INLINE 3u

typedef struct rt_sampling rt_sampling_t;
typedef void (*rt_sampler_function_t)(rt_sampling_t *);

/* Signals to sample, and the block for their samples. Constant during a run. */
typedef struct rt_sampler {
  rt_sampler_function_t sample; /* `copy`, or one that calls it in every n-th cycle */
  rt_broadcast_writer_t writer; /* where the block begins; a run has its own copy */
  rt_sampler_function_t copy;
  uint32_t pairs;     /* of words of 8 bytes that follow each other in memory, from the first word on */
  uint32_t words;     /* of 8 bytes */
  uint32_t row;       /* words of 8 bytes that follow each other in memory, from the first on */
  uint32_t counts[3]; /* words of 4, 2 and 1 bytes */
  uint32_t total;
  uint32_t record_bytes; /* without the unused bytes at the end */
  /* Samples are taken of the cycles whose index is divisible by `every`. */
  uint32_t twos;
  uint64_t every;
  uint64_t inverse; /* of the odd part of `every`, modulo 2^64 */
  uint64_t quotients;
  const char *from[RT_SAMPLER_MAX];
} rt_sampler_t;

/* The cycle that runs, and what a sample of it needs. One struct, so that one address is passed. */
struct rt_sampling {
  rt_cycle_t cycle;
  rt_sampler_function_t take; /* one that does nothing if there are no signals */
  rt_broadcast_writer_t writer;
  const char *from;            /* the first word */
  uint32_t row;                /* the words if rt_sampling_take_row can write them, otherwise 0 */
  const rt_sampler_t *sampler; /* NULL: no signals */
};

/* Test whether `index` is divisible by `every`, without a division. Granlund and Montgomery, "Division by invariant
 * integers using multiplication", PLDI 1994, section 9. O(1). */
static inline int rt_sampler_is_due(const rt_sampler_t *s, uint64_t index) {
  const uint64_t q = index * s->inverse;
  return (q >> s->twos | (s->twos ? q << (64 - s->twos) : 0)) <= s->quotients;
}

/* Compute the largest word that divides a size: 8, 4, 2 or 1. */
static inline uint32_t rt_sampler_word(uint32_t bytes) { return bytes % 8 ? bytes % 4 ? bytes % 2 ? 1 : 2 : 4 : 8; }

/* Compute the bytes of a record in the ring. */
static inline uint64_t rt_sampler_stride(const rt_sampler_t *s) { return (s->record_bytes + UINT64_C(7)) / 8 * 8; }

#define RT_SAMPLER_COPY(type, to, address)                                                                             \
  do {                                                                                                                 \
    type word_; /* the field of a packed struct need not be aligned */                                                 \
    memcpy(&word_, (address), sizeof word_);                                                                           \
    rt_store_relaxed((type *)(void *)(to), word_);                                                                     \
  } while (0)

/* Copy a word. */
static inline void rt_sampler_copy_8(char *to, const char *from) { RT_SAMPLER_COPY(uint64_t, to, from); }
static inline void rt_sampler_copy_4(char *to, const char *from) { RT_SAMPLER_COPY(uint32_t, to, from); }
static inline void rt_sampler_copy_2(char *to, const char *from) { RT_SAMPLER_COPY(uint16_t, to, from); }
static inline void rt_sampler_copy_1(char *to, const char *from) { RT_SAMPLER_COPY(uint8_t, to, from); }

/* Copy two words of 8 bytes. On x86-64 one move copies both, without tearing either. */
static inline void rt_sampler_copy_pair(char *to, const void *from) {
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED)
  typedef long long from_t __attribute__((vector_size(16), aligned(1), may_alias));
  typedef long long to_t __attribute__((vector_size(16), aligned(8), may_alias));
  *(volatile to_t *)(void *)to = *(const from_t *)from;
#else
  RT_SAMPLER_COPY(uint64_t, to, from);
  RT_SAMPLER_COPY(uint64_t, to + 8, (const char *)from + 8);
#endif
}

/* Copy two words of 8 bytes from two addresses. On x86-64 one store writes both. */
static inline void rt_sampler_copy_two(char *to, const void *first, const void *second) {
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED)
  typedef long long to_t __attribute__((vector_size(16), aligned(8), may_alias));
  long long a, b;
  memcpy(&a, first, sizeof a);
  memcpy(&b, second, sizeof b);
  *(volatile to_t *)(void *)to = (to_t){a, b};
#else
  RT_SAMPLER_COPY(uint64_t, to, first);
  RT_SAMPLER_COPY(uint64_t, to + 8, second);
#endif
}

/* Begin a record with the cycle's index and release. Returns its place. */
static inline char *rt_sampler_begin(const rt_sampling_t *s) {
  char *const place = rt_broadcast_begin(&s->writer);
  rt_sampler_copy_pair(place, &s->cycle.index);
  return place;
}

/* Go on with the cycle's start. */
static inline void rt_sampler_copy_start(const rt_sampling_t *s, char *place) {
  RT_SAMPLER_COPY(uint64_t, place + 16, &s->cycle.start);
}

/* Copy `left` items (words, or pairs of them), 8 at a time and then the rest, and advance `to` and `from` past them, by
 * `to_bytes` and `step` for each. `copy(i)` copies the i-th item after `to` and `from`. */
#define RT_SAMPLER_REST(i, copy)                                                                                       \
  case (i) + 1:                                                                                                        \
    copy(i);                                                                                                           \
    __attribute__((fallthrough))
#define RT_SAMPLER_BLOCKS(left, to_bytes, step, copy)                                                                  \
  do {                                                                                                                 \
    uint32_t left_ = (left);                                                                                           \
    if (left_ == 0) break;                                                                                             \
    for (; left_ >= 8; left_ -= 8, to += 8 * (to_bytes), from += 8 * (step)) {                                         \
      copy(0), copy(1), copy(2), copy(3), copy(4), copy(5), copy(6), copy(7);                                          \
    }                                                                                                                  \
    switch (left_ & 7u) {                                                                                              \
      RT_SAMPLER_REST(6, copy);                                                                                        \
      RT_SAMPLER_REST(5, copy);                                                                                        \
      RT_SAMPLER_REST(4, copy);                                                                                        \
      RT_SAMPLER_REST(3, copy);                                                                                        \
      RT_SAMPLER_REST(2, copy);                                                                                        \
      RT_SAMPLER_REST(1, copy);                                                                                        \
      RT_SAMPLER_REST(0, copy);                                                                                        \
    default:                                                                                                           \
      break;                                                                                                           \
    }                                                                                                                  \
    to += left_ * (to_bytes), from += left_ * (step);                                                                  \
  } while (0)
#define RT_SAMPLER_PAIR(i) rt_sampler_copy_pair(to + 16 * (i), from[2 * (i)])
#define RT_SAMPLER_ROW_PAIR(i) rt_sampler_copy_pair(to + 16 * (i), from + 16 * (i))
#define RT_SAMPLER_WORD_8(i) rt_sampler_copy_8(to + 8 * (i), from[i])
#define RT_SAMPLER_WORD_4(i) rt_sampler_copy_4(to + 4 * (i), from[i])
#define RT_SAMPLER_WORD_2(i) rt_sampler_copy_2(to + 2 * (i), from[i])
#define RT_SAMPLER_WORD_1(i) rt_sampler_copy_1(to + (i), from[i])

/* Write a record of any words. The contract is that of rt_sampling_take. */
static __attribute__((unused)) void rt_sampler_copy_any(rt_sampling_t *s) {
  const rt_sampler_t *const sampler = s->sampler;
  char *const place = rt_sampler_begin(s);
  rt_sampler_copy_start(s, place);
  char *to = place + RT_SAMPLER_HEAD_BYTES;
  const char *const *from = sampler->from;
  RT_SAMPLER_BLOCKS(sampler->pairs, 16, 2, RT_SAMPLER_PAIR);
  RT_SAMPLER_BLOCKS(sampler->words - 2 * sampler->pairs, 8, 1, RT_SAMPLER_WORD_8);
  if (sampler->total != sampler->words) {
    RT_SAMPLER_BLOCKS(sampler->counts[0], 4, 1, RT_SAMPLER_WORD_4);
    RT_SAMPLER_BLOCKS(sampler->counts[1], 2, 1, RT_SAMPLER_WORD_2);
    RT_SAMPLER_BLOCKS(sampler->counts[2], 1, 1, RT_SAMPLER_WORD_1);
  }
  rt_broadcast_publish(&s->writer, place, s->writer.record_bytes);
}

/* Write a record of any number of words of 8 bytes that follow each other in memory. The contract is that of
 * rt_sampling_take. */
static __attribute__((unused)) void rt_sampler_copy_long_row(rt_sampling_t *s) {
  const uint32_t words = s->sampler->words;
  char *const place = rt_sampler_begin(s);
  rt_sampler_copy_start(s, place);
  char *to = place + RT_SAMPLER_HEAD_BYTES;
  const char *from = s->from;
  RT_SAMPLER_BLOCKS(words / 2, 16, 16, RT_SAMPLER_ROW_PAIR);
  if (words % 2) rt_sampler_copy_8(to, from);
  rt_broadcast_publish(&s->writer, place, s->writer.record_bytes);
}

/* Write a record of pairs and other words of 8 bytes; both numbers are constants. */
static inline __attribute__((always_inline)) void rt_sampler_copy_small(rt_sampling_t *s, uint32_t pairs,
                                                                        uint32_t others) {
  const char *const *const from = s->sampler->from;
  char *const place = rt_sampler_begin(s);
  char *const to = place + RT_SAMPLER_HEAD_BYTES;
  const uint32_t words = 2 * pairs + others;
  uint32_t done = 2 * pairs;
  if (pairs == 0 && others % 2) {
    rt_sampler_copy_two(place + 16, &s->cycle.start, from[0]);
    done = 1;
  } else {
    rt_sampler_copy_start(s, place);
  }
#pragma GCC unroll 8
  for (uint32_t i = 0; i < pairs; i++) rt_sampler_copy_pair(to + 16 * i, from[2 * i]);
#pragma GCC unroll 8
  for (; done + 2 <= words; done += 2) rt_sampler_copy_two(to + 8 * done, from[done], from[done + 1]);
  if (done < words) RT_SAMPLER_COPY(uint64_t, to + 8 * done, from[done]);
  rt_broadcast_publish(&s->writer, place, RT_SAMPLER_HEAD_BYTES + 8 * words);
}

/* Write a record of words of 8 bytes that follow each other in memory; their number is a constant. */
static inline __attribute__((always_inline)) void rt_sampler_copy_row(rt_sampling_t *s, uint32_t words) {
  char *const place = rt_sampler_begin(s);
  char *const to = place + RT_SAMPLER_HEAD_BYTES;
  const char *const from = s->from;
  if (words % 2) {
    rt_sampler_copy_two(place + 16, &s->cycle.start, from);
  } else {
    rt_sampler_copy_start(s, place);
  }
#pragma GCC unroll 16
  for (uint32_t i = words % 2; i < words; i += 2) rt_sampler_copy_pair(to + 8 * i, from + 8 * i);
  rt_broadcast_publish(&s->writer, place, RT_SAMPLER_HEAD_BYTES + 8 * words);
}

/* clang-format off */
#define RT_SAMPLER_PAIRS(X, p) X(p, 0) X(p, 1) X(p, 2) X(p, 3) X(p, 4) X(p, 5) X(p, 6) X(p, 7) X(p, 8)
#define RT_SAMPLER_EACH(X)                                                                                             \
  RT_SAMPLER_PAIRS(X, 0) RT_SAMPLER_PAIRS(X, 1) RT_SAMPLER_PAIRS(X, 2) RT_SAMPLER_PAIRS(X, 3)                          \
  RT_SAMPLER_PAIRS(X, 4) RT_SAMPLER_PAIRS(X, 5) RT_SAMPLER_PAIRS(X, 6) RT_SAMPLER_PAIRS(X, 7) RT_SAMPLER_PAIRS(X, 8)
#define RT_SAMPLER_EACH_SINGLE(X) X(0, 9) X(0, 10) X(0, 11) X(0, 12) X(0, 13) X(0, 14) X(0, 15) X(0, 16)
#define RT_SAMPLER_EACH_ROW(X)                                                                                         \
  X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16)                               \
  X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31) X(32)
/* clang-format on */
#define RT_SAMPLER_DEFINE(pairs, others)                                                                               \
  static __attribute__((unused)) void rt_sampler_copy_##pairs##_##others(rt_sampling_t *s) {                           \
    rt_sampler_copy_small(s, pairs, others);                                                                           \
  }
#define RT_SAMPLER_NAME(pairs, others) rt_sampler_copy_##pairs##_##others,

#define RT_SAMPLER_DEFINE_ROW(words)                                                                                   \
  static __attribute__((unused)) void rt_sampler_copy_row_##words(rt_sampling_t *s) { rt_sampler_copy_row(s, words); }
#define RT_SAMPLER_NAME_ROW(words) rt_sampler_copy_row_##words,

RT_SAMPLER_EACH(RT_SAMPLER_DEFINE)
RT_SAMPLER_EACH_SINGLE(RT_SAMPLER_DEFINE)
RT_SAMPLER_EACH_ROW(RT_SAMPLER_DEFINE_ROW)

/* Write a record if the cycle's index is divisible by `every`. As rt_sampling_take. */
static __attribute__((unused)) void rt_sampler_sample_due(rt_sampling_t *s) {
  if (rt_sampler_is_due(s->sampler, s->cycle.index)) s->sampler->copy(s);
}

/* Write nothing: there are no signals. */
static __attribute__((unused)) void rt_sampler_sample_nothing(rt_sampling_t *s) { (void)s; }

/* Choose the functions for the present words. O(1). */
static inline void rt_sampler_choose(rt_sampler_t *s) {
  static const rt_sampler_function_t small[(RT_SAMPLER_SMALL + 1) * (RT_SAMPLER_SMALL + 1)] = {
      RT_SAMPLER_EACH(RT_SAMPLER_NAME)};
  static const rt_sampler_function_t single[RT_SAMPLER_SINGLE - RT_SAMPLER_SMALL] = {
      RT_SAMPLER_EACH_SINGLE(RT_SAMPLER_NAME)};
  static const rt_sampler_function_t row[RT_SAMPLER_ROW] = {RT_SAMPLER_EACH_ROW(RT_SAMPLER_NAME_ROW)};
  const uint32_t others = s->words - 2 * s->pairs;
  s->copy = rt_sampler_copy_any;
  if (s->total == s->words) {
    if (s->words && s->row == s->words) {
      s->copy = s->words <= RT_SAMPLER_ROW ? row[s->words - 1] : rt_sampler_copy_long_row;
    } else if (s->pairs <= RT_SAMPLER_SMALL && others <= RT_SAMPLER_SMALL) {
      s->copy = small[s->pairs * (RT_SAMPLER_SMALL + 1) + others];
    } else if (s->pairs == 0 && others <= RT_SAMPLER_SINGLE) {
      s->copy = single[others - RT_SAMPLER_SMALL - 1];
    }
  }
  s->sample = s->every == 1 ? s->copy : rt_sampler_sample_due;
}

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
  rt_sampler_choose(s);
}

/* Add a piece of `bytes` at `address`, which has to stay valid. Before the writer is set; O(bytes). Returns the offset
 * of the piece in the record, or fails with -EINVAL iff it has no size, or a piece of smaller words came before it,
 * and with -ENOSPC iff the record would have too many words. */
static inline int rt_sampler_add(rt_sampler_t *s, const void *address, uint32_t bytes) {
  if (bytes == 0) return -EINVAL;
  const uint32_t word = rt_sampler_word(bytes), shift = word == 8 ? 0 : word == 4 ? 1 : word == 2 ? 2 : 3;
  for (uint32_t i = shift; i < 3; i++) {
    if (s->counts[i]) return -EINVAL; /* of smaller words */
  }
  if (bytes / word > RT_SAMPLER_MAX - s->total) return -ENOSPC;
  const uint32_t offset = s->record_bytes;
  for (uint32_t done = 0; done < bytes; done += word) {
    const uint32_t n = s->total++;
    s->from[n] = (const char *)address + done;
    if (word == 8 && n == s->row && (n == 0 || s->from[n] == s->from[n - 1] + 8)) s->row++;
    if (word == 8 && n == 2 * s->pairs + 1 && s->from[n] == s->from[n - 1] + 8) s->pairs++;
  }
  if (shift) {
    s->counts[shift - 1] += bytes / word;
  } else {
    s->words += bytes / 8;
  }
  s->record_bytes += bytes;
  rt_sampler_choose(s);
  return (int)offset;
}

/* Sample what `sampler` says, behind the last record of its block; nothing if it is NULL. Its writer must be set.
 * Before the first cycle, or on the loop's thread between two cycles; O(1). */
static inline void rt_sampling_use(rt_sampling_t *s, const rt_sampler_t *sampler) {
  s->sampler = sampler;
  s->row = 0;
  if (sampler == NULL) {
    s->take = rt_sampler_sample_nothing;
    return;
  }
  s->take = sampler->sample;
  s->from = sampler->from[0];
  if (sampler->every == 1 && sampler->total == sampler->row && sampler->row <= RT_SAMPLER_INLINE) s->row = sampler->row;
  s->writer = sampler->writer;
  rt_broadcast_resume(&s->writer);
}

/* Count the cycles, from number `index` on, that can be sampled before rt_sampling_turn has to be called. The loop's
 * thread; O(1). */
static inline uint64_t rt_sampling_left(const rt_sampling_t *s, uint64_t index) {
  if (s->sampler == NULL) return UINT64_MAX;
  const uint64_t places = rt_broadcast_left(&s->writer), every = s->sampler->every;
  if (places == 0 || every == 1) return places;
  const uint64_t first = (every - index % every) % every + 1; /* until the next sample was taken */
  uint64_t left;
  const int is_far = __builtin_mul_overflow(places - 1, every, &left) || __builtin_add_overflow(left, first, &left);
  return is_far ? UINT64_MAX : left;
}

/* Go on at the beginning of the ring after its last place. The loop's thread between two cycles; O(1). */
static inline void rt_sampling_turn(rt_sampling_t *s) {
  if (s->sampler) rt_broadcast_turn(&s->writer);
}

/* Test whether rt_sampling_turn has to come before the next sample. The loop's thread; O(1). */
static inline int rt_sampling_is_at_end(const rt_sampling_t *s) {
  return s->sampler && s->writer.next == s->writer.end;
}

/* Write a record of the present values, if there are signals and the cycle's index is divisible by `every`. The loop's
 * thread; wait-free; allocates nothing, no system call; O(words). */
static inline void rt_sampling_take(rt_sampling_t *s) { s->take(s); }

/* Do the same without a call if s->row is not 0. `words` is s->row, as a constant, and `start` the cycle's start. */
static inline __attribute__((always_inline)) void rt_sampling_take_row(rt_sampling_t *s, uint32_t words,
                                                                       int64_t start) {
  char *const place = rt_sampler_begin(s);
  char *const to = place + RT_SAMPLER_HEAD_BYTES;
  const char *const from = s->from;
  rt_store_relaxed((int64_t *)(void *)(place + 16), start);
  for (uint32_t i = 0; i + 2 <= words; i += 2) rt_sampler_copy_pair(to + 8 * i, from + 8 * i);
  if (words % 2) rt_sampler_copy_8(to + 8 * (words - 1), from + 8 * (words - 1));
  rt_broadcast_publish(&s->writer, place, RT_SAMPLER_HEAD_BYTES + 8 * words);
}

#endif
