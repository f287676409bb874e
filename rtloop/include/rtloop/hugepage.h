/* Large buffers: pages of the hugetlb pool, transparent huge pages, or ordinary pages between guards.
 *
 * For set-up, on any thread; every function enters the kernel and may take as long as the kernel takes to clear the
 * memory. All return 0 or a negative errno. What the kernel has really given is not told here: read /proc/self/smaps.
 */
#ifndef RTLOOP_HUGEPAGE_H
#define RTLOOP_HUGEPAGE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define RT_HUGETLBFS_MAGIC 0x958458f6

/* One buffer's memory. A forked child finds zeros in it: the kernel wipes it, or leaves it out and
 * rt_regions_in_child() puts zeros there, for the kernel wipes no page of the hugetlb pool. */
typedef struct rt_region {
  void *address; /* of the first usable byte; NULL: nothing is mapped */
  size_t bytes;
  size_t guard_bytes;  /* inaccessible, before and behind */
  int32_t is_left_out; /* of a forked child */
  int32_t is_copy;     /* this process is a fork of the one that made it */
  int32_t is_shared;   /* pages of a file */
  struct rt_region *previous;
  struct rt_region *next;
} rt_region_t;

/* All regions of the process. One instance, owned by rtloop.data.buffer. */
typedef struct rt_regions {
  pthread_mutex_t mutex;
  rt_region_t *first;
} rt_regions_t;

static inline void rt_regions_add(rt_regions_t *regions, rt_region_t *region) {
  pthread_mutex_lock(&regions->mutex);
  region->previous = NULL;
  region->next = regions->first;
  if (region->next) region->next->previous = region;
  regions->first = region;
  pthread_mutex_unlock(&regions->mutex);
}

static inline void rt_regions_remove(rt_regions_t *regions, rt_region_t *region) {
  pthread_mutex_lock(&regions->mutex);
  if (regions->first == region) regions->first = region->next;
  if (region->previous) region->previous->next = region->next;
  if (region->next) region->next->previous = region->previous;
  region->previous = region->next = NULL;
  pthread_mutex_unlock(&regions->mutex);
}

/* In a forked child, with the mutex held since before the fork: mark every region, and put zeros where it was left out,
 * so that a view which the child has inherited reads zeros and not a SIGSEGV. Async-signal-safe. */
static inline void rt_regions_in_child(rt_regions_t *regions) {
  for (rt_region_t *r = regions->first; r; r = r->next) {
    r->is_copy = 1;
    if (!r->address || !r->is_left_out) continue;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    void *p = mmap(r->address, r->bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == r->address) { /* now it is memory that the kernel wipes, for a child of this child */
      r->is_left_out = 0;
      (void)madvise(p, r->bytes, MADV_WIPEONFORK);
      continue;
    }
    if (p != MAP_FAILED) munmap(p, r->bytes); /* before Linux 4.17 the address is only a hint */
    r->address = NULL;                        /* what is there now is somebody else's */
  }
}

/* Map ordinary pages between inaccessible ones, nothing present yet. `bytes` is a multiple of `page`, the system's page
 * size, and the address one of `align`, a power of two. `is_huge`: the kernel is to use transparent huge pages; else
 * it must not. A kernel that cannot is not an error. */
static inline int rt_region_map(rt_region_t *region, size_t bytes, size_t page, size_t align, int is_huge) {
  const size_t slack = align > page ? align : 0;
  if (bytes > SIZE_MAX / 2 - slack - 2 * page) return -ENOMEM;
  const size_t total = bytes + slack + 2 * page;
  char *p = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return -errno;
  char *q = (char *)(((uintptr_t)p + page + align - 1) & ~((uintptr_t)align - 1));
  if (q - page > p) munmap(p, (size_t)(q - page - p));
  if (q + bytes + page < p + total) munmap(q + bytes + page, (size_t)(p + total - (q + bytes + page)));
  /* Before it can be touched: with all future memory locked, making it writable makes it present. */
  (void)madvise(q, bytes, is_huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  (void)madvise(q, bytes, MADV_WIPEONFORK);
  if (mprotect(q, bytes, PROT_READ | PROT_WRITE)) {
    const int rc = -errno;
    munmap(q - page, bytes + 2 * page);
    return rc;
  }
  *region = (rt_region_t){.address = q, .bytes = bytes, .guard_bytes = page};
  return 0;
}

/* Map pages of 2^shift bytes of the hugetlb pool, reserved for this mapping alone: MAP_NORESERVE would succeed without
 * them, and the first touch be a SIGBUS. -ENOMEM where the pool has too few, -EINVAL for a size the kernel lacks. */
static inline int rt_region_map_hugetlb(rt_region_t *region, size_t bytes, int shift) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (shift << MAP_HUGE_SHIFT);
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) return -errno;
  /* A fork would make it copy-on-write, and a copy takes a page that the pool may not have. */
  if (madvise(p, bytes, MADV_DONTFORK)) {
    const int rc = -errno;
    munmap(p, bytes);
    return rc;
  }
  *region = (rt_region_t){.address = p, .bytes = bytes, .is_left_out = 1};
  return 0;
}

/* The same from an empty file of a hugetlbfs mount, which makes it so long; the file may be closed afterwards. */
static inline int rt_region_map_file(rt_region_t *region, size_t bytes, int fd) {
  if (ftruncate(fd, (off_t)bytes)) return -errno;
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) return -errno;
  if (madvise(p, bytes, MADV_DONTFORK)) {
    const int rc = -errno;
    munmap(p, bytes);
    return rc;
  }
  *region = (rt_region_t){.address = p, .bytes = bytes, .is_left_out = 1, .is_shared = 1};
  return 0;
}

/* The page size of the hugetlbfs mount that a file or folder is on, or -ENOTSUP where it is on something else. */
static inline int64_t rt_hugetlbfs_page_bytes(int fd) {
  struct statfs fs;
  if (fstatfs(fd, &fs)) return -errno;
  return (uint32_t)fs.f_type == RT_HUGETLBFS_MAGIC ? (int64_t)fs.f_bsize : -ENOTSUP;
}

/* Make every page present and writable by having the kernel write a zero into its first byte. The kernel's own write
 * fails with -EFAULT where one of ours would be a SIGBUS. For kernels before 5.14, which lack MADV_POPULATE_WRITE. */
static inline int rt_populate_by_read(void *address, size_t bytes, size_t page) {
  int rc = 0;
  const int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  for (size_t i = 0; i < bytes && !rc; i += page) {
    while (read(fd, (char *)address + i, 1) != 1 && !rc) {
      if (errno != EINTR) rc = -errno;
    }
  }
  close(fd);
  return rc;
}

/* Make fresh memory present and writable. -EFAULT where a page cannot be had: a control group's limit, a file that ends
 * too early. -ENOMEM where there is no memory. Never a SIGBUS. */
static inline int rt_populate(void *address, size_t bytes, size_t page) {
  while (madvise(address, bytes, MADV_POPULATE_WRITE)) {
    if (errno == EINTR) continue;
    return errno == EINVAL ? rt_populate_by_read(address, bytes, page) : -errno;
  }
  return 0;
}

/* Have the kernel put what is on small pages onto huge ones now (Linux 6.1), and then leave every page where it is. */
static inline int rt_region_collapse(const rt_region_t *region) {
  const int rc = madvise(region->address, region->bytes, MADV_COLLAPSE) ? -errno : 0;
  (void)madvise(region->address, region->bytes, MADV_NOHUGEPAGE); /* khugepaged would move them while the loop runs */
  return rc;
}

/* Give the memory back, and keep the addresses until rt_region_unmap(): they read as zeros, so that a pointer somebody
 * has kept does no harm. On an error the memory is unlocked, and not given back. */
static inline int rt_region_empty(rt_region_t *region) {
  if (!region->address || region->is_copy) return 0;
  (void)munlock(region->address, region->bytes);
  /* Inaccessible at first: with all future memory locked, any other mapping would be made present. */
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(region->address, region->bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED) {
    /* All future memory is to be locked, and more than the limit lets: drop the pages, and keep the mapping. */
    const int advice = region->is_shared ? MADV_REMOVE : MADV_DONTNEED;
    return madvise(region->address, region->bytes, advice) ? -errno : 0;
  }
  (void)munlock(region->address, region->bytes);
  (void)mprotect(region->address, region->bytes, PROT_READ | PROT_WRITE);
  region->is_left_out = 0;
  return 0;
}

static inline void rt_region_unmap(rt_region_t *region) {
  if (!region->address) return;
  munmap((char *)region->address - region->guard_bytes, region->bytes + 2 * region->guard_bytes);
  region->address = NULL;
}

#endif
