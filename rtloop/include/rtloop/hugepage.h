/* Large buffers: pages of the hugetlb pool, transparent huge pages, or ordinary pages between guards.
 *
 * For set-up, on any thread; every function enters the kernel and may take as long as the kernel takes to clear the
 * memory. All return 0 or a negative errno. These functions do not report which pages the kernel has really granted:
 * read /proc/self/smaps for that.
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

/* The memory of one buffer. A forked child reads zeros in it. The kernel wipes ordinary pages. It cannot wipe pages of
 * the hugetlb pool, so it leaves those out, and rt_regions_in_child() maps zeros in their place. */
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

/* All regions of the process. One instance, owned by rtloop.data.region_registry. */
typedef struct rt_regions {
  pthread_mutex_t mutex;
  rt_region_t *first;
} rt_regions_t;

/* Add a region to the list. Any thread; takes the mutex; O(1); never fails. */
static inline void rt_regions_add(rt_regions_t *regions, rt_region_t *region) {
  pthread_mutex_lock(&regions->mutex);
  region->previous = NULL;
  region->next = regions->first;
  if (region->next) region->next->previous = region;
  regions->first = region;
  pthread_mutex_unlock(&regions->mutex);
}

/* Remove a region from the list. Any thread; takes the mutex; O(1); never fails. */
static inline void rt_regions_remove(rt_regions_t *regions, rt_region_t *region) {
  pthread_mutex_lock(&regions->mutex);
  if (regions->first == region) regions->first = region->next;
  if (region->previous) region->previous->next = region->next;
  if (region->next) region->next->previous = region->previous;
  region->previous = region->next = NULL;
  pthread_mutex_unlock(&regions->mutex);
}

/* Mark every region as a copy and map zeros in place of those that were left out, so that an inherited view reads zeros
 * instead of raising SIGSEGV. In a forked child, with the mutex held since before the fork. O(regions).
 * Async-signal-safe; never fails. */
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
    r->address = NULL;                        /* another mapping is there now */
  }
}

/* Map ordinary pages between inaccessible ones, nothing present yet. `bytes` is a multiple of `page`, the system's page
 * size, and the address one of `align`, a power of two. With `is_huge` the kernel is asked for transparent huge pages,
 * otherwise they are forbidden; a kernel that has none is no error. */
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

/* Map pages of 2^shift bytes of the hugetlb pool, reserved for this mapping alone: with MAP_NORESERVE the call would
 * succeed without pages, and the first touch would raise SIGBUS. -ENOMEM iff the pool has too few pages, -EINVAL iff
 * the kernel lacks this size. */
static inline int rt_region_map_hugetlb(rt_region_t *region, size_t bytes, int shift) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (shift << MAP_HUGE_SHIFT);
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) return -errno;
  /* A fork would make it copy-on-write, and a copy needs a page that the pool may not have. */
  if (madvise(p, bytes, MADV_DONTFORK)) {
    const int rc = -errno;
    munmap(p, bytes);
    return rc;
  }
  *region = (rt_region_t){.address = p, .bytes = bytes, .is_left_out = 1};
  return 0;
}

/* Map pages of an empty file on a hugetlbfs mount, which is extended to `bytes`; the file may be closed afterwards. */
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

/* Get the page size of the hugetlbfs mount that a file or folder is on, or -ENOTSUP iff it is on another file
 * system. */
static inline int64_t rt_hugetlbfs_page_bytes(int fd) {
  struct statfs fs;
  if (fstatfs(fd, &fs)) return -errno;
  return (uint32_t)fs.f_type == RT_HUGETLBFS_MAGIC ? (int64_t)fs.f_bsize : -ENOTSUP;
}

/* Make every page present and writable by having the kernel write a zero into its first byte. A write by the kernel
 * fails with -EFAULT if one by the program would raise SIGBUS. For kernels before 5.14, which lack MADV_POPULATE_WRITE.
 * O(bytes). */
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

/* Make fresh memory present and writable. -EFAULT iff a page is not available, because of a control group's limit or a
 * file that is too short; -ENOMEM iff there is no memory. It never raises SIGBUS. O(bytes). */
static inline int rt_populate(void *address, size_t bytes, size_t page) {
  while (madvise(address, bytes, MADV_POPULATE_WRITE)) {
    if (errno == EINTR) continue;
    return errno == EINVAL ? rt_populate_by_read(address, bytes, page) : -errno;
  }
  return 0;
}

/* Have the kernel move the content of small pages to huge ones now (Linux 6.1), and forbid it to move pages later. */
static inline int rt_region_collapse(const rt_region_t *region) {
  const int rc = madvise(region->address, region->bytes, MADV_COLLAPSE) ? -errno : 0;
  (void)madvise(region->address, region->bytes, MADV_NOHUGEPAGE); /* khugepaged would move them while the loop runs */
  return rc;
}

/* Return the memory to the kernel but keep the addresses until rt_region_unmap(). They read as zeros, so a stale
 * pointer does no harm. After an error the memory is unlocked but not returned. */
static inline int rt_region_empty(rt_region_t *region) {
  if (!region->address || region->is_copy) return 0;
  (void)munlock(region->address, region->bytes);
  /* Inaccessible at first: with all future memory locked, any other mapping would be made present. */
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(region->address, region->bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED) {
    /* All future memory is locked, and the limit is exceeded: drop the pages, and keep the mapping. */
    const int advice = region->is_shared ? MADV_REMOVE : MADV_DONTNEED;
    return madvise(region->address, region->bytes, advice) ? -errno : 0;
  }
  (void)munlock(region->address, region->bytes);
  (void)mprotect(region->address, region->bytes, PROT_READ | PROT_WRITE);
  region->is_left_out = 0;
  return 0;
}

/* Unmap the region with its guards, if it is mapped. Enters the kernel; never fails. */
static inline void rt_region_unmap(rt_region_t *region) {
  if (!region->address) return;
  munmap((char *)region->address - region->guard_bytes, region->bytes + 2 * region->guard_bytes);
  region->address = NULL;
}

#endif
