"""The C compiler that ``rtloop.build`` and ``rtloop new`` find: the system's, or zig of the package ziglang."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import rtloop
from rtloop.compiler import c_compiler
from rtloop.compiler.build import build_module
from rtloop.compiler.c_compiler import find_command, find_compiler, identify, project_variables
from rtloop.machine.doctor.checks.toolchain import read_toolchain
from rtloop.system.fixes import compiler_fix, headers_fix
from rtloop.tools.new.command import new

ROOT = Path(__file__).parents[2]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
#: Stands for zig: notes the call, and lets this machine's compiler do it.
ZIG = """\
#!/bin/sh
PATH={path}
echo "$ZIG_GLOBAL_CACHE_DIR|$*" >> {log}
shift
[ "$1" = -mcpu=baseline ] && shift
exec {compiler} "$@"
"""
#: Its step depends on a header.
SERVO = """\
from rtloop cimport RTLoop, Cycle, RT_CONTINUE

cdef extern from "gain.h":
    int GAIN

cdef class Servo(RTLoop):
    cdef public int sum

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.sum += GAIN
        return RT_CONTINUE
"""


@pytest.fixture
def zig_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave no compiler but a package ziglang; return the list of its calls."""
    command = shlex.join(find_command())
    package, log = tmp_path / "site" / "ziglang", tmp_path / "calls"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    log.touch()
    (package / "zig").write_text(ZIG.format(path=os.environ["PATH"], log=log, compiler=command))
    (package / "zig").chmod(0o755)
    (tmp_path / "empty").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "ziglang", raising=False)
    for name in ("CC", "CXX", "ZIG_GLOBAL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CFLAGS", "-O0")
    monkeypatch.chdir(tmp_path)
    return log


def write_module() -> Path:
    path = Path("constant.pyx")
    path.write_text("X = 7\n")
    return path


def test_zig_compiles_if_there_is_no_other_compiler(zig_log: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_module()
    built = build_module(source)
    assert built.module.X == 7 and built.compiler.startswith("zig cc") and "by zig cc" in built.summary
    calls = zig_log.read_text().splitlines()
    # A module must run on other machines, with the same numbers, and a check of undefined behaviour ends the process.
    assert all("|cc -mcpu=baseline -fno-sanitize=undefined " in call for call in calls) and "-shared" in calls[-1]
    assert not (built.compiler == "" or build_module(source).compiler), "nothing is compiled the second time"
    with caplog.at_level(logging.INFO, "rtloop.build"):
        rtloop.build(source, force=True)
    assert "constant.pyx: compiled in " in caplog.text and "by zig cc" in caplog.text


def test_a_compiler_on_the_path_and_CC_come_first(zig_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = zig_log.parent / "empty" / "clang"
    other.write_text("#!/bin/sh\necho 'Debian clang version 19.1.7 (3)'\n")
    other.chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    assert find_command() == ("clang",) and find_compiler().label == "clang 19.1.7"
    assert find_command(is_cpp=True)[1:] == ("c++", "-mcpu=baseline", "-fno-sanitize=undefined")
    monkeypatch.setenv("CC", "clang --target=any")
    assert find_command() == ("clang", "--target=any")
    monkeypatch.setenv("CC", "nothing")
    assert find_command() == () and not project_variables()


@pytest.mark.parametrize(
    ("of_python", "on_the_path", "found"),
    [
        ("gcc -pthread", "gcc cc", "gcc"),
        ("ccache gcc -pthread", "ccache gcc cc", "ccache gcc"),
        ("/opt/bin/sccache clang -O3", "cc", "cc"),
        ("ccache gcc-14", "ccache cc", "cc"),
        ("ccache", "ccache", ""),
        ("", "gcc clang", "gcc"),
    ],
)
def test_the_compiler_of_python_is_called_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_python: str, on_the_path: str, found: str
) -> None:
    for name in on_the_path.split():
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: of_python)
    command = find_command()
    assert command == tuple(found.split())
    assert not found or c_compiler.describe_command([*command, "-O2"]) == f"{tmp_path}/{found}"


def test_a_compiler_is_known_by_its_file_and_a_script_by_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    compiler = tmp_path / "gcc-99"
    shutil.copy(sys.executable, compiler)
    first = identify(["gcc-99"])
    assert str(compiler) in first, "it was not started"
    os.utime(compiler, ns=(1, 1))
    assert identify(["gcc-99"]) != first, "it was installed again"
    for name, command in {"clang-99": ["clang-99"], "mycc": ["mycc"], "launch": ["launch", "gcc-99"]}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} of today\n")
        (tmp_path / name).chmod(0o755)
        assert identify(command) == f"{name} of today\n", "it may call any compiler"


@pytest.mark.parametrize(
    ("version", "label"),
    [
        ("cc (Debian 12.2.0-14) 12.2.0\nCopyright (C) 2022 Free Software Foundation, Inc.\n", "gcc 12.2.0"),
        ("gcc (GCC) 14.2.1 20240801 (Red Hat 14.2.1-1)\nFree Software Foundation", "gcc 14.2.1"),
        ("Ubuntu clang version 18.1.3 (1ubuntu1)\nTarget: x86_64\n", "clang 18.1.3"),
        ("icx 2025.1\n", "mycc 2025.1"),
        ("", "mycc"),
    ],
)
def test_a_compiler_is_named_with_its_version(version: str, label: str) -> None:
    assert c_compiler._label(("/opt/bin/mycc",), version) == label


def test_zig_gets_a_cache_if_the_users_cannot_be_written_to(zig_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_module(write_module())
    assert zig_log.read_text().splitlines()[-1].startswith("|cc")
    (zig_log.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(zig_log.parent / "file"))
    build_module("constant.pyx", force=True)
    cache = zig_log.read_text().splitlines()[-1].partition("|")[0]
    assert cache.endswith("/zig") and Path(cache).parent.is_dir() and str(zig_log.parent / "file") not in cache
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", "/of/the/user")
    build_module("constant.pyx", force=True)
    assert zig_log.read_text().splitlines()[-1].startswith("/of/the/user|")


def test_zig_finds_a_cache_without_HOME(zig_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service of systemd has no HOME; zig does not look into the user database, and would refuse to run."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: SimpleNamespace(pw_dir=str(zig_log.parent / "of-user")))
    build_module(write_module())
    assert zig_log.read_text().splitlines()[-1].startswith(f"{zig_log.parent}/of-user/.cache/zig|cc")

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    build_module("constant.pyx", force=True)
    cache = Path(zig_log.read_text().splitlines()[-1].partition("|")[0])
    assert cache.name == "zig" and cache.parent.is_dir() and cache.parent.name.startswith("rtloop-modules-")
    assert not Path("~").exists()


def test_missing_headers_are_one_sentence_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "include"))
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "raspbian", "ID_LIKE": "debian"})
    with pytest.raises(rtloop.BuildError) as caught:
        rtloop.build(write_module(), cache=tmp_path)
    assert str(caught.value) == (
        f"the C headers of Python {VERSION} are not installed ({tmp_path}/include/Python.h does not exist); "
        f"fix: sudo apt install python{VERSION}-dev"
    )


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="needs musl-gcc; fix: apt install musl-tools")
def test_musl_is_refused_before_the_headers_of_python_are_looked_for(tmp_path: Path) -> None:
    """Alpine Linux builds so under pip install. Meson's own error came first: Cython cannot compile programs."""
    meson = [sys.executable, "-m", "mesonbuild.mesonmain", "setup", str(tmp_path), str(ROOT)]
    done = subprocess.run(meson, capture_output=True, text=True, env={**os.environ, "CC": "musl-gcc"})
    assert done.returncode and "cannot compile programs" not in done.stdout
    assert "rtloop needs the GNU C library (glibc), which musl, as in Alpine Linux, is not" in done.stdout


@pytest.mark.parametrize(
    ("distribution", "compiler", "headers"),
    [
        ("debian", "sudo apt install gcc", "sudo apt install python3.13-dev"),
        ("ubuntu debian", "sudo apt install gcc", "sudo apt install python3.13-dev"),
        ("rocky rhel centos fedora", "sudo dnf install gcc", "sudo dnf install python3-devel"),
        ("opensuse-tumbleweed opensuse suse", "sudo zypper install gcc", "sudo zypper install python313-devel"),
        ("arch", "sudo pacman -S gcc", "sudo pacman -S python"),
        ("alpine", "sudo apk add gcc musl-dev", "sudo apk add python3-dev"),
        ("plan9", "your system's package for gcc", "your system's package for them, often python3.13-dev"),
    ],
)
def test_the_packages_of_a_distribution_are_named(distribution: str, compiler: str, headers: str) -> None:
    assert compiler_fix(distribution) == compiler
    assert headers_fix("3.13", distribution=distribution).startswith(headers)
    assert "the Python in /opt/py again" in headers_fix("3.13", "/opt/py", distribution)


def test_a_new_project_is_told_of_zig(zig_log: Path) -> None:
    said = CliRunner().invoke(new, ["arm"]).output
    zig = zig_log.parent / "site" / "ziglang" / "zig"
    assert f"export CC='{zig} cc -mcpu=baseline -fno-sanitize=undefined' AR='{zig} ar'" in said


def test_a_new_project_needs_nothing_else_with_a_system_compiler(tmp_path: Path) -> None:
    assert "export" not in CliRunner().invoke(new, [str(tmp_path / "arm")]).output


def test_the_doctor_names_zig(zig_log: Path) -> None:
    assert read_toolchain().compiler == f"{zig_log.parent}/site/ziglang/zig cc"


@pytest.mark.skipif(find_spec("ziglang") is None, reason="the Python package ziglang is not installed")
def test_the_real_zig_compiles_and_a_changed_header_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary: dict[str, object]
) -> None:
    zig = c_compiler._find_zig()
    monkeypatch.setattr(c_compiler, "find_command", lambda **_: (zig, "cc", *c_compiler._ZIG_FLAGS))
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    header = Path("gain.h")
    header.write_text("#define GAIN 2\n")
    Path("servo.pyx").write_text(SERVO)
    first = build_module("servo.pyx")
    loop = first.module.Servo("1kHz", **ordinary)
    assert first.compiler.startswith("zig cc") and loop.run(cycles=4).cycles == 4 and loop.sum == 8
    assert not build_module("servo.pyx").compiler, "nothing has changed"
    header.write_text("#define GAIN 3\n")
    loop = build_module("servo.pyx").module.Servo("1kHz", **ordinary)
    assert loop.run(cycles=4).cycles == 4 and loop.sum == 12


@pytest.mark.parametrize("variable", ["CC", "PATH"])
def test_a_compiler_may_be_named_by_a_relative_path(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started in a folder of its own."""
    compiler = tmp_path / "bin" / "mine"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\nexec {shlex.join(find_command())} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CFLAGS", "-O0")
    monkeypatch.setenv("CC", "bin/mine" if variable == "CC" else "mine")
    monkeypatch.setenv("PATH", f"bin:{os.environ['PATH']}")
    assert build_module(write_module(), cache="cache").module.X == 7


def test_a_compiler_may_print_its_version_in_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "mine"
    compiler.write_text("#!/bin/sh\nprintf 'mine 7.1 \\251 Ren\\351\\n'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert find_compiler().label == "mine 7.1" and identify((str(compiler),))


@pytest.mark.parametrize("variable", ["CPPFLAGS", "CFLAGS", "LDFLAGS"])
def test_flags_with_a_quotation_that_does_not_end_are_refused(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CFLAGS", "-O0")
    monkeypatch.setenv(variable, '-DX="a')
    with pytest.raises(rtloop.BuildError, match=f"""{variable}='-DX="a' has a quotation that does not end"""):
        build_module(write_module(), cache="cache")


def test_a_quotation_that_does_not_end_is_not_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", '"gcc')
    assert find_command() == ()
    with pytest.raises(rtloop.BuildError, match="""CC='"gcc' is not on the PATH"""):
        find_compiler()
