/* For LD_PRELOAD: a malloc that is not glibc's. Every block is a mapping of its own, as with the most eager allocators.
 * Like jemalloc it has none of glibc's inner names, and like tcmalloc, if MALLOPT is defined, a mallopt() without effect.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MARK UINT64_C(0x6f746865726d616c)

typedef struct head {
  uint64_t mark, bytes;
  void *mapping;
  size_t mapped;
} head_t;

static head_t *head_of(void *p) {
  head_t *head = (head_t *)p - 1;
  if (head->mark != MARK) abort(); /* a block of another malloc */
  return head;
}

void *memalign(size_t alignment, size_t n) {
  const size_t least = alignment < 32 ? 32 : alignment, mapped = n + least + sizeof(head_t) + 4096;
  char *mapping = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return errno = ENOMEM, NULL;
  char *p = (char *)(((uintptr_t)mapping + sizeof(head_t) + least - 1) / least * least);
  *((head_t *)p - 1) = (head_t){MARK, n, mapping, mapped};
  return p;
}

void free(void *p) {
  if (p) munmap(head_of(p)->mapping, head_of(p)->mapped);
}

void *malloc(size_t n) { return memalign(32, n); }
void *aligned_alloc(size_t alignment, size_t n) { return memalign(alignment, n); }
size_t malloc_usable_size(void *p) { return p ? head_of(p)->bytes : 0; }

void *calloc(size_t n, size_t each) {
  size_t bytes;
  return __builtin_mul_overflow(n, each, &bytes) ? NULL : malloc(bytes);
}

void *realloc(void *p, size_t n) {
  void *block = malloc(n);
  if (block && p) memcpy(block, p, head_of(p)->bytes < n ? head_of(p)->bytes : n);
  if (block) free(p);
  return block;
}

int posix_memalign(void **p, size_t alignment, size_t n) { return (*p = memalign(alignment, n)) ? 0 : ENOMEM; }

#ifdef OPERATOR_NEW
void *_Znwm(size_t n) { return memalign(32, n); } /* C++'s operator new */
#endif
#ifdef MALLOPT
int mallopt(int parameter, int value) { return (void)parameter, (void)value, 1; }
#endif
