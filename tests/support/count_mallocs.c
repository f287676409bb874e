/* For LD_PRELOAD: counts each thread's calls of malloc and its kin. For glibc, whose own functions it calls. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

/* Not of the lazy kind of thread-local storage, whose first use on a thread calls malloc itself. */
static __thread uint64_t calls __attribute__((tls_model("initial-exec")));

/* How often the calling thread has called any of them. */
uint64_t count_mallocs(void) { return calls; }

void *malloc(size_t n) { return calls++, __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return calls++, __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return calls++, __libc_realloc(p, n); }
void free(void *p) { calls++, __libc_free(p); }
void *memalign(size_t a, size_t n) { return calls++, __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { return calls++, __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
  calls++;
  *p = __libc_memalign(a, n);
  return *p ? 0 : ENOMEM;
}
