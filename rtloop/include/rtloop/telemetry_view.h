/* Reading an untrusted telemetry block: it comes from another process or a file, and may be damaged or malicious.
 *
 * The block may change at any time. Therefore the fields that determine sizes and indices are copied once, checked, and
 * used from the copy. All other fields are only values. The mapping must be of a file that cannot shrink.
 *
 * For readers, on any thread except the loop's. No function waits, and every function ends, whatever is in the block.
 */
#ifndef RTLOOP_TELEMETRY_VIEW_H
#define RTLOOP_TELEMETRY_VIEW_H

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "telemetry.h"

#define RT_VIEW_MAX_RECORDS (UINT64_C(1) << 27)
#define RT_VIEW_MAX_TEXT (UINT64_C(1) << 20)

/* The result of checking a block. */
enum {
  RT_VIEW_OK = 0,
  RT_VIEW_SHORT = 1,   /* the file is shorter than a header */
  RT_VIEW_MAGIC = 2,   /* not a block, or not ready yet */
  RT_VIEW_VERSION = 3, /* of another version of rtloop */
  RT_VIEW_HEADER = 4,  /* a header of another size */
  RT_VIEW_RECORDS = 5, /* an impossible ring of records */
  RT_VIEW_TEXT = 6,    /* an impossible text */
  RT_VIEW_TOTAL = 7,   /* parts that do not add up to the file */
};

#define RT_VIEW_TEXT_TRIES 100

typedef struct rt_view {
  const rt_telemetry_t *block;
  uint64_t record_capacity;
  uint64_t record_keep;
  uint64_t text_capacity;
  uint32_t version; /* as in the block, even if it is another version */
} rt_view_t;

/* Check the block at `address`, of a file of `bytes`, all of it mapped. O(1). Returns RT_VIEW_OK, or what is wrong with
 * it. */
static inline int rt_view_open(rt_view_t *view, const void *address, uint64_t bytes) {
  const rt_telemetry_t *t = (const rt_telemetry_t *)address;
  *view = (rt_view_t){.block = t};
  if (bytes < offsetof(rt_telemetry_t, header_bytes)) return RT_VIEW_SHORT;
  if (rt_load_acquire(&t->magic) != RT_TELEMETRY_MAGIC) return RT_VIEW_MAGIC;
  view->version = rt_load_relaxed(&t->version);
  if (view->version != RT_TELEMETRY_VERSION) return RT_VIEW_VERSION; /* before anything that differs between versions */
  if (bytes < sizeof *t) return RT_VIEW_SHORT;
  if (rt_load_relaxed(&t->header_bytes) != sizeof *t) return RT_VIEW_HEADER;
  const uint64_t capacity = rt_load_relaxed(&t->record_capacity), keep = rt_load_relaxed(&t->record_keep);
  if (capacity > RT_VIEW_MAX_RECORDS || (capacity & (capacity - 1)) || keep > capacity) return RT_VIEW_RECORDS;
  const uint64_t text = rt_load_relaxed(&t->text_capacity);
  if (text > RT_VIEW_MAX_TEXT) return RT_VIEW_TEXT;
  const uint64_t total = rt_telemetry_bytes(capacity, text);
  if (total != bytes || rt_load_relaxed(&t->total_bytes) != total) return RT_VIEW_TOTAL;
  view->record_capacity = capacity;
  view->record_keep = keep;
  view->text_capacity = text;
  return RT_VIEW_OK;
}

/* Test whether the histograms of a snapshot agree with its counters. A consistent copy of what a loop wrote always
 * passes. O(counters in use). */
static inline int rt_view_is_sound(const rt_bank_t *bank) {
  const uint64_t cycles = bank->counters.cycles, warmup = bank->counters.warmup;
  if (cycles > INT64_MAX || warmup > cycles || bank->counters.clock_steps > INT64_MAX) return 0;
  for (int i = 0; i < RT_HISTOGRAMS; i++) {
    const rt_histogram_t *h = &bank->histograms[i];
    uint64_t left = cycles - warmup;
    uint32_t k = 0, end = 0;
    rt_histogram_find_used(h, &k, &end); /* no other counter was copied */
    for (; k < end; k++) {
      if (h->counts[k] > left) return 0; /* a sum could wrap around to the right one */
      left -= h->counts[k];
    }
    if (left != 0 && i != RT_INTERVAL && i != RT_WAITING)
      return 0; /* the first cycle after a start or a reset has no interval */
    if (i != RT_WAITING && left > 1 + bank->counters.clock_steps)
      return 0; /* nor has the first cycle after a step of the clock */
    if (end && (h->counts[rt_histogram_counter(h->min)] == 0 || h->counts[end - 1] == 0)) return 0;
  }
  return 1;
}

/* Compute how many of the records first..last-1 can be copied: at most `most`, and never more than the block keeps.
 * O(1). */
static inline uint64_t rt_view_count(const rt_view_t *view, uint64_t first, uint64_t last, uint64_t most) {
  const uint64_t keep = view->record_keep < most ? view->record_keep : most;
  const uint64_t count = last > first ? last - first : 0;
  return count < keep ? count : keep;
}

/* Copy the `count` records before record number `last` to `to`; `count` is from rt_view_count. O(count). Returns as
 * rt_telemetry_copy_records. */
static inline uint64_t rt_view_copy_records(const rt_view_t *view, rt_record_t *to, uint64_t last, uint64_t count) {
  return rt_telemetry_copy_records(view->block, view->record_capacity, to, last - count, last);
}

/* Copy the text into `to`, which has room for text_capacity bytes. O(text_capacity) a try. Returns its bytes, 0 while
 * there is none, or -EBADMSG iff its length is impossible. */
static inline int64_t rt_view_copy_text(const rt_view_t *view, char *to) {
  for (int tries = 0; tries < RT_VIEW_TEXT_TRIES; tries++) {
    const uint64_t bytes = rt_load_acquire(&view->block->text_bytes);
    if (bytes > view->text_capacity) return -EBADMSG;
    memcpy(to, rt_telemetry_text(view->block, view->record_capacity), bytes);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (rt_load_relaxed(&view->block->text_bytes) == bytes) return (int64_t)bytes; /* else it was written anew */
  }
  return 0;
}

#endif
