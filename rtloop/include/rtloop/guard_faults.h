/* Samples of page faults: two software events of perf_event_open(2) that share a ring, for one thread.
 *
 * Set-up, by the thread itself before its first release: guard.h reads the ring.
 */
#ifndef RTLOOP_GUARD_FAULTS_H
#define RTLOOP_GUARD_FAULTS_H

#include <stdlib.h>

#include "guard.h"

#if defined(__x86_64__)
#define RT_PERF_SP (UINT64_C(1) << 7) /* asm/perf_regs.h: PERF_REG_X86_SP */
#elif defined(__aarch64__)
#define RT_PERF_SP (UINT64_C(1) << 31) /* PERF_REG_ARM64_SP */
#else
#define RT_PERF_SP UINT64_C(0)
#endif

/* Close the events and unmap their ring. For a guard that has none this does nothing. Any thread, while the loop's
 * thread does not run; enters the kernel; never fails. */
static inline void rt_guard_close_faults(rt_guard_t *g) {
  if (g->ring) munmap(g->ring, (size_t)sysconf(_SC_PAGESIZE) + RT_GUARD_RING);
  for (int i = 0; i < 2; i++) {
    if (g->perf_fd[i] >= 0) close(g->perf_fd[i]);
    g->perf_fd[i] = -1;
  }
  g->ring = NULL;
}

/* Open one event for the calling thread. Without privilege only faults of user code can be sampled, so this is tried
 * second. Returns a file descriptor or a negative errno. */
static inline int rt_guard_open_event(uint64_t config) {
  struct perf_event_attr attr;
  memset(&attr, 0, sizeof attr);
  attr.size = sizeof attr;
  attr.type = PERF_TYPE_SOFTWARE;
  attr.config = config;
  attr.sample_period = 1;
  attr.sample_type = PERF_SAMPLE_IDENTIFIER | PERF_SAMPLE_IP | PERF_SAMPLE_ADDR;
  attr.sample_type |= RT_PERF_SP != 0 ? (uint64_t)PERF_SAMPLE_REGS_USER | PERF_SAMPLE_STACK_USER : 0;
  attr.sample_regs_user = RT_PERF_SP;
  attr.sample_stack_user = RT_PERF_SP != 0 ? RT_GUARD_DUMP : 0;
  attr.watermark = 1;
  attr.wakeup_watermark = RT_GUARD_RING; /* the ring is polled; no wake-up is wanted */
  attr.exclude_hv = 1;
  for (int is_excluded = 0;; is_excluded = 1) {
    attr.exclude_kernel = (unsigned)is_excluded & 1u;
    const int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, (unsigned long)PERF_FLAG_FD_CLOEXEC);
    if (fd >= 0) return fd;
    if (is_excluded || (errno != EACCES && errno != EPERM)) return -errno;
  }
}

/* Access all pages of the ring: an older kernel maps each of them at its first access, and a fault while the loop's
 * thread reads a sample would leave another one. The first page is also written to. The loop's thread; O(ring). */
static inline void rt_guard_prefault_ring(rt_guard_t *g) {
  __atomic_store_n(&g->ring->data_tail, 0, __ATOMIC_RELEASE);
  for (uint64_t at = 0; at < RT_GUARD_RING; at += 4096) (void)rt_guard_ring_word(g, at);
}

/* Open the events of minor and major faults for the calling thread, with one ring. Enters the kernel. Returns 0 or a
 * negative errno; nothing is left open then. */
static __attribute__((unused)) int rt_guard_open_faults(rt_guard_t *g) {
  if (RT_PERF_SP == 0) return -ENOSYS;
  g->perf_fd[0] = g->perf_fd[1] = -1;
  const uint64_t configs[2] = {PERF_COUNT_SW_PAGE_FAULTS_MIN, PERF_COUNT_SW_PAGE_FAULTS_MAJ};
  int rc = 0;
  for (int i = 0; i < 2 && !rc; i++) {
    g->perf_fd[i] = rt_guard_open_event(configs[i]);
    if (g->perf_fd[i] < 0) rc = g->perf_fd[i];
  }
  if (!rc) {
    void *ring =
        mmap(NULL, (size_t)sysconf(_SC_PAGESIZE) + RT_GUARD_RING, PROT_READ | PROT_WRITE, MAP_SHARED, g->perf_fd[0], 0);
    if (ring == MAP_FAILED) {
      rc = -errno;
    } else {
      g->ring = (struct perf_event_mmap_page *)ring;
      if (g->ring->data_size != RT_GUARD_RING) rc = -ENOTSUP;
      if (!rc) rt_guard_prefault_ring(g);
    }
  }
  if (!rc && (ioctl(g->perf_fd[1], PERF_EVENT_IOC_SET_OUTPUT, g->perf_fd[0]) ||
              ioctl(g->perf_fd[1], PERF_EVENT_IOC_ID, &g->major_id))) {
    rc = -errno;
  }
  if (rc) rt_guard_close_faults(g);
  return rc;
}

/* Prove that faults are counted, by touching a fresh page. The loop's thread; enters the kernel. Returns 0, or a
 * negative errno: -ENOTSUP iff the fault was not seen. */
static __attribute__((noinline, cold, unused)) int rt_guard_prove_faults(rt_guard_t *g) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  /* Under mlockall(2) a new page is present at once, unless it is mapped without access. */
  volatile char *fresh = mmap(NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fresh == MAP_FAILED) return -errno;
  int rc = -ENOTSUP;
  const int is_open = mprotect((void *)fresh, page, PROT_READ | PROT_WRITE) == 0;
  (void)munlock((const void *)fresh, page);
  (void)madvise((void *)fresh, page, MADV_DONTNEED);
  rt_guard_set_baseline(g);
  const rt_usage_t before = g->usage;
  if (is_open) *fresh = 1;
  const rt_usage_t after = rt_thread_usage();
  const int64_t charged = after.minor_faults + after.major_faults - before.minor_faults - before.major_faults;
  if (charged > 0 && (g->faults == RT_GUARD_FAULTS_BY_USAGE || g->ring->data_head != g->tail)) rc = 0;
  munmap((void *)fresh, page);
  g->has_baseline = 0;
  return rc;
}

/* Prove that the preloaded library counts allocations, by making one. The loop's thread. Returns 0, or a negative
 * errno: -ENOENT iff the library is not loaded, -ENOTSUP iff it missed a call. */
static inline int rt_guard_prove_malloc(rt_guard_t *g) {
  if (!g->malloc_attach) return -ENOENT;
  const int rc = g->malloc_attach(g, sizeof *g);
  if (rc) return rc;
  void *volatile block; /* volatile, or the compiler would remove both calls */
  g->in_step = 1;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  block = malloc(64);
  free(block);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  g->in_step = 0;
  return g->counts[RT_GUARD_ALLOCATION] >= 2 ? 0 : -ENOTSUP; /* more if malloc calls another of them by its name */
}

/* rt_guard_setup, for frames of the step that lie below `stack_end`. */
static __attribute__((noinline, cold, unused)) void rt_guard_setup_below(rt_guard_t *g, const void *stack_base,
                                                                         uint64_t stack_end) {
  g->stack_base = (uint64_t)(uintptr_t)stack_base;
  g->stack_end = stack_end;
  g->faults = RT_GUARD_FAULTS_BY_SAMPLE;
  g->faults_rc = rt_guard_open_faults(g);
  if (!g->faults_rc) g->faults_rc = rt_guard_prove_faults(g);
  if (g->faults_rc) {
    const int rc = g->faults_rc;
    rt_guard_close_faults(g);
    g->faults = RT_GUARD_FAULTS_BY_USAGE;
    if (rt_guard_prove_faults(g)) g->faults = RT_GUARD_FAULTS_NONE;
    g->faults_rc = rc;
  }
  /* Without a handler, SIGSYS would end the process. */
  if (!g->syscalls_rc) g->syscalls_rc = rt_guard_enable_dispatch(g);
  g->malloc_rc = rt_guard_prove_malloc(g);
  memset(g->counts, 0, sizeof g->counts);
  g->is_found = 0;
  rt_guard_reset(g);
  g->found = 0;
  g->has_baseline = 0;
}

/* Set a guard up on the loop's thread, whose stack begins at `stack_base`, after rt_thread_setup. What was granted is
 * in the ..._rc fields. Called by the function that calls the step, because the step's frames begin at that function's
 * stack pointer: on arm64 the frame address does not show where a frame begins. Enters the kernel; never fails as a
 * whole. */
static inline __attribute__((always_inline)) void rt_guard_setup(rt_guard_t *g, const void *stack_base) {
  uint64_t stack_end;
#if defined(__x86_64__)
  __asm__ __volatile__("mov %%rsp, %0" : "=r"(stack_end));
#elif defined(__aarch64__)
  __asm__ __volatile__("mov %0, sp" : "=r"(stack_end));
#else
  stack_end = (uint64_t)(uintptr_t)__builtin_frame_address(0);
#endif
  rt_guard_setup_below(g, stack_base, stack_end);
}

#endif
