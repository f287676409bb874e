/* The telemetry of a running loop: one block of memory, written by the loop's thread once per cycle, read by any
 * thread.
 *
 * The block is the content of a sealed memfd (memfd_create(2)), so that no reader can shrink it under the writer.
 *   header   the loop's identity; written before its thread starts
 *   banks    two sets of counters and histograms. One is active; a reset clears the other and makes it the active one,
 *            which costs the loop one assignment. Plain cycles have sums of their own, which a reader has to add to
 *            those of the histograms, as rt_telemetry_snapshot does
 *   records  a ring of the last (release, start, end)
 *   text     the loop's requests and grants, as JSON; written before its thread runs
 *
 * Real-time contract: rt_telemetry_record_plain and rt_telemetry_record run in constant time, allocate nothing, never
 * wait and make no system call. rt_telemetry_snapshot is for readers: it retries while the writer is writing.
 */
#ifndef RTLOOP_TELEMETRY_H
#define RTLOOP_TELEMETRY_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "atomics.h"
#include "histogram.h"
#include "schedule.h"
#include "seqlock.h"

#if defined(__x86_64__) && !defined(RT_IS_RACE_CHECKED)
#define RT_PLAIN_VECTORS 1 /* of SSE2, which every x86-64 machine has */
#include <emmintrin.h>
#endif

#define RT_TELEMETRY_MAGIC UINT64_C(0x31304c45544c5452) /* "RTLTEL01" in memory order */
#define RT_TELEMETRY_VERSION 8u

typedef struct rt_record {
  int64_t release;
  int64_t start;
  int64_t end;
} rt_record_t;

/* Resource usage that the kernel has charged to the loop's thread (getrusage(2), RUSAGE_THREAD). */
typedef struct rt_usage {
  int64_t minor_faults;
  int64_t major_faults;
  int64_t voluntary_switches;
  int64_t involuntary_switches;
} rt_usage_t;

/* The kinds of violations that a guard counts (guard.h). */
enum { RT_GUARD_MINOR = 0, RT_GUARD_MAJOR = 1, RT_GUARD_SYSCALL = 2, RT_GUARD_ALLOCATION = 3, RT_GUARD_KINDS = 4 };

/* The steps of a settable clock whose sizes are kept. A power of two. */
#define RT_STEPS_KEPT 16

typedef struct rt_counters {
  uint64_t cycles; /* all that ran, warm-up included; set by rt_telemetry_snapshot, 0 in the block */
  uint64_t missed;
  uint64_t overruns;
  uint64_t late; /* cycles whose release had passed before the wait for it began */
  uint64_t stalls;
  uint64_t warmup;       /* cycles that are in no histogram */
  uint64_t first_record; /* rt_telemetry.written when the bank became active */
  int64_t shifted;       /* how far the grid has been moved, in ns */
  uint64_t clock_steps;  /* how often a settable clock was set */
  int64_t clock_gap;     /* by how much the grid on the clock as it was set is later than a period, summed up, in ns */
  int64_t step_sizes[RT_STEPS_KEPT];    /* of the last steps, number n at n % RT_STEPS_KEPT, in ns */
  uint64_t step_records[RT_STEPS_KEPT]; /* rt_telemetry.written at each of them */
  int64_t first_release;
  int64_t last_end;
  rt_usage_t usage_begin; /* when the warm-up was over */
  rt_usage_t usage_end;   /* when the loop ended; valid once rt_telemetry.ended is set */
  uint64_t guard[RT_GUARD_KINDS];
  uint64_t device_cycles; /* cycles of a device that the loop has named, and those that it has missed */
  uint64_t device_missed;
} rt_counters_t;

/* What the histograms are of. RT_WAITING: what a step has slept in rt_loop_sleep_until, of the cycles that did. */
enum { RT_EXECUTION = 0, RT_LATENCY = 1, RT_RESPONSE = 2, RT_INTERVAL = 3, RT_WAITING = 4, RT_HISTOGRAMS = 5 };
/* The first ones, of which every plain cycle has a value. */
#define RT_PLAIN_HISTOGRAMS 4

/* Sums over plain cycles, until rt_bank_fold adds them to the histograms: of the values of the first histograms, and of
 * their squares. */
typedef struct rt_plain {
  _Alignas(16) int64_t sums[RT_PLAIN_HISTOGRAMS];
  uint64_t squares[RT_PLAIN_HISTOGRAMS];
  int32_t upper[RT_PLAIN_HISTOGRAMS]; /* value v is within the limits iff upper - v > least, as 32-bit integers that */
  int32_t least[RT_PLAIN_HISTOGRAMS]; /* wrap around: none, if both are 0. Used by the writer alone, as are the next */
  int64_t cycles; /* for `left`: the squares of one more value than this, within the limits, add up to less than 2^64 */
  int64_t left;   /* plain cycles before the next rt_bank_fold */
} rt_plain_t;

typedef struct rt_bank {
  rt_counters_t counters;
  _Alignas(RT_CACHE_LINE) rt_plain_t plain;
  _Alignas(RT_CACHE_LINE) rt_histogram_t histograms[RT_HISTOGRAMS];
} rt_bank_t;

typedef struct rt_telemetry {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes; /* sizeof(rt_telemetry_t), the offset of the records */
  uint64_t total_bytes;
  uint64_t record_capacity; /* a power of two, or 0 */
  uint64_t record_keep;     /* how many of them a reader is shown */
  uint64_t text_capacity;   /* bytes behind the records */
  uint64_t text_bytes;      /* how many of them are written */
  int64_t pid;              /* in the loop's own pid namespace, as is tid */
  int64_t tid;
  int64_t period;
  int64_t phase;
  int32_t clock;
  int32_t policy;
  int32_t priority;
  int32_t cpu; /* the first CPU the thread may run on, -1 if it is not pinned */
  char name[64];

  /* Everything below is written by the loop's thread. */
  _Alignas(RT_CACHE_LINE) rt_seqlock_t lock;
  uint32_t active; /* index of the bank in use */
  uint32_t ended;
  uint32_t has_previous; /* whether previous_start belongs to the same run */
  uint32_t end_reason;   /* RT_END_...; valid once `ended` is set */
  uint32_t has_waited;   /* whether the present step has slept */
  uint32_t has_device;   /* whether device_last belongs to this run */
  uint32_t record_mask;  /* of the number of a record: its slot. There is one slot if the capacity is 0 */
  uint64_t written;      /* records ever written */
  int64_t previous_start;
  int64_t waited;       /* what the present step has slept, in ns */
  uint64_t device_last; /* number of the last cycle of the device */
  rt_bank_t banks[2];
} rt_telemetry_t;

/* Compute the slots of a ring of `capacity` records (a power of two, or 0): at least one, so that the writer need not
 * ask. O(1). */
static inline uint64_t rt_telemetry_slots(uint64_t capacity) { return capacity ? capacity : 1; }

/* Compute the bytes of a block that keeps `capacity` records and `text` bytes of text. O(1). */
static inline uint64_t rt_telemetry_bytes(uint64_t capacity, uint64_t text) {
  return sizeof(rt_telemetry_t) + rt_telemetry_slots(capacity) * sizeof(rt_record_t) + text;
}

/* Get the ring of records. O(1). */
static inline rt_record_t *rt_telemetry_records(const rt_telemetry_t *t) {
  return (rt_record_t *)((char *)t + sizeof(rt_telemetry_t)); /* NOLINT: readers only read */
}

/* Empty a bank that is not active. Any one thread; O(RT_HISTOGRAM_COUNTERS). A slow reader that is still copying the
 * bank finds out that it changed. */
static inline void rt_bank_clear(rt_bank_t *bank) {
  uint64_t *counter = (uint64_t *)&bank->counters;
  for (size_t i = 0; i < sizeof bank->counters / sizeof *counter; i++) rt_store_relaxed(&counter[i], UINT64_C(0));
  uint64_t *plain = (uint64_t *)&bank->plain;
  for (size_t i = 0; i < sizeof bank->plain / sizeof *plain; i++) rt_store_relaxed(&plain[i], UINT64_C(0));
  for (int i = 0; i < RT_HISTOGRAMS; i++) rt_histogram_clear(&bank->histograms[i]);
}

/* Get the text of a block with `capacity` records. O(1). */
static inline char *rt_telemetry_text(const rt_telemetry_t *t, uint64_t capacity) {
  return (char *)(rt_telemetry_records(t) + rt_telemetry_slots(capacity));
}

/* Prepare a zeroed block for its writer, before the loop's thread exists. O(RT_HISTOGRAM_COUNTERS). */
static inline void rt_telemetry_init(rt_telemetry_t *t, uint64_t capacity, uint64_t keep, uint64_t text) {
  t->header_bytes = sizeof(rt_telemetry_t);
  t->total_bytes = rt_telemetry_bytes(capacity, text);
  t->record_capacity = capacity;
  t->record_mask = (uint32_t)(rt_telemetry_slots(capacity) - 1);
  t->record_keep = keep;
  t->text_capacity = text;
  t->version = RT_TELEMETRY_VERSION;
  rt_bank_clear(&t->banks[0]);
  rt_bank_clear(&t->banks[1]);
  rt_store_release(&t->magic, RT_TELEMETRY_MAGIC);
}

/* Add what plain cycles have added up to the histograms, so that the sums begin anew. The loop's thread between the two
 * calls of the lock, or a reader that has copied the bank; O(1). */
static __attribute__((noinline, unused)) void rt_bank_fold(rt_bank_t *bank) {
  rt_plain_t *const p = &bank->plain;
  for (int i = 0; i < RT_PLAIN_HISTOGRAMS; i++) {
    rt_histogram_t *const h = &bank->histograms[i];
    rt_store_relaxed(&h->sum, (int64_t)((uint64_t)h->sum + (uint64_t)p->sums[i]));
    rt_add128_relaxed(&h->squares_low, &h->squares_high, p->squares[i]);
    rt_store_relaxed(&p->sums[i], (int64_t)0);
    rt_store_relaxed(&p->squares[i], UINT64_C(0));
  }
  rt_store_relaxed(&p->left, p->cycles);
}

/* Write a record. The loop's thread, between the two calls of the lock; O(1). */
static inline void rt_record_write(rt_record_t *slot, rt_record_t record) {
  rt_store_relaxed(&slot->release, record.release);
  rt_store_relaxed(&slot->start, record.start);
  rt_store_relaxed(&slot->end, record.end);
}

#ifdef RT_PLAIN_VECTORS
/* Move a 64-bit word to a vector, once: compilers would do it again for each use. */
static inline __m128i rt_vector_of(int64_t word) {
  __m128i vector = _mm_cvtsi64_si128(word);
  __asm__("" : "+x"(vector));
  return vector;
}

/* Store two 64-bit words with one instruction, which tears neither of them. */
static inline void rt_store_two(void *to, __m128i words) { *(volatile __m128i *)to = words; }

/* Widen the limits to the four values of a plain cycle. As rt_bank_record_plain. */
static __attribute__((noinline, cold, unused)) void rt_bank_widen(rt_bank_t *bank, __m128i all) {
  rt_plain_t *const p = &bank->plain;
  int32_t values[RT_PLAIN_HISTOGRAMS];
  uint64_t greatest = 1;
  _mm_storeu_si128((__m128i *)(void *)values, all);
  for (int i = 0; i < RT_PLAIN_HISTOGRAMS; i++) {
    rt_histogram_t *const h = &bank->histograms[i];
    if (values[i] < h->min) rt_store_relaxed(&h->min, values[i]);
    if (values[i] > h->max) rt_store_relaxed(&h->max, values[i]);
    const int64_t least = h->min > 0 ? h->min : 0;
    const int64_t most = h->max > INT32_MAX ? INT32_MAX : h->max;
    rt_store_relaxed(&p->upper[i], (int32_t)(INT32_MAX + (uint32_t)least));
    rt_store_relaxed(&p->least[i], (int32_t)(INT32_MAX - 1 - (most - least)));
    greatest |= (uint64_t)most;
  }
  const int bits = 64 - __builtin_clzll(greatest);
  const int64_t cycles = (int64_t)(UINT64_MAX >> 2 * bits);
  if (cycles == p->cycles) return;
  rt_store_relaxed(&p->cycles, cycles);
  rt_bank_fold(bank);
}

/* Count the values of a plain cycle: one instruction subtracts, squares or adds up two values, or compares or converts
 * four. The loop's thread, between the two calls of the lock; O(1). */
static inline __attribute__((always_inline)) void rt_bank_record_plain(rt_bank_t *bank, rt_record_t record,
                                                                       const int64_t *previous_start) {
  rt_plain_t *const p = &bank->plain;
  p->left -= 1;
  if (RT_UNLIKELY(p->left < 0)) rt_bank_fold(bank);

  rt_histogram_t *const h = bank->histograms;
  __m128i *const sums = (__m128i *)p->sums, *const squares = (__m128i *)p->squares;
  const __m128i release = rt_vector_of(record.release), start = rt_vector_of(record.start);
  const __m128i end_start = _mm_unpacklo_epi64(rt_vector_of(record.end), start);
  const __m128i start_release = _mm_unpacklo_epi64(start, release);
  const __m128i release_previous =
      _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(release), (const double *)(const void *)previous_start));

  const __m128i first = _mm_sub_epi64(end_start, start_release);     /* execution, latency */
  const __m128i second = _mm_sub_epi64(end_start, release_previous); /* response, interval */
  const __m128i all = _mm_castps_si128(_mm_shuffle_ps(_mm_castsi128_ps(first), _mm_castsi128_ps(second), 0x88));
  const __m128i distance = _mm_sub_epi32(*(const __m128i *)p->upper, all);
  const __m128i is_within = _mm_cmpgt_epi32(distance, *(const __m128i *)p->least);
  if (RT_UNLIKELY(_mm_movemask_ps(_mm_castsi128_ps(is_within)) != 15)) rt_bank_widen(bank, all);

  /* The numbers of the counters, as of rt_histogram_counter_within, in the upper halves of four 32-bit words. Single
   * precision has 24 bits, and may round a value that has more: never to another counter if the bit after the eight
   * upper ones, which alone count, is 0. */
  const __m128i upper_bits = _mm_andnot_si128(_mm_srli_epi32(all, RT_HISTOGRAM_SUB_BITS + 1), all);
  const __m128i at =
      _mm_subs_epu16(_mm_castps_si128(_mm_cvtepi32_ps(upper_bits)), _mm_set1_epi16((127 << RT_HISTOGRAM_SUB_BITS) - 1));
  rt_add_relaxed(&h[RT_EXECUTION].counts[_mm_extract_epi16(at, 1)], 1);
  rt_add_relaxed(&h[RT_LATENCY].counts[_mm_extract_epi16(at, 3)], 1);
  rt_add_relaxed(&h[RT_RESPONSE].counts[_mm_extract_epi16(at, 5)], 1);
  rt_add_relaxed(&h[RT_INTERVAL].counts[_mm_extract_epi16(at, 7)], 1);
  rt_store_two(&squares[0], _mm_add_epi64(squares[0], _mm_mul_epu32(first, first)));
  rt_store_two(&squares[1], _mm_add_epi64(squares[1], _mm_mul_epu32(second, second)));
  rt_store_two(&sums[0], _mm_add_epi64(sums[0], first));
  rt_store_two(&sums[1], _mm_add_epi64(sums[1], second));
}
#else
/* Count the values of a plain cycle. The loop's thread, between the two calls of the lock; O(1). */
static inline void rt_bank_record_plain(rt_bank_t *bank, rt_record_t record, const int64_t *previous_start) {
  rt_histogram_record(&bank->histograms[RT_LATENCY], record.start - record.release);
  rt_histogram_record(&bank->histograms[RT_EXECUTION], record.end - record.start);
  rt_histogram_record(&bank->histograms[RT_RESPONSE], record.end - record.release);
  rt_histogram_record(&bank->histograms[RT_INTERVAL], record.start - *previous_start);
}
#endif

/* Get the active bank, which the writer may use until it swaps the banks. The loop's thread; O(1). */
static inline rt_bank_t *rt_telemetry_active_bank(rt_telemetry_t *t) { return &t->banks[t->active]; }

/* Record a plain cycle: on time, on the grid, after another cycle of the same run; its four values are in 0..2^31 - 1.
 * `bank` is rt_telemetry_active_bank(t). The loop's thread; O(1). Always inlined, because the record would otherwise be
 * passed in memory: 17 instructions more. */
static inline __attribute__((always_inline)) void rt_telemetry_record_plain(rt_telemetry_t *t, rt_bank_t *bank,
                                                                            rt_record_t record) {
  rt_seqlock_write_begin(&t->lock);
  rt_store_relaxed(&bank->counters.last_end, record.end);
  rt_record_write(&rt_telemetry_records(t)[t->written & t->record_mask], record);
  rt_bank_record_plain(bank, record, &t->previous_start);
  t->previous_start = record.start;
  rt_add_relaxed(&t->written, 1);
  rt_seqlock_write_end(&t->lock);
}

/* Record any cycle, after the schedule has moved on from it. `overran` is what rt_schedule_next returned. The loop's
 * thread; O(1). */
static __attribute__((noinline, unused)) void rt_telemetry_record(rt_telemetry_t *t, const rt_schedule_t *schedule,
                                                                  rt_record_t record, int is_late, int overran,
                                                                  int is_warmup) {
  rt_bank_t *const bank = &t->banks[t->active];
  rt_counters_t *const c = &bank->counters;
  rt_seqlock_write_begin(&t->lock);
  rt_store_relaxed(&c->last_end, record.end);
  rt_add_relaxed(&c->late, (uint64_t)(is_late != 0));
  rt_add_relaxed(&c->shifted, schedule->moved);
  if (overran) {
    rt_add_relaxed(&c->overruns, 1);
    rt_add_relaxed(&c->missed, (uint64_t)schedule->missed);
    rt_add_relaxed(&c->stalls, (uint64_t)(schedule->stalled != 0));
  }
  if (is_warmup) {
    rt_add_relaxed(&c->warmup, 1);
  } else {
    rt_histogram_record(&bank->histograms[RT_LATENCY], record.start - record.release);
    rt_histogram_record(&bank->histograms[RT_EXECUTION], record.end - record.start - t->waited);
    if (t->has_waited) rt_histogram_record(&bank->histograms[RT_WAITING], t->waited);
    rt_histogram_record(&bank->histograms[RT_RESPONSE], record.end - record.release);
    if (t->has_previous) rt_histogram_record(&bank->histograms[RT_INTERVAL], record.start - t->previous_start);
    t->has_previous = 1;
    t->previous_start = record.start;
  }
  t->waited = 0;
  t->has_waited = 0;
  rt_record_write(&rt_telemetry_records(t)[t->written & t->record_mask], record);
  rt_add_relaxed(&t->written, 1);
  rt_seqlock_write_end(&t->lock);
}

/* Write the resource usage so far: at the end of the run if `end`, otherwise at the beginning of the measured part.
 * With `end` the run is marked as ended, so end_reason must have been stored. The loop's thread; O(1). */
static inline void rt_telemetry_write_usage(rt_telemetry_t *t, rt_usage_t usage, int end) {
  rt_counters_t *c = &t->banks[t->active].counters;
  rt_usage_t *to = end ? &c->usage_end : &c->usage_begin;
  rt_seqlock_write_begin(&t->lock);
  rt_store_relaxed(&to->minor_faults, usage.minor_faults);
  rt_store_relaxed(&to->major_faults, usage.major_faults);
  rt_store_relaxed(&to->voluntary_switches, usage.voluntary_switches);
  rt_store_relaxed(&to->involuntary_switches, usage.involuntary_switches);
  if (end) rt_store_relaxed(&t->ended, 1u);
  rt_seqlock_write_end(&t->lock);
}

/* Add the violations that the guards found in a step. The loop's thread; O(1). */
static inline void rt_telemetry_add_violations(rt_telemetry_t *t, const uint64_t *counts) {
  rt_counters_t *c = &t->banks[t->active].counters;
  rt_seqlock_write_begin(&t->lock);
  for (int i = 0; i < RT_GUARD_KINDS; i++) rt_add_relaxed(&c->guard[i], counts[i]);
  rt_seqlock_write_end(&t->lock);
}

/* Count a cycle of the device that paces the loop, by the device's own number of it. Numbers that were left out are
 * missed; one that is not above the last is a repetition, or a device that has started anew. The loop's thread, outside
 * of the two calls of the lock; O(1). Returns the cycles missed just before. */
static inline uint64_t rt_telemetry_count_device_cycle(rt_telemetry_t *t, uint64_t number) {
  rt_counters_t *c = &t->banks[t->active].counters;
  const uint64_t missed = t->has_device && number > t->device_last ? number - t->device_last - 1 : 0;
  const int is_repeated = t->has_device && number == t->device_last;
  rt_seqlock_write_begin(&t->lock);
  if (!is_repeated) rt_add_relaxed(&c->device_cycles, 1);
  rt_add_relaxed(&c->device_missed, missed);
  rt_seqlock_write_end(&t->lock);
  t->device_last = number;
  t->has_device = 1;
  return missed;
}

/* Write the text: before the loop's thread runs its cycles, and anew after a swap. Readers find no text while it is
 * being written. The control thread; O(bytes). Returns 0, or -E2BIG iff there is no room for it. */
static inline int rt_telemetry_write_text(rt_telemetry_t *t, const char *text, uint64_t bytes) {
  if (bytes > t->text_capacity) return -E2BIG;
  rt_store_relaxed(&t->text_bytes, 0u);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  memcpy(rt_telemetry_text(t, t->record_capacity), text, bytes);
  rt_store_release(&t->text_bytes, bytes);
  return 0;
}

/* Begin a run whose first release is known. The loop's thread; O(1). */
static inline void rt_telemetry_begin_run(rt_telemetry_t *t, int64_t first_release) {
  rt_counters_t *c = &t->banks[t->active].counters;
  rt_seqlock_write_begin(&t->lock);
  rt_store_relaxed(&c->first_release, first_release);
  rt_store_relaxed(&c->last_end, first_release);
  t->has_previous = 0;
  t->has_device = 0;
  rt_seqlock_write_end(&t->lock);
}

/* Count a step of the clock by `step` ns, after which the next release is `gap` ns later than planned. The stamps of
 * the counters are on the stepped clock from now on, so differences of them are durations; no interval ends with the
 * next cycle. The loop's thread between two cycles; O(1). */
static inline void rt_telemetry_step_clock(rt_telemetry_t *t, int64_t step, int64_t gap) {
  rt_counters_t *c = &t->banks[t->active].counters;
  rt_seqlock_write_begin(&t->lock);
  rt_store_relaxed(&c->step_sizes[c->clock_steps % RT_STEPS_KEPT], step);
  rt_store_relaxed(&c->step_records[c->clock_steps % RT_STEPS_KEPT], t->written);
  rt_add_relaxed(&c->clock_steps, 1);
  rt_add_relaxed(&c->clock_gap, gap);
  rt_add_relaxed(&c->first_release, step);
  rt_add_relaxed(&c->last_end, step);
  t->has_previous = 0;
  rt_seqlock_write_end(&t->lock);
}

/* Make the other bank the active one. The sender of the reset has cleared it. The loop's thread between two cycles;
 * O(1). */
static inline void rt_telemetry_swap_banks(rt_telemetry_t *t, int64_t next_release) {
  rt_counters_t *c = &t->banks[t->active ^ 1u].counters;
  rt_seqlock_write_begin(&t->lock);
  rt_store_relaxed(&c->first_record, t->written);
  rt_store_relaxed(&c->first_release, next_release);
  rt_store_relaxed(&c->last_end, next_release);
  t->has_previous = 0;
  rt_store_relaxed(&t->active, t->active ^ 1u);
  rt_seqlock_write_end(&t->lock);
}

/* Copy a histogram. Only the counters from the lowest to the highest value are copied, because few are in use. `to`
 * holds zeros or an earlier copy. A reader; O(counters in use). */
static inline void rt_histogram_copy(rt_histogram_t *to, const rt_histogram_t *from) {
  uint32_t i, end;
  if (rt_histogram_find_used(to, &i, &end)) memset(&to->counts[i], 0, (end - i) * sizeof to->counts[0]);
  to->min = rt_load_relaxed(&from->min);
  to->max = rt_load_relaxed(&from->max);
  to->sum = rt_load_relaxed(&from->sum);
  to->squares_low = rt_load_relaxed(&from->squares_low);
  to->squares_high = rt_load_relaxed(&from->squares_high);
  if (!rt_histogram_find_used(to, &i, &end)) return;
  for (; i < end; i++) to->counts[i] = rt_load_relaxed(&from->counts[i]);
}

/* Copy the active bank as one consistent whole. A reader, on any thread; at most `tries` attempts. Returns 0, or
 * -EAGAIN iff the writer interfered with every attempt. `to` must be made by rt_bank_clear before the first call; after
 * -EAGAIN its content is a mixture. */
static inline int rt_telemetry_snapshot(const rt_telemetry_t *t, rt_bank_t *to, uint64_t *written, int tries) {
  while (tries-- > 0) {
    uint32_t begin = rt_seqlock_read_begin(&t->lock);
    if (begin & 1u) {
      rt_cpu_relax();
      continue;
    }
    const rt_bank_t *bank = &t->banks[rt_load_relaxed(&t->active) & 1u];
    const uint64_t *source = (const uint64_t *)&bank->counters;
    uint64_t *target = (uint64_t *)&to->counters;
    for (size_t i = 0; i < sizeof(rt_counters_t) / sizeof(uint64_t); i++) target[i] = rt_load_relaxed(&source[i]);
    source = (const uint64_t *)&bank->plain;
    target = (uint64_t *)&to->plain;
    for (size_t i = 0; i < sizeof(rt_plain_t) / sizeof(uint64_t); i++) target[i] = rt_load_relaxed(&source[i]);
    for (int i = 0; i < RT_HISTOGRAMS; i++) rt_histogram_copy(&to->histograms[i], &bank->histograms[i]);
    *written = rt_load_relaxed(&t->written);
    if (rt_seqlock_read_valid(&t->lock, begin)) {
      to->counters.cycles = *written - to->counters.first_record; /* there is one record for each */
      rt_bank_fold(to);
      return 0;
    }
  }
  return -EAGAIN;
}

/* Copy the records numbered first..last-1 (as counted by rt_telemetry.written) while the writer continues; those that
 * it overwrites in the meantime are left out. A reader, on any thread; O(last - first). Returns the number of records
 * at to[0..], oldest first. `to` has room for last - first. `capacity` is the block's, as the reader has checked it. */
static inline uint64_t rt_telemetry_copy_records(const rt_telemetry_t *t, uint64_t capacity, rt_record_t *to,
                                                 uint64_t first, uint64_t last) {
  if (capacity == 0 || last <= first) return 0;
  const rt_record_t *ring = rt_telemetry_records(t);
  for (uint64_t i = first; i < last; i++) {
    const rt_record_t *slot = &ring[i & (capacity - 1)];
    to[i - first].release = rt_load_relaxed(&slot->release);
    to[i - first].start = rt_load_relaxed(&slot->start);
    to[i - first].end = rt_load_relaxed(&slot->end);
  }
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  const uint32_t begin = rt_seqlock_read_begin(&t->lock);
  const uint64_t written = rt_load_relaxed(&t->written);
  /* The writer may be in the middle of record number `written`, which overwrites number written - capacity. */
  const uint64_t begun = written + !rt_seqlock_read_valid(&t->lock, begin);
  const uint64_t intact = begun > capacity ? begun - capacity : 0;
  if (intact <= first) return last - first;
  if (intact >= last) return 0;
  memmove(to, to + (intact - first), (last - intact) * sizeof *to);
  return last - intact;
}

#endif
