"""CPUs that are isolated, allowed and inherited, from trees of files as the kernel offers them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtloop.system.cpu import parse_cpu_list
from rtloop.system.cpu_choice import CpuChoice, choose_auto
from rtloop.system.cpuset import Cpuset, describe_absent, explain_outside, own_cpuset

PROC = "proc/self/cgroup"


def tree(folder: Path, files: dict[str, str], cgroup: str) -> tuple[str, str]:
    """Write a control group file system, and return what own_cpuset() reads."""
    for name, text in {PROC: cgroup, **{f"cg/{name}": text for name, text in files.items()}}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(folder / PROC), str(folder / "cg")


def test_the_cpuset_of_version_1_is_that_of_the_group(tmp_path: Path) -> None:
    files = {"cpuset/cpuset.cpus": "0-7", "cpuset/box/cpuset.cpus": "1-2", "cpuset/box/cpuset.effective_cpus": "1"}
    assert own_cpuset(*tree(tmp_path, files, "3:cpuset:/box\n1:name=systemd:/x")) == Cpuset("/box", (1,))


def test_a_group_without_a_cpuset_of_its_own_has_its_parents(tmp_path: Path) -> None:
    files = {"cpuset.cpus.effective": "0-7", "a/cpuset.cpus.effective": "2-3", "a/b/memory.max": "max"}
    assert own_cpuset(*tree(tmp_path, files, "0::/a/b")) == Cpuset("/a/b", (2, 3))


@pytest.mark.parametrize(
    ("kind", "partition"),
    [("isolated", "/rt"), ("member", ""), ("root", ""), ("isolated invalid (Parent is not a partition root)", "")],
)
def test_only_a_valid_isolated_partition_isolates(tmp_path: Path, kind: str, partition: str) -> None:
    """Also for a group inside of one, whose own kind is member."""
    files = {
        "cpuset.cpus.effective": "0", "rt/cpuset.cpus.effective": "2-3", "rt/cpuset.cpus.partition": kind,
        "rt/app/cpuset.cpus.effective": "2-3", "rt/app/cpuset.cpus.partition": "member",
    }  # fmt: skip
    assert own_cpuset(*tree(tmp_path, files, "0::/rt/app")) == Cpuset("/rt/app", (2, 3), partition)


def test_in_a_container_the_root_is_its_group(tmp_path: Path) -> None:
    files = {"cpuset.cpus.effective": "4", "cpuset.cpus.partition": "isolated"}
    assert own_cpuset(*tree(tmp_path, files, "0::/kubepods/of/the/host")) == Cpuset("/kubepods/of/the/host", (4,), "/")


def test_a_cpu_outside_is_named_with_its_partition(tmp_path: Path) -> None:
    files = {
        "cpuset.cpus.effective": "0", "app/cpuset.cpus.effective": "0", "app/cpuset.cpus.partition": "member",
        "rt/cpuset.cpus.effective": "1", "rt/cpuset.cpus.partition": "isolated",
    }  # fmt: skip
    where = tree(tmp_path, files, "0::/app")
    assert explain_outside([0, 1], [0], *where) == "CPU 1 belongs to the partition /rt"
    assert explain_outside([4095], [0], *where).startswith("CPU 4095 does not exist; online: ")
    assert explain_outside([0], [0], *where) == ""
    assert own_cpuset(str(tmp_path / "none"), where[1]) is None


@pytest.mark.parametrize(
    ("boot", "partition", "reachable", "inherited", "cpus", "words"),
    [
        ("", "", "0-3", "0-3", None, ""),
        ("2-3", "", "0-3", "0-1", "2-3", "isolated at boot"),  # as the kernel starts every process
        ("2-3", "", "0-3", "0-3", "2-3", "isolated at boot"),
        ("2-3", "", "0-1", "0-1", None, "none of the isolated CPUs 2-3 is in the cpuset, 0-1"),  # a container
        ("2-3", "", "1-2", "1", "2", "isolated at boot"),
        ("2-3", "", "0-3", "0", None, "none of the isolated CPUs 2-3 is in the inherited mask 0"),  # taskset -c 0
        ("2-3", "", "0-3", "3", "3", "isolated at boot"),  # taskset -c 3
        ("", "2-3", "2-3", "2-3", "2-3", "isolated by a partition"),
        ("", "2-3", "0-1", "0-1", None, "none of the isolated CPUs 2-3"),
        ("2", "3", "0-3", "0-1", "2-3", "isolated at boot and by a partition"),
        ("0-3", "", "0-3", "0-3", "0-3", "isolated at boot"),
    ],
)  # fmt: skip
def test_auto_takes_what_is_isolated_and_allowed(
    boot: str, partition: str, reachable: str, inherited: str, cpus: str | None, words: str
) -> None:
    lists = (parse_cpu_list(text) for text in (boot, partition, reachable, inherited))
    choice = choose_auto(*lists)
    assert choice.cpus == (None if cpus is None else parse_cpu_list(cpus))
    assert words in choice.why and bool(words) == bool(choice.why)
    assert isinstance(choice, CpuChoice)


def test_cpus_that_do_not_exist_and_cpus_that_are_offline_are_told_apart() -> None:
    assert describe_absent([0, 1], online=[0, 1], present=[0, 1, 2]) == ""
    assert describe_absent([1, 9], online=[0, 1], present=[0, 1]) == "CPU 9 does not exist; online: 0-1"
    both = "CPU 8-9 does not exist and CPU 2 is offline; online: 0-1"
    assert describe_absent([2, 8, 9], online=[0, 1], present=[0, 1, 2]) == both
    assert describe_absent([9], online=[], present=[]) == "", "it is not known which are online"
