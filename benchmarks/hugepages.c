/* Random access without prefetching: each load yields the address of the next. Compiled by hugepages.py. */
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { LINE = 64 };

/* Link the cache lines of a block into one ring in random order (Sattolo 1986; xorshift64, Marsaglia 2003). */
void link_ring(char *block, size_t bytes) {
  const size_t count = bytes / LINE;
  uint64_t seed = 88172645463325252u;
  for (size_t i = 0; i < count; i++) *(size_t *)(block + i * LINE) = i;
  for (size_t i = count - 1; i > 0; i--) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    size_t *const a = (size_t *)(block + i * LINE), *const b = (size_t *)(block + seed % i * LINE);
    const size_t kept = *a;
    *a = *b;
    *b = kept;
  }
  for (size_t i = 0; i < count; i++) {
    char **const line = (char **)(block + i * LINE);
    *line = block + *(size_t *)line * LINE;
  }
}

/* Follow the ring for a number of loads; return the nanoseconds they take. */
int64_t follow_ring(char *block, size_t loads) {
  struct timespec before, after;
  char *volatile end;
  char *p = block;
  clock_gettime(CLOCK_MONOTONIC, &before);
  for (size_t i = 0; i < loads; i++) p = *(char **)p;
  clock_gettime(CLOCK_MONOTONIC, &after);
  end = p;
  (void)end;
  return (after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec;
}
