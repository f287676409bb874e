"""A third party builds a controller against rtloop: with meson-python, with plain cythonize, and against a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUN = HERE / "run_servo.py"
SHIM = ROOT / "tests" / "support" / "warm"


def call(*command: str | Path, cwd: Path, path: tuple[Path, ...] = (), python_path: Path | None = None) -> str:
    """Run a command far from the source tree, with the tools of this environment; return what it printed."""
    folders = [*path, Path(sys.executable).parent]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    environment["PATH"] = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    if python_path:
        environment["PYTHONPATH"] = str(python_path)
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}\n{result.stdout}"
    return result.stdout


def pip_install(python: Path, *arguments: str | Path, cwd: Path, path: tuple[Path, ...] = ()) -> None:
    options = ("--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "--no-index")
    call(python, "-m", "pip", "install", *options, *arguments, cwd=cwd, path=path)


def check(report: dict) -> None:
    """Check the numbers of a run of half a second at 1 kHz; true on any machine, however late its wake-ups."""
    period, stats = report["period"], report["stats"]
    assert period == 1_000_000
    assert report["steps"] == stats["cycles"] > 0
    assert (report["enters"], report["leaves"]) == (1, 1)
    assert report["overruns"] == stats["overruns"]
    assert report["misnumbered"] == report["early"] == report["backwards"] == 0

    run = report["last_release"] - report["first_release"]
    releases = run // period + 1
    assert run % period == 0
    assert report["steps"] + report["missed"] == releases <= 500
    after = stats["missed"] - report["missed"]  # by the last cycle, which no other one follows to be told
    assert stats["cycles"] + stats["missed"] == releases + after >= 500
    assert after == 0 or stats["overruns"] > 0

    assert report["t"] == pytest.approx(run * 1e-9)
    assert report["position"] == pytest.approx((run + period) * 1e-9)
    assert report["stopped"] == {"cycles": 50, "steps": 50, "state": "stopped"}


def run_servo(python: Path, site: Path, cwd: Path, module: str = "servo") -> dict:
    # Not by its path, which would put this folder on sys.path.
    program = f"import runpy; runpy.run_path({str(RUN)!r}, run_name='__main__')"
    return json.loads(call(python, "-c", program, module, cwd=cwd, python_path=site).splitlines()[-1])


@pytest.fixture
def project(tmp_path):
    return Path(shutil.copytree(HERE / "project", tmp_path / "project"))


def test_meson_project_against_the_installed_package(tmp_path, project):
    python = Path(sys.executable)
    pip_install(python, "--target", tmp_path / "site", project, cwd=tmp_path)
    report = run_servo(python, tmp_path / "site", tmp_path)
    check(report)


def test_plain_cythonize(tmp_path, project):
    python = Path(sys.executable)
    shutil.copy(project / "servo" / "servo.pyx", tmp_path)
    call("cythonize", "-3", "-i", "servo.pyx", cwd=tmp_path)
    check(run_servo(python, tmp_path, tmp_path))


@pytest.fixture
def checkout(tmp_path, warm_cython, monkeypatch):
    """The Python of a fresh environment that has this one's packages, but rtloop only as an editable install."""
    home = tmp_path / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    python = home / "bin" / "python"
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "rtloop" not in entry.name:
            (site / entry.name).symlink_to(entry)
    # Cython looks for .pxd files on the path of the Python that runs it: here, too, it must not see the other install.
    cython = home / "bin" / "cython"
    # All of rtloop takes as long as everything else here: by the Cython that is loaded, and without an optimizer.
    cython.write_text(
        f"#!{python}\nimport runpy, sys\nsys.path.insert(0, {str(SHIM)!r})\n"
        "runpy.run_module('cython', run_name='__main__', alter_sys=True)\n"
    )
    cython.chmod(0o755)
    for name, value in warm_cython.items():
        monkeypatch.setenv(name, value)
    pip_install(
        python, f"-Cbuild-dir={tmp_path / 'build'}", "-Csetup-args=-Dbuildtype=plain", "--editable", ROOT,
        cwd=tmp_path, path=(home / "bin",),
    )  # fmt: skip
    return python


def test_meson_project_against_an_editable_install(tmp_path, project, checkout):
    pip_install(checkout, "--target", tmp_path / "site", project, cwd=tmp_path, path=(checkout.parent,))
    report = run_servo(checkout, tmp_path / "site", tmp_path)
    assert report["include"] == str(ROOT)
    assert Path(report["rtloop"]).parent == ROOT / "rtloop"
    check(report)
