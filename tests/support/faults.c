/* Preloaded into a process (LD_PRELOAD), this makes one chosen call of a loop's start fail, once or for ever, with the
 * errno that is plausible for it or with a chosen one.
 *
 * What counts are the calls that rtloop's modules make, and those through which Python opens files and sets limits,
 * numbered as they come while armed. The C library's own calls are not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>

static const void *const nobody = (const void *)-1;
static int armed, wanted, is_for_ever, count, chosen;
static char hit[32];

/* Let call number `number` fail, and with `for_ever` every later one of the same name. */
void faults_arm(int number, int for_ever);
void faults_arm(int number, int for_ever) {
  wanted = number;
  is_for_ever = for_ever;
  count = 0;
  hit[0] = 0;
  __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
}

/* Fail with this errno from now on; with 0, with the plausible one of each call. */
void faults_code(int code);
void faults_code(int code) { chosen = code; }

/* Let all calls through again. Returns the name of the call that failed, "" where there was none of that number. */
const char *faults_disarm(void);
const char *faults_disarm(void) {
  __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
  return hit;
}

static int is_ours(const void *caller) {
  Dl_info info;
  /* Where it is installed: the clone, with an interpreter in its .venv, may be called rtloop, too. */
  return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "-packages/rtloop/");
}

/* Returns the errno that the present call has to fail with; 0 where it goes through. */
static int fails(const char *name, const void *caller, int code) {
  if (!__atomic_load_n(&armed, __ATOMIC_SEQ_CST) || caller == nobody) return 0;
  if (caller && !is_ours(caller)) return 0;
  const int number = count++;
  if (number == wanted) strncpy(hit, name, sizeof hit - 1);
  return number == wanted || (is_for_ever && strcmp(name, hit) == 0) ? (chosen ? chosen : code) : 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define US __builtin_return_address(0)
#define ANYONE NULL
#define NOBODY nobody

/* Let through: MADV_COLD (20), whose refusal is an answer, and reading and writing but for the four bytes of the file
 * /dev/cpu_dma_latency: what is in /proc is there once it is open. */

/* One call of the C library: it fails with `error`, an errno, `code` where none was chosen, and the value `bad`. */
#define FAULT(type, name, who, bad, code, parameters, arguments)                                                       \
  type name parameters;                                                                                                \
  type name parameters {                                                                                               \
    static __typeof__(&name) real;                                                                                     \
    if (!real) real = NEXT(name);                                                                                      \
    const int error = fails(#name, who, code);                                                                         \
    if (error) {                                                                                                       \
      errno = error;                                                                                                   \
      return bad;                                                                                                      \
    }                                                                                                                  \
    return real arguments;                                                                                             \
  }

#define MAPPED (void *p, size_t size, int access, int flags, int fd, off_t at), (p, size, access, flags, fd, at)
#define FAULT_(...) FAULT(__VA_ARGS__)
FAULT_(void *, mmap, US, (void *)-1, ENOMEM, MAPPED)
FAULT_(void *, mmap64, US, (void *)-1, ENOMEM, MAPPED)
FAULT(int, mprotect, US, -1, ENOMEM, (void *p, size_t size, int access), (p, size, access))
FAULT(int, madvise, advice == 20 ? NOBODY : US, -1, EINVAL, (void *p, size_t size, int advice), (p, size, advice))
FAULT(int, mlock, US, -1, ENOMEM, (const void *p, size_t size), (p, size))
FAULT(int, mlockall, US, -1, ENOMEM, (int flags), (flags))
FAULT(int, mincore, US, -1, EAGAIN, (void *p, size_t size, unsigned char *vector), (p, size, vector))
FAULT(int, memfd_create, US, -1, EMFILE, (const char *name, unsigned flags), (name, flags))
FAULT(int, ftruncate, US, -1, EIO, (int fd, off_t size), (fd, size))
FAULT(int, ftruncate64, US, -1, EIO, (int fd, off_t size), (fd, size))
FAULT(int, sigaltstack, US, -1, EPERM, (const stack_t *new, stack_t *old), (new, old))
FAULT(int, setrlimit, ANYONE, -1, EPERM, (int which, const void *limits), (which, limits))
FAULT(int, setrlimit64, ANYONE, -1, EPERM, (int which, const void *limits), (which, limits))
FAULT(ssize_t, pread64, size == 4 ? ANYONE : NOBODY, -1, EIO, (int fd, void *to, size_t size, long offset),
      (fd, to, size, offset))
FAULT(ssize_t, write, size == 4 ? ANYONE : NOBODY, -1, EIO, (int fd, const void *from, size_t size), (fd, from, size))
FAULT(int, pthread_create, US, error, EAGAIN,
      (pthread_t * thread, const pthread_attr_t *attr, void *(*body)(void *), void *argument),
      (thread, attr, body, argument))
FAULT(int, pthread_attr_setstack, US, error, EINVAL, (pthread_attr_t * attr, void *p, size_t size), (attr, p, size))

/* Not through dlsym, which may allocate. */
void *__libc_calloc(size_t count, size_t size);
void *calloc(size_t count, size_t size) {
  const int error = fails("calloc", US, ENOMEM);
  if (error) {
    errno = error;
    return NULL;
  }
  return __libc_calloc(count, size);
}

/* Those with an open list of arguments: no call has more than six, each in a register. */
#define FAULT_VARIADIC(type, name, who, code, first_type)                                                              \
  type name(first_type first, ...);                                                                                    \
  type name(first_type first, ...) {                                                                                   \
    static type (*real)(first_type, long, long, long, long, long, long);                                               \
    va_list list;                                                                                                      \
    long a[6];                                                                                                         \
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name);                                                       \
    va_start(list, first);                                                                                             \
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);                                                             \
    va_end(list);                                                                                                      \
    const int error = fails(#name, who, code);                                                                         \
    if (error) {                                                                                                       \
      errno = error;                                                                                                   \
      return -1;                                                                                                       \
    }                                                                                                                  \
    return real(first, a[0], a[1], a[2], a[3], a[4], a[5]);                                                            \
  }

FAULT_VARIADIC(int, open, ANYONE, EMFILE, const char *)
FAULT_VARIADIC(int, open64, ANYONE, EMFILE, const char *)
FAULT_VARIADIC(int, fcntl, US, EPERM, int)
FAULT_VARIADIC(int, fcntl64, US, EPERM, int)
FAULT_VARIADIC(int, prctl, US, EINVAL, int)

long syscall(long number, ...);
long syscall(long number, ...) {
  static long (*real)(long, long, long, long, long, long, long);
  static const struct {
    long number;
    const char *name;
    int code;
  } known[] = {{SYS_sched_setattr, "sched_setattr", EPERM},
               {SYS_sched_getattr, "sched_getattr", EINVAL},
               {SYS_sched_setaffinity, "sched_setaffinity", EINVAL},
               {SYS_sched_getaffinity, "sched_getaffinity", EINVAL},
               {SYS_capget, "capget", EPERM},
               {SYS_mlock2, "mlock2", ENOMEM}};
  va_list list;
  long a[6];
  if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "syscall");
  va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    const int error = number == known[i].number ? fails(known[i].name, US, known[i].code) : 0;
    if (error) {
      errno = error;
      return -1;
    }
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
