/* Commands to a running loop: stop, restart the statistics, react to the failure of another loop of the group, go on
 * with another step.
 *
 * Any thread sends them, as bits of one word. The loop's thread reads the word once a cycle, and handles them there.
 */
#ifndef RTLOOP_LOOP_COMMANDS_H
#define RTLOOP_LOOP_COMMANDS_H

#include <unistd.h>

#include "atomics.h"
#include "guard.h"
#include "loop_state.h"
#include "telemetry.h"
#include "thread.h"

/* Bits of the command word. */
enum {
  RT_COMMAND_STOP = 1u,
  RT_COMMAND_RESET = 2u,
  RT_COMMAND_SIBLING_FAILED = 4u, /* another loop of the group has failed: call on_peer_failure() */
  RT_COMMAND_SWAP = 8u,           /* go on with another step after the present cycle: see swap.h */
};

/* Send commands to the loop's thread, which handles them before its next step. Any thread; one locked instruction;
 * never fails; no system call, so a sleeping loop is not woken. */
static inline void rt_loop_send_command(rt_loop_t *loop, uint32_t bits) {
  __atomic_fetch_or(&loop->command, bits, __ATOMIC_RELEASE);
}

/* Send the other loops of the ring the command for a failure of this one. The loop's thread after its last cycle, the
 * watchdog, or the control thread; O(loops of the group); never fails; no system call. */
static inline void rt_loop_notify_siblings(const rt_loop_t *loop) {
  for (rt_loop_t *sibling = loop->group.next; sibling && sibling != loop; sibling = sibling->group.next) {
    rt_loop_send_command(sibling, loop->group.failure_command);
  }
}

/* Notify the siblings of the failure of this loop; those in another process through a file. The loop's thread after its
 * last cycle; O(loops of the group); never fails; at most one system call. */
static inline void rt_loop_report_failure(const rt_loop_t *loop) {
  const uint64_t one = 1;
  if (loop->group.remote == RT_REMOTE_NONE) {
    rt_loop_notify_siblings(loop);
  } else if (write(loop->group.failure_fd, &one, sizeof one) < 0) {
    return; /* the parent is gone, and this process ends */
  }
}

/* Restart the statistics in the other bank, which the sender of RT_COMMAND_RESET has cleared. The loop's thread between
 * two cycles; O(1); never fails; one system call, getrusage(2). */
static __attribute__((noinline, cold, unused)) void rt_loop_reset_statistics(rt_loop_t *loop) {
  rt_telemetry_swap_banks(loop->telemetry, loop->schedule.release);
  rt_loop_use_active_bank(loop);
  rt_telemetry_write_usage(loop->telemetry, rt_thread_usage(), 0);
  if (loop->guard) rt_guard_reset(loop->guard);
  __atomic_fetch_and(&loop->command, ~RT_COMMAND_RESET, __ATOMIC_RELEASE);
}

/* Call on_peer_failure(), because one or more loops of the group have failed. Without that hook the run ends normally.
 * Returns RT_GO_ON, or the reason for which the run ends. The loop's thread between two cycles; as long as the hook. */
static __attribute__((noinline, cold, unused)) int rt_loop_handle_sibling_failure(rt_loop_t *loop) {
  /* Cleared before the call: a failure during the call sets the bit again and causes another call. */
  __atomic_fetch_and(&loop->command, ~RT_COMMAND_SIBLING_FAILED, __ATOMIC_ACQ_REL);
  const int rc = loop->hooks.on_peer_failure ? loop->hooks.on_peer_failure(loop->hooks.self) : RT_STOP;
  loop->has_run_hook = 1;
  if (rc == RT_CONTINUE) return RT_GO_ON;
  loop->end.reason_on_stop = rc == RT_STOP ? RT_END_NORMAL : RT_END_ON_PEER_FAILURE;
  loop->end.code = rc == RT_STOP ? 0 : rc;
  rt_loop_send_command(loop, RT_COMMAND_STOP); /* the wait may have called this; the cycle then finds the stop */
  return loop->end.reason_on_stop;
}

/* Call what a callback has left for the end of the run, once. The loop's thread, after leave(). */
static inline void rt_loop_call_at_end(rt_loop_t *loop) {
  void (*const at_end)(void) = loop->hooks.at_end;
  loop->hooks.at_end = NULL;
  if (at_end) at_end();
}

/* Note that a swap comes before the next wait, for which the next cycle leaves the fast path. Not now, because the
 * command is seen when a release has come, and the swap would delay its step. The loop's thread; O(1). */
static __attribute__((noinline, cold, unused)) void rt_loop_plan_swap(rt_loop_t *loop) {
  __atomic_fetch_and(&loop->command, ~RT_COMMAND_SWAP, __ATOMIC_ACQ_REL);
  loop->is_swap_due = 1;
  loop->plain_until = INT64_MIN;
}

/* Handle the pending commands. Returns RT_GO_ON, or the reason for which the run ends. The loop's thread between two
 * cycles; O(1) and at most one system call, plus the time of on_peer_failure(). */
static __attribute__((noinline, cold, unused)) int rt_loop_handle_commands(rt_loop_t *loop) {
  const uint32_t command = rt_load_acquire(&loop->command);
  if (command & RT_COMMAND_STOP) return loop->end.reason_on_stop;
  if (command & RT_COMMAND_RESET) rt_loop_reset_statistics(loop);
  if (command & RT_COMMAND_SWAP) rt_loop_plan_swap(loop);
  return command & RT_COMMAND_SIBLING_FAILED ? rt_loop_handle_sibling_failure(loop) : RT_GO_ON;
}

#endif
