/* Library for LD_PRELOAD: reports every allocation in a step to the loop's guard, and calls the next malloc: that of
 * the C library, or of another library for LD_PRELOAD behind this one.
 *
 * On any other thread an allocation costs one more load, of a thread-local pointer, and one more jump.
 * `rtloop.guard.reexec()` loads it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../include/rtloop/guard.h"

/* In the order of _FUNCTIONS in violations.py. */
enum { MALLOC, CALLOC, REALLOC, FREE, MEMALIGN, ALIGNED_ALLOC, POSIX_MEMALIGN, VALLOC, PVALLOC, REALLOCARRAY };

/* "initial-exec", because the first use of lazily allocated thread-local storage on a thread calls malloc. */
static __thread rt_guard_t *mine __attribute__((tls_model("initial-exec")));

int rtloop_guard_attach(rt_guard_t *guard, size_t bytes);
void *rtloop_guard_next(const char *name);

/* Attach the calling thread to a guard; NULL detaches it. Returns 0, or -EINVAL if another version of rtloop made it.
 */
int rtloop_guard_attach(rt_guard_t *guard, size_t bytes) {
  if (guard && bytes != sizeof *guard) return -EINVAL;
  mine = guard;
  return 0;
}

/* Return the function of that name behind this library, NULL if there is none. */
void *rtloop_guard_next(const char *name) {
  /* Not a tail call, which would be the caller's: RTLD_NEXT means "behind the library that calls". */
  void *volatile found = dlsym(RTLD_NEXT, name);
  return found;
}

/* The functions behind this library. The first allocation looks them up, which the loader makes before there are other
 * threads. An old dlsym() may allocate itself, and gets memory from `early`, which is never freed. */
static void *(*next_malloc)(size_t), *(*next_calloc)(size_t, size_t), *(*next_realloc)(void *, size_t);
static void (*next_free)(void *);
static void *(*next_memalign)(size_t, size_t), *(*next_aligned_alloc)(size_t, size_t);
static int (*next_posix_memalign)(void **, size_t, size_t);
static void *(*next_valloc)(size_t), *(*next_pvalloc)(size_t);
static int is_looking;

#define EARLY_BYTES 8192u
#define EARLY_HEAD 16u /* in front of each early block: its size */
static _Alignas(16) unsigned char early[EARLY_BYTES];
static size_t early_used;

static __attribute__((noinline, cold)) void look_up(void) {
  /* dlsym() returns a pointer to an object, which ISO C does not convert into one to a function. */
#define NEXT(name)                                                                                                     \
  do {                                                                                                                 \
    void *const found = dlsym(RTLD_NEXT, #name);                                                                       \
    memcpy(&next_##name, &found, sizeof found);                                                                        \
  } while (0)
  is_looking = 1;
  NEXT(free);
  NEXT(calloc);
  NEXT(realloc);
  NEXT(memalign);
  NEXT(aligned_alloc);
  NEXT(posix_memalign);
  NEXT(valloc);
  NEXT(pvalloc);
  NEXT(malloc); /* the last one, because it is the one that is tested */
  is_looking = 0;
#undef NEXT
}

/* Look the functions up unless that is done. Returns 0 while that is being done. */
static inline int is_ready(void) {
  if (RT_UNLIKELY(next_malloc == NULL)) {
    if (is_looking) return 0;
    look_up();
  }
  return 1;
}

static __attribute__((noinline, cold)) void *early_block(size_t n) {
  const size_t bytes = (n + 15) / 16 * 16;
  if (n > EARLY_BYTES || early_used + EARLY_HEAD + bytes > EARLY_BYTES) return errno = ENOMEM, NULL;
  unsigned char *const block = early + early_used + EARLY_HEAD;
  memcpy(block - EARLY_HEAD, &bytes, sizeof bytes);
  early_used += EARLY_HEAD + bytes;
  return block;
}

static inline int is_early(const void *p) { return (uintptr_t)p - (uintptr_t)early < EARLY_BYTES; }

static __attribute__((noinline, cold)) void *early_moved(const void *p, size_t n) {
  size_t bytes;
  memcpy(&bytes, (const unsigned char *)p - EARLY_HEAD, sizeof bytes);
  void *const block = is_ready() ? next_malloc(n) : early_block(n);
  if (block) memcpy(block, p, bytes < n ? bytes : n);
  return block;
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
  return is_ready() ? next_malloc(n) : early_block(n);
}

void *calloc(size_t n, size_t each) {
  TELL(CALLOC, n * each);
  if (is_ready()) return next_calloc(n, each);
  size_t bytes; /* early memory is zero */
  return __builtin_mul_overflow(n, each, &bytes) ? (errno = ENOMEM, NULL) : early_block(bytes);
}

void *realloc(void *p, size_t n) {
  TELL(REALLOC, n);
  if (RT_UNLIKELY(is_early(p))) return early_moved(p, n);
  return is_ready() ? next_realloc(p, n) : early_block(n);
}

void *reallocarray(void *p, size_t n, size_t each) {
  size_t bytes;
  if (__builtin_mul_overflow(n, each, &bytes)) return errno = ENOMEM, NULL;
  TELL(REALLOCARRAY, bytes);
  if (RT_UNLIKELY(is_early(p))) return early_moved(p, bytes);
  return is_ready() ? next_realloc(p, bytes) : early_block(bytes);
}

void free(void *p) {
  if (p) TELL(FREE, 0);
  if (RT_UNLIKELY(is_early(p))) return;
  if (is_ready()) next_free(p);
}

/* A C library or an allocator may lack one of the others. */
#define CALL(name, ...) (is_ready() && next_##name ? next_##name(__VA_ARGS__) : (errno = ENOMEM, NULL))

void *memalign(size_t alignment, size_t n) {
  TELL(MEMALIGN, n);
  return CALL(memalign, alignment, n);
}

void *aligned_alloc(size_t alignment, size_t n) {
  TELL(ALIGNED_ALLOC, n);
  return CALL(aligned_alloc, alignment, n);
}

int posix_memalign(void **p, size_t alignment, size_t n) {
  TELL(POSIX_MEMALIGN, n);
  return is_ready() && next_posix_memalign ? next_posix_memalign(p, alignment, n) : ENOMEM;
}

void *valloc(size_t n) {
  TELL(VALLOC, n);
  return CALL(valloc, n);
}

void *pvalloc(size_t n) {
  TELL(PVALLOC, n);
  return CALL(pvalloc, n);
}
