"""The loops on the pages about hardware: they act on new data, arm in the first step, and leave at rest."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rtloop

ROOT = Path(__file__).parents[2]
QUIET = {"policy": "other", "lock_memory": "off", "dma_latency": None, "strict": False}


def code_of(page: str, *, with_class: str) -> str:
    """Return the block of a how-to page that defines a class."""
    text = (ROOT / "docs" / "how-to" / page).read_text()
    blocks = re.findall(r"^```cython\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if f"cdef class {with_class}(" in block and "cimport" in block)
    return str(block)


def replaced(code: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModuleType]:
    """Build code in a folder of its own, without optimisation: no figure is looked at."""

    def build(name: str, code: str) -> ModuleType:
        path = tmp_path_factory.mktemp("how_to") / f"{name}.pyx"
        path.write_text(code)
        return rtloop.build(path, flags=["-O0"])

    return build


@pytest.fixture
def example(built_example: Callable[[str], Path]) -> Callable[[str], ModuleType]:
    """Import the compiled module of an example, by its name."""

    def load(name: str) -> ModuleType:
        (path,) = built_example(name).glob("*.so")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class Device:
    """A device of doubles over UDP, on the other side of a loop."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(20)
        self.address = self.socket.getsockname()

    def meet(self) -> None:
        """Wait for the loop's greeting, and send to that address from now on."""
        greeting, peer = self.socket.recvfrom(64)
        assert greeting == b"hello"
        self.socket.connect(peer)

    def send(self, *values: float) -> None:
        for value in values:
            self.socket.send(struct.pack("d", value))

    def wake(self, number: float) -> None:
        """Send a state until it is answered: what comes before the loop's first wait is discarded."""
        limit = time.monotonic() + 60
        while -number not in self.rest():
            assert time.monotonic() < limit
            self.send(number)

    def answers(self, until: float) -> list[float]:
        """Return the answers up to one with that value, without those that command rest."""
        found: list[float] = []
        while not found or found[-1] != until:
            (value,) = struct.unpack("d", self.socket.recv(64))
            found += [value] if value != 0 else []
        return found

    def rest(self, seconds: float = 0.2) -> list[float]:
        """Return what arrives within that time."""
        found = []
        end = time.monotonic() + seconds
        while select.select([self.socket], [], [], max(0.0, end - time.monotonic()))[0]:
            found.append(struct.unpack("d", self.socket.recv(64))[0])
            if time.monotonic() > end + 1:
                break
        return found


@pytest.fixture
def device() -> Iterator[Device]:
    one = Device()
    with one.socket:
        yield one


#: The code of the page, which a loaded machine does not end by a second of silence.
PATIENT = replaced(
    code_of("be-paced-by-hardware.md", with_class="Follower"), ("self.silent < 50", "self.silent < 5000")
)


@pytest.fixture(scope="module")
def follower(build: Callable[..., ModuleType]) -> ModuleType:
    return build("follower", PATIENT)


@contextmanager
def running(module: ModuleType, script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a process of its own, with the module as `m`; it ends when its standard input is closed."""
    head = f"""
        import importlib.util, os, sys, rtloop
        spec = importlib.util.spec_from_file_location({module.__name__!r}, {module.__file__!r})
        m = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(m)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(head) + textwrap.dedent(script), *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        with child:
            yield child
            child.stdin.close()  # type: ignore[union-attr]
            assert child.wait(60) == 0
    finally:
        child.kill()


@contextmanager
def stopped(child: subprocess.Popen[str]) -> Iterator[None]:
    """Stop a process, and let it continue."""
    child.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
        time.sleep(0.001)
    try:
        yield
    finally:
        child.send_signal(signal.SIGCONT)


FOLLOW = f"""
    loop = m.Follower("1kHz", device=("127.0.0.1", int(sys.argv[1])), **{QUIET})
    ring = loop.log.ring
    with loop:
        sys.stdin.read()
    log = ring.drain()
    print(loop.behind, log["state"].tolist(), log["age"].tolist(), sep="\\n", flush=True)
"""


def report_of(child: subprocess.Popen[str]) -> tuple[int, list[float], list[int]]:
    """End the process, and return how often it was behind, the states it used, and their ages in ns."""
    out, _ = child.communicate(timeout=60)
    behind, states, ages = map(eval, out.splitlines())
    return behind, states, ages


class TestFollower:
    def test_what_queued_up_before_the_start_is_not_used(self, follower: ModuleType, device: Device) -> None:
        class Late(follower.Follower):  # type: ignore[misc,name-defined]
            def setup(self) -> None:
                super().setup()
                device.meet()
                device.send(*range(1, 101))

        with Late("1kHz", device=device.address, **QUIET):
            limit = time.monotonic() + 60
            answered: set[float] = set()
            while -101 not in answered and time.monotonic() < limit:
                device.send(101)
                answered |= set(device.rest())
        assert -101 in answered and answered <= {0, -101}

    def test_after_a_stop_one_cycle_is_up_to_date(self, follower: ModuleType, device: Device) -> None:
        with running(follower, FOLLOW, device.address[1]) as child:
            device.meet()
            device.wake(1)
            with stopped(child):
                device.send(*range(2, 102))
                time.sleep(0.1)
            assert device.answers(until=-101) == [-101]
            device.send(102)
            device.answers(until=-102)
            behind, states, ages = report_of(child)
        assert behind == 0
        assert set(states[:-2]) == {1} and states[-2:] == [101, 102], states
        assert ages[-2] >= 100e6, "the log has the age of what was used"
        assert all(age >= 0 for age in ages)

    def test_a_slow_step_is_not_late_by_the_whole_queue(self, build: Callable[..., ModuleType], device: Device) -> None:
        slow = replaced(
            PATIENT,
            ("cdef enum:\n", 'cdef extern from "<unistd.h>" nogil:\n    int usleep(unsigned us)\n\ncdef enum:\n'),
            ("        self.log.sample(cycle)\n", "        self.log.sample(cycle)\n        usleep(5000)\n"),
        )
        with build("slow_follower", slow).Follower("1kHz", device=device.address, **QUIET) as loop:
            device.meet()
            device.wake(1000)
            for number in range(1, 301):
                device.send(number)
                time.sleep(0.001)
                while select.select([device.socket], [], [], 0)[0]:
                    device.socket.recv(64)
            answers = device.answers(until=-300)
            assert len(answers) <= 3, "one that was being computed, one or two that were newer"
        assert loop.behind == 0

    def test_a_queue_above_the_bound_is_reported(self, build: Callable[..., ModuleType], device: Device) -> None:
        code = replaced(PATIENT, ("QUEUE = 1024", "QUEUE = 10"))
        with running(build("bounded_follower", code), FOLLOW, device.address[1]) as child:
            device.meet()
            device.wake(1)
            with stopped(child):
                device.send(*range(2, 97))
            assert device.answers(until=-96) == [*range(-11, -100, -10), -96]
            behind, _, _ = report_of(child)
        assert behind == 9

    @pytest.mark.parametrize("end", ["stop", "silence"])
    def test_the_last_command_is_rest(self, build: Callable[..., ModuleType], device: Device, end: str) -> None:
        patience = "< 5000" if end == "stop" else "< 5"
        code = replaced(PATIENT, ("< 5000", patience))
        loop = build(f"{end}ped_follower", code).Follower("1kHz", device=device.address, **QUIET)
        loop.start()
        device.meet()
        device.send(*[5.0] * 3)
        if end == "stop":
            device.wake(5)
            device.send(6)
            device.answers(until=-6)
            loop.stop()
        assert loop.join("30s")
        assert device.rest()[-1] == 0
        assert loop.state == "stopped"


WAIT = f"""
    loop = m.Waiter("2ms", patience=10**6, **{QUIET})
    with loop:
        print(loop.address[1], flush=True)
        sys.stdin.read()
    log = loop.log.drain()
    print(loop.behind, log["number"].tolist(), log["age"].tolist(), sep="\\n", flush=True)
"""


class TestPaced:
    """The same of examples/paced."""

    @pytest.mark.parametrize("kind", ["Waiter", "Follower"])
    def test_what_queued_up_before_the_start_is_not_used(self, example: Callable[[str], ModuleType], kind: str) -> None:
        paced = example("paced")
        settings = {"patience": 10**6} if kind == "Waiter" else {"delay": 0}
        loop = getattr(paced, kind)("2ms", **settings, **QUIET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sensor:
            for number in range(1, 101):
                sensor.sendto(struct.pack("Qqd", number, 0, 0.5), loop.address)
            with loop:
                limit = time.monotonic() + 20
                used: set[int] = set()
                while 101 not in used and time.monotonic() < limit:
                    sensor.sendto(struct.pack("Qqd", 101, 0, 0.5), loop.address)
                    used |= set(loop.log.drain()["number"].tolist())
                    time.sleep(0.01)
        assert 101 in used and used <= {0, 101}

    def test_after_a_stop_one_cycle_is_up_to_date(self, example: Callable[[str], ModuleType]) -> None:
        with running(example("paced"), WAIT) as child, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sensor:
            sensor.connect(("127.0.0.1", int(child.stdout.readline())))  # type: ignore[union-attr]

            def send(number: int) -> None:
                sensor.send(struct.pack("Qqd", number, time.monotonic_ns(), 0.5))

            for _ in range(10):
                send(1)
                time.sleep(0.05)
            with stopped(child):
                for number in range(2, 102):
                    send(number)
                time.sleep(0.1)
            time.sleep(0.2)
            send(102)
            time.sleep(0.2)
            behind, numbers, ages = report_of(child)
        assert behind == 0
        assert set(numbers) <= {0, 1, 101, 102}
        assert ages[numbers.index(101)] >= 100e6


def test_the_arm_s_first_answer_is_to_the_newest_state(example: Callable[[str], ModuleType]) -> None:
    module = example("robot_arm")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as robot:
        robot.bind(("127.0.0.1", 0))
        robot.settimeout(20)

        def send(*numbers: int) -> None:
            for number in numbers:
                robot.send(struct.pack("3q14d", number, time.monotonic_ns(), 1, *[0.0] * 14))

        class Late(module.Arm):  # type: ignore[misc,name-defined]
            def setup(self) -> None:
                super().setup()
                greeting, peer = robot.recvfrom(128)
                assert not any(greeting), "it arms nothing"
                robot.connect(peer)
                send(*range(1, 201))

        with Late("1kHz", robot=robot.getsockname(), patience=10**6, **QUIET) as arm:
            number = 201
            while not select.select([robot], [], [], 0.1)[0]:
                send(number)  # a newer one each time
                number += 1
            answers, last, *_ = struct.unpack("2q7d", robot.recv(128))
            assert answers > 200 and last == 0
        while select.select([robot], [], [], 0.1)[0]:
            answers, last, *_ = struct.unpack("2q7d", robot.recv(128))
        assert last == 1, "leave has the brakes applied"
        assert arm.behind == 0


def test_the_serial_port_gets_rest_as_its_last_frame(build: Callable[..., ModuleType]) -> None:
    module = build("serial_port", code_of("talk-to-hardware.md", with_class="Serial"))
    master, slave = os.openpty()
    tty.setraw(master)
    loop = module.Serial("1kHz", path=os.ttyname(slave), **QUIET)
    try:
        with loop:
            os.write(master, struct.pack("d", 0.25))
            received = b""
            while struct.pack("d", -0.25) not in received:
                received += os.read(master, 4096)
            os.write(master, struct.pack("d", 0.5)[:5])  # half a frame is not a value
            time.sleep(0.01)
            os.write(master, struct.pack("d", 0.5)[5:])
            while struct.pack("d", -0.5) not in received:
                received += os.read(master, 4096)
        while select.select([master], [], [], 0.2)[0]:
            received += os.read(master, 4096)
        values = np.frombuffer(received, "f8")  # whole frames only
        assert set(values) == {0, -0.25, -0.5} and values[-1] == 0
        assert loop.frames == 2
    finally:
        os.close(master)
        os.close(slave)


def test_the_serial_port_gets_rest_when_its_buffer_was_full(build: Callable[..., ModuleType]) -> None:
    """Nobody reads while the loop runs: frames are dropped, but none is cut, and the last one is still rest."""
    code = code_of("talk-to-hardware.md", with_class="Serial")
    module = build("full_port", replaced(code, ("self.silent > 100", "self.silent > 100_000")))
    master, slave = os.openpty()
    tty.setraw(master)
    loop = module.Serial("5kHz", path=os.ttyname(slave), **QUIET)
    try:
        os.write(master, struct.pack("d", 0.25))
        loop.start()  # which discards what was there
        os.write(master, struct.pack("d", 0.5))
        time.sleep(1.0)
        received = b""
        thread = threading.Thread(target=loop.stop)  # leave waits until there is room
        thread.start()
        while thread.is_alive() or select.select([master], [], [], 0.2)[0]:
            if select.select([master], [], [], 0.01)[0]:
                received += os.read(master, 4096)
        thread.join()
        values = np.frombuffer(received, "f8")
        assert set(values) == {0, -0.5} and values[-1] == 0
    finally:
        os.close(master)
        os.close(slave)


def frame(identifier: int, data: bytes) -> bytes:
    return struct.pack("<IB3x8s", identifier, len(data), data)


def test_the_drive_on_can_is_started_by_the_first_step_and_stopped_by_leave(build: Callable[..., ModuleType]) -> None:
    """A pair of sockets plays the bus: a machine that tests need not have CAN."""
    code = replaced(
        code_of("talk-to-hardware.md", with_class="Drive"),
        ("socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)", "self.interface"),
        ("        self.socket.bind((self.interface,))\n", ""),
    )
    module = build("can_drive", code)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        there.settimeout(20)

        class Late(module.Drive):  # type: ignore[misc,name-defined]
            def setup(self) -> None:
                super().setup()
                assert not select.select([there], [], [], 0.2)[0], "nothing is sent before the first step"

        with Late("1kHz", interface=here, **QUIET):
            assert there.recv(16) == frame(0, b"\x01\x01")  # start node 1
            there.send(frame(0x181, struct.pack("<i", 10_000)))
            wanted = frame(0x201, struct.pack("<h", -10))
            while there.recv(16) != wanted:
                pass
        frames = []
        while select.select([there], [], [], 0)[0]:
            frames.append(there.recv(16))
        assert frames[-2:] == [frame(0x201, b"\0\0"), frame(0, b"\x02\x01")]

        loop = module.Drive("1kHz", interface=here, **QUIET)
        loop.start()
        there.setblocking(True)
        received: list[bytes] = []

        def drain() -> None:
            while received[-1:] != [frame(0, b"\x02\x01")]:
                received.append(there.recv(16))

        drain()  # it ends by itself: the drive has sent nothing for 100 cycles
        assert loop.join("20s")
        assert received[-2] == frame(0x201, b"\0\0")


def test_two_loops_with_a_phase_send_at_the_release_and_read_later(
    build: Callable[..., ModuleType], device: Device
) -> None:
    module = build("two_instants", code_of("talk-to-hardware.md", with_class="Sender"))
    text = (ROOT / "docs" / "how-to" / "talk-to-hardware.md").read_text()
    assert 'Reader("1kHz", sender=sender, phase="200us", name="reader")' in text
    sender = module.Sender("1kHz", device=device.address, name="sender")
    reader = module.Reader("1kHz", sender=sender, phase="200us", name="reader")
    sent: list[float] = []

    def plant(cycle: rtloop.Cycle) -> None:
        """Answer what has arrived with a state of 3; called before the reader's step, after the sender's."""
        while select.select([device.socket], [], [], 0)[0]:
            data, peer = device.socket.recvfrom(64)
            sent.append(struct.unpack("d", data)[0])
            device.socket.sendto(struct.pack("d", 3.0), peer)

    stats = rtloop.simulate([sender, rtloop.PyLoop(plant, "1kHz", phase="100us", name="device"), reader], "50ms")
    while select.select([device.socket], [], [], 0)[0]:
        sent.append(struct.unpack("d", device.socket.recv(64))[0])
    releases = {name: one.records["release"] for name, one in zip(("sender", "device", "reader"), stats, strict=True)}
    assert np.all(releases["reader"] - releases["sender"] == 200_000)
    assert sent[0] == 0 and set(sent[1:-1]) == {-1.5}, "computed in one cycle, sent at the next release"
    assert sent[-1] == 0, "from leave"
    assert reader.unanswered == 0


def test_the_sender_sends_rest_when_the_reader_is_gone(build: Callable[..., ModuleType], device: Device) -> None:
    module = build("one_instant", code_of("talk-to-hardware.md", with_class="Sender"))
    sender = module.Sender("1kHz", device=device.address, **QUIET)
    sender.command.write(7.0)
    sender.start()
    values: list[float] = []
    while values[-3:] != [0, 0, 0]:
        values.append(struct.unpack("d", device.socket.recv(64))[0])
    sender.stop()
    assert set(values) <= {0, 7}


def test_the_unit_of_the_docs_lets_leave_run(tmp_path: Path, built_example: Callable[[str], Path]) -> None:
    """Send what systemd would send to a program that has no handler of its own."""
    text = (ROOT / "docs" / "how-to" / "get-privileges.md").read_text()
    (unit,) = (b for b in re.findall(r"^```ini\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) if "[Service]" in b)
    entries = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    main = f"""
import sys
sys.path.insert(0, {str(built_example("pid_motor"))!r})
from pid_motor import Motor
import atexit
loop = Motor("1kHz", **{QUIET})
atexit.register(lambda: print("voltage", loop.voltage, flush=True))
loop.parameters.update(kp=10.0, ki=40.0, kd=0.15, setpoint=1.0)
loop.start()
print("started", flush=True)
loop.join()
"""
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", main], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    time.sleep(0.5)  # the load on its shaft now needs a voltage
    child.send_signal(getattr(signal, entries.get("KillSignal", "SIGTERM")))
    out, _ = child.communicate(timeout=float(entries["TimeoutStopSec"]) + 20)
    assert out == "voltage 0.0\n"


def loops_that_move_something() -> list[tuple[str, str, str]]:
    """Return page or file, name and code of each loop class of docs and examples."""
    found = []
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = [(path, text) for path in pages for text in re.findall(r"```cython\n(.*?)```", path.read_text(), re.DOTALL)]
    texts += [(path, path.read_text()) for path in sorted((ROOT / "examples").glob("*/*.pyx"))]
    texts += [(path, path.read_text()) for path in (ROOT / "rtloop" / "demo").glob("*.pyx")]
    for path, text in texts:
        for part in re.split(r"^(?=cdef class )", text, flags=re.MULTILINE)[1:]:
            name, base = re.match(r"cdef class (\w+)(?:\((\w+)\))?", part).groups()  # type: ignore[union-attr]
            if base in ("RTLoop", "Listener"):
                found.append((f"{path.relative_to(ROOT)}:{name}", name, part))
    return found


#: Simulated devices and sensors: they have no actuator, they are what is actuated.
DEVICES = {"Robot", "Sensor", "Plant", "Controlled"}
MOVES = re.compile(
    r"\b(send|write)\(self\.(fd|ready)|self\.(voltage|output|motor\.\w+|plant\.force) = |self\.command\("
)


@pytest.mark.parametrize(
    ("where", "code"),
    [(w, c) for w, n, c in loops_that_move_something() if MOVES.search(c) and n not in DEVICES],
    ids=lambda value: value if ":" in value and "\n" not in value else "",
)
def test_every_loop_that_moves_something_has_a_leave_and_arms_in_step(where: str, code: str) -> None:
    assert "cdef void leave(self) noexcept nogil:" in code, where
    entered = re.search(r"cdef int enter\(self\).*?(?=\n    (?:cdef|def|@)|\Z)", code, re.DOTALL)
    assert entered is None or not re.search(r"send|write|command|switch_on|voltage", entered[0]), where


def test_the_loops_that_move_something_are_found() -> None:
    found = {where for where, name, code in loops_that_move_something() if MOVES.search(code) and name not in DEVICES}
    assert len(found) >= 12
    assert {"docs/how-to/be-paced-by-hardware.md:Follower", "rtloop/demo/cartpole.pyx:CartPole"} <= found


def test_the_drives_of_the_examples_have_no_voltage_after_the_end(built_example: Callable[[str], Path]) -> None:
    script = f"""
import sys
sys.path[:0] = {[str(built_example(name)) for name in ("pid_motor", "cascade", "watchdog", "cut_link")]!r}
from rtloop import LoopGroup
import pid_motor, cascade, watchdog, cut_link
quiet = {QUIET}
motor = pid_motor.Motor("1kHz", **quiet)
motor.parameters.update(kp=10.0, ki=40.0, kd=0.0, setpoint=1.0)
motor.run("200ms")
current = cascade.Current("2kHz", name="current", **quiet)
velocity = cascade.Velocity("1kHz", current, name="velocity", **quiet)
planning = cascade.Planning("100Hz", current, velocity, name="planning", **quiet)
LoopGroup([current, velocity, planning]).run("200ms")
turned = watchdog.Motor()
drive = watchdog.Drive("1kHz", motor=turned, silent_at=10**9, name="drive", **quiet)
brake = watchdog.Brake("1kHz", motor=turned, name="brake", **quiet)
LoopGroup([drive, brake]).run("200ms")
actuator = cut_link.Actuator("1kHz", max_age=10**12, **quiet)
actuator.setpoint.write(3.0)
actuator.run("100ms")
print(dict(motor=motor.voltage, current=current.voltage, asked=velocity.setpoint.read()["value"].item(),
           current_asked=current.setpoint.read()["value"].item(), drive=turned.state[0], actuator=actuator.output,
           ran=bool(motor.signals.read()["voltage"].any() and actuator.log.drain()["output"].any())))
"""
    out = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert out.returncode == 0, out.stderr
    done = eval(out.stdout)
    assert done.pop("ran") is True
    assert set(done.values()) == {0.0}, done
