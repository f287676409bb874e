"""Loops of other processes: finding them, reading their Stats, and noticing that they have ended."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rtloop
from rtloop.telemetry.task import Task

PLAIN = {"policy": "other", "lock_memory": "off", "dma_latency": None, "record": 256}
Start = Callable[..., "subprocess.Popen[str]"]

PROLOGUE = f"""
import os, signal, sys, threading, time, warnings
import rtloop
warnings.simplefilter("ignore")
def start(name, period="2ms", kind=rtloop.RTLoop, **settings):
    loop = kind(period, name=name, **{{**{PLAIN!r}, **settings}})
    loop.start()
    return loop
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Python code in a process of its own, which waits after it; returns once the code has run."""
    processes = []

    def run(code: str) -> subprocess.Popen[str]:
        text = f"{PROLOGUE}\n{textwrap.dedent(code)}\nprint('up', flush=True)\nsys.stdin.readline()\n"
        process = subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline().split()
        assert line and line[-1] == "up"
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def eventually(condition: Callable[[], object]) -> bool:
    """Whether it comes true within a few seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


GROUPS = """
groups = []
for group, names in {"arm": ("motor", "camera"), "leg": ("motor",)}.items():
    groups.append(rtloop.LoopGroup(
        [rtloop.RTLoop("2ms", name=name, **{**PLAIN, "record": 0}) for name in names], name=group))
    groups[-1].start()
"""


@pytest.fixture
def grouped(start: Start) -> int:
    """A process with the loops arm/motor, arm/camera and leg/motor; returns its number."""
    return start(f"PLAIN = {PLAIN!r}\n{GROUPS}").pid


def test_a_loop_of_a_group_is_found_by_the_name_that_top_shows(grouped: int) -> None:
    for name in ("arm/motor", "leg/motor"):
        stats = rtloop.attach(pid=grouped, name=name)
        assert f"{stats.settings['group']}/{stats.name}" == name
        with rtloop.connect(name, grouped) as loop:
            assert (loop.name, loop.label) == ("motor", name)
        assert [reader.label for reader in rtloop.running(grouped, name)] == [name]
    assert rtloop.attach(pid=grouped, name="camera").settings["group"] == "arm"
    assert len(rtloop.running(grouped, "motor")) == 2


def test_a_name_that_loops_of_two_groups_have_is_refused_with_their_whole_names(grouped: int) -> None:
    with pytest.raises(
        rtloop.AttachError, match=r"2 loops match, 'arm/motor' in process \d+, 'leg/motor' in"
    ) as raised:
        rtloop.attach(pid=grouped, name="motor")
    assert "choose one with pid= and name=" in str(raised.value)
    with pytest.raises(rtloop.AttachError, match="no such loop is running; running in that process: 'arm/camera' in"):
        rtloop.connect("leg/camera", grouped)


def test_top_and_the_shell_know_a_loop_by_the_name_of_its_group_too(grouped: int) -> None:
    from rtloop.tools.options import complete_loop
    from rtloop.tools.top.sampler import Sampler

    rows = Sampler(grouped, "leg/motor").sample().rows
    assert [row.label for row in rows] == ["leg/motor"]
    assert len(Sampler(grouped, "motor").sample().rows) == 2
    none: Any = None
    assert {"arm/motor", "leg/motor"} <= set(complete_loop(none, none, ""))
    assert complete_loop(none, none, "leg/") == ["leg/motor"]


def test_attach_gives_the_stats_of_a_loop_in_another_process(start: Start) -> None:
    process = start("loop = start('far', '2ms', overrun='shift', max_burst=3)")
    assert eventually(lambda: rtloop.attach(pid=process.pid).latency.count > 20)
    stats = rtloop.attach(pid=process.pid)
    assert isinstance(stats, rtloop.Stats)
    assert (stats.name, stats.state) == ("far", "running")
    assert stats.settings["period_ns"] == 2_000_000
    assert stats.settings["overrun"] == "shift" and stats.settings["max_burst"] == 3
    assert stats.latency.count == stats.cycles - stats.warmup == stats.response.count
    assert {"telemetry", "stack", "policy"} <= {grant.name for grant in stats.grants}
    assert 20 < len(stats.records) <= 256
    assert (stats.records["release"][1:] > stats.records["release"][:-1]).all()
    assert rtloop.attach(pid=process.pid, name="far").cycles >= stats.cycles


def test_stats_of_another_process_print_save_and_load(start: Start, tmp_path: Path) -> None:
    process = start("loop = start('far')")
    stats = rtloop.attach(pid=process.pid, name="far")
    assert "far: 500 Hz" in str(stats) and "used of" not in str(stats) and "forks" not in str(stats)
    assert rtloop.Stats.load(stats.save(tmp_path / "far")) == stats
    assert stats.forks is None and stats.stack.high_water is None


def test_a_loop_with_a_wait_of_its_own_is_told_as_such(start: Start, probe_path: Path) -> None:
    process = start(f"""
    sys.path.insert(0, {str(probe_path)!r})
    import probes
    loop = start("paced", kind=probes.Paced)
    """)
    assert rtloop.attach(pid=process.pid).has_own_wait


def test_a_loop_of_this_process_is_found_as_well() -> None:
    with rtloop.RTLoop("2ms", name="near", **PLAIN):
        assert rtloop.attach(pid=os.getpid()).name == "near"
        assert rtloop.attach(pid=os.getpid(), name="near").settings["period_ns"] == 2_000_000
    with pytest.raises(rtloop.AttachError, match="no such loop is running"):
        rtloop.attach(pid=os.getpid())


def test_a_file_that_the_program_has_twice_is_one_loop() -> None:
    with rtloop.RTLoop("2ms", name="twice", **PLAIN):
        (reader,) = rtloop.running(name="twice")
        other = os.dup(reader.file.fd)
        try:
            assert "rtloop:twice" in os.readlink(f"/proc/self/fd/{other}")
            assert len(rtloop.running(name="twice")) == 1
        finally:
            os.close(other)


def test_several_that_match_are_listed(start: Start) -> None:
    process = start("a, b = start('left'), start('right')")
    with pytest.raises(rtloop.AttachError) as told:
        rtloop.attach(pid=process.pid)
    assert f"'left' in process {process.pid}, 'right' in process {process.pid}" in str(told.value)
    assert "name=" in str(told.value)
    assert rtloop.attach(pid=process.pid, name="right").name == "right"


def test_two_of_one_name_in_a_process_need_names_of_their_own(ordinary: dict[str, Any]) -> None:
    one, other = (rtloop.RTLoop("1ms", name="twin", **ordinary) for _ in range(2))
    refused = pytest.raises(rtloop.AttachError, match=r"2 loops match, .*: give each loop its own name=")
    with one, other, refused:
        rtloop.attach(os.getpid(), "twin")


def test_none_that_matches_lists_what_runs(start: Start) -> None:
    process = start("loop = start('there')")
    with pytest.raises(rtloop.AttachError, match=f"'there' in process {process.pid}"):
        rtloop.attach(pid=process.pid, name="elsewhere")
    with pytest.raises(rtloop.AttachError, match="name='elsewhere'"):
        rtloop.attach(name="elsewhere")
    assert issubclass(rtloop.AttachError, LookupError)


def test_a_process_that_does_not_exist_is_said_so() -> None:
    with pytest.raises(rtloop.AttachError, match=r"pid=4194999: there is no such process"):
        rtloop.attach(pid=4194999)


@pytest.mark.parametrize("pid", [0, -1, True, "7", 1.5])
def test_a_pid_that_cannot_be_is_refused(pid: Any) -> None:
    with pytest.raises(rtloop.ConfigError, match="pid="):
        rtloop.attach(pid=pid)


def test_a_reader_reads_again_and_again(start: Start) -> None:
    start("loop = start('again')")
    (reader,) = rtloop.running(name="again")
    with reader:
        first = reader.stats
        assert eventually(lambda: reader.stats.cycles > first.cycles + 10)
        assert len(reader.read(records=5).records) == 5
        assert len(reader.read(records=False).records) == 0
        assert reader.last_cpu in range(os.cpu_count() or 1)
        assert abs(reader.started_ns - time.time_ns()) < 60e9
        assert reader.policy == "other"
    reader.close()
    with pytest.raises(rtloop.StateError, match="closed"):
        reader.read()
    assert "closed" in repr(reader)


def test_a_reset_begins_the_figures_anew(start: Start) -> None:
    process = start("""
    loop = start("reset")
    signal.signal(signal.SIGUSR1, lambda *_: loop.reset_stats())
    """)
    (reader,) = rtloop.running(name="reset")
    assert eventually(lambda: reader.stats.cycles > 200)
    before = reader.stats.cycles
    process.send_signal(signal.SIGUSR1)
    assert eventually(lambda: reader.stats.cycles < before)


def test_a_loop_that_stops_is_known_to_have_stopped(start: Start) -> None:
    process = start("""
    loop = start("stops")
    signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
    """)
    (reader,) = rtloop.running(name="stops")
    assert eventually(lambda: reader.stats.cycles > 0) and reader.state == "running"
    process.send_signal(signal.SIGUSR1)
    assert eventually(lambda: reader.state == "stopped")
    assert reader.stats.state == "stopped" and reader.stats.cycles > 0
    assert rtloop.running(pid=process.pid) == []


def test_a_loop_that_fails_is_known_to_have_failed(start: Start, probe_path: Path) -> None:
    process = start(f"""
    sys.path.insert(0, {str(probe_path)!r})
    import probes
    loop = start("fails", kind=probes.Probe)
    def fail(*_):
        loop.fail_at = loop.steps + 3
    signal.signal(signal.SIGUSR1, fail)
    """)
    (reader,) = rtloop.running(name="fails")
    process.send_signal(signal.SIGUSR1)
    assert eventually(lambda: reader.state == "failed")
    assert reader.last_cpu is None


def test_a_killed_loop_disappears_and_its_last_figures_stay_readable(start: Start) -> None:
    process = start("loop = start('killed')")
    (reader,) = rtloop.running(name="killed")
    assert eventually(lambda: reader.stats.cycles > 10)
    process.kill()
    process.wait()
    assert eventually(lambda: reader.state == "died")
    assert rtloop.running(name="killed") == []
    stats = reader.read()
    assert stats.cycles > 10 and stats.state == "died"
    assert stats.page_faults == (None, None), "nobody can tell any more"
    with pytest.raises(rtloop.AttachError, match="no such process"):
        rtloop.attach(pid=process.pid)


def test_a_zombie_runs_nothing(start: Start) -> None:
    process = start("loop = start('zombie')")
    (reader,) = rtloop.running(name="zombie")
    process.kill()  # and not waited for
    assert eventually(lambda: reader.state == "died")
    assert rtloop.running(name="zombie") == []


def test_a_forked_child_does_not_run_its_parents_loop(start: Start) -> None:
    process = start("""
    loop = start("parent")
    child = os.fork()
    if not child:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        signal.pause()
    time.sleep(0.2)
    """)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    try:
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{child}/fd")]
        assert any("rtloop:parent" in link for link in links), "the child has the file, too"
        assert len(os.listdir(f"/proc/{child}/task")) > 1
        assert [loop.pid for loop in rtloop.running(name="parent")] == [process.pid]
        assert rtloop.running(pid=child) == []
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_full_name_is_told_even_where_the_header_is_too_short_for_it(start: Start) -> None:
    name = "a name of umlauts, ÄÖÜ, and of more than the sixty-three bytes " + "x" * 200
    start(f"loop = start({name!r})")
    assert rtloop.attach(name=name).name == name


def test_nothing_is_held_after_an_attach(start: Start) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd:rtloop")

    process = start("loop = start('held')")
    rtloop.attach(pid=process.pid, name="held")
    before = held()
    for _ in range(20):
        rtloop.attach(pid=process.pid, name="held")
        with pytest.raises(rtloop.AttachError):
            rtloop.attach(name="nobody")
    assert held() == before


def test_attach_loads_late(script: Callable[..., Any]) -> None:
    done = script("""
    import sys, rtloop
    assert "rtloop.telemetry.attach" not in sys.modules and "json" not in sys.modules
    rtloop.attach
    assert "rtloop.telemetry.attach" in sys.modules
    """)
    assert done.returncode == 0, done.stderr


def test_a_process_without_numbers_in_proc_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtloop.telemetry import scan as module

    def no_proc() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc")

    monkeypatch.setattr(module, "processes", no_proc)
    with pytest.raises(rtloop.AttachError, match="found through /proc"):
        rtloop.running()


def test_a_thread_that_has_just_vanished_is_an_error_and_nothing_more(monkeypatch):
    """Its object is half made then, and its end must not print an exception of its own."""
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    with pytest.raises(FileNotFoundError):
        Task(2**22 + 5, 2**22 + 5)
    gc.collect()
    assert not told
