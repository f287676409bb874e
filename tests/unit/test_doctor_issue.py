"""The doctor's report for an issue: whole, in Markdown, and without what is private."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rtloop_test_machines import MACHINES, files_of, unpack

from rtloop.machine.doctor.issue import gather_facts, remove_private, safe_arguments
from rtloop.machine.doctor.machine_files import Machine
from rtloop.machine.doctor.report import make_markdown
from rtloop.machine.doctor.run_all import examine
from rtloop.system.checks import Check

RELEASE = "6.12.48+deb13-rt-amd64"
TITLES = ("Latency", "Kernel", "Kernel command line", "Kernel configuration, excerpt", "Hardware and firmware", "CPUs",
          "Interrupts", "Settings", "What to do")  # fmt: skip
SECRETS = {
    "/proc/sys/kernel/hostname": "plant-7-robot",
    "/proc/sys/kernel/osrelease": RELEASE,
    "/proc/sys/kernel/tainted": "4097",
    f"/boot/config-{RELEASE}": "CONFIG_PREEMPT_RT=y\n# CONFIG_NO_HZ_FULL is not set\nCONFIG_SOUND=y",
    "/proc/cmdline": "root=UUID=2f9d6a1c-3b5e-4c7d-8e9f-0a1b2c3d4e5f ip=192.168.7.9::eth0 "
    'isolcpus=2-3 quiet secret="a b" -- token=hunter2',
    "/sys/class/dmi/id/product_serial": "SN-0815",
    "/sys/class/dmi/id/product_name": "Box 3000",
    "/sys/class/dmi/id/bios_version": "F5 of plant-7-robot",
    "/sys/class/net/eth0/address": "00:1b:21:aa:bb:cc",
    "/sys/kernel/irq/124/actions": "nvme0q1, 00:1b:21:aa:bb:cc",
}


def test_the_report_has_what_a_maintainer_asks(machine: Callable[..., Machine]) -> None:
    made = machine("rt-desktop", **SECRETS)
    text = make_markdown(examine(made), made)
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("##")]
    assert [title for title in TITLES if title not in headings] == []
    for words in (
        f"| release | {RELEASE} |", "| tainted | 4097 (PO) |", "CONFIG_PREEMPT_RT=y", "# CONFIG_NO_HZ_FULL is not set",
        "isolcpus=2-3 quiet secret=...", "Box 3000", "| 2-3 | yes | ", "| 124 | nvme0q1, (removed) |",
        "`rtloop doctor --markdown --measure",
    ):  # fmt: skip
        assert words in text, words
    assert "CONFIG_SOUND" not in text


def test_nothing_private_is_in_it(machine: Callable[..., Machine]) -> None:
    made = machine("rt-desktop", **SECRETS)
    made.env["HOME"], made.env["USER"] = "/home/ada", "ada"
    text = make_markdown([*examine(made), Check("python", "x", "/home/ada/gcc", "y", "ok", "z")], made)
    secrets = ("plant-7-robot", "2f9d6a1c", "192.168.7.9", "hunter2", "a b", "SN-0815", "00:1b:21", " ada", "/ada")
    assert [secret for secret in secrets if secret in text] == []
    assert "/home/USER/gcc" in text and "F5 of HOST" in text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("fe80::21b:21ff:fe0a:1, 2001:db8:0:0:1:0:0:1, [::1]", "(removed), (removed), [(removed)]"),
        ("enx001b210a0b0c: off; wlx001b210a0b0c", "enx(removed): off; wlx(removed)"),
        ("0000:00:1f.3 at 12:30:45, std::vector", "0000:00:1f.3 at 12:30:45, std::vector"),
        ("5.15.167.4-microsoft-standard-WSL2 10.0.0.4", "5.15.167.4-microsoft-standard-WSL2 (removed)"),
    ],
)
def test_addresses_are_removed_and_nothing_like_them(machine: Callable[..., Machine], text: str, safe: str) -> None:
    release = {"/proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2"}
    assert remove_private(text, machine("laptop", **release)) == safe


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.name)
def test_every_table_of_every_machine_is_one(path: Path, tmp_path: Path) -> None:
    made = unpack(files_of(path), tmp_path)
    lines = make_markdown(examine(made), made).splitlines()
    is_code = False
    for before, line in zip(["", *lines], lines, strict=False):
        is_code ^= line.startswith("```")
        if line.startswith("|") and before.startswith("|") and not is_code:
            assert line.replace("\\|", "").count("|") == before.replace("\\|", "").count("|"), (before, line)
    assert not is_code and str(tmp_path) not in "\n".join(lines)


def test_a_machine_without_files_has_a_report(tmp_path: Path) -> None:
    made = Machine(str(tmp_path), {}, "x86_64")
    assert "| release | not readable |" in make_markdown(examine(made), made)
    assert {section.title for section in gather_facts(made)} >= {"Kernel", "Hardware and firmware"}


def test_a_measured_latency_comes_first(machine: Callable[..., Machine]) -> None:
    made = machine("microvm")
    check = Check("measured", "wake-up latency", "p50 9 us, max 31 us", "an empty loop, 5000 cycles of 1 ms", "ok", "x")
    text = make_markdown([check], made)
    assert text.index("p50 9 us, max 31 us") < text.index("### Kernel") and "Not measured" not in text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("", ""),
        ("isolcpus=managed_irq,domain,3 rcu_nocbs=3", "isolcpus=managed_irq,domain,3 rcu_nocbs=3"),
        ("BOOT_IMAGE=/vmlinuz root=/dev/mapper/ada ro", "BOOT_IMAGE=... root=... ro"),
        ("intel_idle.max_cstate=1 cryptdevice=UUID=1:x", "intel_idle.max_cstate=1 cryptdevice=..."),
        ("quiet -- --password x", "quiet"),
    ],
)
def test_boot_arguments_lose_what_may_be_private(text: str, safe: str) -> None:
    assert safe_arguments(text) == safe
