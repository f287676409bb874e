"""Large buffers on any machine, for any user: whatever backing there is, the memory behaves the same."""

from __future__ import annotations

import errno
import gc
import mmap
import operator
import os
import resource
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import HugeBuffer
from rtloop.data import buffer_request
from rtloop.memory import hugepage_supply, smaps
from rtloop.memory.hugepage_supply import HugePool
from rtloop.memory.process_lock import memory_lock
from rtloop.memory.smaps import Account

PAGE = mmap.PAGESIZE
Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["thp", "pages"])
def make(request: pytest.FixtureRequest) -> Callable[[], HugeBuffer]:
    def make() -> HugeBuffer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rtloop.RTSetupWarning)  # whether it is locked depends on the user
            return HugeBuffer("1M", backing=request.param)

    return make


@pytest.fixture
def buffer(make: Callable[[], HugeBuffer]) -> HugeBuffer:
    return make()


def address_of(buffer: HugeBuffer) -> int:
    return int(buffer.array("u1").ctypes.data)


# The memory.


def test_it_is_zeroed_writable_aligned_and_of_whole_pages(buffer: HugeBuffer) -> None:
    array = buffer.array("u8")
    assert array.size == (1 << 20) // 8 and not array.any()
    array[:] = np.arange(array.size)
    assert array.sum() == array.size * (array.size - 1) // 2
    assert array.ctypes.data % buffer.page_size == 0 and array.ctypes.data == buffer.address
    assert buffer.nbytes == 1 << 20 and buffer.size >= buffer.nbytes and buffer.size % buffer.page_size == 0
    assert buffer.backing in ("thp", "pages")


def test_every_page_is_present_before_it_is_touched(buffer: HugeBuffer) -> None:
    array = buffer.array("u1")[::PAGE]
    array[:1] = 1  # NumPy's own first call
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array[:] = 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < array.size // 8


def test_what_is_told_is_what_the_kernel_tells(buffer: HugeBuffer) -> None:
    found = smaps.account(address_of(buffer), buffer.size)
    assert found.size == found.resident == buffer.size, "guards keep its mapping from being joined to another"
    assert buffer.is_locked == found.is_locked
    assert buffer.huge_bytes == found.transparent
    names = [grant.name for grant in buffer.grants]
    assert names[-1] == "lock" and buffer.grants[-1].ok == found.is_locked
    assert buffer.backing in names and (buffer.backing == "thp") == (found.transparent > 0)


@pytest.mark.parametrize("offset", ["-1", "buffer.size"])
def test_beside_ordinary_pages_nothing_can_be_touched(script: Script, offset: str) -> None:
    done = script(f"""
    import ctypes, rtloop, warnings
    warnings.simplefilter("ignore")
    buffer = rtloop.HugeBuffer(5000, backing="pages")
    address = buffer.array("u1").ctypes.data
    ctypes.memset(address, 1, buffer.size)
    print("inside", flush=True)
    ctypes.memset(address + {offset}, 1, 1)
    """)
    assert done.stdout == "inside\n" and done.returncode == -11


# Views.


@pytest.mark.parametrize(
    ("shape", "result"),
    [
        (None, (1 << 18,)), (10, (10,)), (0, (0,)), ((4, 8), (4, 8)), ((4, -1), (4, 1 << 16)),
        (-1, (1 << 18,)), ((), ()),
        ([2, 3, 4], (2, 3, 4)), (np.int64(3), (3,)), ((3, -1), (3, (1 << 18) // 3)),
    ],
)  # fmt: skip
def test_an_array_has_the_shape_asked_for(buffer: HugeBuffer, shape: Any, result: tuple[int, ...]) -> None:
    array = buffer.array("f4", shape)
    assert array.shape == result and array.dtype == np.float32
    assert array.flags.c_contiguous and array.flags.writeable


def test_all_views_are_the_same_memory(buffer: HugeBuffer) -> None:
    record = np.dtype([("t", "f8"), ("x", "f4", 3), ("n", "i4")])
    buffer.array(record, 100)["n"] = range(100)
    assert memoryview(buffer)[20:24] == bytes(4) and memoryview(buffer).nbytes == buffer.nbytes
    assert not memoryview(buffer).readonly
    assert np.frombuffer(buffer, "i4")[5 :: record.itemsize // 4][99] == 99
    array = buffer.array("i4")
    through = np.from_dlpack(array)
    (through if through.flags.writeable else array)[5] = 7  # NumPy before 2.1 makes what it imports read-only
    assert through[5] == 7
    assert buffer.array(record, 1)["n"][0] == 7


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("f8", (1 << 17) + 1, "1048584 bytes; the buffer has 1048576"), ("u1", (1 << 40, 1 << 40), "takes"),
        (object, None, "plain memory"), ("V0", None, "0 bytes"), ("S0", 1, "0 bytes"), ("f9", 1, "not a NumPy dtype"),
        (("f8", 3), 1, "is an array of"),
        ("f8", 1.5, "whole numbers"), ("f8", (-1, -1), "one of which"), ("f8", (2, -2), "one of which"),
        ("f8", "abc", "whole numbers"), ("f8", (0, -1), "one of which"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(buffer: HugeBuffer, dtype: Any, shape: Any, words: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=words):
        buffer.array(dtype, shape)


def test_an_array_keeps_the_memory_and_the_last_one_frees_it(make: Callable[[], HugeBuffer]) -> None:
    buffer = make()
    array = buffer.array("u1")
    array[:] = 3
    mapping = f"{array.ctypes.data:x}-{array.ctypes.data + buffer.size:x} rw-p"
    part = array[10:20].reshape(2, 5)
    del array, buffer
    gc.collect()
    assert part.sum() == 30 and mapping in Path("/proc/self/maps").read_text()
    del part
    assert mapping not in Path("/proc/self/maps").read_text()


def test_close_refuses_while_there_are_views(buffer: HugeBuffer) -> None:
    view, array = memoryview(buffer), buffer.array("u1", (2, 2))
    with pytest.raises(BufferError, match="2 views of HugeBuffer"):
        buffer.close()
    assert not buffer.closed
    view.release()
    with pytest.raises(BufferError, match="a view of"):
        buffer.close()
    array[:] = 1
    del array
    buffer.close()
    buffer.close()
    assert buffer.closed and not buffer.is_locked and buffer.huge_bytes == 0 and "closed" in repr(buffer)


def test_a_closed_buffer_makes_no_views(buffer: HugeBuffer) -> None:
    buffer.close()
    with pytest.raises(rtloop.StateError, match="closed"):
        buffer.array("u1")
    with pytest.raises(BufferError, match="closed"):
        memoryview(buffer)
    with pytest.raises(rtloop.StateError, match="closed"), buffer:
        pass
    with pytest.raises(rtloop.StateError, match="made once"):
        buffer.__init__("1M")  # type: ignore[misc]


def test_close_gives_the_memory_back_and_keeps_the_addresses(buffer: HugeBuffer) -> None:
    """NumPy does not count this kind of view as one; it must not become a pointer into nowhere."""
    uncounted: np.ndarray[Any, np.dtype[np.uint8]] = np.ndarray(buffer.nbytes, np.uint8, buffer)
    uncounted[:] = 9
    address = uncounted.ctypes.data
    buffer.close()
    assert smaps.account(address, buffer.size).resident == 0
    assert not uncounted.any()
    uncounted[:] = 1


def test_a_with_statement_frees_with_the_last_view(buffer: HugeBuffer) -> None:
    with buffer as same:
        assert same is buffer
        array = buffer.array("u1")
        array[:] = 5
    address, size = array.ctypes.data, buffer.size
    assert buffer.closed and array.sum() == 5 * (1 << 20)
    del array
    assert smaps.account(address, size).resident == 0

    with pytest.raises(KeyError, match="passes"), HugeBuffer(PAGE, backing="pages") as other:
        kept = other.array("u1")
        address = kept.ctypes.data
        raise KeyError("passes")
    kept = None
    assert other.closed and smaps.account(address, PAGE).resident == 0


def test_the_last_view_may_go_while_an_exception_passes(make: Callable[[], HugeBuffer]) -> None:
    """An argument of a call that fails is let go of after the exception is set; neither may be lost."""
    with make() as buffer:
        held = [buffer.array("u1")]
    address, size = buffer.address, buffer.size
    with pytest.raises(TypeError, match="integer"):
        operator.index(held.pop())
    assert smaps.account(address, size).resident == 0


# Fork.


@pytest.mark.parametrize("kind", ["thp", "pages"])
def test_a_child_finds_zeros_and_a_closed_buffer(script: Script, kind: str) -> None:
    done = script(f"""
    import gc, os, rtloop, warnings
    warnings.simplefilter("ignore")
    buffer = rtloop.HugeBuffer("1M", backing={kind!r})
    array = buffer.array("u1")
    array[:] = 7
    child = os.fork()
    if child == 0:
        assert not array.any() and buffer.closed and not buffer.is_locked and "closed" in repr(buffer)
        for attempt in (lambda: buffer.array("u1"), lambda: memoryview(buffer)):
            try: attempt()
            except (rtloop.StateError, BufferError) as error: assert "fork" in str(error), error
            else: raise AssertionError
        array[:] = 8
        buffer.close()
        del array, buffer
        gc.collect()
        own = rtloop.HugeBuffer("1M", backing={kind!r})
        assert own.array("u1").sum() == 0 and not own.closed
        raise SystemExit(0)  # through the interpreter's end
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), array.min(), array.max(), buffer.closed)
    """)
    assert done.stdout.split() == ["0", "7", "7", "False"], done.stderr


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"nbytes": 0}, "nbytes"), ({"nbytes": 1.5}, "nbytes"), ({"nbytes": -1}, "nbytes"),
        ({"nbytes": 1 << 63}, "nbytes"), ({"page_size": "3M"}, "power of two"), ({"page_size": 512}, "at least"),
        ({"page_size": None}, "page_size"),
        ({"backing": "huge"}, '"hugetlb", "thp"'), ({"backing": 3}, "not a backing"),
        ({"backing": "path"}, "not a backing"),
        ({"backing": "pages", "page_size": "2M"}, "contradicts"),
        ({"backing": "thp", "page_size": PAGE}, "contradicts"),
        ({"backing": "hugetlb", "page_size": PAGE}, "contradicts"),
        ({"backing": Path("/x"), "page_size": PAGE}, "contradicts"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=words):
        HugeBuffer(**{"nbytes": "1M", **arguments})


def test_more_than_the_machine_has_is_refused_before_a_process_is_killed_for_it() -> None:
    with pytest.raises(rtloop.SetupError, match="MemAvailable") as caught:
        HugeBuffer(1 << 50, backing="pages")
    assert caught.value.errno == errno.ENOMEM
    with pytest.raises(rtloop.SetupError):
        HugeBuffer(1 << 60)


@pytest.mark.parametrize("path", ["/proc/self/nothing/there", "{tmp}", "{tmp}/new", "{tmp}/link", "{tmp}/file"])
def test_a_path_that_is_not_hugetlbfs_is_refused_and_left_alone(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/")
    before = sorted(tmp_path.iterdir()), sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(rtloop.SetupError, match=r"hugetlb: asked for 4 KiB in .*\(") as caught:
        HugeBuffer(4096, backing=path.format(tmp=tmp_path), strict=True)
    assert caught.value.errno in (errno.ENOENT, errno.ENOTSUP, errno.ENOTDIR, errno.ELOOP)
    with pytest.warns(rtloop.RTSetupWarning, match="hugetlb: asked for 4 KiB"):
        assert HugeBuffer(4096, backing=path.format(tmp=tmp_path)).backing in ("hugetlb", "thp", "pages")
    assert (sorted(tmp_path.iterdir()), sorted(os.listdir("/proc/self/fd"))) == before


def test_a_construction_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def maps() -> tuple[int, str, list[str]]:
        status = Path("/proc/self/status").read_text()
        locked = next(line for line in status.splitlines() if line.startswith("VmLck"))
        lines = Path("/proc/self/maps").read_text().splitlines()
        return sum("---p" in line for line in lines), locked, sorted(os.listdir("/proc/self/fd"))

    def fail(*_: object) -> Account:
        raise OSError(errno.EIO, "smaps")

    HugeBuffer("1M", backing="pages").close()
    before = maps()
    monkeypatch.setattr(smaps, "account", fail)
    for kind in ("thp", "pages"):
        with pytest.raises(OSError, match="smaps"):
            HugeBuffer("1M", backing=kind)
    assert maps() == before


# What is asked, and what is said.


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> dict[int, HugePool]:
    """A machine with pools of huge pages as the test wants them; 2 MiB is its default."""
    stock: dict[int, HugePool] = {}
    monkeypatch.setattr(hugepage_supply, "huge_pool_sizes", lambda: tuple(sorted(stock)))
    monkeypatch.setattr(hugepage_supply, "huge_pool", stock.get)
    monkeypatch.setattr(hugepage_supply, "default_page_size", lambda: 2 << 20)
    return stock


K64, M2, M32, G1 = 64 << 10, 2 << 20, 32 << 20, 1 << 30


@pytest.mark.parametrize(
    ("stocked", "nbytes", "sizes"),
    [
        ((), "4K", (M2,)), ((M2,), "4K", (M2,)), ((M2, G1), "4K", (M2,)), ((M2, G1), "1G", (G1, M2)),
        ((G1,), "1G", (G1, M2)), ((G1,), "1.5G", (M2,)), ((G1,), "15G", (G1, M2)),
        ((K64, M32), "64M", (M32, M2, K64)), ((K64,), "64K", (M2, K64)),
    ],
)  # fmt: skip
def test_auto_takes_the_largest_pages_that_are_reserved_and_waste_little(
    pools: dict[int, HugePool], stocked: tuple[int, ...], nbytes: str, sizes: tuple[int, ...]
) -> None:
    pools |= {size: HugePool(size, 0, 0, 0, 0) for size in (K64, M2, M32, G1)}
    pools |= {size: HugePool(size, 9, 9, 0, 0) for size in stocked}
    assert buffer_request.parse_request(nbytes, "auto", "auto").pool_sizes() == sizes


def test_missing_pages_are_counted_and_the_commands_reserve_them(pools: dict[int, HugePool]) -> None:
    pools[M2] = HugePool(M2, total=10, free=6, reserved=4, spare=1)
    grant = buffer_request.pool_grant(8 * M2, M2, None, errno.ENOMEM)
    assert str(grant) == (
        "hugetlb: asked 8 pages of 2 MiB, granted none [REFUSED] 2 of 10 in the machine's pool available, "
        "1 more on demand: 5 missing"
    )
    assert "sudo sysctl vm.nr_hugepages=15\n" in grant.fix and "hugepagesz=2M hugepages=15" in grant.fix
    assert "hugepages-2Mi: 16Mi" in grant.fix  # a limit for the whole container
    pools[G1] = HugePool(G1, 0, 0, 0, 0)
    fix = buffer_request.pool_grant(G1, G1, None, errno.ENOMEM).fix
    assert "echo 1 | sudo tee /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages" in fix
    assert "hugepagesz=1G hugepages=1" in fix and "sysctl" not in fix
    grant = buffer_request.pool_grant(M32, M32, None, errno.EINVAL)
    assert "no pool of 32 MiB" in grant.detail and "now it has: 2 MiB, 1 GiB" in grant.fix


def test_pages_that_are_there_and_not_given_have_another_reason(
    pools: dict[int, HugePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pools[M2] = HugePool(M2, 10, 10, 0, 0)
    grant = buffer_request.pool_grant(2 * M2, M2, None, errno.EFAULT, "populate")
    assert "populate: the kernel did not give all pages, with 10 of 10" in grant.detail and "numactl" in grant.fix
    grant = buffer_request.pool_grant(2 * M2, M2, None, errno.EAGAIN)
    assert "RLIMIT_MEMLOCK is" in grant.detail and "before all future memory is locked" in grant.fix

    limit = "/sys/fs/cgroup/box/hugetlb.2MB.max"
    monkeypatch.setattr(buffer_request.cgroup, "hugetlb_room", lambda _: {limit: M2, "enough": 2 * M2})
    grant = buffer_request.pool_grant(2 * M2, M2, None, errno.EFAULT, "populate")
    assert (
        grant.detail == f"10 of 10 in the machine's pool available; the control group's {limit} leaves 1 page of 2 MiB"
    )
    assert grant.fix.endswith(f"echo $(($(cat {limit}) + {M2})) | sudo tee {limit}")
    monkeypatch.setattr(buffer_request.hugepage_supply, "free_on_nodes", lambda _: ("1", 0))
    grant = buffer_request.pool_grant(2 * M2, M2, None, errno.ENOMEM)
    assert "the cpuset allows memory of node 1 only, which has 0 pages of 2 MiB free" in grant.detail
    assert "cpuset.mems" in grant.fix and limit in grant.fix


def test_the_pages_on_the_nodes_that_a_cpuset_allows(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nMems_allowed_list:\t1-2\n")
    (tmp_path / "has_memory").write_text("0-2\n")
    for node in range(3):
        folder = tmp_path / f"node{node}/hugepages/hugepages-2048kB"
        folder.mkdir(parents=True)
        (folder / "free_hugepages").write_text(f"{node + 1}\n")
    where = {"status": str(tmp_path / "status"), "nodes": str(tmp_path)}
    assert hugepage_supply.free_on_nodes(M2, **where) == ("1-2", 5)
    (tmp_path / "status").write_text("Mems_allowed_list:\t0-31\n")
    assert hugepage_supply.free_on_nodes(M2, **where) is None


def test_a_part_on_huge_pages_is_told_as_a_part() -> None:
    part = Account(4 * M2, 4 * M2, PAGE, 0, 3 * M2, True)
    grant = buffer_request.ordinary_grant("thp", 4 * M2, M2, part)
    assert not grant.ok and grant.granted == "3 pages of 2 MiB" and "rest is on ordinary pages" in grant.detail
    assert grant.fix
    assert buffer_request.ordinary_grant("thp", 4 * M2, M2, part._replace(transparent=4 * M2)).ok
    assert buffer_request.ordinary_grant("thp", 4 * M2, M2, part._replace(transparent=0)).granted == "none"
    assert not buffer_request.ordinary_grant("pages", 4 * M2, PAGE, part._replace(resident=M2)).ok


def test_a_buffer_that_is_partly_on_huge_pages_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel finds no more: as if one of two were missing, for memory cannot be fragmented to order."""
    size = hugepage_supply.transparent_page_size()
    if not size:
        pytest.skip("this kernel has no transparent huge pages")

    def half(start: int, bytes_: int) -> Account:
        return Account(bytes_, bytes_, PAGE, 0, size, True)

    monkeypatch.setattr(smaps, "account", half)
    with pytest.warns(rtloop.RTSetupWarning, match="granted 1 page of"):
        buffer = HugeBuffer(2 * size, backing="thp")
    assert (buffer.backing, buffer.page_size, buffer.huge_bytes) == ("thp", PAGE, size)
    with pytest.raises(rtloop.SetupError, match="rest is on ordinary pages"):
        HugeBuffer(2 * size, backing="thp", strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(hugepage_supply, "huge_pool_sizes", tuple)  # so that no pool of this machine helps
        monkeypatch.setattr(hugepage_supply, "default_page_size", lambda: 1 << 44)
        assert HugeBuffer(2 * size).backing == "thp"


def test_only_what_was_asked_for_by_name_is_missed() -> None:
    def missed(page_size: str, kind: str, *refused: str) -> list[str]:
        request = buffer_request.parse_request("4M", page_size, kind)
        grants = [rtloop.Grant(name, 1, 2, name not in refused) for name in ("hugetlb", "thp", "page_size", "lock")]
        return [grant.name for grant in request.unmet(tuple(grants))]

    assert missed("auto", "auto", "hugetlb", "thp") == []
    assert missed("2M", "auto", "hugetlb", "page_size") == ["hugetlb", "page_size"]
    assert missed("auto", "auto", "hugetlb", "lock") == ["hugetlb", "lock"]
    assert missed("auto", "hugetlb", "hugetlb") == ["hugetlb"]
    assert missed("auto", "/mnt/huge", "thp") == ["thp"]


def test_a_pool_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    assert hugepage_supply.huge_pool_sizes(str(tmp_path / "none")) == ()
    for size, count in ((1048576, 0), (2048, 7)):
        folder = tmp_path / f"hugepages-{size}kB"
        folder.mkdir()
        values = {"nr": count, "free": count - 2, "resv": 3, "surplus": 1, "nr_overcommit": 5}
        for name, value in values.items():
            (folder / f"{name}_hugepages").write_text(f"{max(0, value)}\n")
    assert hugepage_supply.huge_pool_sizes(str(tmp_path)) == (M2, G1)
    pool = hugepage_supply.huge_pool(M2, str(tmp_path))
    assert pool == HugePool(M2, total=7, free=5, reserved=3, spare=4) and pool.available == 2
    assert hugepage_supply.huge_pool(M32, str(tmp_path)) is None


SMAPS = """\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
KernelPageSize:        4 kB
Rss:                2048 kB
AnonHugePages:      2048 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
VmFlags: rd wr mr mw me lo ac wf hg
7f0000200000-7f0000201000 ---p 00000000 00:00 0
Size:                  4 kB
KernelPageSize:        4 kB
VmFlags: mr mw me
7f0000400000-7f0000800000 rw-s 00000000 00:11 280860                     /a:b hugepage (deleted)
Size:               4096 kB
KernelPageSize:     2048 kB
Rss:                   0 kB
AnonHugePages:         0 kB
Shared_Hugetlb:     2048 kB
Private_Hugetlb:    2048 kB
VmFlags: rd wr mr mw me dc de ht
"""


def test_the_account_of_a_range_is_that_of_its_mappings(tmp_path: Path) -> None:
    file = tmp_path / "smaps"
    file.write_text(SMAPS)
    read = lambda start, size: smaps.account(start, size, str(file))  # noqa: E731
    assert read(0x7F0000000000, M2) == Account(M2, M2, 4096, 0, M2, True)
    assert read(0x7F0000400000, 2 * M2) == Account(2 * M2, 2 * M2, M2, 2 * M2, 0, False)
    assert read(0x7F0000000000, M2 + 1) == Account(M2 + 4096, M2, 4096, 0, M2, False)
    assert read(0x10000, 4096).size == 0 and not read(0x10000, 4096).is_locked


@pytest.mark.parametrize("name", ["line\u2028separator", "a\rb", "a\x85b: 1-2", "a\x1cb c", "new\nline"])
def test_a_mapped_file_of_any_name_leaves_the_account_readable(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(bytes(4096))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 4096, prot=mmap.PROT_READ):
        with HugeBuffer(8192, backing="pages") as buffer:
            assert smaps.account(buffer.address, 8192).size >= 8192
        assert sum(one.size for one in smaps.mappings()) > 0


def test_a_buffer_that_was_never_made_can_be_left() -> None:
    assert HugeBuffer.__new__(HugeBuffer).__exit__(None, None, None) is None  # type: ignore[func-returns-value]


class Loud(HugeBuffer):
    """A subclass that has a destructor of its own, and calls nobody else's."""

    ended = 0

    def __del__(self) -> None:
        Loud.ended += 1


def test_a_subclass_s_destructor_runs_once_and_at_the_end() -> None:
    Loud.ended = 0
    buffer = Loud("64K", backing="pages")
    is_locked, start = buffer.is_locked, buffer.address
    assert Loud.ended == 0
    del buffer
    assert Loud.ended == 1
    assert not is_locked or all(own.start != start for own in memory_lock._ranges)


def test_a_refusal_keeps_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object that has been refused may live on, in the traceback for one."""
    monkeypatch.setattr(buffer_request.hugepage_supply, "transparent_page_size", lambda: 0)
    buffer = HugeBuffer.__new__(HugeBuffer)
    with warnings.catch_warnings(), pytest.raises(rtloop.RTSetupWarning):
        warnings.simplefilter("error")
        buffer.__init__("64K", backing="thp")
    assert buffer.size == 0 and buffer.closed and buffer.address == 0


def test_more_than_the_control_group_has_left_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_request.cgroup, "memory_room", lambda: {"/sys/fs/cgroup/box/memory.max": 1 << 20})
    with pytest.raises(rtloop.SetupError, match=r"1 MiB left of the control group's /sys/fs/cgroup/box/memory.max"):
        HugeBuffer("2M", backing="pages")
    with pytest.raises(MemoryError, match="1 MiB left of the control group"):
        rtloop.Pool("1M", 2)
    assert HugeBuffer("512K", backing="pages").nbytes == 512 << 10


def test_memory_is_given_back_beside_a_lock_of_the_future_within_a_low_limit(script: Script) -> None:
    """With all future memory locked within a low limit not even an inaccessible mapping is granted."""
    if os.geteuid() != 0:
        pytest.skip("locking beyond the limit, before the limit, takes root")
    done = script("""
import ctypes, mmap, resource
import rtloop
buffer = rtloop.HugeBuffer("4M", backing="pages")
buffer.array("u1")[:] = 7
address = buffer.address
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mlockall(2) == 0  # MCL_FUTURE
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
class Caps(ctypes.Structure):
    _fields_ = [("e", ctypes.c_uint32), ("p", ctypes.c_uint32), ("i", ctypes.c_uint32)]
header, caps = (ctypes.c_uint32 * 2)(0x20080522, 0), (Caps * 2)()
assert libc.syscall(125, header, caps) == 0
caps[0].e &= ~(1 << 14)
assert libc.syscall(126, header, caps) == 0
def resident():
    text = open("/proc/self/smaps").read()
    at = text.index(f"{address:08x}-")
    return next(line.split()[1] for line in text[at:].splitlines() if line.startswith("Rss:"))
buffer.close()
libc.munlockall()  # else there may be no memory to look with
print(resident(), ctypes.string_at(address, 4))
""")
    assert done.stdout.split(maxsplit=1) == ["0", "b'\\x00\\x00\\x00\\x00'\n"], done.stdout + done.stderr
