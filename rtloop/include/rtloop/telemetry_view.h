/* Reading a telemetry block that somebody else has written, and that may be damaged or made to do harm.
 *
 * What sizes and indices are computed from is copied out of the block once, checked, and used from the copy: the block
 * may change at any time. Everything else in it is only a value. The mapping must be of a file that cannot shrink.
 *
 * For readers, on any thread but the loop's. Nothing here waits; every function ends, whatever is in the block.
 */
#ifndef RTLOOP_TELEMETRY_VIEW_H
#define RTLOOP_TELEMETRY_VIEW_H

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "telemetry.h"

#define RT_VIEW_MAX_RECORDS (UINT64_C(1) << 27)
#define RT_VIEW_MAX_TEXT (UINT64_C(1) << 20)

/* What is wrong with a block. */
enum {
  RT_VIEW_OK = 0,
  RT_VIEW_SHORT = 1,   /* the file is shorter than a header */
  RT_VIEW_MAGIC = 2,   /* no block, or one that is not ready yet */
  RT_VIEW_VERSION = 3, /* of another rtloop */
  RT_VIEW_HEADER = 4,  /* a header of another size */
  RT_VIEW_RECORDS = 5, /* a ring that cannot be */
  RT_VIEW_TEXT = 6,    /* a text that cannot be */
  RT_VIEW_TOTAL = 7,   /* parts that do not add up to the file */
};

typedef struct rt_view {
  const rt_telemetry_t *block;
  uint64_t record_capacity;
  uint64_t record_keep;
  uint64_t text_capacity;
  uint32_t version; /* as the block says, also where it is another one */
} rt_view_t;

/* Check the block at `address`, of a file of `bytes`, all mapped. Returns RT_VIEW_OK, or what is wrong with it. */
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

/* Whether the histograms of a snapshot hold what its counters say. A consistent copy of what a loop wrote always
 * does. */
static inline int rt_view_is_sound(const rt_bank_t *bank) {
  const uint64_t cycles = bank->counters.cycles, warmup = bank->counters.warmup;
  if (cycles > INT64_MAX || warmup > cycles) return 0;
  for (int i = 0; i < RT_HISTOGRAMS; i++) {
    const rt_histogram_t *h = &bank->histograms[i];
    uint64_t left = cycles - warmup;
    for (uint32_t k = 0; k < RT_HISTOGRAM_BINS; k++) {
      if (h->counts[k] > left) return 0; /* a sum could wrap around to the right one */
      left -= h->counts[k];
    }
    if (left != 0 && i != RT_INTERVAL) return 0; /* the first cycle after a start or a reset has no interval */
    if (left > 1) return 0;
    if (h->min > h->max ? left != cycles - warmup : h->counts[rt_histogram_bin(h->max)] == 0) return 0;
  }
  return 1;
}

/* Copy the last of the records first..last-1, at most `most` and never more than the block keeps, to `to`, which has
 * room for rt_view_count of them. */
static inline uint64_t rt_view_count(const rt_view_t *view, uint64_t first, uint64_t last, uint64_t most) {
  const uint64_t keep = view->record_keep < most ? view->record_keep : most;
  const uint64_t count = last > first ? last - first : 0;
  return count < keep ? count : keep;
}

static inline uint64_t rt_view_copy_records(const rt_view_t *view, rt_record_t *to, uint64_t last, uint64_t count) {
  return rt_telemetry_copy_records(view->block, view->record_capacity, to, last - count, last);
}

/* Copy the text into `to`, which has room for text_capacity. Returns its bytes, 0 until it is written, or -EBADMSG. */
static inline int64_t rt_view_copy_text(const rt_view_t *view, char *to) {
  const uint64_t bytes = rt_load_acquire(&view->block->text_bytes);
  if (bytes > view->text_capacity) return -EBADMSG;
  memcpy(to, rt_telemetry_text(view->block, view->record_capacity), bytes);
  return (int64_t)bytes;
}

#endif
