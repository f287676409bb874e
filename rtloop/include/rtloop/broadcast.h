/* A queue from one writer to any number of readers in any process. The writer neither waits for readers nor knows them.
 *
 *   | rt_broadcast_t | text | records, one after the other |
 *
 * `written` counts the records ever written. Record n is in place n modulo the number of places, a power of two. A
 * reader keeps its own position, copies records, and then looks at `written` again: the writer may have begun to write
 * over the oldest ones meanwhile. Those are dropped from the copy and counted as lost, so a reader never returns a
 * record that is half of one and half of another, and what it has received and lost adds up to what was written.
 * Readers write nothing into the block, and map it without permission to write.
 *
 * Memory order. A record is written between two values of `written`, n before and n + 1 after:
 *
 *   writer: fence(release); store record n; store-release written = n + 1
 *   reader: load-acquire written; load records; fence(acquire); load written
 *
 * The store-release and the load-acquire make whole the records before the first value that the reader loads. The two
 * fences exclude the others: if the reader has loaded any word of record n, the writer's fence came before that word
 * and the reader's fence after it, so the second load returns at least n. A value of n means that record n may be half
 * written, in the place that record n - places had. So only the last places - 1 records before the second value are
 * whole: one place is always given up for the record that may be under way. Without the writer's fence an arm64 machine
 * could show the new words before the old `written`; x86 needs no instruction for either fence. The words are relaxed
 * atomics (atomics.h), as those under a seqlock (Boehm, "Can seqlocks get along with programming language memory
 * models?", MSPC 2012).
 *
 * A block of another process is not trusted: rt_broadcast_open copies and checks whatever determines an address. What a
 * reader loads later moves no access out of the block, and makes no loop longer. A hostile writer can therefore at most
 * make a reader return wrong values.
 */
#ifndef RTLOOP_BROADCAST_H
#define RTLOOP_BROADCAST_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"

#define RT_BROADCAST_MAGIC UINT64_C(0x6c616e6769537472) /* "rtSignal" */
#define RT_BROADCAST_VERSION 2u
#define RT_BROADCAST_MAX_RECORD_BYTES (UINT64_C(1) << 16)
#define RT_BROADCAST_MAX_PLACES (UINT64_C(1) << 32)
#define RT_BROADCAST_MAX_TEXT (UINT64_C(1) << 20)

typedef struct rt_broadcast {
  uint64_t magic; /* stored last */
  uint32_t version;
  uint32_t header_bytes;
  uint64_t record_bytes; /* a multiple of 8 */
  uint64_t places;       /* a power of two, at least 2 */
  uint64_t text_bytes;   /* a multiple of RT_CACHE_LINE */

  _Alignas(RT_CACHE_LINE) uint64_t written; /* records, over all runs */
} rt_broadcast_t;

/* The writer's state; never in shared memory, where another process could redirect the writes of the loop. */
typedef struct rt_broadcast_writer {
  rt_broadcast_t *block; /* NULL: nothing is written */
  char *next;            /* the place of the next record */
  char *end;
  uint64_t record_bytes;
  char *records;
} rt_broadcast_writer_t;

/* A reader's state: the sizes that it has checked, and its position. */
typedef struct rt_broadcast_reader {
  const rt_broadcast_t *block;
  const char *text;
  const char *records;
  uint64_t text_bytes;
  uint64_t record_bytes;
  uint64_t places;
  uint64_t position; /* the record to read next */
  uint64_t lost;
} rt_broadcast_reader_t;

/* The result of checking a block. */
enum {
  RT_BROADCAST_OK = 0,
  RT_BROADCAST_SHORT = 1,    /* the file is shorter than a header */
  RT_BROADCAST_MAGIC_ = 2,   /* not a block, or not ready yet */
  RT_BROADCAST_VERSION_ = 3, /* of another version of rtloop */
  RT_BROADCAST_SIZES = 4,    /* impossible sizes, or sizes that do not add up to the file */
};

/* Compute the number of places for `capacity` records: a power of two, and at least one more than `capacity`, because
 * the oldest record is given up for the one that is being written. `capacity` is less than RT_BROADCAST_MAX_PLACES. */
static inline uint64_t rt_broadcast_places(uint64_t capacity) {
  return capacity < 2 ? 2 : UINT64_C(1) << (64 - __builtin_clzll(capacity));
}

/* Compute the bytes of a block. Any thread, O(1). 0 iff a size is impossible. */
static inline uint64_t rt_broadcast_bytes(uint64_t record_bytes, uint64_t places, uint64_t text_bytes) {
  if (record_bytes == 0 || record_bytes % 8 || record_bytes > RT_BROADCAST_MAX_RECORD_BYTES) return 0;
  if (places < 2 || places > RT_BROADCAST_MAX_PLACES || (places & (places - 1))) return 0;
  if (text_bytes > RT_BROADCAST_MAX_TEXT || text_bytes % RT_CACHE_LINE) return 0;
  return sizeof(rt_broadcast_t) + text_bytes + places * record_bytes; /* less than 2^49 */
}

/* Make an empty block of zeroed memory of rt_broadcast_bytes(), with a text of `length` bytes that is no longer than
 * `text_bytes`. Before any other thread has the address; O(length). Returns 0, or -EINVAL iff a size is wrong. */
static inline int rt_broadcast_init(rt_broadcast_writer_t *writer, rt_broadcast_t *block, uint64_t record_bytes,
                                    uint64_t places, const char *text, uint64_t length, uint64_t text_bytes) {
  const uint64_t bytes = rt_broadcast_bytes(record_bytes, places, text_bytes);
  if (bytes == 0 || length > text_bytes || (uintptr_t)block % RT_CACHE_LINE) return -EINVAL;
  block->version = RT_BROADCAST_VERSION;
  block->header_bytes = sizeof *block;
  block->record_bytes = record_bytes;
  block->places = places;
  block->text_bytes = text_bytes;
  memcpy((char *)(block + 1), text, length);
  char *const records = (char *)(block + 1) + text_bytes;
  *writer = (rt_broadcast_writer_t){.block = block,
                                    .next = records,
                                    .end = records + places * record_bytes,
                                    .record_bytes = record_bytes,
                                    .records = records};
  rt_store_release(&block->magic, RT_BROADCAST_MAGIC);
  return 0;
}

/* Get the place for the next record, to fill with atomic stores. The writer; O(1), wait-free. */
static inline char *rt_broadcast_begin(const rt_broadcast_writer_t *writer) {
  __atomic_thread_fence(__ATOMIC_RELEASE);
  return writer->next;
}

/* Publish the record of `bytes` that fills `place`, which rt_broadcast_begin has returned. rt_broadcast_turn has to
 * come before the next record. The writer; O(1), wait-free: 3 instructions on x86-64 if `bytes` is a constant; no
 * system call. A macro, because the address of a function's operand would take a register. */
#define rt_broadcast_publish(writer, place, bytes)                                                                     \
  do {                                                                                                                 \
    RT_BROADCAST_MOVE_ON(writer, place, bytes);                                                                        \
    rt_add_release(&(writer)->block->written, 1);                                                                      \
  } while (0)
#if defined(__x86_64__) && !defined(RT_IS_SANITIZED) /* compilers make two instructions of the sum and the store */
#define RT_BROADCAST_MOVE_ON(writer, place, bytes)                                                                     \
  (void)(place);                                                                                                       \
  rt_add_relaxed(&(writer)->next, (bytes))
#else
#define RT_BROADCAST_MOVE_ON(writer, place, bytes) (writer)->next = (place) + (bytes)
#endif

/* Go on at the first place after the last one. The writer; O(1). */
static inline void rt_broadcast_turn(rt_broadcast_writer_t *writer) {
  if (RT_UNLIKELY(writer->next == writer->end)) writer->next = writer->records;
}

/* Publish the record that fills `place`, whatever place is next. The writer; O(1), wait-free; no system call. */
static inline void rt_broadcast_end(rt_broadcast_writer_t *writer, char *place) {
  rt_broadcast_publish(writer, place, writer->record_bytes);
  rt_broadcast_turn(writer);
}

/* Count the records that can be written before rt_broadcast_turn has to be called. The writer; O(1). */
static inline uint64_t rt_broadcast_left(const rt_broadcast_writer_t *writer) {
  return (uint64_t)(writer->end - writer->next) / writer->record_bytes;
}

/* Find the next place anew, in a copy of a writer's state that may be older than its block. The writer; O(1). */
static inline void rt_broadcast_resume(rt_broadcast_writer_t *writer) {
  const uint64_t places = (uint64_t)(writer->end - writer->records) / writer->record_bytes;
  writer->next = writer->records + rt_load_relaxed(&writer->block->written) % places * writer->record_bytes;
}

/* Check the block at `address`, of a file of `bytes`, all of it mapped, and begin to read it at its oldest record if
 * `is_from_oldest`, otherwise after its newest. Any thread; O(1). Returns RT_BROADCAST_OK, or what is wrong with it. */
static inline int rt_broadcast_open(rt_broadcast_reader_t *reader, const void *address, uint64_t bytes,
                                    int is_from_oldest) {
  const rt_broadcast_t *const block = (const rt_broadcast_t *)address;
  *reader = (rt_broadcast_reader_t){.block = NULL};
  if (bytes < sizeof *block) return RT_BROADCAST_SHORT;
  if (rt_load_acquire(&block->magic) != RT_BROADCAST_MAGIC) return RT_BROADCAST_MAGIC_;
  if (rt_load_relaxed(&block->version) != RT_BROADCAST_VERSION) return RT_BROADCAST_VERSION_;
  const uint64_t record_bytes = rt_load_relaxed(&block->record_bytes), places = rt_load_relaxed(&block->places);
  const uint64_t text_bytes = rt_load_relaxed(&block->text_bytes);
  const uint64_t total = rt_broadcast_bytes(record_bytes, places, text_bytes);
  if (rt_load_relaxed(&block->header_bytes) != sizeof *block || total == 0 || total != bytes) return RT_BROADCAST_SIZES;
  const uint64_t written = rt_load_acquire(&block->written);
  const uint64_t kept = written < places ? written : places - 1;
  *reader = (rt_broadcast_reader_t){.block = block,
                                    .text = (const char *)(block + 1),
                                    .records = (const char *)(block + 1) + text_bytes,
                                    .text_bytes = text_bytes,
                                    .record_bytes = record_bytes,
                                    .places = places,
                                    .position = written - (is_from_oldest ? kept : 0)};
  return RT_BROADCAST_OK;
}

/* Count the records that there are for this reader, at most those that the block keeps. Any thread; O(1). */
static inline uint64_t rt_broadcast_available(const rt_broadcast_reader_t *reader) {
  const uint64_t ahead = rt_load_acquire(&reader->block->written) - reader->position;
  if ((int64_t)ahead < 0) return 0; /* a loop's `written` only grows */
  return ahead < reader->places ? ahead : reader->places - 1;
}

/* Copy record number `number` word by word. */
static inline void rt_broadcast_copy(const rt_broadcast_reader_t *reader, uint64_t number, char *to) {
  const uint64_t bytes = reader->record_bytes;
  const uint64_t *const words =
      (const uint64_t *)(const void *)(reader->records + (number & (reader->places - 1)) * bytes);
  for (uint64_t i = 0; i < bytes / 8; i++) {
    const uint64_t word = rt_load_relaxed(&words[i]);
    memcpy(to + 8 * i, &word, 8);
  }
}

/* Copy up to `most` of the next records to `to`, and count those that were written over before they could be copied.
 * Returns the number of whole records; *first is the number of records in `to` before them, which must be ignored.
 * One reader, on one thread at a time; O(most), wait-free; no system call. */
static inline uint64_t rt_broadcast_read(rt_broadcast_reader_t *reader, char *to, uint64_t most, uint64_t *first) {
  const uint64_t written = rt_load_acquire(&reader->block->written), keep = reader->places - 1;
  uint64_t count = written - reader->position;
  *first = 0;
  if ((int64_t)count <= 0) return 0;
  if (count > keep) {
    reader->lost += count - keep;
    reader->position = written - keep;
    count = keep;
  }
  if (count > most) count = most;
  for (uint64_t i = 0; i < count; i++) {
    rt_broadcast_copy(reader, reader->position + i, to + i * reader->record_bytes);
  }
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  const uint64_t oldest = rt_load_relaxed(&reader->block->written) - keep; /* of those that are whole now */
  uint64_t torn = (int64_t)(oldest - reader->position) > 0 ? oldest - reader->position : 0;
  if (torn > count) torn = count;
  reader->position += count;
  reader->lost += torn;
  *first = torn;
  return count - torn;
}

/* Copy the newest record to `to`, without moving the reader's position. Tries up to `tries` times, because the writer
 * may go once around meanwhile. Any thread; O(tries). Returns 1, or 0 iff there is none or each try failed. */
static inline int rt_broadcast_latest(const rt_broadcast_reader_t *reader, char *to, int tries) {
  for (int i = 0; i < tries; i++) {
    const uint64_t written = rt_load_acquire(&reader->block->written);
    if (written == 0) return 0;
    rt_broadcast_copy(reader, written - 1, to);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (rt_load_relaxed(&reader->block->written) - written < reader->places - 1) return 1;
  }
  return 0;
}

#endif
