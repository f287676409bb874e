/* A forked child and the stack of a real-time thread: it finds the C library's part whole, the frames as zeros, and lives;
 * the thread meets one fault. With more thread-local storage than a guess at its size would leave room for. */
#include <sys/wait.h>

#include "check.h"
#include "rtloop/futex.h"
#include "rtloop/thread.h"

#if defined(__SANITIZE_ADDRESS__)
#define IS_ASAN 1
#elif defined(__has_feature)
#define IS_ASAN __has_feature(address_sanitizer)
#else
#define IS_ASAN 0
#endif

enum { FRAMES = 64 << 10, STORAGE = 300 << 10, CALLS = 100 };

static __thread char storage[STORAGE]; /* the compiler finds it beside the thread's own block: the program's own */

typedef struct subject {
  rt_stack_t stack;
  pthread_t thread;
  uint32_t phase; /* 0: not there, 1: waits, 2: measures, 3: has measured, 4: ends */
  int64_t faults;
  char *storage;
  char *frames; /* the lowest address that the thread has used */
} subject_t;

static int64_t minor_faults(void) {
  struct rusage usage;
  syscall(SYS_getrusage, RUSAGE_THREAD, &usage);
  return usage.ru_minflt;
}

/* Write to the pages below, as a step does. */
static __attribute__((noinline)) void use_stack(subject_t *s) {
  volatile char *frame = __builtin_alloca(FRAMES);
  for (size_t i = 0; i < FRAMES; i += 64) frame[i] = 0x55;
  s->frames = (char *)(uintptr_t)frame;
}

static __attribute__((noinline)) void set_up(const subject_t *s) {
  const rt_thread_request_t request = {.attr = {.size = sizeof request.attr}, .name = "native"};
  rt_thread_report_t report;
  rt_thread_setup(&request, &s->stack, &report);
}

static void *body(void *argument) {
  subject_t *s = argument;
  set_up(s);
  s->storage = storage;
  storage[0] = storage[STORAGE / 2] = storage[STORAGE - 1] = 'x';
  use_stack(s);
  const int64_t before = minor_faults();
  rt_futex_set(&s->phase, 1);
  while (rt_futex_wait(&s->phase, 1, RT_NS_PER_S) == 1) continue;
  for (int i = 0; i < CALLS; i++) use_stack(s);
  s->faults = minor_faults() - before;
  rt_futex_set(&s->phase, 3);
  while (rt_futex_wait(&s->phase, 3, RT_NS_PER_S) == 3) continue;
  return NULL;
}

static subject_t *start(void) {
  /* Shared: a fork must not make this copy-on-write, too. */
  subject_t *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(s != MAP_FAILED);
  CHECK(rt_stack_map(&s->stack, 1 << 20) == 0);
  rt_stack_paint(&s->stack);
  CHECK(rt_stack_high_water(&s->stack) == 0);
  CHECK(rt_thread_create(&s->thread, &s->stack, body, s) == 0);
  while (rt_futex_wait(&s->phase, 0, RT_NS_PER_S) == 0) continue;
  return s;
}

/* Let it measure, and end. Returns the page faults that it has met since before the fork. */
static int64_t finish(subject_t *s) {
  rt_futex_set(&s->phase, 2);
  while (rt_futex_wait(&s->phase, 2, RT_NS_PER_S) == 2) continue;
  rt_futex_set(&s->phase, 4);
  pthread_join(s->thread, NULL);
  const size_t used = rt_stack_high_water(&s->stack);
  CHECK(used > FRAMES && used < s->stack.bytes);
  rt_stack_unmap(&s->stack);
  const int64_t faults = s->faults;
  munmap(s, sizeof *s);
  return faults;
}

static size_t nonzero(const char *from, size_t bytes) {
  size_t count = 0;
  for (size_t i = 0; i < bytes; i++) count += from[i] != 0;
  return count;
}

static void child(const subject_t *s) {
  CHECK(s->storage[0] == 'x' && s->storage[STORAGE / 2] == 'x' && s->storage[STORAGE - 1] == 'x');
  const char *base = s->stack.base;
  CHECK(s->frames > base && s->frames < base + s->stack.bytes - FRAMES);
  CHECK(nonzero(base, (size_t)(s->frames - base) + FRAMES) == 0);
  CHECK(nonzero(s->stack.signal_stack, RT_STACK_SIGNAL_BYTES) == 0);
  (void)finish(start()); /* it can have such threads of its own */
  exit(0);               /* through all that runs at an end */
}

static int ending_of(pid_t pid) {
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid);
  return status;
}

int main(void) {
  alarm(60);
  subject_t *s = start();
  const pid_t first = fork();
  if (first == 0) child(s);
  CHECK(first > 0 && ending_of(first) == 0);
  (void)finish(s);

  /* This child lives on while the thread writes, or the thread would have its pages back without a copy. */
  int gate[2];
  CHECK(pipe(gate) == 0);
  s = start();
  const pid_t second = fork();
  if (second == 0) {
    char byte;
    close(gate[1]);
    _exit((int)read(gate[0], &byte, 1));
  }
  CHECK(second > 0);
  const int64_t faults = finish(s);
  CHECK(IS_ASAN || faults <= 1); /* under ASan its shadow is copied, too */
  close(gate[1]);
  CHECK(ending_of(second) == 0);
  return CHECK_DONE();
}
