"""``rtloop lint``: every violation is found, innocent code is not, and unseen code is never called clean."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import rtloop
from rtloop.compiler import c_compiler
from rtloop.linter.lint import LintReport

pytest.importorskip("Cython", reason="the lint needs rtloop[build]")

ROOT = Path(__file__).parents[2]
PACKAGE = Path(rtloop.__file__).parent
BAD = sorted((ROOT / "tests/lint/bad").glob("*.pyx"))
GOOD = sorted((ROOT / "tests/lint/good").glob("*.pyx"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.pyx"))
#: C methods of the classes that a step uses, which no loop's table of methods leads to.
METHODS = {
    "data/latest.pyx": ("read", "write"),
    "data/pool.pyx": ("alloc", "free"),
    "data/ring.pyx": ("push", "pop", "push_many", "pop_many"),
    "data/signals.pyx": ("sample",),
}
#: The modules with a loop that has a callback of its own.
OURS = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.pyx")
    if re.search(r"cdef class \w+\((?:\w*Loop\w*|Plant)\)|cdef class _RTLoop", path.read_text())
    and re.search(r"cdef (?:int|void) (?:enter|step|wait|leave|take_over)\(self", path.read_text())
)
MARK = re.compile(r"(?:#|//) BAD: ([a-z -]+)$")


@pytest.fixture(scope="session")
def report() -> Callable[[Path], LintReport]:
    """Return the report of a file of tests/lint; Cython works on the next ones meanwhile."""
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    reports: dict[Path, Future[LintReport]] = {}

    def get(path: Path) -> LintReport:
        ahead = [*BAD, *GOOD]
        start = ahead.index(path)
        for one in ahead[start : start + 4]:
            if one not in reports:
                reports[one] = pool.submit(rtloop.lint, one)
        return reports[path].result()

    yield get
    pool.shutdown(cancel_futures=True)


def expected(path: Path) -> set[tuple[int, str]]:
    marks = [(number, MARK.search(line)) for number, line in enumerate(path.read_text().splitlines(), 1)]
    return {(number, kind) for number, mark in marks if mark for kind in mark[1].split()}


def found(report: LintReport) -> set[tuple[int, str]]:
    return {(finding.line, finding.kind) for finding in report.findings}


def write(folder: Path, body: str, head: str = "", name: str = "loop.pyx") -> Path:
    path = folder / name
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    path.write_text(
        f"from rtloop cimport RT_CONTINUE, Cycle, RTLoop\n{head}\n\ncdef class Loop(RTLoop):\n"
        f"    cdef int step(self, const Cycle *cycle) noexcept nogil:\n{lines}        return RT_CONTINUE\n"
    )
    return path


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_each_sin_is_found_on_its_line_and_nothing_else(path: Path, report: Callable[[Path], LintReport]) -> None:
    sins = expected(path)
    assert sins, "a bad file has to mark its line"
    assert found(report(path)) == sins
    assert not report(path).is_clean


def test_another_thread_may_change_the_environment_meanwhile(tmp_path: Path) -> None:
    """The environment that a new program gets is copied first: the C library moves its own when it grows."""
    source = tmp_path / "loop.pyx"
    source.write_text("cdef class\n")
    has_ended = threading.Event()

    def change() -> None:
        for number in itertools.cycle(range(400)):
            if has_ended.is_set():
                break
            os.environ[f"RTLOOP_TEST_{number}"] = "y" * (number % 3 * 1000)
            if number == 399:
                forget()

    def forget() -> None:
        for number in range(400):
            os.environ.pop(f"RTLOOP_TEST_{number}", None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(100):
            assert c_compiler.ask_version(["true"])
        for _ in range(2):
            with pytest.raises(rtloop.LintError, match="Expected"):
                rtloop.lint(source)
    finally:
        has_ended.set()
        thread.join()
        forget()


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_innocent_code_is_not_flagged(path: Path, report: Callable[[Path], LintReport]) -> None:
    one = report(path)
    assert found(one) == set()
    assert one.is_clean
    assert one.not_examined == ()
    assert one.unused == ()
    assert one.functions


def test_what_is_accepted_is_told_with_its_reason(report: Callable[[Path], LintReport]) -> None:
    accepted = report(ROOT / "tests/lint/good/accepted.pyx").accepted
    assert [(one.kind, one.names, one.reason) for one in accepted] == [
        ("io", ("puts",), "shown to be accepted"),
        ("allocation", ("free", "malloc"), "of the same size each time"),
        ("division", (), "it has to round down"),
        ("gil", (), "once an hour"),
    ]


def test_the_way_to_a_finding_and_the_cause_are_told(report: Callable[[Path], LintReport]) -> None:
    (deep,) = report(ROOT / "tests/lint/bad/deep.pyx").findings
    assert deep.chain == ("Loop.step", "first", "second", "third")
    assert deep.names == ("puts",)
    assert deep.source.startswith('puts("third")')
    assert "Ring" in deep.fix
    (helper,) = report(ROOT / "tests/lint/bad/helper_without_noexcept.pyx").findings
    assert helper.names == ("twice",)
    assert [line for _, line in helper.called_at] == [13], "the declaration is the cause, and the calls are told"
    hints = report(ROOT / "tests/lint/bad/method_without_noexcept.pyx").hints
    assert [line for _, line, text in hints if "twice" in text] == [10], "what Cython hints at"


def test_one_cause_is_one_finding(tmp_path: Path) -> None:
    path = write(tmp_path, "twice(1)\n" * 5, "\ncdef int twice(int x) nogil:\n    return x + x\n")
    (one,) = rtloop.lint(path).findings
    assert len(one.called_at) == 5


@pytest.mark.parametrize(
    ("head", "body", "name"),
    [
        ('cdef extern from "of_somebody.h" nogil:\n    int foreign(int x)', "foreign(1)", "foreign"),
        ("ctypedef int (*function)(int) noexcept nogil\ncdef function pointer", "pointer(1)", "pointer"),
        ("ctypedef int (*function)(int) noexcept nogil\ncdef function[2] table", "table[1](1)", "table"),
    ],
    ids=["header", "pointer", "table"],
)
def test_what_cannot_be_seen_is_not_called_clean(tmp_path: Path, head: str, body: str, name: str) -> None:
    path = write(tmp_path, body, f"\n{head}\n")
    one = rtloop.lint(path)
    ((unseen,), line) = one.not_examined, path.read_text().splitlines().index(f"        {body}") + 1
    assert unseen.names == (name,)
    assert [place for _, place in unseen.called_at] == [line]
    assert one.findings == ()
    assert rtloop.lint(path, allow=unseen.names).not_examined == (), "vouched for"


def test_a_method_of_a_Cpp_class_is_reported_as_not_examined(tmp_path: Path) -> None:
    (tmp_path / "tracker.hpp").write_text("struct Tracker {\n  int update(int x) noexcept { return x; }\n};\n")
    head = 'cdef extern from "tracker.hpp" nogil:\n    cdef cppclass Tracker:\n        int update(int x)\n'
    path = write(tmp_path, "tracker.update(1)", f"\n{head}\ncdef Tracker tracker\n")
    path.write_text(f"# distutils: language = c++\n{path.read_text()}")
    (unseen,) = rtloop.lint(path).not_examined
    assert unseen.names == ("update",) and unseen.why.startswith("a method of a C++ class")


def test_headers_and_inline_functions_of_the_project_are_read(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include/mine.h").write_text('#include "below.h"\nstatic inline int mine(int x) { return below(x); }\n')
    (tmp_path / "include/below.h").write_text(
        "#include <stdlib.h>\n\nstatic inline int below(int x) {\n  free(malloc(x));\n  return x;\n}\n"
    )
    (tmp_path / "shared.pxd").write_text(
        "from libc.stdio cimport puts\n\ncdef inline void tell() noexcept nogil:\n    puts('x')\n"
    )
    head = 'from shared cimport tell\n\ncdef extern from "mine.h" nogil:\n    int mine(int x)\n'
    path = write(tmp_path, "tell()\nmine(3)", head)
    assert "mine" in rtloop.lint(path).not_examined[0].names, "out of reach"
    one = rtloop.lint(path, include=[tmp_path / "include"])
    assert one.not_examined == ()
    assert [(Path(f.file).name, f.line, f.kind) for f in one.findings] == [
        ("below.h", 4, "allocation"),
        ("shared.pxd", 4, "io"),
    ]


def test_the_c_files_that_a_module_names_are_read(tmp_path: Path) -> None:
    (tmp_path / "smooth.h").write_text("double smooth(double x);\ndouble both(double x);\n")
    (tmp_path / "smooth.c").write_text(
        '#include <stdlib.h>\n#include "smooth.h"\nstatic double scale(double x) { return 2 * x; }\n'
        "double smooth(double x) {\n  free(malloc(8));\n  return scale(x);\n}\n"
    )
    path = tmp_path / "smoothing.pyx"
    loop = (
        "from rtloop cimport RT_CONTINUE, Cycle, RTLoop\n"
        'cdef extern from "smooth.h" nogil:\n    double smooth(double x)\n    double both(double x)\n'
        "cdef class Smoothing(RTLoop):\n    cdef int step(self, const Cycle *cycle) noexcept nogil:\n"
        "        {}(cycle.t)\n        return RT_CONTINUE\n"
    )
    path.write_text(loop.format("smooth"))
    (unseen,) = rtloop.lint(path).not_examined
    assert unseen.names == ("smooth",) and "sources = FILE.c" in unseen.fix and ".pyx" not in unseen.fix
    path.write_text("# distutils: sources = smooth.c\n" + loop.format("smooth"))
    one = rtloop.lint(path)
    assert {"smooth", "scale"} <= set(one.functions) and one.not_examined == ()
    ((kind, file, line),) = {(finding.kind, finding.file, finding.line) for finding in one.findings}
    assert (kind, Path(file).name, line) == ("allocation", "smooth.c", 5)

    for name in ("a.c", "b.c"):
        (tmp_path / name).write_text("static double both(double x) { return x; }\n")
    path.write_text("# distutils: sources = a.c b.c gone.c\n" + loop.format("both"))
    assert [one.names for one in rtloop.lint(path).not_examined] == [("both",)], "which of them is not known"


def test_a_method_of_another_module_is_not_examined(tmp_path: Path) -> None:
    for name, text in {
        "tool.pxd": "cdef class Tool:\n    cdef int use(self) noexcept nogil\n    cdef int more(self) noexcept nogil\n",
        "base.pxd": "from rtloop cimport Cycle, RTLoop\ncdef class Base(RTLoop):\n"
        "    cdef int step(self, const Cycle *cycle) noexcept nogil\n",
        "loop.pyx": "from base cimport Base\nfrom tool cimport Tool\n\ncdef class Loop(Base):\n    cdef Tool tool\n"
        "    cdef void leave(self) noexcept nogil:\n        self.tool.use()\n",
    }.items():
        (tmp_path / name).write_text(text)
    one = rtloop.lint(tmp_path / "loop.pyx")
    assert {name for unseen in one.not_examined for name in unseen.names} == {"base.Base", "tool.Tool.use"}


def test_a_callback_is_examined_by_name(tmp_path: Path) -> None:
    path = tmp_path / "callback.pyx"
    path.write_text(
        "from libc.stdlib cimport malloc\nfrom rtloop cimport Cycle\n\n"
        "cdef public int callback(const Cycle *cycle, void *data) noexcept nogil:\n    malloc(8)\n    return 0\n"
    )
    assert rtloop.lint(path).functions == ()
    assert not rtloop.lint(path).is_clean, "nothing examined is not clean"
    assert found(rtloop.lint(path, functions=["callback"])) == {(5, "allocation")}
    with pytest.raises(rtloop.ConfigError, match="no C function 'other'"):
        rtloop.lint(path, functions=["other"])


def test_the_builds_directives_count(tmp_path: Path) -> None:
    path = write(tmp_path, "cdef int n = <int>cycle.index\nn = n // n")
    assert found(rtloop.lint(path)) == {(7, "division")}
    assert rtloop.lint(path, directives={"cdivision": True}).is_clean
    path.write_text("# cython: cdivision=False\n" + path.read_text())
    assert found(rtloop.lint(path, directives={"cdivision": True})) == {(8, "division")}, "the file's own go first"


def test_an_allow_that_accepts_nothing_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "# rtloop: allow malloc: there was one once")
    assert rtloop.lint(path).unused == ((str(path), 6, "malloc"),)


def test_what_does_not_compile_is_an_error_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "broken.pyx"
    path.write_text("cdef class Loop(:\n")
    with pytest.raises(rtloop.LintError, match=r"(?s)does not compile, 1 error:.*broken\.pyx:1:17"):
        rtloop.lint(path)
    with pytest.raises(rtloop.LintError, match="No such file"):
        rtloop.lint(tmp_path / "missing.pyx")
    with pytest.raises(rtloop.ConfigError, match="neither a kind of finding"):
        rtloop.lint(path, allow=["a b"])


#: Functions of others' libraries that the steps of examples call; the guards measure these instead.
FOREIGN = {
    "balancer": {"mj_step"},
    "cartesian": {
        "franka.Franka", "franka.Franka.enter",  # examined by itself, in franka.pyx
        "mj_kinematics", "mj_comPos", "mj_comVel", "mj_rne", "mj_jac",
    },
    "ethercat": {"ecx_receive_processdata", "ecx_send_processdata", "ecx_writestate", "ecx_statecheck"},
    "fmu": {"set_real", "do_step", "get_real"},
    "humanoid": {"mj_step", "__pyx_e_8humanoid_RUN"},
    "mpc": {"osqp_update_data_vec", "osqp_solve", "nmpc"},
}  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_clean(path: Path) -> None:
    one = rtloop.lint(path)
    assert one.is_clean, one.findings
    assert {name for finding in one.not_examined for name in finding.names} == FOREIGN.get(path.stem, set())
    assert one.loops


@pytest.mark.parametrize("module", [*OURS, *METHODS])
def test_our_own_modules_are_clean(module: str) -> None:
    """With the directives of our build; the methods of Pool, Ring and the like are what a step may call."""
    text = (ROOT / "rtloop/meson.build").read_text()
    (block,) = re.findall(r"cython_args = \[(.*?)\]", text, re.DOTALL)
    directives = dict(re.findall(r"'(\w+)=(\w+)'", block))
    one = rtloop.lint(PACKAGE / module, directives=directives, functions=METHODS.get(module, ()))
    assert one.findings == ()
    assert one.functions
    assert one.unused == ()
    unseen = {name for unseen in one.not_examined for name in unseen.names}
    pointers = {"functions/function_loop.pyx": {"_entering", "_function", "_leaving"}}  # a FunctionLoop's own
    clock = {"read_clock"} & unseen if module in ("loop/loop.pyx", "simulation/simulation.pyx") else set()
    hooks = {"on_peer_failure", "take"} & unseen if clock else set()
    assert unseen == pointers.get(module, set()) | clock | hooks, (
        "besides these, the clock of the vDSO, the hook that a wait may call, and the copy of signals, which is chosen "
        "by their number, are called by their addresses"
    )


def test_our_own_modules_are_all_there() -> None:
    assert {"loop/loop.pyx", "functions/function_loop.pyx", "functions/python_loop.pyx"} <= set(OURS)
    assert {"demo/cartpole.pyx", "demo/physics.pyx", "machine/latency/breakpoint.pyx"} <= set(OURS)


def code_of_the_docs() -> list[tuple[str, str]]:
    """Return the Cython of the documentation that has a loop in it."""
    blocks = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, block in enumerate(re.findall(r"```(?:cython|pyx|python)\n(.*?)```", path.read_text(), re.DOTALL)):
            if re.search(r"cdef class \w+\((?:rtloop\.)?RTLoop\)", block) and "...\n" not in block:
                blocks.append((f"{path.stem}-{number}", block))
    return blocks


@pytest.mark.parametrize(("name", "block"), code_of_the_docs(), ids=lambda value: value if len(value) < 40 else "")
def test_every_loop_of_the_docs_is_clean(tmp_path: Path, name: str, block: str) -> None:
    path = tmp_path / "documented.pyx"
    path.write_text(block)
    one = rtloop.lint(path)
    assert one.is_clean, (name, one.findings)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs ``rtloop lint`` and gives exit code, standard output and standard error."""
    pytest.importorskip("click", reason="the command line needs rtloop[cli]")
    pytest.importorskip("rich", reason="the command line needs rtloop[cli]")
    from rtloop.tools.cli import main

    def run(*args: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(["lint", *map(str, args)])
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, *capsys.readouterr()

    return run


def test_the_command_tells_the_place_the_reason_and_the_fix(tmp_path: Path, command) -> None:
    path = write(tmp_path, 'puts("[red]")', "from libc.stdio cimport puts\n")
    code, out, _ = command(path)
    assert code == 1
    assert "loop.pyx:7" in out
    assert 'puts("[red]")' in out, "what is in brackets is no markup"
    assert "in Loop.step: puts" in out
    assert "fix  push a record to a Ring" in out
    assert out.rstrip().endswith("1 finding, 1 function examined")


def test_the_exit_codes_are_for_scripts(tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtloop.linter.generated import generate

    made = {}

    def once(source, include, directives):  # Cython is slow, and makes the same each time
        key = source, tuple(directives)
        if key not in made:
            made[key] = generate(source, include, directives)
        return made[key]

    monkeypatch.setattr("rtloop.linter.lint.generate", once)
    clean = write(tmp_path, "pass", name="clean.pyx")
    bad = write(tmp_path, 'puts("x")', "from libc.stdio cimport puts\n", name="bad.pyx")
    unseen = write(tmp_path, "foreign()", '\ncdef extern from "o.h" nogil:\n    int foreign()\n', name="unseen.pyx")
    plain = tmp_path / "plain.pyx"
    plain.write_text("cdef int x = 1\n")
    assert command(clean)[0] == 0
    assert command(clean, bad)[0] == 1
    assert command(bad, "--allow", "puts")[0] == 0
    assert command(bad, "--allow", "io")[0] == 0
    assert command(unseen)[0] == 0
    assert command(unseen, "--strict")[0] == 1
    assert command(plain, clean)[0] == 0, "a module without a loop among those with one"
    assert command(plain)[0] == 2
    assert command(bad, tmp_path / "missing.pyx")[0] == 2, "not examined goes before found"
    assert command(clean, "-X", "cdivision")[0] == 2
    divides = write(tmp_path, "cdef int n = <int>cycle.index\nn = n // n", name="divides.pyx")
    assert command(divides)[0] == 1
    assert command(divides, "--as-run")[0] == 0


def test_the_json_has_everything(tmp_path: Path, command) -> None:
    bad = write(tmp_path, 'puts("x")', "from libc.stdio cimport puts\n", name="bad.pyx")
    code, out, _ = command("--json", bad, tmp_path / "missing.pyx")
    told = json.loads(out)
    assert code == told["exit_code"] == 2
    ((finding,), missing) = told["files"][0]["findings"], told["files"][1]
    assert (finding["kind"], finding["line"], finding["names"]) == ("io", 7, ["puts"])
    assert finding["why"] and finding["fix"] and finding["source"]
    assert "No such file" in missing["error"]


def test_a_missing_cython_names_the_extra(tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "Cython.Compiler", None)
    monkeypatch.setitem(sys.modules, "Cython", None)
    code, _, err = command(write(tmp_path, "pass"))
    assert code == 2
    assert "pip install 'rtloop[build]'" in err


def test_the_source_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "read only"
    folder.mkdir()
    path = write(folder, "pass")
    before = path.stat().st_mtime_ns
    assert rtloop.lint(path).is_clean
    assert [one.name for one in folder.iterdir()] == [path.name]
    assert path.stat().st_mtime_ns == before


def test_every_file_of_the_set_has_its_test() -> None:
    assert len(BAD) >= 45
    assert len(GOOD) >= 15
