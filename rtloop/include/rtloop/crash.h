/* Report of a crash: where a process has crashed, written to a pipe for another process, which can name the function.
 *
 * The process then waits to be killed, so that its memory map can still be read.
 */
#ifndef RTLOOP_CRASH_H
#define RTLOOP_CRASH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define RT_CRASH_PC(uc) ((uint64_t)(uc)->uc_mcontext.gregs[REG_RIP])
#elif defined(__aarch64__)
#define RT_CRASH_PC(uc) ((uint64_t)(uc)->uc_mcontext.pc)
#else
#define RT_CRASH_PC(uc) ((void)(uc), UINT64_C(0))
#endif

enum {
  RT_CRASH_STACK_BYTES = 64 << 10,
  RT_CRASH_PATIENCE_S = 60 /* after which a process whose reader has gone ends itself */
};

/* Record that is written to the pipe. */
typedef struct rt_crash {
  uint64_t number;  /* of the signal */
  uint64_t pc;      /* address of the instruction; 0 if it is not known on this machine */
  uint64_t address; /* that it has accessed, for SIGSEGV and SIGBUS */
} rt_crash_t;

static int rt_crash_fd = -1;
static _Alignas(16) char rt_crash_stack[RT_CRASH_STACK_BYTES]; /* because the thread's own may be what has overflowed */

/* Write the report, and wait to be killed. A signal handler. */
static __attribute__((unused)) void rt_crash_on_signal(int number, siginfo_t *info, void *context) {
  const int has_address = number == SIGSEGV || number == SIGBUS;
  const rt_crash_t crash = {
      .number = (uint64_t)number,
      .pc = RT_CRASH_PC((ucontext_t *)context),
      .address = has_address ? (uint64_t)(uintptr_t)info->si_addr : 0,
  };
  if (write(rt_crash_fd, &crash, sizeof crash) != (ssize_t)sizeof crash) _exit(128 + number);
  alarm(RT_CRASH_PATIENCE_S);
  for (;;) pause();
}

/* Report crashes of this process, and SIGABRT, to a pipe. Returns 0, or a negative errno. Once in the life of a
 * process, on the thread whose stack may overflow. */
static __attribute__((unused)) int rt_crash_report_to(int fd) {
  static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
  const stack_t stack = {.ss_sp = rt_crash_stack, .ss_size = sizeof rt_crash_stack};
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = rt_crash_on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  rt_crash_fd = fd;
  if (sigaltstack(&stack, NULL)) return -errno;
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    if (sigaction(numbers[i], &action, NULL)) return -errno;
  }
  return 0;
}

#endif
