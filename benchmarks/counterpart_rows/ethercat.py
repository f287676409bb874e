"""An EtherCAT bus at 1 kHz: the loop of examples/ethercat and pysoem, with the slaves of KickCAT's simulator."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterpart_rows import Figures, modules_missing, run_client
from counterpart_rows._cable import Cable
from counterpart_rows._grid import PERIOD_NS, PRIORITY
from counterpart_rows._stalls import Stalls

ORDER = 4
TITLE = "EtherCAT, process data at 1 kHz"
REFEREE = "a frame counts if it is on the cable in its slot of 1 ms, and comes back with the full working counter"
SIDES = ("rtloop", "pysoem")
NEEDS = {"pysoem": "pip install pysoem"}

EXAMPLE = Path(__file__).parents[2] / "examples" / "ethercat"
OURS, THEIRS = "rtloop-row0", "rtloop-row1"
SIMULATOR_PRIORITY = 60


def missing() -> dict[str, str]:
    """Return what is not installed."""
    absent = modules_missing(NEEDS)
    if not os.environ.get("RTLOOP_KICKCAT"):
        absent["KickCAT"] = "build its network_simulator, and set RTLOOP_KICKCAT: docs/how-to/ethercat.md"
    if shutil.which("ip") is None:
        absent["ip"] = "apt install iproute2"
    if os.geteuid():
        absent["root"] = "run it as root, because it makes a virtual cable and reads its frames"
    return absent


@contextlib.contextmanager
def cable() -> Iterator[None]:
    """Connect a simulator to a virtual cable, with a real-time priority below the loop's."""
    subprocess.run(["ip", "link", "add", OURS, "type", "veth", "peer", "name", THEIRS], check=True)
    try:
        for end in (OURS, THEIRS):
            subprocess.run(["ip", "link", "set", end, "up"], check=True)
        command = shlex.split(os.environ["RTLOOP_KICKCAT"].format(THEIRS))
        simulator = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            os.sched_setscheduler(simulator.pid, os.SCHED_FIFO, os.sched_param(SIMULATOR_PRIORITY))
            time.sleep(1)
            if simulator.poll() is not None:
                raise RuntimeError(f"the simulator ended: {shlex.join(command)}")
            yield
        finally:
            simulator.kill()
            simulator.wait()
    finally:
        subprocess.run(["ip", "link", "del", OURS], check=True)


def run(side: str, company: str, seconds: float) -> Figures:
    """Run one side, and judge the frames on the cable."""
    with cable(), Stalls(PRIORITY) as stalls, Cable(OURS) as seen:
        facts = run_client("ethercat", side, company, seconds)
    exchanges = seen.exchanges()
    kept, lowest, age = exchanges.judge(PERIOD_NS)
    facts |= {"frames": len(exchanges.sent), "invalid": int((~exchanges.is_valid).sum()),
              "working counter": exchanges.expected, "longest stall, us": stalls.longest_us}  # fmt: skip
    return Figures(kept, lowest, age, facts)


def client(side: str, seconds: float) -> dict[str, Any]:
    """Exchange process data with one of the sides; return its own figures."""
    return {"rtloop": exchange_with_rtloop, "pysoem": exchange_with_pysoem}[side](seconds)


def exchange_with_rtloop(seconds: float) -> dict[str, Any]:
    """Run the loop of examples/ethercat on its own clock, because the other side does not follow the slaves' either."""
    import rtloop

    sys.path.insert(0, str(EXAMPLE))
    import soem

    if not (EXAMPLE / "generated" / "soem").exists():
        soem.unpack(EXAMPLE / "generated" / "soem")
    ethercat = rtloop.build(EXAMPLE / "ethercat.pyx")
    bus = ethercat.Count(PERIOD_NS, interface=OURS, priority=PRIORITY, guard="count", proportional=0, integral=0)
    with bus:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            bus.supervise()
            time.sleep(0.02)
    bus.close()
    return {"exchanges": bus.exchanges, "no frame": bus.no_frame, "wrong counter": bus.bad_wkc,
            "page faults": sum(bus.stats.page_faults), "guard": str(bus.stats.guard)}  # fmt: skip


def exchange_with_pysoem(seconds: float) -> dict[str, Any]:
    """Do the same in Python, at the same priority: exchange at each release, and supervise in another thread."""
    import pysoem

    master = pysoem.Master()
    master.open(OURS)
    is_over = threading.Event()
    counted = invalid = exchanges = 0
    try:
        if master.config_init() <= 0:
            raise RuntimeError(f"no slave answers on {OURS}")
        # pysoem reports that KickCAT's drive refuses a mapping; the bus works nevertheless.
        with contextlib.suppress(pysoem.ConfigMapError):
            master.config_map()
        master.config_dc()
        master.state_check(pysoem.SAFEOP_STATE, 2_000_000)

        def supervise() -> None:
            while not is_over.wait(0.25):
                master.read_state()
                for slave in master.slaves:
                    if slave.state == pysoem.SAFEOP_STATE:
                        slave.state = pysoem.OP_STATE
                        slave.write_state()

        helper = threading.Thread(target=supervise, daemon=True)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        helper.start()
        begin = time.monotonic_ns()
        release = begin + PERIOD_NS
        while release < begin + seconds * 1e9:
            left = release - time.monotonic_ns()
            if left > 0:
                time.sleep(left * 1e-9)
            wkc = master.receive_processdata(200) if exchanges else master.expected_wkc
            invalid += wkc != master.expected_wkc
            counted += 1
            output = bytearray(len(master.slaves[0].output))
            output[:2] = (counted & 0x7FFF).to_bytes(2, "little")
            master.slaves[0].output = bytes(output)
            master.send_processdata()
            exchanges += 1
            release += PERIOD_NS * max(1, 1 + (time.monotonic_ns() - release) // PERIOD_NS)
        is_over.set()
        helper.join()
        master.state = pysoem.INIT_STATE
        master.write_state()
    finally:
        is_over.set()
        master.close()
    return {"exchanges": exchanges, "invalid by its own count": invalid}
