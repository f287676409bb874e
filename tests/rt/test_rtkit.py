"""Real-time threads through RealtimeKit: a bus of the test's own, and on it a service that does what RealtimeKit does.

The loops run in a process without CAP_SYS_NICE and with RLIMIT_RTPRIO 0, so that the kernel refuses their policy.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.rt
pytest.importorskip("jeepney", reason="needs jeepney: pip install 'rtloop[rtkit]'")

BUS = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type><listen>unix:dir={folder}</listen><auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/>
    <allow own="*"/><allow user="*"/></policy>
</busconfig>
"""
#: RealtimeKit's rules: RLIMIT_RTTIME is set and at most 200 ms, the thread belongs to the process, priority at most 20.
SERVICE = """
import os, signal
from jeepney import HeaderFields, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

signal.alarm(60)  # whatever happens, the test does not wait for ever
bus = open_dbus_connection("SYSTEM")
bus.send_and_get_reply(message_bus.RequestName("org.freedesktop.RealtimeKit1"))
print("ready", flush=True)
while True:
    message = bus.receive()
    if message.header.message_type is not MessageType.method_call:
        continue
    member = message.header.fields.get(HeaderFields.member)
    if member == "Get":
        value = {"RTTimeUSecMax": ("x", 200000), "MaxRealtimePriority": ("i", 20)}[message.body[1]]
        bus.send(new_method_return(message, "v", (value,)))
        continue
    pid, tid, priority = message.body
    limits = next(line for line in open(f"/proc/{pid}/limits") if line.startswith("Max realtime timeout")).split()
    is_limited = all(word.isdecimal() and int(word) <= 200000 for word in limits[3:5])
    if not is_limited or priority > 20 or not os.path.exists(f"/proc/{pid}/task/{tid}"):
        bus.send(new_error(message, "org.freedesktop.DBus.Error.AccessDenied", "s", ("Operation not permitted",)))
        continue
    os.sched_setscheduler(tid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    bus.send(new_method_return(message))
"""
LOOP = """
import resource, rtloop
limits = rtloop.use_rtkit()
assert (limits.priority, limits.cpu_time_us) == (20, 200000), limits
assert resource.getrlimit(15) == (-1, -1) or resource.getrlimit(15)[0] > 200000, "nothing has changed so far"
def make(policy="rr", priority=20, **options):
    return rtloop.RTLoop("2ms", policy=policy, priority=priority, lock_memory="own", dma_latency=None, **options)
def grant(loop, name):
    return next((grant for grant in loop.grants if grant.name == name), None)
"""


@pytest.fixture
def unprivileged(tmp_path: Path, probe_path: Path) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """Start the bus and the service; return a function that runs a program beside them without CAP_SYS_NICE."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to drop a capability and to schedule the threads of another process")
    daemon, setpriv = shutil.which("dbus-daemon"), shutil.which("setpriv")
    if daemon is None or setpriv is None:
        pytest.skip("needs dbus-daemon and setpriv")
    config = tmp_path / "bus.conf"
    config.write_text(BUS.format(folder=tmp_path).strip())
    with subprocess.Popen([daemon, f"--config-file={config}", "--nofork", "--print-address=1"],
                          stdout=subprocess.PIPE, text=True) as bus:  # fmt: skip
        assert bus.stdout
        env = {"DBUS_SYSTEM_BUS_ADDRESS": bus.stdout.readline().strip(), "PATH": "/usr/bin:/bin",
               "PYTHONPATH": str(probe_path)}  # fmt: skip
        with subprocess.Popen([sys.executable, "-c", SERVICE], env=env, stdout=subprocess.PIPE, text=True) as service:
            assert service.stdout and service.stdout.readline() == "ready\n"

            def run(program: str) -> subprocess.CompletedProcess[str]:
                command = [setpriv, "--bounding-set=-sys_nice", "--inh-caps=-sys_nice", sys.executable, "-P", "-c"]
                text = LOOP + textwrap.dedent(program)
                return subprocess.run([*command, text], env=env, capture_output=True, text=True, timeout=60)

            try:
                yield run
            finally:
                service.kill()
                bus.kill()


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr


def test_a_strict_loop_runs_without_privileges(unprivileged: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    check(unprivileged("""
        loop = make()
        stats = loop.run(cycles=20)
        assert stats.cycles == 20
        policy, time = grant(loop, "policy"), grant(loop, "rt_time")
        assert policy.ok and policy.granted == "rr 20" and "by RealtimeKit" in policy.detail, policy
        assert time.ok and "SIGXCPU after 150000 us" in time.detail, time
        assert resource.getrlimit(15) == (150000, 200000)
        assert all(grant.ok for grant in loop.grants), loop.grants
        assert make().run(cycles=5).cycles == 5, "and a second one, now that the limit is set"
    """))  # fmt: skip


def test_it_grants_no_more_than_it_does(unprivileged: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A strict loop that asks for another policy or more priority is refused, with what to ask for."""
    check(unprivileged("""
        import warnings
        try:
            make("fifo", 80).run(cycles=5)
        except rtloop.PrivilegeError as error:
            assert "granted rr 20" in str(error) and "policy='rr', priority=20" in str(error), error
        else:
            raise AssertionError("not refused")
        with warnings.catch_warnings(record=True):
            loop = make("fifo", 80, strict=False)
            loop.run(cycles=5)
        assert grant(loop, "policy").granted == "rr 20" and not grant(loop, "policy").ok
    """))  # fmt: skip


def test_a_refusal_has_its_reason(unprivileged: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Here the limit cannot be set, because the program has a lower hard limit of another kind: nothing is granted."""
    check(unprivileged("""
        from rtloop.system.session import rtkit
        rtkit._limit_cpu_time = lambda most_us: None  # as if the process kept its limit
        try:
            make().run(cycles=5)
        except rtloop.PrivilegeError as error:
            assert "RealtimeKit refused priority 20: Operation not permitted" in str(error), error
        else:
            raise AssertionError("not refused")
    """))  # fmt: skip


def test_a_step_that_does_not_end_ends_the_process(
    unprivileged: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = unprivileged("""
        from probes import Probe
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        loop = Probe("2ms", policy="rr", priority=20, lock_memory="own", dma_latency=None)
        loop.busy_ns = 10**11
        loop.run("20s")
    """)
    # SIGXCPU is for the main thread. If the step keeps it off its CPU, SIGKILL follows.
    assert done.returncode in (-signal.SIGXCPU, -signal.SIGKILL), (done.returncode, done.stderr)
