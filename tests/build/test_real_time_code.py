"""What the loop's thread runs is C without the GIL: the methods' signatures, and the C that Cython makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from Cython.Build import cythonize

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rtloop"
#: Modules with methods that the loop's thread calls.
CALLED = ["loop/loop.pyx", "functions/function_loop.pyx", "demo/cartpole.pyx"]
CODE = """
cdef class Mean:
    cdef int count
    cdef int[::1] values
    cdef int step(self, int at) noexcept nogil:
        return self.values[at] // self.count
"""


def methods(text: str) -> list[tuple[str, str, str]]:
    """Return (type, name, what follows the arguments) of every C method in a .pxd or .pyx."""
    pattern = r"^    cdef (?:inline )?(\w+) \**(\w+)\(self[^)]*\)([^:\n]*)"
    return re.findall(pattern, text, re.MULTILINE)


def test_every_overridable_method_is_noexcept_nogil_and_returns_a_code() -> None:
    found = methods((PACKAGE / "loop/loop.pxd").read_text())
    called = {"enter", "step", "overrun", "wait", "leave", "shift", "on_peer_failure", "safe"}
    assert called <= {name for _, name, _ in found}
    for kind, name, rest in found:
        if kind == "object":
            assert name in ("parameter", "signal"), "declared by Python code, before the thread exists"
            continue
        assert rest.strip() == "noexcept nogil", name
        assert kind == {"leave": "void", "device_cycle": "int64_t"}.get(name, "int"), name


def test_no_function_of_the_package_is_nogil_without_noexcept() -> None:
    """Declared elsewhere in C ("cdef extern"), a function raises nothing by itself."""
    found = 0
    for path in [*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")]:
        for line in path.read_text().splitlines():
            if re.match(r"\s*cdef (?!extern).*\).*\bnogil\b", line):
                found += 1
                assert "noexcept nogil" in line, f"{path.name}: {line.strip()}"
    assert found > 20, "the scanner reads nothing"


def directives() -> dict[str, bool]:
    """Read the directives that our modules are compiled with."""
    text = (PACKAGE / "meson.build").read_text()
    (block,) = re.findall(r"cython_args = \[(.*?)\]", text, re.DOTALL)
    return {name: value == "True" for name, value in re.findall(r"'(\w+)=(\w+)'", block)}


def generate(source: Path, values: dict[str, bool]) -> str:
    """Return the C that Cython makes of a module, beside which it is written."""
    cythonize([str(source)], compiler_directives=values | {"language_level": 3}, force=True, quiet=True)
    return source.with_suffix(".c").read_text()


def places(text: str) -> int:
    """Count where the C takes the GIL, but for Cython's own macros."""
    return sum("PyGILState_Ensure" in line and not line.endswith("\\") for line in text.splitlines())


@pytest.mark.parametrize("module", CALLED)
def test_no_check_in_a_called_method_takes_the_gil(tmp_path: Path, module: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "rtloop", ignore=shutil.ignore_patterns("__pycache__"))
    text = generate(tmp_path / "rtloop" / module, directives())
    assert "PyGILState_Ensure" in text, "the macros"
    assert places(text) == 0


def test_the_directives_are_what_keeps_the_gil_away(tmp_path: Path) -> None:
    def in_step(values: dict[str, bool]) -> int:
        text = generate(source, values)
        (step,) = re.findall(r"^static \w+ \w+_step\([^;]*?\) {\n.*?^}", text, re.MULTILINE | re.DOTALL)
        return places(step)

    source = tmp_path / "mean.pyx"
    source.write_text(CODE)
    assert in_step(directives()) == 0
    for name in ("boundscheck", "cdivision", "initializedcheck"):
        assert in_step({key: value for key, value in directives().items() if key != name}) > 0, name


def test_a_loop_without_guards_has_a_body_of_its_own_with_less_code() -> None:
    """Guards are inlined into the body with guards; that of a loop without any is compiled from the same source."""
    import rtloop.loop.loop

    done = subprocess.run(["nm", "-S", str(rtloop.loop.loop.__file__)], capture_output=True, text=True, check=False)
    found = re.findall(r"^\w+ (\w+) t \S*loop__(body|guarded_body)$", done.stdout, re.MULTILINE)
    if not found:
        pytest.skip("the module is stripped of its symbols, or there is no nm")
    size = {name: int(digits, 16) for digits, name in found}
    assert size["body"] < size["guarded_body"], size
