/* Library for LD_PRELOAD: reports every allocation in a step to the loop's guard. It calls functions of glibc.
 *
 * On any other thread an allocation costs one more load, of a thread-local pointer. `rtloop.guard.reexec()` loads it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include "../include/rtloop/guard.h"

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

/* In the order of _FUNCTIONS in violations.py. */
enum { MALLOC, CALLOC, REALLOC, FREE, MEMALIGN, ALIGNED_ALLOC, POSIX_MEMALIGN, VALLOC, PVALLOC, REALLOCARRAY };

/* "initial-exec", because the first use of lazily allocated thread-local storage on a thread calls malloc. */
static __thread rt_guard_t *mine __attribute__((tls_model("initial-exec")));

int rtloop_guard_attach(rt_guard_t *guard, size_t bytes);

/* Attach the calling thread to a guard; NULL detaches it. Returns 0, or -EINVAL if another version of rtloop made it.
 */
int rtloop_guard_attach(rt_guard_t *guard, size_t bytes) {
  if (guard && bytes != sizeof *guard) return -EINVAL;
  mine = guard;
  return 0;
}

static __attribute__((noinline, cold)) void tell(uint32_t function, uint64_t bytes, const void *caller,
                                                 const void *frame) {
  const uint64_t address = (uint64_t)(uintptr_t)caller, from = (uint64_t)(uintptr_t)frame;
  rt_guard_record(mine, RT_GUARD_ALLOCATION, function, bytes, 1, address, (const uint64_t *)frame,
                  rt_guard_stack_words(mine, from));
}

#define TELL(function, bytes)                                                                                          \
  do {                                                                                                                 \
    if (RT_UNLIKELY(mine != NULL) && mine->in_step) {                                                                  \
      tell((function), (bytes), __builtin_return_address(0), __builtin_frame_address(0));                              \
    }                                                                                                                  \
  } while (0)

void *malloc(size_t n) {
  TELL(MALLOC, n);
  return __libc_malloc(n);
}

void *calloc(size_t n, size_t each) {
  TELL(CALLOC, n * each);
  return __libc_calloc(n, each);
}

void *realloc(void *p, size_t n) {
  TELL(REALLOC, n);
  return __libc_realloc(p, n);
}

void *reallocarray(void *p, size_t n, size_t each) {
  size_t bytes;
  if (__builtin_mul_overflow(n, each, &bytes)) return errno = ENOMEM, NULL;
  TELL(REALLOCARRAY, bytes);
  return __libc_realloc(p, bytes);
}

void free(void *p) {
  if (p) TELL(FREE, 0);
  __libc_free(p);
}

void *memalign(size_t alignment, size_t n) {
  TELL(MEMALIGN, n);
  return __libc_memalign(alignment, n);
}

void *aligned_alloc(size_t alignment, size_t n) {
  TELL(ALIGNED_ALLOC, n);
  return __libc_memalign(alignment, n);
}

int posix_memalign(void **p, size_t alignment, size_t n) {
  TELL(POSIX_MEMALIGN, n);
  if (alignment % sizeof(void *) || alignment == 0 || (alignment & (alignment - 1))) return EINVAL;
  const int before = errno; /* which posix_memalign leaves as it is */
  void *block = __libc_memalign(alignment, n);
  errno = before;
  if (!block) return ENOMEM;
  *p = block;
  return 0;
}

void *valloc(size_t n) {
  TELL(VALLOC, n);
  return __libc_memalign((size_t)sysconf(_SC_PAGESIZE), n);
}

void *pvalloc(size_t n) {
  TELL(PVALLOC, n);
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  if (n > SIZE_MAX - page) return errno = ENOMEM, NULL;
  return __libc_memalign(page, (n + page - 1) & ~(page - 1));
}
