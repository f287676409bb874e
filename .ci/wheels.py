"""Build rtloop's wheels for x86-64 without the images of manylinux, and test each where there is no compiler.

    python .ci/wheels.py [--unit] [PYTHON ...]

For each Python there is a Debian system below a cache folder (see chroots.py) that has no compiler. There zig, of the
Python package ziglang, compiles a wheel against glibc 2.28, and auditwheel checks that it is a manylinux_2_28 wheel.
In a new environment without the source the wheel is installed and tested: a .pyx from the first `pip install` to its
histogram, and a project of `rtloop new`, by the compiler that rtloop[compiler] brings. With --unit the unit tests
follow; those that call gcc by its name fail there. The sdist is installed there, too, as pip does it.
Results are in dist/. Needs root, apt and debootstrap.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
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

DIST = ROOT / "dist"
PLATFORM = "manylinux_2_28_x86_64"
GLIBC = "2.28"


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
    """

    version: str
    suite: str
    program: str = "python3"
    packages: tuple[str, ...] = ("python3-dev", "python3-venv")


PYTHONS = (
    Python("3.11", "bookworm"),
    Python("3.13", "trixie"),
)

#: From an empty environment to a running loop, as a new user would; prints the seconds of each part.
_FIRST_LOOP = """
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
part() { now=$(date +%s%N); echo "$(( (now - ${before:-$now}) / 1000000 )) ms: $1"; before=$now; }
before=$(date +%s%N)
PYTHON -m venv new; . new/bin/activate; part "python -m venv"
pip --quiet install 'WHEEL[compiler,cli]'; part "pip install 'rtloop[compiler,cli]'"
cp FILE first_loop.pyx
rtloop run first_loop.pyx --duration 2s 2>&1; part "rtloop run first_loop.pyx, 2 s of which it runs"
pip --quiet install pytest; before=$(date +%s%N)
python -m pytest -q -p no:cacheprovider --rootdir "$work" SOURCE/tests/build/test_c_compiler.py -k real_zig
rtloop new arm; cd arm; eval "$(rtloop new ../arm2 | sed -n 's/#.*//; /^ *export /p')"
pip --quiet install --no-build-isolation '.[test]'; python -m pytest -q -p no:cacheprovider
part "a project of rtloop new, and its tests"
"""


class Bench:
    """One Python in its system, from the source to a tested wheel."""

    def __init__(self, python: Python, chroot: Chroot) -> None:
        self.python, self.chroot = python, chroot
        self.source, self.work = "/src/rtloop", f"/var/tmp/wheel-{python.version}"
        self.tools = f"/opt/wheel-tools-{python.version}"
        self.variables = {"PATH": f"{self.tools}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}

    def say(self, text: str) -> None:
        """Print a line of progress."""
        say(f"Python {self.python.version}: {text}")

    def must_run(self, *command: str, folder: str = "/", limit_s: float = 2700) -> None:
        """Run a command inside, with the tools on the PATH; raise if it fails."""
        self.chroot.must_run(command, folder, limit_s=limit_s, **self.variables)

    def prepare(self) -> None:
        """Install what builds a wheel, and let zig be the compiler."""
        copy_project(self.chroot.path(self.source))
        if not self.chroot.path(f"{self.tools}/bin/python").exists():
            self.must_run(self.python.program, "-m", "venv", self.tools)
            self.must_run("pip", "--quiet", "install", "pip>=25.1")
        self.must_run("pip", "--quiet", "install", "--group=build", "--group=wheels", folder=self.source)
        zig = self.chroot.read(["python", "-c", _WHERE_ZIG_IS], **self.variables)
        # Debian's pyconfig.h is in a folder that zig does not search if it compiles for another glibc.
        folder = self.chroot.path("opt/wheel-include")
        folder.mkdir(exist_ok=True)
        link = folder / "x86_64-linux-gnu"
        link.unlink(missing_ok=True)
        link.symlink_to("/usr/include/x86_64-linux-gnu")
        # -g0: zig adds debugging information by default; names of functions, which guards report, stay.
        self.variables["CC"] = (
            f"{zig} cc -target x86_64-linux-gnu.{GLIBC} -mcpu=baseline -g0 -idirafter /opt/wheel-include"
        )
        self.variables["AR"] = f"{zig} ar"

    def build(self) -> Path:
        """Build the wheel, have auditwheel check and name it, and return its place in dist/."""
        self.prepare()
        self.say("building the wheel")
        shutil.rmtree(self.chroot.path(self.work), ignore_errors=True)
        build = ["--no-build-isolation", "--no-deps", f"-Cbuild-dir=/var/tmp/wheel-build-{self.python.version}"]
        self.must_run("pip", "--quiet", "wheel", *build, f"--wheel-dir={self.work}/raw", self.source)
        (raw,) = self.chroot.path(f"{self.work}/raw").glob("rtloop-*.whl")
        inside = f"{self.work}/raw/{raw.name}"
        self.must_run("auditwheel", "repair", "--plat", PLATFORM, "--only-plat", "-w", f"{self.work}/dist", inside)
        (wheel,) = self.chroot.path(f"{self.work}/dist").glob("rtloop-*.whl")
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
        code = self.chroot.run(command, self.source, limit_s=2700, **variables)
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


_WHERE_ZIG_IS = "import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), 'zig'))"


class SystemWithoutCompiler(Chroot):
    """The system of a Python: it has the packages of all Pythons of its release, and no compiler."""

    def __init__(self, python: Python) -> None:
        super().__init__(python.suite)
        packages = {name for one in PYTHONS if one.suite == python.suite for name in one.packages}
        self.packages = (*PACKAGES, *sorted(packages))
        self.name = f"{python.suite}-no-compiler"
        self.root, self.log = CACHE / self.name, CACHE / f"{self.name}.log"


def main() -> int:
    """Build and test the wheels that are asked for; return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="versions (default: all); and sdist")
    parser.add_argument("--unit", action="store_true", help="run .ci/wheel_tests as well")
    arguments = parser.parse_args()
    known = {python.version: python for python in PYTHONS}
    asked = arguments.pythons or [*known, "sdist"]
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
            with prepared(SystemWithoutCompiler(python)) as chroot:
                bench = Bench(python, chroot)
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
