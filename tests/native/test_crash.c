/* Children that crash in each way, and the reports that their parent reads while it can still read their memory map. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "check.h"
#include "rtloop/crash.h"

/* Time in which a child that cannot report has ended, in tenths of a second. */
#ifndef PATIENCE
#define PATIENCE 600
#endif

static volatile int *const nowhere = (volatile int *)8;

static __attribute__((noinline, no_sanitize("all"))) void write_nowhere(void) { *nowhere = 1; }

static __attribute__((noinline, no_sanitize("all"))) int overflow_the_stack(volatile char *above) {
  volatile char here[4096];
  if (above && above[0] == 0) return 0; /* never */
  here[0] = above ? above[0] : 1;
  return overflow_the_stack(here) + here[0];
}

static __attribute__((noinline)) void wait_for_ever(void) {
  for (;;) pause();
}

/* Return the state of a process: R while it runs, S while it waits, Z after its end. See proc_pid_stat(5). */
static char state_of(pid_t pid) {
  char text[512] = "";
  snprintf(text, sizeof text, "/proc/%d/stat", (int)pid);
  FILE *const file = fopen(text, "r");
  CHECK(file && fgets(text, sizeof text, file));
  fclose(file);
  const char *const name_end = strrchr(text, ')');
  CHECK(name_end);
  return name_end[2];
}

/* Let a child crash in a way. Returns its process; its report can be read from *fd. */
static pid_t crash(int way, int *fd) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  const pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    close(ends[0]);
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0); /* a failed check ends the parent while the child waits */
    CHECK(rt_crash_report_to(ends[1]) == 0);
    if (way == 0) write_nowhere();
    if (way == 1) overflow_the_stack(NULL);
    if (way == 2) abort();
    if (way == 3) raise(SIGFPE);
    if (way == 4) wait_for_ever(); /* until its parent sends SIGABRT */
    if (way == 5) close(ends[1]), write_nowhere();
    _exit(1);
  }
  close(ends[1]);
  *fd = ends[0];
  return pid;
}

int main(void) {
  static const int numbers[] = {SIGSEGV, SIGSEGV, SIGABRT, SIGFPE, SIGABRT, 0};
  for (int way = 0; way < 6; way++) {
    int fd = -1, status = 0;
    const pid_t pid = crash(way, &fd);
    if (way == 4) {
      usleep(10000);
      kill(pid, SIGABRT); /* one that comes before the handlers are there ends the child without a report */
    }
    rt_crash_t report = {.number = 0};
    const ssize_t size = read(fd, &report, sizeof report);
    if (numbers[way] == 0 || (way == 4 && size == 0)) { /* it cannot write, and does not wait */
      CHECK(size == 0);
      pid_t ended = 0;
      for (int i = 0; i < 100 * PATIENCE && !(ended = waitpid(pid, &status, WNOHANG)); i++) usleep(1000);
      if (!ended) kill(pid, SIGKILL);
      CHECK(ended == pid);
      if (way == 5) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGSEGV);
      close(fd);
      continue;
    }
    CHECK(size == (ssize_t)sizeof report && report.number == (uint64_t)numbers[way]);
#if defined(__x86_64__) || defined(__aarch64__)
    CHECK(report.pc != 0);
    const uint64_t begin = (uint64_t)(uintptr_t)write_nowhere;
    if (way == 0) CHECK(report.pc >= begin && report.pc < begin + 64);
#endif
    if (way == 0) CHECK(report.address == 8);
    if (way > 1) CHECK(report.address == 0);
    char state = state_of(pid);
    for (; state == 'R' || state == 'D'; state = state_of(pid)) usleep(100);
    CHECK(state == 'S'); /* it waits */
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/maps", (int)pid);
    FILE *const maps = fopen(name, "r");
    CHECK(maps && fgets(name, sizeof name, maps));
    fclose(maps);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    close(fd);
  }
  return CHECK_DONE();
}
