"""Large buffers beside the kernel's own account: too few huge pages and enough, locks, forks, a loop that writes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import HugeBuffer
from rtloop.memory import hugepage_supply
from rtloop.memory.smaps import account

pytestmark = pytest.mark.rt

Script = Callable[..., "subprocess.CompletedProcess[str]"]
Reserve = Callable[[int], None]
PAGE = mmap.PAGESIZE
COUNT = Path("/proc/sys/vm/nr_hugepages")
HUGE = hugepage_supply.default_page_size()
NO_TRANSPARENT = "this kernel has no transparent huge pages, as those with PREEMPT_RT"
# It may enter any folder: Python may be installed below one of root's own.
ENTER = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
ORDINARY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *ENTER)
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becoming an ordinary user takes root and setpriv(1)"
)


@contextlib.contextmanager
def pool_to_itself() -> Iterator[None]:
    """Keep other runs of these tests on this machine from changing the pool meanwhile, and put it back at the end."""
    with COUNT.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = COUNT.read_text()
        try:
            yield
        finally:
            COUNT.write_text(before)


@pytest.fixture
def reserve() -> Iterator[Reserve]:
    """Set the number of free huge pages in the machine's pool; skips where it cannot be had."""
    if not HUGE or not os.access(COUNT, os.W_OK):
        pytest.skip("needs a kernel with huge pages, and /proc/sys/vm/nr_hugepages to be writable")
    with pool_to_itself():

        def reserve(free: int) -> None:
            pool = hugepage_supply.huge_pool(HUGE)
            assert pool is not None
            COUNT.write_text(str(pool.total - pool.available + free))
            pool = hugepage_supply.huge_pool(HUGE)
            assert pool is not None
            if pool.available != free:
                pytest.skip(f"memory is too fragmented for {free} huge pages: the kernel found {pool.available}")

        yield reserve


@pytest.fixture(params=["hugetlb", "thp", "pages"])
def buffer(request: pytest.FixtureRequest, reserve: Reserve) -> Iterator[HugeBuffer]:
    """A buffer of four huge pages' size on each backing, truly on it."""
    if request.param == "thp" and not hugepage_supply.transparent_page_size():
        pytest.skip(NO_TRANSPARENT)
    reserve(4 if request.param == "hugetlb" else 0)
    with HugeBuffer(4 * HUGE, backing=request.param, strict=True) as buffer:
        yield buffer


def smaps(address: int) -> dict[str, str]:
    """Read a mapping's own account, by other means than rtloop's."""
    for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())[1:]:
        low, high = (int(x, 16) for x in block.split(" ", 1)[0].split("-"))
        if low <= address < high:
            return {key: value.strip() for key, _, value in (line.partition(":") for line in block.splitlines()[1:])}
    return {}


def address_of(buffer: HugeBuffer) -> int:
    return int(buffer.array("u1").ctypes.data)


def locked_bytes() -> int:
    return int(re.search(r"VmLck:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]


# The pool of huge pages: none, too few, enough.


def refused(grants: tuple[rtloop.Grant, ...]) -> dict[str, str]:
    return {grant.name: grant.detail for grant in grants if not grant.ok}


@pytest.mark.parametrize("free", [0, 3])
def test_with_too_few_huge_pages_it_falls_back_and_says_how_many_are_missing(reserve: Reserve, free: int) -> None:
    reserve(free)
    buffer = HugeBuffer(4 * HUGE)
    has_transparent = bool(hugepage_supply.transparent_page_size())
    assert buffer.backing == ("thp" if has_transparent else "pages") and buffer.is_locked
    assert f"{free} of " in refused(buffer.grants)["hugetlb"]
    assert f": {4 - free} missing" in refused(buffer.grants)["hugetlb"]
    assert smaps(address_of(buffer))["AnonHugePages"] == f"{has_transparent * 4 * HUGE >> 10} kB"
    with pytest.warns(rtloop.RTSetupWarning, match=f"{4 - free} missing"):
        HugeBuffer(4 * HUGE, backing="hugetlb")


@pytest.mark.parametrize("free", [0, 3])
@pytest.mark.parametrize("backing", ["auto", "hugetlb"])
def test_strict_raises_and_the_command_in_the_message_helps(reserve: Reserve, backing: str, free: int) -> None:
    reserve(free)
    before = locked_bytes(), len(Path("/proc/self/maps").read_text().splitlines())
    with pytest.raises(OSError, match=f"{4 - free} missing") as caught:
        HugeBuffer(4 * HUGE, backing=backing, strict=True)
    assert isinstance(caught.value, rtloop.SetupError) and caught.value.errno == errno.ENOMEM
    assert (locked_bytes(), len(Path("/proc/self/maps").read_text().splitlines())) == before
    command = re.search(r"sudo sysctl vm\.nr_hugepages=(\d+)", str(caught.value))
    assert command is not None
    COUNT.write_text(command[1])
    assert HugeBuffer(4 * HUGE, backing=backing, strict=True).backing == "hugetlb"


@pytest.mark.parametrize("backing", ["auto", "hugetlb"])
def test_with_enough_huge_pages_it_has_them(reserve: Reserve, backing: str) -> None:
    reserve(4)
    buffer = HugeBuffer(4 * HUGE - 5, backing=backing, page_size=HUGE, strict=True)
    found = smaps(address_of(buffer))
    assert found["KernelPageSize"] == f"{HUGE >> 10} kB" and found["Private_Hugetlb"] == f"{4 * HUGE >> 10} kB"
    assert {"ht", "dc"} <= set(found["VmFlags"].split()) and "nr" not in found["VmFlags"].split()
    assert (buffer.backing, buffer.page_size, buffer.huge_bytes) == ("hugetlb", HUGE, 4 * HUGE)
    assert buffer.is_locked and address_of(buffer) % HUGE == 0
    pool = hugepage_supply.huge_pool(HUGE)
    assert pool is not None and (pool.available, pool.reserved) == (0, 0), "taken, and not merely promised"
    buffer.close()
    pool = hugepage_supply.huge_pool(HUGE)
    assert pool is not None and pool.available == 4


def test_a_gibibyte_page_is_granted_or_refused_with_the_boot_parameter(reserve: Reserve) -> None:
    pool = hugepage_supply.huge_pool(1 << 30)
    if pool is not None and pool.available:
        assert HugeBuffer(4096, page_size="1G", strict=True).page_size == 1 << 30
        return
    with pytest.raises(rtloop.SetupError, match=r"hugepagesz=1G hugepages=\d"):
        HugeBuffer(4096, page_size="1G", strict=True)
    with pytest.warns(rtloop.RTSetupWarning, match=r"page_size: asked for 1 GiB, granted [24] [MK]iB"):
        HugeBuffer(4096, page_size="1G")


@pytest.mark.parametrize(("size", "shift"), [("2M", 21), ("1G", 30)])
def test_the_size_asked_for_is_the_size_that_the_kernel_is_asked_for(
    script: Script, tmp_path: Path, size: str, shift: int
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace(1)")
    trace = tmp_path / "trace"
    code = f"import rtloop, warnings; warnings.simplefilter('ignore'); rtloop.HugeBuffer(1, page_size={size!r})"
    done = script(code, prefix=("strace", "-o", str(trace), "-e", "trace=mmap"))
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text().splitlines() if "MAP_HUGETLB" in line]
    assert len(calls) == 1 and f"|{shift}<<MAP_HUGE_SHIFT" in calls[0], calls


# A control group that keeps huge pages of a full pool from a process.


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of version 2 with the hugetlb controller, which is enabled as long as it exists."""
    unified = Path("/sys/fs/cgroup/unified")
    root = unified if unified.is_dir() else Path("/sys/fs/cgroup")
    controllers = root / "cgroup.controllers"
    if not controllers.exists() or "hugetlb" not in controllers.read_text().split():
        pytest.skip("no control group of version 2 with the hugetlb controller here")
    control = root / "cgroup.subtree_control"
    was_on = "hugetlb" in control.read_text().split()
    group = root / f"rtloop-test-{os.getpid()}"
    try:
        control.write_text("+hugetlb")
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a control group cannot be made here: {error}")
    yield group
    for _ in range(100):  # a killed process leaves it a moment later
        with contextlib.suppress(OSError):
            group.rmdir()
            break
        time.sleep(0.05)
    if not was_on:
        with contextlib.suppress(OSError):  # another run has a group below
            control.write_text("-hugetlb")


IN_GROUP = """
import os, warnings, rtloop
open("{group}/cgroup.procs", "w").write(str(os.getpid()))
warnings.simplefilter("ignore")
grant = rtloop.HugeBuffer(3 * {huge}, backing="hugetlb").grants[0]
print(grant.granted); print(grant.detail); print(grant.fix)
"""


@pytest.mark.parametrize("kind", ["", "rsvd."])
def test_the_control_group_that_keeps_huge_pages_back_is_named(
    script: Script, reserve: Reserve, group: Path, kind: str
) -> None:
    reserve(4)
    pool = hugepage_supply.huge_pool(HUGE)
    assert pool is not None
    limit = group / f"hugetlb.{HUGE >> 20}MB.{kind}max"
    limit.write_text(str(2 * HUGE))
    done = script(IN_GROUP.format(huge=HUGE, group=group))
    granted, detail, *fix = done.stdout.splitlines()
    assert granted == "none", done.stderr
    two = hugepage_supply.format_page(HUGE, 2)
    assert detail == f"4 of {pool.total} in the machine's pool available; the control group's {limit} leaves {two}"
    subprocess.run(["sh", "-c", fix[1].replace("sudo ", "")], check=True, capture_output=True)
    done = script(IN_GROUP.format(huge=HUGE, group=group))
    assert done.stdout.splitlines()[0] == hugepage_supply.format_page(HUGE, 3), done.stderr


# A hugetlbfs mount.


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "huge"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "hugetlbfs", "none", path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a hugetlbfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("name", ["", "buffer"])
def test_a_file_on_hugetlbfs_is_nobody_elses(reserve: Reserve, mount: Path, name: str) -> None:
    reserve(4)
    fds = os.listdir("/proc/self/fd")
    buffer = HugeBuffer(4 * HUGE, backing=mount / name, strict=True)
    assert os.listdir(mount) == [] and os.listdir("/proc/self/fd") == fds
    found = smaps(address_of(buffer))
    assert found["Shared_Hugetlb"] == f"{4 * HUGE >> 10} kB" or found["Private_Hugetlb"] == f"{4 * HUGE >> 10} kB"
    assert "dc" in found["VmFlags"].split() and buffer.backing == "hugetlb" and buffer.is_locked
    with pytest.raises(rtloop.SetupError, match="1 missing"):
        HugeBuffer(HUGE, backing=mount, strict=True)
    assert os.listdir(mount) == [] and os.listdir("/proc/self/fd") == fds


def test_the_size_of_a_mount_is_named(reserve: Reserve, mount: Path) -> None:
    reserve(4)
    subprocess.run(["umount", str(mount)], check=True)
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"size={2 * HUGE}", "none", str(mount)], check=True)
    with pytest.warns(rtloop.RTSetupWarning, match=f"the mount's size= leaves {hugepage_supply.format_page(HUGE, 2)}"):
        HugeBuffer(3 * HUGE, backing=str(mount)).close()
    assert HugeBuffer(2 * HUGE, backing=str(mount), strict=True).backing == "hugetlb"


def test_a_file_on_hugetlbfs_is_made_for_the_user_alone(script: Script, reserve: Reserve, mount: Path) -> None:
    reserve(1)
    trace = mount.parent / "trace"
    if shutil.which("strace") is None:
        pytest.skip("needs strace(1)")
    prefix = ("strace", "-f", "-o", str(trace), "-e", "trace=openat,unlinkat,unlink")
    done = script(f"import rtloop; rtloop.HugeBuffer(1, backing={str(mount)!r}, strict=True)", prefix=prefix)
    assert done.returncode == 0, done.stderr
    made, removed = [line for line in trace.read_text().splitlines() if '"rtloop-' in line]
    for word in ("O_CREAT", "O_EXCL", "O_NOFOLLOW", "O_CLOEXEC", "0600"):
        assert word in made
    assert "unlink" in removed


def test_what_is_planted_on_hugetlbfs_is_refused(reserve: Reserve, mount: Path) -> None:
    reserve(2)
    (mount / "file").touch()
    (mount.parent / "link").symlink_to(mount)
    for path in (mount / "file", mount.parent / "link"):
        with pytest.raises(rtloop.SetupError, match="give the mount itself"):
            HugeBuffer(1, backing=path, strict=True)
    with pytest.raises(rtloop.SetupError, match="this mount has pages of"):
        HugeBuffer(1, backing=mount, page_size="1G", strict=True)


# Transparent huge pages and ordinary ones.


def test_transparent_huge_pages_are_counted_by_the_kernel() -> None:
    size = hugepage_supply.transparent_page_size()
    if not size:
        pytest.skip(NO_TRANSPARENT)
    buffer = HugeBuffer(3 * size + 1, backing="thp", strict=True)
    found = smaps(address_of(buffer))
    assert found["AnonHugePages"] == f"{4 * size >> 10} kB"
    assert {"lo", "wf", "hg"} <= set(found["VmFlags"].split())
    assert (buffer.backing, buffer.page_size, buffer.huge_bytes) == ("thp", size, 4 * size)
    assert address_of(buffer) % size == 0


def test_ordinary_pages_stay_ordinary_and_are_locked() -> None:
    before = locked_bytes()
    buffer = HugeBuffer(4 * HUGE, backing="pages", strict=True)
    found = smaps(address_of(buffer))
    assert found["AnonHugePages"] == "0 kB" and found["Rss"] == f"{4 * HUGE >> 10} kB"
    keeps_huge_away = {"nh"} if hugepage_supply.transparent_page_size() else set()
    assert {"lo", "wf"} | keeps_huge_away <= set(found["VmFlags"].split())
    assert locked_bytes() - before == 4 * HUGE and buffer.is_locked
    buffer.close()
    assert locked_bytes() == before


def test_without_transparent_huge_pages_it_ends_on_ordinary_ones(script: Script) -> None:
    done = script("""
    import ctypes, rtloop
    from rtloop.memory.process_lock import memory_lock
    assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE
    buffer = rtloop.HugeBuffer("4M")
    print(buffer.backing, buffer.page_size, *(f"{grant.name}={grant.granted}" for grant in buffer.grants))
    try: rtloop.HugeBuffer("4M", backing="thp", strict=True)
    except rtloop.SetupError as error: print("compact_memory" in str(error), "CONFIG_TRANSPARENT" in str(error))
    print(len(memory_lock._ranges))
    """)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"pages {PAGE} hugetlb=none thp=none pages="), done.stderr
    fix = "True False" if hugepage_supply.transparent_page_size() else "False True"
    assert lines[1:] == [fix, "1"], "the lock of what was given up is given up"


# Locks.


def test_a_lock_outlives_a_loop_that_locks_everything(buffer: HugeBuffer, probes: Any) -> None:
    probes.Probe("1ms").run(cycles=5)
    assert buffer.is_locked
    if buffer.backing != "hugetlb":
        assert "lo" in smaps(address_of(buffer))["VmFlags"].split()


def test_a_lock_that_is_gone_is_told(script: Script) -> None:
    done = script("""
    import ctypes, rtloop
    buffer = rtloop.HugeBuffer("1M", backing="pages", strict=True)
    print(buffer.is_locked, ctypes.CDLL(None).munlockall(), buffer.is_locked)
    """)
    assert done.stdout.split() == ["True", "0", "False"], done.stderr


def test_what_is_given_back_under_a_lock_of_everything_does_not_come_again(buffer: HugeBuffer, probes: Any) -> None:
    address = address_of(buffer)
    with probes.Probe("1ms"):
        buffer.close()
        assert smaps(address)["Rss"] == "0 kB" and "lo" not in smaps(address)["VmFlags"].split()


@as_root
def test_an_ordinary_user_is_told_of_the_limit_and_how_to_raise_it(script: Script) -> None:
    done = script(
        """
    import resource, rtloop, warnings
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        buffer = rtloop.HugeBuffer("1M", backing="pages")
    buffer.array("u1")[:] = 1
    print(buffer.is_locked, buffer.grants[-1].granted, sep="|")
    text, = [str(w.message) for w in caught if w.category is rtloop.RTSetupWarning]
    try: rtloop.HugeBuffer("1M", backing="pages", strict=True)
    except PermissionError as error:
        assert isinstance(error, rtloop.MemoryLockError)
        for word in ("65536", "CAP_IPC_LOCK", "memlock unlimited", "LimitMEMLOCK", "docker"):
            assert word in str(error) and word in text, (word, str(error), text)
        assert "strict=False" in str(error)
    else:
        raise AssertionError("it does not raise")
    print(rtloop.HugeBuffer(8192, backing="pages", strict=True).is_locked)
    """,
        prefix=ORDINARY,
    )
    assert done.stdout.split("\n")[:2] == ["False|1 MiB, not locked", "True"], done.stderr


@as_root
def test_an_ordinary_user_may_take_reserved_huge_pages(script: Script, reserve: Reserve) -> None:
    reserve(2)
    code = "import rtloop; b = rtloop.HugeBuffer(1, backing='hugetlb', strict=True); print(b.backing, b.is_locked)"
    done = script(code, prefix=ORDINARY)
    assert done.stdout.split() == ["hugetlb", "True"], done.stderr


@as_root
def test_a_limit_that_keeps_huge_pages_away_is_named(script: Script, reserve: Reserve) -> None:
    reserve(4)
    done = script(
        f"""
    import ctypes, numpy, resource, rtloop
    ctypes.CDLL(None).mlockall(2)
    try: rtloop.HugeBuffer({4 * HUGE}, backing="hugetlb", strict=True)
    except rtloop.SetupError as error: print("before all future memory is locked" in str(error), error.errno)
    """,
        prefix=("prlimit", f"--memlock={2 * HUGE}", *ORDINARY),
    )
    assert done.stdout.split() == ["True", str(errno.EAGAIN)], done.stdout + done.stderr


# Fork.


def test_a_fork_costs_the_parent_nothing_and_the_child_finds_zeros(buffer: HugeBuffer) -> None:
    array = buffer.array("u1")
    every = array[::PAGE]
    every[:] = 1
    child = os.fork()
    if child == 0:
        try:
            is_zero = not array.any()
            array[:] = 9  # its own zeros
            is_own = int(array.min()) == 9
            os._exit(0 if is_zero and is_own and buffer.closed and not buffer.is_locked else 1)
        finally:
            os._exit(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(10):
        every[:] = i
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert faults < every.size // 8, "a copy-on-write would take one for each page"
    assert (every == 9).all() and not array[1:PAGE].any(), "the child has not written here"


@pytest.fixture(scope="session")
def writer(compiled: Callable[..., Path], support: Callable[[str], ModuleType]) -> Any:
    (path,) = compiled("buffer_probe").glob("*.so")
    return support("build").import_module(path).Writer


@pytest.mark.filterwarnings("ignore:this process forks")
def test_a_loop_writes_through_it_without_a_fault_while_the_process_forks(buffer: HugeBuffer, writer: Any) -> None:
    """Each fork may cost the thread one fault, on the page of its control block; the buffer costs it none."""
    with writer(buffer, "500us") as loop:
        for _ in range(10):
            time.sleep(0.05)
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        time.sleep(0.1)
    assert loop.stats.page_faults.minor <= 10 and loop.stats.page_faults.major == 0
    assert loop.stats.cycles > 500
    words = buffer.array("u8")
    assert words[1:].max() == loop.stats.cycles - 1 and np.count_nonzero(words) > 500


@pytest.mark.parametrize("kind", ["single", "shared", "mutex"])
def test_a_pool_takes_its_blocks_from_huge_pages_if_asked(reserve: Reserve, kind: str) -> None:
    reserve(1)
    before = free_pages()
    pool = rtloop.Pool(256, 1000, kind=kind, backing="hugetlb")
    assert (pool.backing, pool.is_locked, free_pages()) == ("hugetlb", True, before - 1)
    with pool.block(dtype="f8") as array:
        array[:] = 1
        assert account(array.ctypes.data // HUGE * HUGE, HUGE).hugetlb == HUGE
    pool.check()
    del array
    del pool
    assert free_pages() == before


def test_a_pool_on_too_few_huge_pages_says_where_it_ended(reserve: Reserve) -> None:
    reserve(0)
    with pytest.warns(rtloop.RTSetupWarning, match="1 missing"):
        pool = rtloop.Pool(256, 1000, backing="hugetlb")
    assert pool.backing in ("thp", "pages")
    with pool.block() as array:
        array[:] = 1


def free_pages() -> int:
    pool = hugepage_supply.huge_pool(HUGE)
    assert pool is not None
    return pool.available
