"""Thread pools of numerical libraries: a loop names those that its step might wait for, and a guard that it did."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rtloop
from rtloop.guard.thread_pools import pool_of, pools
from rtloop.stats.findings import find

Script = Callable[..., "subprocess.CompletedProcess[str]"]

#: A library like OpenBLAS: a number of threads, and a call that yields the CPU until the others are done.
SOURCE = """
#include <sched.h>
int openblas_get_num_threads(void) { return THREADS; }
int step(const void *cycle, void *data) {
  (void)cycle, (void)data;
  volatile int code = sched_yield(); /* not a jump to sched_yield, which would take this function off the stack */
  return code;
}
"""
#: A library whose caller spins for its thread, without a system call.
SPINNING = """
#include <pthread.h>
static volatile int asked, done;
static void *work(void *p) {
  for (;;) {
    while (!asked) {}
    for (volatile int i = 0; i < 100000; i++) {}
    asked = 0, done = 1;
  }
  return p;
}
int openblas_get_num_threads(void) { return THREADS; }
int begin(void) { pthread_t t; return pthread_create(&t, 0, work, 0); }
int step(const void *cycle, void *data) {
  (void)cycle, (void)data, done = 0, asked = 1;
  while (!done) {}
  return 0;
}
"""
LOOP = """
import ctypes, warnings
import rtloop
warnings.simplefilter("ignore")
library = ctypes.CDLL(PATH)
address = ctypes.cast(library.step, ctypes.c_void_p).value
stats = rtloop.FunctionLoop(address, "1ms", policy="other", lock_memory="off", dma_latency=None, strict=False,
                            guard="count").run(cycles=30)
"""


@pytest.fixture
def library(tmp_path: Path, compiler: list[str]) -> Callable[..., str]:
    def make(threads: int, source: str = SOURCE) -> str:
        (tmp_path / "pool.c").write_text(source)
        path = tmp_path / f"libopenblas_{threads}.so"
        flags = ["-O1", "-pthread", "-fPIC", "-shared", f"-DTHREADS={threads}"]
        subprocess.run([*compiler, *flags, str(tmp_path / "pool.c"), "-o", str(path)], check=True)
        return str(path)

    return make


def test_a_pool_of_several_threads_is_found(library: Callable[..., str]) -> None:
    one, three = library(1), library(3)
    held = ctypes.CDLL(one), ctypes.CDLL(three)
    found = {pool.path: pool for pool in pools()}
    assert held and one not in found, "it has no other threads to wait for"
    assert (found[three].name, found[three].threads, found[three].variable) == ("OpenBLAS", 3, "OPENBLAS_NUM_THREADS")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("libscipy_openblas64_-ff651d7f.so", "OpenBLAS"),
        ("libmkl_rt.so.2", "MKL"),
        ("libgomp-24e2ab19.so.1.0.0", "OpenMP"),
        ("libiomp5.so", "OpenMP"),
        ("libblis.so.4", "BLIS"),
        ("libm.so.6", None),
    ],
)
def test_known_libraries_are_told_by_their_file(file: str, name: str | None) -> None:
    found = pool_of(f"/usr/lib/{file}")
    assert (found and found[0]) == name


def test_a_loop_names_the_pools_that_a_step_might_wait_for(script: Script, library: Callable[..., str]) -> None:
    code = LOOP + "print([str(g) for g in stats.grants if g.name == 'thread_pools'])"
    done = script(code.replace("PATH", repr(library(3))), env={"OPENBLAS_NUM_THREADS": "1"})
    assert "thread_pools: asked as they are, granted OpenBLAS 3 threads [ok]" in done.stdout, done.stderr
    assert "OPENBLAS_NUM_THREADS=1 before the program starts" in done.stdout
    done = script(code.replace("PATH", repr(library(1))), env={"OPENBLAS_NUM_THREADS": "1"})
    assert done.stdout.strip() == "[]", "NumPy's own is limited, and the other one has no pool"


def test_a_guard_says_that_a_step_waited_for_a_pool(script: Script, library: Callable[..., str]) -> None:
    code = LOOP + (
        "print(stats.guard['system_calls'] is None)\n"
        "print(*(v['detail'] + '@' + v['note'] for v in stats.guard['violations']), sep='\\n')"
    )
    done = script(code.replace("PATH", repr(library(3))))
    is_unavailable, *violations = done.stdout.splitlines()
    if is_unavailable == "True":
        pytest.skip("this kernel has no Syscall User Dispatch")
    assert "sched_yield@the step waits for the threads of OpenBLAS: set OPENBLAS_NUM_THREADS=1" in violations


def test_a_pool_that_is_busy_during_the_run_is_in_the_findings(script: Script, library: Callable[..., str]) -> None:
    """The caller spins for its pool without a system call, so that the guards count 0."""
    code = LOOP.replace("library = ctypes.CDLL(PATH)\n", "library = ctypes.CDLL(PATH)\nlibrary.begin()\n").replace(
        '"1ms"', '"10ms"'
    )
    code += """
from rtloop.stats.findings import find
print([g.granted for g in stats.grants if g.name == "thread_pools"], stats.guard["system_calls"])
print(*(f.text for f in find(stats)), sep="\\n")
"""
    done = script(code.replace("PATH", repr(library(2, SPINNING))), env={"OPENBLAS_NUM_THREADS": "1"})
    assert "OpenBLAS 2 threads; threads of libraries busy " in done.stdout, done.stderr
    assert "Thread pools of libraries: OpenBLAS 2 threads; threads of libraries busy " in done.stdout
    assert "so a loop did, unless these threads work by themselves" in done.stdout, (
        "no other thread could have called it"
    )
    busy = "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()\n"
    done = script(busy + code.replace("PATH", repr(library(2, SPINNING))), env={"OPENBLAS_NUM_THREADS": "1"})
    assert "if its step calls the library, it waits or spins for them" in done.stdout, done.stderr


#: A library whose first call starts a thread, as some do.
STARTING = """
#include <pthread.h>
#include <unistd.h>
static void *work(void *p) {
  for (;;) pause();
  return p;
}
int openblas_get_num_threads(void) { return THREADS; }
int step(const void *cycle, void *data) {
  static pthread_t thread;
  (void)cycle, (void)data;
  return thread ? 0 : pthread_create(&thread, 0, work, 0);
}
"""


def test_threads_that_a_step_starts_are_named_with_policy_and_cpus(script: Script, library: Callable[..., str]) -> None:
    code = LOOP.replace("strict=False", "strict=False, name='axis', cpu=min(__import__('os').sched_getaffinity(0))")
    code += """
import threading, time
from rtloop.stats.findings import find
print(*(g for g in stats.grants if g.name == "started_threads"), [v["note"] for v in stats.guard["violations"]])
print(*(f.text for f in find(stats)), sep="\\n")
threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
pair = [rtloop.PyLoop(lambda cycle: None, "5ms", policy="other", lock_memory="off", dma_latency=None, name=name)
        for name in ("a", "b")]
group = rtloop.LoopGroup(pair, watchdog=200)
group.run("50ms")
print("others", [g for s in group.stats.values() for g in s.grants if g.name == "started_threads"])
"""
    done = script(code.replace("PATH", repr(library(1, STARTING))), env={"OPENBLAS_NUM_THREADS": "1"})
    first = min(os.sched_getaffinity(0))
    assert f"started_threads: asked none, granted 1 thread: axis (other, CPU {first}) [ok]" in done.stdout, done.stderr
    assert f"Threads that a loop has started: 1 thread: axis (other, CPU {first})." in done.stdout
    assert done.stdout.endswith("others []\n"), "neither Python's threads, nor other loops, nor their watchdog"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_one_call_limits_the_pool_that_numpy_has_loaded_and_keeps_it_off_a_cpu(script: Script) -> None:
    pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: pip install 'rtloop[pools]'")
    code = """
import os, threading, numpy, rtloop
from rtloop.guard.thread_pools import _library_threads, pools
print([pool.threads for pool in pools()])
stop = threading.Event()
own = threading.Thread(target=stop.wait)
own.start()
cpus = os.sched_getaffinity(0)
rtloop.limit_thread_pools(2, avoid=[min(cpus)])
print({frozenset(os.sched_getaffinity(tid)) for tid in _library_threads()} == {frozenset(cpus - {min(cpus)})})
print(os.sched_getaffinity(0) == os.sched_getaffinity(own.native_id) == cpus)
stop.set()
before = [pool.threads for pool in pools()]
try:
    rtloop.limit_thread_pools(1, avoid=cpus)
except rtloop.ConfigError as error:
    print("leaves no CPU" in str(error), [pool.threads for pool in pools()] == before)
rtloop.limit_thread_pools()
print(pools() == [])
"""
    done = script(code, env={"OPENBLAS_NUM_THREADS": "2"})
    if done.stdout.startswith("[]"):
        pytest.skip("this NumPy has no BLAS with a pool of threads")
    assert done.stdout.split() == ["[2]", "True", "True", "True", "True", "True"], done.stderr


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", None])
def test_a_wrong_number_of_threads_is_refused(threads: Any) -> None:
    with pytest.raises(rtloop.ConfigError, match="is not a number of threads"):
        rtloop.limit_thread_pools(threads)


@pytest.mark.parametrize("name", ["a b", "new\nline", "line\u2028separator", "no UTF-8 \udcff"])
@pytest.mark.parametrize("is_removed", [False, True])
def test_the_pool_of_a_file_with_any_name_is_found(
    script: Script, library: Callable[..., str], tmp_path: Path, name: str, is_removed: bool
) -> None:
    """A library that was removed, as by an update of the package, still has its threads."""
    folder = tmp_path / name
    folder.mkdir()
    path = str(folder / "libopenblas.so")
    os.rename(library(4), path)
    code = f"""
import ctypes, os
from rtloop.guard.thread_pools import pools
path = {path!a}
held = ctypes.CDLL(path)
if {is_removed}:
    os.unlink(path)
print([pool.threads for pool in pools() if pool.path == path])
"""
    done = script(code)  # not in this process, where it would stay mapped for other tests
    assert done.stdout.strip() == "[4]", done.stderr


@pytest.mark.parametrize("avoid", ["0", 0, ["0"], [-1], [None], [0.0], [1, "x"]])
def test_anything_but_numbers_of_cpus_is_refused(avoid: Any) -> None:
    with pytest.raises(rtloop.ConfigError, match="must be numbers of CPUs"):
        rtloop.limit_thread_pools(avoid=avoid)


def test_without_threadpoolctl_the_error_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match=r"pip install 'rtloop\[pools\]', or set OPENBLAS_NUM_THREADS=1"):
        rtloop.limit_thread_pools()


def test_a_step_that_sleeps_for_others_is_a_finding() -> None:
    stats = rtloop.PyLoop(lambda cycle: time.sleep(0.0005), "5ms", strict=False, warmup=5).run(cycles=105)
    (text,) = [one.text for one in find(stats) if "gave up the CPU" in one.text]
    assert "or the interpreter" in text


def test_a_step_that_never_sleeps_is_none() -> None:
    stats = rtloop.RTLoop("2ms", strict=False, warmup=5).run(cycles=205)
    assert [one.text for one in find(stats) if "gave up the CPU" in one.text] == []
    long = rtloop.RTLoop("300ms", strict=False, warmup=0).run(cycles=4)  # a command is looked for in between
    assert [one.text for one in find(long) if "gave up the CPU" in one.text] == []
