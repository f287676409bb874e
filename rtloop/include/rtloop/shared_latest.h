/* The newest value from one writer to several readers in any processes, each of which may be killed at any instruction.
 *
 *   | rt_shared_latest_block_t | a word for each reader | places for a value, two more than readers |   shared memory
 *   | rt_shared_latest_t       |                                                   private memory of each side
 *
 * One word, `newest`, has the whole state of the writer: the number of the newest value and its place. One word for
 * each reader has the whole state of that reader: the word of the value whose place it holds. A write fills a place
 * that is neither the newest nor held, and publishes its word by one store. So there is no moment at which a side that
 * is killed leaves anything to repair: a place that nobody names is free, and a place that a dead reader holds stays
 * out of use until its successor holds another. Of readers + 2 places, the newest and those of all readers leave one.
 *
 * A read that finds a new word announces RT_SHARED_LATEST_WANTED in its own word, loads `newest`, and replaces the
 * announcement by what it has loaded. After each value, the writer looks at all readers' words, and replaces an
 * announcement by the value that it has just published. Whichever replaces it first decides which place the reader
 * holds. Therefore neither side ever tries again, however fast the other one is.
 *
 * Memory order. Writer: store newest, then load a reader's word. Reader: store its word, then load newest. All four are
 * sequentially consistent, so if the writer does not see the announcement, the reader sees that value or a later one,
 * whose place the writer leaves alone until it has looked once more. A place is used again only after a load of each
 * reader's word, which acquires what that reader released when it gave the place up.
 *
 * Trust. Every process that has the block open can write to it. Sizes and addresses are in private memory only, and
 * the number of a place is checked against them, so damage can make a reader return wrong values, and nothing worse.
 * The writer does not even read its own word.
 *
 * Worst case: a write is a copy, one locked instruction, and for each reader a load and at most one locked instruction.
 * A read is a copy, and two locked instructions if there is a new value. No system call, no loop but over the readers.
 */
#ifndef RTLOOP_SHARED_LATEST_H
#define RTLOOP_SHARED_LATEST_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"
#include "clock.h"
#include "latest.h"

#define RT_SHARED_LATEST_MAX_READERS 32u
#define RT_SHARED_LATEST_WANTED UINT64_MAX

/* Fields of a word. Number 0 is the value before the first write, all zeros. */
#define RT_SHARED_LATEST_NUMBER(word) ((word) >> 8)
#define RT_SHARED_LATEST_PLACE(word) ((uint32_t)(word) & 63u)
#define RT_SHARED_LATEST_WORD(number, place) ((uint64_t)(number) << 8 | (place))

typedef struct rt_shared_latest_word {
  _Alignas(RT_CACHE_LINE) uint64_t word;
} rt_shared_latest_word_t;

/* In shared memory. All zeros is a value that was never written. */
typedef struct rt_shared_latest_block {
  _Alignas(RT_CACHE_LINE) uint64_t newest;    /* written by the writer */
  _Alignas(RT_CACHE_LINE) int64_t written_at; /* by the writer, after the value: the time of the newest stamp */
  int64_t written_at_monotonic;               /* the same on CLOCK_MONOTONIC, if the clock is settable */
  _Alignas(RT_CACHE_LINE) uint32_t awaited;   /* whether a reader sleeps; see wakes.h */
  _Alignas(RT_CACHE_LINE) rt_shared_latest_word_t held[]; /* each by its reader, and by the writer if it is wanted */
} rt_shared_latest_block_t;

/* In private memory of one side. All zeros, as in a forked child, is a side that does nothing. */
typedef struct rt_shared_latest {
  rt_latest_t base; /* the size and the clock. It has no places: a function of latest.h would fault at once */
  rt_shared_latest_block_t *block;
  char *places;
  uint64_t stride;
  uint64_t value_bytes;
  uint32_t readers;
  uint32_t back;     /* the writer's: the place of the next value */
  uint64_t number;   /* of the value that was written, or read, last */
  uint64_t *held;    /* the reader's word in the block */
  uint64_t seen;     /* the reader's: what that word holds; RT_SHARED_LATEST_WANTED before the first read */
  const char *front; /* the reader's: the value that was read last */
  const rt_latest_stamp_t *stamp; /* its stamp */
  rt_latest_stamp_t no_stamp;
} rt_shared_latest_t;

/* Compute the bytes of a block. Any thread, O(1). 0 iff `value_bytes` or `readers` is impossible. */
static inline uint64_t rt_shared_latest_bytes(uint64_t value_bytes, uint64_t readers) {
  if (value_bytes == 0 || readers == 0 || readers > RT_SHARED_LATEST_MAX_READERS) return 0;
  if (value_bytes > (UINT64_C(1) << 47) / (readers + 2)) return 0;
  return sizeof(rt_shared_latest_block_t) + readers * sizeof(rt_shared_latest_word_t) +
         (readers + 2) * rt_latest_stride(value_bytes);
}

/* Get the place that a word names; place 0 if there is no such place. O(1). */
static inline uint32_t rt_shared_latest_place(const rt_shared_latest_t *s, uint64_t word) {
  const uint32_t place = RT_SHARED_LATEST_PLACE(word);
  return place < s->readers + 2 ? place : 0;
}

/* Prepare a side in `s`, private and zeroed, for a block of rt_shared_latest_bytes(value_bytes, readers). Before any
 * other thread has the address; O(1). Returns 0, or -EINVAL iff a size or the alignment is wrong. */
static inline int rt_shared_latest_open(rt_shared_latest_t *s, rt_shared_latest_block_t *block, uint64_t value_bytes,
                                        uint64_t readers) {
  if (rt_shared_latest_bytes(value_bytes, readers) == 0 || (uintptr_t)block % RT_CACHE_LINE) return -EINVAL;
  char *const places = (char *)(block + 1) + readers * sizeof(rt_shared_latest_word_t);
  *s = (rt_shared_latest_t){.base = {.value_bytes = value_bytes},
                            .block = block,
                            .places = places,
                            .stride = rt_latest_stride(value_bytes),
                            .value_bytes = value_bytes,
                            .readers = (uint32_t)readers,
                            .seen = RT_SHARED_LATEST_WANTED,
                            .front = places};
  s->stamp = &s->no_stamp;
  return 0;
}

/* Find a place that is neither that of `word`, the newest value, nor held, and give `word` to each reader that wants a
 * value. The writer; O(readers), wait-free. */
static inline uint32_t rt_shared_latest_find_back(const rt_shared_latest_t *s, uint64_t word) {
  uint64_t used = UINT64_C(1) << RT_SHARED_LATEST_PLACE(word);
  for (uint32_t i = 0; i < s->readers; i++) {
    uint64_t *const held = &s->block->held[i].word;
    uint64_t is = rt_load_seq_cst(held);
    if (is == RT_SHARED_LATEST_WANTED && rt_compare_exchange_seq_cst(held, &is, word)) is = word;
    used |= UINT64_C(1) << RT_SHARED_LATEST_PLACE(is);
  }
  return (uint32_t)__builtin_ctzll(~used); /* at most readers + 1, because at most that many bits are set */
}

/* Take the writer's side, which no other thread or process has. Its predecessor may have been killed anywhere.
 * O(readers); no system call. */
static inline void rt_shared_latest_begin_writing(rt_shared_latest_t *s) {
  const uint64_t found = rt_load_acquire(&s->block->newest);
  s->number = RT_SHARED_LATEST_NUMBER(found);
  const uint64_t word = RT_SHARED_LATEST_WORD(s->number, rt_shared_latest_place(s, found));
  (void)rt_exchange_seq_cst(&s->block->newest, word); /* before the readers' words are loaded, as after each value */
  s->back = rt_shared_latest_find_back(s, word);
}

/* Take the side of reader number `reader`, which no other thread or process has. Its predecessor may have been killed
 * anywhere. O(1); no system call. Returns 0, or -EINVAL iff there is no such reader. */
static inline int rt_shared_latest_begin_reading(rt_shared_latest_t *s, uint32_t reader) {
  if (reader >= s->readers) return -EINVAL;
  s->held = &s->block->held[reader].word;
  return 0;
}

/* Get the place in which the writer may assemble the next value; it still holds a former value. The writer; O(1). */
static inline char *rt_shared_latest_back(const rt_shared_latest_t *s) { return s->places + s->back * s->stride; }

/* Make the content of rt_shared_latest_back() the newest value, and take another place. The writer; O(readers). */
static inline void rt_shared_latest_publish(rt_shared_latest_t *s) {
  const uint64_t word = RT_SHARED_LATEST_WORD(++s->number, s->back);
  (void)rt_exchange_seq_cst(&s->block->newest, word);
  s->back = rt_shared_latest_find_back(s, word);
}

/* Write a value, without a stamp. The writer; wait-free: a copy, one locked instruction and a load for each reader;
 * allocates nothing, no system call. */
static inline void rt_shared_latest_write(rt_shared_latest_t *s, const void *value) {
  if (RT_UNLIKELY(!s->block)) return;
  memcpy(rt_shared_latest_back(s), value, s->value_bytes);
  rt_shared_latest_publish(s);
}

/* Write a value and stamp it with `time`, in ns on the clock of the stamps. The writer; as rt_shared_latest_write. */
static inline void rt_shared_latest_write_at(rt_shared_latest_t *s, const void *value, int64_t time) {
  if (RT_UNLIKELY(!s->block)) return;
  const int64_t written = RT_UNLIKELY(s->base.is_settable) ? rt_clock_now(CLOCK_MONOTONIC) : 0;
  const rt_latest_stamp_t stamp = {.written = written, .time = time, .count = s->number + 1};
  char *const back = rt_shared_latest_back(s);
  memcpy(back, value, s->value_bytes);
  memcpy(back + s->stride - sizeof stamp, &stamp, sizeof stamp);
  rt_shared_latest_publish(s);
  rt_store_relaxed(&s->block->written_at, time); /* last: whoever is killed before it leaves an older time */
  rt_store_relaxed(&s->block->written_at_monotonic, written);
}

/* Hold the newest value, at s->front. Returns 1 iff it is another one than before. The reader; wait-free: one load, and
 * two locked instructions if there is a new value. */
static inline int rt_shared_latest_update(rt_shared_latest_t *s) {
  if (rt_load_relaxed(&s->block->newest) == s->seen) return 0;
  (void)rt_exchange_seq_cst(s->held, RT_SHARED_LATEST_WANTED);
  uint64_t word = rt_load_seq_cst(&s->block->newest), wanted = RT_SHARED_LATEST_WANTED;
  if (!rt_compare_exchange_seq_cst(s->held, &wanted, word)) word = wanted; /* the writer was faster */
  const int is_new = RT_SHARED_LATEST_NUMBER(word) != s->number;
  s->seen = word;
  s->number = RT_SHARED_LATEST_NUMBER(word);
  s->front = s->places + rt_shared_latest_place(s, word) * s->stride;
  s->stamp = (const rt_latest_stamp_t *)(const void *)(s->front + s->stride - sizeof(rt_latest_stamp_t));
  return is_new;
}

/* Read the newest value, which is all zeros before the first write. Returns 1 iff it was not read before. The reader;
 * wait-free: a copy and at most two locked instructions; allocates nothing, no system call. */
static inline int rt_shared_latest_read(rt_shared_latest_t *s, void *value) {
  if (RT_UNLIKELY(!s->block)) return 0;
  const int is_new = rt_shared_latest_update(s);
  memcpy(value, s->front, s->value_bytes);
  return is_new;
}

/* Compute the age at `now` of the value that was read last, as rt_latest_age. The reader; O(1), no system call. */
static inline int64_t rt_shared_latest_age(const rt_shared_latest_t *s, int64_t now) {
  rt_latest_stamp_t stamp;
  if (RT_UNLIKELY(!s->block)) return RT_LATEST_NEVER;
  memcpy(&stamp, s->stamp, sizeof stamp);
  return rt_latest_age_of(&s->base, stamp, now);
}

/* Compute the age at `now` of the value that was read last, in periods, as rt_latest_age_cycles. The reader; O(1), no
 * system call. */
static inline int64_t rt_shared_latest_age_cycles(const rt_shared_latest_t *s, int64_t now, int64_t period) {
  rt_latest_stamp_t stamp;
  if (RT_UNLIKELY(!s->block)) return RT_LATEST_NEVER;
  memcpy(&stamp, s->stamp, sizeof stamp);
  return rt_latest_age_cycles_of(&s->base, stamp, now, period);
}

/* Count the values that were written, by all writers that there have been. Any thread, O(1), no system call. */
static inline uint64_t rt_shared_latest_written(const rt_shared_latest_t *s) {
  return s->block ? RT_SHARED_LATEST_NUMBER(rt_load_acquire(&s->block->newest)) : 0;
}

/* Test whether there is a value that this reader has not read. Any thread, O(1), no system call. */
static inline int rt_shared_latest_is_new(const rt_shared_latest_t *s) {
  return s->block && rt_shared_latest_written(s) != rt_load_relaxed(&s->number);
}

#endif
