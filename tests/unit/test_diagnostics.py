"""Messages of Cython and the C compiler about a .pyx, shown with the line, the code and a fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtloop.compiler.diagnostics import Diagnostic, format_errors, read_compiler, read_cython, show_diagnostic

CODE = """\
from rtloop cimport RTLoop, Cycle
cdef class Servo(RTLoop):
    cdef int step(self, const Cycle *cycle) nogil:
\tx = foo
        return RT_STOP
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "servo.pyx"
    path.write_text(CODE)
    return path


def cython(path: Path, *said: str) -> str:
    """Write what Cython prints: each error below the code around it."""
    block = "\nError compiling Cython file:\n" + "-" * 60 + "\n...\n  code\n  ^\n" + "-" * 60 + "\n"
    return "".join(f"{block}{path}:{text}\n" for text in said)


def test_an_error_is_shown_at_its_line(source: Path) -> None:
    (found,) = read_cython(cython(source, "4:5: undeclared name not builtin: foo"), is_error=True)
    assert found == Diagnostic(str(source), 4, 6, "the name foo is not known")
    shown = show_diagnostic(found).splitlines()
    assert shown[0] == "servo.pyx:4:6: the name foo is not known", "as one would click on it from here"
    assert shown[1] == "    4 | \tx = foo"
    assert shown[2] == "      | \t    ^", "a tab stays one, and the mark is below the place"


def test_a_misspelled_attribute_in_a_formula_is_named(source: Path) -> None:
    """Cython reports first what the formula does with it."""
    source.write_text(CODE.replace("\tx = foo", "        x = 2 * self.kpp * self.other"))
    said = ("Coercion from Python", "Operation", "Accessing Python attribute", "Accessing Python attribute")
    lines = [f"4:{column}: {one} not allowed without gil" for column, one in zip((31, 28, 25, 36), said, strict=True)]
    (found,) = read_cython(cython(source, *lines), is_error=True)
    assert found.column == 26 and "self.kpp is not a C attribute" in found.text


@pytest.mark.parametrize(
    ("code", "said", "text", "fix"),
    [
        ("        self.value = cycle.t", "Assignment of Python object not allowed without gil",
         "self.value is not a C attribute", "cdef public double value"),
        ("        cdef double t = cycle.time", "Cannot convert 'const Cycle *' to Python object",
         "Cycle has no 'time'", "its fields are index, release, start, period, missed, t, dt"),
    ],
)  # fmt: skip
def test_what_beginners_write_gets_the_word_that_helps(source: Path, code: str, said: str, text: str, fix: str) -> None:
    source.write_text(CODE.replace("\tx = foo", code))
    (found,) = read_cython(cython(source, f"4:13: {said}"), is_error=True)
    assert text in found.text and fix in found.fix
    source.write_text(CODE.replace("\tx = foo", code).replace("cdef int step", "cdef double value\n    cdef int step"))
    (found,) = read_cython(cython(source, f"5:13: {said}"), is_error=True)
    assert "not a C attribute" not in found.text, "it is declared: something else is wrong"


def test_a_line_has_one_error_and_the_file_s_order(source: Path) -> None:
    said = ["5:15: undeclared name not builtin: RT_STOP", "4:5: undeclared name not builtin: foo"]
    said += ["5:15: Coercion from Python not allowed without the GIL"]
    found = read_cython(cython(source, *said), is_error=True)
    assert [(x.line, x.text) for x in found] == [(4, "the name foo is not known"), (5, "the name RT_STOP is not known")]
    assert found[1].fix == "from rtloop cimport RT_STOP"


@pytest.mark.parametrize(
    ("said", "text", "fix"),
    [
        ("3:4: Signature not compatible with previous declaration", "step is not declared as", "noexcept nogil:'"),
        ("4:5: Assignment of Python object not allowed without gil", "this needs the GIL", "declare C types"),
        ("2:5: 'Cycle' is not a type identifier", "not a type", "from rtloop cimport Cycle"),
        ("1:0: 'rtloop/Foo.pxd' not found", "rtloop has no Foo", "cimport one of"),
        ("2:17: First base of 'Servo' is not an extension type", "First base", "cdef class Name(RTLoop)"),
        ("2:17: Something new", "Something new", ""),
    ],
)
def test_what_concerns_a_loop_has_a_fix(source: Path, said: str, text: str, fix: str) -> None:
    (found,) = read_cython(cython(source, said), is_error=True)
    assert text in found.text
    assert fix in found.fix if fix else not found.fix


def test_a_declaration_elsewhere_is_no_error_of_its_own(source: Path) -> None:
    said = cython(source, "3:4: Signature not compatible with previous declaration")
    said += cython(source.with_name("loop.pxd"), "32:17: Previous declaration is here")
    assert len(read_cython(said, is_error=True)) == 1


def test_hints_are_no_errors_and_say_what_happens(source: Path) -> None:
    hint = f"performance hint: {source}:3:0: Exception check on 'f' will always require the GIL to be acquired.\n"
    more = "Possible solutions:\n\t1. Declare 'f' as 'noexcept' if you control it.\n"
    call = hint.replace("check on", "check after calling").replace(":3:", ":4:")
    warning = f"warning: {source}:5:8: Unused variable\n"
    output = hint + more + call + more + warning
    assert read_cython(output, is_error=True) == ()
    found = read_cython(output, is_error=False)
    assert [x.line for x in found] == [3, 5], "said once, where it is declared"
    assert "takes the GIL after every call" in found[0].text
    assert found[0].fix == "declare 'f' as 'noexcept nogil'"


def test_an_error_of_the_compiler_is_laid_at_the_line_of_the_pyx(source: Path) -> None:
    output = "servo.pyx: In function 'f':\nservo.pyx:4:34: error: too many arguments to function 'sin'\n"
    assert read_compiler(output, source) == (
        Diagnostic(str(source), 4, 0, "C compiler: too many arguments to function 'sin'"),
    )


def test_a_missing_header_is_laid_at_the_line_that_asks_for_it(source: Path) -> None:
    source.write_text(CODE + 'cdef extern from "motor.h":\n    int motor\n')
    (found,) = read_compiler("servo.c:1255:10: fatal error: motor.h: No such file or directory\n", source)
    assert (found.path, found.line) == (str(source), 6)
    assert "include_dirs" in found.fix


def test_many_errors_are_counted_and_a_fix_is_said_once(source: Path) -> None:
    every = [Diagnostic(str(source), 1 + n % 5, 1, f"error {n}", "the same fix") for n in range(20)]
    text = format_errors(source, every)
    assert text.startswith("servo.pyx does not compile, 20 errors:\n")
    assert text.count("the same fix") == 1
    assert text.endswith("... and 12 more")
