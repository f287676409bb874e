"""``rtloop.build`` in folders and locales that compilers write badly, and with libraries from elsewhere."""

from __future__ import annotations

import importlib
import os
import pkgutil
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import rtloop
from rtloop.compiler.build import build_module
from rtloop.compiler.comments import read_extras

PARTS = 'include "gains.pxi"\ncdef extern from "motor.h":\n    int motor()\ndef value():\n    return GAIN + motor()\n'
#: Builds it three times: as it is, after an edit of each file that it reads, and says what came of it.
EDITS = """
import os, rtloop
from rtloop.compiler.build import build_module
folder = os.fsdecode({folder!r})
def write(name, text):
    with open(os.path.join(folder, name), "w") as file:
        file.write(text + "\\n")
found = []
edits = [("motor.h", "#define motor() 10"), ("gains.pxi", "cdef int GAIN = 2"), ("motor.h", "#define motor() 20")]
for name, text in edits:
    write(name, text)
    found.append(build_module(os.path.join(folder, "parts.pyx")).module.value())
found.append(build_module(os.path.join(folder, "parts.pyx")).seconds == 0)
print(found)
"""


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CFLAGS", "-O0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "locale"),
    [
        (b"r\xe9gulateur", "C.UTF-8"), ("régulateur".encode(), "ISO-8859-1"), (b"back\\slash", "C.UTF-8"),
        (b"x (1): #2 $y", "C.UTF-8"),
    ],
)  # fmt: skip
def test_an_edit_is_seen_in_any_folder_and_locale(name: bytes, locale: str, tmp_path: Path) -> None:
    """Dependency files hold bytes: a file that is not found again would leave the old code in use, without a word."""
    folder = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(folder)
    with open(os.path.join(folder, b"parts.pyx"), "w") as file:
        file.write(PARTS)
    with open(os.path.join(folder, b"gains.pxi"), "w") as file:
        file.write("cdef int GAIN = 1\n")
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if locale == "ISO-8859-1":
        made = subprocess.run(
            ["localedef", "-i", "en_US", "-f", locale, "--no-archive", str(tmp_path / "en_US.ISO-8859-1")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not (tmp_path / "en_US.ISO-8859-1").is_dir():
            pytest.skip(f"needs a locale in ISO-8859-1, and localedef makes none here: {made.stderr.strip()}")
        environment |= {"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(tmp_path)}
    program = EDITS.format(folder=folder)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "[11, 12, 22, True]\n", done.stderr


@pytest.mark.parametrize(
    ("line", "libraries"),
    [
        ("extra_link_args = -Wl,-rpath,/opt/x -pthread", ("-Wl,-rpath,/opt/x", "-pthread")),
        ('extra_link_args = "-Wl,-rpath,/opt/a b"', ("-Wl,-rpath,/opt/a b",)),
        ("extra_link_args = ['-Wl,-rpath,/opt/a, b', -pthread]", ("-Wl,-rpath,/opt/a, b", "-pthread")),
        ("libraries = m rt", ("-lm", "-lrt")),
        ("libraries = [m, rt]", ("-lm", "-lrt")),
        ("libraries = a\n# distutils: libraries = b", ("-lb",)),
        ("runtime_library_dirs = /opt/a", ("-Xlinker", "-rpath", "-Xlinker", "/opt/a")),
        ("runtime_library_dirs = $ORIGIN/lib", ("-Xlinker", "-rpath", "-Xlinker", "{here}/lib")),
    ],
)
def test_comments_mean_what_they_mean_to_cythons_own_tools(
    line: str, libraries: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "x.pyx").write_text(f"# distutils: {line}\n")
    assert read_extras(tmp_path / "x.pyx").libraries == tuple(one.replace("{here}", str(tmp_path)) for one in libraries)
    # What Cython's own tools make of it.
    from Cython.Build.Dependencies import DistutilsInfo

    if "runtime" not in line:
        name = line.partition(" =")[0]
        theirs = DistutilsInfo(f"# distutils: {line}\n").values[name]
        assert [f"-l{one}" if name == "libraries" else one for one in theirs] == list(libraries)


def test_a_comma_that_separates_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pyx").write_text("# distutils: libraries = m, rt\n")
    with pytest.raises(rtloop.BuildError, match=r"'m,' ends in a comma.*\n?(.*\n)*.*libraries = m rt"):
        read_extras(tmp_path / "x.pyx")


def test_a_library_is_found_at_run_time_and_its_pxd_may_name_it(tmp_path: Path) -> None:
    folder = tmp_path / "a, b"
    folder.mkdir()
    (folder / "answer.c").write_text("int answer(void) { return 42; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / "libanswer.so"), str(folder / "answer.c")], check=True)
    (tmp_path / "answers.pxd").write_text(
        '# distutils: libraries = answer\n# distutils: library_dirs = "a, b"\n'
        '# distutils: runtime_library_dirs = "a, b"\n'
        'cdef extern from *:\n    """int answer(void);"""\n    int answer()\n'
    )
    (tmp_path / "asks.pyx").write_text("from answers cimport answer\ndef ask():\n    return answer()\n")
    assert rtloop.build("asks.pyx").ask() == 42


def test_a_source_of_c_is_compiled_once_and_not_at_each_edit(tmp_path: Path) -> None:
    log = tmp_path / "log"
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec cc "$@"\n')
    compiler.chmod(0o755)
    (tmp_path / "model.h").write_text("#define MODEL 10\n")
    (tmp_path / "model.c").write_text('#include "model.h"\nint model(void) { return MODEL; }\n')
    text = '# distutils: sources = model.c\ncdef extern from *:\n    """int model(void);"""\n    int model()\n'
    values = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", str(compiler))
        for gain in (1, 2):
            (tmp_path / "uses.pyx").write_text(f"{text}def value():\n    return {gain} + model()\n")
            values.append(rtloop.build("uses.pyx").value())
        assert sum(line.endswith("further.o") for line in log.read_text().splitlines()) == 1
        (tmp_path / "model.h").write_text("#define MODEL 20\n")
        values.append(rtloop.build("uses.pyx").value())
    assert values == [11, 12, 22], "and a header that it includes is seen"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages, like those of wheels: none can be imported."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("simulator", "simulator/include", "old_and_new", "old_and_new/lib", "bare", "parts", "parts/c"):
        (folder / name).mkdir()
        if name.count("/") == 0:
            (folder / name / "__init__.py").write_text("raise RuntimeError('it is not imported')\n")
    (folder / "simulator" / "include" / "simulator.h").write_text("int simulate(void);\n")
    (folder / "simulator.c").write_text("int simulate(void) { return RESULT; }\n")
    for result, file in ((7, "simulator/libsimulator.so.3.2"), (8, "old_and_new/lib/libsimulator.so.4")):
        name = file.rpartition("/")[2]
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", f"-DRESULT={result}", "-o", str(folder / file)]
        subprocess.run([*command, str(folder / "simulator.c")], check=True)
    shutil.copy(folder / "simulator/libsimulator.so.3.2", folder / "old_and_new/lib")
    shutil.copy(folder / "simulator/libsimulator.so.3.2", folder / "parts/c")
    (folder / "parts/c/libsimulator.so").symlink_to("libsimulator.so.3.2")
    return folder


RUNS = 'cdef extern from "simulator.h":\n    int simulate()\ndef run():\n    return simulate()\n'


def test_a_package_brings_its_headers_and_its_library(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    (tmp_path / "runs.pyx").write_text(RUNS)
    assert rtloop.build("runs.pyx", packages=["simulator"]).run() == 7
    (tmp_path / "names.pyx").write_text(f"# rtloop: packages = simulator: old_and_new:libsimulator.so.4\n{RUNS}")
    assert rtloop.build("names.pyx").run() == 8, "headers of one, the library of the other"
    folder = str(site / "simulator")
    (tmp_path / "plain.pyx").write_text(RUNS)
    exact = {"include": f"{folder}/include", "library_dirs": folder, "libraries": ":libsimulator.so.3.2"}
    assert rtloop.build("plain.pyx", **exact).run() == 7, "by folders alone, each a text instead of a list"


def test_links_and_copies_of_a_library_are_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    (library, *run_time) = rtloop.find_package("parts.c").libraries
    assert library == str(site / "parts/c/libsimulator.so") and run_time[-1] == str(site / "parts/c")
    assert rtloop.find_package("simulator:") == ((str(site / "simulator/include"),), ())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "'nowhere' is not installed here, or is a single module; fix: install it into the environment of"),
        ("parts.d", "'parts.d' is not installed"),
        ("", "'' is not installed"),
        ("bare", "'bare' has neither headers (include) nor libraries (lib*.so)"),
        (
            "old_and_new",
            "has 2 versions of libsimulator: libsimulator.so.4, libsimulator.so.3.2; fix: name one, as in old",
        ),
        ("old_and_new:libx.so", "has no library libx.so (it has libsimulator.so.3.2, libsimulator.so.4)"),
        ("bare:libx.so", "has no library libx.so (it has none)"),
    ],
)
def test_a_package_that_cannot_be_used_is_refused(
    name: str, words: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    (tmp_path / "x.pyx").write_text("X = 1\n")
    with pytest.raises(rtloop.BuildError) as raised:
        rtloop.build("x.pyx", packages=name)
    assert words in str(raised.value)
    (tmp_path / "y.pyx").write_text(f'# rtloop: packages = ["{name}"]\nX = 1\n')
    with pytest.raises(rtloop.BuildError) as raised:
        rtloop.build("y.pyx")
    assert f"{tmp_path}/y.pyx: " in str(raised.value) and words in str(raised.value)


def test_a_pattern_among_the_sources_stands_for_the_files_that_match(tmp_path: Path) -> None:
    folder = tmp_path / "project [1]"
    (folder / "generated" / "below").mkdir(parents=True)
    (folder / "x.pyx").write_text("# distutils: sources = generated/**/*.c\n")
    with pytest.raises(rtloop.BuildError, match=r"(?s)no file matches .*generated/.*fix: generate the files first"):
        read_extras(folder / "x.pyx")
    names = ("a.c", "b.c", "below/c.c")
    for name in (*names, "b.h"):
        (folder / "generated" / name).touch()
    assert read_extras(folder / "x.pyx").sources == tuple(f"{folder}/generated/{name}" for name in names)


def test_a_new_file_that_matches_a_pattern_compiles_the_module_again(tmp_path: Path) -> None:
    (tmp_path / "part_1.c").write_text("int part(void) { return 1; } int extra(void) __attribute__((weak));\n")
    code = '"""int part(void); int extra(void) __attribute__((weak));"""\n    int part()\n    int extra()\n'
    has = 'cdef extern from *:\n    """#define HAS_EXTRA (extra != 0)"""\n    bint HAS_EXTRA\n'
    text = f"# distutils: sources = part_*.c\ncdef extern from *:\n    {code}{has}"
    text += "def has():\n    return part(), HAS_EXTRA\n"
    (tmp_path / "grows.pyx").write_text(text)
    assert rtloop.build("grows.pyx").has() == (1, False)
    (tmp_path / "part_2.c").write_text("int extra(void) { return 2; }\n")
    assert rtloop.build("grows.pyx").has() == (1, True)


def test_a_dependency_that_is_not_found_is_named_and_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtloop.compiler import compilation

    (tmp_path / "x.pyx").write_text("X = 1\n")
    sorted_out = compilation._sorted_out
    monkeypatch.setattr(compilation, "_sorted_out", lambda read, work: sorted_out(read | {"/no/such/file.h"}, work))
    for _ in range(2):
        built = build_module("x.pyx")
        assert built.seconds > 0 and "changes of /no/such/file.h cannot be detected" in built.notes[0]


def test_a_program_frozen_by_pyinstaller_has_what_is_imported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled modules, and the commands, were missing. The hooks are run here without PyInstaller."""
    from importlib.metadata import entry_points

    def collect_submodules(package: str, filter: Callable[[str], bool]) -> list[str]:  # noqa: A002
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.", lambda name: None)
        return [module.name for module in found if filter(module.name)]

    hooks = ModuleType("PyInstaller.utils.hooks")
    hooks.collect_submodules = collect_submodules  # type: ignore[attr-defined]
    hooks.collect_dynamic_libs = hooks.collect_data_files = lambda package: [package]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyInstaller.utils.hooks", hooks)
    (point,) = (p for p in entry_points(group="pyinstaller40") if p.module.startswith("rtloop"))
    (folder,) = point.load()()
    found = {path.stem: runpy.run_path(str(path)) for path in Path(folder).glob("hook-*.py")}
    assert found["hook-rtloop"]["binaries"] == ["rtloop"]
    assert {"rtloop.loop.thread", "rtloop.group.watchdog", "rtloop.simulation.simulation"} <= {
        *found["hook-rtloop"]["hiddenimports"]
    }
    assert not [name for name in found["hook-rtloop"]["hiddenimports"] if name.startswith("rtloop.tools")]
    assert {"rtloop.tools.latency.command", "rtloop.tools.doctor"} <= {*found["hook-rtloop.tools.cli"]["hiddenimports"]}


@pytest.mark.parametrize("state", ["frozen", "none", "embedded"])
def test_a_program_without_an_interpreter_compiles_nothing(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child would be another copy of the program, which would start another one."""
    from rtloop.demo.plant import PlantProcess
    from rtloop.machine.doctor.trial_loop import examine, run_probe
    from rtloop.machine.latency.load import Load

    marker = tmp_path / "started"
    program = tmp_path / "robot"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", {"frozen": str(program), "none": None, "embedded": str(program)}[state])
    if state == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    (tmp_path / "servo.pyx").write_text("X = 1\n")
    why = {"frozen": "frozen", "none": "not set", "embedded": "embeds"}[state]
    for call in (
        lambda: rtloop.build("servo.pyx"), lambda: rtloop.lint("servo.pyx"), lambda: PlantProcess(10**9, 1),
        lambda: Load("cpu").__enter__(),
    ):  # fmt: skip
        with pytest.raises(rtloop.RtloopError, match=why):
            call()
    (check,) = examine(run_probe())
    assert check.verdict == "note" and why in check.found
    assert not marker.exists(), "and it was not started"
