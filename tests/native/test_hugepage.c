/* Large buffers: alignment and guards, populating without a SIGBUS, the view of a forked child, and returning
 * memory. */
#include "rtloop/hugepage.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "check.h"
#include "rtloop/memory.h"

static size_t page;
static rt_regions_t regions = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void before_fork(void) { pthread_mutex_lock(&regions.mutex); }
static void in_parent(void) { pthread_mutex_unlock(&regions.mutex); }
static void in_child(void) {
#ifndef BROKEN_CHILD
  rt_regions_in_child(&regions);
#endif
  pthread_mutex_unlock(&regions.mutex);
}

/* Run a function in a child process. Returns its exit status, or the negative number of the signal that killed it. */
static int ending_of(void (*action)(char *), char *argument) {
  int status;
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    signal(SIGSEGV, SIG_DFL);
    action(argument);
    _exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void touch(char *p) { *(volatile char *)p = 1; }

static void expect_zeros(char *p) {
  for (size_t i = 0; i < 4 * page; i++) {
    if (p[i]) _exit(1);
  }
  memset(p, 7, 4 * page);
}

/* A child's child reads zeros as well, and not what the child wrote. */
static void expect_zeros_two_forks_on(char *p) {
  expect_zeros(p);
  if (ending_of(expect_zeros, p) != 0) _exit(2);
}

static void test_map(void) {
  for (size_t align = page; align <= 4 << 20; align *= 2) {
    rt_region_t region;
    CHECK(rt_region_map(&region, 3 * page, page, align, align > page) == 0);
    char *p = region.address;
    CHECK((uintptr_t)p % align == 0);
    memset(p, 1, 3 * page);
    CHECK(ending_of(touch, p - 1) == -SIGSEGV);
    CHECK(ending_of(touch, p + 3 * page) == -SIGSEGV);
    CHECK(ending_of(touch, p + 3 * page - 1) == 0);
    rt_region_unmap(&region);
    CHECK(region.address == NULL);
    rt_region_unmap(&region);
    CHECK(mincore(p - page, 5 * page, (unsigned char[5]){0}) && errno == ENOMEM);
  }
  rt_region_t region;
  CHECK(rt_region_map(&region, SIZE_MAX & ~(page - 1), page, 2 << 20, 1) == -ENOMEM);
}

/* A file that ends after one page of four: to touch the second would be a SIGBUS. */
static void test_populate(void) {
  const int fd = memfd_create("short", MFD_CLOEXEC);
  CHECK(fd >= 0 && !ftruncate(fd, (off_t)page));
  char *p = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(p != MAP_FAILED);
  CHECK(rt_populate(p, page, page) == 0);
  CHECK(rt_populate_by_read(p, page, page) == 0);
  CHECK(rt_populate(p, 4 * page, page) == -EFAULT);
#ifdef BROKEN_POPULATE
  rt_memory_prefault(p, 4 * page);
#endif
  CHECK(rt_populate_by_read(p, 4 * page, page) == -EFAULT);
  munmap(p, 4 * page);
  close(fd);
  rt_region_t region;
  CHECK(rt_region_map(&region, 64 * page, page, page, 0) == 0);
  CHECK(rt_memory_resident_bytes(region.address, 64 * page) == 0);
  CHECK(rt_populate_by_read(region.address, 64 * page, page) == 0);
  CHECK(rt_memory_resident_bytes(region.address, 64 * page) == (int64_t)(64 * page));
  rt_region_unmap(&region);
}

/* A child finds zeros in what the kernel wipes and in what it leaves out, and what it writes is its own. */
static void test_fork(void) {
  rt_region_t wiped, left_out, emptied;
  CHECK(rt_region_map(&wiped, 4 * page, page, page, 0) == 0);
  CHECK(rt_region_map(&left_out, 4 * page, page, page, 0) == 0);
  CHECK(rt_region_map(&emptied, 4 * page, page, page, 0) == 0);
  CHECK(madvise(left_out.address, 4 * page, MADV_DONTFORK) == 0);
  left_out.is_left_out = 1;
  rt_regions_add(&regions, &wiped);
  rt_regions_add(&regions, &left_out);
  rt_regions_add(&regions, &emptied);
  memset(wiped.address, 5, 4 * page);
  memset(left_out.address, 5, 4 * page);
  memset(emptied.address, 5, 4 * page);
  CHECK(ending_of(expect_zeros_two_forks_on, wiped.address) == 0);
  CHECK(ending_of(expect_zeros_two_forks_on, left_out.address) == 0);
  CHECK(((char *)wiped.address)[page] == 5 && ((char *)left_out.address)[page] == 5);
  CHECK(rt_region_empty(&emptied) == 0);
  CHECK(rt_memory_resident_bytes(emptied.address, 4 * page) == 0);
  expect_zeros(emptied.address);
  for (int i = 0; i < 3; i++) {
    rt_region_t *const gone[] = {&left_out, &wiped, &emptied};
    rt_regions_remove(&regions, gone[i]);
    rt_region_unmap(gone[i]);
  }
  CHECK(regions.first == NULL);
}

/* Read one figure of a mapping from /proc/self/smaps, in kB; -1: no such line. */
static long smaps_kb(const void *address, const char *key) {
  char line[512];
  int is_inside = 0;
  long kb = -1;
  FILE *file = fopen("/proc/self/smaps", "r");
  CHECK(file);
  while (fgets(line, sizeof line, file)) {
    unsigned long low, high;
    if (sscanf(line, "%lx-%lx ", &low, &high) == 2) is_inside = low <= (uintptr_t)address && (uintptr_t)address < high;
    if (is_inside && !strncmp(line, key, strlen(key))) kb = strtol(line + strlen(key), NULL, 10);
  }
  fclose(file);
  return kb;
}

/* The content of small pages is moved to huge ones if the kernel can (Linux 6.1). */
static void test_collapse(void) {
  const size_t huge = 2 << 20;
  rt_region_t region;
  CHECK(rt_region_map(&region, 2 * huge, page, huge, 1) == 0);
  CHECK(madvise(region.address, 2 * huge, MADV_NOHUGEPAGE) == 0);
  memset(region.address, 3, 2 * huge);
  CHECK(smaps_kb(region.address, "AnonHugePages:") == 0);
  int rc = 0;
#ifndef BROKEN_COLLAPSE
  CHECK(madvise(region.address, 2 * huge, MADV_HUGEPAGE) == 0);
  rc = rt_region_collapse(&region);
#endif
  CHECK(rc || smaps_kb(region.address, "AnonHugePages:") == 4096);
  for (size_t i = 0; i < 2 * huge; i += page / 2) CHECK(((char *)region.address)[i] == 3);
  rt_region_unmap(&region);
}

int main(void) {
  page = (size_t)sysconf(_SC_PAGESIZE);
  CHECK(pthread_atfork(before_fork, in_parent, in_child) == 0);
  test_map();
  test_populate();
  test_fork();
#if defined __x86_64__
  test_collapse(); /* elsewhere a huge page may be of another size, and the kernel without them */
#endif
  CHECK(rt_hugetlbfs_page_bytes(0) < 0);
  return CHECK_DONE();
}
