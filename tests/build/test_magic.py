"""The Jupyter magic ``%%rtloop`` in IPython: a cell's classes become the notebook's, and errors name its lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
    assert "<td>rise</td><td>2.0</td><td>m&lt;b&gt;</td><td>0.0 to 50.0</td>" in shown
    shown = shell.run_cell("loop.signals").result._repr_html_()
    assert "in cycle 3" in shown and "<td>sum</td><td>6.0</td><td>m</td><td>at most 9.0</td>" in shown
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
            "unrecognized arguments: --fast; the options are -f, -I, -L, -l, -c, --package and --name",
        ),
        ("%rtloop", "%rtloop needs a file"),
        ("%%rtloop servo.pyx\nx = 1\n", "so it takes no file: remove servo.pyx"),
    ],
)
def test_a_wrong_line_is_told_in_a_line(shell: Any, capsys: pytest.CaptureFixture[str], cell: str, text: str) -> None:
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
