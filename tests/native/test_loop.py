"""The cycle of a loop: releases, waits, commands, ends, its watchdog, and virtual time."""

from __future__ import annotations

from native_programs import MEMORY, THREADS, UNDEFINED, HeaderTests, Mutation, Program

# Pieces of headers that several mutations change.
_WAIT_FAILS = "if (RT_UNLIKELY(!rt_loop_wait(loop, &now, release))) return "

PROGRAMS = {
    "crash": Program(
        (MEMORY,),
        mutations={
            "it does not wait": Mutation("crash.h", "  for (;;) pause();\n", "  _exit(1);\n"),
            "the place is lost": Mutation("crash.h", ".pc = RT_CRASH_PC((ucontext_t *)context),", ".pc = 1,"),
            "it has no stack of its own": Mutation("crash.h", "SA_SIGINFO | SA_ONSTACK", "SA_SIGINFO"),
            "it waits although nobody reads": Mutation(
                "crash.h",
                "if (write(rt_crash_fd, &crash, sizeof crash) != (ssize_t)sizeof crash) _exit(128 + number);",
                "(void)!write(rt_crash_fd, &crash, sizeof crash);",
            ),
            "another address": Mutation("crash.h", "(uint64_t)(uintptr_t)info->si_addr : 0", "1 : 0"),
        },
    ),
    "ending_signals": Program(
        (MEMORY, UNDEFINED),
        mutations={
            "nobody is told": Mutation("ending_signals.h", "    rt_ending_set_flags();\n", ""),
            "a place is never free again": Mutation(
                "ending_signals.h",
                "__atomic_store_n(&rt_ending_flags[found].is_taken, 0, __ATOMIC_SEQ_CST);",
                "return;",
            ),
            "a forked child lives on": Mutation("ending_signals.h", "getpid() != rt_ending_pid", "0"),
            "the thread sleeps on": Mutation(
                "ending_signals.h", "write(rt_ending_fd, &one, sizeof one) < 0", "one == 0"
            ),
            "a handler is replaced": Mutation("ending_signals.h", "now.sa_handler != SIG_DFL", "0"),
            "another action is lost": Mutation("ending_signals.h", " && now.sa_sigaction == rt_ending_note", ""),
        },
    ),
    "loop": Program(
        (MEMORY, THREADS),
        mutations={
            "a failure is nobody's business": Mutation(
                "loop.h", "      rt_loop_report_failure(loop);\n", "      (void)loop;\n"
            ),
            "a hook is asked for ever": Mutation(
                "loop_commands.h",
                "  __atomic_fetch_and(&loop->command, ~RT_COMMAND_SIBLING_FAILED, __ATOMIC_ACQ_REL);\n",
                "",
            ),
            "a hook cannot go on": Mutation("loop_commands.h", "if (rc == RT_CONTINUE) return RT_GO_ON;", ""),
            "a hook cannot fail": Mutation(
                "loop_commands.h", "rc == RT_STOP ? RT_END_NORMAL : RT_END_ON_PEER_FAILURE", "RT_END_NORMAL"
            ),
            "a hook's code is lost": Mutation("loop_commands.h", "loop->end.code = rc == RT_STOP ? 0 : rc;", ""),
            "a hook's word is forgotten": Mutation(
                "loop_commands.h",
                "  rt_loop_send_command(loop, RT_COMMAND_STOP); /*",
                "  /*",
            ),
            "the limit is not that of the samples": Mutation(
                "loop_cycle.h", "left = cycles < places ? cycles : places", "left = cycles"
            ),
            "two samples of a cycle": Mutation("loop_cycle.h", "if (row == 0) rt_", "if (row >= 0) rt_"),
            "a limit that is never used": Mutation("loop_cycle.h", "  rt_sampling_turn(&loop->sampling);\n", ""),
            "the slack is in the step": Mutation("loop_cycle.h", "  loop->hooks.in_slack = call;\n", "  call(self);\n"),
            "the slack is used for ever": Mutation(
                "loop_cycle.h", "  loop->hooks.in_slack = NULL;\n  call(", "  call("
            ),
            "nobody is asked before the release": Mutation(
                "loop_wait.h", "if (rt_loop_handle_commands(loop) != RT_GO_ON) return now;", "if (0) return now;"
            ),
        },
    ),
    "schedule": Program(
        (MEMORY,),
        mutations={
            "forgets what it drops": Mutation(
                "schedule.h",
                "s->missed = rt_schedule_periods(s, late);",
                "rt_schedule_move(s, 0, rt_schedule_periods(s, late));",
            ),
            "a shift waits for an overrun": Mutation("schedule.h", "  rt_schedule_enter(s, RT_UNSETTLED);\n", ""),
            "a long period is plain": Mutation(
                "schedule.h", "s->period > RT_PLAIN_PERIOD_NS ? RT_UNSETTLED : state", "state"
            ),
            "an end before the release is plain": Mutation(
                "schedule.h",
                "(uint64_t)end - (uint64_t)release < s->plain_ns",
                "end - release < (int64_t)s->plain_ns",
            ),
            "what an overrun left stays": Mutation("schedule.h", " || end > s->release ? RT_UN", " ? RT_UN"),
            "what a shift left stays": Mutation(
                "schedule.h", "s->shift != 0 || end > s->release ?", "end > s->release ?"
            ),
            "never settles": Mutation("schedule.h", "s->shift != 0 || end > s->release ? RT_UNSETTLED : ", ""),
            "drops one too few": Mutation("schedule.h", "+ (ns % s->period > 0)", ""),
            "a fraction is dropped": Mutation("schedule.h", "    s->rest -= s->unit;\n", "    s->rest = 0;\n"),
            "a tie goes up": Mutation("schedule.h", "unit % 2 == 0 ? 0 : -1", "unit % 2 == 0 ? -1 : -1"),
            "a tie goes down": Mutation("schedule.h", " && s->release % 2) {", ") {"),
            "a fraction begins anew": Mutation(
                "schedule.h", "s->rest += s->part;", "s->rest = rt_schedule_half(s) + s->part;"
            ),
            "a tie is before the end": Mutation(
                "schedule.h", "< ns ? periods + 1 : periods", "< ns ? periods : periods"
            ),
            "a step is missed": Mutation(
                "schedule.h", "rt_schedule_move(s, 0, rt_schedule_periods(s, step))", "rt_schedule_move(s, step, 0)"
            ),
            "forgets a move": Mutation("schedule.h", "s->moved += late;", ""),
            "bursts for ever": Mutation("schedule.h", "    s->burst += 1;\n", ""),
            "counts overruns for ever": Mutation("schedule.h", "  s->overruns_in_row = 0;\n", ""),
            "aligns a multiple": Mutation("schedule.h", "(align - origin % align) % align", "align - origin % align"),
        },
    ),
    "simulate": Program(
        (MEMORY,),
        mutations={
            "samples go on behind the end": Mutation("simulate.h", "  rt_sampling_turn(&loop->sampling);\n", ""),
            "late cycles sleep": Mutation("simulate.h", "if (target > now) {", "if (target > now - 2 * release) {"),
            "no order of time": Mutation("simulate.h", "[i].start < next->start", "[i].start > next->start"),
            "the last goes first": Mutation("simulate.h", "[i].start < next->start", "[i].start <= next->start"),
            "the margin is not used": Mutation("simulate.h", "release - loop->spin.margin;", "release;"),
            "nothing is learnt": Mutation("simulate.h", "rt_spin_learn(&loop->spin, latency);", "{}"),
            "repeats all but the first": Mutation("simulate.h", "model->at = 0;", "model->at = 1;"),
            "time for ever": Mutation("simulate.h", "now > RT_RELEASE_MAX || release > RT_RELEASE_MAX", "release < 0"),
            "a stop is not seen": Mutation("simulate.h", "if (command & RT_COMMAND_STOP) return RT_END_NORMAL;", ""),
            "a recording is modelled": Mutation("simulate.h", "if (s->is_recorded) {", "if (0) {"),
            "late is not counted": Mutation("simulate.h", "loop->is_late = now > release;", "loop->is_late = 0;"),
            "dt stays": Mutation("loop_cycle.h", "  cycle->dt = rt_loop_next_dt(loop);\n", ""),
            "missed stays": Mutation("loop_cycle.h", "  cycle->missed = schedule->missed;\n", ""),
            "late cycles are not counted": Mutation(
                "loop_cycle.h", "record, loop->is_late, overran", "record, 0, overran"
            ),
            "the usage begins never": Mutation("loop_cycle.h", "cycle->index + 1 == loop->limits.warmup", "0"),
            "the first cycle is a plain one": Mutation(
                "loop_state.h", "  rt_schedule_enter(&loop->schedule, RT_UNSETTLED);\n}", "}"
            ),
            "the mode stays": Mutation("simulate.h", "rt_thread_set_float_control(control_)", "(void)control_"),
            "runs on after a failed model": Mutation(
                "simulate.h", "if (RT_UNLIKELY(latency < 0)) return RT_END_MODEL;", ""
            ),
        },
    ),
    "spin": Program(
        (MEMORY,),
        mutations={
            "no budget": Mutation("spin.h", "margin < s->cap ? margin : s->cap", "margin"),
            "never grows": Mutation("spin.h", "if (lateness > s->second) {", "if (0) {"),
            "grows late": Mutation("spin.h", "s->second > s->previous ? s->second : s->previous", "s->previous"),
            "never shrinks": Mutation("spin.h", "s->previous = s->second;", ""),
            "forgets at once": Mutation("spin.h", "s->second > s->previous ? s->second : s->previous", "s->second"),
            "one hiccup counts": Mutation("spin.h", "      s->second = s->worst;", "      s->second = lateness;"),
            "one window for ever": Mutation("spin.h", "    s->count = 0;\n", "    s->count = s->window;\n"),
        },
    ),
    "wait": Program(
        (MEMORY,),
        mutations={
            "a signal fails the loop": Mutation(
                "loop_wait.h", "if (RT_UNLIKELY(rc) && rc != -EINTR) return", "if (rc) return"
            ),
            "a signal ends the sleep": Mutation(
                "loop_wait.h",
                "if (RT_UNLIKELY(rc) && rc != -EINTR) return rc;",
                "if (rc == -EINTR) break; else if (rc) return rc;",
            ),
            "a signal moves the deadline": Mutation(
                "loop_wait.h",
                "if (RT_UNLIKELY(rc) && rc != -EINTR) return rc;",
                "if (rc == -EINTR) now += 1000; else if (rc) return rc;",
            ),
            "errors are ignored": Mutation(
                "loop_wait.h", "if (RT_UNLIKELY(rc) && rc != -EINTR) return rc;", "if (now < 0) return rc;"
            ),
            "the error is lost": Mutation(
                "loop_cycle.h",
                _WAIT_FAILS + "rt_loop_end_with(loop, RT_END_CLOCK, (int)now);",
                _WAIT_FAILS + "RT_END_CLOCK;",
            ),
            "always sleeps": Mutation(
                "loop_wait.h", "if (target <= now) break;", "if (rc <= 0 && target <= now) break;"
            ),
            "an early start is plain": Mutation(
                "loop_cycle.h", "        rt_loop_check_own_wait(loop, now, release);\n", ""
            ),
            "no slices": Mutation(
                "loop_cycle.h", " || loop->trial.is_on || rt_loop_is_far(loop)", " || loop->trial.is_on"
            ),
            "the margin is not used": Mutation(
                "loop_cycle.h", "loop->has_own_wait || loop->spin.margin", "loop->has_own_wait"
            ),
            "its own wait is not used": Mutation(
                "loop_cycle.h", "loop->has_own_wait || loop->spin.margin", "loop->spin.margin"
            ),
            "late ones are not counted": Mutation("loop_wait.h", "    rt_loop_note_late(loop, *now, release);\n", ""),
            "late ones that end on time are plain": Mutation(
                "loop_wait.h", "  if (loop->is_late) rt_schedule_enter(&loop->schedule, RT_UNSETTLED);\n", ""
            ),
            "once late, always late": Mutation("loop_cycle.h", "is_warmup);\n  loop->is_late = 0;\n", "is_warmup);\n"),
            "a reset keeps the bank": Mutation(
                "loop_state.h",
                "  loop->bank = rt_telemetry_active_bank(loop->telemetry);\n  rt_sch",
                "  if (!loop->bank) loop->bank = rt_telemetry_active_bank(loop->telemetry);\n  rt_sch",
            ),
            "an interval with the run before": Mutation(
                "loop_state.h", "  rt_schedule_enter(&loop->schedule, RT_UNSETTLED);\n}", "}"
            ),
            "an interval with the warm-up": Mutation(
                "loop_cycle.h",
                "  if (!loop->telemetry->has_previous)\n",
                "  if (0)\n",
            ),
            "nothing is learnt": Mutation("loop_wait.h", "rt_spin_learn(&loop->spin, now - target);", ""),
            "starts early": Mutation(
                "loop_wait.h", "RT_UNLIKELY(now < release); reads++", "RT_UNLIKELY(now < target); reads++"
            ),
            "a reset forgets the missed": Mutation(
                "loop_commands.h",
                "  rt_telemetry_swap_banks(loop->telemetry, loop->schedule.release);\n",
                "  loop->telemetry->active ^= 1u;\n  rt_bank_clear(&loop->telemetry->banks[0]);\n",
            ),
        },
    ),
    "watchdog": Program(
        (MEMORY, THREADS),
        mutations={
            "spins below a filter": Mutation("watchdog.h", "if (RT_UNLIKELY(rc) && now < planned) {", "if (0) {"),
            "a loop in enter is stuck": Mutation(
                "watchdog.h", "if (rt_load_acquire(&loop->phase) != RT_PHASE_BEGIN) {", "if (0) {"
            ),
            "the first release is not waited for": Mutation(
                "watchdog.h", "ahead = written == rt_load_relaxed(&c->first_record) ?", "ahead = 0 ?"
            ),
            "a clock set back is an excuse": Mutation(
                "watchdog.h", "ahead = written == rt_load_relaxed(&c->first_record) ?", "ahead = 1 ?"
            ),
            "a cycle is not seen": Mutation("watchdog.h", "written != w->written ||", ""),
            "a shift is a hang": Mutation(
                "watchdog.h", "shifted > w->shifted ? shifted - w->shifted : 0", "0 * (shifted - w->shifted)"
            ),
            "a shift back is a hang": Mutation(
                "watchdog.h", "shifted > w->shifted ? shifted - w->shifted : 0", "shifted - w->shifted"
            ),
            "a reset is a shift": Mutation("watchdog.h", "if (bank != w->bank) w->shifted = shifted;", ""),
            "a cycle is not reported": Mutation(
                "watchdog.h", "trip->cycles = w->written;", "trip->cycles = w->written - 1;"
            ),
            "counts from the look before the release": Mutation("watchdog.h", "+ (ahead > 0 ? ahead : 0)", ""),
            "counts from before the grid was seen": Mutation("watchdog.h", "|| w->since == INT64_MAX", ""),
            "forgives who has not begun": Mutation("watchdog.h", "if (dog->loops[i].since != INT64_MAX)", ""),
            "acts early": Mutation("watchdog.h", ">= w->limit;", ">= w->limit - w->limit / 8;"),
            "acts late": Mutation("watchdog.h", ">= w->limit;", ">= w->limit + w->limit / 8;"),
            "a machine that stood still is a hang": Mutation(
                "watchdog.h", " dog->loops[i].since += late;", " continue;"
            ),
            "all that was slept through is looked at": Mutation(
                "watchdog.h", "planned + late / dog->interval * dog->interval", "planned"
            ),
            "the others are not told": Mutation("watchdog.h", "  rt_loop_notify_siblings(loop);\n", ""),
            "the loop goes on": Mutation("watchdog.h", "  rt_loop_send_command(loop, RT_COMMAND_STOP);\n", ""),
            "nobody is made safe": Mutation(
                "watchdog.h", "loop->hooks.safe ? loop->hooks.safe(rt_load_acquire(&loop->hooks.self)) : 0", "0"
            ),
            "it never ends": Mutation("watchdog.h", "      is_left = 1;\n    }", "    }\n    is_left = 1;"),
            "looks at what has ended": Mutation(
                "watch.h",
                "return __atomic_compare_exchange_n(word, &on,",
                "return 1 | __atomic_compare_exchange_n(word, &on,",
            ),
            "leaves under its look": Mutation(
                "watch.h",
                "if (was != RT_WATCH_ON) {",
                "if (was == RT_WATCH_LOOKING) return 0;\n    if (was != RT_WATCH_ON) {",
            ),
            "leaves while it is made safe": Mutation(
                "watch.h",
                "    if (was != RT_WATCH_ON) {",
                "    if (was == RT_WATCH_TRIPPED) return 1;\n    if (was != RT_WATCH_ON) {",
            ),
            "the step's word goes before": Mutation(
                "loop.h", "loop->end.reason = RT_END_WATCHDOG;", "loop->end.reason = RT_END_NORMAL;"
            ),
        },
    ),
}


class TestLoop(HeaderTests):
    """Each program of the table above: sound, and failing with each of its known faults."""
