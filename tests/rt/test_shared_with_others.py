"""Exchanges between users and containers: only a socket's folder is common, and its mode decides."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rtloop_test_peer import Peer
from rtloop_test_waiting import wait_until

from rtloop import AttachError, Latest, Ring
from rtloop.sharing import socket_exchanges

pytestmark = [
    pytest.mark.rt,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becoming another user takes root and setpriv(1)"
    ),
]
#: Two ordinary users, and a group that they may have in common.
FIRST, SECOND, GROUP = 65533, 65534, 65531


def as_user(user: int, *, groups: str = "", capability: str = "") -> tuple[str, ...]:
    more = ("--groups", groups) if groups else ("--clear-groups",)
    # It may enter any folder: Python may be installed below one of root's own.
    keep = "-all,+dac_read_search" + (f",+{capability}" if capability else "")
    capabilities = (f"--inh-caps={keep}", f"--ambient-caps={keep}", f"--bounding-set={keep}")
    return ("setpriv", "--reuid", str(user), "--regid", str(user), *more, *capabilities)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="rtloop-", dir="/run"))  # where no other user may put anything
    made.chmod(0o755)
    try:
        os.chown(made, FIRST, GROUP)
        os.chown(made, 0, 0)
    except OSError:
        made.rmdir()
        pytest.skip("this is the root of a user namespace without other users")
    yield made
    shutil.rmtree(made)


@pytest.fixture
def share(start: Callable[..., Peer]) -> Callable[..., Any]:
    """Starts another process and lets it open an exchange; returns it and what it has answered."""

    def begin(prefix: tuple[str, ...], code: str) -> tuple[Peer, Any]:
        peer = start(*prefix)
        try:
            return peer, peer.do(code)
        except ValueError:
            pytest.skip("an ordinary user cannot start Python here")

    return begin


def test_a_mode_lets_other_users_in_or_not(folder: Path, share: Callable[..., Any]) -> None:
    """The kernel looks at the socket's mode, and the process that is asked at the credentials."""
    with Latest("f8", share=f"{folder}/own") as own, Latest("f8", share=f"{folder}/all", mode=0o666) as common:
        other, answer = share(as_user(FIRST), f"!rtloop.Latest.open('{folder}/own')")
        assert answer[0] == "AttachPrivilegeError" and "has user 0, group 0, mode 0o600" in answer[1]
        assert other.do(f"!reader = rtloop.Latest.open('{folder}/all')") is None
        common.write(2.5)
        assert other.do("reader.read()") == 2.5
        assert (own.peers, common.peers) == ((), (other.pid,))


def test_a_group_lets_its_members_in(folder: Path, share: Callable[..., Any]) -> None:
    folder.chmod(0o2770)
    os.chown(folder, 0, GROUP)
    with Ring("i8", 10, share=f"{folder}/log", mode=0o660) as log:
        assert os.stat(f"{folder}/log").st_gid == GROUP, "the folder's, because its set-group-ID bit is set"
        member, answer = share(as_user(FIRST, groups=f"7,{GROUP}"), f"!log = rtloop.Ring.open('{folder}/log')")
        assert answer is None
        log.push([1, 2])
        assert member.do("log.drain().tolist()") == [1, 2]
        _, answer = share(as_user(SECOND, groups="7"), f"!log = rtloop.Ring.open('{folder}/log', 'producer')")
        assert answer[0] == "AttachPrivilegeError"


def test_the_credentials_are_checked_even_if_the_kernel_lets_a_process_connect(
    folder: Path, share: Callable[..., Any]
) -> None:
    """The socket's file may have been opened to all for a moment, or have an access control list."""
    code = f"""!
import os, rtloop.sharing.socket_users as users, rtloop.sharing.exchange_server as server
made = rtloop.Latest('f8', share='{folder}/own')
class Info: st_mode, st_uid, st_gid = 0o140600, os.geteuid(), os.getegid()
users.os.stat = lambda path: Info
"""
    code = "!exec(" + repr(code[1:]) + ", globals())"
    folder.chmod(0o777)
    owner, answer = share(as_user(FIRST), code)
    assert answer is None
    os.chmod(f"{folder}/own", 0o666)
    folder.chmod(0o755)
    _, answer = share(as_user(SECOND), f"!rtloop.Latest.open('{folder}/own')")
    assert answer[0] == "AttachPrivilegeError" and "may not be opened by user 65534" in answer[1]
    assert Latest.open(f"{folder}/own").peers == (owner.pid,), "root may"


def test_a_user_cannot_pose_as_the_exchange_of_another(folder: Path, share: Callable[..., Any]) -> None:
    """In a folder that all may write to, as /tmp, whoever comes first has the name."""
    folder.chmod(0o1777)
    attacker, answer = share(as_user(FIRST), f"!made = rtloop.Latest('f8', share='{folder}/arm', mode=0o666)")
    assert answer is None
    victim, answer = share(as_user(SECOND), f"!rtloop.Latest.open('{folder}/arm')")
    assert answer[0] == "AttachPrivilegeError" and f"any user may have put it into {folder}" in answer[1]
    for call in (lambda: Latest.open(f"{folder}/arm"), lambda: Latest("f8", share=f"{folder}/arm", role="reader")):
        with pytest.raises(AttachError, match=f"belongs to user {FIRST}, and any user may have put it"):
            call()
    folder.chmod(0o755)
    os.chown(folder, FIRST, FIRST)
    assert victim.do(f"rtloop.Latest.open('{folder}/arm').read()") == 0.0, "its own folder: it was meant"
    attacker.do(f"!abstract = rtloop.Latest('f8', share='@{folder.name}')")
    with pytest.raises(AttachError, match="it is for processes of one user"):
        Latest.open(f"@{folder.name}")
    assert victim.do(f"rtloop.Latest.open('@{folder.name}')")[0] == "AttachPrivilegeError"


def test_users_take_over_from_one_another(folder: Path, share: Callable[..., Any]) -> None:
    """A killed owner does not end the exchange, whoever goes on with it."""
    folder.chmod(0o2770)
    os.chown(folder, 0, GROUP)
    first, answer = share(
        as_user(FIRST, groups=str(GROUP)), f"!made = rtloop.Ring('i8', 10, share='{folder}/log', mode=0o660)"
    )
    assert answer is None and first.do("made.push([1, 2, 3])") == 3
    second, answer = share(as_user(SECOND, groups=str(GROUP)), f"!log = rtloop.Ring.open('{folder}/log')")
    assert answer is None and second.do("int(log.pop())") == 1
    first.kill()
    with Ring("i8", 10, share=f"{folder}/log", mode=0o660) as successor:
        successor.push(4)
        assert second.do("log.drain().tolist()") == [2, 3, 4]
    second.kill()
    third, answer = share(
        as_user(SECOND, groups=str(GROUP)), f"!made = rtloop.Ring('i8', 10, share='{folder}/log', mode=0o660)"
    )
    assert answer is None, "the members of the group may replace what another one has left"
    third.finish()
    assert os.listdir(folder) == []


def test_a_process_with_more_capabilities_is_found(folder: Path, share: Callable[..., Any]) -> None:
    """Through /proc the kernel hides what it has open: ptrace(2)."""
    folder.chmod(0o777)
    loop, answer = share(as_user(FIRST, capability="sys_nice"), f"!made = rtloop.Latest('f8', share='{folder}/x')")
    assert answer is None
    planner, answer = share(as_user(FIRST), f"!made = rtloop.Latest.open('{folder}/x')")
    assert answer is None and planner.do("made.peers") == [loop.pid]


NAMESPACES = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "--ipc", "--uts", "--mount-proc")


def test_containers_that_share_a_folder_share_an_exchange(folder: Path, share: Callable[..., Any]) -> None:
    """Each has its own processes, network and mounts, and sees the folder at another path."""
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces cannot be made here")
    inside = folder / "inside"
    inside.mkdir()
    shared = folder / "shared"
    shared.mkdir()
    mount = (*NAMESPACES, "sh", "-ec", 'mount --bind "$1" "$2"; shift 2; exec "$@"', "sh", str(shared), str(inside))
    first, answer = share(mount, f"!made = rtloop.Latest('i8', share='{inside}/x', readers=2); made.write(7)")
    assert answer is None and first.do("os.getpid()") == 1
    second, answer = share(mount, f"!reader = rtloop.Latest.open('{inside}/x')")
    assert answer is None and second.do("[int(reader.read()), reader.peers]") == [7, [0]]
    with Latest.open(f"{shared}/x") as own:
        assert own.read() == 7 and own.peers == (0,) and first.do("made.peers") == [0, 0]
        answer = second.do(f"!rtloop.Latest('i8', share='{inside}/x', readers=2)")
        assert answer[0] == "StateError" and "of another PID namespace" in answer[1]
        assert second.do("reader.wait('0s')") is False
        second.ask("reader.wait('60s')")
        first.do("made.write(8)")
        assert second.answer() is True and second.do("reader.read()") == 8, "one wakes the other across namespaces"
        first.kill()
        wait_until(lambda: own.peers == (), "the processes of a namespace end when its first one does")
        with Latest("i8", share=f"{shared}/x", readers=2) as successor:
            assert successor.written == 2, "the role of a process of another namespace is free when it has ended"
            successor.write(9)
            assert second.do("reader.read()") == 9
    second.kill()
    wait_until(lambda: socket_exchanges._is_unused(f"{shared}/x"), "the last process of the namespaces has ended")
    with Latest("i8", share=f"{shared}/x", readers=2) as other:
        assert other.written == 0
    assert os.listdir(shared) == []


def test_its_thread_is_an_ordinary_one_on_all_cpus(folder: Path) -> None:
    """Whoever shares an exchange may be a real-time thread with one CPU."""
    code = f"""
import os, rtloop
cpus = os.sched_getaffinity(0)
import threading
def make():
    os.sched_setaffinity(0, {{min(cpus)}})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
    global made
    before = set(os.listdir("/proc/self/task"))
    made = rtloop.Latest("f8", share="{folder}/x")
    rtloop.Latest.open("{folder}/x")
    (tid,) = set(os.listdir("/proc/self/task")) - before
    assert os.sched_getscheduler(int(tid)) == os.SCHED_OTHER
    assert os.sched_getaffinity(int(tid)) == cpus
    print("ordinary")
thread = threading.Thread(target=make)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "ordinary\n", done.stderr
