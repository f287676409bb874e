/* Handler of the signals that end the process: it tells the loops to end, and wakes the thread that does the rest.
 *
 * All its state is static, so one module of a process includes it. The functions may be called by any thread but a
 * running loop's; the handler runs on whichever thread the kernel chooses.
 *
 * Several may ask for a signal at once. What they have asked for is here and not in objects of Python, because Python
 * code can be interrupted, by a handler of Python or a finalizer, while it holds a lock that another thread needs.
 */
#ifndef RTLOOP_ENDING_SIGNALS_H
#define RTLOOP_ENDING_SIGNALS_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
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

/* Somebody who asks for signals to be handled, from rt_ending_ask to rt_ending_withdraw. Number n is bit n - 1. */
typedef struct rt_ending_asker {
  uint64_t asked, armed;
  int takes_pythons; /* whether SIGINT as well, if it has Python's own handler */
  struct rt_ending_asker *next;
} rt_ending_asker_t;

static __attribute__((unused)) pthread_mutex_t rt_ending_mutex = PTHREAD_MUTEX_INITIALIZER; /* of these two */
static __attribute__((unused)) rt_ending_asker_t *rt_ending_askers;
static __attribute__((unused)) uint32_t rt_ending_depths[RT_ENDING_SIGNALS]; /* askers for whom a signal is armed */

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

/* Arm a signal for one more asker, unless it is to be left alone. With the mutex held. */
static inline void rt_ending_raise(rt_ending_asker_t *asker, int number, int is_pythons) {
  if (is_pythons && !asker->takes_pythons) return;
  const int is_replaced = is_pythons && rt_ending_depths[number] && !rt_ending_is_armed(number);
  if (is_replaced) rt_ending_disarm(number); /* its timer */
  if ((is_replaced || !rt_ending_depths[number]) && !rt_ending_arm(number, is_pythons)) return;
  rt_ending_depths[number]++;
  asker->armed |= (uint64_t)1 << (number - 1);
}

/* Have rt_ending_wait look for what anybody asks for. With the mutex held. */
static inline void rt_ending_want_all(void) {
  uint64_t wanted = 0;
  int wants_pythons = 0;
  for (const rt_ending_asker_t *one = rt_ending_askers; one; one = one->next) {
    wanted |= one->asked;
    wants_pythons |= one->takes_pythons && one->asked >> (SIGINT - 1) & 1;
  }
  rt_ending_want(wanted, wants_pythons);
}

/* Make loops end before the signals of an asker end the process. A signal that has a handler or is ignored is left
 * alone until it has its default action again. `is_pythons` tells whether the handler of SIGINT is Python's own. The
 * asker stays where it is until rt_ending_withdraw. Three system calls for each signal that nobody else asks for. */
static inline void rt_ending_ask(rt_ending_asker_t *asker, int is_pythons) {
  pthread_mutex_lock(&rt_ending_mutex);
  asker->armed = 0;
  asker->next = rt_ending_askers;
  rt_ending_askers = asker;
  for (int number = 1; number < RT_ENDING_SIGNALS; number++) {
    if (asker->asked >> (number - 1) & 1) rt_ending_raise(asker, number, is_pythons && number == SIGINT);
  }
  rt_ending_want_all();
  pthread_mutex_unlock(&rt_ending_mutex);
}

/* Handle a signal that the program has given its default action, or Python's own handler, while others ask for it. */
static inline void rt_ending_ask_again(int number, int is_pythons) {
  const uint64_t bit = (uint64_t)1 << (number - 1);
  pthread_mutex_lock(&rt_ending_mutex);
  int is_asked = 0;
  for (const rt_ending_asker_t *one = rt_ending_askers; one; one = one->next) {
    is_asked |= one->asked & bit && (one->takes_pythons || !is_pythons);
  }
  if (is_asked && !rt_ending_is_armed(number) && (is_pythons || rt_ending_is_default(number))) {
    rt_ending_disarm(number); /* its timer */
    const int is_armed = rt_ending_arm(number, is_pythons);
    for (rt_ending_asker_t *one = rt_ending_askers; one && is_armed; one = one->next) {
      if (!(one->asked & bit) || one->armed & bit || (is_pythons && !one->takes_pythons)) continue;
      one->armed |= bit;
      rt_ending_depths[number]++;
    }
  }
  pthread_mutex_unlock(&rt_ending_mutex);
}

/* Undo rt_ending_ask; a second call does nothing, nor does one in a forked child. */
static inline void rt_ending_withdraw(rt_ending_asker_t *asker) {
  pthread_mutex_lock(&rt_ending_mutex);
  rt_ending_asker_t **place = &rt_ending_askers;
  while (*place && *place != asker) place = &(*place)->next;
  if (*place) {
    *place = asker->next;
    rt_ending_want_all();
    for (int number = 1; number < RT_ENDING_SIGNALS; number++) {
      if ((asker->armed >> (number - 1) & 1) && --rt_ending_depths[number] == 0) rt_ending_disarm(number);
    }
  }
  pthread_mutex_unlock(&rt_ending_mutex);
}

/* Return how many signals of a number have come since it was armed or forgotten. */
static inline uint32_t rt_ending_count(int number) {
  return __atomic_load_n(&rt_ending_counts[number], __ATOMIC_ACQUIRE);
}

/* Count the signals of a number from zero. */
static inline void rt_ending_forget(int number) { __atomic_store_n(&rt_ending_counts[number], 0, __ATOMIC_RELEASE); }

/* Send a signal to a thread with the action that it had before; rt_ending_wait has it armed again later. */
static inline void rt_ending_pass_on(int number, pthread_t thread) {
  pthread_mutex_lock(&rt_ending_mutex); /* an asker would have it armed again before it is sent */
  rt_ending_disarm(number);
  rt_ending_forget(number);
  (void)pthread_kill(thread, number); /* the thread may have ended */
  pthread_mutex_unlock(&rt_ending_mutex);
}

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
  static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER; /* another thread may have held the other */
  rt_ending_mutex = fresh;
  rt_ending_askers = NULL;
  for (int number = 1; number < RT_ENDING_SIGNALS; number++) {
    if (rt_ending_depths[number]) rt_ending_disarm(number);
  }
  memset(rt_ending_depths, 0, sizeof rt_ending_depths);
  memset(rt_ending_flags, 0, sizeof rt_ending_flags);
  memset(rt_ending_counts, 0, sizeof rt_ending_counts);
  rt_ending_handlers = 0;
  rt_ending_wanted = 0;
  rt_ending_wants_pythons = 0;
}

#endif
