/* The set-up of a thread: what it requests of the kernel, and what it reads back as granted.
 *
 * rt_thread_create makes the thread with all signals blocked except synchronous faults, and with an explicit ordinary
 * policy, so that nothing is inherited. rt_thread_setup, called by the new thread, then requests the rest. Everything
 * here happens before the first release; none of it may be called per cycle.
 */
#ifndef RTLOOP_THREAD_H
#define RTLOOP_THREAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "stack.h"
#include "telemetry.h"

#define RT_CPU_WORDS 128 /* 8192 CPUs, the largest NR_CPUS of any kernel configuration */

#define RT_SCHED_FLAG_RESET_ON_FORK 1u

/* struct sched_attr of sched_setattr(2), which older C libraries do not declare. */
typedef struct rt_sched_attr {
  uint32_t size;
  uint32_t sched_policy;
  uint64_t sched_flags;
  int32_t sched_nice;
  uint32_t sched_priority;
  uint64_t sched_runtime;
  uint64_t sched_deadline;
  uint64_t sched_period;
} rt_sched_attr_t;

typedef struct rt_thread_request {
  rt_sched_attr_t attr;
  int32_t is_pinned;       /* whether `cpus` is asked for */
  int32_t flush_denormals; /* whether to set flush-to-zero and denormals-are-zero */
  char name[16];
  uint64_t cpus[RT_CPU_WORDS];
} rt_thread_request_t;

/* Every rc is 0 or a negative errno. */
typedef struct rt_thread_report {
  int32_t tid;
  int32_t signal_stack_rc;
  int32_t name_rc;
  int32_t cpu_rc;
  int32_t slack_rc;
  int32_t policy_rc;
  int32_t denormals_flushed;
  int32_t slack_ns;
  int32_t mask_rc;                /* whether signals are blocked */
  rt_sched_attr_t attr;           /* as the kernel reports it; size 0 iff it does not */
  uint64_t cpus[RT_CPU_WORDS];    /* where the thread may run */
  uint64_t allowed[RT_CPU_WORDS]; /* where it could be allowed to run: the cpuset's online CPUs */
} rt_thread_report_t;

/* Read what the kernel has charged to the calling thread. One system call; never fails. */
static inline rt_usage_t rt_thread_usage(void) {
  struct rusage r;
  getrusage(RUSAGE_THREAD, &r);
  return (rt_usage_t){r.ru_minflt, r.ru_majflt, r.ru_nvcsw, r.ru_nivcsw};
}

/* Read the calling thread's floating-point control word, for rt_thread_set_float_control. O(1). */
static inline uint64_t rt_thread_float_control(void) {
#if defined(__x86_64__)
  return __builtin_ia32_stmxcsr();
#elif defined(__aarch64__)
  uint64_t fpcr;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(fpcr));
  return fpcr;
#else
  return 0;
#endif
}

/* Restore the calling thread's floating-point control word. O(1). */
static inline void rt_thread_set_float_control(uint64_t control) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr((unsigned int)control);
#elif defined(__aarch64__)
  __asm__ __volatile__("msr fpcr, %0" ::"r"(control));
#else
  (void)control;
#endif
}

/* Set flush-to-zero and denormals-are-zero for the calling thread. O(1). Returns 1, or 0 iff the CPU did not accept
 * it. */
static inline int rt_thread_flush_denormals(void) {
#if defined(__x86_64__)
  const unsigned int bits = 0x8040; /* MXCSR: FTZ is bit 15, DAZ bit 6 */
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | bits);
  return (__builtin_ia32_stmxcsr() & bits) == bits;
#elif defined(__aarch64__)
  const uint64_t bit = UINT64_C(1) << 24; /* FPCR: FZ flushes inputs and results */
  uint64_t fpcr;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(fpcr));
  __asm__ __volatile__("msr fpcr, %0" ::"r"(fpcr | bit));
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(fpcr));
  return (fpcr & bit) != 0;
#else
  return 0;
#endif
}

/* Set the affinity of the calling thread and read it back. The widest mask is tried first, because only the kernel
 * knows the cpuset. Several system calls. A refusal is in report->cpu_rc. */
static inline void rt_thread_set_cpus(const rt_thread_request_t *request, rt_thread_report_t *report) {
  const size_t bytes = sizeof report->cpus;
  uint64_t before[RT_CPU_WORDS] = {0};
  long got = syscall(SYS_sched_getaffinity, 0, bytes, before);
  memset(report->allowed, 0xff, bytes);
  if (got > 0) (void)syscall(SYS_sched_setaffinity, 0, bytes, report->allowed); /* what can be put back */
  memset(report->allowed, 0, bytes);
  (void)syscall(SYS_sched_getaffinity, 0, bytes, report->allowed);
  if (request->is_pinned) report->cpu_rc = syscall(SYS_sched_setaffinity, 0, bytes, request->cpus) ? -errno : 0;
  if ((!request->is_pinned || report->cpu_rc) && got > 0) (void)syscall(SYS_sched_setaffinity, 0, bytes, before);
  memset(report->cpus, 0, bytes);
  (void)syscall(SYS_sched_getaffinity, 0, bytes, report->cpus);
}

/* Read the policy and the CPUs of the calling thread again. The loop's thread, after its last cycle; two system calls;
 * what cannot be read stays as it was. */
static inline void rt_thread_read_back(rt_thread_report_t *report) {
  uint64_t cpus[RT_CPU_WORDS] = {0};
  rt_sched_attr_t attr = {0};
  if (syscall(SYS_sched_getaffinity, 0, sizeof cpus, cpus) > 0) memcpy(report->cpus, cpus, sizeof cpus);
  if (!syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0)) report->attr = attr;
}

/* Request everything in `request` for the calling thread. Several system calls. Never fails as a whole: each refusal is
 * in the report. */
static inline void rt_thread_setup(const rt_thread_request_t *request, const rt_stack_t *stack,
                                   rt_thread_report_t *report) {
  memset(report, 0, sizeof *report);
  report->tid = (int32_t)syscall(SYS_gettid);
  if (stack && stack->signal_stack) {
    stack_t signal_stack = {.ss_sp = stack->signal_stack, .ss_size = RT_STACK_SIGNAL_BYTES};
    stack_t granted = {0};
    report->signal_stack_rc = sigaltstack(&signal_stack, NULL) || sigaltstack(NULL, &granted) ? -errno : 0;
    if (!report->signal_stack_rc && (granted.ss_sp != stack->signal_stack || (granted.ss_flags & SS_DISABLE))) {
      report->signal_stack_rc = -ENOTSUP;
    }
  }
  sigset_t mask;
  const int mask_error = pthread_sigmask(SIG_SETMASK, NULL, &mask);
  report->mask_rc = mask_error ? -mask_error : sigismember(&mask, SIGTERM) ? 0 : -ENOTSUP;
  report->name_rc = prctl(PR_SET_NAME, request->name, 0, 0, 0) ? -errno : 0;
  rt_thread_set_cpus(request, report);
  if (request->flush_denormals) report->denormals_flushed = rt_thread_flush_denormals();
  report->policy_rc = syscall(SYS_sched_setattr, 0, &request->attr, 0) ? -errno : 0;
  /* Timer slack delays the timers of ordinary threads by 50 us; real-time threads have none. */
  if (report->policy_rc || request->attr.sched_policy == SCHED_OTHER) {
    report->slack_rc = prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0) ? -errno : 0;
  }
  report->slack_ns = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
  (void)syscall(SYS_sched_getattr, 0, &report->attr, sizeof report->attr, 0);
}

/* Create the thread on its stack, which keeps `body` and `argument`. The control thread; enters the kernel. Returns
 * 0 or a negative errno; there is no thread then. */
static inline int rt_thread_create(pthread_t *thread, rt_stack_t *stack, void *(*body)(void *), void *argument) {
  pthread_attr_t attr;
  sigset_t blocked, before;
  const struct sched_param ordinary = {0};
  int rc = pthread_attr_init(&attr);
  if (rc) return -rc;
  sigfillset(&blocked);
  const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
  for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) sigdelset(&blocked, faults[i]);
  if (!rc) rc = pthread_attr_setstack(&attr, stack->base, stack->bytes);
  /* An explicit policy takes sched_setscheduler(2) and sched_get_priority_max(2), which a seccomp filter may forbid.
   * Then the thread inherits the policy of its creator, and rt_thread_setup requests its own. */
  int explicit_rc = pthread_attr_setschedpolicy(&attr, SCHED_OTHER);
  if (!explicit_rc) explicit_rc = pthread_attr_setschedparam(&attr, &ordinary);
  if (!explicit_rc) explicit_rc = pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED);
  /* Inherited by the thread. If a seccomp filter forbids it, signals may interrupt the thread, which reports that. */
  const int mask_rc = pthread_sigmask(SIG_SETMASK, &blocked, &before);
  if (!rc) {
    stack->body = body;
    stack->argument = argument;
    rc = pthread_create(thread, &attr, rt_stack_begin, stack);
    if (!explicit_rc && rc && rc != EAGAIN && !pthread_attr_setinheritsched(&attr, PTHREAD_INHERIT_SCHED)) {
      rc = pthread_create(thread, &attr, rt_stack_begin, stack);
    }
  }
  if (!mask_rc) pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attr);
  return -rc;
}

#endif
