/* The kernel's clock_gettime in the vDSO (vdso(7)), called without the C library's wrapper.
 *
 * Real-time contract: rt_clock_reader looks up a symbol, takes the loader's lock and may allocate, so it is called
 * before a loop runs. The function that it returns reads the clock as clock_gettime(2) does.
 */
#ifndef RTLOOP_VDSO_H
#define RTLOOP_VDSO_H

#include <dlfcn.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

/* Read a clock by a system call, for a process without a vDSO, such as one under valgrind. Returns 0 or a negative
 * errno. */
static int rt_clock_gettime_syscall(clockid_t clock, struct timespec *time) {
#if defined(__x86_64__)
  long rc = SYS_clock_gettime;
  __asm__ __volatile__("syscall" : "+a"(rc) : "D"((long)clock), "S"(time) : "rcx", "r11", "memory");
  return (int)rc;
#else
  return (int)syscall(SYS_clock_gettime, clock, time);
#endif
}

/* Find the fastest function that reads a clock. Any thread but a running loop's; may allocate; never NULL. */
static inline rt_clock_reader_t *rt_clock_reader(void) {
  if (getauxval(AT_SYSINFO_EHDR) == 0) return rt_clock_gettime_syscall;
  union {
    void *object;
    rt_clock_reader_t *function;
  } found = {NULL};
#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
  void *const vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (vdso != NULL) {
#if defined(__x86_64__)
    found.object = dlvsym(vdso, "__vdso_clock_gettime", "LINUX_2.6");
#else
    found.object = dlvsym(vdso, "__kernel_clock_gettime", "LINUX_2.6.39");
#endif
    dlclose(vdso);
  }
#endif
  return found.object != NULL ? found.function : clock_gettime;
}

#endif
