"""Guards: violations in a step are counted, located in the user's code, and may end the loop."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rtloop
from rtloop.guard.guard_block import is_malloc_watched

pytestmark = pytest.mark.rt

Guilty = Callable[..., "subprocess.CompletedProcess[str]"]


def has_dispatch() -> bool:
    loop = rtloop.RTLoop("1ms", guard="count", policy="other", lock_memory="off", dma_latency=None)
    loop.run(cycles=1)
    return next(g for g in loop.grants if g.name == "guard_system_calls").granted == "counted"


def samples_faults() -> bool:
    loop = rtloop.RTLoop("1ms", guard="count", policy="other", lock_memory="off", dma_latency=None)
    loop.run(cycles=1)
    return "sample" in next(g for g in loop.grants if g.name == "guard_page_faults").detail


@pytest.fixture(scope="module")
def dispatch() -> None:
    if not has_dispatch():
        pytest.skip("this kernel or this architecture has no Syscall User Dispatch")


@pytest.fixture(scope="module")
def samples() -> None:
    if not samples_faults():
        pytest.skip("perf_event_open(2) is refused: faults are counted without their addresses")


@pytest.fixture
def watched(guilty_path: Path, tmp_path: Path) -> Guilty:
    """Run Python code in a process of its own in which allocations are watched, too."""

    def run(code: str, *, timeout: float = 60) -> Any:
        start = "import rtloop\nassert rtloop.guard.reexec()\nimport guilty\n"
        # Unbuffered: a printf writes at once, under its own name, and not at whatever flush comes next.
        environment = {**os.environ, "PYTHONPATH": str(guilty_path), "PYTHONUNBUFFERED": "1"}
        return subprocess.run(
            [sys.executable, "-c", start + textwrap.dedent(code)],
            env=environment, cwd=tmp_path, timeout=timeout, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def only(stats: rtloop.Stats) -> dict[str, Any]:
    """The one violation of a run."""
    assert len(stats.guard["violations"]) == 1, stats.guard
    violation: dict[str, Any] = stats.guard["violations"][0]
    return violation


# The planted violations: each is caught, in its cycle, with the function of the user that did it.


def test_planted_first_touch_of_fresh_memory(guilty: ModuleType, samples: None) -> None:
    loop = guilty.Toucher(guard="count")
    stats = loop.run(cycles=40)
    assert stats.guard["page_faults"] == {"minor": 1, "major": 0}
    found = only(stats)
    assert (found["cycle"], found["kind"], found["symbol"]) == (20, "minor fault", "touch_fresh_memory")
    assert "anonymous memory" in found["detail"]


def test_planted_getppid_is_caught_and_let_through(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller(guard="count")
    stats = loop.run(cycles=40)
    found = only(stats)
    assert (found["cycle"], found["kind"], found["detail"]) == (20, "system call", "getppid")
    assert found["symbol"] == "guilty.Caller.crime" and found["through"] == ["getppid"]
    assert loop.result == os.getppid(), "the call has its effect"


def test_planted_printf(guilty_path: Path, watched: Guilty, dispatch: None) -> None:
    done = watched("""
    s = guilty.Printer(guard="count").run(cycles=40)
    for v in s.guard["violations"]:
        print(v["kind"], v["detail"].split()[0], v["symbol"], v["through"][0], v["through"][-1], v["cycle"])
    """)
    lines = done.stdout.splitlines()
    assert "hello from cycle 20" in lines, done.stderr
    assert "system call write guilty.Printer.crime printf write 20" in lines, done.stdout


def test_planted_malloc_and_free(watched: Guilty) -> None:
    done = watched("""
    s = guilty.Allocator(guard="count").run(cycles=40)
    print([(v["cycle"], v["kind"], v["detail"], v["symbol"]) for v in s.guard["violations"]])
    print(s.guard_sentence)
    """)
    found, sentence = done.stdout.splitlines()
    assert "(20, 'allocation', 'malloc of 100 bytes', 'guilty.Allocator.crime')" in found, done.stderr
    assert "(20, 'allocation', 'free', " in found
    has_system_calls = "system calls not counted" not in sentence
    assert has_system_calls is has_dispatch()
    system_calls = " 0 system calls," if has_system_calls else ""
    counted = f"30 cycles: 0 page faults,{system_calls} 2 calls of malloc, free and the like in step"
    assert sentence.partition(";")[0] == counted


def test_planted_contended_mutex(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Waiter(guard="count")
    loop.take()
    loop.start()
    deadline = time.monotonic() + 20
    while not (loop.stats.guard["system_calls"] or 0) and time.monotonic() < deadline:
        time.sleep(0.01)
        if loop.stats.cycles >= 20:  # the twenty-first waits for the mutex, and has not ended
            time.sleep(0.1)
            loop.give()
            break
    loop.stop()
    first = loop.stats.guard["violations"][0]
    assert (first["cycle"], first["detail"], first["symbol"]) == (20, "futex", "guilty.Waiter.crime")
    assert first["through"][0] == "pthread_mutex_lock"


def test_planted_lazy_binding(guilty: ModuleType, samples: None) -> None:
    stats = guilty.Binder(guard="count").run(cycles=40)
    assert stats.guard["page_faults"]["minor"] >= 1
    first = stats.guard["violations"][0]
    assert (first["cycle"], first["kind"]) == (20, "minor fault")
    assert first["symbol"] in ("guilty.Binder.crime", "guilty.Guilty.step")
    assert "dynamic linker" in first["note"]


def test_remains_of_a_call_of_the_dynamic_linker_are_no_cause(watched: Guilty, dispatch: None) -> None:
    done = watched("""
    s = guilty.Talker(guard="count").run(cycles=40)
    for v in s.guard["violations"]:
        if v["detail"] == "write":
            print("\\n!", v["last_cycle"], v["through"][0], v["through"][-1], repr(v["note"]), " ".join(v["through"]))
    """)
    found = [line for line in done.stdout.splitlines() if line.startswith("! 39 ")]
    assert len(found) == 1 and found[0].startswith("! 39 printf write ''"), (done.stdout, done.stderr)
    assert " ld-" not in found[0]


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python has no GIL to wait for")
def test_planted_GIL(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Pythonic(guard="count")
    loop.every = True
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.02)  # whoever has the GIL keeps it for that long, and others wait in the kernel
    try:
        with loop:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                sum(range(200_000))
                if loop.stats.guard["system_calls"] > 2:
                    break
    finally:
        sys.setswitchinterval(before)
    futexes = [v for v in loop.stats.guard["violations"] if v["detail"] == "futex"]
    assert futexes, loop.stats.guard
    assert futexes[0]["symbol"] in ("guilty.Pythonic.crime", "guilty.Guilty.step")
    assert any("GIL" in name or "gil" in name or "PyThreadState" in name or "PyEval" in name
               for v in futexes for name in v["through"]), futexes  # fmt: skip


def test_a_violation_has_the_line_of_the_pyx(guilty: ModuleType, dispatch: None) -> None:
    import shutil

    if shutil.which("addr2line") is None:
        pytest.skip("addr2line is not installed")
    found = only(guilty.Caller(guard="count").run(cycles=40))
    source = (Path(__file__).parents[1] / "support" / "guilty.pyx").read_text().splitlines()
    assert Path(found["file"]).name == "guilty.pyx"
    assert source[found["line"] - 1].strip() == "self.result = getppid()"


# What a run with guards says.


def test_a_clean_run_ends_with_a_sentence_to_quote(watched: Guilty, dispatch: None) -> None:
    done = watched("""
    loop = rtloop.RTLoop("200us", guard="count")
    s = loop.run(cycles=10_010)
    print(s.guard_sentence)
    print(s)
    """)
    first, *table = done.stdout.splitlines()
    assert first == "10,000 cycles: 0 page faults, 0 system calls, 0 allocations in step", done.stderr
    assert any(line.startswith("guards") and first in line for line in table)


def test_the_table_groups_what_is_alike(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller(guard="count")
    loop.every = True
    text = str(loop.run(cycles=50))
    assert "30 times in cycles 20 to 49: system call getppid in guilty.Caller.crime" in " ".join(text.split())


def test_what_was_not_counted_is_said() -> None:
    if is_malloc_watched():
        pytest.skip("this very process watches allocations")
    loop = rtloop.RTLoop("1ms", guard="count")
    stats = loop.run(cycles=20)
    assert stats.guard["allocations"] is None
    assert "allocations not counted (the library that counts them is not loaded" in stats.guard_sentence
    grant = next(g for g in loop.grants if g.name == "guard_allocations")
    assert grant.granted == "unavailable" and grant.ok, "it is there where somebody has loaded it"


def test_without_guards_nothing_is_told() -> None:
    stats = rtloop.RTLoop("1ms").run(cycles=5)
    assert stats.guard == {} and stats.guard_sentence == ""


def test_simulated_runs_apply_no_guard(guilty: ModuleType) -> None:
    loop = guilty.Caller(guard="stop")
    stats = loop.simulate(cycles=40)
    assert stats.guard["system_calls"] is None and stats.guard["cycles"] == 0
    assert stats.guard_sentence == "The guards counted nothing: they are not applied to a simulated run"


def test_stop_fails_the_loop_with_the_violation(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller(guard="stop")
    with pytest.raises(rtloop.GuardError, match=r"cycle 20: system call getppid in guilty\.Caller\.crime") as caught:
        loop.run(cycles=1000)
    assert caught.value.cycle == 20 and caught.value.violation["detail"] == "getppid"
    assert loop.state == "failed" and loop.stats.cycles == 21


def test_the_warm_up_arms_no_guard(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller(guard="stop", warmup=21)
    assert loop.run(cycles=40).guard["system_calls"] == 0


def test_allowed_calls_are_no_violation(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller(guard="stop", guard_allow=("getppid",))
    loop.every = True
    stats = loop.run(cycles=60)
    assert stats.guard["system_calls"] == 0 and loop.result == os.getppid()
    assert stats.settings["guard_allow"] == ["getppid"]


def test_a_place_is_listed_once_with_its_count_and_cycles(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller("500us", guard="count")
    loop.every = True
    stats = loop.run(cycles=420)
    found = only(stats)
    assert stats.guard["system_calls"] == found["count"] == 400 and stats.guard["unlisted"] == {}
    assert (found["cycle"], found["last_cycle"], found["symbol"]) == (20, 419, "guilty.Caller.crime")


def test_a_noisy_kind_crowds_out_no_other(guilty: ModuleType, watched: Guilty, dispatch: None) -> None:
    """A system call in every cycle, at more places than are kept, and much later one allocation."""
    done = watched("""
    loop = guilty.Noisy("200us", guard="count")
    loop.at = 900
    guard = loop.run(cycles=1000).guard
    calls = [v for v in guard["violations"] if v["kind"] == "system call"]
    others = [(v["cycle"], v["detail"]) for v in guard["violations"] if v["kind"] == "allocation"]
    print(len(calls), sum(v["count"] for v in calls) + guard["unlisted"]["system call"] == guard["system_calls"])
    print(guard["unlisted"]["system call"] == 16 * 990, others)
    """)
    assert done.stdout == "64 True\nTrue [(900, 'malloc of 100 bytes'), (900, 'free')]\n", done.stdout + done.stderr


def test_the_error_of_a_stop_counts_all_of_its_cycle(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Noisy("500us", guard="stop", warmup=10)
    with pytest.raises(rtloop.GuardError, match=r", and 79 more, at 64 places and others$") as caught:
        loop.run(cycles=1000)
    assert caught.value.cycle == 10 and caught.value.violation["count"] == 1


def test_a_reset_begins_the_account_anew(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller("500us", guard="count")
    with loop:
        deadline = time.monotonic() + 20
        while loop.stats.guard["system_calls"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(loop.stats.guard["violations"]) == 1
        loop.reset_stats()
        while loop.stats.guard.get("violations") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)
    guard = loop.stats.guard
    assert (guard["system_calls"], guard["violations"]) == (0, [])
    assert guard["cycles"] == loop.stats.cycles > 0


def test_a_loop_can_be_guarded_again_and_two_at_once(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller(guard="count")
    for _ in range(3):
        assert loop.run(cycles=30).guard["system_calls"] == 1
    other = guilty.Caller(guard="count")
    with loop, other:
        time.sleep(0.2)
    assert (loop.stats.guard["system_calls"], other.stats.guard["system_calls"]) == (1, 1)


def test_saved_and_loaded_violations_are_the_same(guilty: ModuleType, dispatch: None, tmp_path: Path) -> None:
    stats = guilty.Caller(guard="count").run(cycles=40)
    loaded = rtloop.Stats.load(stats.save(tmp_path / "run.npz"))
    assert loaded.guard == stats.guard and loaded.guard_sentence == stats.guard_sentence


def test_another_process_reads_the_counts(guilty: ModuleType, dispatch: None) -> None:
    loop = guilty.Caller(guard="count", name="guarded")
    with loop:
        deadline = time.monotonic() + 20
        while loop.stats.guard["system_calls"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        attach = f"rtloop.attach(pid={os.getpid()}, name='guarded')"  # another test may have a loop of that name
        code = f"import rtloop; s = {attach}; print(s.guard['system_calls'], s.guard['unlisted'])"
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1 {'system call': 1}\n", done.stderr


# What the handler of SIGSYS must leave as it is.


def test_calls_that_a_handler_cannot_make_have_their_effect(guilty: ModuleType, dispatch: None) -> None:
    """A vfork returns twice, a signal mask is put back by the handler's return, errno is the caller's."""
    loop = guilty.Forker(guard="count")
    stats = loop.run(cycles=40)
    assert (loop.code, loop.error, loop.is_blocked) == (7, errno.EBADF, 1)
    assert [v["detail"] for v in stats.guard["violations"]] == ["vfork", "close", "rt_sigprocmask", "getppid"]
    assert loop.state == "stopped", "the guard goes on after a call that it left to the thread"


def test_a_former_handler_of_SIGSYS_is_chained_and_put_back(guilty: ModuleType, dispatch: None) -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGSYS, lambda number, frame: calls.append(number))
    try:
        loop = guilty.Caller(guard="count")
        with loop:
            os.kill(os.getpid(), signal.SIGSYS)
            time.sleep(0.1)
        assert loop.stats.guard["system_calls"] == 1 and calls == [signal.SIGSYS]
        os.kill(os.getpid(), signal.SIGSYS)
        time.sleep(0)
        assert calls == [signal.SIGSYS] * 2
    finally:
        signal.signal(signal.SIGSYS, before)


def test_SIGSYS_of_another_thread_still_ends_the_process(watched: Guilty, dispatch: None) -> None:
    done = watched("""
    import os, signal, time
    loop = guilty.Caller(guard="count")
    loop.start()
    os.kill(os.getpid(), signal.SIGSYS)
    time.sleep(10)
    """)
    assert done.returncode == -signal.SIGSYS


def test_system_calls_of_other_threads_are_none_of_it(guilty: ModuleType, dispatch: None) -> None:
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            os.getppid()

    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert guilty.Guilty("500us", guard="stop").run(cycles=500).guard["system_calls"] == 0
    finally:
        stop.set()
        thread.join()


def test_a_fault_after_a_fork_says_so(guilty: ModuleType, samples: None) -> None:
    loop = guilty.Toucher(guard="count", lock_memory="own")  # all memory would be locked, and there, after a fork
    loop.at, loop.every = 1 << 30, True  # or in a later cycle, if this thread is slow
    with warnings.catch_warnings(), loop:
        warnings.simplefilter("ignore")  # that this process forks is said once
        while loop.stats.cycles < 60:
            time.sleep(0.01)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        loop.at = loop.stats.cycles + 10
        os.waitpid(pid, 0)
        while loop.stats.cycles < loop.at + 10:
            time.sleep(0.01)
    mine = [v for v in loop.stats.guard["violations"] if v["symbol"] == "touch_fresh_memory"]
    assert mine and "after a fork" in mine[0]["note"]


def test_a_stop_without_dispatch_is_refused(watched: Guilty) -> None:
    """A kernel without it is played by a filter that refuses prctl(PR_SET_SYSCALL_USER_DISPATCH)."""
    done = watched(f"""
    import ctypes, struct
    # Classic BPF: the number of prctl and its first argument give EINVAL; everything else passes.
    number = {{"x86_64": 157, "aarch64": 167}}["{os.uname().machine}"]
    code = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 59), (0x06, 0, 0, 0x50016),
            (0x06, 0, 0, 0x7fff0000)]
    text = b"".join(struct.pack("<HBBI", *row) for row in code)
    filter_ = ctypes.create_string_buffer(text)
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(filter_)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
    loop = guilty.Caller(guard="count")
    print(loop.run(cycles=40).guard_sentence)
    try:
        guilty.Caller(guard="stop").start()
    except rtloop.SetupError as error:
        print(error)
    """)
    first, *rest = done.stdout.splitlines()
    assert "system calls not counted (this kernel or this architecture has no Syscall User Dispatch" in first, done
    assert "0 system calls" not in first
    assert any("guard_system_calls: asked for stop at the first, granted unavailable" in line for line in rest), done


# The library that watches allocations.


def test_reexec_loads_the_library_once_and_leaves_the_environment(watched: Guilty) -> None:
    done = watched("""
    import os, subprocess, sys
    print(rtloop.guard.reexec(), os.environ.get("LD_PRELOAD"), sys.argv[1:])
    print(subprocess.run([sys.executable, "-c", "import rtloop; print(rtloop.guard.is_malloc_watched())"],
                         capture_output=True, text=True).stdout.strip())
    """)
    assert done.stdout.split() == ["True", "None", "[]", "False"], done.stderr


def test_reexec_works_where_python_is_embedded(guilty_path: Path) -> None:
    """There ``sys.executable`` is None, or is a program that is not installed; the error was a TypeError."""
    code = "import sys, rtloop; sys.executable = {}; print(rtloop.guard.reexec(), rtloop.guard.is_malloc_watched())"
    for value in (None, "", "/nowhere/python"):
        command = [sys.executable, "-P", "-c", code.format(repr(value))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["True", "True"], done.stderr


def test_reexec_that_the_loader_ignores_is_told(guilty_path: Path) -> None:
    code = "import rtloop; print(rtloop.guard.reexec())"
    environment = {**os.environ, "RTLOOP_GUARD_FORMER_PRELOAD": ""}  # as if this were the program that was executed
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "False" and "the loader has ignored LD_PRELOAD" in done.stderr


def test_the_library_does_what_malloc_does(watched: Guilty) -> None:
    done = watched("""
    import ctypes
    c = ctypes.CDLL(None)
    for name in ("malloc", "calloc", "realloc", "reallocarray", "memalign", "aligned_alloc", "valloc", "pvalloc"):
        getattr(c, name).restype = ctypes.c_void_p
    size = ctypes.c_size_t
    out = ctypes.c_void_p()
    def free(p):
        assert p
        c.free(ctypes.c_void_p(p))
    free(c.malloc(size(10))); free(c.calloc(size(10), size(10)))
    free(c.realloc(ctypes.c_void_p(c.malloc(size(1))), size(100000)))
    assert c.memalign(size(4096), size(10)) % 4096 == 0 and c.aligned_alloc(size(64), size(64)) % 64 == 0
    assert c.valloc(size(1)) % 4096 == 0 and c.pvalloc(size(1)) % 4096 == 0
    assert c.posix_memalign(ctypes.byref(out), size(256), size(1)) == 0 and out.value % 256 == 0
    assert c.posix_memalign(ctypes.byref(out), size(3), size(1)) == 22
    assert not c.reallocarray(None, size(2**63), size(4)), "it overflows"
    assert bytes((ctypes.c_char * 100).from_address(c.calloc(size(10), size(10)))) == bytes(100)
    print("done")
    """)
    assert done.stdout.strip() == "done", done.stderr
