"""Test rtloop on the platforms of its users, and write the table of docs/reference/platforms.md.

    python .ci/platforms.py [--list] [--again] [--no-write] [--jobs N] [--tests ARGS] [NAME ...]

Each platform is a Debian system below a cache folder (RTLOOP_PLATFORMS, default /var/cache/rtloop-platforms), made by
debootstrap from a mirror (RTLOOP_MIRROR, default http://deb.debian.org/debian). rtloop is built there into a wheel,
installed with the packages that its tests use, and tested from a copy without its source: tests/unit, parts of
tests/rt, and a user's project that is compiled against it. Needs root, apt and debootstrap. A platform takes 15 to 30
minutes the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import time
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from chroots import (
    CACHE,
    COMPILING,
    CROSS,
    NATIVE,
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
from guest import Guest
from interpreters import THREADED_313, THREADED_314, FreeThreaded
from wheels import cross_bench

PAGE = ROOT / "docs" / "reference" / "platforms.md"
RESULTS = PAGE.with_suffix(".json")
BEGIN, END = "<!-- table: made by make platforms -->", "<!-- end of table -->"

#: Besides tests/unit: what depends on the C library, the interpreter or the architecture.
RT_TESTS = tuple(
    f"tests/rt/test_{name}.py"
    for name in (
        "buffer", "clean", "exchanges", "function_loop", "grants", "group", "guards", "interrupted", "lost", "memory",
        "pool", "unwind", "unwind_calls", "watchdog",
    )
)  # fmt: skip
#: A user's project that is compiled against the installed package.
DOWNSTREAM = tuple(
    f"tests/downstream/test_downstream.py::{name}"
    for name in ("test_meson_project_against_the_installed_package", "test_plain_cythonize")
)
#: Tests under emulation, which is ten to thirty times slower: of the C code, the threads and the simulation.
EMULATED_TESTS = tuple(
    f"tests/unit/test_{name}.py"
    for name in (
        "exact_periods", "histogram", "latest", "loop", "parameters", "process_loop", "ring", "shared_exchanges",
        "signals", "simulate", "stats", "swap", "swap_trial", "units",
    )
)  # fmt: skip
#: Tests in an emulated machine, which is slower still.
GUEST_TESTS = (
    "tests/rt_kernel/examine.py",
    *(f"tests/rt/test_{name}" for name in (
        "guards.py::test_planted_first_touch_of_fresh_memory", "guards.py::test_planted_malloc_and_free",
        "guards.py::test_planted_lazy_binding", "guards.py::test_planted_getppid_is_caught_and_let_through",
        "guards.py::test_what_was_not_counted_is_said", "buffer.py::test_with_enough_huge_pages_it_has_them",
        "buffer.py::test_transparent_huge_pages_are_counted_by_the_kernel",
        "grants.py::test_denormals_are_flushed_on_the_loops_thread_only",
        "grants.py::test_the_idle_latency_is_held_while_the_loop_runs",
        "grants.py::test_nothing_is_left_behind_after_a_stop",
        "memory.py::test_lock_all_locks_what_it_says_and_unlock_all_undoes_it",
        "watchdog.py::test_the_kernel_runs_it_above_the_highest_loop",
    )),
    *(f"tests/unit/test_{name}" for name in (
        "parameters.py::test_a_value_is_in_the_field_before_the_run_and_in_it",
        "process_loop.py::test_the_step_runs_in_another_process_and_its_figures_come_back",
        "shared_exchanges.py::test_a_loop_answers_another_process",
        "shared_exchanges.py::test_a_writer_that_is_killed_has_a_successor",
        "shared_exchanges.py::test_it_cannot_be_resized",
        "swap.py::test_the_next_cycle_is_the_new_steps_and_nothing_is_lost",
        "swap_trial.py::test_a_loop_goes_back_by_itself",
    )),
)  # fmt: skip
_NO_COUNTS: dict[str, Any] = {"passed": 0, "skipped": 0, "failures": {}}
#: File, inside, with the names of the tests that failed.
_FAILED = "/var/tmp/failed.txt"
#: Packages that take very long to compile: installed from a wheel, or left out.
_BINARY = "numpy,scipy,numba,llvmlite,matplotlib,eclipse-zenoh,pillow,contourpy,kiwisolver"
#: Program that prints the versions of the interpreter and of what rtloop depends on.
_FACTS = """
import json, os, platform, sys, sysconfig, warnings
warnings.simplefilter("ignore")
import Cython, numpy, rtloop
text = platform.python_version() + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "")
print(json.dumps({"python": text, "numpy": numpy.__version__, "cython": Cython.__version__,
                  "libc": os.confstr("CS_GNU_LIBC_VERSION")}))
"""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A platform to test on.

    Attributes
    ----------
    name : str
        Its name on the command line and in the table.
    suite : str
        Debian's release.
    system : str
        The release in the table's words.
    arch : str
        Debian's name of the architecture; another than this machine's is emulated by qemu-user.
    python : str
        The interpreter inside.
    packages : tuple of str
        Debian packages besides those of all platforms.
    constraints : tuple of str
        Versions that are not the newest, for pip.
    build_with : tuple of str
        Packages that the wheel is built with, if not the newest.
    free_threaded : FreeThreaded, optional
        The interpreter, if it is compiled from source.
    parallel, alone : tuple of str
        Tests that run on all CPUs, and tests that run one at a time.
    only : tuple of str
        Packages of the tests that are installed: those that its tests use, if not all of them.
    kernel : str
        Debian's package of the kernel that the tests run on, in QEMU; this machine's kernel if empty.
    kernel_suite : str
        The kernel's release, if not `suite`.
    shared : str
        The platform of the same system whose environments it uses, if not its own.
    limit_s : float
        Longest time of a part of the tests, in seconds.
    """

    name: str
    suite: str
    system: str
    arch: str = NATIVE
    python: str = "python3"
    packages: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    build_with: tuple[str, ...] = ()
    free_threaded: FreeThreaded | None = None
    parallel: tuple[str, ...] = ("tests/unit",)
    alone: tuple[str, ...] = (*RT_TESTS, *DOWNSTREAM)
    only: tuple[str, ...] = ()
    kernel: str = ""
    kernel_suite: str = ""
    shared: str = ""
    limit_s: float = 3600

    @property
    def system_packages(self) -> tuple[str, ...]:
        """Debian packages that the platform needs."""
        return (*COMPILING, *self.packages, *(self.free_threaded.packages if self.free_threaded else ()))


_EMULATED = ("Cython", "click", "hypothesis", "meson-python", "ninja", "pytest", "pytest-xdist", "rich", "setuptools")

PLATFORMS = (
    Platform(name="bookworm", suite="bookworm", system="Debian 12"),
    Platform(
        name="oldest", suite="bookworm", system="Debian 12",
        constraints=("numpy==1.26.*", "cython==3.1.*"), build_with=("numpy==2.0.*", "cython==3.1.*"),
    ),
    Platform(name="trixie", suite="trixie", system="Debian 13"),
    Platform(name="sid", suite="sid", system="Debian sid"),
    Platform(
        name="sid-3.15", suite="sid", system="Debian sid",
        python="python3.15", packages=("python3.15-dev", "python3.15-venv"),
    ),
    Platform(
        name="trixie-3.13t", suite="trixie", system="Debian 13",
        python=THREADED_313.program, free_threaded=THREADED_313,
    ),
    Platform(
        name="sid-3.14t", suite="sid", system="Debian sid",
        python=THREADED_314.program, free_threaded=THREADED_314,
    ),
    Platform(
        name="arm64", suite="trixie", system="Debian 13, qemu-user",
        arch="arm64", parallel=EMULATED_TESTS, alone=(), limit_s=7200,
        only=_EMULATED,
    ),
    Platform(
        name="arm64-kernel", suite="trixie", system="Debian 13, QEMU", arch="arm64", kernel="linux-image-arm64",
        shared="arm64", parallel=(), alone=GUEST_TESTS, limit_s=7200, only=_EMULATED,
    ),
    Platform(
        name="arm64-16k", suite="trixie", system="Debian 13, QEMU", arch="arm64", kernel="linux-image-arm64-16k",
        shared="arm64", parallel=(), alone=GUEST_TESTS, limit_s=7200, only=_EMULATED,
    ),
    Platform(
        name="arm64-rt", suite="trixie", system="Debian 13, QEMU", arch="arm64", kernel="linux-image-rt-arm64",
        shared="arm64", parallel=(), alone=GUEST_TESTS, limit_s=7200, only=_EMULATED,
    ),
    Platform(
        name="linux-5.10", suite="bookworm", system="Debian 12, QEMU", kernel=f"linux-image-{NATIVE}",
        kernel_suite="bullseye", parallel=(), alone=GUEST_TESTS, limit_s=7200, only=_EMULATED,
    ),
)  # fmt: skip


def system_of(platform: Platform) -> Chroot:
    """Return the system of a platform, with the packages of all platforms in it, so that each finds them installed."""
    suite, arch = platform.suite, platform.arch
    packages = {name for one in PLATFORMS if (one.suite, one.arch) == (suite, arch) for name in one.system_packages}
    if arch != NATIVE:
        native = replace(platform, arch=NATIVE)
        return Chroot(suite, arch, sorted(packages), helper=system_of(native))
    for other in {one.arch for one in PLATFORMS if one.suite == suite} - {NATIVE}:
        packages |= {f"gcc-{CROSS[other]}", f"libc6-dev-{other}-cross"}
    return Chroot(suite, arch, sorted(packages))


class Bench:
    """One platform in its system, from the empty folder to the counts of its tests."""

    def __init__(self, platform: Platform, chroot: Chroot) -> None:
        self.platform, self.chroot = platform, chroot
        environment = platform.shared or platform.name
        self.builder, self.venv = f"/opt/build-{environment}", f"/opt/venv-{environment}"
        self.source = "/src/rtloop"
        ccache = "" if chroot.helper else "/usr/lib/ccache:"
        self.variables = {"PATH": f"{self.venv}/bin:{ccache}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}

    def say(self, text: str) -> None:
        """Print a line of progress."""
        say(f"{self.platform.name}: {text}")

    def pip(self, environment: str, *arguments: str, folder: str = "/", limit_s: float = 3600) -> None:
        """Call pip in one of the platform's environments, which is made if there is none."""
        if not self.chroot.path(f"{environment}/made").exists():
            self.chroot.must_run([self.platform.python, "-m", "venv", "--clear", environment])
            self.chroot.must_run([f"{environment}/bin/pip", "--quiet", "install", "pip>=25.1"])
            self.chroot.path(f"{environment}/made").touch()
        command = [f"{environment}/bin/pip", "--quiet", *arguments]
        path = f"{environment}/bin:{self.variables['PATH']}"
        self.chroot.must_run(command, folder, limit_s=limit_s, **{**self.variables, "PATH": path})

    def prepare(self) -> list[str]:
        """Install what the wheel is built with and what its tests use; return the packages that cannot be had."""
        if self.platform.free_threaded:
            self.platform.free_threaded.make_in(self.chroot)
        copy_project(self.chroot.path(self.source))
        self.say("installing what building and testing need")
        # An older release with a wheel is better than a newer one that this Python would have to compile.
        limits = [f"--only-binary={_BINARY}", "--prefer-binary", "--upgrade", "--upgrade-strategy=eager"]
        built_with = f"--constraint={self.write('build', self.platform.build_with)}"
        self.pip(self.builder, "install", *limits, built_with, "--group=build", folder=self.source)
        limits.append(f"--constraint={self.write('test', self.platform.constraints)}")
        self.pip(self.venv, "install", *limits, "numpy", "cython", "pytest>=8")
        requirements = test_requirements(tomllib.loads((ROOT / "pyproject.toml").read_text()))
        wanted = [item for item in requirements if not self.platform.only or bare(item) in self.platform.only]
        missing = []
        try:
            self.pip(self.venv, "install", *limits, *wanted, "numpy")
        except FailedError:
            for item in wanted:
                try:
                    self.pip(self.venv, "install", *limits, item, "numpy")
                except FailedError:
                    missing.append(item)
        return sorted({bare(item) for item in missing})

    def install(self) -> Path:
        """Build a wheel and install it; return its path."""
        wheels = f"/var/tmp/wheels-{self.platform.name}"
        shutil.rmtree(self.chroot.path(wheels), ignore_errors=True)
        self.say("building the wheel")
        options = ["--no-build-isolation", "--no-deps", f"-Cbuild-dir=/var/tmp/build-{self.platform.name}"]
        self.pip(self.builder, "wheel", *options, f"--wheel-dir={wheels}", self.source)
        (wheel,) = self.chroot.path(wheels).glob("*.whl")
        self.say(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
        self.pip(self.venv, "install", "--force-reinstall", "--no-deps", f"{wheels}/{wheel.name}")
        self.pip(self.venv, "check")
        return wheel

    def write(self, name: str, constraints: tuple[str, ...]) -> str:
        """Write a file of constraints for pip; return its path inside."""
        path = f"/var/tmp/{self.platform.name}-{name}.txt"
        self.chroot.path(path).write_text("\n".join(constraints) + "\n")
        return path

    def test(self, arguments: Sequence[str] = (), jobs: int = 1) -> dict[str, object]:
        """Run the tests, with further arguments for pytest, in several processes; return the row of the table."""
        began = time.monotonic()
        missing = self.prepare()
        wheel = self.install()
        self.say(f"testing; log: {self.chroot.log}")
        # As `make test` runs the unit tests; a killed worker ends the run.
        workers = ("-n", str(jobs), "--dist", "loadfile", "--max-worker-restart=0")
        counts = self.run_tests(self.platform.parallel, (*(workers if jobs > 1 else ()), *arguments))
        counts = added(counts, self.run_tests(self.platform.alone, arguments))
        if counts["failures"]:
            counts = self.run_again(counts)
        return self.row(wheel, missing, counts, began)

    def test_again(self, row: dict[str, Any]) -> dict[str, Any]:
        """Run what failed in a former run; return its row as it is now."""
        began = time.monotonic()
        missing = self.prepare()
        wheel = self.install()
        return self.row(wheel, missing, self.run_again(row, self.renamed(row["failures"])), began)

    def row(self, wheel: Path, missing: list[str], counts: dict[str, Any], began: float) -> dict[str, Any]:
        """Return the row of the table."""
        failed, minutes = len(counts["failures"]), (time.monotonic() - began) / 60
        self.say(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped, in {minutes:.0f} min")
        facts = json.loads(self.chroot.read([f"{self.venv}/bin/python", "-c", _FACTS], **self.variables))
        counts = {name: counts.get(name, []) for name in ("passed", "skipped", "failures", "unsteady")}
        row = {"system": self.platform.system, **facts, **counts, "without": missing}
        return row | {"wheel_bytes": wheel.stat().st_size, "date": time.strftime("%Y-%m-%d")}

    def renamed(self, names: Collection[str]) -> dict[str, list[str]]:
        """Return the names that no test has, each with the tests of the same function that exist."""
        files = {name.partition("::")[0] for name in names if "::" in name}
        there = " ".join(sorted(file for file in files if (ROOT / file).exists()))
        if not there:
            return replacements(names, [])
        command = [f"{self.source}/.ci/wheel_tests", "--collect-only", "-p", "no:cacheprovider"]
        listing = self.chroot.read(command, **{**self.variables, "WHEEL_TESTS": there})
        return replacements(names, listing.splitlines())

    def run_again(self, counts: dict[str, Any], renamed: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """Run the tests that failed once more, one at a time; return the counts as they are then.

        A test that has been renamed is judged, under its former name, by the tests that replace it.
        """
        renamed = renamed or {}
        self.say(f"running the {len(counts['failures'])} that failed again, one at a time")
        again = self.run_listed([name for name in counts["failures"] if name not in renamed])
        for name, tests in renamed.items():
            again = added(again, as_one(name, self.run_listed(tests)))
        return second(counts, again)

    def run_listed(self, names: Sequence[str]) -> dict[str, Any]:
        """Run tests by their full names, given in a file because they may be many and contain spaces; return counts."""
        if not names:
            return _NO_COUNTS
        self.chroot.path(_FAILED).write_text("".join(f"{name}\n" for name in names))
        return self.run_tests((f"@{_FAILED}",), ())

    def run_tests(self, tests: Sequence[str], arguments: Sequence[str]) -> dict[str, object]:
        """Run some tests against the installed wheel; return their counts."""
        if not tests:
            return _NO_COUNTS
        result = "/var/tmp/results.xml"
        self.chroot.path(result).unlink(missing_ok=True)
        command = [f"{self.source}/.ci/wheel_tests", f"--junitxml={result}", "-p", "no:cacheprovider", *arguments]
        variables = {**self.variables, "WHEEL_TESTS": " ".join(tests)}
        code = self.chroot.run(command, self.source, limit_s=self.platform.limit_s, **variables)
        if not self.chroot.path(result).exists():
            raise FailedError(f"the tests ended with exit code {code} and no result (log: {self.chroot.log})")
        if code not in (0, 1, 5):  # 1: some failed; 5: none was selected
            raise FailedError(f"the tests did not run to their end: exit code {code} (log: {self.chroot.log})")
        return read_junit(self.chroot.path(result))


#: Variables for emulated tests: a longer limit for each, and Cython is not loaded beforehand.
_SLOW = {"RTLOOP_TEST_WATCHDOG_S": "1800", "RTLOOP_TEST_SLOW": "1", "NO_COLOR": "1"}


class EmulatedBench(Bench):
    """A platform of another architecture: this machine builds its wheel and the loops of its tests."""

    def __init__(self, platform: Platform, chroot: Chroot) -> None:
        super().__init__(platform, chroot)
        self.shared = f"/var/tmp/compiled-{platform.name}"

    def prepare(self) -> list[str]:
        """Copy the tests; return no packages, because those that its tests use can all be had."""
        copy_project(self.chroot.path(self.source))
        return []

    def install(self) -> Path:
        """Build the wheel, and install it with what its tests use; return its path."""
        requirements = test_requirements(tomllib.loads((ROOT / "pyproject.toml").read_text()))
        wanted = [item for item in requirements if bare(item) in self.platform.only]
        with cross_bench(self.platform.suite, self.platform.arch) as bench:
            wheel = bench.build()
            inside = f"/{wheel.relative_to(bench.chroot.root)}"
            bench.install(self.chroot, self.venv, [inside, *wanted, "pip"])
            self.say("compiling the loops of the tests")
            bench.compile_shared(self.chroot, f"{self.shared}/support")
        self.variables |= _SLOW | {"RTLOOP_TEST_SHARED": self.shared}
        return wheel


class GuestBench(EmulatedBench):
    """A platform whose tests run on a kernel of its own, in an emulated machine that has no compiler."""

    def __init__(self, platform: Platform, chroot: Chroot) -> None:
        super().__init__(platform, chroot)
        kept = [name.lstrip("/") for name in (self.venv, self.shared, "src", _FAILED)]
        self.guest, self.release = Guest(chroot, platform.kernel, kept, platform.kernel_suite), ""

    def install(self) -> Path:
        """Build and install the wheel, and have the kernel; return the wheel's path."""
        wheel = super().install()
        with cross_bench(self.platform.suite, self.platform.arch) as bench:
            self.guest.fetch(bench.chroot)
        return wheel

    def run_tests(self, tests: Sequence[str], arguments: Sequence[str]) -> dict[str, object]:
        """Run some tests in the machine; return their counts."""
        if not tests:
            return _NO_COUNTS
        result = "/var/tmp/results.xml"
        command = [f"{self.source}/.ci/wheel_tests", f"--junitxml={result}", "-p", "no:cacheprovider", *arguments]
        variables = self.chroot.environment({**self.variables, "WHEEL_TESTS": " ".join(tests)})
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        lines += [
            "echo ==release $(uname -r)==",
            shlex.join(command),
            f"echo ==results==; cat {result}; echo; echo ==end of results==",
        ]
        text = self.guest.run("\n".join(lines) + "\n", self.platform.limit_s)
        found = re.search(r"==results==\n(<.*>)\s*==end of results==", text, re.DOTALL)
        release = re.search("==release (.*)==", text)
        if not found or not release:
            raise FailedError(f"the tests ended without a result:\n{text[-3000:]}")
        self.release = release[1]
        path = self.chroot.path(result)
        path.write_text(found[1])
        return read_junit(path)

    def row(self, wheel: Path, missing: list[str], counts: dict[str, Any], began: float) -> dict[str, Any]:
        """Return the row of the table, with the kernel."""
        row = super().row(wheel, missing, counts, began)
        return row | {"system": f"{row['system']}, Linux {self.release}"}


class NativeGuestBench(GuestBench):
    """A platform of this machine's architecture whose tests run on a kernel of its own, in an emulated machine."""

    def prepare(self) -> list[str]:
        """Install what the wheel is built with and what its tests use; return the packages that cannot be had."""
        return Bench.prepare(self)

    def install(self) -> Path:
        """Build and install the wheel, compile the loops of the tests, and have the kernel; return the wheel's path."""
        wheel = Bench.install(self)
        self.say("compiling the loops of the tests")
        shutil.rmtree(self.chroot.path(self.shared), ignore_errors=True)
        include = self.chroot.read(["python", "-c", _INCLUDE], **self.variables)
        build = f"{self.source}/tests/support/build.py"
        self.chroot.must_run(["python", build, f"{self.shared}/support", include], **self.variables)
        self.variables |= _SLOW | {"RTLOOP_TEST_SHARED": self.shared}
        self.guest.fetch(self.chroot)
        return wheel


_INCLUDE = "import rtloop; print(rtloop.get_include())"


def kind(platform: Platform) -> type[Bench]:
    """Return the class of a platform's bench."""
    if platform.kernel:
        return NativeGuestBench if platform.arch == NATIVE else GuestBench
    return Bench if platform.arch == NATIVE else EmulatedBench


def bare(requirement: str) -> str:
    """Return the name of the package in a requirement."""
    return re.split(r"[\[<>=;\s]", requirement)[0]


def test_requirements(project: dict) -> list[str]:
    """Return what the tests use, each requirement once: the dependency group "test" and the extra "all".

    The group "build" is left out: what a wheel is built with may be newer than what it runs with.
    """
    groups, extras = project["dependency-groups"], project["project"]["optional-dependencies"]

    def of_group(name: str) -> list[str]:
        found = []
        for item in groups[name]:
            if isinstance(item, str):
                found.append(item)
            elif item["include-group"] != "build":
                found += of_group(item["include-group"])
        return found

    def of_extra(name: str) -> list[str]:
        found = []
        for item in extras[name]:
            inner = re.fullmatch(r"rtloop\[(.*)\]", item)
            found += [one for part in inner[1].split(",") for one in of_extra(part)] if inner else [item]
        return found

    return list(dict.fromkeys([*of_group("test"), *of_extra("all")]))


def read_junit(path: Path) -> dict[str, Any]:
    """Return the counts of a file of pytest's --junitxml, and the first line of each failure by its test."""
    failures, passed, skipped = {}, 0, 0
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        children = {child.tag: child for child in case}
        bad = children.get("failure", children.get("error"))
        if bad is not None:
            name = case.get("name", "")
            if folder := case.get("classname", ""):
                name = f"{folder.replace('.', '/')}.py::{name}"
            else:  # a module that could not be imported
                name = f"{name.replace('.', '/')}.py"
            failures[name] = (bad.get("message") or "").partition("\n")[0]
        elif "skipped" in children:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failures": failures}


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of two parts of the tests as those of one."""
    return {
        "passed": one["passed"] + other["passed"],
        "skipped": one["skipped"] + other["skipped"],
        "failures": one["failures"] | other["failures"],
    }


def second(first: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of a run whose failed tests ran again: what passed then counts as passed, and is named."""
    steady = {name for name in first["failures"] if name not in again["failures"]}
    return {
        "passed": first["passed"] + again["passed"],
        "skipped": first["skipped"] + again["skipped"],
        "failures": again["failures"],
        "unsteady": sorted(steady.union(first.get("unsteady", ()))),
    }


def replacements(names: Iterable[str], present: Collection[str]) -> dict[str, list[str]]:
    """Return the names of tests that are not present, each with the present tests of the same function."""
    functions: dict[str, list[str]] = {}
    for name in present:
        functions.setdefault(name.partition("[")[0], []).append(name)
    return {name: functions.get(name.partition("[")[0], []) for name in names if "::" in name and name not in present}


def as_one(name: str, counts: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of replacement tests as those of one test of this name, which fails if any of them does."""
    if counts["failures"]:
        why = "; ".join(f"{test}: {text}" for test, text in counts["failures"].items())
        return {"passed": 0, "skipped": 0, "failures": {name: why}}
    if counts["passed"]:
        return {"passed": 1, "skipped": 0, "failures": {}}
    if counts["skipped"]:
        return {"passed": 0, "skipped": 1, "failures": {}}
    return {"passed": 0, "skipped": 0, "failures": {name: "there is no such test"}}


#: The heads of the table, with the key of a row or what makes its cell.
_COLUMNS = {
    "system": lambda row: row["system"],
    "C library": lambda row: row["libc"],
    "Python": lambda row: row["python"],
    "NumPy": lambda row: row["numpy"],
    "Cython": lambda row: row["cython"],
    "passed": lambda row: f"{row['passed']:,}",
    "failed": lambda row: f"{len(row['failures']):,}",
    "skipped": lambda row: f"{row['skipped']:,}",
    "second run": lambda row: f"{len(row['unsteady']):,}",
    "not installed": lambda row: ", ".join(row["without"]) or "-",
    "date": lambda row: row["date"],
}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table, in the order of the platforms, and below it what failed and the platforms without a run."""
    counts = ("passed", "failed", "skipped", "second run")
    lines = [f"| {' | '.join(['platform', *_COLUMNS])} |"]
    lines.append(f"|{'|'.join(['---', *('---:' if head in counts else '---' for head in _COLUMNS)])}|")
    rows = [(platform.name, results[platform.name]) for platform in PLATFORMS if platform.name in results]
    for name, row in rows:
        lines.append(f"| {' | '.join([f'`{name}`', *(cell(row) for cell in _COLUMNS.values())])} |")
    for name, row in rows:
        if row["failures"]:
            lines += ["", f"Failed on `{name}`:", "", *(f"- `{test}`" for test in sorted(row["failures"]))]
    if untested := [platform.name for platform in PLATFORMS if platform.name not in results]:
        lines += ["", f"Not tested yet: {', '.join(f'`{name}`' for name in untested)}."]
    return "\n".join(lines)


def read_results() -> dict[str, dict[str, Any]]:
    """Return the results that are committed, by platform."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write(results: dict[str, dict]) -> None:
    """Write the results, and the page's table."""
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")


def main() -> int:
    """Test on the platforms that are named; return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="platforms (default: all); see --list")
    parser.add_argument("--list", action="store_true", help="print the platforms and end")
    parser.add_argument("--again", action="store_true", help="run only what failed in the results that are committed")
    parser.add_argument("--no-write", action="store_true", help="leave the page as it is")
    jobs = (os.cpu_count() or 1) + 1
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"processes of the unit tests ({jobs})")
    parser.add_argument("--tests", default="", metavar="ARGS", help="arguments for pytest; the page stays as it is")
    arguments = parser.parse_args()
    known = {platform.name: platform for platform in PLATFORMS}
    if arguments.list:
        for platform in PLATFORMS:
            print(f"{platform.name:<14} {platform.system}, {platform.python} {' '.join(platform.constraints)}".rstrip())
        return 0
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no platform {', '.join(unknown)}; there are: {', '.join(known)}")
    enter_namespace()
    end_by_exception()
    say(f"systems are kept in {CACHE}")
    names = arguments.names or list(known)
    if arguments.again:
        names = [name for name in names if read_results().get(name, {}).get("failures")]
    broken, failed = [], []
    for name in names:
        platform = known[name]
        try:
            with prepared(system_of(platform)) as chroot:
                bench = kind(platform)(platform, chroot)
                if arguments.again:
                    row = bench.test_again(read_results()[name])
                else:
                    row = bench.test(shlex.split(arguments.tests), arguments.jobs)
        except FailedError as error:
            say(f"{name}: {error}")
            broken.append(name)
            continue
        failed += [f"{name}: {test}: {why}" for test, why in row["failures"].items()]
        if not (arguments.no_write or arguments.tests):
            write({**read_results(), name: row})  # another run may have written meanwhile
    for line in failed:
        print(f"failed on {line}")
    for name in broken:
        print(f"not tested: {name}")
    return 1 if failed or broken else 0


if __name__ == "__main__":
    run_program(main)
