/* The stack of a real-time thread: one mapping with guards of its own, painted, its frames wiped in forked children.
 *
 *   low  | guard | alternate signal stack | guard | frames (grow down) | the C library's, and the first frames |  high
 *        |<------------ wiped in a forked child ------------------------>|<--------- copied on write ----------->|
 *
 * The guards are PROT_NONE pages, because pthread_attr_setstack(3) ignores the guard size. The alternate signal stack
 * lets a handler of SIGSEGV, such as Python's faulthandler, report an overflow (sigaltstack(2)). All functions but
 * rt_stack_begin are for the control thread while the loop's thread does not exist.
 *
 * The C library owns the top of the stack. glibc and musl keep the thread control block and static thread-local storage
 * there, and their fork(3) follows pointers into it in the child (glibc since 2.41), so a child must find it unchanged.
 * No interface tells its size, but it lies above the first frame of the thread. Hence the thread itself marks what lies
 * below that frame as wiped: rt_stack_begin.
 *
 * A fork costs a running thread one minor page fault, on the page of its control block, because the kernel writes there
 * for rseq(2) when it switches threads. A step that writes to thread-local storage, errno included, may meet one more
 * for each page of it. mlock(2) on the stack in the parent, after the fork, takes those faults that the thread has not
 * met.
 *
 * A child that the thread itself forks continues on this stack. So its frames are not wiped in such a child:
 * rt_stack_keep_for_own_child before the fork, rt_stack_wipe_again after it in the parent.
 */
#ifndef RTLOOP_STACK_H
#define RTLOOP_STACK_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_KEEPONFORK
#define MADV_KEEPONFORK 19
#endif

#define RT_STACK_GUARD_BYTES (64u << 10)
#define RT_STACK_SIGNAL_BYTES (64u << 10)
#define RT_STACK_MIN_BYTES (64u << 10)
#define RT_STACK_PAINT UINT64_C(0x7274736b63617473)

typedef struct rt_stack {
  void *mapping;
  size_t mapping_bytes;
  void *signal_stack;
  void *base; /* lowest usable address */
  size_t bytes;
  void *(*body)(void *); /* what the thread runs, and its argument: see rt_thread_create */
  void *argument;
  void (*on_begin)(struct rt_stack *); /* called by the new thread before `body`; NULL: nothing is */
  size_t wiped_bytes;                  /* from the start of the mapping; set by the thread */
} rt_stack_t;

/* Map a stack of `bytes`, a multiple of the page size and at least RT_STACK_MIN_BYTES. Enters the kernel. Returns 0 or
 * a negative errno; nothing is mapped then. */
static inline int rt_stack_map(rt_stack_t *stack, size_t bytes) {
  const size_t low = RT_STACK_GUARD_BYTES + RT_STACK_SIGNAL_BYTES + RT_STACK_GUARD_BYTES;
  char *p = mmap(NULL, low + bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (p == MAP_FAILED) return -errno;
  *stack = (rt_stack_t){p, low + bytes, p + RT_STACK_GUARD_BYTES, p + low, bytes, NULL, NULL, NULL, 0};
  if (mprotect(stack->signal_stack, RT_STACK_SIGNAL_BYTES, PROT_READ | PROT_WRITE) ||
      mprotect(stack->base, bytes, PROT_READ | PROT_WRITE)) {
    int rc = -errno;
    munmap(p, low + bytes);
    *stack = (rt_stack_t){0};
    return rc;
  }
  (void)madvise(p, low + bytes, MADV_NOHUGEPAGE); /* best effort: khugepaged must not remap it */
  return 0;
}

/* Write to every word, which prefaults the stack and lets rt_stack_high_water measure its use. O(bytes); never
 * fails. */
static inline void rt_stack_paint(const rt_stack_t *stack) {
  memset(stack->signal_stack, 0, RT_STACK_SIGNAL_BYTES);
  uint64_t *word = (uint64_t *)stack->base;
  for (size_t i = 0; i < stack->bytes / sizeof *word; i++) word[i] = RT_STACK_PAINT;
}

/* Measure the greatest use of the stack, in bytes, which includes thread-local storage and the thread's own block. Any
 * thread; O(bytes); never fails. */
static inline size_t rt_stack_high_water(const rt_stack_t *stack) {
  const volatile uint64_t *word = (const volatile uint64_t *)stack->base;
  size_t words = stack->bytes / sizeof *word, i = 0;
  while (i < words && word[i] == RT_STACK_PAINT) i++;
  return (words - i) * sizeof *word;
}

/* The first function of the thread. Marks everything below the page of its own frame as wiped in forked children, and
 * calls `body` with its frames below that page, so that a fork makes no page copy-on-write that holds a cycle's frame.
 * If a page is too large for the stack to spare one, the first frames share it with the C library, and its fault.
 * Enters the kernel once. The mark is best effort: without it, a fork costs a fault for each page that is written.
 */
static __attribute__((noinline, unused)) void *rt_stack_begin(void *self) {
  rt_stack_t *stack = self;
  const uintptr_t frame = (uintptr_t)__builtin_frame_address(0), page = (uintptr_t)sysconf(_SC_PAGESIZE);
  const uintptr_t kept = frame & ~(page - 1), wiped = (uintptr_t)stack->mapping;
  char *skipped = __builtin_alloca(page <= stack->bytes / 8 ? frame - kept + 16 : 16);
  __asm__ __volatile__("" : : "r"(skipped) : "memory");
  if (kept > wiped && !madvise(stack->mapping, kept - wiped, MADV_WIPEONFORK)) stack->wiped_bytes = kept - wiped;
  if (stack->on_begin) stack->on_begin(stack);
  void *result = stack->body(stack->argument);
  __asm__ __volatile__("" : : "r"(skipped) : "memory"); /* or the call would be a jump that drops this frame first */
  return result;
}

/* Keep the frames for the child of a fork that the stack's own thread is about to make. That thread; enters the kernel
 * once; never fails. */
static inline void rt_stack_keep_for_own_child(const rt_stack_t *stack) {
  if (stack->wiped_bytes) (void)madvise(stack->mapping, stack->wiped_bytes, MADV_KEEPONFORK);
}

/* Mark the frames again, after that fork and in the parent. The stack's thread; enters the kernel once; best effort. */
static inline void rt_stack_wipe_again(const rt_stack_t *stack) {
  if (stack->wiped_bytes) (void)madvise(stack->mapping, stack->wiped_bytes, MADV_WIPEONFORK);
}

/* Unmap the stack, if it is mapped. Enters the kernel; never fails. */
static inline void rt_stack_unmap(rt_stack_t *stack) {
  if (stack->mapping) munmap(stack->mapping, stack->mapping_bytes);
  *stack = (rt_stack_t){0};
}

#endif
