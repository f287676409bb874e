/* Parameters of a step: values that any thread or process can change; all values of a set change before the same step.
 *
 *   | rt_parameters_block_t | three places for a set | the set in use | text |      shared memory
 *   | rt_parameters_t       | one descriptor for each parameter | a set and the last records |      private memory
 *
 * Publication. A set goes through a triple buffer. One word of the block, `state`, holds the whole of its state: the
 * number of the set that was published last, which place the loop owns ("front"), which place lies between the two
 * sides ("between"), and whether that one is new. The third place is the writers'. A writer fills it in and exchanges
 * it for the one between; the loop exchanges its own place for the one between if that is new. Both do so by one
 * compare-and-exchange of the word, so there is no moment at which a writer that is killed leaves anything to repair:
 * either the word names its set, or the place that it filled in is still the writers'. A side never touches a place of
 * the other, so a set is never seen half-written.
 *
 * Several writers take turns by a lock that the kernel releases when its holder dies: a POSIX record lock on the
 * block's file (fcntl(2)), and a mutex among the threads of one process. The lock is not in the block, so that nobody
 * can corrupt it, and the loop never takes it.
 *
 * Trust. Whoever may trace the loop's process may write to the block. The loop therefore takes nothing from it but the
 * word, whose two places are checked, and the bytes of a set, which are copied to private memory first and then checked
 * against the types and limits of the descriptors. A set that fails is dropped as a whole, and counted. Addresses,
 * offsets, sizes, types and limits are in private memory only. The compare-and-exchange is tried a fixed number of
 * times, so that a hostile writer cannot keep the loop in it either; the set then waits for the next cycle.
 *
 * Worst case of a cycle: without a new set three instructions. With one, a copy of the set, a comparison with two
 * limits for each number, a copy of each value that differs, and three copies of the set: for readers of this process,
 * for those of others, and for the record of the run. No system call, no allocation, no lock.
 */
#ifndef RTLOOP_PARAMETERS_H
#define RTLOOP_PARAMETERS_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"
#include "cycle.h"
#include "seqlock.h"

#define RT_PARAMETERS_MAGIC UINT64_C(0x736d617261507472) /* "rtParams" */
#define RT_PARAMETERS_VERSION 1u
#define RT_PARAMETERS_MAX 1024u
#define RT_PARAMETERS_MAX_BYTES (1u << 16) /* of a set */
#define RT_PARAMETERS_MAX_TEXT (1u << 20)  /* of a description */
#define RT_PARAMETERS_TRIES 4              /* of a compare-and-exchange by the loop */
#define RT_PARAMETERS_WRITER_TRIES 1000    /* by a writer; a loop causes one failure at most */

/* Fields of rt_parameters_block.state. */
#define RT_PARAMETERS_NEW UINT64_C(0x10)
#define RT_PARAMETERS_BETWEEN(state) ((uint32_t)(state) & 3u)
#define RT_PARAMETERS_FRONT(state) ((uint32_t)(state) >> 2 & 3u)
#define RT_PARAMETERS_NUMBER(state) ((state) >> 8)
#define RT_PARAMETERS_STATE(number, front, between) ((uint64_t)(number) << 8 | (uint64_t)(front) << 2 | (between))

/* Types of a number. */
enum {
  RT_PARAMETER_BOOL,
  RT_PARAMETER_I1,
  RT_PARAMETER_I2,
  RT_PARAMETER_I4,
  RT_PARAMETER_I8,
  RT_PARAMETER_U1,
  RT_PARAMETER_U2,
  RT_PARAMETER_U4,
  RT_PARAMETER_U8,
  RT_PARAMETER_F4,
  RT_PARAMETER_F8,
};

typedef union rt_parameter_limit {
  double real;
  int64_t whole;
  uint64_t natural; /* of unsigned types */
} rt_parameter_limit_t;

/* The descriptor of one parameter: a number, or an array of numbers with common limits. */
typedef struct rt_parameter {
  void *address;
  uint32_t offset; /* in a set, a multiple of the size of a number */
  uint32_t bytes;
  uint32_t count; /* of numbers */
  uint32_t type;  /* RT_PARAMETER_... */
  rt_parameter_limit_t low, high;
} rt_parameter_t;

/* The writer of a set, by its own account, which nothing verifies. */
typedef struct rt_parameters_writer {
  int64_t pid;
  int64_t tid;
  int64_t time; /* ns since 1970 */
  char host[64];
  char program[40];
} rt_parameters_writer_t;

/* The head of the block. Behind it are the three places, each a writer and a set; the set in use; and the text. */
typedef struct rt_parameters_block {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;
  uint64_t total_bytes;
  uint32_t set_bytes; /* a multiple of 8 */
  uint32_t text_bytes;
  int64_t pid; /* of the loop, in its own pid namespace */

  _Alignas(RT_CACHE_LINE) uint64_t state; /* written by the writers and by the loop */

  /* Written by the loop, for readers. */
  _Alignas(RT_CACHE_LINE) rt_seqlock_t lock;
  uint32_t has_ended;
  uint64_t number; /* of the set in use */
  uint64_t cycle;  /* the first one that used it */
  uint64_t refused;
} rt_parameters_block_t;

/* One applied set in the loop's record of a run; the values follow. */
typedef struct rt_parameters_record {
  uint64_t number;
  uint64_t cycle;
  rt_parameters_writer_t writer;
} rt_parameters_record_t;

/* A mapped block, with sizes that its user has checked: what readers and writers of any process need. */
typedef struct rt_parameters_view {
  rt_parameters_block_t *block;
  uint64_t set_bytes;
  uint64_t text_bytes;
} rt_parameters_view_t;

/* The loop's side. Only the loop's thread uses it during a run, apart from what is marked. */
typedef struct rt_parameters {
  rt_parameters_view_t view;
  const rt_parameter_t *items;
  uint64_t count;
  char *staged; /* a copy of a place: the writer and the set */
  char *records;
  uint64_t capacity; /* of the ring of records; a power of two */
  uint64_t written;  /* records ever written; read by any thread */

  /* The set in use, read by any thread under the lock. */
  rt_seqlock_t lock;
  uint64_t number;
  uint64_t cycle;
  uint64_t refused;
  uint64_t *used;
} rt_parameters_t;

/* Compute the bytes of a place: a writer and a set. O(1). */
static inline uint64_t rt_parameters_place_bytes(uint64_t set_bytes) {
  return (sizeof(rt_parameters_writer_t) + set_bytes + RT_CACHE_LINE - 1) & -(uint64_t)RT_CACHE_LINE;
}

/* Compute the bytes of a block. O(1). */
static inline uint64_t rt_parameters_bytes(uint64_t set_bytes, uint64_t text_bytes) {
  return sizeof(rt_parameters_block_t) + 3 * rt_parameters_place_bytes(set_bytes) + set_bytes + text_bytes;
}

/* Get a place of the block; `place` is 0 to 2. O(1). */
static inline char *rt_parameters_place(const rt_parameters_view_t *v, uint32_t place) {
  return (char *)v->block + sizeof(rt_parameters_block_t) + place * rt_parameters_place_bytes(v->set_bytes);
}

/* Get the set in use, as the loop shows it to other processes. O(1). */
static inline uint64_t *rt_parameters_shown(const rt_parameters_view_t *v) {
  return (uint64_t *)(void *)rt_parameters_place(v, 3);
}

/* Get the text of the block. O(1). */
static inline char *rt_parameters_text(const rt_parameters_view_t *v) {
  return (char *)rt_parameters_shown(v) + v->set_bytes;
}

/* Test whether two places of a state word can be those of a triple buffer. O(1). */
static inline int rt_parameters_is_state(uint64_t state) {
  return RT_PARAMETERS_BETWEEN(state) < 3 && RT_PARAMETERS_FRONT(state) < 3 &&
         RT_PARAMETERS_BETWEEN(state) != RT_PARAMETERS_FRONT(state);
}

/* Compute the bytes of a record, and get a record by its number. O(1). */
static inline uint64_t rt_parameters_record_bytes(uint64_t set_bytes) {
  return sizeof(rt_parameters_record_t) + set_bytes;
}
static inline char *rt_parameters_record(const rt_parameters_t *p, uint64_t number) {
  return p->records + (number & (p->capacity - 1)) * rt_parameters_record_bytes(p->view.set_bytes);
}

/* Copy 64-bit words that other threads read under a seqlock. One writer; O(words). */
static inline void rt_parameters_store_words(uint64_t *to, const char *from, uint64_t bytes) {
  for (uint64_t i = 0; i < bytes / 8; i++) {
    uint64_t word;
    memcpy(&word, from + 8 * i, 8);
    rt_store_relaxed(&to[i], word);
  }
}

/* Copy words that a writer changes under a seqlock. Any thread; O(words). */
static inline void rt_parameters_load_words(char *to, const uint64_t *from, uint64_t bytes) {
  for (uint64_t i = 0; i < bytes / 8; i++) {
    const uint64_t word = rt_load_relaxed(&from[i]);
    memcpy(to + 8 * i, &word, 8);
  }
}

/* Note a set as the one in use from a cycle on, for all readers and in the record. The loop's thread; O(bytes). */
static inline void rt_parameters_note(rt_parameters_t *p, uint64_t number, uint64_t cycle, const char *place) {
  const char *const values = place + sizeof(rt_parameters_writer_t);
  rt_parameters_block_t *const block = p->view.block;
  rt_parameters_record_t record = {.number = number, .cycle = cycle};
  memcpy(&record.writer, place, sizeof record.writer);
  rt_seqlock_write_begin(&p->lock);
  rt_store_relaxed(&p->number, number);
  rt_store_relaxed(&p->cycle, cycle);
  rt_parameters_store_words(p->used, values, p->view.set_bytes);
  rt_seqlock_write_end(&p->lock);
  rt_seqlock_write_begin(&block->lock);
  rt_store_relaxed(&block->number, number);
  rt_store_relaxed(&block->cycle, cycle);
  rt_parameters_store_words(rt_parameters_shown(&p->view), values, p->view.set_bytes);
  rt_seqlock_write_end(&block->lock);
  char *const to = rt_parameters_record(p, p->written);
  rt_parameters_store_words((uint64_t *)(void *)to, (const char *)&record, sizeof record);
  rt_parameters_store_words((uint64_t *)(void *)(to + sizeof record), values, p->view.set_bytes);
  rt_store_release(&p->written, p->written + 1);
}

#define RT_PARAMETERS_CHECK(type, kind, field)                                                                         \
  for (uint32_t i = 0; i < item->count; i++) {                                                                         \
    type value;                                                                                                        \
    memcpy(&value, at + i * sizeof value, sizeof value);                                                               \
    if (!((kind)value >= item->low.field && (kind)value <= item->high.field)) return 0;                                \
  }                                                                                                                    \
  return 1

/* Test whether the numbers of one parameter are within its limits. A number that is not finite fails, because limits
 * are finite. Any thread; O(numbers). */
static inline int rt_parameter_is_within(const rt_parameter_t *item, const char *at) {
  switch (item->type) {
  case RT_PARAMETER_BOOL: /* a bool that is neither 0 nor 1 is undefined behaviour */
  case RT_PARAMETER_U1:
    RT_PARAMETERS_CHECK(uint8_t, uint64_t, natural);
  case RT_PARAMETER_U2:
    RT_PARAMETERS_CHECK(uint16_t, uint64_t, natural);
  case RT_PARAMETER_U4:
    RT_PARAMETERS_CHECK(uint32_t, uint64_t, natural);
  case RT_PARAMETER_U8:
    RT_PARAMETERS_CHECK(uint64_t, uint64_t, natural);
  case RT_PARAMETER_I1:
    RT_PARAMETERS_CHECK(int8_t, int64_t, whole);
  case RT_PARAMETER_I2:
    RT_PARAMETERS_CHECK(int16_t, int64_t, whole);
  case RT_PARAMETER_I4:
    RT_PARAMETERS_CHECK(int32_t, int64_t, whole);
  case RT_PARAMETER_I8:
    RT_PARAMETERS_CHECK(int64_t, int64_t, whole);
  case RT_PARAMETER_F4:
    RT_PARAMETERS_CHECK(float, double, real);
  case RT_PARAMETER_F8:
    RT_PARAMETERS_CHECK(double, double, real);
  default:
    return 0;
  }
}

/* Test whether all values of a set are within their limits. Any thread; O(numbers). */
static inline int rt_parameters_is_sound(const rt_parameter_t *items, uint64_t count, const char *values) {
  for (uint64_t i = 0; i < count; i++) {
    if (!rt_parameter_is_within(&items[i], values + items[i].offset)) return 0;
  }
  return 1;
}

/* Copy a value to the field of the step. The loop's thread; O(bytes). */
static inline void rt_parameter_assign(const rt_parameter_t *item, const char *from) {
  switch (item->bytes) { /* with a constant size, one load and one store */
  case 8:
    memcpy(item->address, from, 8);
    break;
  case 4:
    memcpy(item->address, from, 4);
    break;
  case 1:
    memcpy(item->address, from, 1);
    break;
  default:
    memcpy(item->address, from, item->bytes);
  }
}

/* Copy the values that differ from those in use to the fields. A field that keeps its value is left alone, so that a
 * step that resets one by itself is not overruled by a change of another. The loop's thread; O(bytes). */
static inline void rt_parameters_assign(const rt_parameters_t *p, const char *values) {
  for (uint64_t i = 0; i < p->count; i++) {
    const rt_parameter_t *const item = &p->items[i];
    const char *const value = values + item->offset;
    if (memcmp((const char *)p->used + item->offset, value, item->bytes) != 0) rt_parameter_assign(item, value);
  }
}

/* Prepare a block with the set in `place`, a writer and sound values, as set number 0 from cycle 0 on. Sets no field.
 * The caller has set the sizes and pointers of `p`, and zeroed the block. Before the loop's thread uses it;
 * O(bytes). */
static inline void rt_parameters_prepare(rt_parameters_t *p, const char *place, int64_t pid) {
  rt_parameters_block_t *const block = p->view.block;
  const uint64_t place_bytes = sizeof(rt_parameters_writer_t) + p->view.set_bytes;
  block->version = RT_PARAMETERS_VERSION;
  block->header_bytes = sizeof *block;
  block->set_bytes = (uint32_t)p->view.set_bytes;
  block->text_bytes = (uint32_t)p->view.text_bytes;
  block->total_bytes = rt_parameters_bytes(p->view.set_bytes, p->view.text_bytes);
  block->pid = pid;
  for (uint32_t i = 0; i < 3; i++) memcpy(rt_parameters_place(&p->view, i), place, place_bytes);
  block->state = RT_PARAMETERS_STATE(0, 2, 0);
  p->written = p->refused = 0;
  rt_parameters_note(p, 0, 0, place);
  rt_store_release(&block->magic, RT_PARAMETERS_MAGIC);
}

/* Set all fields to the set in use. Nobody else uses the fields; O(bytes). */
static inline void rt_parameters_assign_all(const rt_parameters_t *p) {
  for (uint64_t i = 0; i < p->count; i++) {
    rt_parameter_assign(&p->items[i], (const char *)p->used + p->items[i].offset);
  }
}

/* Begin a run: rt_parameters_prepare, and set all fields. Before the loop's thread exists; O(bytes). */
static inline void rt_parameters_begin(rt_parameters_t *p, const char *place, int64_t pid) {
  rt_parameters_prepare(p, place, pid);
  rt_parameters_assign_all(p);
}

/* Begin with a prepared set in the middle of a run: set all fields, and note the cycle in the record. The loop's thread
 * between two cycles; O(bytes); no system call. */
static inline void rt_parameters_begin_at(rt_parameters_t *p, uint64_t cycle) {
  rt_parameters_record_t *const record = (rt_parameters_record_t *)(void *)rt_parameters_record(p, 0);
  rt_parameters_assign_all(p);
  rt_seqlock_write_begin(&p->lock);
  rt_store_relaxed(&p->cycle, cycle);
  rt_seqlock_write_end(&p->lock);
  rt_seqlock_write_begin(&p->view.block->lock);
  rt_store_relaxed(&p->view.block->cycle, cycle);
  rt_seqlock_write_end(&p->view.block->lock);
  rt_store_relaxed(&record->cycle, cycle);
}

/* Go on with the set in use after another step has run, whose parameters may be in the same fields: set all fields,
 * and note the cycle in the record. The loop's thread between two cycles; O(bytes); no system call. */
static inline void rt_parameters_resume_at(rt_parameters_t *p, uint64_t cycle) {
  const char *const last = rt_parameters_record(p, p->written - 1);
  rt_parameters_assign_all(p);
  memcpy(p->staged, last + offsetof(rt_parameters_record_t, writer), sizeof(rt_parameters_writer_t));
  memcpy(p->staged + sizeof(rt_parameters_writer_t), p->used, p->view.set_bytes);
  rt_parameters_note(p, p->number, cycle, p->staged);
}

/* Count a set that was refused. The loop's thread; O(1). */
static inline void rt_parameters_refuse(rt_parameters_t *p) {
  rt_store_relaxed(&p->refused, p->refused + 1);
  rt_store_relaxed(&p->view.block->refused, p->refused);
}

/* Take the new set over, if it is sound. Returns 1, or 0 iff there is none, it is refused, or the writers have changed
 * the word at every try. The loop's thread between two steps; O(bytes); no lock, no system call. */
static __attribute__((noinline, unused)) int rt_parameters_take(rt_parameters_t *p, const rt_cycle_t *cycle) {
  uint64_t *const word = &p->view.block->state;
  uint64_t state = rt_load_relaxed(word), next;
  int tries = RT_PARAMETERS_TRIES;
  do {
    if (tries-- == 0 || !(state & RT_PARAMETERS_NEW)) return 0;
    const int is_state = rt_parameters_is_state(state);
    next = is_state ? RT_PARAMETERS_STATE(RT_PARAMETERS_NUMBER(state), RT_PARAMETERS_BETWEEN(state),
                                          RT_PARAMETERS_FRONT(state))
                    : RT_PARAMETERS_STATE(RT_PARAMETERS_NUMBER(state), 2, 0);
  } while (!rt_compare_exchange_acq_rel(word, &state, next));
  const uint64_t place_bytes = sizeof(rt_parameters_writer_t) + p->view.set_bytes;
  memcpy(p->staged, rt_parameters_place(&p->view, RT_PARAMETERS_FRONT(next)), place_bytes);
  const char *const values = p->staged + sizeof(rt_parameters_writer_t);
  if (!rt_parameters_is_state(state) || !rt_parameters_is_sound(p->items, p->count, values)) {
    rt_parameters_refuse(p);
    return 0;
  }
  rt_parameters_assign(p, values);
  rt_parameters_note(p, RT_PARAMETERS_NUMBER(state), cycle->index, p->staged);
  return 1;
}

/* Test whether there may be a new set; `state` is the word of the block. The loop's thread; O(1). */
static inline int rt_parameters_is_new(const uint64_t *state) { return rt_has_bits_relaxed(state, RT_PARAMETERS_NEW); }

/* Make a new set the one in use, if there is one. The loop's thread before a step; see rt_parameters_take. */
static inline void rt_parameters_apply(rt_parameters_t *p, const rt_cycle_t *cycle) {
  if (RT_UNLIKELY(rt_parameters_is_new(&p->view.block->state))) (void)rt_parameters_take(p, cycle);
}

/* Publish a set, a writer and its values. The holder of the writers' lock, in any process; O(bytes), no system call.
 * Returns 0, or -EAGAIN iff somebody keeps changing the word without the lock. */
static inline int rt_parameters_publish(const rt_parameters_view_t *v, const char *place) {
  uint64_t *const word = &v->block->state;
  uint64_t state = rt_load_acquire(word), next;
  int tries = RT_PARAMETERS_WRITER_TRIES;
  if (!rt_parameters_is_state(state)) state = RT_PARAMETERS_STATE(RT_PARAMETERS_NUMBER(state), 2, 0);
  const uint32_t back = 3 - RT_PARAMETERS_FRONT(state) - RT_PARAMETERS_BETWEEN(state); /* the loop does not change it */
  __atomic_thread_fence(__ATOMIC_RELEASE); /* whoever reads a part of this set also sees that the place was given up */
  rt_parameters_store_words((uint64_t *)(void *)rt_parameters_place(v, back), place,
                            sizeof(rt_parameters_writer_t) + v->set_bytes);
  do {
    if (tries-- == 0) return -EAGAIN;
    const uint32_t front = rt_parameters_is_state(state) ? RT_PARAMETERS_FRONT(state) : 2;
    next = RT_PARAMETERS_STATE(RT_PARAMETERS_NUMBER(state) + 1, front, back) | RT_PARAMETERS_NEW;
  } while (!rt_compare_exchange_acq_rel(word, &state, next));
  return 0;
}

/* Copy the set that was published last, with its writer. Returns 0, or -EAGAIN iff writers interfered with every try.
 * Any thread of any process; O(bytes) a try. The block is not trusted: the values may be invalid. */
static inline int rt_parameters_read_asked(const rt_parameters_view_t *v, char *place, uint64_t *number, int tries) {
  while (tries-- > 0) {
    const uint64_t state = rt_load_acquire(&v->block->state);
    if (!rt_parameters_is_state(state)) continue;
    const uint32_t from = state & RT_PARAMETERS_NEW ? RT_PARAMETERS_BETWEEN(state) : RT_PARAMETERS_FRONT(state);
    rt_parameters_load_words(place, (const uint64_t *)(const void *)rt_parameters_place(v, from),
                             sizeof(rt_parameters_writer_t) + v->set_bytes);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    /* The places that hold it are not the writers' until the next set is published. */
    if (RT_PARAMETERS_NUMBER(rt_load_relaxed(&v->block->state)) == RT_PARAMETERS_NUMBER(state)) {
      *number = RT_PARAMETERS_NUMBER(state);
      return 0;
    }
    rt_cpu_relax();
  }
  return -EAGAIN;
}

/* Copy the set in use and its number, the first cycle that used it, and the count of refused sets: as the loop shows
 * them in the block. Returns 0 or -EAGAIN. Any thread of any process; O(bytes) a try. */
static inline int rt_parameters_read_shown(const rt_parameters_view_t *v, char *values, uint64_t about[3], int tries) {
  const rt_parameters_block_t *const block = v->block;
  while (tries-- > 0) {
    const uint32_t begin = rt_seqlock_read_begin(&block->lock);
    rt_parameters_load_words(values, rt_parameters_shown(v), v->set_bytes);
    about[0] = rt_load_relaxed(&block->number);
    about[1] = rt_load_relaxed(&block->cycle);
    about[2] = rt_load_relaxed(&block->refused);
    if (rt_seqlock_read_valid(&block->lock, begin)) return 0;
    rt_cpu_relax();
  }
  return -EAGAIN;
}

/* As rt_parameters_read_shown, from the loop's private memory. Any thread of the loop's process. */
static inline int rt_parameters_read_used(const rt_parameters_t *p, char *values, uint64_t about[3], int tries) {
  while (tries-- > 0) {
    const uint32_t begin = rt_seqlock_read_begin(&p->lock);
    rt_parameters_load_words(values, p->used, p->view.set_bytes);
    about[0] = rt_load_relaxed(&p->number);
    about[1] = rt_load_relaxed(&p->cycle);
    about[2] = rt_load_relaxed(&p->refused);
    if (rt_seqlock_read_valid(&p->lock, begin)) return 0;
    rt_cpu_relax();
  }
  return -EAGAIN;
}

/* Copy the records from number `first` on to `to`, which has room for `most`, while the loop goes on. Returns their
 * count; *from is the number of the first one that was not overwritten meanwhile. Any thread of the loop's process;
 * O(most). */
static inline uint64_t rt_parameters_copy_records(const rt_parameters_t *p, uint64_t first, char *to, uint64_t most,
                                                  uint64_t *from) {
  const uint64_t bytes = rt_parameters_record_bytes(p->view.set_bytes), written = rt_load_acquire(&p->written);
  const uint64_t oldest = written > p->capacity ? written - p->capacity : 0;
  if (first < oldest) first = oldest;
  const uint64_t last = first + most < written ? first + most : written;
  *from = first;
  if (last <= first) return 0;
  for (uint64_t i = first; i < last; i++) {
    rt_parameters_load_words(to + (i - first) * bytes, (const uint64_t *)(const void *)rt_parameters_record(p, i),
                             bytes);
  }
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  const uint64_t now = rt_load_relaxed(&p->written);
  /* The loop may be in the middle of record number `now`, which overwrites number now - capacity. */
  const uint64_t intact = now + 1 > p->capacity ? now + 1 - p->capacity : 0;
  if (intact <= first) return last - first;
  *from = intact;
  if (intact >= last) return 0;
  memmove(to, to + (intact - first) * bytes, (last - intact) * bytes);
  return last - intact;
}

/* Mark the run as over, for readers. After the loop's thread has ended; O(1). */
static inline void rt_parameters_end(rt_parameters_block_t *block) { rt_store_release(&block->has_ended, 1u); }

/* Check a mapped block of another process, of which `bytes` are mapped. Returns 0 and fills in the view; fails with
 * -EPROTO iff it does not begin like one or its sizes are impossible, and with -ENOTSUP iff it is of another version.
 * Any thread; O(1). */
static inline int rt_parameters_open(rt_parameters_view_t *v, void *address, uint64_t bytes) {
  rt_parameters_block_t *const block = address;
  if (bytes < sizeof *block || rt_load_acquire(&block->magic) != RT_PARAMETERS_MAGIC) return -EPROTO;
  if (block->version != RT_PARAMETERS_VERSION) return -ENOTSUP;
  const uint64_t set_bytes = rt_load_relaxed(&block->set_bytes), text_bytes = rt_load_relaxed(&block->text_bytes);
  if (block->header_bytes != sizeof *block || set_bytes > RT_PARAMETERS_MAX_BYTES || set_bytes % 8 ||
      text_bytes > RT_PARAMETERS_MAX_TEXT || rt_parameters_bytes(set_bytes, text_bytes) != bytes) {
    return -EPROTO;
  }
  *v = (rt_parameters_view_t){.block = block, .set_bytes = set_bytes, .text_bytes = text_bytes};
  return 0;
}

#endif
