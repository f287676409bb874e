"""What the how-to guides say about other people's code is compiled and run: libraries in a step, Numba, parameters."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rtloop

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
LIBRARY = (HOW_TO / "call-a-library.md").read_text()
FILES = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", LIBRARY, re.DOTALL | re.MULTILINE))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page, with /opt/vendor in a folder of the test."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace("/opt/vendor", str(tmp_path / "vendor")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_on_the_page(starts: str) -> str:
    (code,) = (b for b in re.findall(r"^```python\n(.*?)^```$", LIBRARY, re.DOTALL | re.MULTILINE) if starts in b)
    return str(code)


def test_every_file_of_the_page_is_used_here() -> None:
    text = Path(__file__).read_text()
    assert len(FILES) >= 14
    sources = " ".join(FILES.values())
    for name in FILES:
        assert name in text or name.partition(".")[0] in text or name in sources, name


def test_c_sources_next_to_the_pyx(folder: Path) -> None:
    found: dict[str, Any] = {"rtloop": rtloop}
    exec(python_on_the_page('rtloop.build("smoothing.pyx")'), found)
    assert found["stats"].cycles == 1000
    loop = found["smoothing"].Smoothing("1kHz", gain=0.1)
    loop.simulate(cycles=2)
    assert loop.smoothed == pytest.approx(1 - 0.9**2)
    (folder / "smooth.c").write_text(FILES["smooth.c"].replace("+=", "-="))  # an edit compiles it again
    other = rtloop.build("smoothing.pyx").Smoothing("1kHz", gain=0.1)
    other.simulate(cycles=1)
    assert other.smoothed == pytest.approx(-0.1)


def test_a_shared_library_with_its_rpath(folder: Path) -> None:
    vendor = folder / "vendor"
    (vendor / "include").mkdir(parents=True)
    (vendor / "lib").mkdir()
    shutil.move(folder / "smooth.h", vendor / "include")
    compiler = os.environ.get("CC") or str(sysconfig.get_config_var("CC")).split()[0]
    command = [compiler, "-shared", "-fPIC", f"-I{vendor / 'include'}", "smooth.c", "-o", "vendor/lib/libsmooth.so"]
    subprocess.run(command, check=True)
    loop = rtloop.build("vendor_loop.pyx").Smoothing("1kHz")
    loop.simulate(cycles=2)
    assert loop.output == 0.75


def test_a_shared_library_without_its_rpath_is_not_found(folder: Path) -> None:
    """The known-wrong variant, which the page warns of."""
    (folder / "vendor" / "include").mkdir(parents=True)
    (folder / "vendor" / "lib").mkdir()
    shutil.copy(folder / "smooth.h", folder / "vendor" / "include")
    compiler = os.environ.get("CC") or str(sysconfig.get_config_var("CC")).split()[0]
    subprocess.run([compiler, "-shared", "-fPIC", "smooth.c", "-o", "vendor/lib/liblost.so"], check=True)
    text = (folder / "vendor_loop.pyx").read_text()
    without = "".join(line for line in text.splitlines(keepends=True) if "runtime_library_dirs" not in line)
    assert without != text and without.count("libraries = smooth") == 1
    without = without.replace("libraries = smooth", "libraries = lost")  # this process has loaded the other one
    (folder / "no_rpath.pyx").write_text(without)
    with pytest.raises((ImportError, rtloop.BuildError), match="cannot open shared object file"):
        rtloop.build("no_rpath.pyx")


def test_a_library_in_a_python_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "site" / "plantlib"
    (package / "include" / "plantlib").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "include" / "plantlib" / "plant.h").write_text("double plant_step(double position, double dt);\n")
    (folder / "plant.c").write_text("double plant_step(double x, double dt) { return x + dt * (1 - x); }\n")
    compiler = os.environ.get("CC") or str(sysconfig.get_config_var("CC")).split()[0]
    library = package / "libplant.so.3.2"
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libplant.so.3.2", "plant.c", "-o", str(library)]
    subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(str(folder / "site"))
    loop = rtloop.build("plant_loop.pyx").Plant("1kHz")
    loop.simulate(cycles=2)
    assert loop.position == pytest.approx(1 - 0.999**2)


def test_mujoco_in_a_step_does_what_it_does_in_python(folder: Path) -> None:
    mujoco = pytest.importorskip("mujoco", reason="MuJoCo is not installed: pip install mujoco")
    joint = '<joint type="hinge" axis="0 1 0"/><geom type="capsule" size=".02" fromto="0 0 0 .3 0 -.4"/>'
    xml = f'<mujoco><option timestep="0.001"/><worldbody><body>{joint}</body></worldbody></mujoco>'
    (folder / "pendulum.xml").write_text(xml)
    found: dict[str, Any] = {"rtloop": rtloop, "mujoco": mujoco}
    exec(python_on_the_page('rtloop.build("mujoco_loop.pyx")'), found)
    theirs = mujoco.MjData(found["model"])
    for _ in range(1000):
        mujoco.mj_step(found["model"], theirs)
    assert found["stats"].cycles == 1000 and found["data"].time == theirs.time
    assert found["data"].qpos[0] == theirs.qpos[0] != 0


def test_a_class_of_cpp(folder: Path) -> None:
    loop = rtloop.build("tracking.pyx").Tracking("1kHz", gain=0.5)
    loop.simulate(cycles=3)
    assert loop.estimate == 0.875


RUCKIG = """
#include <array>
#include <stdexcept>
namespace ruckig {
double approach(double from, double to);
template <int N> struct InputParameter {
  std::array<double, N> max_velocity, max_acceleration, max_jerk, target_position{}, current_position{};
};
template <int N> struct OutputParameter {
  std::array<double, N> new_position{};
  void pass_to_input(InputParameter<N> &input) const { input.current_position = new_position; }
};
template <int N> struct Ruckig {
  explicit Ruckig(double) {}
  int update(const InputParameter<N> &in, OutputParameter<N> &out) {
    if (in.target_position[0] > 9) return -100;
    if (in.target_position[0] < -9) throw std::invalid_argument("too far");
    for (int i = 0; i < N; i++) out.new_position[i] = approach(in.current_position[i], in.target_position[i]);
    return 0;
  }
};
}
"""  # the part of its interface that the page uses


def test_a_cpp_library_from_its_sources(folder: Path) -> None:
    (folder / "ruckig" / "include" / "ruckig").mkdir(parents=True)
    (folder / "ruckig" / "include" / "ruckig" / "ruckig.hpp").write_text(RUCKIG)
    sources = folder / "ruckig" / "src" / "ruckig"
    sources.mkdir(parents=True)
    (sources / "brake.cpp").write_text("")
    (sources / "velocity_step1.cpp").write_text("")
    approach = "namespace ruckig { double approach(double from, double to) { return from + (to - from) / 2; } }\n"
    (sources / "position_step1.cpp").write_text("static_assert(__cplusplus >= 202002L);\n" + approach)
    module = rtloop.build("ruckig_loop.pyx")
    loop = module.Arm("1kHz")
    loop.x, loop.y = 1.0, 2.0
    loop.simulate(cycles=2)
    assert loop.angles == (0.75, 1.5)
    for refused, code in ((10.0, -100), (-10.0, -1)):  # by a code, and by a C++ exception
        loop = module.Arm("1kHz")
        loop.x = refused
        with pytest.raises(rtloop.CallbackError, match=str(code)):
            loop.simulate(cycles=2)


def test_generated_code(folder: Path) -> None:
    loop = rtloop.build("model_loop.pyx").Model()
    seen: list[float] = []
    loop.simulate("5s", plant=lambda cycle: seen.append(loop.output))
    assert loop.settings.period_ns == 1_000_000
    assert seen[1] == pytest.approx(2 + 5e-3) and abs(seen[-1]) < 0.05, "it has arrived at its setpoint"
    assert loop.output == 0, "from leave"


@pytest.mark.parametrize("name", ["smoothing", "tracking", "model_loop", "solving"])
def test_the_loops_of_the_page_are_clean(folder: Path, name: str) -> None:
    report = rtloop.lint(folder / f"{name}.pyx")
    unknown = {finding.kind for finding in report.findings}
    assert unknown <= {"unknown"}, report.findings


def test_allocations_of_a_library_are_found_and_avoided(folder: Path) -> None:
    command = [sys.executable, "find_allocations.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    found, avoided = done.stdout.strip().splitlines()
    assert re.search(r"\b[1-9][\d,]* (allocations|calls of malloc)", found), found
    assert re.search(r"\b0 (allocations|calls of malloc)", avoided), avoided


def test_a_library_with_threads_is_limited_to_one(folder: Path) -> None:
    pytest.importorskip("scipy")
    rtloop.build("blas_loop.pyx")  # into the cache; the script imports it by name
    script = FILES["one_thread.py"].replace(
        "import blas_loop\n", 'import rtloop\nblas_loop = rtloop.build("blas_loop.pyx")\n'
    )
    assert script != FILES["one_thread.py"]
    script = script.replace("strict=False", 'policy="other", lock_memory="off", dma_latency=None')  # any machine
    assert 'policy="other"' in script

    def threads(code: str) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("[6. 6. 6.]\n")
        return int(done.stdout.split()[0])

    limited = threads(script)
    free = threads(script.replace('os.environ[name] = "1"', "pass"))
    assert limited == 1
    if (os.cpu_count() or 1) > 1:
        assert free > 1, "the known-wrong variant: the pool is there"


class TestNumba:
    """The trap on the page about functions: arrays that are not passed as data are constants."""

    @pytest.fixture
    def code(self) -> str:
        pytest.importorskip("numba")
        text = (HOW_TO / "function-loop.md").read_text()
        (code,) = (b for b in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) if "gains" in b)
        return str(code)

    def test_a_global_array_is_frozen(self, code: str) -> None:
        import numba

        import rtloop.numba

        found: dict[str, Any] = {"np": np, "cfunc": numba.cfunc, "carray": numba.carray, "rtloop": rtloop}
        exec(code, found)
        state = np.array([1.0, 0.0, 0.0])
        rtloop.FunctionLoop(found["step"], "1kHz", data=state).simulate(cycles=1)
        assert found["gains"][0] == 8.0 and state[2] == 4.0

    def test_the_cache_keeps_it_beyond_the_process(self, code: str, tmp_path: Path) -> None:
        """The values come from another file; that file is edited, and the program started again."""
        head = "import numpy as np\nfrom numba import carray, cfunc\nimport rtloop\nimport rtloop.numba\n"
        own = code.replace("gains = np.array([4.0])  # compiled into the code", 'gains = np.load("gains.npy")')
        own = own.replace("(rtloop.numba.signature)", "(rtloop.numba.signature, cache=True)")
        own = own.replace("gains[0] = 8.0", "#")
        assert own.count("cache=True") == 1 and own.count("np.load") == 1
        (tmp_path / "controller.py").write_text(head + own)
        script = (
            "import numpy as np, rtloop, controller\nstate = np.array([1.0, 0.0, 0.0])\n"
            "rtloop.FunctionLoop(controller.step, '1kHz', data=state).simulate(cycles=1)\nprint(state[2])"
        )

        def command() -> float:
            done = subprocess.run(
                [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
                env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return float(done.stdout)

        np.save(tmp_path / "gains.npy", np.array([4.0]))
        assert command() == 4
        np.save(tmp_path / "gains.npy", np.array([8.0]))
        assert command() == 4, "as the page says: the old value returns"


@pytest.fixture
def exchange(tmp_path: Path) -> ModuleType:
    text = (ROOT / "examples" / "exchange" / "exchange.pyx").read_text()
    page = (HOW_TO / "change-parameters.md").read_text()
    (line,) = re.findall(r"^ +\(<object>self\.parameters\)\.write\(.*$", page, re.MULTILINE)
    old = "        self.parameters.write(&first)"
    assert text.count(old) == 1
    start = text.index(old)
    text = text[:start] + line + text[text.index("\n", start) :]
    text = text.replace("first.setpoint, first.stiffness, first.damping = 0.0, 900.0, 60.0", "pass")
    (tmp_path / "exchange_cast.pyx").write_text(text)
    return rtloop.build(tmp_path / "exchange_cast.pyx")


def test_the_parameters_are_written_before_the_start(tmp_path: Path, exchange: ModuleType) -> None:
    """Both ways of the page: the address of a struct, and the method of Python."""
    plain = rtloop.build(ROOT / "examples" / "exchange" / "exchange.pyx")
    for module in (plain, exchange):
        loop = module.Follower("1kHz")
        assert loop.parameters.written == 1
        assert loop.parameters.read().tolist() == (0.0, 900.0, 60.0)


def test_a_tuple_in_cython_does_not_compile_as_the_page_says(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "exchange" / "exchange.pyx").read_text()
    text = text.replace("self.parameters.write(&first)", "self.parameters.write((0.0, 900.0, 60.0))")
    (tmp_path / "tuple_written.pyx").write_text(text)
    page = (HOW_TO / "change-parameters.md").read_text()
    (said,) = re.findall(r'does not compile there \("(.*?)"\)', page)
    assert said.endswith("to 'const void *'")
    with pytest.raises(rtloop.BuildError, match=r"Cannot convert .* to 'const void \*'"):
        rtloop.build(tmp_path / "tuple_written.pyx")


def test_a_collection_in_a_step_is_found_with_the_figures_that_the_page_names() -> None:
    import gc

    text = (HOW_TO / "find-a-spike.md").read_text()
    assert '"garbage collector"' in text and "stats.host" in text
    loop = rtloop.PyLoop(
        lambda cycle: gc.collect() and None if cycle.index == 3 else None, "100Hz", policy="other",
        lock_memory="off", dma_latency=None,
    )  # fmt: skip
    stats = loop.run(cycles=6)
    record = stats.records[3]
    assert stats.host["gc_collections"] >= 1 and stats.host["gc_last_at_ns"] >= record["start"]
    assert "garbage collector" in str(stats)


def test_one_place_tells_the_three_records_apart() -> None:
    page = (HOW_TO / "record-signals.md").read_text()
    for name in ("rtloop.Recorder(", "`rtloop run --record", "`rtloop record --zenoh"):
        assert name in page
    for other in ("how-to/look-at-a-run.md", "how-to/several-hosts.md", "reference/command-line.md"):
        assert "record-signals.md" in (ROOT / "docs" / other).read_text(), other
