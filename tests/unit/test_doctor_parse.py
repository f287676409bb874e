"""The doctor's parsers, with the texts of kernels and systems, and with arbitrary ones."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from rtloop_test_machines import MACHINES

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.checks.session import granted_by_pam
from rtloop.machine.doctor.parse import Limit, Swap

hypothesis = pytest.importorskip("hypothesis", reason="the fuzzing needs hypothesis")
st = hypothesis.strategies

STAT = (
    "812 (a) b) S 1 812 812 0 -1 2129984 0 0 0 0 7 5 0 0 -100 0 1 0 21 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 3 99 1 0 0 0 0"
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a=1 b c=\"x y\" d=p=q\n", {"a": "1", "b": "", "c": "x y", "d": "p=q"}),
        ("isolcpus=1 isolcpus=2", {"isolcpus": "2"}),
        ("ro -- isolcpus=1", {"ro": ""}),  # what follows is for init
        ("", {}),
    ],
)  # fmt: skip
def test_the_kernels_command_line(text: str, found: dict[str, str]) -> None:
    assert parse.command_line(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2-3", ({"domain"}, (2, 3))),
        ("managed_irq,domain,2-3,5", ({"managed_irq", "domain"}, (2, 3, 5))),
        ("nohz,7", ({"nohz"}, (7,))),
        ("domain,", ({"domain"}, ())),
        ("nonsense", ({"domain"}, ())),
    ],
)
def test_isolcpus(text: str, found: object) -> None:
    assert parse.isolation(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1-3,5", (1, 2, 3, 5)), ("", ()), ("all", tuple(range(8))), ("2-N", (2, 3, 4, 5, 6, 7)), ("N", (7,)),
        ("0-7:2/4", (0, 1, 4, 5)), ("1,4-7:1/2", (1, 4, 6)), ("all:1/2", (0, 2, 4, 6)),
        ("None", None), ("0-7:2", None), ("0-7:2/0", None), ("x", None), ("0-N-1", None),
    ],
)  # fmt: skip
def test_a_cpu_list_of_the_command_line(text: str, found: tuple[int, ...] | None) -> None:
    """As Documentation/admin-guide/kernel-parameters.rst describes it, of a machine with 8 CPUs."""
    assert parse.boot_cpu_list(text, 7) == found


@pytest.mark.parametrize(
    ("text", "marks", "found"),
    [
        ("always [madvise] never", "[]", "madvise"),
        ("none voluntary (full) lazy ", "()", "full"),
        ("(none) voluntary full", "()", "none"),
        ("performance", "[]", "performance"),
        ("always madvise never", "[]", None),
        ("[always] [madvise]", "[]", None),
        ("[always]", "[]", "always"),
        ("", "[]", None),
    ],
)
def test_the_word_that_is_chosen(text: str, marks: str, found: str | None) -> None:
    assert parse.bracketed(text, *marks) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("max 100000", (-1, 100000)),
        ("150000 100000\n", (150000, 100000)),
        ("max", None),
        ("max 0", None),
        ("x y", None),
    ],
)
def test_a_quota(text: str, found: object) -> None:
    assert parse.cpu_max(text) == found


def test_a_control_group_of_either_version() -> None:
    text = "12:cpu,cpuacct:/user.slice\n1:name=systemd:/a:b\n0::/user.slice/x.scope\nnonsense\n3:memory:relative\n"
    assert parse.cgroups(text) == [
        (("cpu", "cpuacct"), "/user.slice"), (("name=systemd",), "/a:b"), ((), "/user.slice/x.scope"),
    ]  # fmt: skip


def test_limits_of_a_process() -> None:
    text = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max locked memory         65536                unlimited            bytes     \n"
        "Max realtime priority     0                    95                   \n"
    )
    assert parse.process_limit(text, "Max locked memory") == (65536, parse.UNLIMITED)
    assert parse.process_limit(text, "Max realtime priority") == (0, 95)
    assert parse.process_limit(text, "Max realtime timeout") is None
    assert parse.process_limit("Max locked memory  lots  of it", "Max locked memory") is None


def test_a_thread_with_parentheses_and_blanks_in_its_name() -> None:
    task = parse.task(STAT)
    assert task is not None
    assert (task.tid, task.name, task.is_kernel, task.ticks) == (812, "a) b", True, 12)
    assert (task.cpu, task.priority, task.policy) == (3, 99, 1)
    assert parse.task(STAT.replace("99 1", "99 x")) is None
    assert parse.task(" ".join(STAT.split()[:30])) is None, "a kernel too old to tell"


def test_a_version() -> None:
    assert parse.kernel_version("6.12.48+deb13-rt-amd64") == (6, 12)
    assert parse.kernel_version("4.18.0-553.rt7.342.el8_10.x86_64") == (4, 18)
    assert parse.kernel_version("unknown") is None


def test_a_kernels_configuration() -> None:
    text = '# comment\nCONFIG_HZ=250\n# CONFIG_PREEMPT_RT is not set\nCONFIG_LOCALVERSION="-x"\nNOT_ONE=y\n'
    assert parse.kernel_config(text) == {"CONFIG_HZ": "250", "CONFIG_PREEMPT_RT": "n", "CONFIG_LOCALVERSION": "-x"}


def test_stolen_time() -> None:
    text = "cpu  10 20 30 40 50 60 70 80 5 5\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert parse.cpu_times(text) == (80, 360), "guest time is in user time already"
    assert parse.cpu_times("cpu  10 20 30 40\n") is None, "a kernel that tells of no stolen time"


def test_swap_areas() -> None:
    text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/a\\040b  partition\t2048\t\t1024\t\t-2\n"
    assert parse.swaps(text) == [Swap("/a\\040b", 2048 << 10, 1024 << 10)]


def test_capabilities() -> None:
    assert parse.capabilities("000001ffffffffff") == {"IPC_LOCK", "SYS_ADMIN", "SYS_NICE", "SYS_RESOURCE"}
    assert parse.capabilities("00000000a80425fb") == set()
    assert parse.capabilities("0") == set() and parse.capabilities("xyz") is None and parse.capabilities("") is None


def test_users_and_groups() -> None:
    passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\nbroken\n"
    assert parse.user_name(passwd, 1000) == "ada" and parse.user_name(passwd, 7) is None
    group = "audio:x:29:bob,ada\nrealtime:x:984:\nada:x:1000:\nbroken\n"
    assert parse.group_names(group, {984}, "ada") == {"audio", "realtime"}


def test_lines_of_limits_conf() -> None:
    text = "# c\n@rt - rtprio 95 # why\n*\tsoft\tmemlock\tunlimited\nada hard rtprio 9\nada - rtprio lots\nada -\n"
    assert parse.pam_limits(text) == [
        Limit("@rt", "-", "rtprio", 95),
        Limit("*", "soft", "memlock", parse.UNLIMITED),
        Limit("ada", "hard", "rtprio", 9),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "user", "found"),
    [
        ("* - rtprio 1\n@rt - rtprio 2\nada - rtprio 3\n", "ada", 3),  # the more particular
        ("ada - rtprio 3\n@rt - rtprio 2\n* - rtprio 1\n", "ada", 3),  # whatever the order
        ("@rt - rtprio 2\n@rt - rtprio 4\n", "ada", 4),  # the last of equals
        ("@other - rtprio 2\n", "ada", None),
        ("ada hard rtprio 9\n", "ada", None),  # a session begins with the soft one
        ("* - rtprio 1\n@rt - rtprio 2\n", "root", None),  # root has to be named
        ("* - rtprio 1\nroot - rtprio 5\n", "root", 5),
        ("ada - memlock 1\n", "ada", None),
    ],
)
def test_which_line_of_limits_conf_counts(lines: str, user: str, found: int | None) -> None:
    granted = granted_by_pam({"/etc/security/limits.conf": lines}, "rtprio", user, {"rt"})
    assert granted == (None if found is None else (found, "/etc/security/limits.conf"))


def test_a_file_of_limits_d_stands_above_limits_conf() -> None:
    files = {"limits.conf": "* - rtprio 1", "limits.d/10-a.conf": "* - rtprio 2"}
    assert granted_by_pam(files, "rtprio", "ada", set()) == (2, "limits.d/10-a.conf")


#: Every parser, with the arguments that it takes beside the text.
OTHER_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "process_limit": ("Max locked memory",), "user_name": (1000,), "group_names": ({1, 2}, "ada"),
    "boot_cpu_list": (7,),
}  # fmt: skip
PARSERS = [name for name in parse.__all__ if inspect.isfunction(getattr(parse, name))]

PIECES = sorted(
    {
        *"=:,-[]()\"# \n\t\0/@*%",
        "0", "-1", "99", "18446744073709551616", "max", "unlimited", "isolcpus=", "0-99999999999", "soft", "memlock",
        "ada", "x:1000:", "²", "٣",
        STAT, "Max locked memory 1 2", "CONFIG_X=y", "# CONFIG_X is not set", "0::/", "cpu  1 2 3 4 5 6 7 8",
    }
)  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
def test_no_text_makes_a_parser_raise(name: str) -> None:
    parser = getattr(parse, name)

    @hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @hypothesis.given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
    def read(text: str) -> None:
        parser(text, *OTHER_ARGUMENTS.get(name, ()))

    read()


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.name)
def test_no_damaged_machine_makes_a_check_raise(path: Path, tmp_path: Path) -> None:
    """Any file of a machine may hold anything: the examination goes on, and each of its checks has a finding."""
    from rtloop.machine.doctor.machine_files import Machine
    from rtloop.machine.doctor.run_all import examine

    files = dict(part.partition("\n")[::2] for part in ("\n" + path.read_text()).split("\n==> ")[1:])
    names = sorted(name for name in files if name.startswith("/") and " " not in name)
    for name in names:
        (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name[1:]).write_text(files[name])

    @hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @hypothesis.given(
        st.sampled_from(names), st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES)).map("".join))
    )
    def damage(name: str, text: str) -> None:
        file = tmp_path / name[1:]
        file.write_text(text, errors="replace")
        try:
            checks = examine(Machine(str(tmp_path), {}, "x86_64"))
            assert all(check.found and check.verdict for check in checks)
        finally:
            file.write_text(files[name])

    damage()
