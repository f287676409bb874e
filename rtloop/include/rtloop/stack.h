/* The stack of a real-time thread: one mapping with guards of its own, painted, wiped in forked children.
 *
 *   low  | guard | alternate signal stack | guard | stack (grows down from the top) |  high
 *
 * The guards are PROT_NONE pages, because pthread_attr_setstack(3) ignores the guard size. The alternate signal stack
 * lets the handler of SIGSEGV report an overflow (sigaltstack(2)). All functions are for the control thread while the
 * loop's thread does not exist.
 */
#ifndef RTLOOP_STACK_H
#define RTLOOP_STACK_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
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
} rt_stack_t;

/* Map a stack of `bytes`, a multiple of the page size and at least RT_STACK_MIN_BYTES. Enters the kernel. Returns 0 or
 * a negative errno; nothing is mapped then. */
static inline int rt_stack_map(rt_stack_t *stack, size_t bytes) {
  const size_t low = RT_STACK_GUARD_BYTES + RT_STACK_SIGNAL_BYTES + RT_STACK_GUARD_BYTES;
  char *p = mmap(NULL, low + bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (p == MAP_FAILED) return -errno;
  *stack = (rt_stack_t){p, low + bytes, p + RT_STACK_GUARD_BYTES, p + low, bytes};
  if (mprotect(stack->signal_stack, RT_STACK_SIGNAL_BYTES, PROT_READ | PROT_WRITE) ||
      mprotect(stack->base, bytes, PROT_READ | PROT_WRITE)) {
    int rc = -errno;
    munmap(p, low + bytes);
    *stack = (rt_stack_t){0};
    return rc;
  }
  /* Both are best effort: khugepaged must not remap it, and a fork must not make it copy-on-write. */
  (void)madvise(p, low + bytes, MADV_NOHUGEPAGE);
  (void)madvise(p, low + bytes, MADV_WIPEONFORK);
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

/* Unmap the stack, if it is mapped. Enters the kernel; never fails. */
static inline void rt_stack_unmap(rt_stack_t *stack) {
  if (stack->mapping) munmap(stack->mapping, stack->mapping_bytes);
  *stack = (rt_stack_t){0};
}

#endif
