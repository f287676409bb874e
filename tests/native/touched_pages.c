/* Touched pages are present, and written ones are this process's own, at the level of optimization of a release. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "rtloop/memory.h"

/* Return a count of bytes from /proc/self/smaps, for the mapping that begins at `address`. */
static size_t bytes_of(const void *address, const char *name) {
  FILE *file = fopen("/proc/self/smaps", "r");
  char line[4096];
  size_t start, end, kilobytes = 0;
  int is_here = 0;
  CHECK(file);
  while (fgets(line, sizeof line, file)) {
    if (sscanf(line, "%zx-%zx ", &start, &end) == 2) {
      is_here = start == (size_t)address;
    } else if (is_here && !strncmp(line, name, strlen(name))) {
      CHECK(sscanf(line + strlen(name), " %zu kB", &kilobytes) == 1);
    }
  }
  fclose(file);
  return kilobytes << 10;
}

/* Map pages between two that are inaccessible, so that no other mapping is joined to them. */
static char *map_alone(size_t bytes, size_t page, int access, int flags, int fd) {
  char *p = mmap(NULL, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED && mmap(p + page, bytes, access, MAP_FIXED | flags, fd, 0) == p + page);
  return p + page;
}

int main(void) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = 64 * page;
  char *p = map_alone(bytes, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  CHECK(bytes_of(p, "Anonymous:") == 0);
  rt_memory_touch(p, bytes, 1);
  CHECK(bytes_of(p, "Anonymous:") == bytes);

  const int file = memfd_create("pages", MFD_CLOEXEC);
  CHECK(file >= 0 && !ftruncate(file, (off_t)bytes) && pwrite(file, "content", 7, 9) == 7);
  p = map_alone(bytes, page, PROT_READ, MAP_SHARED, file);
  CHECK(bytes_of(p, "Rss:") < bytes);
  rt_memory_touch(p, bytes, 0);
  CHECK(bytes_of(p, "Rss:") == bytes);
  p = map_alone(bytes, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, file);
  rt_memory_touch(p, bytes, 1);
  CHECK(bytes_of(p, "Anonymous:") == bytes && !memcmp(p + 9, "content", 7));
  return CHECK_DONE();
}
