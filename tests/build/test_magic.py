"""The Jupyter magic ``%%rtloop`` in IPython: a cell's classes become the notebook's, and errors name its lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rtloop

pytest.importorskip("IPython", reason="the magic is for IPython")

CELL = """\
%%rtloop
from rtloop cimport RTLoop, Cycle, RT_CONTINUE

cdef class Servo(RTLoop):
    cdef public double sum
    cdef double rise

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.parameter("rise", &self.rise, 1.5).limits(0, 50).unit("m<b>")
        self.signal("sum", &self.sum).unit("m").limits(None, 9)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.sum += self.rise
        return RT_CONTINUE

    def fail(self):
        raise ValueError("as asked")

LIMIT = 3
_private = 4
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CFLAGS", "-O0")
    monkeypatch.chdir(tmp_path)
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    before = set(sys.modules)
    shell = InteractiveShell(config=config)
    shell.colors = "nocolor"
    assert shell.run_line_magic("load_ext", "rtloop") is None
    yield shell
    from rtloop.notebook import magic

    if magic._cython is not None:
        magic._cython.close()
        magic._cython = None
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_cell_becomes_classes_of_the_notebook(shell: Any, ordinary: dict[str, Any]) -> None:
    assert shell.run_cell(CELL).success
    shell.user_ns["settings"] = ordinary
    assert shell.run_cell("loop = Servo('1kHz', **settings); stats = loop.run(cycles=4)").success
    assert (shell.user_ns["stats"].cycles, shell.user_ns["loop"].sum) == (4, 6.0)
    assert shell.run_cell("loop.parameters['rise'] = 2; latest = loop.signals.latest()").success
    assert shell.user_ns["latest"]["sum"] == 6.0 and shell.user_ns["latest"]["cycle"] == 3
    shown = shell.run_cell("loop.parameters").result._repr_html_()
    assert "<td>rise</td><td>2</td><td>m&lt;b&gt;</td><td>0 to 50</td>" in shown
    shown = shell.run_cell("loop.signals").result._repr_html_()
    assert "in cycle 3" in shown and "<td>sum</td><td>6</td><td>m</td><td>at most 9</td>" in shown
    assert shell.user_ns["LIMIT"] == 3
    assert "_private" not in shell.user_ns and "_cell" not in " ".join(shell.user_ns)


def test_the_same_cell_is_compiled_once_and_a_changed_one_anew(shell: Any) -> None:
    shell.run_cell(CELL)
    first = shell.user_ns["Servo"]
    shell.run_cell(CELL)
    assert shell.user_ns["Servo"] is first
    shell.run_cell(CELL.replace("1.5", "2.5"))
    assert shell.user_ns["Servo"] is not first


def test_an_error_is_shown_at_the_line_of_the_cell(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = shell.run_cell(CELL.replace("+= self.rise", "+= nothing"))
    assert isinstance(result.error_in_exec, rtloop.BuildError), "the notebook stops here"
    said = capsys.readouterr()
    shown = said.out + said.err
    assert "cell:14:21: the name nothing is not known\n   14 |         self.sum += nothing\n" in shown
    assert "Traceback" not in shown and ".pyx" not in shown and "site-packages" not in shown
    assert "Servo" not in shell.user_ns


def test_what_a_class_raises_later_is_shown_with_its_line(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_cell(CELL)
    shell.run_cell("Servo('1kHz').fail()")
    said = capsys.readouterr()
    assert 'raise ValueError("as asked")' in said.out + said.err


def test_a_function_that_takes_the_gil_is_pointed_out(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run_cell("%%rtloop\ncdef void f() nogil:\n    pass\ndef g():\n    f()\n").success
    assert "cell:2:1: hint: 'f' takes the GIL after every call" in capsys.readouterr().err


def test_a_file_can_be_built_too(shell: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gains.pyx").write_text("def gain():\n    return 7\n")
    assert shell.run_cell("%rtloop gains.pyx\nx = gain()").success
    assert shell.user_ns["x"] == 7
    assert sys.modules["gains"]
    shell.run_cell("%rtloop nothing.pyx")
    assert "UsageError: there is no file nothing.pyx" in capsys.readouterr().err


def test_a_cell_finds_what_is_beside_the_notebook(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "limits.pxd").write_text("cdef inline int limit() noexcept nogil:\n    return 10\n")
    assert shell.run_cell("%%rtloop\nfrom limits cimport limit\ndef get():\n    return limit()\n").success
    assert shell.run_cell("x = get()").success and shell.user_ns["x"] == 10


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (
            "%%rtloop --fast\nx = 1\n",
            "unrecognized arguments: --fast; the options are -f, -I, -L, -l, -c, --package, --name, --swap and --trial",
        ),
        ("%rtloop", "%rtloop needs a file"),
        ("%%rtloop -c '-DX=1\nx = 1\n", "-c '-DX=1 has a quotation that does not end"),
        ("""%%rtloop -c '-DX="1'\nx = 1\n""", '-DX="1 has a quotation that does not end'),
        ("%%rtloop servo.pyx\nx = 1\n", "so it takes no file: remove servo.pyx"),
        ("%%rtloop --trial 2s\nx = 1\n", "--trial is for a swap: add --swap"),
        ("%%rtloop --swap motor\nx = 1\n", "--swap motor: the notebook has no motor; the running loops are none"),
        ("%%rtloop --swap shell\nx = 1\n", "--swap shell: shell is a str, and only an RTLoop can get another step"),
        ("%%rtloop --swap new\nx = 1\n", "--swap new: new does not run (its state is new): call new.start() first"),
    ],
)
def test_a_wrong_line_is_told_in_a_line(shell: Any, capsys: pytest.CaptureFixture[str], cell: str, text: str) -> None:
    shell.user_ns.update(shell="no loop", new=rtloop.PyLoop(print, "1kHz"))
    assert not shell.run_cell(cell).success
    said = capsys.readouterr().err
    assert said.startswith("UsageError: ") and text in said and "Traceback" not in said


def test_options_reach_the_compiler(shell: Any) -> None:
    cell = "cdef extern from *:\n    int SIZE\ndef size():\n    return SIZE\n"
    assert shell.run_cell(f"%%rtloop -c -DSIZE=5 -c '-DX=1 -DY=2' -l m --name sized\n{cell}").success
    assert shell.run_cell("x = size()").success and shell.user_ns["x"] == 5
    assert sys.modules["sized"]


def test_where_the_cache_cannot_be_written_a_cell_is_built_all_the_same(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rtloop.compiler.cache._private", [])
    (tmp_path / "file").write_text("and no folder")
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(tmp_path / "file"))
    assert shell.run_cell(CELL).success
    assert "note: " in (said := capsys.readouterr().err) and "cannot be written to" in said
    assert shell.user_ns["Servo"]


LAW = """\
%%rtloop
from rtloop cimport RTLoop, Cycle, RT_CONTINUE

cdef class State(RTLoop):
    cdef readonly long steps

cdef class Law(State):
    cdef double gain, limit, sum

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.parameter("gain", &self.gain, 1.0)
        self.parameter("limit", &self.limit, 8.0)
        self.signal("sum", &self.sum)
        self.signal("steps", &self.steps, "i8")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.sum = self.gain
        self.steps += 1
        return RT_CONTINUE
"""
TAKE_OVER = """\
    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.steps = (<{kind}>former).steps
        return RT_CONTINUE

    cdef int step("""


def law(*changes: tuple[str, str], options: str = "--swap motor") -> str:
    """Return the cell with changes, swapped in."""
    text = LAW.replace("%%rtloop\n", f"%%rtloop {options}\n")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def take_over(kind: str) -> tuple[str, str]:
    return "    cdef int step(", TAKE_OVER.format(kind=kind)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not is_true():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.002)


@pytest.fixture
def motor(shell: Any, ordinary: dict[str, Any]) -> Iterator[Any]:
    """A running loop of the notebook, `motor`."""
    assert shell.run_cell(LAW).success
    shell.user_ns["settings"] = ordinary
    assert shell.run_cell("motor = Law('1kHz', signals_capacity=1000, **settings); motor.start()").success
    yield shell.user_ns["motor"]
    shell.user_ns["motor"].stop("60s")


def test_a_cell_becomes_the_step_of_a_running_loop_and_a_faulty_one_changes_nothing(
    shell: Any, motor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    former = shell.user_ns["Law"]
    motor.parameters["limit"] = 6.0
    capacity = motor.signals.reader().capacity
    wait_until(lambda: motor.stats.cycles > 20)
    step = "self.sum = self.gain"
    for cell, stage, text in (
        (law((step, "self.sum = nothing")), "", "cell:18:20: the name nothing is not known"),
        (law((step, f"with gil:\n            print(1)\n        {step}")), "lint", "cell:18: gil"),
        (law(("cdef class Law(State)", "cdef class Law(RTLoop)"), ("        self.steps += 1\n", ""),
             ('        self.signal("steps", &self.steps, "i8")\n', "")), "create", "has 2 loop classes, State, Law;"),
        ("%%rtloop --swap motor\ndef f():\n    return 1\n", "create", "the cell has no subclass of RTLoop; --swap"),
        (law(("period, **settings):", "period, stiffness, **settings):")), "create", "Law(period, signals_cap"),
        (law(take_over("Law"), ("cdef double gain", "cdef double offset, gain")), "take-over",
         "cell:18: take_over() reads the former step as a Law, but the fields of Law have changed"),
        (law(options="--swap motor --trial soon"), "", "UsageError: --swap motor: trial='soon'"),
        (law(("super().__init__(period,", "super().__init__('2kHz',")), "swap", "its period is 500 us, and the loop"),
    ):  # fmt: skip
        capsys.readouterr()
        error = shell.run_cell(cell).error_in_exec
        said = capsys.readouterr()
        shown = said.out + said.err
        assert error is not None and getattr(error, "stage", "") == stage, shown
        assert text in shown and ".pyx" not in shown and "magic.py" not in shown, shown
        assert stage == "" or "motor goes on with its former step" in shown
        assert (shell.user_ns["Law"], motor.state, motor.stats.swaps, motor.signals.latest()["sum"]) == (
            former, "running", (), 1.0,
        )  # fmt: skip

    capsys.readouterr()
    gain = ("&self.gain, 1.0", "&self.gain, 2.0")
    assert shell.run_cell(law(gain, take_over("State"), ("cdef double gain", "cdef double offset, gain"))).success
    said = capsys.readouterr().err
    (swap,) = motor.stats.swaps
    assert f"motor: Law since cycle {swap.cycle:,}\n  gain is now 2.0, and was 1.0\n  limit stays 6.0, as set" in said
    assert dict(motor.parameters) == {"gain": 2.0, "limit": 6.0} and shell.user_ns["motor"] is motor
    assert shell.user_ns["Law"] is not former and motor.signals.reader().capacity == capacity
    Path("law.pyx").write_text(law(take_over("State")).replace("%%rtloop --swap motor\n", ""))
    assert shell.run_cell("%rtloop law.pyx --swap motor").success and shell.user_ns["Law"].__module__ == "law"
    wait_until(lambda: motor.signals.latest().get("sum") == 1.0)
    motor.stop("60s")
    assert motor.signals.latest()["steps"] == motor.stats.cycles, "the state was taken over twice"


@pytest.mark.filterwarnings("ignore:.*has gone back:rtloop.RTSetupWarning")
def test_a_cell_on_trial_is_swapped_back_when_it_fails(shell: Any, motor: Any) -> None:
    failing = ("self.steps += 1\n", "self.steps += 1\n        if self.steps > 20:\n            return -5\n")
    assert shell.run_cell(law(failing, options="--swap motor --trial 60s")).success
    wait_until(lambda: not motor.on_trial)
    made, back = motor.stats.swaps
    assert made.reason is None and back.reason and motor.state == "running"  # a busy machine ends a trial earlier
    moved = ("cdef double gain, limit, sum", "cdef double limit, gain, sum")
    assert shell.run_cell(law(moved, take_over("Law"))).error_in_exec.stage == "take-over", "compared with the first"
    assert shell.run_cell(law(take_over("Law"))).success and motor.stats.swaps[-1].reason is None
