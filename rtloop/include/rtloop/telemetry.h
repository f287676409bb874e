/* The telemetry of a running loop: one block of memory, written by the loop's thread once per cycle, read by any
 * thread.
 *
 * The block is the content of a sealed memfd (memfd_create(2)), so that no reader can shrink it under the writer.
 *   header   the loop's identity; written before its thread starts
 *   banks    two sets of counters and histograms. One is active; a reset clears the other and makes it the active one,
 *            which costs the loop one assignment
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

#define RT_TELEMETRY_MAGIC UINT64_C(0x31304c45544c5452) /* "RTLTEL01" in memory order */
#define RT_TELEMETRY_VERSION 6u

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
  uint64_t cycles; /* all that ran, warm-up included */
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
enum { RT_LATENCY = 0, RT_EXECUTION = 1, RT_RESPONSE = 2, RT_INTERVAL = 3, RT_WAITING = 4, RT_HISTOGRAMS = 5 };

typedef struct rt_bank {
  rt_counters_t counters;
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

/* Empty a bank that is not active. Any one thread; O(RT_HISTOGRAM_BINS). A slow reader that is still copying the bank
 * finds out that it changed. */
static inline void rt_bank_clear(rt_bank_t *bank) {
  uint64_t *counter = (uint64_t *)&bank->counters;
  for (size_t i = 0; i < sizeof bank->counters / sizeof *counter; i++) rt_store_relaxed(&counter[i], UINT64_C(0));
  for (int i = 0; i < RT_HISTOGRAMS; i++) rt_histogram_clear(&bank->histograms[i]);
}

/* Get the text of a block with `capacity` records. O(1). */
static inline char *rt_telemetry_text(const rt_telemetry_t *t, uint64_t capacity) {
  return (char *)(rt_telemetry_records(t) + rt_telemetry_slots(capacity));
}

/* Prepare a zeroed block for its writer, before the loop's thread exists. O(RT_HISTOGRAM_BINS). */
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

/* Count a value that is not within the limits of its histogram. The loop's thread; O(1). */
static __attribute__((noinline, unused)) void rt_bank_extend(rt_bank_t *bank, int which, int64_t value) {
  rt_histogram_extend(&bank->histograms[which], value);
}

/* Count a value in one histogram of a bank, as rt_histogram_record does. It is written out here so that the compiler
 * does not keep the address of each histogram in a register. The loop's thread; O(1). */
static inline void rt_bank_record(rt_bank_t *bank, int which, int64_t value) {
  if (RT_LIKELY(rt_histogram_is_within(&bank->histograms[which], value))) {
    rt_add_relaxed(&bank->histograms[which].counts[rt_histogram_bin_within(value)], 1);
    rt_add_relaxed(&bank->histograms[which].sum, value);
    rt_add128_relaxed(&bank->histograms[which].squares_low, &bank->histograms[which].squares_high,
                      (uint64_t)value * (uint64_t)value);
  } else {
    rt_bank_extend(bank, which, value);
  }
}

/* Write a record into the ring of records. The loop's thread, between the two calls of the lock; O(1). */
static inline void rt_telemetry_write_record(rt_telemetry_t *t, rt_record_t record) {
  rt_record_t *const slot = &rt_telemetry_records(t)[t->written & t->record_mask];
  rt_store_relaxed(&slot->release, record.release);
  rt_store_relaxed(&slot->start, record.start);
  rt_store_relaxed(&slot->end, record.end);
  rt_add_relaxed(&t->written, 1);
}

/* Get the active bank, which the writer may use until it swaps the banks. The loop's thread; O(1). */
static inline rt_bank_t *rt_telemetry_active_bank(rt_telemetry_t *t) { return &t->banks[t->active]; }

/* Record a plain cycle: on time, on the grid, after another cycle of the same run. `bank` is
 * rt_telemetry_active_bank(t). The loop's thread; O(1). Always inlined, because the record would otherwise be passed in
 * memory: 17 instructions more. */
static inline __attribute__((always_inline)) void rt_telemetry_record_plain(rt_telemetry_t *t, rt_bank_t *bank,
                                                                            rt_record_t record) {
  rt_seqlock_write_begin(&t->lock);
  rt_add_relaxed(&bank->counters.cycles, 1);
  rt_store_relaxed(&bank->counters.last_end, record.end);
  rt_bank_record(bank, RT_LATENCY, record.start - record.release);
  rt_bank_record(bank, RT_EXECUTION, record.end - record.start);
  rt_bank_record(bank, RT_RESPONSE, record.end - record.release);
  rt_bank_record(bank, RT_INTERVAL, record.start - t->previous_start);
  t->previous_start = record.start;
  rt_telemetry_write_record(t, record);
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
  rt_add_relaxed(&c->cycles, 1);
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
    rt_bank_record(bank, RT_LATENCY, record.start - record.release);
    rt_bank_record(bank, RT_EXECUTION, record.end - record.start - t->waited);
    if (t->has_waited) rt_bank_record(bank, RT_WAITING, t->waited);
    rt_bank_record(bank, RT_RESPONSE, record.end - record.release);
    if (t->has_previous) rt_bank_record(bank, RT_INTERVAL, record.start - t->previous_start);
    t->has_previous = 1;
    t->previous_start = record.start;
  }
  t->waited = 0;
  t->has_waited = 0;
  rt_telemetry_write_record(t, record);
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

/* Copy a histogram. Only the bins from the lowest to the highest value are copied, because few bins are in use. `to`
 * holds zeros or an earlier copy. A reader; O(bins in use). */
static inline void rt_histogram_copy(rt_histogram_t *to, const rt_histogram_t *from) {
  if (to->min <= to->max) {
    uint32_t first = rt_histogram_bin(to->min);
    memset(&to->counts[first], 0, (rt_histogram_bin(to->max) + 1 - first) * sizeof to->counts[0]);
  }
  to->min = rt_load_relaxed(&from->min);
  to->max = rt_load_relaxed(&from->max);
  to->sum = rt_load_relaxed(&from->sum);
  to->squares_low = rt_load_relaxed(&from->squares_low);
  to->squares_high = rt_load_relaxed(&from->squares_high);
  if (to->min > to->max) return;
  uint32_t last = rt_histogram_bin(to->max);
  for (uint32_t i = rt_histogram_bin(to->min); i <= last; i++) to->counts[i] = rt_load_relaxed(&from->counts[i]);
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
    for (int i = 0; i < RT_HISTOGRAMS; i++) rt_histogram_copy(&to->histograms[i], &bank->histograms[i]);
    *written = rt_load_relaxed(&t->written);
    if (rt_seqlock_read_valid(&t->lock, begin)) return 0;
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
