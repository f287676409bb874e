"""Processes whose malloc is not glibc's: the heap is not tuned, and says so; the guards watch the malloc there is."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rtloop
from rtloop.guard import library as guard_library

SUPPORT = Path(__file__).parents[1] / "support"
#: Folders in which distributions put allocators, and RTLOOP_TEST_ALLOCATORS; each that is there is tried.
FOLDERS = (os.environ.get("RTLOOP_TEST_ALLOCATORS", "/usr/local/lib"), "/usr/lib/*", "/usr/lib*")
REAL = {
    name: next((path for folder in FOLDERS for path in glob.glob(f"{folder}/{pattern}")), "")
    for name, pattern in (
        ("jemalloc", "libjemalloc.so.2"),
        ("tcmalloc", "libtcmalloc_minimal.so.4"),
        ("mimalloc", "libmimalloc.so.[23]"),
    )
}
#: Allocates, touches and frees 16 MB twenty times, as in a program that makes its arrays anew.
FAULTS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.malloc_usable_size.restype, libc.malloc_usable_size.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = libc.malloc(16 << 20)
        ctypes.memset(block, 1, 16 << 20)
        libc.free(block)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (16 << 20)
"""
LOOP = 'rtloop.RTLoop("1ms", policy="other", lock_memory="off", dma_latency=None, strict=False, '


def python(code: str, preload: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", f"import rtloop\n{FAULTS}\n{code}"],
        env={**os.environ, "LD_PRELOAD": preload, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def build(compiler: list[str], folder: Path, source: str, *flags: str) -> str:
    library = folder / f"lib{Path(source).stem}.so"
    flags = ("-O1", "-fPIC", "-shared", "-fno-builtin", *flags)
    subprocess.run([*compiler, *flags, str(SUPPORT / source), "-o", str(library)], check=True)
    return str(library)


@pytest.fixture(params=["plain", "with its own mallopt"])
def other(tmp_path: Path, request: pytest.FixtureRequest, compiler: list[str]) -> str:
    return build(compiler, tmp_path, "other_malloc.c", *(["-DMALLOPT"] if "own" in request.param else []))


def test_a_heap_of_another_malloc_is_not_called_tuned(other: str) -> None:
    done = python(
        f"grant = next(g for g in {LOOP}tune_malloc=True).run(cycles=3).grants if g.name == 'malloc')\n"
        "print(grant.ok, grant.granted, grant.detail, grant.fix, sep='\\n')\n"
        "print(work() > 15)", other,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["False", "not tuned"]
    assert lines[2] == f"malloc is libother_malloc.so's ({other}), and mallopt(3) changes glibc's alone"
    assert lines[3] == "start the program without libother_malloc.so in LD_PRELOAD"
    assert lines[-1] == "True", "it is not tuned, and each round faults all pages anew"


def test_memory_refuses_to_tune_a_heap_of_another_malloc(other: str) -> None:
    done = python(
        "try:\n    rtloop.memory.tune_malloc()\n"
        "except rtloop.SetupError as error:\n    print(error)\n"
        "print([g.granted for g in rtloop.memory.setup(lock=None, stack=None, strict=False) if g.name == 'malloc'])",
        other,
    )
    assert "malloc: asked for tuned, granted not tuned (malloc is libother_malloc.so's" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "['not tuned']"


def test_a_library_that_hands_malloc_on_to_glibc_does_not_hide_it(tmp_path: Path, compiler: list[str]) -> None:
    counter = build(compiler, tmp_path, "count_mallocs.c")
    done = python("print(rtloop.memory.tune_malloc().ok)\nwork()\nprint(work() < 1)", counter)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_threads_that_allocate_all_the_time_do_not_hide_glibc(tmp_path: Path, compiler: list[str]) -> None:
    """Each trial would find more memory taken than its own, and walk the whole heap: the file of malloc decides."""
    source, program = tmp_path / "busy.c", tmp_path / "busy"
    source.write_text("""
        #define _GNU_SOURCE
        #include <stdio.h>
        #include <stdlib.h>
        static void *malloc_of_two_threads(size_t bytes) { return malloc(1 << 20) ? malloc(bytes) : NULL; }
        #define malloc malloc_of_two_threads
        #include "rtloop/heap.h"
        int main(void) { return printf("%d", rt_heap_is_glibc()) < 0; }
    """)
    command = [*compiler, "-O1", "-fno-builtin"]
    include = Path(rtloop.get_include()) / "rtloop" / "include"
    subprocess.run([*command, f"-I{include}", str(source), "-o", str(program), "-ldl"], check=True)
    for preload, expected in (("", "1"), (build(compiler, tmp_path, "other_malloc.c"), "0")):
        done = subprocess.run([program], env={**os.environ, "LD_PRELOAD": preload}, capture_output=True, text=True)
        assert done.stdout == expected


def test_guards_call_the_malloc_behind_them(other: str) -> None:
    done = python(
        f"grants = {LOOP}guard='count', tune_malloc=True).run(cycles=30).grants\n"
        "print(*[g.granted for g in grants if g.name == 'guard_allocations'])\n"
        "print(next(g for g in grants if g.name == 'malloc').detail)\n"
        "print(libc.malloc_usable_size(libc.malloc(1000)))",
        f"{guard_library()} {other}",
    )
    assert done.returncode == 0, done.stderr  # a block of glibc's in the other one's hands ended in a crash
    assert done.stdout.splitlines() == [
        "counted", f"malloc is libother_malloc.so's ({other}), and mallopt(3) changes glibc's alone", "1000",
    ]  # fmt: skip


def test_guards_behind_another_malloc_say_what_keeps_them_from_counting(other: str) -> None:
    done = python(
        f"stats = {LOOP}guard='count').run(cycles=30)\nprint(stats.guard['allocations'])\n"
        "print(stats.guard['unavailable']['allocations'])",
        f"{other} {guard_library()}",
    )
    assert done.stdout.splitlines() == [
        "None", f"malloc is that of {other}, which LD_PRELOAD has in front of the library that counts them",
    ], done.stderr  # fmt: skip


def test_an_operator_new_that_does_not_call_malloc_is_named_as_not_counted(tmp_path: Path, compiler: list[str]) -> None:
    other = build(compiler, tmp_path, "other_malloc.c", "-DOPERATOR_NEW")
    done = python(
        f"stats = {LOOP}guard='count').run(cycles=30)\nprint(stats.guard['allocations'])\nprint(stats)",
        f"{guard_library()} {other}",
    )
    assert done.stdout.splitlines()[0] == "0", done.stderr
    assert f"calls of C++'s operator new not counted (it is that of {other}, which does not call malloc)" in (
        " ".join(done.stdout.split())
    )


@pytest.mark.parametrize("name", REAL)
def test_the_fix_for_a_known_allocator_keeps_its_memory(name: str) -> None:
    if not REAL[name]:
        pytest.skip(f"no {name} is installed here")
    code = f"grant = next(g for g in {LOOP}tune_malloc=True).run(cycles=3).grants if g.name == 'malloc')\n"
    done = python(code + "print(grant.ok, grant.detail, grant.fix, sep='\\n')", REAL[name])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "False" and lines[1].startswith(f"malloc is {name}'s (")
    settings = dict(item.split("=", 1) for item in lines[3].removeprefix("  export ").split())
    assert lines[3].startswith("  export ")
    done = python("work()\nprint(work() < 1)", REAL[name], **settings)
    assert done.stdout.split() == ["True"], done.stderr
    done = python(code + "print(libc.malloc_usable_size(libc.malloc(1000)) >= 1000)",
                  f"{guard_library()} {REAL[name]}")  # fmt: skip
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize("kind", ["-no-pie", "-pie"])
def test_the_owner_is_found_from_a_program_at_a_fixed_address(tmp_path: Path, compiler: list[str], kind: str) -> None:
    """As Debian's python3 is: the address of a function that it uses is then a jump of its own."""
    source, program = tmp_path / "owner.c", tmp_path / "owner"
    source.write_text("""
        #include "rtloop/heap.h"
        #include <stdio.h>
        int main(void) {
          void *(*volatile used)(size_t) = malloc;
          const char *owner = rt_heap_owner("malloc"), *own = rt_heap_owner("no_such_function");
          free(used(1));
          return printf("%s %s\\n", owner ? owner : "nobody", own ? own : "nobody") < 0;
        }
    """)
    command = [*compiler, "-O1", "-fno-builtin", kind, f"-f{kind[1:]}"]
    include = Path(rtloop.get_include()) / "rtloop" / "include"
    subprocess.run([*command, f"-I{include}", str(source), "-o", str(program), "-ldl"], check=True)
    other = build(compiler, tmp_path, "other_malloc.c")
    for preload, owner in (("", "libc.so.6"), (other, "libother_malloc.so")):
        done = subprocess.run(
            [program], env={**os.environ, "LD_PRELOAD": preload}, capture_output=True, text=True, check=True
        )
        path, none = done.stdout.split()
        assert os.path.basename(path) == owner and none == "nobody"
