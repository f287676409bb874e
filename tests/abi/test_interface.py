"""The binary interface is frozen, and a module built against another one is told to recompile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import rtloop

GOLDEN = Path(__file__).parent / "interface_2.txt"
PACKAGE = Path(rtloop.__file__).parent


def describe(declarations: str, kind: type) -> str:
    """Write what a compiled subclass depends on, in its order: size of the object, fields of structs, methods."""
    lines = [f"basicsize {kind.__basicsize__}"]
    inside = False
    for line in declarations.splitlines():
        match = re.match(r"cdef (struct|class) (\w+)", line)
        if match:
            inside = True
            lines.append(f"{match[1]} {match[2]}")
        elif inside and line.startswith("    "):
            lines.append("  " + line.partition("#")[0].strip().removeprefix("cdef "))
        elif line.strip():
            inside = False
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("declarations", "kind", "golden"),
    [
        ("loop/loop.pxd", rtloop.RTLoop, GOLDEN),
        ("data/buffer.pxd", rtloop.HugeBuffer, GOLDEN.with_name("buffer_1.txt")),
        ("data/pool.pxd", rtloop.Pool, GOLDEN.with_name("pool_1.txt")),
        ("data/ring.pxd", rtloop.Ring, GOLDEN.with_name("ring_1.txt")),
        ("data/latest.pxd", rtloop.Latest, GOLDEN.with_name("latest_1.txt")),
        ("data/signals.pxd", rtloop.SignalLog, GOLDEN.with_name("signals_1.txt")),
    ],
)
def test_the_interface_is_the_golden_one(declarations: str, kind: type, golden: Path) -> None:
    assert describe((PACKAGE / declarations).read_text(), kind) == golden.read_text(), (
        "the binary interface has changed: rename the class, raise the version, write 'recompile' into CHANGELOG.md, "
        "and add a golden file; an addition takes a reserved slot"
    )


def test_the_struct_of_users_is_the_dtype_of_numpy() -> None:
    names = re.findall(r"^  (?:u?int64_t|double) (\w+)$", GOLDEN.read_text(), re.MULTILINE)
    assert list(rtloop.cycle_dtype.names or ()) == names
    assert rtloop.cycle_dtype.itemsize == 8 * len(names)


@pytest.mark.parametrize("name", ["RTLoop", "Pool", "HugeBuffer", "Ring", "Latest", "SignalLog"])
def test_a_module_of_another_interface_fails_at_import_with_advice(
    tmp_path: Path, name: str, warm_cython: dict[str, str]
) -> None:
    """Compile against declarations in which the class has its next name, then import beside the present rtloop."""
    for pxd in PACKAGE.rglob("*.pxd"):
        target = tmp_path / "next" / "rtloop" / pxd.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(re.sub(rf"_{name}_\d+", f"_{name}_99", pxd.read_text()))
        (target.parent / "__init__.py").touch()
    source = tmp_path / "newer.pyx"
    source.write_text(f"from rtloop cimport {name}\ncdef class Newer({name}):\n    pass\n")
    cython = [sys.executable, "-m", "cython", "-3", "-I", str(tmp_path / "next"), source.name]
    path = os.pathsep.join([str(tmp_path / "next"), warm_cython.get("PYTHONPATH", "")])
    subprocess.run(cython, cwd=tmp_path, check=True, env={**os.environ, **warm_cython, "PYTHONPATH": path})
    include = sysconfig.get_paths()["include"]
    compiler = shutil.which("cc") or "gcc"
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-I{include}", "newer.c", "-o", "newer.so"], cwd=tmp_path, check=True
    )
    done = subprocess.run(
        [sys.executable, "-c", "import newer"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr and "interface 99" in done.stderr and "recompile" in done.stderr


FORMER = """
from libc.stdint cimport int64_t
from posix.unistd cimport usleep
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef class Former(RTLoop):
    cdef public int64_t steps, own, fail_at, hang_at
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.steps += 1
        self.count()
        if self.steps == self.hang_at:
            usleep(900000)
        return -5 if self.steps == self.fail_at else RT_CONTINUE
    cdef void count(self) noexcept nogil:
        self.own += 1
"""
USE = """
import former, rtloop
plain = dict(strict=False, policy="other", lock_memory="off", dma_latency=None)
one, other = former.Former("1ms", name="one", **plain), former.Former("2ms", name="other", **plain)
one.fail_at = 20
try:
    rtloop.LoopGroup([one, other], on_failure="hook").run()
except rtloop.CallbackError as error:
    print(error.name, one.state, other.state, one.own == one.steps == 20, other.own == other.steps > 0)
one.fail_at, one.hang_at = 0, 30
try:
    rtloop.LoopGroup([one, other], watchdog=300).run()
except rtloop.WatchdogError as error:
    print(error.name, error.cycle, error.safe_code, one.state, other.state)
"""


def test_a_module_compiled_before_a_reserved_slot_was_taken_goes_on_working(
    tmp_path: Path, warm_cython: dict[str, str]
) -> None:
    """Compile against the declarations as they were, import beside the present rtloop, have the new slots called."""
    for pxd in PACKAGE.rglob("*.pxd"):
        target = tmp_path / "before" / "rtloop" / pxd.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(pxd.read_text())
        (target.parent / "__init__.py").touch()
    declarations = tmp_path / "before" / "rtloop" / "loop" / "loop.pxd"
    text = declarations.read_text()
    for new, reserved in (("safe", "_former_0"), ("on_peer_failure", "_former_1")):
        assert f"cdef int {new}(self) noexcept nogil" in text
        text = text.replace(f"cdef int {new}(self)", f"cdef int {reserved}(self)")
    declarations.write_text(text)
    (tmp_path / "former.pyx").write_text(FORMER)
    cython = [sys.executable, "-m", "cython", "-3", "-I", str(tmp_path / "before"), "former.pyx"]
    path = os.pathsep.join([str(tmp_path / "before"), warm_cython.get("PYTHONPATH", "")])
    subprocess.run(cython, cwd=tmp_path, check=True, env={**os.environ, **warm_cython, "PYTHONPATH": path})
    assert "_former_1" in (tmp_path / "former.c").read_text()
    compiler, include = shutil.which("cc") or "gcc", sysconfig.get_paths()["include"]
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-I{include}", "former.c", "-o", "former.so"], cwd=tmp_path, check=True
    )
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    told = "one failed stopped True True\none {} 0 failed stopped\n"
    assert done.stdout == told.format(8), done.stdout + done.stderr


def test_every_module_is_bound_at_load_time() -> None:
    modules = sorted(PACKAGE.rglob("*.so"))
    assert modules
    for module in modules:
        dynamic = subprocess.run(["readelf", "-d", str(module)], capture_output=True, text=True, check=True).stdout
        assert "BIND_NOW" in dynamic or re.search(r"FLAGS.*NOW", dynamic), module.name
