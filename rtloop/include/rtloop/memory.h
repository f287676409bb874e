/* Mapping, locking and prefaulting memory, and the effect of a fork on it.
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
#include <link.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomics.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
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

/* Map zeroed shared memory of a memfd that cannot be resized. Unless `is_open_to_writers`, only this mapping can write
 * it, on Linux 5.1 and later. */
static inline int rt_memory_map_shared(const char *name, size_t bytes, int is_open_to_writers, void **address,
                                       int *fd) {
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
  (void)madvise(p, bytes, MADV_NOHUGEPAGE); /* shared memory may be collapsed as well (shmem_enabled) */
  /* Since Linux 5.1; the other seals protect the writer. */
  if (!is_open_to_writers) (void)fcntl(file, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
  (void)fcntl(file, F_ADD_SEALS, F_SEAL_SEAL);
  *address = p;
  *fd = file;
  return 0;
}

/* Map zeroed shared memory of a memfd that cannot be resized and that only this mapping can write. */
static inline int rt_memory_map_sealed(const char *name, size_t bytes, void **address, int *fd) {
  return rt_memory_map_shared(name, bytes, 0, address, fd);
}

/* Map `bytes` of a file from `offset` on, to read and to write, right behind `private_bytes` of zeroed private memory;
 * all are whole pages. A forked child sees zeros in the private part, and has nothing in the place of the file until
 * rt_memory_replace_shared. */
static inline int rt_memory_map_behind(size_t private_bytes, int fd, int64_t offset, size_t bytes, void **address) {
  char *const p =
      mmap(NULL, private_bytes + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return -errno;
  if (mmap(p + private_bytes, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED ||
      madvise(p + private_bytes, bytes, MADV_DONTFORK)) {
    const int rc = -errno;
    munmap(p, private_bytes + bytes);
    return rc;
  }
  (void)madvise(p, private_bytes + bytes, MADV_NOHUGEPAGE);
  (void)madvise(p, private_bytes, MADV_WIPEONFORK);
  *address = p;
  return 0;
}

/* In a forked child, put zeros where its parent has shared memory, unless something else is there by now. */
static inline int rt_memory_replace_shared(void *address, size_t bytes) {
  void *const p = mmap(address, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (p == MAP_FAILED) return -errno;
  if (p == address) return 0;
  munmap(p, bytes); /* before Linux 4.17 the address is a hint */
  return -EEXIST;
}

/* Test whether only the mappings that exist can write a memfd. Returns 1 or 0. */
static inline int rt_memory_is_sealed(int fd) { return (fcntl(fd, F_GET_SEALS) & F_SEAL_FUTURE_WRITE) != 0; }

/* Touch every page: read it, and write it back if `is_writable`. Afterwards the pages are present, and written ones are
 * private copies. The content does not change, even if another thread writes at the same time. Any thread; O(bytes);
 * never fails. */
static inline void rt_memory_touch(void *address, size_t bytes, int is_writable) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  char *const end = (char *)address + bytes;
  for (char *p = (char *)address; p < end; p = (char *)(((uintptr_t)p & ~(uintptr_t)(page - 1)) + page)) {
    if (is_writable) {
      char nothing = 0;
      __asm__ volatile("" : "+r"(nothing)); /* clang turns an atomic `or` with 0 into a load, or omits it */
      __atomic_fetch_or(p, nothing, __ATOMIC_RELAXED);
    } else {
      (void)*(volatile char *)p; /* an atomic load whose value is unused may be omitted */
    }
  }
}

/* Make writable memory present by touching every page. Any thread; O(bytes); never fails. */
static inline void rt_memory_prefault(void *address, size_t bytes) { rt_memory_touch(address, bytes, 1); }

/* Make memory present, with one call to the kernel if it can (Linux 5.14), which then returns an error instead of
 * sending a signal; otherwise by touching every page. Any thread; O(bytes). Returns 0 or a negative errno. */
static inline int rt_memory_populate(void *address, size_t bytes, int is_writable) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const uintptr_t first = (uintptr_t)address & ~(uintptr_t)(page - 1);
  if (!bytes) return 0;
  int rc,
      tries =
          1000; /* EAGAIN is temporary; a kernel or filter that always returns it must not block the caller forever */
  do {
    rc = madvise((void *)first, (uintptr_t)address + bytes - first,
                 is_writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  } while (rc && (errno == EINTR || (errno == EAGAIN && --tries)));
  if (rc && errno != EINVAL) return -errno;
  if (rc) rt_memory_touch(address, bytes, is_writable); /* an older kernel, or memory that it does not populate */
  return 0;
}

/* Make the segments of one library present, if it holds the address. Called by dl_iterate_phdr(3). */
static inline int rt_memory_populate_segments(struct dl_phdr_info *info, size_t size, void *address) {
  int is_it = 0;
  (void)size;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    if (info->dlpi_phdr[i].p_type == PT_LOAD && (uintptr_t)address - begin < info->dlpi_phdr[i].p_memsz) is_it = 1;
  }
  for (int i = 0; is_it && i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *const segment = &info->dlpi_phdr[i];
    char *const begin = (char *)(info->dlpi_addr + segment->p_vaddr); /* NOLINT(performance-no-int-to-ptr) */
    if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_R)) continue;
    (void)rt_memory_populate(begin, segment->p_memsz, 0);
    if (segment->p_flags & PF_W) { /* but not what the linker has write-protected since; so never by touching it */
      const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)begin & ~(page - 1);
      (void)madvise((void *)first, (uintptr_t)begin + segment->p_memsz - first, MADV_POPULATE_WRITE);
    }
  }
  return is_it;
}

/* Make the code of a function present, with everything else of its library; of a function that is in no library, its
 * page. Any thread; O(bytes of the library); never fails. */
static inline void rt_memory_populate_code(void *function) {
  if (!dl_iterate_phdr(rt_memory_populate_segments, function)) (void)rt_memory_populate(function, 1, 0);
}

/* Compute how many bytes of its stack the calling thread may still use below this call, or a negative errno. Reads
 * /proc/self/maps on the main thread, whose stack grows up to RLIMIT_STACK. */
static inline int64_t rt_memory_stack_left(void) {
  pthread_attr_t attr;
  void *low = NULL;
  size_t bytes = 0;
  int rc = pthread_getattr_np(pthread_self(), &attr);
  if (rc) return -rc;
  rc = pthread_attr_getstack(&attr, &low, &bytes);
  pthread_attr_destroy(&attr);
  if (rc) return -rc;
  return (char *)__builtin_frame_address(0) - (char *)low;
}

#define RT_STACK_RESERVE_BYTES (32u << 10) /* for the calls that prefault the stack, and a signal handler */

static __attribute__((noinline, unused)) void rt_memory_touch_stack(size_t bytes) {
  volatile char *p = (volatile char *)__builtin_alloca(bytes);
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  for (size_t i = bytes; i > 0; i = i > page ? i - page : 0) p[i - 1] = 0; /* downwards, as a stack grows */
}

/* Make the next `bytes` of the calling thread's stack present. Returns 0 or a negative errno: -ENOSPC iff the stack has
 * less than that left, and then nothing is touched. */
static inline int rt_memory_prefault_stack(size_t bytes) {
  const int64_t left = rt_memory_stack_left();
  if (left < 0) return (int)left;
  if (bytes > INT64_MAX / 2 || left < (int64_t)bytes + RT_STACK_RESERVE_BYTES) return -ENOSPC;
  if (bytes) rt_memory_touch_stack(bytes);
  return 0;
}

/* Count the bytes of the range's pages that are in memory now (mincore(2)), or a negative errno. Any thread;
 * O(bytes). */
static inline int64_t rt_memory_resident_bytes(void *address, size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  char *p = (char *)((uintptr_t)address & ~(uintptr_t)(page - 1));
  size_t pages = ((char *)address + bytes - p + page - 1) / page;
  unsigned char resident[64];
  int64_t found = 0;
  while (pages) {
    const size_t part = pages < sizeof resident ? pages : sizeof resident;
    if (mincore(p, part * page, resident)) return -errno;
    for (size_t i = 0; i < part; i++) found += resident[i] & 1;
    p += part * page;
    pages -= part;
  }
  return found * (int64_t)page;
}

/* mlock2(2) with MLOCK_ONFAULT, which older C libraries do not declare: 0, or -1 and errno. */
static inline int rt_memory_lock_onfault(void *address, size_t bytes) {
  return (int)syscall(SYS_mlock2, address, bytes, 1);
}

/* Test whether a page of ordinary memory is locked. Returns 1, 0 or a negative errno. Locked memory refuses MADV_COLD
 * (Linux 5.4), and so does an older kernel, so the answer is valid only if rt_memory_can_tell_locked(). */
static inline int rt_memory_is_locked(void *address) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  if (!madvise((void *)((uintptr_t)address & ~(uintptr_t)(page - 1)), page, MADV_COLD)) return 0;
  return errno == EINVAL ? 1 : -errno;
}

/* Test on a page whether rt_memory_is_locked() is 0 without a lock and, if this process may lock it, 1 with a lock;
 * qemu-user accepts MADV_COLD for any memory. The page may be locked afterwards. Returns 1 or 0. */
static inline int rt_memory_page_tells_locked(void *p) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  if (munlock(p, page) || rt_memory_is_locked(p) != 0) return 0;
  return mlock(p, page) || rt_memory_is_locked(p) == 1;
}

enum { RT_FUTURE_NOT_LOCKED = 0, RT_FUTURE_LOCKED = 1, RT_FUTURE_LOCKED_ONFAULT = 2 };

/* Find out whether new mappings are locked (MCL_FUTURE), by mapping a page and testing it. Returns RT_FUTURE_... or a
 * negative errno: -ENOTSUP iff this kernel cannot tell whether a page that is not in memory is locked. */
static inline int rt_memory_future_lock(void) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  void *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return -errno;
  int rc = (int)rt_memory_resident_bytes(p, page);
  if (rc == (int)page) rc = RT_FUTURE_LOCKED;
  if (rc == 0) {
    const int is_locked = rt_memory_is_locked(p);
    rc = !rt_memory_page_tells_locked(p) ? -ENOTSUP : is_locked == 1 ? RT_FUTURE_LOCKED_ONFAULT : is_locked;
  }
  munmap(p, page);
  return rc;
}

/* Test whether rt_memory_is_locked() gives valid answers on this kernel. Returns 1 or 0. */
static inline int rt_memory_can_tell_locked(void) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  void *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return 0;
  const int can_tell = rt_memory_page_tells_locked(p);
  munmap(p, page);
  return can_tell;
}

/* Test whether this thread may lock memory beyond RLIMIT_MEMLOCK: CAP_IPC_LOCK, held in the initial user
 * namespace; a capability of a rootless container's own namespace does not count. */
static inline int rt_memory_ignores_limit(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2] = {{0}};
  if (syscall(SYS_capget, &header, data) || !(data[0].effective >> CAP_IPC_LOCK & 1u)) return 0;
  char map[64] = "";
  unsigned long inside = 1, outside = 1, count = 0;
  int fd = open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT; /* a kernel without user namespaces; else it is not known, as without a free fd */
  const ssize_t got = read(fd, map, sizeof map - 1);
  close(fd);
  return got > 0 && sscanf(map, "%lu %lu %lu", &inside, &outside, &count) == 3 && !inside && !outside &&
         count == 4294967295ul;
}

/* State for forks: their number, and the mlockall(2) flags to apply again in the parent, whose locked private pages
 * have become copy-on-write. One instance, owned by rtloop.memory.forks. */
typedef struct rt_fork_watch {
  uint32_t forks;
  int32_t lock_flags;
} rt_fork_watch_t;

#endif
