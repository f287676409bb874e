"""CPUs that are isolated where the process may not go, and masks that are inherited."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.rt,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]

Script = Callable[..., Any]
ROOT = Path("/sys/fs/cgroup")
ISOLATED = "/sys/devices/system/cpu/isolated"
SHOWN = 'print(next(str(g) for g in stats.grants if g.name == "cpu")); print(str(stats).splitlines()[0])'


@pytest.fixture
def confined(tmp_path: Path) -> Iterator[Callable[[int, str], tuple[str, ...]]]:
    """Return what starts a program in a cpuset of one CPU, on a machine that has these CPUs isolated."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root and unshare(1)")
    is_first = (ROOT / "cpuset").is_dir()
    top = ROOT / "cpuset" if is_first else ROOT
    if not is_first and "cpuset" not in (ROOT / "cgroup.subtree_control").read_text().split():
        pytest.skip("needs a cpuset that groups below the root may set")
    group = top / f"rtloop-test-{os.getpid()}"

    def prefix(cpu: int, isolated: str) -> tuple[str, ...]:
        group.mkdir()
        if is_first:
            (group / "cpuset.mems").write_text("0")
        (group / "cpuset.cpus").write_text(str(cpu))
        (tmp_path / "isolated").write_text(f"{isolated}\n")
        enter = f"echo $$ > {group}/cgroup.procs && mount --bind {tmp_path}/isolated {ISOLATED}"
        return "unshare", "-m", "sh", "-c", f'{enter} && exec "$@"', "sh"

    yield prefix
    if group.exists():
        group.rmdir()


def test_auto_takes_what_is_isolated_and_allowed(script: Script, confined: Callable[..., tuple[str, ...]]) -> None:
    """It took all isolated CPUs, was granted some of them, and no loop started in a container."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    done = script(
        f"import rtloop; stats = rtloop.RTLoop('1kHz').run(cycles=20); {SHOWN}",
        prefix=confined(second, f"{first},{second}"),
    )
    assert done.returncode == 0, done.stderr
    assert f"granted {second} [ok] isolated at boot" in done.stdout and f"CPU {second}," in done.stdout


def test_without_an_isolated_cpu_that_is_allowed_the_loop_is_where_it_was(
    script: Script, confined: Callable[..., tuple[str, ...]]
) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    done = script(
        f"""
        import rtloop
        stats = rtloop.RTLoop('1kHz').run(cycles=20); {SHOWN}
        fast = rtloop.RTLoop("1kHz", name="fast")
        print(rtloop.LoopGroup([fast], cpus="partition", wcet={{"fast": "10us"}}).settings["fast"].cpu)
        try:
            rtloop.RTLoop("1kHz", cpu={first}).start()
        except rtloop.SetupError as error:
            print(error)
        from rtloop.machine.doctor import trial_loop
        print([check.verdict for check in trial_loop.examine(trial_loop.run_probe())])
        """,
        prefix=confined(second, str(first)),
    )
    assert done.returncode == 0, done.stderr
    assert (
        f"asked auto, granted {second} [ok] inherited: {second}, the whole cpuset; none of the isolated" in done.stdout
    )
    assert f"CPU {second}," in done.stdout and "any CPU" not in done.stdout
    assert f"\n({second},)\n" in done.stdout, "a group places its loops on what is allowed"
    assert f"CPU {first} is outside of the cpuset /rtloop-test-" in done.stdout
    assert "fail" not in done.stdout.splitlines()[-1], "the doctor tries what users run"


@pytest.mark.parametrize("cpu", ["'auto'", "None"])
def test_a_mask_that_is_inherited_is_shown(script: Script, cpu: str) -> None:
    first = min(os.sched_getaffinity(0))
    done = script(
        f"""
        import rtloop
        loop = rtloop.RTLoop("1kHz", cpu={cpu}, name="fast")
        stats = loop.run(cycles=20); {SHOWN}
        group = rtloop.LoopGroup([loop], watchdog=5)
        group.run("50ms")
        print(*(g for g in group.grants["watchdog"] if g.name == "cpu"))
        """,
        prefix=("taskset", "-c", str(first)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"inherited: {first} of ") == 2, "the watchdog's, too"
    assert "narrower than the cpuset" in done.stdout and f", CPU {first}," in done.stdout


def test_on_every_cpu_of_the_machine_it_is_any(script: Script) -> None:
    everywhere = ",".join(str(cpu) for cpu in range(os.cpu_count() or 1))
    if subprocess.run(["taskset", "-c", everywhere, sys.executable, "-c", "pass"], check=False).returncode:
        pytest.skip("this process may not use every CPU")
    done = script(
        f"import rtloop; stats = rtloop.RTLoop('1kHz').run(cycles=20); {SHOWN}", prefix=("taskset", "-c", everywhere)
    )
    assert "[ok] inherited" in done.stdout and "any CPU" in done.stdout, done.stderr
