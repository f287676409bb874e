/* Mapping, locking and prefaulting memory, and what a fork does to it.
 *
 * For set-up, on any thread; every function enters the kernel. All return 0 or a negative errno.
 */
#ifndef RTLOOP_MEMORY_H
#define RTLOOP_MEMORY_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomics.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* Map zeroed private memory that a forked child sees as zeros, so that a fork does not make it copy-on-write. */
static inline int rt_memory_map(void **address, size_t bytes) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return -errno;
  (void)madvise(p, bytes, MADV_NOHUGEPAGE);
  (void)madvise(p, bytes, MADV_WIPEONFORK);
  *address = p;
  return 0;
}

/* Map zeroed shared memory behind a memfd that nobody can resize, and that nobody but this mapping can write. */
static inline int rt_memory_map_sealed(const char *name, size_t bytes, void **address, int *fd) {
  int rc = 0;
  void *p = MAP_FAILED;
  int file = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0) return -errno;
  if (ftruncate(file, (off_t)bytes) || fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)) rc = -errno;
  if (!rc) p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (!rc && p == MAP_FAILED) rc = -errno;
  if (rc) {
    close(file);
    return rc;
  }
  (void)fcntl(file, F_ADD_SEALS, F_SEAL_FUTURE_WRITE); /* since Linux 5.1; the other seals protect the writer */
  (void)fcntl(file, F_ADD_SEALS, F_SEAL_SEAL);
  *address = p;
  *fd = file;
  return 0;
}

/* Read and write back every page: present and writable from now on, its content unchanged. */
static inline void rt_memory_prefault(void *address, size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  volatile char *p = (volatile char *)address;
  for (size_t i = 0; i < bytes; i += page) p[i] = p[i];
  if (bytes) p[bytes - 1] = p[bytes - 1];
}

/* Whether each page is in memory now (mincore(2)): 1, 0 or a negative errno. `address` is page-aligned. */
static inline int rt_memory_is_resident(void *address, size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  unsigned char resident[64];
  for (size_t done = 0; done < bytes; done += sizeof resident * page) {
    size_t part = bytes - done < sizeof resident * page ? bytes - done : sizeof resident * page;
    if (mincore((char *)address + done, part, resident)) return -errno;
    for (size_t i = 0; i < (part + page - 1) / page; i++) {
      if (!(resident[i] & 1)) return 0;
    }
  }
  return 1;
}

/* mlock2(2) with MLOCK_ONFAULT, which older C libraries do not declare: 0, or -1 and errno. */
static inline int rt_memory_lock_onfault(void *address, size_t bytes) {
  return (int)syscall(SYS_mlock2, address, bytes, 1);
}

/* Whether a page of ordinary memory is locked: 1, 0 or a negative errno. Locked memory refuses MADV_COLD (Linux 5.4),
 * and so does a kernel that does not know it: rt_memory_can_tell_locked() says whether the answer means anything. */
static inline int rt_memory_is_locked(void *address) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  if (!madvise((void *)((uintptr_t)address & ~(uintptr_t)(page - 1)), page, MADV_COLD)) return 0;
  return errno == EINVAL ? 1 : -errno;
}

enum { RT_FUTURE_NOT_LOCKED = 0, RT_FUTURE_LOCKED = 1, RT_FUTURE_LOCKED_ONFAULT = 2 };

/* What becomes of memory mapped from now on (MCL_FUTURE), found by mapping a page and looking; or a negative errno.
 * -ENOTSUP where this kernel cannot tell whether a page is locked that is not in memory. */
static inline int rt_memory_future_lock(void) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  void *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return -errno;
  int rc = rt_memory_is_resident(p, page);
  if (rc == 0) {
    const int is_locked = rt_memory_is_locked(p);
    const int can_tell = !munlock(p, page) && rt_memory_is_locked(p) == 0;
    rc = !can_tell ? -ENOTSUP : is_locked == 1 ? RT_FUTURE_LOCKED_ONFAULT : is_locked;
  }
  munmap(p, page);
  return rc;
}

/* Whether rt_memory_is_locked() can be believed on this kernel. */
static inline int rt_memory_can_tell_locked(void) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  void *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return 0;
  const int can_tell = !munlock(p, page) && rt_memory_is_locked(p) == 0;
  munmap(p, page);
  return can_tell;
}

/* Fork, seen from the process: how often, and which mlockall flags to give again to the parent, whose locked private
 * pages have become copy-on-write. One instance, owned by rtloop.system.memory. */
typedef struct rt_fork_watch {
  uint32_t forks;
  int32_t lock_flags;
} rt_fork_watch_t;

#endif
