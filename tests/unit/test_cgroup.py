"""Limits of control groups on this process, read from texts in the kernel's format."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtloop.system.cgroup import hugetlb_room, memory_groups, memory_room, thread_room

V2 = "0::/user.slice/user-1000.slice\n"
V1 = "9:name=systemd:/\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n"


def group(folder: Path, version: int, limit: str, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    prefix = "" if version == 2 else "total_"
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {files}\n{prefix}active_file 0\n")


def room(tmp_path: Path, text: str) -> dict[str, int]:
    (tmp_path / "cgroup").write_text(text)
    found = memory_room(str(tmp_path / "cgroup"), str(tmp_path / "sys"))
    return {name.removeprefix(f"{tmp_path}/sys"): left for name, left in found.items()}


def test_the_groups_that_may_limit_memory() -> None:
    assert memory_groups(V2) == [(2, "/user.slice/user-1000.slice")]
    assert memory_groups(V1) == [(1, "/docker/abc"), (2, "/")]
    assert memory_groups("nonsense\n") == []


def test_every_group_above_counts_and_what_can_be_dropped_is_left(tmp_path: Path) -> None:
    group(tmp_path / "sys/user.slice", 2, "1000000", 600000, files=100000)
    group(tmp_path / "sys/user.slice/user-1000.slice", 2, "max", 500000)
    assert room(tmp_path, V2) == {"/user.slice/memory.max": 500000}


def test_version_1_and_a_container_that_sees_its_own_root_only(tmp_path: Path) -> None:
    group(tmp_path / "sys/memory", 1, "4096000", 5000000)
    assert room(tmp_path, V1) == {"/memory/memory.limit_in_bytes": 0}
    group(tmp_path / "sys/memory", 1, str((1 << 63) - 4096), 5000000)
    assert room(tmp_path, V1) == {}


def test_no_control_groups_no_limit(tmp_path: Path) -> None:
    assert memory_room(str(tmp_path / "none")) == {}
    (tmp_path / "sys").mkdir()
    assert room(tmp_path, V2) == {}


@pytest.mark.parametrize(
    ("text", "folder", "names", "none"),
    [
        (V2, "user.slice/user-1000.slice", ("max", "current"), "max"),
        ("11:hugetlb:/docker/abc\n", "hugetlb/docker/abc", ("limit_in_bytes", "usage_in_bytes"), str((1 << 63) - 1)),
        ("11:hugetlb:/docker/abc\n", "hugetlb", ("limit_in_bytes", "usage_in_bytes"), str((1 << 63) - 1)),
    ],
    ids=["version 2", "version 1", "version 1 in a container"],
)
@pytest.mark.parametrize(("size", "unit"), [(1 << 30, "1GB"), (2 << 20, "2MB"), (64 << 10, "64KB")])
def test_limits_of_huge_pages_present_and_reserved(
    tmp_path: Path, text: str, folder: str, names: tuple[str, str], none: str, size: int, unit: str
) -> None:
    (tmp_path / "cgroup").write_text(text)
    where = {"proc": str(tmp_path / "cgroup"), "root": str(tmp_path / "sys")}
    prefix = f"{tmp_path}/sys/{folder}/hugetlb.{unit}."
    (tmp_path / "sys" / folder).mkdir(parents=True)
    assert hugetlb_room(size, **where) == {}
    for kind, limit, used in (("", str(3 * size), size), ("rsvd.", none, 2 * size)):
        Path(f"{prefix}{kind}{names[0]}").write_text(f"{limit}\n")
        Path(f"{prefix}{kind}{names[1]}").write_text(f"{used}\n")
    assert hugetlb_room(size, **where) == {f"{prefix}{names[0]}": 2 * size}
    Path(f"{prefix}rsvd.{names[0]}").write_text(f"{size}\n")
    assert hugetlb_room(size, **where) == {f"{prefix}{names[0]}": 2 * size, f"{prefix}rsvd.{names[0]}": 0}


@pytest.mark.parametrize(("text", "folder"), [(V2, "user.slice"), ("3:pids:/docker/abc\n", "pids")])
def test_the_threads_that_may_still_be_created(tmp_path: Path, text: str, folder: str) -> None:
    where = {"proc": str(tmp_path / "cgroup"), "root": str(tmp_path / "sys")}
    (tmp_path / "cgroup").write_text(text)
    assert thread_room(**where) == {}
    group = tmp_path / "sys" / folder
    group.mkdir(parents=True)
    (group / "pids.max").write_text("max\n")
    (group / "pids.current").write_text("100\n")
    assert thread_room(**where) == {}
    for limit, left in ((103, 3), (100, 0), (4, 0)):  # a limit may be lowered below what exists
        (group / "pids.max").write_text(f"{limit}\n")
        assert thread_room(**where) == {f"{group}/pids.max": (left, limit)}
