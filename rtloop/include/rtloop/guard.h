/* Guards: find the page faults, system calls and allocations of a step, and the code that caused each.
 *
 * A guard is one locked block beside the loop's state. rt_guard_begin and rt_guard_end enclose the step and cost a few
 * stores. rt_guard_check, called after the end of the cycle was taken, tests whether the step did anything forbidden.
 * Only the loop's thread records violations; other threads read those that `written` covers.
 *   system calls  Syscall User Dispatch (prctl(2)) with `selector`; guard_signal.h has the handler
 *   page faults   a ring of perf_event_open(2), in which the kernel leaves a sample for each; without it getrusage(2)
 *   allocations   the preloaded library guard_malloc.c, which calls rt_guard_record
 *
 * Real-time contract: nothing here allocates or waits. Without a violation a cycle makes no system call, or one
 * getrusage(2) after its end where perf events are refused.
 */
#ifndef RTLOOP_GUARD_H
#define RTLOOP_GUARD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomics.h"
#include "clock.h"
#include "seqlock.h"
#include "telemetry.h"
#include "thread.h"

#define RT_GUARD_PLACES 64u  /* places that are kept of each kind, of a run or since a reset; the others are counted */
#define RT_GUARD_BUCKETS 64u /* of the hash table of places of a kind; a power of two */
#define RT_GUARD_MARKS 4u    /* words of the stack by which a place is found again */
#define RT_GUARD_FRAMES 24u  /* addresses found on the stack of each */
#define RT_GUARD_RANGES 512u /* executable mappings of the process */
#define RT_GUARD_ALLOWED 1024u
#define RT_GUARD_DUMP 4096u /* bytes of the stack in a sample of a page fault */
#define RT_GUARD_RING (256u << 10)
#define RT_GUARD_DRAINS 8     /* reading samples may fault, and so leave others */
#define RT_GUARD_RESTORER 16u /* bytes of code that return from a signal handler */

/* Constants of prctl(2) that the headers of an older system lack, although its kernel may know them. */
#define RT_PR_SET_SYSCALL_USER_DISPATCH 59
#define RT_DISPATCH_OFF 0
#define RT_DISPATCH_ON 1
#define RT_DISPATCH_ALLOW 0
#define RT_DISPATCH_BLOCK 1

/* The kinds of violations are RT_GUARD_... of telemetry.h. How page faults are counted: */
enum { RT_GUARD_FAULTS_NONE = 0, RT_GUARD_FAULTS_BY_USAGE = 1, RT_GUARD_FAULTS_BY_SAMPLE = 2 };

/* The violations of one kind at one place. Cycle, time, detail and frames are those of the first one. */
typedef struct rt_violation {
  uint64_t cycle;
  uint64_t last_cycle;
  uint64_t count;
  int64_t time;                     /* on CLOCK_MONOTONIC */
  int64_t last_time;                /* kept up to date for page faults only */
  uint64_t detail;                  /* number of the system call; address that was touched; bytes that were asked for */
  uint64_t least, most;             /* of the details */
  uint64_t order;                   /* number of places of all kinds that were found before */
  uint64_t frames[RT_GUARD_FRAMES]; /* the address of the violation, then probable return addresses, up to a zero */
  uint64_t marks[RT_GUARD_MARKS];   /* the first two addresses of code on the stack, then those of the user's; or 0 */
  uint32_t at[RT_GUARD_MARKS];      /* indices of the words with these addresses */
  uint32_t words;                   /* number of words of the stack */
  uint32_t kind;
  uint32_t function; /* of an allocation */
  uint32_t next;     /* 1 + the index of the next place in the bucket, or 0 */
} rt_violation_t;

typedef struct rt_code {
  uint64_t low, high;
  uint64_t is_user; /* code that is neither the C library's nor rtloop's */
} rt_code_t;

typedef struct rt_guard {
  volatile uint8_t selector; /* read by the kernel at every system call of the thread */
  volatile uint8_t in_step;  /* read by the preloaded library */
  volatile uint8_t is_found; /* something has happened in this step */
  uint8_t on;                /* what the selector is during a step */
  int32_t faults;            /* RT_GUARD_FAULTS_... */
  int32_t is_stopping;       /* guard="stop" */
  int32_t has_baseline;
  uint64_t warmup; /* the first cycle that is guarded */
  uint64_t cycle;
  uint64_t stack_base;             /* a step may be on a stack of its own, of which nothing is known */
  uint64_t stack_end;              /* nothing of the step's is above it */
  uint64_t counts[RT_GUARD_KINDS]; /* of this step */
  rt_seqlock_t lock;               /* of a reset: what is read during one is a mixture */
  uint32_t places[RT_GUARD_KINDS]; /* number of the kept places of each kind */
  uint64_t unkept[RT_GUARD_KINDS]; /* violations at other places, or without a sample */
  uint64_t found;                  /* places of all kinds */
  uint64_t traps;                  /* calls of the handler of SIGSYS */
  uint8_t buckets[RT_GUARD_KINDS][RT_GUARD_BUCKETS]; /* 1 + the index of the first place, or 0 */

  uint64_t restorer;
  uint64_t allowed[RT_GUARD_ALLOWED / 64];

  struct perf_event_mmap_page *ring;
  uint64_t tail;
  uint64_t major_id;
  rt_usage_t usage;
  int32_t perf_fd[2];

  int32_t syscalls_rc; /* 0 or a negative errno: what became of each guard */
  int32_t faults_rc;
  int32_t malloc_rc;
  uint32_t ranges;
  int (*malloc_attach)(struct rt_guard *guard, size_t bytes); /* of the preloaded library; NULL without it */

  rt_code_t code[RT_GUARD_RANGES];
  uint64_t dump[RT_GUARD_DUMP / 8];
  rt_violation_t violations[RT_GUARD_KINDS][RT_GUARD_PLACES];
} rt_guard_t;

/* Find the range of code that contains an address. NULL iff none does. Any thread; O(log ranges); no system call. */
static inline const rt_code_t *rt_guard_find_code(const rt_guard_t *g, uint64_t address) {
  uint32_t low = 0, high = g->ranges;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (address >= g->code[middle].high) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < g->ranges && address >= g->code[low].low ? &g->code[low] : NULL;
}

/* Find the marks of a place: the first two addresses of code on the stack, and the first two of the user's code. The
 * loop's thread; O(count). */
static inline void rt_guard_mark(const rt_guard_t *g, rt_violation_t *v, const uint64_t *words, size_t count) {
  memset(v->marks, 0, sizeof v->marks);
  memset(v->at, 0, sizeof v->at);
  uint32_t any = 0, users = 2;
  for (size_t i = 0; i < count && users < RT_GUARD_MARKS; i++) {
    const rt_code_t *code = rt_guard_find_code(g, words[i]);
    if (code == NULL) continue;
    if (any < 2) v->marks[any] = words[i], v->at[any++] = (uint32_t)i;
    if (code->is_user) v->marks[users] = words[i], v->at[users++] = (uint32_t)i;
  }
}

/* Test whether the marks of a place are where they were on the stack. The loop's thread; O(1). */
static inline int rt_guard_is_marked(const rt_violation_t *v, const uint64_t *words, size_t count) {
  if (v->words != count) return 0;
  for (uint32_t i = 0; i < RT_GUARD_MARKS; i++) {
    if (v->marks[i] && words[v->at[i]] != v->marks[i]) return 0;
  }
  return 1;
}

/* Test whether two violations have the same marks at any depth of the stack. The user's code decides where there is
 * any, because what it called may leave other addresses each time. The loop's thread; O(1). */
static inline int rt_guard_is_alike(const rt_violation_t *a, const rt_violation_t *b) {
  const uint32_t from = a->marks[2] || b->marks[2] ? 2 : 0;
  return a->marks[from] == b->marks[from] && a->marks[from + 1] == b->marks[from + 1];
}

/* Find the kept place of a violation, of which `mine` has the kind, the function and the detail, and gets the marks if
 * they were needed. NULL iff it is a new place. The loop's thread; O(RT_GUARD_PLACES), and O(count) unless the stack is
 * as deep as it was the last time. */
static inline rt_violation_t *rt_guard_find_place(rt_guard_t *g, uint32_t bucket, rt_violation_t *mine,
                                                  uint64_t address, const uint64_t *words, size_t count) {
  const uint32_t kind = mine->kind;
  rt_violation_t *const all = g->violations[kind];
  const uint32_t first = g->buckets[kind][bucket];
  const rt_code_t *const code = rt_guard_find_code(g, address);
  for (int is_marked = 0; is_marked < 2; is_marked++) {
    if (is_marked) rt_guard_mark(g, mine, words, count);
    for (uint32_t i = first; i; i = all[i - 1].next) {
      rt_violation_t *const v = &all[i - 1];
      if (v->frames[0] != address || v->function != mine->function) continue;
      if (kind == RT_GUARD_SYSCALL && v->detail != mine->detail) continue;
      if (code && code->is_user) return v; /* the address is the place */
      if (is_marked ? rt_guard_is_alike(v, mine) : rt_guard_is_marked(v, words, count)) return v;
    }
  }
  return NULL;
}

/* Keep a new place, with every word of the stack that may be a return address; the reader sorts them out. Its marks
 * and its count are set already. The loop's thread; O(count). */
static inline void rt_guard_keep_place(rt_guard_t *g, uint32_t bucket, const rt_violation_t *mine, uint64_t address,
                                       const uint64_t *words, size_t count) {
  const uint32_t kind = mine->kind, used = g->places[kind];
  rt_violation_t *const v = &g->violations[kind][used];
  memcpy(v, mine, sizeof *v);
  v->cycle = v->last_cycle = g->cycle;
  v->time = v->last_time = rt_clock_now(CLOCK_MONOTONIC);
  v->least = v->most = v->detail;
  v->order = g->found++;
  v->words = (uint32_t)count;
  v->frames[0] = address;
  uint32_t n = 1;
  for (size_t i = 0; i < count && n < RT_GUARD_FRAMES; i++) {
    const rt_code_t *code = rt_guard_find_code(g, words[i]);
    if (code == NULL) continue;
    if (n == RT_GUARD_FRAMES - 1 && !code->is_user) continue; /* the last place is for the user's own code */
    v->frames[n++] = words[i];
  }
  if (n < RT_GUARD_FRAMES) v->frames[n] = 0;
  v->next = g->buckets[kind][bucket];
  g->buckets[kind][bucket] = (uint8_t)(used + 1);
  rt_store_release(&g->places[kind], used + 1);
}

/* Record `times` violations at a place. The first RT_GUARD_PLACES places of each kind are kept, so that no kind crowds
 * out another; what is elsewhere only counts in `unkept`. The loop's thread, a signal handler on it included;
 * O(RT_GUARD_PLACES + count); never fails; at most one system call, to read the clock. */
static __attribute__((noinline, cold, unused)) void rt_guard_record(rt_guard_t *g, uint32_t kind, uint32_t function,
                                                                    uint64_t detail, uint64_t times, uint64_t address,
                                                                    const uint64_t *words, size_t count) {
  g->counts[kind] += times;
  g->is_found = 1;
  rt_violation_t mine;
  mine.kind = kind;
  mine.function = function;
  mine.detail = detail;
  const uint64_t what = kind == RT_GUARD_SYSCALL ? detail : function;
  const uint32_t bucket = (uint32_t)(((address + what) * UINT64_C(0x9e3779b97f4a7c15)) >> 58) & (RT_GUARD_BUCKETS - 1);
  const uint8_t selector = g->selector; /* a clock without a vDSO is read by a system call */
  g->selector = RT_DISPATCH_ALLOW;
  rt_violation_t *const v = rt_guard_find_place(g, bucket, &mine, address, words, count);
  if (v != NULL) {
    rt_store_relaxed(&v->last_cycle, g->cycle);
    rt_store_relaxed(&v->count, v->count + times);
    if (detail < v->least) rt_store_relaxed(&v->least, detail);
    if (detail > v->most) rt_store_relaxed(&v->most, detail);
    if (kind <= RT_GUARD_MAJOR) rt_store_relaxed(&v->last_time, rt_clock_now(CLOCK_MONOTONIC));
  } else if (g->places[kind] < RT_GUARD_PLACES) {
    mine.count = times;
    rt_guard_keep_place(g, bucket, &mine, address, words, count);
  } else {
    rt_add_relaxed(&g->unkept[kind], times);
  }
  g->selector = selector;
}

/* Count the words of the thread's stack from the address `from` to the end of the step's frames. 0 iff `from` is not on
 * that stack. The loop's thread; O(1). */
static inline size_t rt_guard_stack_words(const rt_guard_t *g, uint64_t from) {
  return from >= g->stack_base && from < g->stack_end ? (size_t)(g->stack_end - from) / 8 : 0;
}

/* Read the 64-bit word at byte `at` of the ring of samples, which wraps. The loop's thread; O(1). */
static inline uint64_t rt_guard_ring_word(const rt_guard_t *g, uint64_t at) {
  const char *data = (const char *)g->ring + g->ring->data_offset;
  return rt_load_relaxed((const uint64_t *)(const void *)(data + (at & (g->ring->data_size - 1))));
}

/* Record the page fault of one sample. The words of a sample: header, id, ip, address, register ABI, sp, stack bytes,
 * stack, used bytes. The loop's thread; O(RT_GUARD_DUMP). */
static inline void rt_guard_record_sample(rt_guard_t *g, uint64_t at, uint64_t bytes) {
  const uint64_t id = rt_guard_ring_word(g, at + 8), ip = rt_guard_ring_word(g, at + 16);
  const uint64_t address = rt_guard_ring_word(g, at + 24);
  uint64_t next = at + 32, sp = 0, count = 0;
  if (rt_guard_ring_word(g, next) != PERF_SAMPLE_REGS_ABI_NONE) sp = rt_guard_ring_word(g, next + 8), next += 8;
  next += 8;
  const uint64_t size = rt_guard_ring_word(g, next);
  if (size && size <= RT_GUARD_DUMP && next + 16 + size <= at + bytes) {
    count = rt_guard_stack_words(g, sp);
    const uint64_t used = rt_guard_ring_word(g, next + 8 + size) / 8;
    if (count > used) count = used;
    if (count > RT_GUARD_DUMP / 8) count = RT_GUARD_DUMP / 8;
    for (uint64_t i = 0; i < count; i++) g->dump[i] = rt_guard_ring_word(g, next + 8 + 8 * i);
  }
  rt_guard_record(g, id == g->major_id ? RT_GUARD_MAJOR : RT_GUARD_MINOR, 0, address, 1, ip, g->dump, count);
}

/* Take all samples out of the ring, and record them if they are of the step. The loop's thread; O(samples). */
static __attribute__((noinline, cold, unused)) void rt_guard_drain_samples(rt_guard_t *g, int is_in_step) {
  const uint64_t head = __atomic_load_n(&g->ring->data_head, __ATOMIC_ACQUIRE);
  while (g->tail < head) {
    const uint64_t header = rt_guard_ring_word(g, g->tail), bytes = header >> 48;
    if (bytes < 8) break; /* never */
    if (is_in_step && (uint32_t)header == PERF_RECORD_SAMPLE) rt_guard_record_sample(g, g->tail, bytes);
    g->tail += bytes;
  }
  g->tail = head;
  __atomic_store_n(&g->ring->data_tail, head, __ATOMIC_RELEASE);
}

/* Start counting page faults here, so that those of the warm-up, of wait() and of overrun() are not counted. If memory
 * is not locked, reading the samples may be a fault as well, with a sample that is not the step's. The loop's thread;
 * O(samples); at most one system call. */
static __attribute__((noinline, cold, unused)) void rt_guard_set_baseline(rt_guard_t *g) {
  g->has_baseline = 1;
  if (g->faults == RT_GUARD_FAULTS_BY_SAMPLE) {
    for (int i = 0; i < RT_GUARD_DRAINS && __atomic_load_n(&g->ring->data_head, __ATOMIC_ACQUIRE) != g->tail; i++) {
      rt_guard_drain_samples(g, 0);
    }
  }
  if (g->faults != RT_GUARD_FAULTS_NONE) g->usage = rt_thread_usage();
}

/* Count the faults that have no sample: a full ring loses samples, and the resource usage counts every fault. The
 * loop's thread; O(1). */
static inline void rt_guard_count_unsampled(rt_guard_t *g, uint32_t kind, uint64_t faults) {
  if (g->counts[kind] >= faults) return;
  rt_add_relaxed(&g->unkept[kind], faults - g->counts[kind]);
  g->counts[kind] = faults;
  g->is_found = 1;
}

/* Count the page faults of the step, by the thread's resource usage, and record them from the samples. The loop's
 * thread after the step; O(samples); one system call. */
static __attribute__((noinline, cold, unused)) void rt_guard_count_faults(rt_guard_t *g) {
  const rt_usage_t before = g->usage;
  g->usage = rt_thread_usage();
  const uint64_t minor = (uint64_t)(g->usage.minor_faults - before.minor_faults);
  const uint64_t major = (uint64_t)(g->usage.major_faults - before.major_faults);
  if (g->faults == RT_GUARD_FAULTS_BY_SAMPLE) {
    rt_guard_drain_samples(g, 1);
  } else {
    if (minor) rt_guard_record(g, RT_GUARD_MINOR, 0, 0, minor, 0, NULL, 0);
    if (major) rt_guard_record(g, RT_GUARD_MAJOR, 0, 0, major, 0, NULL, 0);
  }
  rt_guard_count_unsampled(g, RT_GUARD_MINOR, minor);
  rt_guard_count_unsampled(g, RT_GUARD_MAJOR, major);
}

/* Start watching: called immediately before the step. The loop's thread; O(1); no system call, except after a fault
 * between two steps. */
static inline void rt_guard_begin(rt_guard_t *g, uint64_t index) {
  if (RT_UNLIKELY(index < g->warmup)) return;
  g->cycle = index;
  if (RT_UNLIKELY(!g->has_baseline) ||
      (g->faults == RT_GUARD_FAULTS_BY_SAMPLE &&
       RT_UNLIKELY(__atomic_load_n(&g->ring->data_head, __ATOMIC_RELAXED) != g->tail))) {
    rt_guard_set_baseline(g);
  }
  g->in_step = 1;
  g->selector = g->on;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Stop watching: called immediately after the step, before the time is taken. The loop's thread; O(1); no system
 * call. */
static inline void rt_guard_end(rt_guard_t *g) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  g->selector = RT_DISPATCH_ALLOW;
  g->in_step = 0;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Add the violations of a step to the telemetry. Returns 1, or 0 iff there was none. The loop's thread; O(1). */
static __attribute__((noinline, cold, unused)) int rt_guard_report(rt_guard_t *g, rt_telemetry_t *t) {
  if (!g->is_found) return 0;
  rt_telemetry_add_violations(t, g->counts);
  memset(g->counts, 0, sizeof g->counts);
  g->is_found = 0;
  return 1;
}

/* Test whether the step of cycle `index` did anything forbidden: called after the end of the cycle was taken. Returns 1
 * after a violation, else 0. The loop's thread; O(1) without a violation, and then no system call unless page faults
 * are counted by getrusage(2). */
static inline int rt_guard_check(rt_guard_t *g, uint64_t index, rt_telemetry_t *t) {
  if (RT_UNLIKELY(index < g->warmup)) return 0;
  if (g->faults == RT_GUARD_FAULTS_BY_SAMPLE) {
    if (RT_UNLIKELY(__atomic_load_n(&g->ring->data_head, __ATOMIC_RELAXED) != g->tail)) rt_guard_count_faults(g);
  } else if (g->faults == RT_GUARD_FAULTS_BY_USAGE) {
    rt_guard_count_faults(g);
  }
  return RT_UNLIKELY(g->is_found) ? rt_guard_report(g, t) : 0;
}

/* Ignore the page faults of a callback other than the step. The loop's thread; O(1); at most one system call. */
static inline void rt_guard_skip(rt_guard_t *g) {
  if (g->faults == RT_GUARD_FAULTS_BY_USAGE && g->has_baseline) rt_guard_set_baseline(g);
}

/* Discard the violations recorded so far, together with the statistics. The loop's thread; O(RT_GUARD_BUCKETS). */
static __attribute__((noinline, cold, unused)) void rt_guard_reset(rt_guard_t *g) {
  rt_seqlock_write_begin(&g->lock);
  for (uint32_t kind = 0; kind < RT_GUARD_KINDS; kind++) {
    rt_store_relaxed(&g->places[kind], 0u);
    rt_store_relaxed(&g->unkept[kind], UINT64_C(0));
  }
  memset(g->buckets, 0, sizeof g->buckets);
  rt_seqlock_write_end(&g->lock);
}

#if defined(__x86_64__) || defined(__aarch64__)
/* Make a system call directly, without setting errno. Returns its result or a negative errno. */
static inline long rt_guard_raw_syscall(long number, const uint64_t *a) {
#if defined(__x86_64__)
  register long r10 __asm__("r10") = (long)a[3];
  register long r8 __asm__("r8") = (long)a[4];
  register long r9 __asm__("r9") = (long)a[5];
  long result;
  __asm__ __volatile__("syscall"
                       : "=a"(result)
                       : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                       : "rcx", "r11", "memory");
  return result;
#else
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = (long)a[0];
  register long x1 __asm__("x1") = (long)a[1];
  register long x2 __asm__("x2") = (long)a[2];
  register long x3 __asm__("x3") = (long)a[3];
  register long x4 __asm__("x4") = (long)a[4];
  register long x5 __asm__("x5") = (long)a[5];
  __asm__ __volatile__("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory", "cc");
  return x0;
#endif
}

/* Make a system call that the guard must catch. Returns its result. The loop's thread, with the dispatch on. */
static inline long rt_guard_trigger_syscall(rt_guard_t *g) {
  const uint64_t none[6] = {0};
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  g->selector = RT_DISPATCH_BLOCK;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  const long result = rt_guard_raw_syscall(SYS_getppid, none);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  g->selector = RT_DISPATCH_ALLOW;
  return result;
}

/* Turn Syscall User Dispatch on for this thread, and prove that it works with three deliberate calls. The first call
 * finds the code that returns from a signal handler, whose system call must never be dispatched. The other two prove
 * that a call is caught while the selector is set, that the next one is caught as well, and that each is carried out.
 * The loop's thread, before its cycles. Returns 0, or a negative errno iff prctl(2) fails or a call was not caught. */
static __attribute__((noinline, cold, unused)) int rt_guard_enable_dispatch(rt_guard_t *g) {
  g->selector = RT_DISPATCH_ALLOW;
  g->restorer = 0;
  g->on = RT_DISPATCH_ALLOW;
  if (prctl(RT_PR_SET_SYSCALL_USER_DISPATCH, RT_DISPATCH_ON, 0ul, 0ul, &g->selector)) return -errno;
  const uint64_t none[6] = {0};
  const long parent = rt_guard_raw_syscall(SYS_getppid, none);
  int is_right = rt_guard_trigger_syscall(g) == parent && g->restorer != 0 && g->traps == 1;
  if (is_right && prctl(RT_PR_SET_SYSCALL_USER_DISPATCH, RT_DISPATCH_ON, g->restorer, (unsigned long)RT_GUARD_RESTORER,
                        &g->selector)) {
    is_right = 0;
  }
  g->on = RT_DISPATCH_BLOCK;
  for (uint64_t i = 0; is_right && i < 2; i++) is_right = rt_guard_trigger_syscall(g) == parent && g->traps == 2 + i;
  if (!is_right) {
    g->on = RT_DISPATCH_ALLOW;
    (void)prctl(RT_PR_SET_SYSCALL_USER_DISPATCH, RT_DISPATCH_OFF, 0ul, 0ul, 0ul);
    return -ENOTSUP;
  }
  return 0;
}
#else
static inline int rt_guard_enable_dispatch(rt_guard_t *g) {
  (void)g;
  return -ENOSYS;
}
#endif

/* Turn the dispatch and the library of allocations off, so that leave() is neither watched nor slowed down. The loop's
 * thread after its last cycle; at most one system call; never fails. */
static inline void rt_guard_stop(rt_guard_t *g) {
  if (g->on == RT_DISPATCH_BLOCK) {
    (void)prctl(RT_PR_SET_SYSCALL_USER_DISPATCH, RT_DISPATCH_OFF, 0ul, 0ul, 0ul);
  }
  if (g->malloc_attach && !g->malloc_rc) (void)g->malloc_attach(NULL, 0);
}

#endif
