/* The loop itself: wait for the release, step, take the time, record, move on. Everything that runs per cycle is here.
 *
 * rt_loop_main is the body of the loop's thread. It is inlined into its one caller with the callbacks as constants, so
 * that a cycle makes one indirect call: the user's step. Per cycle it makes one system call, the sleep, and none when the
 * release is already past or the margin for spinning covers the wait.
 */
#ifndef RTLOOP_LOOP_H
#define RTLOOP_LOOP_H

#include "clock.h"
#include "cycle.h"
#include "futex.h"
#include "guard_faults.h"
#include "schedule.h"
#include "spin.h"
#include "stack.h"
#include "telemetry.h"
#include "thread.h"
#include "watch.h"

/* Where a run stands; a futex word between the control thread and the loop's. */
enum {
  RT_PHASE_IDLE = 0, /* no thread; also what a forked child sees in its wiped copy */
  RT_PHASE_STARTING = 1,
  RT_PHASE_READY = 2, /* the thread has asked for everything and waits for the verdict */
  RT_PHASE_GO = 3,
  RT_PHASE_ABORT = 4,
  RT_PHASE_DONE = 5,
  RT_PHASE_ENTERED = 6, /* in a group: enter() has returned, and the thread waits for the others and the origin */
  RT_PHASE_BEGIN = 7,   /* the origin is known */
};

/* Bits of the command word. */
enum {
  RT_COMMAND_STOP = 1u,
  RT_COMMAND_RESET = 2u,
  RT_COMMAND_PEER = 4u, /* another loop of the group has failed: call on_peer_failure() */
};

/* What ended a run. */
enum {
  RT_END_NORMAL = 0, /* stop(), RT_STOP, or the limit of run() */
  RT_END_ENTER = 1,
  RT_END_STEP = 2,
  RT_END_OVERRUN = 3, /* the callback of that name */
  RT_END_WAIT = 4,
  RT_END_CLOCK = 5,    /* clock_nanosleep failed */
  RT_END_OVERRUNS = 6, /* the overrun policy */
  RT_END_GUARD = 7,    /* a guard, in a loop that is to stop for it */
  RT_END_PEER = 8,     /* on_peer_failure() */
  RT_END_WATCHDOG = 9, /* the watchdog has found it stuck, whatever its step has returned since */
  RT_GO_ON = -1,       /* nothing has: there is a next cycle */
};

/* A sleep longer than this is taken in slices, so that a stop is seen. */
#define RT_SLICE_NS INT64_C(50000000)

typedef struct rt_loop {
  rt_schedule_t schedule;
  rt_cycle_t cycle;
  rt_spin_t spin;
  rt_telemetry_t *telemetry;
  clockid_t clock;
  int32_t has_own_wait;    /* whether a subclass overrides wait() */
  rt_clock_reader_t *read; /* as rt_clock_reader has it */
  rt_second_t second;      /* of the last sleep's end */
  int64_t first_release;
  uint64_t warmup;      /* index of the first cycle that counts in the histograms */
  uint64_t max_cycles;  /* the run ends after this many */
  int64_t max_duration; /* or before the first release at or after first_release + this */
  int64_t end_release;
  int64_t plain_until; /* a release before this is waited for by one sleep, and is none of the end */
  rt_bank_t *bank;     /* of the telemetry, as rt_telemetry_bank has it */
  int32_t is_late;     /* whether the cycle's release had passed before it was waited for; else 0 */
  int64_t align;
  int64_t phase_ns;

  int32_t end_code;
  int32_t end_reason;
  rt_thread_request_t request;
  rt_thread_report_t report;
  rt_stack_t stack;
  pthread_t thread;
  rt_guard_t *guard;     /* NULL: nothing is guarded */
  int64_t origin;        /* of the group, on the loop's clock; 0: the loop finds its own */
  struct rt_loop *peer;  /* the next of the loops, in a ring, that are told when this one fails; NULL: there are none */
  int32_t is_member;     /* whether a group says when the first release is */
  uint32_t peer_command; /* what they are told: RT_COMMAND_STOP or RT_COMMAND_PEER */
  int32_t verdict;       /* the reason for which the run ends that a command ends */
  int32_t was_asked;     /* whether on_peer_failure() has run since the last step */
  void *self;            /* of the two: */
  int (*on_peer_failure)(void *);
  int (*safe)(void *);
  rt_trip_t trip; /* written by the watchdog */

  _Alignas(RT_CACHE_LINE) uint32_t command; /* written by other threads, read once per cycle */
  _Alignas(RT_CACHE_LINE) uint32_t phase;
  uint32_t watch; /* RT_WATCH_... */
} rt_loop_t;

/* Ask the loop's thread for something, from any thread. */
static inline void rt_loop_command(rt_loop_t *loop, uint32_t bits) {
  __atomic_fetch_or(&loop->command, bits, __ATOMIC_RELEASE);
}

/* The time on the loop's clock. */
static inline int64_t rt_loop_now(const rt_loop_t *loop) {
  struct timespec ts;
  loop->read(loop->clock, &ts);
  return (int64_t)ts.tv_sec * RT_NS_PER_S + ts.tv_nsec;
}

/* The statistics begin anew, and the next cycle is none like all others: no interval ends with it. */
static inline void rt_loop_follow(rt_loop_t *loop) {
  loop->bank = rt_telemetry_bank(loop->telemetry);
  loop->schedule.is_unsettled = 1;
}

/* Turn to the cleared bank of the statistics. On the loop's thread, between two cycles. */
static __attribute__((noinline, cold, unused)) void rt_loop_reset(rt_loop_t *loop) {
  rt_telemetry_turn(loop->telemetry, loop->schedule.release);
  rt_loop_follow(loop);
  rt_telemetry_usage(loop->telemetry, rt_thread_usage(), 0);
  if (loop->guard) rt_guard_reset(loop->guard);
  __atomic_fetch_and(&loop->command, ~RT_COMMAND_RESET, __ATOMIC_RELEASE);
}

/* Another loop of the group has failed, or several have: ask this one what it does. Returns as rt_loop_obey. */
static __attribute__((noinline, cold, unused)) int rt_loop_ask(rt_loop_t *loop) {
  /* Whatever fails from here on asks again. */
  __atomic_fetch_and(&loop->command, ~RT_COMMAND_PEER, __ATOMIC_ACQ_REL);
  const int rc = loop->on_peer_failure ? loop->on_peer_failure(loop->self) : RT_STOP;
  loop->was_asked = 1;
  if (rc == RT_CONTINUE) return RT_GO_ON;
  loop->verdict = rc == RT_STOP ? RT_END_NORMAL : RT_END_PEER;
  loop->end_code = rc == RT_STOP ? 0 : rc;
  rt_loop_command(loop, RT_COMMAND_STOP); /* for whoever looks at the word next */
  return loop->verdict;
}

/* Do what the command word says, between two cycles. Returns RT_GO_ON or the reason for which the run ends. */
static __attribute__((noinline, cold, unused)) int rt_loop_obey(rt_loop_t *loop) {
  const uint32_t command = rt_load_acquire(&loop->command);
  if (command & RT_COMMAND_STOP) return loop->verdict;
  if (command & RT_COMMAND_RESET) rt_loop_reset(loop);
  return command & RT_COMMAND_PEER ? rt_loop_ask(loop) : RT_GO_ON;
}

/* What a single sleep does not do: sleep on after a signal, and in slices; learn; spin. `now` is the time, `rc` the first
 * sleep's, or 1 where there was none. Returns the time, or a negative errno; early when a command is pending. */
static __attribute__((noinline, unused)) int64_t rt_loop_wait_on(rt_loop_t *loop, int64_t now, int64_t release,
                                                                 int rc) {
  const int64_t target = release - loop->spin.margin;
  for (;;) {
    if (rc <= 0) {
      if (RT_UNLIKELY(rc) && rc != -EINTR) return rc;
      const uint32_t command = rt_load_acquire(&loop->command);
      if (RT_UNLIKELY(command & RT_COMMAND_STOP)) return now;
      if (RT_UNLIKELY(command && now < target)) { /* there is time; at the release there is none */
        if (rt_loop_obey(loop) != RT_GO_ON) return now;
        now = rt_loop_now(loop);
        if (now >= target) break; /* that was no latency, of which there is nothing to learn */
      }
      if (loop->spin.is_auto && now >= target) {
        rt_spin_learn(&loop->spin, now - target);
        break;
      }
    }
    if (target <= now) break;
    const int64_t until = target - now <= RT_SLICE_NS ? target : now + RT_SLICE_NS;
    rc = rt_clock_sleep_until(loop->clock, &loop->second, until);
    now = rt_loop_now(loop);
  }
  /* Pauses close together make a hypervisor take the CPU away (pause-loop exiting): one in RT_SPIN_READS clock reads. */
  for (uint32_t reads = 1; RT_UNLIKELY(now < release); reads++) {
    if (RT_UNLIKELY(rt_load_relaxed(&loop->command) & RT_COMMAND_STOP)) return now;
    if (reads % RT_SPIN_READS == 0) rt_cpu_relax();
    now = rt_loop_now(loop);
  }
  return now;
}

/* Wait for the release in the loop's own way, where the margin for spinning is 0. `now` is the time. Returns the time, or a
 * negative errno; early when a command is pending. */
static inline int64_t rt_loop_wait(rt_loop_t *loop, int64_t now, int64_t release) {
  /* Most cycles: the release lies ahead, by a slice at most, and the sleep is all. */
  if (RT_LIKELY((uint64_t)release - (uint64_t)now - 1 < (uint64_t)RT_SLICE_NS)) {
    const int rc = rt_clock_sleep_until(loop->clock, &loop->second, release);
    now = rt_loop_now(loop);
    return RT_LIKELY(rc == 0 && now >= release) ? now : rt_loop_wait_on(loop, now, release, rc);
  }
  loop->is_late = now > release;
  return rt_loop_wait_on(loop, now, release, 1);
}

/* The same for a wait() that a subclass ends with the loop's own, and where there is a margin. Returns 0 or a negative
 * errno. */
static inline int rt_loop_sleep(rt_loop_t *loop, int64_t release) {
  const int64_t now = rt_loop_wait_on(loop, rt_loop_now(loop), release, 1);
  return now < 0 ? (int)now : 0;
}

/* The state of a run whose first release is known, before its first cycle. */
static inline void rt_loop_begin(rt_loop_t *loop, int64_t first) {
  const int64_t period = loop->schedule.period;
  loop->first_release = first;
  loop->schedule.release = first;
  loop->end_release = first > INT64_MAX - loop->max_duration ? INT64_MAX : first + loop->max_duration;
  loop->plain_until = loop->has_own_wait || loop->spin.margin ? INT64_MIN : loop->end_release;
  loop->is_late = 0;
  loop->cycle = (rt_cycle_t){.period = period, .dt = (double)period * 1e-9};
  rt_telemetry_begin(loop->telemetry, first);
  rt_loop_follow(loop);
}

/* The same with the first release that can be made, or the group's, even where that has passed: it is late then, and
 * stays on the grid. `now` is the time on the loop's clock. */
static inline void rt_loop_first(rt_loop_t *loop, int64_t now) {
  if (loop->origin) {
    rt_loop_begin(loop, loop->origin + loop->phase_ns);
    return;
  }
  const int64_t period = loop->schedule.period;
  const int64_t lead = period < 1000000 ? period : 1000000;
  rt_loop_begin(loop, rt_schedule_first(now, lead, loop->align, loop->phase_ns));
}

/* Fill in what the callbacks see of the cycle whose release has come. */
static inline void rt_loop_enter_cycle(rt_loop_t *loop, int64_t release, int64_t start) {
  rt_cycle_t *const cycle = &loop->cycle;
  cycle->release = release;
  rt_store_relaxed(&cycle->start, start); /* or gcc takes four instructions to join two stores into one */
  cycle->t = (double)(release - loop->first_release) * 1e-9;
}

/* Account for a cycle that is not like all others, and move the schedule on. Returns as rt_schedule_next. */
static __attribute__((noinline, cold, unused)) int rt_loop_leave_odd(rt_loop_t *loop, int64_t end) {
  rt_cycle_t *const cycle = &loop->cycle;
  const int is_warmup = cycle->index < loop->warmup;
  const rt_record_t record = {cycle->release, cycle->start, end};
  const int overran = rt_schedule_next(&loop->schedule, end);
  rt_telemetry_record(loop->telemetry, &loop->schedule, record, loop->is_late, overran, is_warmup);
  loop->is_late = 0;
  if (!loop->telemetry->has_previous) loop->schedule.is_unsettled = 1; /* the next one is as odd */
  if (is_warmup && cycle->index + 1 == loop->warmup) rt_telemetry_usage(loop->telemetry, rt_thread_usage(), 0);
  return overran;
}

/* Account for the cycle of `record`, whose step returned rc, move the schedule on, and call overrun() where there
 * was one. Returns the reason for which the run ends, with the code in loop->end_code, or RT_GO_ON; *overran is not 0
 * after an overrun. */
static inline __attribute__((always_inline)) int
rt_loop_leave_cycle(rt_loop_t *loop, void *self, rt_record_t record, int rc, int *overran,
                    int (*overrun)(void *, const rt_cycle_t *, int64_t)) {
  rt_schedule_t *const schedule = &loop->schedule;
  rt_cycle_t *const cycle = &loop->cycle;
  *overran = 0;
  /* Neither a late cycle, which follows an overrun or a shift, nor the first of a run is one of these: the schedule has to
   * settle after them. */
  if (RT_LIKELY(rt_schedule_is_plain(schedule, record.end))) {
    (void)rt_schedule_next(schedule, record.end);
    rt_telemetry_record_plain(loop->telemetry, loop->bank, record);
    if (RT_LIKELY(rc == RT_CONTINUE)) {
      cycle->index += 1;
      return RT_GO_ON;
    }
  } else {
    *overran = rt_loop_leave_odd(loop, record.end);
  }
  if (rc) {
    cycle->index += 1;
    if (rc == RT_STOP) return RT_END_NORMAL;
    return loop->end_code = rc, RT_END_STEP;
  }
  int code = RT_CONTINUE;
  if (*overran) {
    code = overrun(self, cycle, schedule->missed);
    if (code && code != RT_STOP) loop->end_code = code;
  }
  cycle->index += 1;
  cycle->missed = schedule->missed;
  cycle->dt = (double)(schedule->release - cycle->release) * 1e-9;
  if (code && code != RT_STOP) return RT_END_OVERRUN;
  if (*overran < 0) return RT_END_OVERRUNS; /* the policy's word: RT_STOP does not make this a normal end */
  return code == RT_STOP ? RT_END_NORMAL : RT_GO_ON;
}

/* Cycles until something ends the run. Returns the reason and leaves the code in loop->end_code. `guard` is a constant
 * NULL for loops without guards, which then pay nothing for them: those with guards are compiled elsewhere. */
static inline __attribute__((always_inline)) int
rt_loop_guarded_cycles(rt_loop_t *loop, rt_guard_t *guard, void *self, int (*step)(void *, const rt_cycle_t *),
                       int (*overrun)(void *, const rt_cycle_t *, int64_t), int (*wait)(void *, int64_t)) {
  rt_schedule_t *const schedule = &loop->schedule;
  rt_cycle_t *const cycle = &loop->cycle;
  int64_t now = rt_loop_now(loop);
  for (;;) {
    const int64_t release = schedule->release;
    if (RT_UNLIKELY(cycle->index >= loop->max_cycles)) return RT_END_NORMAL;
    if (RT_LIKELY(release < loop->plain_until)) {
      now = rt_loop_wait(loop, now, release);
      if (RT_UNLIKELY(now < 0)) return loop->end_code = (int32_t)now, RT_END_CLOCK;
    } else {
      if (release >= loop->end_release) return RT_END_NORMAL;
      loop->is_late = now > release;
      if (!loop->has_own_wait) {
        now = rt_loop_wait_on(loop, now, release, 1);
        if (RT_UNLIKELY(now < 0)) return loop->end_code = (int32_t)now, RT_END_CLOCK;
      } else {
        const int rc = wait(self, release);
        if (guard) rt_guard_skip(guard);
        now = rt_loop_now(loop);
        if (RT_UNLIKELY(rc == RT_STOP)) return RT_END_NORMAL;
        if (RT_UNLIKELY(rc)) return loop->end_code = rc, RT_END_WAIT;
      }
    }
    if (RT_UNLIKELY(!rt_is_zero_acquire(&loop->command))) {
      const int verdict = rt_loop_obey(loop);
      if (verdict != RT_GO_ON) return verdict;
      now = rt_loop_now(loop); /* the step does not pay for it */
    }
    if (guard && loop->was_asked) {
      loop->was_asked = 0;
      rt_guard_skip(guard);
    }

    const int64_t start = now;
    rt_loop_enter_cycle(loop, release, start);
    if (guard) rt_guard_begin(guard, cycle->index);
    const int rc = step(self, cycle);
    if (guard) rt_guard_end(guard);
    now = rt_loop_now(loop);
    const int is_caught = guard ? rt_guard_look(guard, cycle->index, loop->telemetry) && guard->is_stopping : 0;
    int overran;
    const int reason = rt_loop_leave_cycle(loop, self, (rt_record_t){release, start, now}, rc, &overran, overrun);
    if (RT_UNLIKELY(is_caught) && (reason == RT_GO_ON || reason == RT_END_NORMAL)) return RT_END_GUARD;
    if (RT_UNLIKELY(reason != RT_GO_ON)) return reason;
    if (RT_UNLIKELY(overran)) {
      if (guard) rt_guard_skip(guard);
      now = rt_loop_now(loop);
    }
  }
}

static inline __attribute__((always_inline)) int rt_loop_cycles(rt_loop_t *loop, void *self,
                                                                int (*step)(void *, const rt_cycle_t *),
                                                                int (*overrun)(void *, const rt_cycle_t *, int64_t),
                                                                int (*wait)(void *, int64_t)) {
  return rt_loop_guarded_cycles(loop, NULL, self, step, overrun, wait);
}

/* In a group, wait until all of its loops have come here and it has said when the first release is, or for a stop. */
static inline void rt_loop_await_origin(rt_loop_t *loop) {
  if (!loop->is_member) return;
  rt_futex_set(&loop->phase, RT_PHASE_ENTERED);
  while (rt_futex_wait(&loop->phase, RT_PHASE_ENTERED, RT_SLICE_NS) == RT_PHASE_ENTERED) {
    if (rt_load_acquire(&loop->command) & RT_COMMAND_STOP) return;
  }
}

/* Tell the other loops of the ring that this one has failed. After its last cycle, or by the watchdog. */
static inline void rt_loop_tell_peers(rt_loop_t *loop) {
  for (rt_loop_t *peer = loop->peer; peer && peer != loop; peer = peer->peer) rt_loop_command(peer, loop->peer_command);
}

/* The body of the loop's thread, from the first system call to the last. The thread has not touched Python and does not. */
static inline __attribute__((always_inline)) void
rt_loop_guarded_main(rt_loop_t *loop, rt_guard_t *guard, void *self, int (*enter)(void *),
                     int (*step)(void *, const rt_cycle_t *), int (*overrun)(void *, const rt_cycle_t *, int64_t),
                     int (*wait)(void *, int64_t), void (*leave)(void *)) {
  rt_thread_setup(&loop->request, &loop->stack, &loop->report);
  if (guard) rt_guard_setup(guard, loop->stack.base);
  rt_futex_set(&loop->phase, RT_PHASE_READY);
  uint32_t verdict = RT_PHASE_READY;
  while (verdict == RT_PHASE_READY) verdict = rt_futex_wait(&loop->phase, RT_PHASE_READY, RT_NS_PER_S);
  if (verdict == RT_PHASE_GO) {
    const int rc = enter(self);
    if (rc == RT_CONTINUE) {
      rt_loop_await_origin(loop);
      rt_loop_first(loop, rt_loop_now(loop));
      rt_telemetry_usage(loop->telemetry, rt_thread_usage(), 0);
      loop->end_reason = rt_loop_guarded_cycles(loop, guard, self, step, overrun, wait);
    } else if (rc != RT_STOP) {
      loop->end_reason = RT_END_ENTER;
      loop->end_code = rc;
    }
    if (rt_watch_leave(&loop->watch)) {
      loop->end_reason = RT_END_WATCHDOG; /* the others have been told */
    } else if (loop->end_reason != RT_END_NORMAL) {
      rt_loop_tell_peers(loop);
    }
    if (guard) rt_guard_release(guard);
    if (rt_load_acquire(&loop->command) & RT_COMMAND_RESET) rt_loop_reset(loop);
    rt_store_relaxed(&loop->telemetry->end_reason, (uint32_t)loop->end_reason);
    rt_telemetry_usage(loop->telemetry, rt_thread_usage(), 1);
    if (rc == RT_CONTINUE || rc == RT_STOP) leave(self);
  }
  rt_futex_set(&loop->phase, RT_PHASE_DONE);
}

static inline __attribute__((always_inline)) void rt_loop_main(rt_loop_t *loop, void *self, int (*enter)(void *),
                                                               int (*step)(void *, const rt_cycle_t *),
                                                               int (*overrun)(void *, const rt_cycle_t *, int64_t),
                                                               int (*wait)(void *, int64_t), void (*leave)(void *)) {
  rt_loop_guarded_main(loop, NULL, self, enter, step, overrun, wait, leave);
}

#endif
