"""A late cycle is explained by the kernel's trace around it: who is named, and when nobody is."""

from __future__ import annotations

import errno
import json
import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rtloop
from rtloop import RTLoop, Stats
from rtloop.culprit import acquire, lateness, run_tracer, tracefs
from rtloop.culprit.attribution import Collection, Delay, Machine, explain
from rtloop.culprit.machine import loop_name, policy_text, tick_ns
from rtloop.culprit.page_moves import PageMoves
from rtloop.culprit.trace_text import LOST, first_time, last_time, parse
from rtloop.culprit.tracefs import TraceInstance
from rtloop.errors import RtloopError
from rtloop.settings import make_settings
from rtloop.stats.explanation import Explanation, Share
from rtloop.stats.findings import find
from rtloop.stats.histogram import Histogram
from rtloop.system.grant import Grant

TRACES = Path(__file__).parents[1] / "support" / "traces"
LOOP, CPU = 700, 3
#: The release of the cycle that is late, us.
RELEASE = 1000


@pytest.fixture
def make_stats():
    """Statistics of 50 cycles, as if they had not been simulated."""

    def make(**fields: object) -> Stats:
        stats = RTLoop("1kHz").simulate(cycles=50, latency="30us")
        settings = {key: value for key, value in stats.settings.items() if key != "simulation"}
        return replace(stats, settings=settings, **fields)

    return make


def line(us: int, event: str, *, task: str = "<idle>-0", cpu: int = CPU, flags: str = "d..2.") -> str:
    return f"{task:>22}     [{cpu:03d}] {flags} {100 + us // 10**6:5d}.{us % 10**6:06d}: {event}"


def switch(us: int, task: tuple[str, int, int], to: tuple[str, int, int], state: str = "S", cpu: int = CPU) -> str:
    text = f"sched_switch: prev_comm={task[0]} prev_pid={task[1]} prev_prio={task[2]} prev_state={state} ==> "
    text += f"next_comm={to[0]} next_pid={to[1]} next_prio={to[2]}"
    return line(us, text, task=f"{task[0] if task[1] else '<idle>'}-{task[1]}", cpu=cpu)


def waking(us: int, task: str = "<idle>-0", flags: str = "d.h3.", cpu: int = CPU) -> str:
    return line(us, f"sched_waking: comm=loop pid={LOOP} prio=19 target_cpu=003", task=task, flags=flags, cpu=cpu)


IDLE, THE_LOOP, HOG = ("swapper/3", 0, 120), ("loop", LOOP, 19), ("hog", 900, 9)
TICK = ((150, "entry"), (155, "exit"))
ASLEEP = switch(10, THE_LOOP, IDLE)
MACHINE = Machine(
    LOOP,
    LOOP - 1,
    False,
    False,
    policy_text,
    lambda pid: "current" if pid == 901 else "",
    lambda cpu, n: f"state {n}",
    lambda cpu: 4_000_000,
)


def explained(
    lines: list[str], start: int = RELEASE + 300, *, rare: tuple[str, ...] = (), **facts: object
) -> Explanation:
    """Explain a cycle that began at `start` us, 1000 us after the one before."""
    begin, end = (10**11 + us * 1000 for us in (RELEASE, start))
    delay = Delay(48_211, "start", begin, begin, end, end - begin, begin - 990_000)
    machine = MACHINE._replace(**facts)  # type: ignore[arg-type]
    return explain(delay, list(parse("\n".join(lines))), list(parse("\n".join(rare))), machine)


def ran_late(*occupied: str, begin: tuple[str, int, int] = IDLE, until: int = RELEASE + 298) -> list[str]:
    """Return the trace of a loop that was woken on time, and got the CPU late."""
    task = f"{begin[0]}-{begin[1]}" if begin[1] else "<idle>-0"
    return [ASLEEP, *occupied[:1], waking(RELEASE + 3, task), *occupied[1:], switch(until, begin, THE_LOOP, "R+")]


def test_a_more_urgent_thread_is_named_with_its_time():
    lines = ran_late(switch(RELEASE - 50, IDLE, ("irq/24-eth0", 55, 9)), begin=("irq/24-eth0", 55, 9))
    one = explained(lines)
    assert (one.culprit, one.cpu) == ("thread", CPU)
    assert str(one) == "cycle 48,211 began 300 us late: irq/24-eth0 (real-time 90) ran 295 us on CPU 3"
    assert one.shares[0] == Share("thread", "irq/24-eth0 (real-time 90)", 295_000, 1)


def test_a_thread_that_ends_meanwhile_keeps_its_name():
    """Its policy cannot be asked for any more when its later pieces are looked at."""
    answers = iter(["FIFO 90", "real-time 90"])
    tick = [line(RELEASE + us, f"local_timer_{phase}: vector=236", task="hog-900") for us, phase in TICK]
    one = explained(
        [*ran_late(switch(RELEASE - 50, IDLE, HOG), begin=HOG)[:3], *tick, ran_late(begin=HOG)[-1]],
        policy_of=lambda pid, prio: next(answers),
    )
    assert one.text == "hog (FIFO 90) ran 290 us on CPU 3"


def test_another_loop_is_named_as_one():
    one = explained(ran_late(switch(RELEASE - 50, IDLE, ("python", 901, 14)), begin=("python", 901, 14)))
    assert (one.culprit, one.name) == ("loop", "the loop current (real-time 85)")


def test_a_thread_that_the_kernel_did_not_preempt_is_named_so():
    one = explained(ran_late(switch(RELEASE - 50, IDLE, ("cc1", 900, 125)), begin=("cc1", 900, 125)))
    assert one.text == "cc1 (nice 5) ran 295 us on CPU 3, without being preempted"


def test_a_less_urgent_thread_that_was_switched_to_instead_is_a_limit_of_the_kernel():
    cc1, ld, rest = ("cc1", 900, 120), ("ld", 901, 120), switch(RELEASE + 298, ("ld", 901, 120), THE_LOOP, "R+")
    machine = {"loop_of": lambda pid: ""}
    lines = [
        ASLEEP,
        switch(RELEASE - 50, IDLE, cc1),
        waking(RELEASE + 3, "cc1-900"),
        switch(RELEASE + 100, cc1, ld, "R"),
    ]
    one = explained([*lines, rest], **machine)
    assert (one.culprit, one.name) == ("throttling", "the limit on real-time threads")
    assert one.shares[0].ns == 295_000 and "let ld (nice 0) run 295 us" in one.text
    lines[2] = waking(RELEASE + 3, "cc1-900", cpu=1)
    one = explained([*lines, rest], **machine)
    assert one.culprit == "unknown", "CPU 1 may have been stopped by a hypervisor before the loop was in the queue"


def test_a_switch_while_the_loop_is_being_woken_is_no_limit_of_the_kernel():
    lines = [ASLEEP, waking(RELEASE + 3), switch(RELEASE + 5, IDLE, ("cc1", 900, 120), "R")]
    one = explained([*lines, switch(RELEASE + 298, ("cc1", 900, 120), THE_LOOP, "R+")])
    assert one.text == "cc1 (nice 0) ran 293 us on CPU 3, without being preempted"


def test_a_kernel_worker_is_named_with_its_function():
    worker = ("kworker/3:1", 77, 120)
    work = line(
        RELEASE - 40, "workqueue_execute_start: work struct 00000000ab: function vmstat_{update}", task="kworker/3:1-77"
    )
    one = explained(
        [*ran_late(switch(RELEASE - 50, IDLE, worker), begin=worker)[:2], work, *ran_late(begin=worker)[1:]]
    )
    assert one.culprit == "worker"
    assert "kworker/3:1 (nice 0) ran vmstat_{update} for 295 us on CPU 3" in one.text


def test_a_softirq_and_an_interrupt_of_a_device_are_named():
    enter = line(RELEASE - 5, "softirq_entry: vec=3 [action=NET_RX]")
    leave = line(RELEASE + 290, "softirq_exit: vec=3 [action=NET_RX]")
    one = explained(ran_late(enter, leave))
    assert (one.culprit, one.name) == ("softirq", "softirq NET_RX")
    enter = line(RELEASE - 5, "irq_handler_entry: irq=36 name=virtio1-req.0 x")
    leave = line(RELEASE + 290, "irq_handler_exit: irq=36 ret=handled")
    one = explained([ASLEEP, enter, leave, waking(RELEASE + 291), switch(RELEASE + 295, IDLE, THE_LOOP, "R")])
    assert one.text == "interrupt 36 (virtio1-req.0 x) ran 290 us on CPU 3"


def test_many_short_interrupts_are_one_culprit():
    lines = [ASLEEP, switch(RELEASE - 100, IDLE, ("cc1", 900, 120))]
    for us in range(RELEASE - 10, RELEASE + 290, 10):
        lines.append(line(us, "call_function_entry: vector=252", task="cc1-900", flags="d.h.."))
        lines.append(line(us + 8, "call_function_exit: vector=252", task="cc1-900", flags="d.h.."))
    lines += [waking(RELEASE + 291, "cc1-900"), switch(RELEASE + 295, ("cc1", 900, 120), THE_LOOP, "R")]
    one = explained(lines)
    assert (one.culprit, one.name) == ("interrupt", "interrupt call_function")
    assert "in 57 pieces" in one.text


def test_a_late_timer_beside_a_thread_is_not_blamed_on_it():
    lines = [ASLEEP, switch(RELEASE - 100, IDLE, ("cc1", 900, 120)), waking(RELEASE + 290, "cc1-900")]
    one = explained([*lines, switch(RELEASE + 295, ("cc1", 900, 120), THE_LOOP, "R")])
    assert (one.culprit, one.name) == ("unknown", "")
    assert "interrupts were off, or firmware or a hypervisor had the CPU" in one.text


def test_time_that_no_thread_was_charged_for_was_the_hypervisors():
    lines = [ASLEEP, switch(RELEASE - 20, IDLE, ("cc1", 900, 120)), waking(RELEASE + 290, "cc1-900")]
    lines += [line(RELEASE + 291, "sched_stat_runtime: comm=cc1 pid=900 runtime=40000 [ns]", task="cc1-900")]
    lines += [switch(RELEASE + 295, ("cc1", 900, 120), THE_LOOP, "R")]
    assert explained(lines, is_virtual=True).culprit == "steal"
    assert explained(lines).culprit == "unknown", "without a hypervisor there is no such time"
    lines[3] = lines[3].replace("40000", "308000")
    assert explained(lines, is_virtual=True).culprit == "unknown", "cc1 was charged for all of it"


def test_a_halted_cpu_is_the_hypervisors_or_has_an_idle_state_to_leave():
    idle = line(20, "cpu_idle: state=2 cpu_id=3")
    lines = [ASLEEP, idle, waking(RELEASE + 290), switch(RELEASE + 295, IDLE, THE_LOOP, "R")]
    one = explained(lines, is_virtual=True)
    assert (one.culprit, one.name) == ("steal", "the hypervisor")
    one = explained(lines)
    assert (one.culprit, one.text) == ("idle", "state 2 took 295 us to be left by CPU 3")
    del lines[1]
    assert explained(lines).culprit == "unknown", "a CPU that was idle, and in no idle state"


def ticked(us: int, task: str) -> list[str]:
    return [
        line(us + later, f"local_timer_{phase}: vector=236", task=task) for later, phase in ((0, "entry"), (5, "exit"))
    ]


def held_up(*ticks: int) -> list[str]:
    """Return the trace of a loop that waits for 40 ms for a more urgent thread, which has some ticks meanwhile."""
    between = [text for us in ticks for text in ticked(RELEASE + us, "hog-900")]
    return [*ran_late(switch(RELEASE - 50, IDLE, HOG), *between, begin=HOG, until=RELEASE + 40_000)]


def test_a_thread_without_a_tick_may_not_have_run():
    """A hypervisor that does not tell the kernel of stolen time leaves no other trace."""
    rest = range(4000, 40_000, 4000)
    assert explained(held_up(*rest), RELEASE + 40_002).text == "hog (real-time 90) ran 40 ms on CPU 3"
    one = explained(held_up(4000, 36_000), RELEASE + 40_002)
    assert (one.culprit, one.cpu) == ("unknown", CPU)
    assert one.text == (
        "unknown: no tick came for 32 ms while CPU 3 was in hog (900): interrupts were off, or firmware or a hypervisor"
        " had the CPU"
    )
    assert [(share.kind, share.ns) for share in one.shares[:2]] == [("unknown", 31_995_000), ("thread", 7_992_000)]


def test_without_ticks_a_thread_is_named_that_had_the_cpu():
    """A CPU may stop its tick (nohz_full), and a kernel may not tell of it."""
    assert explained(held_up(4000, 36_000), RELEASE + 40_002, tick_ns=lambda cpu: 0).culprit == "thread"
    assert explained(held_up(), RELEASE + 40_002).culprit == "thread"


def test_a_step_without_a_tick_may_not_have_run():
    begin, task = 10**11 + RELEASE * 1000, f"loop-{LOOP}"
    delay = Delay(7, "execution", begin, begin, begin + 40_000_000, 39_000_000, begin - 900_000)
    start = [ASLEEP, waking(RELEASE - 10), switch(RELEASE - 5, IDLE, THE_LOOP, "R")]
    for ticks, culprit in ((range(3000, 40_000, 4000), "step"), ((3000, 35_000, 39_000), "unknown")):
        lines = [
            *start,
            *(text for us in ticks for text in ticked(RELEASE + us, task)),
            switch(RELEASE + 40_010, THE_LOOP, IDLE),
        ]
        assert explain(delay, list(parse("\n".join(lines))), [], MACHINE).culprit == culprit


@pytest.mark.parametrize("context", ["irq_handler", "softirq"])
@pytest.mark.parametrize("is_virtual", [True, False])
def test_a_long_interrupt_proves_nothing_in_a_virtual_machine(context, is_virtual):
    """No tick is due in an interrupt, nor in a softirq of an idle CPU."""
    what = {"irq_handler": "irq=36 name=virtio1-req.0", "softirq": "vec=3 [action=NET_RX]"}[context]
    lines = [
        ASLEEP,
        line(RELEASE - 20, f"{context}_entry: {what}"),
        waking(RELEASE + 3),
        line(RELEASE + 20_000, f"{context}_exit: {what}"),
        *ticked(RELEASE + 20_001, "<idle>-0"),
        switch(RELEASE + 20_010, IDLE, THE_LOOP, "R"),
    ]
    one = explained(lines, RELEASE + 20_012, is_virtual=is_virtual)
    if not is_virtual:
        assert one.culprit == context.replace("irq_handler", "interrupt")
        return
    where = {"irq_handler": "interrupt 36 (virtio1-req.0)", "softirq": "softirq NET_RX"}[context]
    assert one.text == f"unknown: CPU 3 was in {where} for 20 ms, or a hypervisor had it"


def test_the_tick_of_this_machine_is_known():
    assert tick_ns(max(os.sched_getaffinity(0))) in {0, *(10**9 // hz for hz in (100, 250, 300, 1000))}


def test_a_stop_signal_is_named_with_its_sender():
    lines = [switch(10, THE_LOOP, IDLE), waking(RELEASE - 60, flags="d..3."), switch(RELEASE - 55, IDLE, THE_LOOP, "R")]
    lines += [switch(RELEASE - 50, THE_LOOP, IDLE, "T"), waking(RELEASE + 290, "bash-5", "d..3.", cpu=1)]
    lines += [switch(RELEASE + 295, IDLE, THE_LOOP, "R")]
    kill = line(
        RELEASE - 70, "signal_generate: sig=19 errno=0 code=0 comm=py pid=699 grp=1 res=0", task="bash-5", cpu=1
    )
    one = explained(lines, rare=(kill,))
    assert one.culprit == "signal"
    assert one.text == "SIGSTOP from bash (5) stopped the process for 290 us"


def blocked(state: str = "D") -> tuple[list[str], Delay]:
    """Return the trace of a step that was blocked from 1100 to 1400 us, and the delay of its cycle."""
    lines = [switch(RELEASE, IDLE, THE_LOOP, "R"), switch(RELEASE + 100, THE_LOOP, IDLE, state)]
    lines += [waking(RELEASE + 400, "bash-5", "d..3.", cpu=1), switch(RELEASE + 405, IDLE, THE_LOOP, "R")]
    begin, end = 10**11 + (RELEASE + 10) * 1000, 10**11 + (RELEASE + 420) * 1000
    lines += [switch(RELEASE + 430, THE_LOOP, IDLE)]
    return lines, Delay(7, "execution", begin, begin, end, 320_000)


def moving(us: int, event: str, cpu: int = 1, task: str = "bash-5") -> str:
    return line(us, f"mm_{event}: x=1", task=task, cpu=cpu)


def explained_moves(*events: str, flags: str = "d..3.") -> Explanation:
    """Explain a step that was blocked from 1100 to 1400 us, beside moves of pages."""
    lines, delay = blocked()
    moves = PageMoves()
    moves.add(parse("\n".join(events)))
    return explain(delay, list(parse("\n".join(lines).replace("d..3.", flags))), [], MACHINE, (), moves)


BLOCKED = "unknown: the loop waited uninterruptibly in its own thread, until bash (5) woke it"


def test_pages_that_are_moved_are_named_if_the_mover_woke_the_loop():
    begin, end = moving(500, "compaction_begin"), moving(RELEASE + 900, "compaction_end")
    for events in ([begin], [end], [begin, end]):
        one = explained_moves(*events)
        assert (one.culprit, one.name) == ("compaction", "compaction by bash (5)")
    assert explained_moves(begin, moving(700, "compaction_end")).text == BLOCKED
    assert explained_moves(begin, moving(700, "compaction_end"), end).text == BLOCKED, "a begin that nobody has seen"
    assert explained_moves(moving(RELEASE + 410, "compaction_begin"), end).text == BLOCKED
    assert explained_moves(moving(500, "compaction_begin", task="sh-6")).text == BLOCKED


def test_a_move_of_pages_may_last_for_seconds():
    """As if a block of memory was taken offline: the loop touches one of its pages in the middle of that."""
    lines, delay = blocked()
    begin, end = moving(1, "migrate_pages_start"), moving(9_000_000, "migrate_pages")
    lines = [text.replace(" 100.", " 104.") for text in lines]
    delay = delay._replace(**{name: getattr(delay, name) + 4 * 10**9 for name in ("release", "begin", "end")})
    moves = PageMoves()
    moves.add(parse(f"{begin}\n{end}"))
    one = explain(delay, list(parse("\n".join(lines))), [], MACHINE, (), moves)
    assert one.text == "page migration by bash (5) moved pages that the loop needed for 300 us"


def test_a_compaction_consists_of_migrations():
    inner = [moving(600, "migrate_pages_start"), moving(RELEASE + 200, "migrate_pages")]
    one = explained_moves(moving(500, "compaction_begin"), *inner, moving(RELEASE + 900, "compaction_end"))
    assert one.name == "compaction by bash (5)"
    assert explained_moves(*inner).text == BLOCKED, "it had ended"


@pytest.mark.parametrize("flags", ["d.h3.", "d.s3.", "d.H3."])
def test_an_interrupt_that_wakes_the_loop_is_not_the_work_of_the_thread_that_it_interrupts(flags):
    """The loop waited for a disk, whose interrupt came while a thread moved other pages."""
    assert explained_moves(moving(500, "compaction_begin"), flags=flags).text == BLOCKED


def test_lost_events_may_have_been_the_end_of_a_move():
    lost = f"CPU:1 [LOST 7 EVENTS]\n{moving(700, 'noise')}"
    assert explained_moves(moving(500, "compaction_begin"), lost).text == BLOCKED
    assert explained_moves(lost, moving(RELEASE + 900, "migrate_pages")).name == "page migration by bash (5)"
    late = lost.replace("100.000700", "100.001500")
    assert explained_moves(late, moving(RELEASE + 900, "migrate_pages")).text == BLOCKED


def test_moves_of_very_many_threads_are_not_all_remembered():
    moves = PageMoves()
    kcompactd = moving(0, "compaction_begin", task="kcompactd0-41")
    moves.add(parse(kcompactd))
    for pid in range(100, 3100):
        events = [moving(pid, f"compaction_{what}", task=f"x-{pid}") for what in ("begin", "end")]
        moves.add(parse("\n".join(events)))
    assert moves.at(3099, 10**11 + 3_099_000) == ("compaction", "x") and moves.at(100, 10**11 + 100_000) is None
    assert moves.at(41, 10**11 + 3_099_000) == ("compaction", "kcompactd0"), "it still moves pages"


def test_the_end_of_a_move_that_was_forgotten_says_nothing_of_the_time_before():
    moves = PageMoves()
    begins = [moving(pid, "compaction_begin", task=f"x-{pid}") for pid in range(5, 1100)]
    moves.add(parse("\n".join([*begins, moving(2000, "compaction_end", task="x-5")])))
    assert moves.at(5, 10**11 + 3_000) is None, "before its begin"
    assert moves.at(1099, 10**11 + 1_900_000) == ("compaction", "x"), "and the newest are known"


def test_the_name_of_a_mover_is_the_one_that_it_had():
    """A shell that moves pages becomes another program, or its number goes to another process."""
    moves = PageMoves()
    both = ("migrate_pages_start", "migrate_pages")
    for us, task in ((10, "bash-5"), (30, "fio-5")):
        moves.add(parse("\n".join(moving(us + 10 * i, event, task=task) for i, event in enumerate(both))))
    moves.add(parse(moving(50, "compaction_begin", task="dd-5")))
    names = [moves.at(5, 10**11 + us * 1000) for us in (15, 35, 55)]
    assert names == [("page migration", "bash"), ("page migration", "fio"), ("compaction", "dd")]


@pytest.mark.parametrize("missing", ["mm_migrate_pages_start", "mm_migrate_pages"])
def test_a_kernel_that_traces_one_side_of_a_move_tells_nothing_of_its_time(missing):
    moves = PageMoves([f"migrate/{missing}"])
    seen = {"mm_migrate_pages_start": "migrate_pages", "mm_migrate_pages": "migrate_pages_start"}[missing]
    moves.add(parse(moving(500, seen)))
    assert moves.at(5, 10**11 + 400_000) is None and moves.at(5, 10**11 + 600_000) is None
    inner = moving(800, seen)
    moves.add(parse("\n".join([moving(700, "compaction_begin"), inner, moving(900, "compaction_end")])))
    assert moves.at(5, 10**11 + 850_000) == ("compaction", "bash") and moves.at(5, 10**11 + 950_000) is None


def test_a_mover_that_had_the_cpu_of_the_loop_is_named():
    mover = ("kcompactd0", 41, 120)
    lines = ran_late(switch(RELEASE - 50, IDLE, mover), begin=mover)
    begin, end = (10**11 + us * 1000 for us in (RELEASE, RELEASE + 300))
    moves = PageMoves()
    moves.add(parse(moving(500, "compaction_begin", CPU, "kcompactd0-41")))
    delay = Delay(1, "start", begin, begin, end, end - begin)
    one = explain(delay, list(parse("\n".join(lines))), [], MACHINE, (), moves)
    assert one.text == "compaction by kcompactd0 (41) ran 295 us on CPU 3"


def test_the_collector_is_named_if_the_step_waited_while_it_ran():
    lines, delay = blocked("S")
    events = list(parse("\n".join(lines)))
    one = explain(delay, events, [], MACHINE, [Collection(delay.begin + 50_000, delay.end - 10_000, 9, 2)])
    assert (one.culprit, one.name) == ("collector", "Python's garbage collector (generation 2)")
    assert str(one).startswith("cycle 7 took 320 us longer than usual: Python's garbage collector")
    assert explain(delay, events, [], MACHINE, [Collection(delay.end, delay.end + 9, 9, 2)]).culprit == "unknown"
    own = [Collection(delay.begin + 10_000, delay.end - 10_000, LOOP, 0)]
    busy = [lines[0], line(RELEASE + 430, "cpu_idle: state=0 cpu_id=3", task=f"loop-{LOOP}")]
    assert "on the loop's own thread" in explain(delay, list(parse("\n".join(busy))), [], MACHINE, own).text


def test_a_long_step_is_its_own_culprit():
    _, delay = blocked()
    busy = [switch(RELEASE, IDLE, THE_LOOP, "R"), switch(RELEASE + 430, THE_LOOP, IDLE)]
    one = explain(delay, list(parse("\n".join(busy))), [], MACHINE)
    assert (one.culprit, one.text) == ("step", "the step itself ran 410 us on CPU 3")


def test_the_cycle_before_is_named_if_it_was_still_running():
    delay = Delay(7, "start", 0, 10**11, 10**11 + 300_000, 300_000, 10**11 + 290_000)
    one = explain(delay, [], [], MACHINE)
    assert (one.culprit, one.name) == ("step", "the cycle before")


def test_nobody_is_named_for_half_of_a_delay():
    lines = [ASLEEP, waking(RELEASE + 3), switch(RELEASE + 4, IDLE, HOG, "R")]
    lines += [switch(RELEASE + 150, HOG, ("other", 902, 8), "R"), switch(RELEASE + 298, ("other", 902, 8), THE_LOOP)]
    one = explained(lines)
    assert one.culprit == "unknown" and not one.is_known
    assert "nothing accounts for most of it (other (real-time 91) 49 %, hog (real-time 90) 49 %" in one.text


def test_nobody_is_named_if_events_were_lost_or_the_trace_is_too_short():
    lines = ran_late(switch(RELEASE - 50, IDLE, HOG), begin=HOG)
    assert explained(lines).culprit == "thread"
    assert explained(lines[3:]).culprit == "unknown"
    assert explained([]).text == "unknown: the trace does not contain the whole cycle"
    lost = [
        *lines[:3],
        "CPU:3 [LOST 4132 EVENTS]",
        line(RELEASE + 250, "cpu_idle: state=1 cpu_id=3", task="hog-900"),
        lines[3],
    ]
    assert explained(lost).culprit == "unknown"


def test_a_switch_that_cannot_be_read_is_not_taken_for_none():
    """A thread with a line break in its name breaks the lines of its switches; the one before it is not blamed."""
    lines = ran_late(switch(RELEASE - 50, IDLE, HOG), begin=HOG)
    to_hidden = switch(RELEASE + 5, HOG, ("x\ny", 901, 8), "R")
    hidden = [*lines[:3], to_hidden, switch(RELEASE + 298, ("x\ny", 901, 8), THE_LOOP, "R+")]
    assert explained(hidden).culprit == "unknown"
    assert explained([*lines[:3], to_hidden.partition("next_pid")[0], lines[3]]).culprit == "unknown", "a cut line"
    (only,) = parse(line(5, "local_timer_entry: vector=236", task="x\n-900"))
    assert only.pid == 900


def test_a_signal_to_another_process_stopped_that_process():
    lines = [switch(10, THE_LOOP, IDLE), waking(RELEASE - 60, flags="d..3."), switch(RELEASE - 55, IDLE, THE_LOOP, "R")]
    lines += [switch(RELEASE - 50, THE_LOOP, IDLE, "T"), waking(RELEASE + 290, "bash-5", "d..3.", cpu=1)]
    lines += [switch(RELEASE + 295, IDLE, THE_LOOP, "R")]
    text = "signal_generate: sig=19 errno=0 code=0 comm=py pid={} grp=1 res=0"
    ours = line(RELEASE - 75, text.format(LOOP - 1), task="<...>-5", cpu=1)
    other = line(RELEASE - 70, text.format(12), task="cron-6", cpu=1)
    assert explained(lines, rare=(ours, other)).name == "SIGSTOP from thread 5"
    one = explained(lines, rare=(other,))
    assert (one.culprit, one.name) == ("signal", "a signal")


def test_threads_with_the_same_name_are_counted():
    second = ("hog", 902, 9)
    lines = [ASLEEP, waking(RELEASE + 3), switch(RELEASE + 4, IDLE, HOG, "R")]
    one = explained([*lines, switch(RELEASE + 150, HOG, second, "R"), switch(RELEASE + 298, second, THE_LOOP)])
    assert one.text == "hog (real-time 90) ran 294 us on CPU 3, in 2 threads of that name"


def test_events_are_read_whatever_threads_are_called():
    name = "a-1 [0] d: x ==>"
    text = switch(5, (name, 12, 120), ("b", 13, -1), "R+") + "\nnoise\n" + line(6, "new_event: x=1", task="<...>-77")
    first, second = parse(text)
    assert (first.pid, first.fields["prev_comm"], first.fields["next_prio"]) == (12, name, -1)
    assert (second.name, second.comm, second.t) == ("new_event", "<...>", 100_000_006_000)
    (only,) = parse("   x-1  (      9) [001] d..2.  5.000001: local_timer_entry: vector=236")  # option record-tgid
    assert (only.cpu, only.t) == (1, 5_000_001_000)
    assert [event.name for event in parse("CPU:1 [LOST 7 EVENTS]")] == [LOST]
    assert (first_time(text.encode()), last_time(text.encode())) == (first.t, second.t)
    assert first_time(b"noise") is last_time(b"") is None


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.txt")), ids=lambda path: path.stem)
def test_a_trace_of_a_real_kernel_is_explained(path):
    """Linux 6.18 wrote these traces around planted spikes (and stolen time) on a virtual machine with two CPUs."""
    first, _, text = path.read_text().partition("\n")
    head, (cpu_text, rare_text) = json.loads(first), text.split("\n\n")
    machine = MACHINE._replace(
        tid=head["tid"], pid=head["pid"], is_virtual=True, policy_of=lambda pid, prio: f"prio {prio}"
    )
    events = [list(parse(text)) for text in (cpu_text, rare_text)]
    assert len(events[0]) == len(cpu_text.strip().split("\n")) and LOST not in {event.name for event in events[0]}
    moves = PageMoves()
    moves.add(events[1])
    collections = [Collection(*each) for each in head["collections"]]
    one = explain(Delay(**head["delay"]), *events, machine, collections, moves)
    assert (one.culprit, str(one)) == (head["culprit"], head["sentence"])


def test_the_name_of_a_thread_does_not_reach_the_terminal_as_it_is():
    hog = ("\x1b[2J\x07", 900, 9)
    one = explained(ran_late(switch(RELEASE - 50, IDLE, hog), begin=hog))
    assert one.is_known and str(one).isprintable() and one.name.isprintable()


def test_cycles_that_deserve_an_explanation_are_found():
    release = np.arange(100) * 10**6
    records = np.zeros(100, [("release", "i8"), ("start", "i8"), ("end", "i8")])
    records["release"], records["start"], records["end"] = release, release + 5000, release + 8000
    records["start"][7] += 400_000
    records["end"][7] += 400_000
    records["end"][9] += 1_200_000
    latency, execution = (Histogram.from_values(np.full(100, value)) for value in (5000, 3000))
    limits = lateness.limits_of(lateness.AUTO, latency, execution)
    found = lateness.find_late(records, limits, 10**6, has_own_wait=False)
    assert [(late.place, late.what, late.is_overrun) for late in found] == [(9, "execution", True), (7, "start", False)]
    assert lateness.find_late(records, limits, 10**6, has_own_wait=True)[0].place == 9
    strict = lateness.limits_of(500_000, latency, execution)
    assert [late.place for late in lateness.find_late(records, strict, 10**6, has_own_wait=False)] == [9]


def test_explanations_are_kept_in_a_file_and_told_in_findings(tmp_path, make_stats):
    one = Explanation(3, "start", 3000, 300_000, "thread", "hog (FIFO 90)", "hog (FIFO 90) ran 298 us on CPU 3", 3)
    stats = make_stats(explanations=(one._replace(shares=(Share("thread", "hog", 298_000, 2),)),))
    loaded = Stats.load(stats.save(tmp_path / "run"))
    assert loaded == stats and loaded.explain()[0].shares == stats.explanations[0].shares
    assert any(finding.text.startswith("hog (FIFO 90) delayed 1 of the 1 late cycle") for finding in find(loaded))


@pytest.mark.parametrize(
    "change", [{"text": "x\ncycle 1 began late: sshd"}, {"name": "\x1b[2J"}, {"culprit": "x"}, {"cpu": "3"}]
)
def test_a_file_with_hostile_explanations_is_refused(make_stats, change):
    one = Explanation(3, "start", 3000, 300_000, "unknown", "", "unknown: x", 3, (Share("thread", "hog", 1, 2),))
    stats = make_stats(explanations=(one,))
    document = json.loads(json.dumps(stats.to_dict()))
    assert Stats._from_dict(document, stats.records).explanations == (one,)
    document["explanations"][0] |= change
    with pytest.raises(ValueError, match="list of explanations"):
        Stats._from_dict(document, stats.records)


def test_a_run_in_which_no_cycle_was_late_has_nothing_to_explain(make_stats):
    stats = make_stats(explanations=())
    assert stats.explain() == [] == stats.explain(0) == stats.explain(-1)
    assert stats.explain(1)[0].text == "unknown: not among the late cycles that were looked at"


def test_a_run_without_a_trace_says_so(make_stats):
    stats = make_stats()
    assert stats.explanations is None
    told = stats.explain(2)
    assert len(told) == min(2, len(stats.records))
    assert all(str(one).endswith("unknown: no trace for this cycle") for one in told)
    worst = stats.explain()
    assert [one.cycle for one in worst] == [told[0].cycle], "one sentence, whatever the number of cycles"
    assert "this run was not traced: run the loop with explain=True, or rtloop run --explain" in str(worst[0])


def test_instances_of_processes_that_are_gone_are_removed(tmp_path):
    instances = tmp_path / "instances"
    for name in ("rtloop-999999999-1-cpus", "rtloop-999999999", f"rtloop-{os.getppid()}-1-all", "rtloop-x", "mine"):
        (instances / name).mkdir(parents=True)
    (instances / f"rtloop-{os.getpid()}-1-all").mkdir()  # of an earlier process with this number
    tracefs.remove_stale(tmp_path)
    assert {one.name for one in instances.iterdir()} == {"mine", f"rtloop-{os.getppid()}-1-all", "rtloop-x"}


@pytest.fixture
def written(monkeypatch, tmp_path):
    """A tracefs that is an ordinary folder: what would be written into its files."""
    files: dict[str, str] = {}
    monkeypatch.setattr(tracefs, "find_root", lambda: tmp_path)
    monkeypatch.setattr(TraceInstance, "_write", lambda self, name, text: files.update({name: text}))
    (tmp_path / "instances").mkdir()
    return files


def test_an_instance_is_text_whatever_the_options_of_the_main_trace_are(written, tmp_path):
    """An instance begins with the options of the main trace: somebody may have set `raw`."""
    instance = TraceInstance("x", {"sched/sched_switch": ""}, {3}, 64, is_read=False)
    options = {name.removeprefix("options/"): text for name, text in written.items() if name.startswith("options/")}
    assert options["context-info"] == options["record-cmd"] == "1"
    assert options["raw"] == options["hex"] == options["bin"] == options["fields"] == "0"
    assert written["trace_clock"] == "mono" and written["tracing_on"] == "1"
    instance.close()
    assert not list((tmp_path / "instances").iterdir())


def test_an_instance_waits_for_a_program_that_is_being_started(written, tmp_path, monkeypatch):
    """Between fork and exec, a program has the inherited file, and the kernel says EBUSY."""
    instance = TraceInstance("x", {}, None, 64, is_read=False)
    refusals = [OSError(errno.EBUSY, "busy")] * 2
    rmdir = Path.rmdir

    def refuse_twice(path: Path) -> None:
        if refusals:
            raise refusals.pop()
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", refuse_twice)
    instance.close()
    assert not refusals and not list((tmp_path / "instances").iterdir())


def test_a_forked_child_does_not_remove_the_instance_of_its_parent(written, tmp_path):
    instance = TraceInstance("x", {}, None, 64, is_read=False)
    if (child := os.fork()) == 0:
        instance.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert [one.name for one in (tmp_path / "instances").iterdir()] == [f"rtloop-{os.getpid()}-x"]
    instance.close()


class FakeBlock:
    """Telemetry of a loop at 1 kHz, each of whose cycles began 300 us late."""

    def __init__(self, cycles: int, first_record: int = 0) -> None:
        self.cycles, self.first_record = cycles, first_record

    def snapshot(self, records: int) -> SimpleNamespace:
        kept = np.zeros(min(records, self.cycles), [("release", "i8"), ("start", "i8"), ("end", "i8")])
        kept["release"] = (np.arange(self.cycles - len(kept), self.cycles) + 1000) * 1_000_000
        kept["start"], kept["end"] = kept["release"] + 300_000, kept["release"] + 301_000
        counters = {"cycles": self.cycles, "warmup": 0, "clock_steps": 0, "first_record": self.first_record}
        return SimpleNamespace(counters=counters, records=kept, histograms=(Histogram.from_values([300_000]),) * 2)


@pytest.fixture
def make_tracer(written, monkeypatch):
    """Make tracers without a kernel's trace, and without the thread that looks."""
    monkeypatch.setattr(TraceInstance, "read", lambda self: b"")
    monkeypatch.setattr(TraceInstance.__init__, "__kwdefaults__", {"is_read": False})
    monkeypatch.setattr(run_tracer.RunTracer, "_watch", lambda self: None)

    def make(block: FakeBlock, **settings: object) -> run_tracer.RunTracer:
        tid = threading.get_native_id()
        facts = {"needs_interpreter": False, "has_own_wait": False, "is_virtual": False}
        return run_tracer.RunTracer(make_settings("loop", "1ms", **settings), block, tid, **facts)

    return make


def test_every_late_cycle_is_explained_even_if_many_were_late_at_once(make_tracer):
    one = make_tracer(FakeBlock(60), explain="100us")
    one._look()
    assert 1 <= len(one.explanations) <= run_tracer._MOST_A_LOOK, "more would delay the next look"
    one.finish()
    assert [each.cycle for each in one.explanations] == list(range(60))
    one.close()


def test_parts_of_the_text_are_read_once_and_none_is_taken_for_another(written, monkeypatch):
    """Also if they are of the same microsecond."""
    pieces = [(line(5, f"cpu_idle: state={state} cpu_id=3") + "\n").encode() for state in range(4)]
    instance = TraceInstance("x", {}, None, 64, is_read=False)
    monkeypatch.setattr(instance, "read", lambda: pieces.pop(0) if pieces else b"")
    tail = run_tracer._Tail(instance)
    tail.take(1 << 62)
    for _ in range(2):
        assert [event.fields["state"] for event in tail.events(0, 1 << 62)] == [0, 1, 2, 3]
    instance.close()


def test_moves_of_pages_are_followed_in_the_whole_text(written, monkeypatch):
    """Most lines are of other events, and a loss is dated by the line after it."""
    other = line(800, "cpu_idle: state=0 cpu_id=3")
    texts = [f"{moving(5, 'compaction_begin')}\n{other}\n", f"{other}\n", f"CPU:3 [LOST 2 EVENTS]\n{other}\n"]
    pieces = [text.encode() for text in texts]
    instance = TraceInstance("x", {}, None, 64, is_read=False)
    monkeypatch.setattr(instance, "read", lambda: pieces.pop(0) if pieces else b"")
    tail = run_tracer._Tail(instance)
    tail.take(10**11 + 800_000)
    tail.take(10**11 + 800_001)
    assert tail.moves.at(5, 10**11 + 900_000) is None, "the loss"
    pieces.append(f"{moving(950, 'compaction_end')}\n".encode())
    tail.take(1 << 62)
    assert tail.moves.at(5, 10**11 + 900_000) == ("compaction", "bash")
    assert tail.moves.at(5, 10**11 + 700_000) is None
    instance.close()


def test_a_loop_is_looked_for_only_in_the_process_of_the_thread(monkeypatch):
    """A look at all processes takes a tenth of a second on a busy machine, and each late cycle has several threads."""
    asked, look = [], rtloop.running

    def running(pid: int | None = None) -> object:
        asked.append(pid)
        return look(pid)

    monkeypatch.setattr("rtloop.telemetry.attach.running", running)
    with RTLoop("100Hz", name="another"):
        (reader,) = look(os.getpid())
        with reader:
            tid = reader.tid
        assert tid != os.getpid() and loop_name(tid) == "another" and loop_name(os.getpid()) == ""
    assert loop_name(tid) == "", "it has ended"
    assert loop_name(0) == "", "the idle task"
    assert set(asked) == {os.getpid()}


@pytest.mark.parametrize("limit", ["_FINISH_S", "_FINISH_CPU_S"])
def test_cycles_for_which_there_is_no_time_are_told_so(make_tracer, monkeypatch, limit):
    monkeypatch.setattr(run_tracer, limit, 0.0)
    one = make_tracer(FakeBlock(60), explain="100us")
    one.finish()
    why = [each.text for each in one.explanations]
    assert len(why) == 60
    assert why.count("unknown: more cycles were late than could be explained meanwhile") >= 50
    one.close()


def test_explanations_of_cycles_before_a_reset_are_dropped(make_tracer):
    """Also if more cycles have ended since the reset than before it."""
    block = FakeBlock(5)
    one = make_tracer(block, explain="100us")
    one._look()
    block.cycles, block.first_record = 8, 5
    one._look()
    assert [each.cycle for each in one.explanations] == list(range(8))
    block.cycles, block.first_record = 2, 13
    one.finish()
    assert [each.cycle for each in one.explanations] == [0, 1]
    one.close()


def test_without_a_thread_the_trace_is_removed_and_refused(make_tracer, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(run_tracer, "HelperThread", refuse)
    with pytest.raises(OSError, match="can't start new thread"):
        make_tracer(FakeBlock(0), explain=True)
    assert not list((tmp_path / "instances").iterdir())


@pytest.mark.parametrize(
    ("cpus", "mask"), [({0}, "00000001"), ({3, 33}, "00000002,00000008"), ({63}, "80000000,00000000")]
)
def test_a_mask_of_cpus_is_written_as_the_kernel_reads_it(cpus, mask):
    assert tracefs._mask(cpus) == mask


REFUSALS = [
    (PermissionError(13, "", "/sys/kernel/tracing/instances/x"), "tracing the kernel needs root", "explain=False"),
    (OSError(30, "", "x"), "mounted read-only, as in a container", "writable"),
    (OSError(12, "", "x"), "x: Cannot allocate memory", "explain=False"),
    (
        OSError(11, "can't start new thread", "the thread that reads the trace"),
        "the thread that reads",
        "explain=False",
    ),
    (RtloopError("tracefs is not mounted; fix: mount"), "tracefs is not mounted", tracefs.MOUNT),
]


@pytest.mark.parametrize(("error", "detail", "fix"), REFUSALS)
def test_a_refused_trace_is_a_grant_with_its_fix(monkeypatch, error, detail, fix):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(acquire, "RunTracer", fail)
    monkeypatch.setattr(acquire, "own_pid_namespace", lambda: acquire.FIRST)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    settings = make_settings("loop", "1ms", explain="200us")
    with ExitStack() as stack:
        grant, made = acquire.acquire(settings, stack, None, 1, needs_interpreter=True, has_own_wait=False)
    assert made is None and not grant.ok
    assert (grant.requested, grant.granted) == ("delays beyond 200 us", "no trace")
    assert detail in grant.detail and fix in grant.fix


@pytest.mark.parametrize("error", [PermissionError(13, "", "x"), RtloopError("tracefs is not mounted; fix: mount")])
def test_root_is_not_told_to_become_root(monkeypatch, error):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(acquire, "RunTracer", fail)
    monkeypatch.setattr(acquire, "own_pid_namespace", lambda: acquire.FIRST)
    for uid, is_told in ((0, False), (1000, True)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        grant = acquired()
        assert ("sudo $(which python)" in grant.fix) == is_told and "needs root" not in grant.detail * (not uid)


def acquired(**settings: object) -> Grant:
    with ExitStack() as stack:
        keywords = {"needs_interpreter": False, "has_own_wait": False}
        return acquire.acquire(make_settings("loop", "1ms", explain=True, **settings), stack, None, 1, **keywords)[0]


def test_too_few_timestamps_to_find_late_cycles_are_refused():
    grant = acquired(record=150)
    assert not grant.ok and "record=150 keeps the timestamps of 150 ms" in grant.detail
    assert "record=200" in grant.fix


def test_a_process_whose_threads_have_other_numbers_in_the_trace_is_refused(monkeypatch):
    """In a container, the number of the loop's thread is that of a stranger in the trace."""
    monkeypatch.setattr(acquire, "FIRST", 1)
    grant = acquired()
    assert not grant.ok and "another pid namespace" in grant.detail and "--pid=host" in grant.fix


def test_without_tracefs_the_command_that_mounts_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(tracefs, "_ROOTS", (str(tmp_path),))
    with pytest.raises(RtloopError, match="sudo mount -t tracefs none /sys/kernel/tracing"):
        tracefs.find_root()
