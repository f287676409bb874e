"""``rtloop.build``: from a .pyx to a module, compiled once; what causes another build, and the messages of failures."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rtloop
from rtloop.compiler import build as build_of
from rtloop.compiler.build import build_module
from rtloop.compiler.cache import Cache

STEP = """\
from rtloop cimport RTLoop, Cycle, RT_CONTINUE

cdef class Servo(RTLoop):
    cdef public double sum

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.sum += 1.5
        return RT_CONTINUE
"""


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CFLAGS", "-O0")  # the compiler's time is not what is tested
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if getattr(sys.modules[name], "__file__", "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def test_a_pyx_becomes_a_module_that_is_compiled_once(ordinary: dict[str, object]) -> None:
    source = write("servo.pyx", STEP)
    first = build_module(source)
    assert first.module.__name__ == "servo" and sys.modules["servo"] is first.module
    assert first.seconds > 0 and first.compiler and not first.hints and not first.notes
    loop = first.module.Servo("1kHz", **ordinary)
    assert loop.run(cycles=4).cycles == 4 and loop.sum == 6.0
    again = build_module(source)
    assert again.seconds == 0
    assert again.module is first.module
    assert rtloop.build("servo.pyx") is first.module


def test_another_process_finds_it_compiled() -> None:
    write("servo.pyx", STEP)
    code = "from rtloop.compiler.build import build_module; print(build_module('servo.pyx').seconds > 0)"
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)]
    assert said == ["True\n", "False\n"]


def test_importing_it_does_not_switch_on_the_gil_of_a_free_threaded_python() -> None:
    write("servo.pyx", STEP)
    write("old.pyx", "# cython: freethreading_compatible=False\n" + STEP)
    code = "import rtloop, sys; rtloop.build('{}'); print(getattr(sys, '_is_gil_enabled', lambda: True)())"

    def is_gil_enabled(name: str) -> str:
        command = [sys.executable, "-W", "ignore", "-c", code.format(name)]
        environment = {**os.environ, "PYTHON_GIL": ""}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert is_gil_enabled("servo.pyx") == str(not sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert is_gil_enabled("old.pyx") == "True", "a comment in the file takes precedence"


def test_several_threads_that_build_one_file_get_one_module() -> None:
    source = write("servo.pyx", STEP)
    with ThreadPoolExecutor(4) as pool:
        modules = list(pool.map(lambda _: rtloop.build(source), range(4)))
    assert len({id(module) for module in modules}) == 1


def test_changed_content_is_another_module_in_the_same_process(ordinary: dict[str, object]) -> None:
    source = write("servo.pyx", STEP)
    old = rtloop.build(source)
    loop = old.Servo("1kHz", **ordinary)
    write("servo.pyx", STEP.replace("1.5", "2.5"))
    new = build_module(source)
    assert new.module is not old and sys.modules["servo"] is new.module
    changed = new.module.Servo("1kHz", **ordinary)
    loop.run(cycles=2)
    changed.run(cycles=2)
    assert (loop.sum, changed.sum) == (3.0, 5.0), "a loop keeps the class it was made from"
    write("servo.pyx", STEP)
    assert rtloop.build(source) is old, "what was there before is found again"


PARTS = {
    "gains.pxi": "cdef int GAIN = 1\n",
    "limits.pxd": "cdef inline int limit() noexcept nogil:\n    return 1\n",
    "motor.h": "static int motor(void) { return 1; }\n",
    "parts.pyx": (
        'include "gains.pxi"\nfrom limits cimport limit\n'
        'cdef extern from "motor.h":\n    int motor()\n'
        "def value():\n    return GAIN + limit() + motor()\n"
    ),
}


@pytest.mark.parametrize("changed", ["gains.pxi", "limits.pxd", "motor.h"])
def test_it_is_compiled_anew_where_anything_it_reads_has_changed(changed: str) -> None:
    for name, text in PARTS.items():
        write(name, text)
    assert rtloop.build("parts.pyx").value() == 3
    write("other.h", "nobody reads this\n")
    assert build_module("parts.pyx").seconds == 0
    write(changed, PARTS[changed].replace("1", "5"))
    assert rtloop.build("parts.pyx").value() == 7


def test_it_is_compiled_anew_for_other_flags_and_where_cython_would_find_more() -> None:
    source = write("parts.pyx", "X = 1\n")
    build_module(source)
    assert build_module(source, flags=["-DX=1"]).seconds > 0
    assert build_module(source).seconds == 0
    write("parts.pxd", "cdef int MORE\n")
    assert build_module(source).seconds > 0


def test_a_folder_s_name_may_have_anything_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "my arm: #1 $x ä"
    folder.mkdir()
    (folder / "gains 1.pxi").write_text("cdef int GAIN = 1\n")
    (folder / "motor.h").write_text("static int motor(void) { return 10; }\n")
    source = folder / "parts.pyx"
    source.write_text(
        'include "gains 1.pxi"\ncdef extern from "motor.h":\n    int motor()\ndef value():\n    return GAIN + motor()\n'
    )
    assert rtloop.build(source).value() == 11
    assert build_module(source).seconds == 0
    (folder / "gains 1.pxi").write_text("cdef int GAIN = 2\n")
    assert rtloop.build(source).value() == 12
    (folder / "motor.h").write_text("static int motor(void) { return 20; }\n")
    assert rtloop.build(source).value() == 22


def test_another_pyx_of_the_folder_that_is_cimported_is_built_first() -> None:
    write("base.pxd", "cdef class Base:\n    cdef int value(self)\n")
    write("base.pyx", "cdef class Base:\n    cdef int value(self):\n        return 1\n")
    derived = "from base cimport Base\ncdef class Derived(Base):\n    def get(self):\n        return self.value()\n"
    source = write("derived.pyx", derived)
    assert rtloop.build(source).Derived().get() == 1
    write("base.pyx", "cdef class Base:\n    cdef int value(self):\n        return 2\n")
    assert rtloop.build(source).Derived().get() == 2


def test_what_another_pyx_of_the_folder_reads_counts_too() -> None:
    write("gains.pxi", "cdef int GAIN = 1\n")
    write("base.pxd", "cdef int base() noexcept\n")
    write("base.pyx", 'include "gains.pxi"\ncdef int base() noexcept:\n    return GAIN\n')
    write("middle.pxd", "cdef int middle() noexcept\n")
    write("middle.pyx", "from base cimport base\ncdef int middle() noexcept:\n    return base()\n")
    top = write("top.pyx", "from middle cimport middle\ndef get():\n    return middle()\n")
    first = rtloop.build(top)
    assert first.get() == 1
    write("gains.pxi", "cdef int GAIN = 2\n")
    assert rtloop.build(top).get() == 2, "in the same process, two files away"
    write("gains.pxi", "cdef int GAIN = 1\n")
    again = build_module(top)
    assert again.module is first and again.seconds == 0


def test_two_that_cimport_each_other_are_built() -> None:
    for name, other, end in (("ping", "pong", 1), ("pong", "ping", 2)):
        write(f"{name}.pxd", f"cdef int {name}(int n) noexcept\n")
        body = f"cdef int {name}(int n) noexcept:\n    return {other}(n - 1) if n else {end}\n"
        write(f"{name}.pyx", f"from {other} cimport {other}\n{body}def play(n):\n    return {name}(n)\n")
    assert rtloop.build("ping.pyx").play(4) == 1
    assert rtloop.build("pong.pyx").play(4) == 2


def test_a_pyx_that_is_included_is_no_module_of_its_own() -> None:
    write("part.pyx", "cdef int value = OFFSET + 1\n")
    source = write("whole.pyx", 'cdef enum:\n    OFFSET = 4\ninclude "part.pyx"\ndef get():\n    return value\n')
    assert rtloop.build(source).get() == 5
    assert "part" not in sys.modules


CALLS = 'cdef extern from *:\n    """int value(void);"""\n    int value()\ndef get():\n    return value()\n'


def make_object(value: int) -> None:
    write("value.c", f"int value(void) {{ return {value}; }}\n")
    subprocess.run(["cc", "-c", "-fPIC", "value.c", "-o", "value.o"], check=True)
    Path("libvalue.a").unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", "libvalue.a", "value.o"], check=True)


@pytest.mark.parametrize("head", ["extra_objects = value.o", "libraries = value\n# distutils: library_dirs = ."])
def test_it_is_linked_anew_where_an_object_or_a_library_has_changed(head: str) -> None:
    source = write("calls.pyx", f"# distutils: {head}\n{CALLS}")
    make_object(1)
    assert rtloop.build(source).get() == 1
    assert build_module(source).seconds == 0
    make_object(2)
    assert rtloop.build(source).get() == 2


def test_force_gives_what_was_just_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = write("calls.pyx", CALLS)
    flags = ["-Wl,--push-state,--whole-archive", f"-Wl,{tmp_path}/value.o", "-Wl,--pop-state"]  # nobody sees it there
    make_object(1)
    old = rtloop.build(source, flags=flags)
    make_object(2)
    assert rtloop.build(source, flags=flags) is old
    assert rtloop.build(source, flags=flags, force=True).get() == 2
    found = build_module(source, flags=flags)
    assert found.module.get() == 2 and found.seconds == 0


def test_it_is_compiled_anew_where_a_file_would_be_found_before_another() -> None:
    for folder in ("first", "second"):
        Path(folder).mkdir()
    write("second/gains.pxi", "GAIN = 2\n")
    source = write("parts.pyx", 'include "gains.pxi"\n')
    assert rtloop.build(source, include=["first", "second"]).GAIN == 2
    write("first/gains.pxi", "GAIN = 1\n")
    assert rtloop.build(source, include=["first", "second"]).GAIN == 1


def test_it_is_compiled_anew_where_the_compiler_looks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("parts.pyx", 'cdef extern from "motor.h":\n    int MOTOR\ndef get():\n    return MOTOR\n')
    for number in (1, 2):
        Path(str(number)).mkdir()
        write(f"{number}/motor.h", f"#define MOTOR {number}\n")
        monkeypatch.setenv("CPATH", str(Path(str(number)).absolute()))
        assert rtloop.build(source).get() == number


def test_comments_at_the_head_of_the_file_are_followed() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    write("helper.c", "int helper(void) { return 42; }\n")
    text = (
        "# distutils: sources = helper.c\n# distutils: define_macros = SIZE=3\n# distutils: libraries = m\n"
        "# distutils: language = c++\n"
        "cdef extern from *:\n    '''\n    extern \"C\" int helper(void);\n    '''\n    int helper()\n    int SIZE\n"
        "from libcpp.vector cimport vector\n"
        "def value():\n    cdef vector[int] v\n    v.push_back(SIZE)\n    return helper() + v[0]\n"
    )
    source = write("mixed.pyx", text)
    assert rtloop.build(source).value() == 45
    write("helper.c", "int helper(void) { return 52; }\n")
    assert rtloop.build(source).value() == 55
    write("mixed.pyx", text.replace("libraries", "librarys"))
    with pytest.raises(rtloop.BuildError, match=r"mixed\.pyx:3: # distutils: librarys is not supported"):
        rtloop.build(source)


def test_a_step_has_no_checks_unless_the_file_asks_for_them() -> None:
    text = "def at(int[::1] values, int where):\n    return values[where]\n"
    import array

    values = memoryview(array.array("i", range(8)))[:4]
    assert rtloop.build(write("free.pyx", text)).at(values, 6) == 6, "what is beyond the view"
    checked = rtloop.build(write("checked.pyx", "# cython: boundscheck=True\n" + text))
    with pytest.raises(IndexError):
        checked.at(values, 6)


def test_numpy_is_cimported_without_further_ado() -> None:
    text = "cimport numpy as cnp\ncnp.import_array()\ndef size(cnp.ndarray a):\n    return a.shape[0]\n"
    import numpy as np

    assert rtloop.build(write("counts.pyx", text)).size(np.zeros(7)) == 7


@pytest.mark.parametrize(("file", "name"), [("my-servo.pyx", "my_servo"), ("3d.pyx", "_3d"), ("class.pyx", "class_")])
def test_a_module_s_name_is_one_that_python_can_write(file: str, name: str) -> None:
    assert rtloop.build(write(file, "X = 1\n")).__name__ == name


def test_a_module_of_another_origin_keeps_its_name() -> None:
    import textwrap

    assert rtloop.build(write("textwrap.pyx", "X = 1\n")).X == 1
    assert sys.modules["textwrap"] is textwrap


def test_a_module_of_python_that_nobody_has_imported_yet_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert rtloop.build(write("colorsys.pyx", "X = 1\n")).X == 1
    import colorsys

    assert colorsys.rgb_to_hsv


# What is wrong in the code.


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("libraries = 'm", r"No closing quotation.*fix: put both quotes"),
        ("language = rust", r"language = rust is not supported.*c or c\+\+"),
        ("colour = red", r"colour is not supported.*the supported names are language"),
    ],
)
def test_a_comment_for_the_compiler_that_cannot_be_followed_is_shown(line: str, text: str) -> None:
    source = write("servo.pyx", f"\n# distutils: {line}\n")
    with pytest.raises(rtloop.BuildError, match=rf"(?s)servo\.pyx:2: .*{text}"):
        rtloop.build(source)


def failure(source: Path) -> str:
    with pytest.raises(rtloop.BuildError) as caught:
        rtloop.build(source)
    error = caught.value
    assert isinstance(error, ImportError)
    frames = traceback.extract_tb(error.__traceback__)
    assert len(frames) <= 4 and not any("Cython" in frame.filename for frame in frames)
    assert error.__cause__ is None and error.__suppress_context__
    return str(error)


def test_an_error_is_shown_at_its_line_of_the_pyx() -> None:
    text = failure(write("servo.pyx", STEP.replace("1.5", "nothing")))
    assert "servo.pyx does not compile, 1 error:\nservo.pyx:7:21: the name nothing is not known\n" in text
    assert "    7 |         self.sum += nothing\n      |                     ^" in text


def test_the_commonest_error_of_all_says_what_to_write() -> None:
    text = failure(write("servo.pyx", STEP.replace(" noexcept", "")))
    assert "servo.pyx:6:5: step is not declared as RTLoop declares it" in text
    assert "fix: write 'cdef int step(self, const Cycle *cycle) noexcept nogil:'" in text


def test_an_error_that_only_the_c_compiler_sees_is_shown_at_its_line() -> None:
    source = write(
        "wrong.pyx", 'cdef extern from "math.h":\n    double sin(double, double)\ndef f():\n    return sin(1, 2)\n'
    )
    assert "wrong.pyx:4: C compiler: " in failure(source)
    assert "    4 |     return sin(1, 2)" in failure(source)
    source = write("wrong.pyx", 'cdef extern from "no-such.h":\n    int f()\ndef g():\n    return f()\n')
    assert "wrong.pyx:1: C compiler: no-such.h: No such file" in failure(source)


def test_a_function_that_nobody_has_is_named() -> None:
    source = write("far.pyx", "cdef extern from *:\n    '''\n    int far_away(void);\n    '''\n    int far_away()\n"
                   "def f():\n    return far_away()\n")  # fmt: skip
    text = failure(source)
    assert "far_away that it calls is in none of its libraries" in text and "# distutils: libraries" in text


def test_what_the_module_itself_raises_comes_through_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write("early.pyx", "x = 1\nraise ValueError('too early')\n").absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # Cython's tracebacks have the name of the file alone
    with pytest.raises(ValueError, match="too early") as caught:
        rtloop.build(source)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno, last.line) == ("early.pyx", 2, "raise ValueError('too early')")
    assert "early" not in sys.modules


def test_a_function_that_takes_the_gil_is_warned_of_every_time() -> None:
    source = write("hint.pyx", "cdef void f() nogil:\n    pass\ndef g():\n    f()\n")
    for _ in range(2):
        with pytest.warns(rtloop.RTSetupWarning, match=r"hint\.pyx:1:1: 'f' takes the GIL after every call") as caught:
            rtloop.build(source)
        assert len(caught) == 1 and caught[0].filename == __file__


def test_there_has_to_be_such_a_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pyx"):
        rtloop.build("nothing.pyx")
    with pytest.raises(rtloop.BuildError, match=r"is not a \.pyx file"):
        rtloop.build(write("script.py", ""))
    with pytest.raises(rtloop.BuildError, match="cannot be a module's name"):
        rtloop.build(write("servo.pyx", STEP), name="a.b")


# What is wrong with the machine.


def test_a_missing_compiler_is_named_with_the_way_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("servo.pyx", STEP)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(rtloop.BuildError, match=r"no C compiler was found .*CC='no-such-compiler'"):
        rtloop.build(source)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian"})
    looked = r"looked for cc, gcc, clang, and the Python package ziglang\)"
    with pytest.raises(rtloop.BuildError, match=looked + r".*rtloop\[compiler\]', or sudo apt install gcc, or set CC"):
        rtloop.build(source)
    monkeypatch.delenv("CXX", raising=False)
    source = write("mixed.pyx", "# distutils: language = c++\n" + STEP)
    with pytest.raises(rtloop.BuildError, match=r"no C\+\+ compiler.*sudo apt install g\+\+, or set CXX"):
        rtloop.build(source)


@pytest.mark.parametrize(
    ("says", "advice"),
    [
        ("x.c:19:10: fatal error: Python.h: No such file or directory", "fix: sudo apt install python3-dev"),
        ("/usr/bin/ld: cannot find -lmotor: No such file", "fix: install the library motor, or name its folder"),
        ("/tmp/cc.s: fatal error: error writing: No space left on device", "fix: make room in "),
        ("cc1: internal trouble", "cc1: internal trouble"),
    ],
)
def test_what_the_compiler_lacks_is_said_with_a_fix(
    says: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = write("compiler", f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "{says}" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler.absolute()))
    with pytest.raises(rtloop.BuildError) as caught:
        rtloop.build(write("constant.pyx", "X = 1\n"))
    text = str(caught.value)
    assert text.startswith(f"the compiler failed on {tmp_path}/constant.pyx:\n{says}") and advice in text


def test_a_missing_cython_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    source = write("servo.pyx", STEP)
    monkeypatch.setattr("rtloop.compiler.toolchain._INSTALLED", re.compile("nothing"))  # then the metadata are asked
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(rtloop.BuildError, match=r"Cython is not installed for .*-m pip install 'rtloop\[build\]'"):
        rtloop.build(source)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.29.37")
    with pytest.raises(rtloop.BuildError, match=r"Cython 0\.29\.37 is too old"):
        rtloop.build(source)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.0.11")
    with pytest.raises(rtloop.BuildError, match=r"Cython 3\.0\.11 is too old"):
        rtloop.build(source)


def test_where_the_cache_cannot_be_written_the_module_is_this_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtloop.compiler.cache._private", [])
    source = write("servo.pyx", STEP)
    write("file", "and no folder")
    with pytest.warns(rtloop.RTSetupWarning, match="cannot be written to.*set RTLOOP_CACHE_DIR"):
        module = rtloop.build(source, cache="file")
    assert module.Servo
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rtloop.build(source, cache="file") is module, "compiled once, even so"


def test_a_cache_in_a_folder_that_everyone_can_write_to_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtloop.compiler.cache._private", [])
    source = write("servo.pyx", STEP)
    os.mkdir("open")
    os.chmod("open", 0o777)
    with pytest.warns(rtloop.RTSetupWarning, match="/open is not used, because every user may write to .*/open: servo"):
        module = rtloop.build(source, cache="open")
    assert module.Servo and os.listdir("open") == []


def test_a_full_disk_costs_the_cache_and_not_the_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rtloop.compiler.cache._private", [])
    keep = Cache.keep

    def full(self: Cache, *args: object, **keywords: object) -> object:
        if self.folder == tmp_path / "cache":
            raise OSError(28, "No space left on device")
        return keep(self, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(Cache, "keep", full)
    with pytest.warns(rtloop.RTSetupWarning, match="No space left on device"):
        assert rtloop.build(write("servo.pyx", STEP)).Servo


def test_a_file_that_changes_while_it_is_compiled_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("servo.pyx", "X = 1\n")
    compile_module = build_of.compile_module

    def meanwhile(*args: object, **keywords: object) -> object:
        done = compile_module(*args, **keywords)  # type: ignore[arg-type]
        write("servo.pyx", "X = 2\n")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(build_of, "compile_module", meanwhile)
        assert rtloop.build(source).X == 1
    assert rtloop.build(source).X == 2


# Several processes.

BUILD = "import rtloop; print(rtloop.build('servo.pyx').Servo.__name__)"


def test_processes_that_build_at_once_all_get_it(tmp_path: Path) -> None:
    write("servo.pyx", STEP)
    command = [sys.executable, "-c", BUILD]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert (out, process.returncode) == ("Servo\n", 0), err
    assert len(list(tmp_path.glob("cache/build/*/*/servo.*.so"))) == 1
    assert not list(tmp_path.glob("cache/build/tmp-*"))


def test_a_build_that_is_killed_leaves_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("servo.pyx", STEP)
    compiler = write("compiler", '#!/bin/sh\n[ "$1" = --version ] || { touch started; exec sleep 60; }\n')
    compiler.chmod(0o755)
    sleeping = compiler.read_text().replace("touch started", f"touch {tmp_path}/started")
    compiler.write_text(sleeping)
    environment = {**os.environ, "CC": str(compiler.absolute()), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", BUILD], env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline and process.poll() is None, "the compiler was not called"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("cache/**/*.so"))
    assert build_module(source).module.Servo
    assert build_module(source).seconds == 0
    (rest,) = tmp_path.glob("rtloop-build-*")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    build_module(source, force=True)
    assert rest.exists(), "another process might still compile there"
    os.utime(rest, (0, 0))
    build_module(source, force=True)
    assert not list(tmp_path.glob("rtloop-build-*"))


FORK = """
import os, signal, threading, rtloop
fast = rtloop.build("fast.pyx").X
os.mkfifo("gate")
importing = threading.Thread(target=rtloop.build, args=("slow.pyx",))
importing.start()
gate = open("gate", "w")  # waits until the import has begun, and lets it go on when it is closed
child = os.fork()
if child == 0:
    signal.alarm(60)
    assert rtloop.build("fast.pyx").X == fast
    assert rtloop.build("other.pyx").X == 2
    try:
        rtloop.build("slow.pyx")
    except rtloop.BuildError as error:
        assert "slow.pyx was being imported by another thread when this process was forked" in str(error)
        os._exit(7)
    os._exit(1)
status = os.waitpid(child, 0)[1]
gate.close()
importing.join()
print(os.waitstatus_to_exitcode(status), rtloop.build("slow.pyx").X)
"""


def test_a_forked_child_builds_although_another_thread_was_importing() -> None:
    """The lock of the imports stayed locked in the child, and half a module would have been returned."""
    for name, text in (("fast", "X = 1"), ("other", "X = 2"), ("slow", "open('gate').read()\nX = 3")):
        write(f"{name}.pyx", f"{text}\n")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("7 3\n", 0), done.stderr
