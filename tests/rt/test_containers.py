"""Containers: what a loop is granted with the capabilities, limits and devices that the flags of Docker give."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

Script = Callable[..., "subprocess.CompletedProcess[str]"]

#: Capabilities of a container's root if no flag adds any (moby, oci/caps/defaults.go).
DEFAULT = (
    "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,"
    "audit_write,setfcap"
)
#: /dev of a container: none of the host's devices but these.
DEVICES = """
mount -t tmpfs none /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/zero c 1 5
mknod -m 666 /dev/random c 1 8
mknod -m 666 /dev/urandom c 1 9
"""
ADD_DEVICE = "mknod -m 600 /dev/cpu_dma_latency c $DEVICE\n"
CODE = """
import json, warnings
from rtloop import RTLoop, SetupError
warnings.simplefilter("ignore")
try:
    RTLoop("1ms").run(cycles=3)
    print("starts")
except SetupError as error:
    print("refused")
grants = RTLoop("1ms", strict=False).run(cycles=3).grants
print(json.dumps({grant.name: [str(grant.granted), grant.fix] for grant in grants if not grant.ok}))
"""


@pytest.fixture(autouse=True, scope="module")
def _mounts() -> None:
    probe = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", DEVICES]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare(1) and setpriv(1), of util-linux")
    if done.returncode:
        pytest.skip(f"only root of a machine can mount a /dev: {done.stderr.strip()}")


def container(script: Script, *, capabilities: str = "", user: str = "", limits: str = "", shell: str = DEVICES):
    """Run a loop as in a container; returns whether it starts by default, and the refused grants."""
    keep = ",".join(f"+{name}" for name in f"{DEFAULT},{capabilities}".split(",") if name)
    number = os.stat("/dev/cpu_dma_latency").st_rdev
    run = f'exec prlimit {limits} setpriv {user} --bounding-set=-all,{keep} --inh-caps=-all,{keep} "$@"'
    prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", f"{shell}\n{run}", "sh")
    environment = {"DEVICE": f"{os.major(number)} {os.minor(number)}"}
    done = script(CODE, prefix=prefix, env=environment)
    assert done.returncode == 0, done.stderr
    first, rest = done.stdout.splitlines()
    return first == "starts", json.loads(rest)


def test_without_flags_three_things_are_refused_each_with_its_flag(script: Script) -> None:
    starts, refused = container(script, limits="--memlock=8388608:8388608")
    assert not starts and set(refused) == {"memory_lock", "policy", "dma_latency"}
    assert "memlock" in refused["memory_lock"][1] and "SYS_NICE" in refused["policy"][1]
    assert refused["dma_latency"][0] == "nothing"


def test_each_flag_gives_what_the_page_says(script: Script) -> None:
    small = "--memlock=8388608:8388608"
    starts, refused = container(script, capabilities="sys_nice", limits=small)
    assert not starts and set(refused) == {"memory_lock", "dma_latency"}
    starts, refused = container(script, capabilities="sys_nice,ipc_lock", limits=small)
    assert not starts and set(refused) == {"dma_latency"}
    starts, refused = container(script, capabilities="sys_nice,ipc_lock", limits=small, shell=DEVICES + ADD_DEVICE)
    assert starts and refused == {}


def test_a_user_without_limits_has_nothing_of_the_capabilities(script: Script) -> None:
    starts, refused = container(
        script,
        capabilities="sys_nice,ipc_lock,dac_read_search",
        # It may enter any folder: Python may be installed below one of root's own.
        user="--reuid=65534 --regid=65534 --clear-groups --ambient-caps=+dac_read_search",
        limits="--memlock=8388608:8388608",
        shell=DEVICES + ADD_DEVICE,
    )
    assert not starts and set(refused) == {"memory_lock", "policy", "dma_latency"}


@pytest.mark.parametrize("what", ["/dev/null", "a file"])
def test_another_file_in_the_place_of_the_device_is_no_grant(script: Script, what: str) -> None:
    mount = "mount --bind /dev/null /dev/cpu_dma_latency"
    if what == "a file":
        mount = "mount -t tmpfs none /mnt && : >/mnt/f && mount --bind /mnt/f /dev/cpu_dma_latency"
    starts, refused = container(script, capabilities="sys_nice,ipc_lock", shell=mount)
    assert not starts and set(refused) == {"dma_latency"}


@pytest.mark.parametrize("keywords", ["", "lock_memory='own'", "lock_memory='onfault', guard='count', cpu=min(cpus)"])
def test_without_proc_a_loop_starts_and_says_what_is_not_known(script: Script, keywords: str) -> None:
    """It could not read its own capabilities, nor how much memory was locked, and did not start."""
    done = script(
        f"""
        import ctypes, os, warnings, rtloop, numpy
        import rtloop.guard.guard_block
        warnings.simplefilter("ignore")
        cpus = os.sched_getaffinity(0)
        assert ctypes.CDLL(None).umount2(b"/proc", 2) == 0 and not os.listdir("/proc")
        for run in range(2):
            stats = rtloop.RTLoop("1ms", strict=False, {keywords}).run(cycles=20)
            print(stats.cycles)
        print(*stats.grants, sep="\\n")
        """,
        prefix=("unshare", "--mount", "--propagation", "private"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["20", "20"]
    if "own" not in keywords:
        assert "how much is not known: /proc/self/status: No such file" in done.stdout
    if "guard" in keywords:
        assert "without places in the code, because /proc/self/maps cannot be read" in done.stdout
