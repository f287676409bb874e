"""The demo: its physics, its control law in two languages, its three runs, and its report."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rtloop_test_processes as processes

import rtloop
from rtloop.demo.cartpole import GAINS, CartPole
from rtloop.demo.physics import PARAMETERS, Plant, advance, energy, push
from rtloop.demo.plain import FORCE, STATE, PlainCartPole
from rtloop.demo.plant import PlantProcess, Report
from rtloop.demo.trial import KINDS, Trial, run_trial
from rtloop.stats.histogram import Histogram
from rtloop.system.grant import Grant

ROOT = Path(__file__).parents[2]
State = tuple[float, float, float, float]
Array = npt.NDArray[np.float64]
UPRIGHT: State = (0.0, 0.0, 0.0, 0.0)
START: State = (0.0, 0.0, PARAMETERS["start_rad"], 0.0)

# Give up the two privileges for good, then become the command line; where they are missing already nothing changes.
UNPRIVILEGED = """
import ctypes, os, resource, sys
libc = ctypes.CDLL(None)
for capability in (14, 23):  # CAP_IPC_LOCK, CAP_SYS_NICE
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
os.execv(sys.executable, [sys.executable, "-P", "-m", "rtloop", "demo", *sys.argv[1:]])
"""


def linear_model() -> tuple[Array, Array]:
    """Linearize the plant at the upright by central differences of its own step."""
    dt, h = 1e-5, 1e-4

    def rate(state: Array, force: float) -> Array:
        return (np.array(advance(state.tolist(), dt, force)) - state) / dt

    columns = [(rate(h * row, 0.0) - rate(-h * row, 0.0)) / (2 * h) for row in np.eye(4)]
    return np.array(columns).T, (rate(np.zeros(4), h) - rate(np.zeros(4), -h)) / (2 * h)


def closed_loop(seconds: float, period: float, delay: float, seed: int = 1) -> float:
    """Return the worst angle, in degrees, with the force sampled every period and acting after a delay."""
    step = 250e-6
    limit = PARAMETERS["max_force_n"]
    state, force, worst = START, 0.0, 0.0
    coming: deque[tuple[float, float]] = deque()
    for number in range(round(seconds / step)):
        now = number * step
        if number % round(period / step) == 0:
            coming.append((now + delay, float(np.dot(GAINS, state))))
        while coming and coming[0][0] <= now + 1e-9:
            force = min(max(coming.popleft()[1], -limit), limit)
        state = advance(state, step, force, push(seed, now))
        worst = max(worst, abs(state[2]))
        if worst > math.pi / 2:
            break
    return math.degrees(worst)


class TestPhysics:
    @pytest.mark.parametrize("angle", [0.0, math.pi])
    def test_upright_and_hanging_are_equilibria(self, angle: float) -> None:
        assert advance((0.3, 0.0, angle, 0.0), 0.01) == pytest.approx((0.3, 0.0, angle, 0.0), abs=1e-12)

    def test_energy_is_kept_in_free_motion(self) -> None:
        state: State = (0.0, 0.4, 1.0, -3.0)
        before = energy(state)
        for _ in range(20):
            state = advance(state, 0.1)
            assert energy(state) == pytest.approx(before, rel=1e-7)

    def test_the_work_of_a_force_is_the_energy_gained(self) -> None:
        state, work = (0.0, 0.0, 0.2, 0.0), 0.0
        before = energy(state)
        for _ in range(4000):
            x = state[0]
            state = advance(state, 1e-4, force=2.0)
            work += 2.0 * (state[0] - x)
        assert energy(state) - before == pytest.approx(work, rel=1e-9)

    def test_momentum_changes_by_the_force_alone(self) -> None:
        cart, pole, half = PARAMETERS["cart_kg"], PARAMETERS["pole_kg"], PARAMETERS["half_length_m"]
        _, v, angle, rate = advance((0.0, 0.0, 0.5, 0.0), 0.3, force=1.5)
        assert (cart + pole) * v + pole * half * rate * math.cos(angle) == pytest.approx(1.5 * 0.3, rel=1e-9)

    def test_left_and_right_are_alike(self) -> None:
        right = advance((0.1, 0.2, 0.3, 0.4), 0.2, force=1.0, push=0.5)
        left = advance((-0.1, -0.2, -0.3, -0.4), 0.2, force=-1.0, push=-0.5)
        assert left == pytest.approx([-value for value in right])

    def test_the_pole_falls_when_nobody_holds_it(self) -> None:
        assert abs(advance(START, 0.5)[2]) > PARAMETERS["trip_rad"]

    def test_a_push_to_the_right_tips_it_to_the_right(self) -> None:
        assert advance(UPRIGHT, 0.02, push=1.0)[2] > 0


class TestPushes:
    def test_the_same_seed_gives_the_same_pushes_and_another_others(self) -> None:
        times = [number * 0.01 for number in range(1000)]
        first = [push(1, t) for t in times]
        assert first == [push(1, t) for t in times]
        assert first != [push(2, t) for t in times]

    def test_pushes_keep_their_bounds(self) -> None:
        strongest, every, length = (PARAMETERS[name] for name in ("push_n", "push_every_s", "push_s"))
        assert all(push(1, t * 0.01) == 0 for t in range(round(every / 0.01)))
        for number in range(1, 200):
            assert strongest / 2 <= abs(push(1, number * every + length / 2)) <= strongest
            assert push(1, number * every + length * 1.01) == 0
        signs = [push(1, number * every) > 0 for number in range(1, 200)]
        assert 60 < sum(signs) < 140


class TestControlLaw:
    def test_the_gains_are_those_of_the_regulator(self) -> None:
        """They solve the Riccati equation for the weights written beside them."""
        a, b = linear_model()
        q, r = np.diag([10.0, 1.0, 100.0, 1.0]), 0.01
        values, vectors = np.linalg.eig(np.block([[a, -np.outer(b, b) / r], [-q, -a.T]]))
        stable = vectors[:, values.real < 0]
        riccati = (stable[4:] @ np.linalg.inv(stable[:4])).real
        assert -(b @ riccati) / r == pytest.approx(GAINS, rel=2e-3)

    def test_it_holds_the_pole_at_1_khz(self) -> None:
        assert closed_loop(5.0, period=0.001, delay=0.001) < 10

    def test_it_tolerates_the_delay_that_the_help_text_names_and_falls_at_the_other(self) -> None:
        delays = (0.001, 0.004, 0.010, 0.030, 0.035)
        clean, early, late, very_late, too_late = (closed_loop(5.0, period=0.001, delay=delay) for delay in delays)
        assert early < 1.03 * clean
        assert 1.3 * clean < late < very_late < 45 < too_late

    @pytest.mark.parametrize("path", ["docs/tutorials/run-the-demo.md", "rtloop/tools/demo/command.py"])
    def test_page_and_help_name_those_delays(self, path: str) -> None:
        words = " ".join((ROOT / path).read_text().split())
        assert "a delay of 4 ms does not matter" in words.lower() and "35 ms" in words

    def test_it_drops_the_pole_when_it_comes_late(self) -> None:
        """The known-wrong variant: the demo shows nothing if a late answer does no harm."""
        assert closed_loop(5.0, period=0.04, delay=0.02) > 45

    def test_cython_and_python_answer_alike(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plant:
            plant.bind(("127.0.0.1", 0))
            plant.settimeout(5.0)
            state = (0.1, -0.2, 0.03, 0.4)

            def answers(start: Any) -> list[tuple[int, float]]:
                """Collect an answer to nothing, and one to the newest of three states."""
                stop = start()
                try:
                    first, peer = plant.recvfrom(64)
                    for number, factor in enumerate((3.0, 2.0, 1.0), 1):
                        plant.sendto(STATE.pack(number, 100 * number, *(factor * value for value in state)), peer)
                    received = FORCE.unpack(first), (0, 0.0)
                    while received[1][0] != 300:
                        received = received[0], FORCE.unpack(plant.recv(64))
                    return list(received)
                finally:
                    stop()

            address = plant.getsockname()

            def start_compiled() -> Any:
                loop = CartPole("5ms", plant=address, policy="other", lock_memory="off", strict=False)
                loop.start()
                return loop.close

            def start_plain() -> Any:
                loop = PlainCartPole(5_000_000, plant=address)
                thread = threading.Thread(target=loop.run, args=(30.0,))
                thread.start()

                def stop() -> None:
                    loop.stop()
                    thread.join()

                return stop

            expected = [(0, 0.0), (300, pytest.approx(float(np.dot(GAINS, state))))]
            assert answers(start_compiled) == expected
            while True:  # what the first loop still sent is not the second one's
                plant.setblocking(False)
                try:
                    plant.recv(64)
                except BlockingIOError:
                    break
            plant.settimeout(5.0)
            assert answers(start_plain) == expected

    def test_a_plant_that_is_not_there_ends_the_loop(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            address = nobody.getsockname()
        loop = CartPole("1ms", plant=address, policy="other", lock_memory="off", strict=False)
        with pytest.raises(rtloop.CallbackError) as error:
            loop.run(duration="2s")
        assert error.value.code == -errno.ECONNREFUSED
        loop.close()


class TestPlainLoop:
    def test_it_accounts_for_every_release(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plant:
            plant.bind(("127.0.0.1", 0))
            loop = PlainCartPole(2_000_000, plant=plant.getsockname())
            loop.run(0.2)
        assert len(loop.records) + loop.missed == 100
        first = loop.records[0][0]
        for release, start, end in loop.records:
            assert release <= start <= end
            assert (release - first) / 0.002 == pytest.approx(round((release - first) / 0.002), abs=1e-6)

    def test_a_step_that_outlasts_the_run_misses_no_release_after_its_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = PlainCartPole(2_000_000, plant=("127.0.0.1", 9))
        monkeypatch.setattr(loop, "_step", lambda sock: time.sleep(0.05))
        loop.run(0.02)
        assert (len(loop.records), loop.missed, loop.overruns) == (1, 9, 1)


def test_a_run_has_as_many_releases_as_its_duration_says() -> None:
    """The loop ends by its own count: nobody who waits for the GIL beside the busy thread has to stop it in time."""
    trial = run_trial("rtloop", period_ns=5_000_000, duration_ns=500_000_000, seed=1)
    assert trial.releases == trial.cycles + trial.missed
    # An overrun in the last cycle may drop releases beyond the end.
    assert trial.releases == 100 or (trial.missed and trial.releases > 100)


def processes_with(argument: str) -> list[int]:
    """Return the plants that were started with an argument."""
    commands = {process: processes.read(process, "cmdline").split("\0") for process in processes.process_ids()}
    return [process for process, words in commands.items() if "rtloop.demo.plant" in words and argument in words]


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.02)


class TestPlantProcess:
    def test_the_pole_waits_in_the_hand_and_then_falls(self) -> None:
        with PlantProcess(600_000_000, seed=1) as plant, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5.0)
            sock.connect(plant.address)
            time.sleep(0.05)
            sock.send(FORCE.pack(0, 0.0))
            _, _, *first = STATE.unpack(sock.recv(64))
            assert first == pytest.approx(START)
            time.sleep(0.7)
            report = plant.finish()
        assert not report.stood
        assert report.fell_at_s is not None and 0.1 < report.fell_at_s < 0.5
        assert report.worst_angle_deg == pytest.approx(90.0)
        assert report.forces_received == 0  # the first one only lets go
        angles = report.trace["angle_deg"]
        assert len(angles) == pytest.approx(0.6 / report.trace["interval_s"], abs=1)
        assert angles == sorted(angles)

    def test_it_is_gone_afterwards(self) -> None:
        with PlantProcess(1_000_000_000, seed=424242421):
            assert processes_with("424242421")
        assert not processes_with("424242421")

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
    def test_the_demo_leaves_no_orphan(self, number: signal.Signals, code: int) -> None:
        seed = str(424242422 + (number == signal.SIGKILL))
        command = [sys.executable, "-P", "-m", "rtloop", "demo", "--duration", "30s", "--seed", seed]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as demo:
            try:
                wait_until(lambda: processes_with(seed))
                time.sleep(0.5)
                demo.send_signal(number)
                assert demo.wait(20) == code
            finally:
                demo.kill()
        wait_until(lambda: not processes_with(seed))


def test_json_of_a_degraded_run(tmp_path: Path) -> None:
    """Without privileges the demo runs all the same, and says what is missing."""
    pytest.importorskip("click", reason="the command line needs rtloop[cli]")
    command = [sys.executable, "-P", "-c", UNPRIVILEGED, "--duration", "500ms", "--json", "--seed", "5"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    document = json.loads(result.stdout)
    assert document["command"] == "demo" and document["seed"] == 5
    assert [run["kind"] for run in document["runs"]] == list(KINDS)
    for run in document["runs"]:
        assert run["period_ns"] == 1_000_000
        assert run["cycles"] > 0
        releases = run["cycles"] + run["missed"]
        assert releases == 500 or (run["missed"] and releases > 500), "an overrun in the last cycle may drop some more"
        assert run["duration_s"] > 0.45
        assert {"p50", "p90", "p99", "p99_9", "p99_99", "max", "mean"} == set(run["latency_ns"])
        assert set(run["page_faults"]) == {"minor", "major"}
        assert run["pole"]["stood"] == (run["pole"]["fell_at_s"] is None)
        assert run["pole"]["worst_angle_deg"] >= math.degrees(PARAMETERS["start_rad"]) - 1e-9
        assert run["hog_rounds"] > 0
    refused = [grant for run in document["runs"][1:] for grant in run["grants"] if not grant["ok"]]
    assert any(grant["name"] == "policy" and grant["fix"] for grant in refused)
    assert document["conclusion"]
    assert not list(tmp_path.iterdir())


def make_trial(kind: str, *, fell: float | None = None, worst: float = 5.0, cycles: int = 1000, **more: Any) -> Trial:
    report = Report(
        observed_s=0.95,
        fell_at_s=fell,
        worst_angle_deg=90.0 if fell else worst,
        oldest_state_ms=2.0,
        states_sent=950,
        forces_received=950,
        trace={"interval_s": 0.005, "position_m": [0.0] * 190, "angle_deg": [0.3 * n for n in range(190)]},
    )
    fields: dict[str, Any] = {
        "kind": kind,
        "period_ns": 1_000_000,
        "duration_s": 1.0,
        "cycles": cycles,
        "missed": 1000 - cycles,
        "overruns": 0,
        "latency": Histogram.from_values([50_000, 60_000, 70_000]),
        "page_faults": (3, 1),
        "hog_rounds": 1000,
        "pole": report,
        "grants": (),
    }
    return Trial(**(fields | more))


class TestWords:
    """The conclusion follows the figures, whichever way they fall out."""

    @pytest.fixture(autouse=True)
    def _needs_the_extra(self) -> None:
        pytest.importorskip("click", reason="the command line needs rtloop[cli]")

    def test_plain_falls(self) -> None:
        from rtloop.tools.demo.command import conclude

        text = conclude([make_trial("plain", fell=1.25, cycles=70), make_trial("rtloop"), make_trial("spin")])
        assert "reached 70 of 1,000 Hz" in text and "dropped the pole after 1.25 s" in text
        assert "missed nothing" in text and "held the pole within 5.0°" in text

    def test_plain_does_not_get_beyond_its_warm_up(self) -> None:
        from rtloop.tools.demo.command import conclude

        nothing = Histogram.from_values([])
        plain = make_trial("plain", fell=0.2, cycles=2, latency=nothing)
        text = conclude([plain, make_trial("rtloop"), make_trial("spin")])
        assert "reached 2 of 1,000 Hz, hardly ran at all and dropped the pole" in text
        assert set(plain.to_dict()["latency_ns"].values()) == {None}

    def test_all_stand(self) -> None:
        from rtloop.tools.demo.command import conclude

        text = conclude([make_trial(kind) for kind in KINDS])
        assert "the plain loop was good enough" in text

    def test_rtloop_falls_too(self) -> None:
        from rtloop.tools.demo.command import conclude

        text = conclude([make_trial("plain"), make_trial("rtloop", fell=0.5), make_trial("spin", fell=0.4)])
        assert "the plain loop reached 1,000 of 1,000 Hz" in text and "cannot hold the pole" in text

    def test_one_of_two_falls(self) -> None:
        from rtloop.tools.demo.command import conclude

        text = conclude([make_trial("plain"), make_trial("rtloop"), make_trial("spin", fell=0.4, cycles=990)])
        assert "rtloop: missed nothing, woke up to 70 us late and held the pole within 5.0°." in text
        assert 'rtloop, spin="auto": missed 10 of 1,000 releases' in text and "dropped the pole after 0.40 s." in text
        assert "either way" not in text

    def test_the_table_fits_a_terminal_and_names_the_fall(self) -> None:
        from rich.console import Console

        from rtloop.tools.demo.command import make_table

        trials = [make_trial("plain", fell=1.25, cycles=70), make_trial("rtloop"), make_trial("spin")]
        console = Console(file=StringIO(), width=80)
        console.print(make_table(trials, 1_000_000_000))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert max(len(line) for line in lines) <= 80
        assert len(lines) == 1 + 3 + 13 + 2 + 1  # title, head, rows, section lines, foot: nothing is wrapped
        assert any("fell at 1.25 s" in line for line in lines)
        figures = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in lines if line.startswith("│")}
        assert (figures["releases"], figures["cycles run"], figures["missed releases"]) == ("1,000", "70", "930")

    def test_a_refused_grant_is_shown_once_with_its_fix(self) -> None:
        from rich.console import Console

        from rtloop.tools.demo.command import _print_refused

        grants = (Grant("policy", "fifo", "other", False, "EPERM", "add a line [here]"), Grant("cpu", None, None, True))
        console = Console(file=StringIO(), width=80)
        _print_refused(console, [make_trial("rtloop", grants=grants), make_trial("spin", grants=grants)])
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert text.count("add a line [here]") == 1 and "cpu" not in text

    def test_a_refusal_is_folded_and_its_fix_can_be_pasted(self) -> None:
        from rich.console import Console

        from rtloop.tools.demo.command import _print_refused

        fix = "echo " + "word " * 30 + "end"
        console = Console(file=StringIO(), width=80)
        refused = Grant("policy", "fifo", "other", False, "why " * 50, fix)
        _print_refused(console, [make_trial("rtloop", grants=(refused,))])
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert "  " + fix in lines
        assert max(len(line) for line in lines if "echo" not in line) <= 80


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need rtloop[plot]")
    from rtloop.tools.demo.plot import draw_trials

    path = tmp_path / "demo.png"
    draw_trials([make_trial("plain", fell=0.5), make_trial("rtloop"), make_trial("spin")], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert os.path.getsize(path) > 10_000


def test_controller_and_plant_of_the_demo_can_be_simulated_as_they_are() -> None:
    """Over their real sockets, in virtual time: both take the time from the cycle."""

    class Bound(Plant):
        def setup(self) -> None:
            """Keep the socket whose port the controller knows."""

    seconds = 5
    plant = Bound("1kHz", duration_ns=seconds * 10**9, seed=3)
    Plant.setup(plant)
    controller = CartPole("1kHz", plant=("127.0.0.1", plant.port))
    try:
        rtloop.simulate([plant, controller], f"{seconds}s")
        report = plant.report()
    finally:
        plant.close()
        controller.close()
    assert report["fell_at_s"] is None and report["worst_angle_deg"] < 20
    assert report["forces_received"] > 4900 and report["oldest_state_ms"] <= 3
