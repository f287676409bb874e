"""Build rtloop's wheels for x86-64 and arm64 without the images of manylinux, and test each without a compiler.

    python .ci/wheels.py [--unit] [PYTHON ...]

For each Python there is a Debian system below a cache folder (see chroots.py) that has no compiler. There zig, of the
Python package ziglang, compiles a wheel against glibc 2.28, and auditwheel checks that it is a manylinux_2_28 wheel.
In a new environment without the source the wheel is installed and tested: a .pyx from the first `pip install` to its
histogram, and a project of `rtloop new`, by the compiler that rtloop[compiler] brings. With --unit the unit tests
follow; those that call gcc by its name fail there. The sdist is installed there, too, as pip does it.

A wheel for arm64 is compiled by the same zig, with the headers and the settings of Debian's Python for arm64. It is
installed in a system of that architecture, which qemu-user emulates, and runs loops there.
Results are in dist/. Needs root, apt and debootstrap; for arm64 also qemu-user-static.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chroots import (
    CACHE,
    NATIVE,
    PACKAGES,
    ROOT,
    Chroot,
    FailedError,
    copy_project,
    end_by_exception,
    enter_namespace,
    prepared,
    run_program,
    say,
)
from interpreters import THREADED_313, THREADED_314, FreeThreaded, OfThisMachine, find_python

DIST = ROOT / "dist"
GLIBC = "2.28"
#: The machine's name in a wheel's and in a compiler's target, by Debian's name of the architecture.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Python:
    """A Python of a Debian release.

    Attributes
    ----------
    version : str
        Such as "3.13".
    suite : str
        The release.
    program : str
        The interpreter.
    packages : tuple of str
        Its Debian packages: with headers, without a compiler.
    arch : str
        Debian's name of the architecture that the wheel is for.
    source : FreeThreaded or OfThisMachine, optional
        Where it is copied from, if Debian has no package of it.
    """

    version: str
    suite: str
    program: str = "python3"
    packages: tuple[str, ...] = ("python3-dev", "python3-venv")
    arch: str = "amd64"
    source: FreeThreaded | OfThisMachine | None = None

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.version if self.arch == "amd64" else f"{self.version}-{self.arch}"


PYTHONS = (
    Python("3.11", "bookworm"),
    Python("3.13", "trixie"),
    Python("3.11", "bookworm", arch="arm64"),
    Python("3.13", "trixie", arch="arm64"),
    Python("3.14", "sid"),
    Python("3.15", "sid", "python3.15", ("python3.15-dev", "python3.15-venv")),
    Python("3.14", "sid", arch="arm64"),
    Python("3.15", "sid", "python3.15", ("python3.15-dev", "python3.15-venv"), arch="arm64"),
    Python("3.13t", "trixie", THREADED_313.program, source=THREADED_313),
    Python("3.14t", "sid", THREADED_314.program, source=THREADED_314),
)

#: From an empty environment to a running loop, as a new user would; prints the seconds of each part.
_FIRST_LOOP = """
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
part() { now=$(date +%s%N); echo "$(( (now - ${before:-$now}) / 1000000 )) ms: $1"; before=$now; }
before=$(date +%s%N)
PYTHON -m venv new; . new/bin/activate; part "python -m venv"
pip --quiet install --prefer-binary 'WHEEL[compiler,cli]'; part "pip install 'rtloop[compiler,cli]'"
cp FILE first_loop.pyx
rtloop run first_loop.pyx --duration 2s 2>&1; part "rtloop run first_loop.pyx, 2 s of which it runs"
pip --quiet install pytest; before=$(date +%s%N)
python -m pytest -q -p no:cacheprovider --rootdir "$work" SOURCE/tests/build/test_c_compiler.py -k real_zig
rtloop new arm; cd arm; eval "$(rtloop new ../arm2 | sed -n 's/#.*//; /^ *export /p')"
pip --quiet install --prefer-binary --no-build-isolation '.[test]'
# One of the tests runs a loop in real time, and may fail on a busy machine.
python -m pytest -q -p no:cacheprovider || { echo "once more"; python -m pytest -q -p no:cacheprovider; }
part "a project of rtloop new, and its tests"
"""


class Bench:
    """One Python in its system, from the source to a tested wheel."""

    def __init__(self, python: Python, chroot: Chroot) -> None:
        self.python, self.chroot = python, chroot
        self.machine = MACHINES[python.arch]
        self.source, self.work = "/src/rtloop", f"/var/tmp/wheel-{python.name}"
        self.tools = f"/opt/wheel-tools-{python.version}"
        self.variables = {"PATH": f"{self.tools}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}

    def say(self, text: str) -> None:
        """Print a line of progress."""
        say(f"Python {self.python.name}: {text}")

    def must_run(self, *command: str, folder: str = "/", limit_s: float = 7200) -> None:
        """Run a command inside, with the tools on the PATH; raise if it fails."""
        self.chroot.must_run(command, folder, limit_s=limit_s, **self.variables)

    def prepare(self) -> None:
        """Install what builds a wheel, and let zig be the compiler."""
        if self.python.source:
            self.python.source.copy_to(self.chroot)
        copy_project(self.chroot.path(self.source))
        if not self.chroot.path(f"{self.tools}/bin/python").exists():
            self.must_run(self.python.program, "-m", "venv", self.tools)
            self.must_run("pip", "--quiet", "install", "pip>=25.1")
        groups = ["--prefer-binary", "--group=build", "--group=wheels"]
        self.must_run("pip", "--quiet", "install", *groups, folder=self.source)
        zig = self.chroot.read(["python", "-c", _WHERE_ZIG_IS], **self.variables)
        # Debian's pyconfig.h is in a folder that zig does not search if it compiles for another glibc.
        folder = self.chroot.path("opt/wheel-include")
        folder.mkdir(exist_ok=True)
        link = folder / f"{self.machine}-linux-gnu"
        link.unlink(missing_ok=True)
        link.symlink_to(self.headers())
        # -g0: zig adds debugging information by default; names of functions, which guards report, stay.
        self.variables["CC"] = (
            f"{zig} cc -target {self.machine}-linux-gnu.{GLIBC} -mcpu=baseline -g0 -idirafter /opt/wheel-include"
        )
        self.variables["AR"] = f"{zig} ar"

    def headers(self) -> str:
        """Return the folder, inside, of the headers that differ between architectures."""
        return f"/usr/include/{self.machine}-linux-gnu"

    def build_options(self) -> list[str]:
        """Return the options of pip that a build for another architecture needs."""
        return []

    def build(self) -> Path:
        """Build the wheel, have auditwheel check and name it, and return its place in dist/."""
        self.prepare()
        self.say("building the wheel")
        shutil.rmtree(self.chroot.path(self.work), ignore_errors=True)
        build = ["--no-build-isolation", "--no-deps", f"-Cbuild-dir=/var/tmp/wheel-build-{self.python.name}"]
        build += self.build_options()
        self.must_run("pip", "--quiet", "wheel", *build, f"--wheel-dir={self.work}/raw", self.source)
        (raw,) = self.chroot.path(f"{self.work}/raw").glob("rtloop-*.whl")
        inside = f"{self.work}/raw/{raw.name}"
        platform = f"manylinux_{GLIBC.replace('.', '_')}_{self.machine}"
        # auditwheel accepts only names of this machine's architecture, but detects the right one for any wheel.
        asked = platform if self.python.arch == NATIVE else "auto"
        self.must_run("auditwheel", "repair", "--plat", asked, "--only-plat", "-w", f"{self.work}/dist", inside)
        (wheel,) = self.chroot.path(f"{self.work}/dist").glob("rtloop-*.whl")
        if not wheel.stem.endswith(platform):
            raise FailedError(f"auditwheel names it {wheel.name}, not {platform}")
        DIST.mkdir(exist_ok=True)
        kept = DIST / wheel.name
        shutil.copyfile(wheel, kept)
        self.say(f"{kept.name}, {kept.stat().st_size / 1e6:.1f} MB")
        return wheel

    def test(self, wheel: Path, *, has_unit: bool) -> None:
        """Install the wheel in new environments without the source, run the tests there, and a first loop."""
        if compilers := self.chroot.read(["sh", "-c", "command -v cc gcc clang c99 tcc || true"]):
            raise FailedError(f"there is a compiler in {self.chroot.root}: {compilers}")
        inside = f"{self.work}/dist/{wheel.name}"
        script = (
            _FIRST_LOOP.replace("PYTHON", self.python.program).replace("WHEEL", inside).replace("SOURCE", self.source)
            .replace("FILE", f"{self.source}/examples/first_loop/first_loop.pyx")
        )  # fmt: skip
        self.say("a first loop, and a project, by the compiler of rtloop[compiler]")
        self.chroot.path(f"{self.work}/first_loop.sh").write_text(script)
        output = self.chroot.read(["bash", f"{self.work}/first_loop.sh"])
        for line in re.findall(r"^(?:\d+ ms: .*|compiled in .*|.* cycles in .*|\d+ passed.*)$", output, re.MULTILINE):
            self.say(line)
        if not has_unit:
            return
        self.say(f"testing the wheel; log: {self.chroot.log}")
        venv = f"{self.work}/venv"
        self.must_run(self.python.program, "-m", "venv", venv)
        variables = {"PATH": f"{venv}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        self.chroot.must_run(["pip", "--quiet", "install", "pip>=25.1"], **variables)
        pip = ["pip", "--quiet", "install", "--prefer-binary", f"{inside}[cli,compiler]", "--group=test"]
        self.chroot.must_run(pip, self.source, **variables)
        zig = self.chroot.read(["python", "-c", _WHERE_ZIG_IS], **variables)
        variables["CC"] = f"{zig} cc -mcpu=baseline -fno-sanitize=undefined"  # the tests compile loops of their own
        began = time.monotonic()
        command = [f"{self.source}/.ci/wheel_tests", "-p", "no:cacheprovider"]
        code = self.chroot.run(command, self.source, limit_s=5400, **variables)
        last = self.chroot.log.read_text(errors="replace").strip().splitlines()[-1]
        self.say(f"{last} ({(time.monotonic() - began) / 60:.0f} min)")
        if code:
            raise FailedError(f"the tests of {wheel.name} failed (log: {self.chroot.log})")

    def build_from_sdist(self) -> Path:
        """Make the sdist, install from it in isolation as pip does, and return its place in dist/."""
        self.prepare()
        self.say("making the sdist, and installing from it")
        out = f"{self.work}/sdist"
        shutil.rmtree(self.chroot.path(out), ignore_errors=True)
        git = "rm -rf .git && git init -q && git add -A && git -c user.name=x -c user.email=x@x commit -qm x"
        self.must_run("sh", "-c", git, folder=self.source)  # an sdist has what is committed
        self.must_run("python", "-m", "build", "--sdist", "--outdir", out, folder=self.source)
        (sdist,) = self.chroot.path(out).glob("rtloop-*.tar.gz")
        venv = f"{out}/venv"
        self.must_run(self.python.program, "-m", "venv", venv)
        self.must_run(f"{venv}/bin/pip", "--quiet", "install", f"{out}/{sdist.name}")
        run = "import rtloop; assert rtloop.RTLoop('1kHz').simulate('1s').cycles == 1000"
        self.must_run(f"{venv}/bin/python", "-c", run)
        DIST.mkdir(exist_ok=True)
        kept = DIST / sdist.name
        shutil.copyfile(sdist, kept)
        self.say(f"{kept.name}, {kept.stat().st_size / 1e6:.1f} MB, builds and runs")
        return kept


class CrossBench(Bench):
    """A Python of another architecture than this machine's: compiled here, run by qemu-user."""

    def __init__(self, python: Python, chroot: Chroot) -> None:
        super().__init__(python, chroot)
        self.foreign, self.compiler = f"/opt/{python.name}", ""

    def prepare(self) -> None:
        """Install what builds a wheel, and have Python answer as the one of the other architecture does."""
        super().prepare()
        folder = self.chroot.path(self.foreign)
        (data,) = folder.glob(f"root/usr/lib/python*/_sysconfigdata__{self.machine}-linux-gnu.py")
        (folder / "sysconfig").mkdir(exist_ok=True)
        shutil.copy(data, folder / "sysconfig")
        settings = {
            "_PYTHON_SYSCONFIGDATA_NAME": data.stem,
            "_PYTHON_HOST_PLATFORM": f"linux-{self.machine}",
            "PYTHONPATH": f"{self.foreign}/sysconfig",
        }
        self.variables |= settings
        python = folder / "python"
        python.write_text(
            "#!/bin/sh\n" + "".join(f"export {name}={value}\n" for name, value in settings.items())
            + f'exec {self.tools}/bin/python "$@"\n'
        )  # fmt: skip
        python.chmod(0o755)
        (folder / "cross.ini").write_text(
            _CROSS_FILE.format(
                c=self.variables["CC"].split(), ar=self.variables["AR"].split(), python=f"{self.foreign}/python",
                machine=self.machine,
            )
        )  # fmt: skip
        # meson would take them for those of this machine's programs.
        self.compiler = self.variables.pop("CC")
        del self.variables["AR"]

    def headers(self) -> str:
        """Unpack Python's packages of the other architecture, without installing them; return the headers' folder."""
        names = [f"libpython{self.python.version}{part}" for part in ("-dev", "-stdlib", "-minimal")]
        self.chroot.unpack(self.python.arch, names, f"{self.foreign}/root")
        return f"{self.foreign}/root/usr/include/{self.machine}-linux-gnu"

    def build_options(self) -> list[str]:
        """Return the options of pip that a build for another architecture needs."""
        return [f"-Csetup-args=--cross-file={self.foreign}/cross.ini"]

    def test(self, wheel: Path, *, has_unit: bool) -> None:
        """Install the wheel in a system of its architecture, and run loops there; `make platforms` runs the tests."""
        self.say("loops in a system of that architecture, emulated")
        with prepared(SystemWithoutCompiler(self.python.suite, self.python.arch)) as foreign:
            venv = f"/opt/wheel-{self.python.name}"
            self.install(foreign, venv, [f"{self.work}/dist/{wheel.name}"])
            self.say(foreign.read([f"{venv}/bin/python", "-c", _LOOPS]))

    def install(self, foreign: Chroot, venv: str, requirements: Sequence[str]) -> None:
        """Make an environment in a system of the architecture, with wheels that this machine's pip gets."""
        site, version = f"{self.work}/site", self.python.version
        shutil.rmtree(self.chroot.path(site), ignore_errors=True)
        options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={version}", f"--target={site}"]
        options += [f"--platform=manylinux_2_{minor}_{self.machine}" for minor in range(17, 29)]
        path = {"PATH": self.variables["PATH"]}
        self.chroot.must_run(["pip", "--quiet", "install", *options, *requirements], **path)
        foreign.must_run([self.python.program, "-m", "venv", "--clear", "--without-pip", venv])
        site_inside = f"{venv}/lib/python{version}/site-packages"
        shutil.copytree(self.chroot.path(site), foreign.path(site_inside), dirs_exist_ok=True)
        for script in self.chroot.path(f"{site}/bin").glob("*"):
            content = re.sub(rb"^#!.*", f"#!{venv}/bin/python".encode(), script.read_bytes(), count=1)
            foreign.path(f"{venv}/bin/{script.name}").write_bytes(content)
            foreign.path(f"{venv}/bin/{script.name}").chmod(0o755)

    def compile_shared(self, foreign: Chroot, folder: str) -> None:
        """Compile the modules that tests share against what `install` installed, into a folder of the other system."""
        out = f"{self.work}/shared"
        shutil.rmtree(self.chroot.path(out), ignore_errors=True)
        shutil.rmtree(foreign.path(folder), ignore_errors=True)
        command = ["python", f"{self.source}/tests/support/build.py", out, f"{self.work}/site"]
        self.chroot.must_run(command, CC=self.compiler, **self.variables)
        shutil.copytree(self.chroot.path(out), foreign.path(folder))


_CROSS_FILE = """[binaries]
c = {c}
ar = {ar}
python = '{python}'

[host_machine]
system = 'linux'
cpu_family = '{machine}'
cpu = '{machine}'
endian = 'little'
"""
#: A simulated and a real loop, of two kinds, without a compiler.
_LOOPS = """
import platform, rtloop
assert rtloop.RTLoop("1kHz").simulate("1s").cycles == 1000
ordinary = {"policy": "other", "lock_memory": "off", "dma_latency": None}
assert rtloop.RTLoop("20ms", **ordinary).run(cycles=10).cycles == 10
seen = []
assert rtloop.PyLoop(lambda cycle: seen.append(1), "20ms", **ordinary).run(cycles=5).cycles == len(seen) == 5
print("simulated and run on", platform.machine())
"""
_WHERE_ZIG_IS = "import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), 'zig'))"


class SystemWithoutCompiler(Chroot):
    """The system of the Pythons of a release: it has the packages of all of them, and no compiler."""

    def __init__(self, suite: str, arch: str = NATIVE) -> None:
        super().__init__(suite, arch)
        of_suite = [one for one in PYTHONS if (one.suite, one.arch) == (suite, arch)]
        packages = {name for one in of_suite for name in one.packages}
        self.packages = (*PACKAGES, *sorted(packages))
        self.name = f"{self.name}-no-compiler"
        self.root, self.log = CACHE / self.name, CACHE / f"{self.name}.log"


@contextmanager
def cross_bench(suite: str, arch: str) -> Iterator[CrossBench]:
    """Prepare a release's Python of another architecture, and the tools that build its wheel."""
    python = next(one for one in PYTHONS if (one.suite, one.arch) == (suite, arch))
    with prepared(SystemWithoutCompiler(suite)) as chroot:
        yield CrossBench(python, chroot)


def main() -> int:
    """Build and test the wheels that are asked for; return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="versions (default: all); and sdist")
    parser.add_argument("--unit", action="store_true", help="run .ci/wheel_tests as well")
    arguments = parser.parse_args()
    known = {python.name: python for python in PYTHONS}
    asked = arguments.pythons or [*known, "sdist"]
    for program in [name for name in asked if "/" in name]:
        try:
            own = find_python(program)
        except FailedError as error:
            parser.error(str(error))
        known[program] = Python(own.version, "trixie", own.program, source=own)
    unknown = [version for version in asked if version not in known and version != "sdist"]
    if unknown:
        parser.error(f"no Python {', '.join(unknown)}; there are: {', '.join(known)}, sdist")
    if NATIVE != "amd64":
        sys.exit("the wheels of this machine's architecture are built by the workflow on GitHub only")
    enter_namespace()
    end_by_exception()
    failed = []
    for name in asked:
        python = known["3.13" if name == "sdist" else name]
        try:
            with prepared(SystemWithoutCompiler(python.suite)) as chroot:
                bench = (Bench if python.arch == NATIVE else CrossBench)(python, chroot)
                if name == "sdist":
                    bench.build_from_sdist()
                else:
                    bench.test(bench.build(), has_unit=arguments.unit)
        except FailedError as error:
            say(f"{name}: {error}")
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_program(main)
