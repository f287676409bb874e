/* Handler of the signals that end the process: it tells the loops to end, and wakes the thread that does the rest.
 *
 * All its state is static, so one module of a process includes it. The functions may be called by any thread but a
 * running loop's; the handler runs on whichever thread the kernel chooses.
 */
#ifndef RTLOOP_ENDING_SIGNALS_H
#define RTLOOP_ENDING_SIGNALS_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define RT_ENDING_SIGNALS 65
#define RT_ENDING_FLAGS 64
#define RT_ENDING_PATIENCE_S 10 /* for the thread to get the GIL */
#define RT_ENDING_LOOK_MS 10    /* from one look at the actions of the signals to the next */
#define RT_ENDING_ASK_LOOKS 10  /* from one question to Python about its handler of SIGINT to the next */

static __attribute__((unused)) int rt_ending_fd = -1;
static __attribute__((unused)) pid_t rt_ending_pid;
static __attribute__((unused)) uint32_t rt_ending_counts[RT_ENDING_SIGNALS];
static __attribute__((unused)) struct sigaction rt_ending_former[RT_ENDING_SIGNALS];
static __attribute__((unused)) timer_t rt_ending_timers[RT_ENDING_SIGNALS];
static __attribute__((unused)) int rt_ending_has_timer[RT_ENDING_SIGNALS];

/* Flags of the loops, which the handler sets itself: a loop ends although nobody gets the GIL. */
static __attribute__((unused)) struct {
  uint32_t *word;
  uint32_t bits;
  int is_taken;
} rt_ending_flags[RT_ENDING_FLAGS];
static __attribute__((unused)) uint32_t rt_ending_handlers; /* that are at work */
static __attribute__((unused)) int rt_ending_taken;         /* whether the thread has begun to end everything */
static __attribute__((unused)) uint64_t rt_ending_wanted;   /* signals to be handled, number n as bit n - 1 */
static __attribute__((unused)) int rt_ending_wants_pythons; /* whether SIGINT is, if it has Python's own handler */

/* Set the flags of all loops. The handler; O(RT_ENDING_FLAGS); never fails; no system call. */
static inline void rt_ending_set_flags(void) {
  __atomic_fetch_add(&rt_ending_handlers, 1, __ATOMIC_SEQ_CST);
  for (int i = 0; i < RT_ENDING_FLAGS; i++) {
    uint32_t *const word = __atomic_load_n(&rt_ending_flags[i].word, __ATOMIC_SEQ_CST);
    if (word) __atomic_fetch_or(word, rt_ending_flags[i].bits, __ATOMIC_RELEASE);
  }
  __atomic_fetch_sub(&rt_ending_handlers, 1, __ATOMIC_SEQ_CST);
}

/* Have the handler set these bits of a loop's word. From any threads at once; O(RT_ENDING_FLAGS). Without a free place
 * the thread alone ends the loop. */
static inline void rt_ending_add_flag(size_t word, uint32_t bits) {
  for (int i = 0; i < RT_ENDING_FLAGS; i++) {
    if (!__atomic_exchange_n(&rt_ending_flags[i].is_taken, 1, __ATOMIC_SEQ_CST)) {
      rt_ending_flags[i].bits = bits;
      __atomic_store_n(&rt_ending_flags[i].word, (uint32_t *)word, __ATOMIC_SEQ_CST);
      return;
    }
  }
}

/* Undo rt_ending_add_flag, once for each word. From any threads at once; waits for handlers at work, and when it
 * returns none uses the word any more. */
static inline void rt_ending_remove_flag(size_t word) {
  int found = -1;
  for (int i = 0; i < RT_ENDING_FLAGS && found < 0; i++) {
    if ((size_t)__atomic_load_n(&rt_ending_flags[i].word, __ATOMIC_SEQ_CST) == word) found = i;
  }
  if (found >= 0) __atomic_store_n(&rt_ending_flags[found].word, NULL, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&rt_ending_handlers, __ATOMIC_SEQ_CST)) sched_yield();
  /* Not before: a handler may still be about to read the bits. */
  if (found >= 0) __atomic_store_n(&rt_ending_flags[found].is_taken, 0, __ATOMIC_SEQ_CST);
}

/* Let a signal take effect by itself after so many seconds; 0: no longer. One system call. */
static inline void rt_ending_set_timer(int number, int seconds) {
  const struct itimerspec time = {.it_value = {.tv_sec = seconds}};
  if (rt_ending_has_timer[number]) timer_settime(rt_ending_timers[number], 0, &time, NULL);
}

/* Raise a signal with its default action, which ends the process. */
static inline void rt_ending_die(int number) {
  struct sigaction plain;
  memset(&plain, 0, sizeof plain);
  plain.sa_handler = SIG_DFL;
  sigaction(number, &plain, NULL);
  raise(number); /* in its own handler the signal is blocked, and comes when the handler returns */
}

/* Wake the thread. A signal handler may call it, too. One system call. */
static inline void rt_ending_wake(void) {
  const int saved = errno;
  const uint64_t one = 1;
  if (write(rt_ending_fd, &one, sizeof one) < 0) errno = 0; /* the counter is full: the thread is awake */
  errno = saved;
}

/* Handle a signal: tell the loops to end and wake the thread; in a forked child, and after the timer, die of it. */
static inline void rt_ending_note(int number, siginfo_t *info, void *context) {
  const int saved = errno;
  (void)context;
  if (getpid() != rt_ending_pid) {
    rt_ending_die(number); /* a child that was forked, which has neither loops nor the thread */
  } else if (info->si_code == SI_TIMER && info->si_value.sival_ptr == rt_ending_counts) {
    rt_ending_die(number); /* the thread has not had the GIL; the loops have been told to end */
  } else {
    rt_ending_set_flags();
    if (!rt_ending_taken && rt_ending_counts[number] == 0) rt_ending_set_timer(number, RT_ENDING_PATIENCE_S);
    __atomic_fetch_add(&rt_ending_counts[number], 1, __ATOMIC_RELEASE);
    rt_ending_wake();
  }
  errno = saved;
}

/* Make what the handler wakes the thread with, once in a process. Returns the descriptor to read from, or a negative
 * errno. A pipe if a filter forbids eventfd2. */
static inline int rt_ending_open(void) {
  int ends[2];
  ends[0] = ends[1] = eventfd(0, EFD_CLOEXEC);
  if (ends[0] < 0) {
    if (pipe2(ends, O_CLOEXEC)) return -errno;
    (void)fcntl(ends[1], F_SETFL, O_NONBLOCK); /* the handler never waits: a full pipe has woken the thread */
  }
  rt_ending_fd = ends[1];
  rt_ending_pid = getpid();
  return ends[0];
}

/* Say which signals rt_ending_wait looks for, number n as bit n - 1; and whether for a SIGINT with a handler, too. */
static inline void rt_ending_want(uint64_t numbers, int wants_pythons) {
  __atomic_store_n(&rt_ending_wants_pythons, wants_pythons, __ATOMIC_SEQ_CST);
  if (__atomic_exchange_n(&rt_ending_wanted, numbers, __ATOMIC_SEQ_CST) == 0 && numbers) rt_ending_wake();
}

/* Return whether a signal has its default action. One system call. */
static inline int rt_ending_is_default(int number) {
  struct sigaction now;
  return sigaction(number, NULL, &now) == 0 && !(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL;
}

/* Return whether the handler of a signal is the one of this file. One system call. */
static inline int rt_ending_is_armed(int number) {
  struct sigaction now;
  return sigaction(number, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == rt_ending_note;
}

/* Return whether SIGINT has a handler of somebody else, which may be Python's. One system call. */
static inline int rt_ending_is_foreign(void) {
  struct sigaction action;
  if (sigaction(SIGINT, NULL, &action)) return 0;
  if (action.sa_flags & SA_SIGINFO) return action.sa_sigaction != rt_ending_note;
  return action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
}

/* Wait until the thread is woken; returns 0. Returns the number of a wanted signal if the program has given it its
 * default action meanwhile, and SIGINT every RT_ENDING_ASK_LOOKS if its handler may be Python's own again. Looks every
 * RT_ENDING_LOOK_MS while any is wanted: the kernel tells nobody. */
static inline int rt_ending_wait(int fd) {
  struct pollfd file = {.fd = fd, .events = POLLIN};
  for (int looks = 1;; looks++) {
    const uint64_t wanted = __atomic_load_n(&rt_ending_wanted, __ATOMIC_SEQ_CST);
    const int woken = poll(&file, 1, wanted ? RT_ENDING_LOOK_MS : -1);
    if (woken > 0 || (woken < 0 && errno != EINTR)) return 0; /* without poll, the read that follows waits */
    for (int number = 1; number < RT_ENDING_SIGNALS && woken == 0; number++) {
      if ((wanted >> (number - 1) & 1) && rt_ending_is_default(number)) return number;
    }
    if (woken == 0 && looks % RT_ENDING_ASK_LOOKS == 0 && __atomic_load_n(&rt_ending_wants_pythons, __ATOMIC_SEQ_CST) &&
        rt_ending_is_foreign()) {
      return SIGINT;
    }
  }
}

/* Install the handler in the place of the default action, or of Python's handler of SIGINT. Returns 1 iff it
 * is installed. One timer of the kernel and three system calls. */
static inline int rt_ending_arm(int number, int is_pythons) {
  struct sigaction mine, now;
  if (sigaction(number, NULL, &now)) return 0;
  if (!is_pythons && ((now.sa_flags & SA_SIGINFO) || now.sa_handler != SIG_DFL)) return 0;
  memset(&mine, 0, sizeof mine);
  mine.sa_sigaction = rt_ending_note;
  mine.sa_flags = SA_RESTART | SA_ONSTACK | SA_SIGINFO;
  rt_ending_former[number] = now;
  __atomic_store_n(&rt_ending_counts[number], 0, __ATOMIC_RELEASE);
  struct sigevent event;
  memset(&event, 0, sizeof event);
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = number;
  event.sigev_value.sival_ptr = rt_ending_counts;
  rt_ending_has_timer[number] = timer_create(CLOCK_MONOTONIC, &event, &rt_ending_timers[number]) == 0;
  return sigaction(number, &mine, NULL) == 0;
}

/* Put the former action back, unless somebody has set another one meanwhile. Three system calls. */
static inline void rt_ending_disarm(int number) {
  if (rt_ending_is_armed(number)) sigaction(number, &rt_ending_former[number], NULL);
  if (rt_ending_has_timer[number]) timer_delete(rt_ending_timers[number]);
  rt_ending_has_timer[number] = 0;
}

/* Return how many signals of a number have come since it was armed or forgotten. */
static inline uint32_t rt_ending_count(int number) {
  return __atomic_load_n(&rt_ending_counts[number], __ATOMIC_ACQUIRE);
}

/* Count the signals of a number from zero. */
static inline void rt_ending_forget(int number) { __atomic_store_n(&rt_ending_counts[number], 0, __ATOMIC_RELEASE); }

/* Die of a signal, by its default action or else by its exit status. Does not return. */
static inline void rt_ending_take_course(int number) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number);
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
  rt_ending_die(number);
  /* Still here: the first process of a container does not die of a signal's default action. */
  _exit(128 + number);
}

/* Set whether the thread has begun to end everything; the handler then sets no timer. */
static inline void rt_ending_take(int is_taken) { __atomic_store_n(&rt_ending_taken, is_taken, __ATOMIC_SEQ_CST); }

/* Forget everything in a forked child: the loops, the signals and the handlers at work are all its parent's. */
static inline void rt_ending_clear(void) {
  memset(rt_ending_flags, 0, sizeof rt_ending_flags);
  memset(rt_ending_counts, 0, sizeof rt_ending_counts);
  rt_ending_handlers = 0;
  rt_ending_wanted = 0;
  rt_ending_wants_pythons = 0;
}

#endif
