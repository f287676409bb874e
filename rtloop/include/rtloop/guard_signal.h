/* The handler of SIGSYS, through which a guard sees the system calls of a step (Syscall User Dispatch).
 *
 * There is one handler per process, so only one module may include this header. The handler runs on the alternate
 * signal stack of the loop's thread, finds the guard by the address of that stack, and uses nothing but the guard's
 * block: no lock, no allocation, no errno. Every other SIGSYS goes to the handler that was installed before.
 */
#ifndef RTLOOP_GUARD_SIGNAL_H
#define RTLOOP_GUARD_SIGNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ucontext.h>

#include "guard.h"

#define RT_GUARD_LOOPS 64

#ifndef SYS_USER_DISPATCH
#define SYS_USER_DISPATCH 2 /* siginfo_t.si_code */
#endif

/* The stacks of guarded threads. A slot is free while `high` is 0. One thread at a time writes slots: the keeper. */
typedef struct rt_guard_slot {
  uintptr_t low, high;
  rt_guard_t *guard;
} rt_guard_slot_t;

static __attribute__((unused)) rt_guard_slot_t rt_guard_slots[RT_GUARD_LOOPS];
static __attribute__((unused)) struct sigaction rt_guard_former;
static __attribute__((unused)) int rt_guard_is_installed;

/* Find the guard of the thread on whose stack an address lies. NULL iff there is none. Any thread, a signal handler
 * included; O(RT_GUARD_LOOPS). */
static inline rt_guard_t *rt_guard_find_by_stack(uintptr_t address) {
  for (int i = 0; i < RT_GUARD_LOOPS; i++) {
    const uintptr_t high = rt_load_acquire(&rt_guard_slots[i].high);
    if (address < high && address >= rt_load_relaxed(&rt_guard_slots[i].low)) return rt_guard_slots[i].guard;
  }
  return NULL;
}

/* Do what would have happened without this handler: call the former one, or take the default action. */
static __attribute__((unused)) void rt_guard_call_former_handler(int number, siginfo_t *info, void *context) {
  if (rt_guard_former.sa_flags & SA_SIGINFO) {
    rt_guard_former.sa_sigaction(number, info, context);
  } else if (rt_guard_former.sa_handler == SIG_DFL || (rt_guard_former.sa_handler == SIG_IGN && info->si_code > 0)) {
    const struct sigaction fallback = {.sa_handler = SIG_DFL};
    sigaction(number, &fallback, NULL);
    raise(number); /* delivered at once, because SA_NODEFER leaves the signal unblocked */
  } else if (rt_guard_former.sa_handler != SIG_IGN) {
    rt_guard_former.sa_handler(number);
  }
}

#if defined(__x86_64__)
#define RT_GUARD_ARCH 0xc000003eu /* AUDIT_ARCH_X86_64 */
#define RT_GUARD_CALL_BYTES 2
#define RT_GUARD_SP(uc) ((uint64_t)(uc)->uc_mcontext.gregs[REG_RSP])
#define RT_GUARD_PC(uc) ((uc)->uc_mcontext.gregs[REG_RIP])
#define RT_GUARD_RESULT(uc) ((uc)->uc_mcontext.gregs[REG_RAX])
#define RT_GUARD_ARGUMENTS(uc)                                                                                         \
  {(uint64_t)(uc)->uc_mcontext.gregs[REG_RDI], (uint64_t)(uc)->uc_mcontext.gregs[REG_RSI],                             \
   (uint64_t)(uc)->uc_mcontext.gregs[REG_RDX], (uint64_t)(uc)->uc_mcontext.gregs[REG_R10],                             \
   (uint64_t)(uc)->uc_mcontext.gregs[REG_R8],  (uint64_t)(uc)->uc_mcontext.gregs[REG_R9]}
#elif defined(__aarch64__)
#define RT_GUARD_ARCH 0xc00000b7u /* AUDIT_ARCH_AARCH64 */
#define RT_GUARD_CALL_BYTES 4
#define RT_GUARD_SP(uc) ((uint64_t)(uc)->uc_mcontext.sp)
#define RT_GUARD_PC(uc) ((uc)->uc_mcontext.pc)
#define RT_GUARD_RESULT(uc) ((uc)->uc_mcontext.regs[0])
#define RT_GUARD_ARGUMENTS(uc)                                                                                         \
  {(uc)->uc_mcontext.regs[0], (uc)->uc_mcontext.regs[1], (uc)->uc_mcontext.regs[2],                                    \
   (uc)->uc_mcontext.regs[3], (uc)->uc_mcontext.regs[4], (uc)->uc_mcontext.regs[5]}
#endif

#ifdef RT_GUARD_ARCH
/* Test for system calls that a handler cannot make on behalf of the step. They return twice, change the signal mask or
 * stack that the return from the handler restores, or are that return. The thread repeats such a call itself, and the
 * rest of the step is not watched. */
static inline int rt_guard_is_own_frame(int64_t number) {
  switch (number) {
  case SYS_clone:
#ifdef SYS_clone3
  case SYS_clone3:
#endif
#ifdef SYS_fork
  case SYS_fork:
  case SYS_vfork:
#endif
  case SYS_execve:
  case SYS_execveat:
  case SYS_rt_sigreturn:
  case SYS_rt_sigprocmask:
  case SYS_rt_sigsuspend:
  case SYS_sigaltstack:
    return 1;
  default:
    return 0;
  }
}

/* Handle SIGSYS: record the system call of a step unless it is allowed, and carry it out. The loop's thread; as long as
 * the system call. */
static __attribute__((noinline, unused)) void rt_guard_on_signal(int number, siginfo_t *info, void *context) {
  rt_guard_t *const g = rt_guard_find_by_stack((uintptr_t)__builtin_frame_address(0));
  if (g == NULL || info->si_code != SYS_USER_DISPATCH) {
    const uint8_t selector = g ? g->selector : RT_DISPATCH_ALLOW;
    if (g) g->selector = RT_DISPATCH_ALLOW; /* the calls of a foreign handler are not the step's */
    rt_guard_call_former_handler(number, info, context);
    if (g) g->selector = selector;
    return;
  }
  g->selector = RT_DISPATCH_ALLOW;
  ucontext_t *const uc = (ucontext_t *)context;
  const int64_t call = info->si_syscall;
  g->traps += 1;
  if (g->restorer == 0) g->restorer = (uint64_t)(uintptr_t)__builtin_return_address(0);
  const int is_allowed = call >= 0 && call < (int64_t)RT_GUARD_ALLOWED && ((g->allowed[call / 64] >> (call % 64)) & 1);
  if (!is_allowed && call != SYS_rt_sigreturn) {
    const uint64_t sp = RT_GUARD_SP(uc);
    const uint64_t *const words = (const uint64_t *)(uintptr_t)(sp & ~UINT64_C(7));
    rt_guard_record(g, RT_GUARD_SYSCALL, 0, (uint64_t)call, 1, (uint64_t)(uintptr_t)info->si_call_addr, words,
                    rt_guard_stack_words(g, sp));
  }
  if (info->si_arch != RT_GUARD_ARCH || rt_guard_is_own_frame(call)) {
    RT_GUARD_PC(uc) -= RT_GUARD_CALL_BYTES;
    return;
  }
  const uint64_t arguments[6] = RT_GUARD_ARGUMENTS(uc);
  RT_GUARD_RESULT(uc) = (__typeof__(RT_GUARD_RESULT(uc)))rt_guard_raw_syscall((long)call, arguments);
  g->selector = g->on;
}
#else
static __attribute__((unused)) void rt_guard_on_signal(int number, siginfo_t *info, void *context) {
  rt_guard_call_former_handler(number, info, context);
}
#endif

/* Handle SIGSYS for the thread whose stacks lie in low..high. On the keeper, before that thread exists; enters the
 * kernel. Returns 0, or a negative errno: -EAGAIN iff RT_GUARD_LOOPS threads are registered. After a failure the guard
 * does not watch system calls, because an unhandled SIGSYS ends the process. */
static __attribute__((unused)) int rt_guard_register(rt_guard_t *guard, uintptr_t low, uintptr_t high) {
  int free = -1;
  guard->syscalls_rc = -EAGAIN;
  for (int i = 0; i < RT_GUARD_LOOPS && free < 0; i++) {
    if (rt_guard_slots[i].high == 0) free = i;
  }
  if (free < 0) return guard->syscalls_rc;
  struct sigaction now;
  if (sigaction(SIGSYS, NULL, &now)) return guard->syscalls_rc = -errno;
  if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != rt_guard_on_signal) {
    rt_guard_former = now;
    struct sigaction ours = {.sa_sigaction = rt_guard_on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    if (sigaction(SIGSYS, &ours, NULL)) return guard->syscalls_rc = -errno;
    rt_guard_is_installed = 1;
  }
  rt_guard_slots[free].guard = guard;
  rt_store_relaxed(&rt_guard_slots[free].low, low);
  rt_store_release(&rt_guard_slots[free].high, high);
  return guard->syscalls_rc = 0;
}

/* Test whether SIGSYS still comes to rt_guard_on_signal. Returns 0 iff other code has installed a handler since. Any
 * thread; enters the kernel. */
static __attribute__((unused)) int rt_guard_has_signal(void) {
  struct sigaction now;
  return sigaction(SIGSYS, NULL, &now) || ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == rt_guard_on_signal);
}

/* Stop handling SIGSYS for a thread that has ended. After the last thread the former handler is restored, unless
 * another one has been installed in the meantime. On the keeper; enters the kernel; never fails. */
static __attribute__((unused)) void rt_guard_unregister(const rt_guard_t *guard) {
  int used = 0;
  for (int i = 0; i < RT_GUARD_LOOPS; i++) {
    if (rt_guard_slots[i].high && rt_guard_slots[i].guard == guard)
      rt_store_release(&rt_guard_slots[i].high, (uintptr_t)0);
    used += rt_guard_slots[i].high != 0;
  }
  struct sigaction now;
  if (used || !rt_guard_is_installed || sigaction(SIGSYS, NULL, &now)) return;
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == rt_guard_on_signal) sigaction(SIGSYS, &rt_guard_former, NULL);
  rt_guard_is_installed = 0;
}

#endif
