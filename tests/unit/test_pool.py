"""Pools from Python, as an ordinary user: allocation, refusal of wrong frees, and the lifetime of views."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import sysconfig
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import rtloop

KINDS = ["single", "shared", "mutex"]


def mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_an_array_for_a_while(kind):
    pool = rtloop.Pool("1K", 3, kind=kind)
    assert (pool.kind, pool.block_size, pool.capacity, pool.in_use) == (kind, 1024, 3, 0)
    with pool.block(dtype="f8") as a, pool.block(dtype=np.int16) as b:
        assert (a.shape, a.dtype, b.shape, b.dtype) == ((128,), np.float64, (512,), np.int16)
        a[:] = 1.5
        b[:] = -7
        assert np.all(a == 1.5) and np.all(b == -7)
        assert not np.shares_memory(a, b)
        assert a.ctypes.data % 64 == b.ctypes.data % 64 == 0
        assert pool.in_use == 2
    assert (pool.in_use, pool.high_water, pool.failures) == (0, 2, 0)
    pool.check()


@pytest.mark.parametrize("kind", KINDS)
def test_an_exhausted_pool_says_so_and_counts(kind):
    pool = rtloop.Pool(64, 1, kind=kind)
    with pool.block():
        for _ in range(3):
            with pytest.raises(rtloop.PoolExhaustedError, match="all 1 blocks") as caught, pool.block():
                pass
            assert isinstance(caught.value, rtloop.PoolError | MemoryError)
    assert (pool.failures, pool.high_water, pool.in_use) == (3, 1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_misaligned_and_double_frees_are_refused_and_harm_nothing(kind, probes):
    pool = rtloop.Pool(192, 8, kind=kind)
    other = rtloop.Pool(192, 8, kind=kind)
    blocks = [probes.pool_alloc(pool) for _ in range(8)]
    assert len(set(blocks)) == 8 and probes.pool_alloc(pool) == 0
    foreign = [0, probes.pool_alloc(other), id(pool), blocks[0] + 1, blocks[0] + 64, blocks[0] - 192 * 8, 2**64 - 64]
    for address in foreign:
        assert probes.pool_free(pool, address) == -22
    assert probes.pool_free(pool, blocks[3]) == 0
    assert probes.pool_free(pool, blocks[3]) == -114
    assert (pool.in_use, pool.failures) == (7, 1)
    pool.check()
    assert probes.pool_alloc(pool) == blocks[3]


def test_python_is_told_of_a_block_that_was_given_back_behind_its_back(probes):
    pool = rtloop.Pool(64, 4)
    with pytest.raises(rtloop.PoolError, match="twice"), pool.block() as array:
        assert probes.pool_free(pool, array.ctypes.data) == 0
    pool.check()


@pytest.mark.parametrize("kind", KINDS)
def test_check_finds_damage(kind, probes):
    pool = rtloop.Pool(64, 4, kind=kind)
    block = probes.pool_alloc(pool)
    pool.check()
    probes.overwrite(block - 64)  # what lies there tells of each block whether it may be free
    with pytest.raises(rtloop.PoolError, match="broken"):
        pool.check()


def test_one_holder_can_be_used_again_but_not_twice_at_once():
    pool = rtloop.Pool(64, 4)
    holder = pool.block()
    with holder as first:
        address = first.ctypes.data
        with pytest.raises(rtloop.PoolError, match="already held"), holder:
            pass
    with holder as second:
        assert second.ctypes.data == address
    assert pool.in_use == 0


def test_the_memory_stays_while_a_view_lives_and_goes_with_it():
    pool = rtloop.Pool(4096, 16)
    with pool.block(dtype="u4") as array:
        array[:] = 3
    address, view = array.ctypes.data, array[5:9]
    del pool, array
    gc.collect()
    assert mapped(address) and view.tolist() == [3] * 4
    del view
    gc.collect()
    assert not mapped(address)


def test_the_lock_is_the_kernels_and_ends_with_the_pool():
    def locked() -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmLck")).split()[1]) * 1024

    before = locked()
    pool = rtloop.Pool(4096, 64)
    if pool.is_locked:
        assert locked() - before >= 4096 * 64
    else:
        assert locked() == before
    del pool
    assert locked() == before


def test_a_refused_lock_is_reported_and_the_pool_works(script):
    done = script("""
    import resource, rtloop, ctypes
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    pool = rtloop.Pool(256, 10)
    with pool.block() as array:
        array[:] = 1
    status = open("/proc/self/status").read()
    is_locked = "VmLck:\\t       0 kB" not in status
    print(pool.is_locked == is_locked, pool.high_water)
    """)
    assert done.stdout.split() == ["True", "1"], done.stderr


def test_a_refused_lock_as_another_user(script):
    if os.geteuid() != 0:
        pytest.skip("dropping the capability takes root; an ordinary user's own run covers it")
    done = script(
        "import resource, rtloop; resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0)); pool = rtloop.Pool(256, 10);"
        "print(pool.is_locked)",
        prefix=("setpriv", "--bounding-set", "-ipc_lock,-sys_resource", "--inh-caps", "-ipc_lock,-sys_resource"),
    )
    assert done.stdout.split() == ["False"], done.stderr
    assert all(word in done.stderr for word in ("RTSetupWarning", "RLIMIT_MEMLOCK is 0 bytes", "LimitMEMLOCK"))


def test_a_fork_leaves_the_child_an_empty_pool_and_the_parent_its_own():
    pool = rtloop.Pool(64, 4)
    with pool.block() as array:
        array[:] = 9
        child = os.fork()
        if child == 0:
            try:
                with pool.block():
                    os._exit(1)
            except rtloop.PoolError as error:
                os._exit(0 if "fork" in str(error) and pool.capacity == 0 and not array.any() else 2)
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert np.all(array == 9) and pool.in_use == 1
    pool.check()


@pytest.mark.parametrize("kind", ["shared", "mutex"])
def test_threads_of_python(kind):
    pool = rtloop.Pool(64, 8, kind=kind)
    wrong = []

    def work(number: int) -> None:
        for _ in range(500):
            try:
                with pool.block(dtype="u8") as array:
                    array[:] = number
                    if not np.all(array == number):
                        wrong.append(number)
            except rtloop.PoolExhaustedError:
                pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, pool.in_use) == ([], 0)
    pool.check()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((0, 1), "block_size"), ((-1, 1), "block_size"), ((64.0, 1), "block_size"), (("64x", 1), "block_size"),
        ((64, 0), "count"), ((64, -1), "count"), ((64, 1.5), "count"), ((64, True), "count"), ((64, 2**40), "count"),
        ((64, 2**20 + 1), "count"), (("8192G", 2**20), "more than"),
    ],
)  # fmt: skip
def test_impossible_sizes(arguments, word):
    with pytest.raises(rtloop.ConfigError, match=word):
        rtloop.Pool(*arguments)


def test_impossible_kind_and_dtype():
    for kind in ("lockfree", None, []):
        with pytest.raises(rtloop.ConfigError, match="'single', 'shared', 'mutex'"):
            rtloop.Pool(64, 1, kind=kind)
    pool = rtloop.Pool(64, 1)
    for dtype in ("O", "V65", "V0"):
        with pytest.raises(rtloop.ConfigError, match="dtype"):
            pool.block(dtype)
    with pytest.raises(rtloop.PoolError, match="once"):
        pool.__init__(64, 2)
    with pytest.raises(rtloop.PoolError, match="never made"):
        rtloop.Pool.__new__(rtloop.Pool).check()


@pytest.mark.parametrize("backing", [None, "pages", "auto"])
@pytest.mark.parametrize("kind", ["single", "shared", "mutex"])
def test_blocks_come_from_any_backing(kind, backing):
    pool = rtloop.Pool(100, 64, kind=kind, backing=backing)
    held = [pool.block() for _ in range(64)]
    arrays = [block.__enter__() for block in held]
    assert len({array.ctypes.data for array in arrays}) == 64
    for block in held:
        block.__exit__(None, None, None)
    pool.check()
    assert pool.backing in ({"pages"} if backing != "auto" else {"hugetlb", "thp", "pages"})


def test_a_region_that_cannot_be_mapped_is_a_memory_error():
    with pytest.raises(MemoryError, match="MemAvailable is"):
        rtloop.Pool("131072G", 4)


def test_a_users_own_class_on_the_inline_form(tmp_path, compiler):
    """From C's own header, found through get_include(); and plain `cythonize -i`, with nothing but the front door."""
    (tmp_path / "inline.pyx").write_text("""
from rtloop cimport Pool

cdef extern from "rtloop/include/rtloop/pool.h" nogil:
    ctypedef struct rt_pool_t:
        pass
    void *rt_pool_alloc_single(rt_pool_t *pool)
    int rt_pool_free_single(rt_pool_t *pool, void *block)

def use(Pool pool):
    cdef rt_pool_t *inline = <rt_pool_t *>pool.handle
    cdef void *block
    cdef int rc
    with nogil:
        block = rt_pool_alloc_single(inline)
        rc = rt_pool_free_single(inline, block)
    return rc, pool.high_water
""")
    (tmp_path / "plain.pyx").write_text("""
from rtloop cimport Pool

cdef class Mine(Pool):
    cdef void *kept

    def use(self):
        with nogil:
            self.kept = self.alloc()
        return self.free(self.kept), self.free(self.kept)
""")
    # Python's own flags for the linker are those of the compiler that it was built by; $CC may be another.
    link = {"LDSHARED": f"{os.environ['CC']} -shared"} if "CC" in os.environ else {}
    environment = {**os.environ, **link, "CFLAGS": f"-I{rtloop.get_include()}"}
    plain = {**os.environ, **link, "CFLAGS": ""}
    tool = [str(Path(sysconfig.get_path("scripts")) / "cythonize"), "-3", "-q", "-i"]
    subprocess.run([*tool, "inline.pyx"], cwd=tmp_path, env=environment, check=True)
    subprocess.run([*tool, "plain.pyx"], cwd=tmp_path, env=plain, check=True)
    program = """
import inline, plain, rtloop
print(inline.use(rtloop.Pool(64, 1, kind="single")), plain.Mine("4K", 2, kind="mutex").use())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(0, 1) (0, -114)", done.stderr


def test_a_block_that_is_not_held_lends_no_memory():
    holder = rtloop.Pool(64, 2).block()
    with pytest.raises(BufferError, match="not held"):
        memoryview(holder)
    with holder:
        assert memoryview(holder).nbytes == 64
    with pytest.raises(BufferError, match="not held"):
        memoryview(holder)


def test_a_lock_that_others_undo_is_not_claimed(script):
    done = script(
        "import ctypes, os, rtloop; pool = rtloop.Pool(256, 10); before = pool.is_locked;"
        "ctypes.CDLL(None).munlockall(); print(before, pool.is_locked, flush=True);"
        "pid = os.fork(); pid or print(pool.is_locked, flush=True); pid and os.waitpid(pid, 0)"
    )
    before, after, in_child = done.stdout.split()
    assert (after, in_child) == ("False", "False"), done.stderr
    assert before == "True" or "RTSetupWarning" in done.stderr


def test_leaving_a_with_statement_twice_is_told():
    pool = rtloop.Pool(64, 2)
    holder = pool.block()
    with holder:
        pass
    with pytest.raises(rtloop.PoolError, match="no block is held"):
        holder.__exit__(None, None, None)


@pytest.mark.parametrize("dtype", ["f9", ("f8", 2), "S0", object])
def test_items_that_are_no_plain_memory_are_refused(dtype):
    with pytest.raises(rtloop.ConfigError, match="dtype="):
        rtloop.Pool(64, 2).block(dtype)


def test_a_warning_that_is_an_error_leaves_no_pool(monkeypatch):
    monkeypatch.setattr(rtloop.memory.process_lock.memory_lock, "acquire_range", lambda *args, **kwargs: -12)
    pool = rtloop.Pool.__new__(rtloop.Pool)
    with warnings.catch_warnings(), pytest.raises(rtloop.RTSetupWarning):
        warnings.simplefilter("error")
        pool.__init__(64, 2)
    with pytest.raises(rtloop.PoolError, match="never made"):
        _ = pool.capacity
