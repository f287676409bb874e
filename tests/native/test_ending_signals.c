/* The handler of ending signals: loops are told to end, the thread is woken, and a forked child dies of the signal. */
#include <sys/wait.h>

#include "check.h"
#include "rtloop/ending_signals.h"

static uint32_t words[RT_ENDING_FLAGS + 1];

static uint64_t wakes(int fd) {
  uint64_t count = 0;
  CHECK(read(fd, &count, sizeof count) == sizeof count);
  return count;
}

/* Run `body` in a child, and return the signal that ended it, or 0. */
static int ends_by(void (*body)(void)) {
  const pid_t child = fork();
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void raise_it(void) { raise(SIGUSR1); }

static void take_course(void) { rt_ending_take_course(SIGUSR1); }

static void notice(int number, siginfo_t *info, void *context) { (void)number, (void)info, (void)context; }

int main(void) {
  const int fd = rt_ending_open();
  CHECK(fd >= 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
  CHECK(rt_ending_arm(SIGUSR1, 0));

  /* Every loop with a place is told, the thread is woken, and the signal is counted. */
  for (int i = 0; i <= RT_ENDING_FLAGS; i++) rt_ending_add_flag((size_t)&words[i], 4u);
  raise(SIGUSR1);
  for (int i = 0; i < RT_ENDING_FLAGS; i++) CHECK(words[i] == 4u);
  CHECK(words[RT_ENDING_FLAGS] == 0); /* without a place: the thread alone ends it */
  CHECK(wakes(fd) == 1 && rt_ending_count(SIGUSR1) == 1);

  /* A loop that has ended is left alone, and its place is taken by another. */
  rt_ending_remove_flag((size_t)&words[0]);
  rt_ending_add_flag((size_t)&words[RT_ENDING_FLAGS], 8u);
  words[0] = 0;
  raise(SIGUSR1);
  CHECK(words[0] == 0 && words[RT_ENDING_FLAGS] == 8u);
  CHECK(wakes(fd) == 1 && rt_ending_count(SIGUSR1) == 2);
  rt_ending_forget(SIGUSR1);
  CHECK(rt_ending_count(SIGUSR1) == 0);

  /* A forked child has neither loops nor the thread. */
  CHECK(ends_by(raise_it) == SIGUSR1);
  CHECK(ends_by(take_course) == SIGUSR1);

  /* The default action is put back, unless somebody has set another one meanwhile; a handler is never replaced. */
  rt_ending_disarm(SIGUSR1);
  struct sigaction now;
  CHECK(sigaction(SIGUSR1, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
  CHECK(rt_ending_arm(SIGUSR1, 0));
  struct sigaction other = {.sa_flags = SA_SIGINFO, .sa_sigaction = notice};
  CHECK(sigaction(SIGUSR1, &other, NULL) == 0);
  rt_ending_disarm(SIGUSR1);
  CHECK(sigaction(SIGUSR1, NULL, &now) == 0 && now.sa_sigaction == notice);
  CHECK(!rt_ending_arm(SIGUSR1, 0));
  CHECK(signal(SIGUSR1, SIG_IGN) != SIG_ERR);
  CHECK(!rt_ending_arm(SIGUSR1, 0));
  return CHECK_DONE();
}
