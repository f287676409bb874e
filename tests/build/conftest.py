"""The examples, built once for all tests."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_once() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rtloop_test_once", ROOT / "tests" / "support" / "once.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


once = load_once()


#: Packages that an example needs beyond those of the group `test`; its tests are skipped where one is missing.
NEEDS: dict[str, tuple[str, ...]] = {
    "adaptive_optics": ("scipy",),
    "can": ("can", "canopen"),
    "fmu": ("fmpy", "gemseo_fmu", "lxml"),
    "humanoid": ("mujoco", "onnxruntime", "holosoma_inference"),
    "mpc": ("osqp", "casadi", "scipy"),
    "mujoco": ("mujoco", "scipy"),
}


def why_not(name: str) -> str:
    """Return why an example that needs more than Python packages cannot be built here, or nothing."""
    if name != "ethercat":
        return ""
    if not runpy.run_path(str(ROOT / "examples" / name / "soem.py"))["archive"]().exists():
        return "the sources of SOEM are missing: python examples/ethercat/soem.py --install"
    absent = [program for program in ("ip", "unshare") if shutil.which(program) is None]
    return f"its virtual cable needs {absent[0]}: apt install iproute2 util-linux" if absent else ""


def build_as_its_readme_says(example: Path, folder: Path) -> None:
    """Copy an example into a folder and build it there, unless its run.py does so by rtloop.build."""
    for file in example.iterdir():
        if file.suffix in (".py", ".pyx", ".pxd", ".xml"):
            (folder / file.name).write_bytes(file.read_bytes())
    environment = {**os.environ, "PYTHONPATH": "", "CFLAGS": "-O0"}  # a third of the time; no figure is looked at
    if (folder / "crane.py").exists():  # writes C code with the date in it, which another run would compile again
        subprocess.run([sys.executable, "crane.py"], cwd=folder, check=True, capture_output=True)
    if (folder / "soem.py").exists():
        subprocess.run([sys.executable, "soem.py"], cwd=folder, check=True, capture_output=True)
    if "rtloop.build(" in (folder / "run.py").read_text():
        return
    for source in folder.glob("*.pyx"):
        command = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", source.name]
        built = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr


@pytest.fixture(autouse=True)
def _warm(warm_cython: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tests call Cython, many of them often."""
    for name, value in warm_cython.items():
        monkeypatch.setenv(name, value)
    # That of a watch or a notebook would load Cython again.
    monkeypatch.setattr("rtloop.compiler.cython_process._PROGRAM", Path(__file__).with_name("missing.py"))


@pytest.fixture(scope="session")
def built_example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an example that is built, by name; others use it, too: copy what is run or changed."""

    def built(name: str) -> Path:
        for package in NEEDS.get(name, ()):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"examples/{name} needs {package}, see its README")
        if reason := why_not(name):
            pytest.skip(f"examples/{name}: {reason}")
        folder = once.run_folder(tmp_path_factory.getbasetemp()) / "examples" / name
        made: Path = once.make_once(folder, lambda empty: build_as_its_readme_says(ROOT / "examples" / name, empty))
        return made

    return built


@pytest.fixture(scope="session")
def example_cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which an example that calls rtloop.build finds what another test has compiled."""
    cache = once.run_folder(tmp_path_factory.getbasetemp(), is_shared=True) / "example_cache"
    cache.mkdir(exist_ok=True)
    return {"RTLOOP_CACHE_DIR": str(cache), "CFLAGS": "-O0"}
