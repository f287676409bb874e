"""``rtloop new``: its projects build, pass their own tests and are clean; bad requests are refused with a message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the command line needs rtloop[cli]")
pytest.importorskip("mesonpy", reason="the project is built by meson-python")

from click.testing import CliRunner

import rtloop
from rtloop.tools.new.command import FILES, new


def call(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project, as it was made."""
    folder = tmp_path_factory.mktemp("new")
    call(sys.executable, "-P", "-m", "rtloop", "new", "arm", cwd=folder)
    return folder / "arm"


@pytest.fixture(scope="module")
def installed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that it has been installed into."""
    site = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", site)
    call(sys.executable, "-m", "pip", "install", *options, ".", cwd=project)
    return site


def test_every_file_is_there_and_has_its_name(project: Path) -> None:
    found = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert found == {target.replace("@NAME@", "arm") for target in FILES.values()}
    assert not [name for name in found if "@" in (project / name).read_text().replace("uses: actions/", "").replace(
        "checkout@v4", "").replace("setup-python@v5", "").replace("@pytest", "")]  # fmt: skip


def test_a_project_finds_the_headers_and_libraries_of_packages_when_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of meson.build are run by meson, without compiling anything."""
    (tmp_path / "site" / "simulator" / "include").mkdir(parents=True)
    (tmp_path / "site" / "simulator" / "libsimulator.so.3.2").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    result = CliRunner().invoke(new, [str(tmp_path / "walker"), "--package", "simulator"])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "walker" / "meson.build").read_text()
    assert "c_args: for_compiler" in text and "link_args: ['-Wl,-z,now', for_linker]" in text
    finding = text[text.index("# Python packages") : text.index("py.extension_module")]
    find = "py = import('python').find_installation(pure: false)"
    lines = f"project('walker')\n{find}\n{finding}\nmessage('has', for_compiler, for_linker)\n"
    (tmp_path / "meson.build").write_text(lines)
    said = call("meson", "setup", "build", cwd=tmp_path, path=tmp_path / "site")
    folder = tmp_path / "site" / "simulator"
    (has,) = (line for line in said.splitlines() if "has" in line and "-rpath" in line)
    assert f"-I{folder}/include" in has and f"{folder}/libsimulator.so.3.2" in has and has.count("-Xlinker") == 2


def test_a_package_that_a_project_cannot_use_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(new, [str(tmp_path / "walker"), "--package", "nowhere"])
    assert result.exit_code == 2 and "'nowhere' is not installed" in " ".join(result.output.split())
    assert not (tmp_path / "walker").exists()


def test_its_own_tests_pass(project: Path, installed: Path) -> None:
    said = call(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project, path=installed)
    assert "failed" not in said and " passed" in said
    assert "6 passed" in said or "7 passed" in said  # the one in real time may be skipped, and says why


@pytest.mark.rt
def test_its_loop_is_clean_in_real_time(project: Path, installed: Path) -> None:
    command = (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--rt=require", "-k", "real_time")
    said = call(*command, cwd=project, path=installed)
    assert "1 passed" in said and "0 page faults, 0 system calls in step" in said


def test_its_controller_passes_the_lint(project: Path) -> None:
    pytest.importorskip("Cython", reason="the lint needs Cython")
    report = rtloop.lint(project / "src/arm/control.pyx")
    assert not report.findings


def test_the_motor_is_armed_in_the_first_step_and_at_rest_at_the_end(project: Path) -> None:
    """Armed in enter() a drive waits for the first release without setpoints; without leave() its last torque stays."""
    text = (project / "src" / project.name / "control.pyx").read_text()
    body = text[text.index("cdef class Controller") :]
    enter, step, leave = (body.index(f" {name}(self") for name in ("enter", "step", "leave"))
    assert enter < step < body.index("motor.arm() if cycle.index == 0") < leave < body.index("self.motor.rest()")
    assert "public double p" not in body, "a data race, once the loop runs"


def test_its_program_runs(project: Path, installed: Path) -> None:
    program = (project / "run.py").read_text()
    (project / "short.py").write_text(program.replace("time.sleep(1)", "time.sleep(0.02)"))
    try:
        said = call(sys.executable, "short.py", cwd=project, path=installed)
        assert "target, angle, torque" in said and (project / "signals.npy").stat().st_size > 1000
    finally:
        (project / "short.py").unlink()
        (project / "signals.npy").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("3-arm", "letters, digits and _; arm would do"),
        ("\u00e4rm", "letters, digits and _; arm would do"),
        ("a\u0301rm-\u00d8", "letters, digits and _; arm would do"),
        ("class", "is a keyword of Python, and cannot be a package's name"),
        ("bär", "cannot be a package's name"),
        ("json", "is the name of another package"),
        ("pip", "is the name of another package"),
        ("Cython", "is the name of another package"),
        ("full", "full already exists"),
        ("file", "file already exists"),
        ("file/arm", "cannot write"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    result = CliRunner().invoke(new, [name])
    assert result.exit_code in (1, 2) and words in " ".join(result.output.split()), result.output
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thesis.txt"]


def test_the_home_of_a_user_that_does_not_exist_is_a_name_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(new, ["~no-such-user/arm"]).exit_code == 0
    assert (tmp_path / "~no-such-user" / "arm" / "pyproject.toml").exists()


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "gimbal").mkdir()
    result = CliRunner().invoke(new, [str(tmp_path / "gimbal")])
    assert result.exit_code == 0 and (tmp_path / "gimbal/src/gimbal/control.pyx").is_file()


def test_the_folder_one_is_in_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gimbal").mkdir()
    monkeypatch.chdir(tmp_path / "gimbal")
    assert CliRunner().invoke(new, ["."]).exit_code == 0
    assert Path("src/gimbal/control.pyx").is_file()


def test_what_to_type_next_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(new, ["my robots/gimbal"])
    line = next(line for line in result.output.splitlines() if line.startswith("  cd "))
    went = call("sh", "-c", f"{line.partition('&&')[0]} && pwd", cwd=tmp_path)
    assert went.strip() == str((tmp_path / "my robots/gimbal").resolve())


@pytest.mark.parametrize("found", [None, object()])
def test_what_builds_it_is_asked_for_where_it_is_missing(
    found: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtloop.tools.new.command.find_spec", lambda name: found if name == "mesonpy" else object())
    said = CliRunner().invoke(new, [str(tmp_path / "arm")]).output
    assert ("pip install 'rtloop[build]'" in said) is (found is None)
