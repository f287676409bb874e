"""``rtloop run``: from a .pyx to figures in one line, and the message for each mistake."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rtloop
from rtloop.tools.cli import main

pytest.importorskip("click", reason="the command line needs rtloop[cli]")
pytest.importorskip("rich", reason="the command line needs rtloop[cli]")

#: What every user on every machine may run.
EASY = ["--policy", "other", "--lock", "off", "-p", "dma_latency=none"]
SERVO = """\
from rtloop cimport RTLoop, Cycle, RT_CONTINUE, RT_STOP

cdef class Servo(RTLoop):
    cdef public int fail_at, end_at
    cdef double gain

    def __init__(self, period, *, double gain=1.0, **settings):
        super().__init__(period, **settings)
        self.gain = gain

    def setup(self):
        if self.gain < 0:
            raise OSError("no motor here")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if self.fail_at and <int>cycle.index == self.fail_at:
            return -5
        return RT_STOP if self.end_at and <int>cycle.index == self.end_at else RT_CONTINUE
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a servo and a cache of its own, so that the servo is compiled once for all tests."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "servo.pyx").write_text(SERVO)
    yield folder
    sys.modules.pop("servo", None)


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(place / "cache"))
    monkeypatch.setenv("CFLAGS", "-O0")


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["run", *args])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_one_line_compiles_runs_and_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = tmp_path / "out.npz"
    assert run("servo.pyx:Servo", *EASY, "--cycles", "20", "-p", "gain=2.0", "--record", str(record)) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Servo-") and "20 cycles" in said.out and "wake-up latency" in said.out
    assert f"wrote {record}" in said.err
    assert re.search(r"^compiled in \d+\.\d s by \w+", said.err, re.MULTILINE)
    stats = rtloop.Stats.load(record)
    assert (stats.cycles, len(stats.records), stats.state) == (20, 20, "stopped")
    assert run("servo.pyx", *EASY, "--cycles", "3") == 0, "the class need not be named where it is the only one"
    assert "compiled in" not in capsys.readouterr().err


def test_the_loop_may_end_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("servo.pyx", *EASY, "-p", "end_at=9") == 0
    assert "10 cycles" in capsys.readouterr().out


def test_json_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("servo.pyx", *EASY, "--duration", "30ms", "--rate", "500Hz", "--name", "arm", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["command"], document["target"], document["outcome"]) == ("run", "servo.pyx", "clean")
    assert (document["error"], document["exit_code"]) == (None, 0)
    assert document["stats"]["name"] == "arm"
    stats = document["stats"]
    releases = stats["cycles"] + stats["missed"]  # the last cycle, too, may be so late that it misses some
    assert releases == 15 or (releases > 15 and stats["overruns"] > 0)


def test_a_failed_loop_is_exit_code_1_and_has_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("servo.pyx", *EASY, "-p", "fail_at=7") == 1
    said = capsys.readouterr()
    assert "8 cycles" in said.out and "failed" in said.out
    assert "The loop failed: Servo-" in said.err and "returned -5 in cycle 7 (-EIO" in said.err
    assert run("servo.pyx", *EASY, "-p", "fail_at=7", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["outcome"], document["exit_code"], document["stats"]["cycles"]) == ("failed", 1, 8)
    assert "returned -5" in document["error"]


def test_what_setup_raises_is_shown_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("servo.pyx", *EASY, "-p", "gain=-1") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "The loop did not start: Traceback" in said.err
    assert 'File "servo.pyx", line 13, in servo.Servo.setup\n    raise OSError("no motor here")' in said.err
    assert "rtloop/tools" not in said.err


#: Late cycles cannot be found in ten timestamps, by no user.
REFUSED = ["--explain", "-p", "record=10", "--lock", "off", "-p", "dma_latency=none", "--policy", "other",
           "--cycles", "5"]  # fmt: skip


def test_without_strict_it_runs_and_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("servo.pyx", *REFUSED) == 0
    said = capsys.readouterr()
    assert "5 cycles" in said.out
    assert "The loop ran degraded. What is missing:\nexplain: asked for" in said.err and "How to fix" in said.err
    assert said.err.index("explain: asked for") < said.err.index("The loop ran degraded"), "and before the first cycle"
    assert "-p record=200 at least" in said.err, "--record FILE is something else"


def test_with_strict_a_refused_grant_is_exit_code_3_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("servo.pyx", *REFUSED, "--strict") == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "The loop did not start: not everything was granted\nexplain: asked for" in said.err
    assert run("servo.pyx", *REFUSED, "--strict", "--json") == 3
    assert json.loads(capsys.readouterr().out)["outcome"] == "refused"


def test_with_strict_a_missed_release_is_exit_code_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late.py").write_text(
        "import time\ndef step(cycle):\n    if cycle.index == 2: time.sleep(0.05)\n    return cycle.index == 4\n"
    )
    late = str(tmp_path / "late.py")
    assert run(late, *EASY, "--rate", "100Hz") == 0
    assert run(late, *EASY, "--rate", "100Hz", "--strict") == 3
    assert "--strict was violated: " in capsys.readouterr().err


CHATTY = """\
from libc.stdio cimport fflush, printf, stdout
from libc.stdlib cimport free, malloc
from rtloop cimport RTLoop, Cycle, RT_CONTINUE

cdef class Chatty(RTLoop):
    cdef void *block
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if cycle.index == 20:
            printf("hello\\n")
            fflush(stdout)
            self.block = malloc(100)
        return RT_CONTINUE
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the guard of system calls needs x86-64")
def test_what_a_guard_finds_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "chatty.pyx").write_text(CHATTY)
    command = [sys.executable, "-m", "rtloop", "run", str(tmp_path / "chatty.pyx"), *EASY, "--cycles", "30"]

    # Unbuffered: the puts that the compiler makes of it writes twice, the text and the end of the line.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}

    def tell(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *args], capture_output=True, text=True, env=environment)

    counted = tell("--guard", "count")
    if "guard_system_calls unavailable" in counted.stdout:
        pytest.skip("this kernel has no guard of system calls")
    place = " (chatty.pyx:9)" if shutil.which("addr2line") else ""
    assert counted.returncode == 0
    said = " ".join(counted.stdout.split())
    assert f"2 times in cycle 20: system call write in chatty.Chatty.step{place}" in said, "two of them, in one place"
    strict = tell("--guard-alloc", "--strict")
    assert strict.returncode == 3 and " guard violations" in strict.stderr
    assert "in cycle 20" in strict.stdout and "allocation malloc" in strict.stdout, "which needs what sees it"


def test_a_duration_that_is_shorter_than_a_period_is_one_cycle(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("servo.pyx", *EASY, "--simulate", "--duration", "5us", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stats"]["cycles"] == 1


def test_a_step_in_python_that_exits_has_failed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("def step(cycle):\n    raise SystemExit(0)\n")
    assert run(str(tmp_path / "exits.py"), *EASY, "--cycles", "3") == 1
    said = capsys.readouterr()
    assert "wake-up latency" in said.out and "The loop failed" in said.err and "SystemExit: 0" in said.err
    assert "second argument" not in said.err, "a step in Python has none"


IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "rtloop", *sys.argv[1:]])
"""


def test_a_terminal_that_is_closed_ends_the_run_with_its_signal(tmp_path: Path) -> None:
    """Each write to it fails from then on: the report must not change the exit code, and the file is written."""
    (tmp_path / "rests.py").write_text(
        "class Rests:\n    def __call__(self, cycle): pass\n    def leave(self): open('left', 'w').write('once')\n"
    )
    main, terminal = os.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, "run", "rests.py", *EASY, "--record", "run.npz"]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path)
    os.close(terminal)
    seen = b""
    while b" cycles, max" not in seen:
        seen += os.read(main, 4096)
    os.close(main)
    assert process.wait(60) == 128 + signal.SIGHUP, seen
    assert (tmp_path / "left").read_text() == "once" and rtloop.Stats.load(tmp_path / "run.npz").cycles


def test_simulated_time_needs_no_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    assert run("servo.pyx", "--duration", "1h", "--simulate") == 0
    assert time.monotonic() - begin < 600
    assert "SIMULATED" in (out := capsys.readouterr().out) and "3,600,000 cycles" in out


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need rtloop[plot]")
    assert run("servo.pyx", *EASY, "--cycles", "20", "--plot", str(tmp_path / "run.svg")) == 0
    assert "<svg" in (tmp_path / "run.svg").read_text()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "Missing argument 'TARGET'"),
        (["sevro.pyx"], "there is no file sevro.pyx; did you mean servo.pyx?"),
        (["servo.pyx:Sevo"], "servo.pyx has no Sevo; did you mean Servo?"),
        (["servo.pyx", "-p", "gain"], "write NAME=VALUE"),
        (["servo.pyx", "-p", "gian=2"], "Servo does not take 'gian'; did you mean 'gain'?"),
        (["servo.pyx", "-p", "gain=fast"], "Servo cannot be created: must be real number, not str"),
        (["servo.pyx", "-p", "end_at=x"], "Servo.end_at cannot be 'x'"),
        (["servo.pyx", "-p", "cpu=1", "--cpu", "1"], "cpu is given twice"),
        (["servo.pyx", "-p", "period=2ms", "--rate", "1kHz"], "the period is given twice"),
        (["servo.pyx", "--cpu", "x"], "give numbers such as 3 or 0,2-3"),
        (["servo.pyx", "--spin", "5"], "its unit is missing; write it with a unit"),
        (["servo.pyx", "--priority", "200"], "--priority"),
        (["servo.pyx", "--duration", "1s", "--cycles", "3"], "give one of them"),
        (["servo.pyx", "--simulate"], "needs --duration or --cycles"),
        (["servo.pyx", "--record", "/nowhere/at/all.npz"], "is not a writable folder"),
        (["servo.pyx", "--record", "run.txt"], "run.txt: the name must end in .npz"),
        (["servo.pyx", "-p", "gain=1", "-p", "gain=2"], "gain is given twice"),
        (["servo.pyx", "--guard", "off", "--guard-alloc"], "give one of them"),
        (["servo.pyx", "--cpu", "8000"], "CPU 8000 does not exist; online: "),
        (["servo.pyx", "-p", "overrun=never"], "--overrun never"),
        (["servo.pyx", "--guard", "perhaps"], "--guard perhaps"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(args: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*args) == 2
    said = capsys.readouterr()
    assert text in said.err and "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (
            "def __init__(self, double gain=1.0):\n        super().__init__('1kHz')",
            "the first argument of its __init__ is gain",
        ),
        ("def __init__(self, T, double gain=1.0):\n        super().__init__('2kHz')", "runs at 2 kHz, not at the"),
    ],
)
def test_a_class_that_takes_no_period_is_never_given_it_as_something_else(
    head: str, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = "def __init__(self, period, *, double gain=1.0, **settings):\n        super().__init__(period, **settings)"
    (tmp_path / "odd.pyx").write_text(SERVO.replace(before, head))
    assert run(str(tmp_path / "odd.pyx"), "--cycles", "3") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert text in said and "super().__init__(period, **settings)" in said
    sys.modules.pop("odd", None)


def test_what_cannot_be_written_is_in_the_document_as_it_is_in_the_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: rtloop.Stats, path: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rtloop.Stats, "save", full)
    assert run("servo.pyx", *EASY, "--cycles", "20", "--json", "--record", str(tmp_path / "run.npz")) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 1 and "run.npz: No space left on device" in document["error"]


def test_what_a_class_takes_is_read_from_the_pyx(capsys: pytest.CaptureFixture[str]) -> None:
    run("servo.pyx", "-p", "gian=2")
    said = capsys.readouterr().err
    assert "  constructor  Servo(period, *, double gain=1.0, **settings)\n" in said
    assert "  attributes   fail_at, end_at\n" in said


def test_what_does_not_compile_is_exit_code_1_and_shows_the_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.pyx").write_text(SERVO.replace("return -5", "return nothing"))
    assert run(str(tmp_path / "bad.pyx")) == 1
    said = capsys.readouterr().err
    assert "bad.pyx:17:20: the name nothing is not known\n   17 |             return nothing" in said
    assert "Traceback" not in said


def test_what_a_module_raises_is_shown_with_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("def f():\n    return nothing\nf()\n")
    assert run(str(tmp_path / "early.py")) == 1
    said = capsys.readouterr().err
    assert "cannot be imported:\nTraceback" in said and "NameError: name 'nothing' is not defined" in said
    assert "rtloop/tools" not in said and "importlib" not in said


def test_a_function_that_takes_the_gil_is_pointed_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = SERVO.replace("cdef class", "cdef void f() nogil:\n    pass\n\ncdef class")
    (tmp_path / "hinted.pyx").write_text(code)
    assert run(str(tmp_path / "hinted.pyx"), *EASY, "--cycles", "3") == 0
    said = capsys.readouterr().err
    assert "hinted.pyx:3:1: hint: 'f' takes the GIL after every call" in said
    assert "fix: declare 'f' as 'noexcept nogil'" in said


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGHUP], 129), ([signal.SIGINT] * 8, 130),
        ([signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGINT], 130), ([signal.SIGTERM, signal.SIGINT], 143),
    ],
)  # fmt: skip
def test_a_loop_that_is_stopped_ends_as_it_should_and_prints_its_table(
    numbers: list[signal.Signals], code: int, tmp_path: Path
) -> None:
    """An impatient user presses Ctrl-C again before the table is there, and a closing terminal adds a SIGHUP."""
    left = tmp_path / "left"
    (tmp_path / "leaves.pyx").write_text(
        "from libc.stdio cimport fopen, fclose\nfrom rtloop cimport RTLoop\n"
        "cdef class Leaves(RTLoop):\n    cdef bytes path\n    cdef const char *name\n"
        "    def __init__(self, period, *, str path, **settings):\n        super().__init__(period, **settings)\n"
        "        self.path = path.encode()\n        self.name = self.path\n"
        "    cdef int enter(self) noexcept nogil:\n        fclose(fopen(self.name, 'w'))\n        return 0\n"
        "    cdef void leave(self) noexcept nogil:\n        fclose(fopen(self.name, 'a'))\n"
    )
    source = (tmp_path / "leaves.pyx").read_text().replace("fclose(fopen(self.name, 'a'))", "remove(self.name)")
    (tmp_path / "leaves.pyx").write_text(source.replace("cimport fopen, fclose", "cimport fopen, fclose, remove"))
    command = [sys.executable, "-m", "rtloop", "run", str(tmp_path / "leaves.pyx"), *EASY, "-p", f"path={left}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not left.exists():
            assert process.poll() is None and time.monotonic() < deadline, "it did not start"
            time.sleep(0.02)
        time.sleep(0.2)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.02)
        out, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    assert out.startswith("Leaves-") and "wake-up latency" in out
    assert "Stopped" in err and "Traceback" not in err
    interrupt = "KeyboardInterrupt" if numbers[0] == signal.SIGINT else f"Terminated ({numbers[0].name})"
    assert f": {interrupt}: asked to stop" in err, err
    assert not left.exists(), "leave() was called"


def test_a_build_that_is_terminated_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ touch {tmp_path}/started; exec sleep 60; }}\n')
    compiler.chmod(0o755)
    (tmp_path / "folder").mkdir()
    environment = {**os.environ, "CC": str(compiler), "TMPDIR": str(tmp_path / "folder")}
    command = [sys.executable, "-m", "rtloop", "run", "servo.pyx", *EASY]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not (tmp_path / "started").exists():
            assert process.poll() is None and time.monotonic() < deadline, "the compiler was not called"
            time.sleep(0.02)
        process.terminate()
        _, err = process.communicate(timeout=100)
    assert process.returncode == 143 and "Stopped by SIGTERM" in err
    assert not list((tmp_path / "folder").iterdir())


def test_a_step_that_does_not_return_is_not_called_stopped(tmp_path: Path) -> None:
    code = (
        "import pathlib, time\ndef step(cycle):\n    pathlib.Path(__file__ + '.there').touch()\n    time.sleep(3600)\n"
    )
    (tmp_path / "hangs.py").write_text(code)
    command = [sys.executable, "-m", "rtloop", "run", str(tmp_path / "hangs.py"), *EASY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not (tmp_path / "hangs.py.there").exists():
            assert process.poll() is None and time.monotonic() < deadline, "it did not start"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Not stopped: a callback has not returned" in err and "Stopped." not in err


def test_the_second_start_needs_no_compiler(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rtloop", "run", "servo.pyx", *EASY, "--cycles", "3"]
    subprocess.run(command, check=True, capture_output=True)
    fake = tmp_path / "cc"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && exec cc --version\nexit 1\n')
    fake.chmod(0o755)
    again = subprocess.run([*command, "--rebuild"], env={**os.environ, "CC": str(fake)}, capture_output=True, text=True)
    assert again.returncode == 1 and "the compiler failed" in again.stderr, "it would be noticed"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "compiled" not in done.stderr


def test_the_second_start_imports_nothing_that_only_a_compilation_or_a_terminal_needs(place: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "rtloop", "run", "servo.pyx", *EASY, "--cycles", "3", "--json"]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "rtloop.compiler.build" in imported
    late = {"rtloop.compiler.compilation", "rich", "subprocess", "tempfile", "importlib.metadata"}
    assert not late & imported, "each of them delays the first release by 4 to 20 ms"


def test_guard_alloc_begins_anew_with_the_library_and_counts_allocations() -> None:
    command = [sys.executable, "-m", "rtloop", "run", "servo.pyx", *EASY, "--cycles", "30", "--guard-alloc", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    account = found.get("guard") or found["stats"]["guard"]
    assert account["allocations"] == 0 and account["mode"] == "count"


def test_an_object_of_the_file_is_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "driven.pyx").write_text(
        "from rtloop cimport RTLoop\ncdef class Motor:\n    pass\ncdef class SimulatedMotor(Motor):\n    pass\n"
        "cdef class Servo(RTLoop):\n"
        "    def __init__(self, period, *, Motor motor not None, str mode='', **settings):\n"
        "        super().__init__(period, **settings)\n        print(type(motor).__name__, mode)\n"
    )
    target = str(tmp_path / "driven.pyx")
    assert run(target, *EASY, "--cycles", "3", "-p", "motor=SimulatedMotor", "-p", "mode=fast") == 0
    assert "SimulatedMotor fast\n" in capsys.readouterr().out
    assert run(target, *EASY, "--cycles", "3", "-p", "motor='SimulatedMotor'") == 2, "quoted it is text"
    assert "has incorrect type (expected driven.Motor, got str)" in " ".join(capsys.readouterr().err.split())


def test_headers_and_a_library_are_given_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library is found at run time as well, in a folder whose name the linker's commas would cut."""
    folder = tmp_path / "a, b"
    folder.mkdir()
    (folder / "answer.h").write_text("int answer(void);\n")
    (folder / "answer.c").write_text('#include "answer.h"\nint answer(void) { return 42; }\n')
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "libanswer.so"), str(folder / "answer.c")]
    subprocess.run(command, check=True)
    (tmp_path / "asks.pyx").write_text(
        'from rtloop cimport RTLoop\ncdef extern from "answer.h":\n    int answer() nogil\n'
        "cdef class Asks(RTLoop):\n    def setup(self):\n        print('it is', answer())\n"
    )
    place = ["-I", str(folder), "-L", str(folder), "-l", "answer"]
    assert run(str(tmp_path / "asks.pyx"), *EASY, "--cycles", "3", *place) == 0
    assert "it is 42" in capsys.readouterr().out
