/* Cost of guards per cycle: runs the loop's own code with a step that does nothing and no pause between cycles.
 *
 *     guards ROW CYCLES
 *
 * prints the time of a cycle in ns. Under callgrind, which has neither Syscall User Dispatch nor perf events, the rows
 * "bare" and "ring" give the instructions; "ring" uses an empty ring of its own instead of perf events.
 */
#include "guard_signal.h"
#include "loop.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static rt_loop_t loop;
static rt_guard_t guard;
static rt_telemetry_t *telemetry;
static const char *row;
static uint64_t cycles;
static int64_t total;
static volatile char *page;
static void *volatile kept;

static int step_nothing(void *self, const rt_cycle_t *cycle) {
  (void)self, (void)cycle;
  return 0;
}
static int step_call(void *self, const rt_cycle_t *cycle) {
  (void)self, (void)cycle;
  (void)syscall(SYS_getppid);
  return 0;
}
static int step_touch(void *self, const rt_cycle_t *cycle) {
  (void)self, (void)cycle;
  *page = 1;
  return 0;
}
static int step_malloc(void *self, const rt_cycle_t *cycle) {
  (void)self, (void)cycle;
  kept = malloc(64);
  free(kept);
  return 0;
}
static int overrun(void *self, const rt_cycle_t *cycle, int64_t missed) {
  (void)self, (void)cycle, (void)missed;
  return 0;
}
static int wait_nothing(void *self, int64_t release) {
  (void)self, (void)release;
  return 0;
}
static int wait_give_back(void *self, int64_t release) {
  (void)self, (void)release;
  madvise((void *)page, 4096, MADV_DONTNEED);
  return 0;
}

/* One loop for each step, because the compiler generates one for each class. */
#define RUN(step, wait)                                                                                                \
  (loop.guard ? rt_loop_run_guarded_cycles(&loop, &guard, NULL, step, overrun, wait)                                   \
              : rt_loop_run_cycles(&loop, NULL, step, overrun, wait))

static void *body(void *unused) {
  (void)unused;
  static struct {
    struct perf_event_mmap_page page;
    char data[4096];
  } ring;
  rt_thread_setup(&loop.thread.request, &loop.thread.stack, &loop.thread.report);
  if (loop.guard && strcmp(row, "ring") == 0) {
    guard.ring = &ring.page;
    guard.faults = RT_GUARD_FAULTS_BY_SAMPLE;
  } else if (loop.guard) {
    rt_guard_setup(&guard, loop.thread.stack.base);
    if (guard.syscalls_rc && strncmp(row, "call", 4) == 0) return printf("unavailable\n"), NULL;
    if (strcmp(row, "usage") == 0) guard.faults = RT_GUARD_FAULTS_BY_USAGE;
  }
  rt_loop_start(&loop, rt_clock_now(CLOCK_MONOTONIC));
  const int64_t begin = rt_clock_now(CLOCK_MONOTONIC);
  if (strncmp(row, "call", 4) == 0 || strcmp(row, "bare-call") == 0) {
    RUN(step_call, wait_nothing);
  } else if (strncmp(row, "touch", 5) == 0 || strcmp(row, "bare-touch") == 0) {
    RUN(step_touch, wait_give_back);
  } else if (strstr(row, "malloc")) {
    RUN(step_malloc, wait_nothing);
  } else {
    RUN(step_nothing, wait_nothing);
  }
  total = rt_clock_now(CLOCK_MONOTONIC) - begin;
  if (loop.guard && strcmp(row, "ring") != 0) rt_guard_stop(&guard);
  printf("%.3f\n", (double)total / (double)cycles);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  row = argv[1];
  cycles = strtoull(argv[2], NULL, 10);
  const uint64_t bytes = rt_telemetry_bytes(1024, 64);
  if (posix_memalign((void **)&telemetry, 64, bytes)) return 1;
  memset(telemetry, 0, bytes);
  rt_telemetry_init(telemetry, 1024, 1023, 64);
  page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  loop.telemetry = telemetry;
  loop.clock = CLOCK_MONOTONIC;
  loop.read_clock = clock_gettime;
  loop.has_own_wait = 1;
  loop.schedule.period = 1000000000; /* no cycle overruns */
  loop.limits.max_cycles = cycles;
  loop.limits.max_duration = INT64_MAX;
  loop.thread.request.attr =
      (rt_sched_attr_t){.size = sizeof(rt_sched_attr_t), .sched_policy = SCHED_FIFO, .sched_priority = 10};
  if (strncmp(row, "bare", 4) != 0) loop.guard = &guard;
  if (strcmp(row, "call-allowed") == 0) guard.allowed[SYS_getppid / 64] |= UINT64_C(1) << (SYS_getppid % 64);
  guard.malloc_attach = (int (*)(rt_guard_t *, size_t))(uintptr_t)dlsym(RTLD_DEFAULT, "rtloop_guard_attach");
  if (rt_stack_map(&loop.thread.stack, 256 << 10)) return 1;
  rt_stack_paint(&loop.thread.stack);
  const uintptr_t low = (uintptr_t)loop.thread.stack.mapping;
  if (rt_guard_register(&guard, low, low + loop.thread.stack.mapping_bytes)) return 1;
  if (rt_thread_create(&loop.thread.id, &loop.thread.stack, body, NULL)) return 1;
  pthread_join(loop.thread.id, NULL);
  rt_guard_unregister(&guard);
  return 0;
}
