"""Two hosts in network namespaces with a cable between them: bridge and loop when the connection breaks."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rtloop

pytest.importorskip("zenoh", reason="Zenoh is missing: pip install 'rtloop[zenoh]'")

pytestmark = pytest.mark.rt
ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples/cut_link/cut_link.pyx"
HOST = ROOT / "tests/support/zenoh_host.py"
#: A link that is down is found out after a second.
QUICK = {"link": {"tx": {"lease": 1000, "keep_alive": 4}}}
QUIET = {"scouting": {"multicast": {"enabled": False}}, "transport": QUICK}
KEY = "rtloop/left/actuator"

OPERATOR = """
import json, struct, sys, time, rtloop.zenoh
config, pause = json.loads(sys.argv[1]), float(sys.argv[2])
session = rtloop.zenoh.open_session(config)
good, bad = rtloop.zenoh.pack(1.0, "f8"), rtloop.zenoh.pack(float("nan"), "f8")
publisher = session.declare_publisher("KEY/setpoints/angle")
print("sending", flush=True)
number = 0
while True:
    number += 1
    what = bad if number % 7 == 0 else b"x" * (number % 300) if number % 11 == 0 else good
    publisher.put(what, attachment=struct.pack("<QQ", 1, number))
    if pause:
        time.sleep(pause)
""".replace("KEY", KEY)


ROUTER = """
import json, sys, time, rtloop.zenoh
kept = rtloop.zenoh.open_session(json.loads(sys.argv[1]))
while True:
    time.sleep(1)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


class Hosts:
    """Two namespaces, and the processes in them."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.left, self.right = (f"rtz{os.getpid()}{side}" for side in "lr")
        self.cable = f"rtz{os.getpid()}"[:13]
        self.environment = environment
        self.processes: list[subprocess.Popen[str]] = []
        try:
            for name in (self.left, self.right):
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("link", "add", f"{self.cable}l", "netns", self.left, "type", "veth",
               "peer", "name", f"{self.cable}r", "netns", self.right)  # fmt: skip
            for name, side, address in ((self.left, "l", "10.231.7.1/24"), (self.right, "r", "10.231.7.2/24")):
                ip("-n", name, "addr", "add", address, "dev", f"{self.cable}{side}")
                ip("-n", name, "link", "set", f"{self.cable}{side}", "up")
        except BaseException:
            self.close()
            raise

    def cut(self, *, down: bool) -> None:
        ip("-n", self.left, "link", "set", f"{self.cable}l", "down" if down else "up")

    def run(self, where: str, *words: str) -> subprocess.Popen[str]:
        made = subprocess.Popen(["ip", "netns", "exec", where, sys.executable, *words], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True, env=self.environment, cwd="/tmp")  # fmt: skip
        self.processes.append(made)
        return made

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        for name in (self.left, self.right):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30, check=False)


class Controller:
    """The loop of a host, asked through its stdin."""

    def __init__(self, hosts: Hosts, where: str, **about: Any) -> None:
        self._process = hosts.run(where, str(HOST), str(SOURCE), json.dumps(about))
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._next()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)

    def _next(self) -> Any:
        return json.loads(self._lines.get(timeout=120))

    def report(self, word: str = "report") -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = self._next()
        return found

    def until(self, done: Callable[[dict[str, Any]], Any], seconds: float = 40.0) -> dict[str, Any]:
        limit = time.monotonic() + seconds
        while not done(found := self.report()):
            assert time.monotonic() < limit, found
            time.sleep(0.05)
        return found


def check_end(controller: Controller) -> dict[str, Any]:
    """Stop it: every release is accounted for, none brought a page fault, and nothing that was too old was obeyed."""
    end = controller.report("stop")
    assert end["state"] == "stopped"
    assert end["cycles"] + end["missed"] == end["elapsed"]
    assert end["page_faults"] == [0, 0]
    assert end["obeyed_too_old"] == 0
    assert end["bridge"]["commands"] == 0
    return end


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The example, compiled once."""
    environment = {**os.environ, "RTLOOP_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": ""}
    program = f"import rtloop; rtloop.build({str(SOURCE)!r})"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd="/tmp", timeout=300)
    return environment


@pytest.fixture
def hosts(environment: dict[str, str]) -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("ip is missing: apt install iproute2")
    try:
        made = Hosts(environment)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield made
    made.close()


@pytest.fixture
def controller(hosts: Hosts) -> Controller:
    listening = {**QUIET, "listen": {"endpoints": ["tcp/10.231.7.1:7447"]}}
    return Controller(hosts, hosts.left, key=KEY, name="actuator", config=listening, publish=False)


#: What a host says that reaches the others by a router, which may not be there yet.
PATIENT = {"timeout_ms": -1, "exit_on_failure": False}
CONNECTING = {**QUIET, "mode": "peer", "listen": {"endpoints": []}, "connect": {"endpoints": ["tcp/10.231.7.1:7447"]}}


def operator(hosts: Hosts, pause: float = 0.01, config: dict[str, Any] = CONNECTING) -> subprocess.Popen[str]:
    return hosts.run(hosts.right, "-c", OPERATOR, json.dumps(config), str(pause))


def test_the_output_is_safe_while_the_link_is_down_and_follows_again_when_it_is_up(
    hosts: Hosts, controller: Controller
) -> None:
    operator(hosts)
    controller.until(lambda found: found["output"] == 1.0 and found["bridge"]["refused"])
    hosts.cut(down=True)
    found = controller.until(lambda found: found["output"] == 0.0 and found["bridge"]["links_lost"])
    assert found["state"] == "running"
    hosts.cut(down=False)
    found = controller.until(lambda found: found["output"] == 1.0)
    assert found["bridge"]["reconnects"] >= 1
    check_end(controller)


def test_a_peer_that_is_killed_leaves_the_loop_safe_and_another_takes_over(
    hosts: Hosts, controller: Controller
) -> None:
    first = operator(hosts)
    controller.until(lambda found: found["output"] == 1.0)
    first.kill()
    controller.until(lambda found: found["output"] == 0.0 and found["bridge"]["links"] == 0)
    operator(hosts)
    controller.until(lambda found: found["output"] == 1.0)
    check_end(controller)


def test_a_router_that_is_restarted_is_found_again(hosts: Hosts) -> None:
    serving = {**QUIET, "mode": "router", "listen": {"endpoints": ["tcp/10.231.7.2:7447"]}}
    asking = {**QUIET, "mode": "client", "connect": {"endpoints": ["tcp/10.231.7.2:7447"], **PATIENT}}
    controller = Controller(hosts, hosts.left, key=KEY, name="actuator", config=asking, publish=False)
    operator(hosts, config=asking)
    assert controller.report()["bridge"]["links"] == 0, "it has opened without the router"
    router = hosts.run(hosts.right, "-c", ROUTER, json.dumps(serving))
    controller.until(lambda found: found["output"] == 1.0)
    router.kill()
    router.wait()
    controller.until(lambda found: found["output"] == 0.0 and found["bridge"]["links_lost"])
    hosts.run(hosts.right, "-c", ROUTER, json.dumps(serving))
    found = controller.until(lambda found: found["output"] == 1.0)
    assert found["bridge"]["reconnects"] >= 1
    check_end(controller)


def test_a_flood_of_setpoints_good_and_bad_costs_the_loop_no_fault_and_no_cycle_uncounted(
    hosts: Hosts, controller: Controller
) -> None:
    def sent(found: dict[str, Any]) -> int:
        return int(sum(found["bridge"][name] for name in ("accepted", "refused", "skipped")))

    operator(hosts, pause=0)
    before = controller.until(sent)
    begun = time.monotonic()
    after = controller.until(lambda found: sent(found) > sent(before) + 1_000_000)
    rate = (sent(after) - sent(before)) / (time.monotonic() - begun)
    assert after["bridge"]["refused"] > 0
    assert after["bridge"]["accepted"] > before["bridge"]["accepted"]
    end = check_end(controller)
    print(f"{rate:,.0f} setpoints a second; {end['missed']} releases missed of {end['elapsed']}, {end['bridge']}")


def test_top_and_record_see_two_hosts_whose_releases_are_the_same_to_the_nanosecond(
    hosts: Hosts, tmp_path: Path
) -> None:
    listening = {**QUIET, "listen": {"endpoints": ["tcp/10.231.7.1:7447"]}}
    left = Controller(hosts, hosts.left, key="rtloop/left/a", name="a", config=listening, publish=True)
    other = {**CONNECTING, "listen": {"endpoints": ["tcp/10.231.7.2:7447"]}}
    right = Controller(hosts, hosts.right, key="rtloop/right/b", name="b", config=other, publish=True)
    config = tmp_path / "operator.json5"
    both = {"endpoints": ["tcp/10.231.7.1:7447", "tcp/10.231.7.2:7447"]}
    config.write_text(json.dumps({**QUIET, "connect": both, "listen": {"endpoints": []}}))

    def tool(*words: str) -> Any:
        made = hosts.run(hosts.right, "-m", "rtloop", *words, "--config", str(config), "--json")
        out, _ = made.communicate(timeout=60)
        return json.loads(out)

    limit = time.monotonic() + 40
    while {row["key"] for row in tool("top", "--zenoh")["loops"]} != {"rtloop/left/a", "rtloop/right/b"}:
        assert time.monotonic() < limit, "they have not found each other"
    pytest.importorskip("mcap", reason="the package mcap is missing")
    path = tmp_path / "run.mcap"
    said = tool("record", "--zenoh", "rtloop/**", "-o", str(path), "--duration", "3s")
    assert said["signals"].keys() == {"rtloop/left/a/signals/log", "rtloop/right/b/signals/log"}
    assert all(one["records"] > 100 for one in said["signals"].values())

    from mcap.reader import make_reader

    ends = [check_end(one) for one in (left, right)]
    recorded: dict[str, dict[int, int]] = {}
    with path.open("rb") as file:
        for _, channel, message in make_reader(file).iter_messages():
            recorded.setdefault(channel.topic, {})[json.loads(message.data)["release"]] = message.log_time
    a, b = recorded.values()
    begin, end = max(min(a), min(b)), min(max(a), max(b))
    assert end > begin
    inside = [{release for release in one if begin <= release <= end} for one in (a, b)]
    allowed = (
        ends[0]["missed"] + ends[1]["missed"] + sum(one["lost"] + one["dropped"] for one in said["signals"].values())
    )
    assert len(inside[0] ^ inside[1]) <= allowed, "a release of one host is a release of the other"
    common = inside[0] & inside[1]
    assert len(common) > 50
    assert all(release % 1_000_000 == 0 for release in common), "on the grid of TAI"
    assert max(abs(a[release] - b[release]) for release in common) < 50_000_000, "on one time line"
    assert rtloop.__version__ == said["rtloop"]
