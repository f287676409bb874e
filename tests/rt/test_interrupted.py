"""Signal handlers, Ctrl-C, closed files and the interpreter's end in the middle of operations that must be atomic."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.rt

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PROLOGUE = """
import faulthandler, gc, mmap, os, signal, sys, tempfile, time
import numpy as np
import rtloop
from rtloop import memory
faulthandler.dump_traceback_later(20, exit=True)
PLAIN = {"strict": False, "policy": "other", "dma_latency": None}
def locked():
    return memory.status().locked_bytes
"""


def run(script: Script, code: str) -> list[str]:
    lines = [line[4:] if line.startswith("    ") else line for line in code.splitlines()]
    done = script(PROLOGUE + "\n".join(lines))
    assert done.returncode == 0, done.stderr
    return str(done.stdout).split()


def test_a_handler_that_stops_a_loop_does_not_wait_for_a_lock_it_has_interrupted(script: Script) -> None:
    said = run(script, """
    loop = rtloop.RTLoop("1ms", lock_memory="own", **PLAIN)
    loop.start()
    signal.signal(signal.SIGALRM, lambda *_: loop.stop())
    array = np.zeros(200 << 20, np.uint8)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    memory.lock(array)
    time.sleep(0.05)
    print(loop.state, locked() == array.nbytes // 4096 * 4096 + 4096 or locked() == array.nbytes)
    """)  # fmt: skip
    assert said == ["stopped", "True"]


@pytest.mark.parametrize("call", ["memory.lock(array)", "memory.lock_all()"])
def test_ctrl_c_during_a_lock_leaves_it_recorded_so_that_it_can_be_undone(script: Script, call: str) -> None:
    said = run(script, f"""
    array = np.zeros(300 << 20, np.uint8)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        {call}
        time.sleep(1)
    except KeyboardInterrupt:
        print("interrupted", locked() > 0)
    memory.{"unlock(array)" if "lock(a" in call else "unlock_all()"}
    print(locked())
    """)  # fmt: skip
    assert said == ["interrupted", "True", "0"]


def test_a_loop_whose_files_were_closed_by_the_program_ends_and_others_start(script: Script) -> None:
    said = run(script, """
    first, second = (rtloop.RTLoop("1ms", lock_memory="off", **PLAIN) for _ in range(2))
    first.start()
    for fd in os.listdir("/proc/self/fd"):
        if os.path.lexists(f"/proc/self/fd/{fd}") and "rtloop" in os.readlink(f"/proc/self/fd/{fd}"):
            os.close(int(fd))
    first.stop()
    print(first.state, second.run(cycles=3).cycles)
    """)  # fmt: skip
    assert said == ["stopped", "3"]


def test_a_look_that_fails_does_not_end_the_keeper(script: Script) -> None:
    said = run(script, """
    from rtloop.process import signal_shield
    def fail():
        raise OSError("no look")
    loop = rtloop.RTLoop("1ms", lock_memory="off", **PLAIN)
    loop.run(cycles=2)
    signal_shield.look_with(fail)
    loop.run(cycles=2)
    time.sleep(0.3)
    print(loop.run(cycles=2).cycles)
    """)  # fmt: skip
    assert said == ["2"]


def test_a_job_that_the_keeper_never_came_to_is_done_all_the_same(script: Script) -> None:
    said = run(script, """
    from rtloop.process import signal_shield
    sys.unraisablehook = lambda _: None
    def die():
        raise SystemExit
    signal_shield.look_with(die)
    print([signal_shield.shielded(lambda: number) for number in range(2)])
    signal_shield._looks.clear()
    print(rtloop.RTLoop("1ms", lock_memory="off", **PLAIN).run(cycles=2).cycles)
    """)  # fmt: skip
    assert said == ["[0,", "1]", "2"]


def test_a_signal_that_does_not_interrupt_the_wait_for_the_keeper_is_handled_at_its_end(script: Script) -> None:
    """It may come just before the wait. `map` executes no instruction of Python, at which handlers run as well."""
    said = run(script, """
    import _thread
    from rtloop.process.signal_shield import shielded
    handled = []
    signal.signal(signal.SIGUSR1, lambda *_: handled.append("handled"))
    print(list(map(shielded, [lambda: _thread.interrupt_main(signal.SIGUSR1), lambda: list(handled)])))
    """)  # fmt: skip
    assert said == ["[None,", "['handled']]"]


def test_a_loop_is_not_started_at_the_end_of_the_interpreter(script: Script) -> None:
    said = run(script, """
    loop = rtloop.RTLoop("1ms", lock_memory="off", **PLAIN)
    loop.run(cycles=3)
    class Late:
        def __init__(self, loop, error):
            self.loop, self.error = loop, error
        def __del__(self):
            try:
                self.loop.run(cycles=2)
            except self.error as error:
                os.write(1, b"refused" if "ending" in str(error) else b"what")
    sys.modules["kept"] = Late(loop, rtloop.StateError)
    """)  # fmt: skip
    assert said == ["refused"]


def test_two_locked_objects_at_one_address_are_told_apart(script: Script) -> None:
    said = run(script, """
    held = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(held, np.uint8)
    memory.lock(whole[:4096]); memory.lock(whole)
    memory.unlock(whole[:4096])
    print(locked() == 1 << 20)
    memory.unlock(whole)
    print(locked())
    """)  # fmt: skip
    assert said == ["True", "0"]


def test_a_lock_that_fails_half_way_leaves_nothing_locked(script: Script) -> None:
    said = run(script, """
    file = tempfile.TemporaryFile()
    file.truncate(1 << 20)
    held = mmap.mmap(file.fileno(), 1 << 20)
    file.truncate(4096)
    try:
        memory.lock(held)
    except rtloop.MemoryLockError:
        print("refused", locked())
    """)  # fmt: skip
    assert said == ["refused", "0"]


def test_a_lock_of_others_survives_ours_of_the_same_memory(script: Script) -> None:
    said = run(script, """
    import ctypes
    libc = ctypes.CDLL(None)
    held = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(held, np.uint8)
    assert libc.mlock(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(1 << 20)) == 0
    memory.lock_all(); memory.lock(array); memory.unlock_all(); memory.unlock(array)
    print(locked() == 1 << 20)
    memory.lock_all()
    libc.munmap(ctypes.c_void_p(array.ctypes.data + (1 << 18)), ctypes.c_size_t(1 << 18))
    memory.unlock_all()
    print(locked() == 3 << 18)
    os._exit(0) if sys.stdout.flush() is None else None
    """)  # fmt: skip
    assert said == ["True", "True"]


def test_a_locked_object_is_not_copied_on_write_after_a_fork(script: Script) -> None:
    said = run(script, """
    import resource
    held = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(held, np.uint8)
    memory.advise(array, "nohugepage")
    memory.lock(array)
    child = os.fork()
    if child == 0:
        time.sleep(3); os._exit(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array[::4096] = 1
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 500)
    os.kill(child, signal.SIGKILL); os.waitpid(child, 0)
    """)  # fmt: skip
    assert said == ["True"]
