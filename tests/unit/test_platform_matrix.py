"""`.ci/platforms.py`, as far as it needs no root: the choice of platforms, what is installed, the table, the errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import rtloop_test_processes as processes

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / ".ci" / "platforms.py")]

ROW = {
    "system": "Debian 13", "libc": "glibc 2.41", "python": "3.13.5", "numpy": "2.4.1", "cython": "3.3.0",
    "passed": 2345, "skipped": 6, "failures": {}, "unsteady": [], "without": [], "date": "2026-01-02",
}  # fmt: skip

JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.unit.test_ring" name="test_a"/>
<testcase classname="tests.unit.test_ring" name="test_b[1-x]"><failure message="assert 1 == 2&#10;more"/></testcase>
<testcase classname="tests.rt.test_pool" name="test_c"><error message="fixture"/></testcase>
<testcase classname="tests.rt.test_pool" name="test_d"><skipped message="no perf"/></testcase>
<testcase classname="" name="tests.unit.test_age"><error message="collection failure"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def platforms(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    import platforms as module

    yield module
    for name in ("platforms", "chroots", "guest", "interpreters", "wheels"):
        sys.modules.pop(name, None)


def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_platform_that_does_not_exist_is_named_with_those_that_do(platforms: ModuleType) -> None:
    done = call("trixie", "potato")
    assert done.returncode == 2 and "no platform potato" in done.stderr
    assert all(platform.name in done.stderr for platform in platforms.PLATFORMS)


def test_the_list_has_every_platform(platforms: ModuleType) -> None:
    names = [line.split()[0] for line in call("--list").stdout.splitlines()]
    assert names == [platform.name for platform in platforms.PLATFORMS]
    assert len(names) == len(set(names)) > 5


def test_without_root_or_debootstrap_it_says_what_it_needs(
    platforms: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RTLOOP_PLATFORMS_NAMESPACE", raising=False)
    chroots = sys.modules["chroots"]
    monkeypatch.setattr(chroots.os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="need root"):
        platforms.enter_namespace()
    monkeypatch.setattr(chroots.os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit, match=r"not found: debootstrap, unshare, chroot; fix: apt install debootstrap"):
        platforms.enter_namespace()


def test_the_tests_that_are_chosen_exist(platforms: ModuleType) -> None:
    for platform in platforms.PLATFORMS:
        for test in (*platform.parallel, *platform.alone):
            path, _, name = test.partition("::")
            assert (ROOT / path).exists(), f"{platform.name}: {path}"
            assert not name or f"def {name}(" in (ROOT / path).read_text()


def test_a_platform_of_another_architecture_is_built_here_and_one_with_a_kernel_is_booted(
    platforms: ModuleType,
) -> None:
    kinds = {platform.name: platforms.kind(platform) for platform in platforms.PLATFORMS}
    assert kinds["trixie"] is (platforms.Bench if platforms.NATIVE == "amd64" else platforms.EmulatedBench)
    assert kinds["arm64-rt"] is platforms.GuestBench and issubclass(kinds["arm64-rt"], platforms.EmulatedBench)
    for platform in platforms.PLATFORMS:
        known = {(python.suite, python.arch) for python in sys.modules["wheels"].PYTHONS}
        assert platform.arch == "amd64" or (platform.suite, platform.arch) in known, platform.name
        assert not platform.shared or platform.shared in kinds


def test_the_file_system_of_a_booted_kernel_is_the_system_without_what_nobody_needs(
    platforms: ModuleType, tmp_path: Path
) -> None:
    for name in ("usr/bin/sh", "usr/lib/libc.a", "usr/share/doc/x", "proc/1/stat", "opt/a/bin/python", "opt/b/x",
                 "var/tmp/shared/x.so", "var/tmp/old/x"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    chroot = platforms.Chroot("trixie", "arm64")
    chroot.root = tmp_path
    guest = platforms.Guest(chroot, "linux-image-rt-arm64", ["opt/a", "var/tmp/shared"])
    names = guest.names().decode().split("\0")
    assert {"./usr/bin/sh", "./opt/a/bin/python", "./var/tmp/shared/x.so"} <= set(names)
    assert not {name for name in names if name.endswith((".a", "/x", "/stat"))}
    # cpio makes a file only in a folder that it has made.
    assert all(str(Path(name).parent) in (".", *(str(Path(n)) for n in names[:i])) for i, name in enumerate(names))


def test_an_emulator_that_is_missing_is_named_with_its_package(
    platforms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    guest = platforms.Guest(platforms.Chroot("trixie", "arm64"), "linux-image-rt-arm64", [])
    with pytest.raises(platforms.FailedError, match=r"qemu-system-aarch64 is not .* apt install qemu-system-arm"):
        guest.fetch(platforms.Chroot("trixie"))
    with pytest.raises(platforms.FailedError, match=r"qemu-aarch64-static is not .* apt install qemu-user-static"):
        sys.modules["chroots"].emulate("arm64", tmp_path / "log")


def test_an_emulated_system_whose_packages_are_not_configured_gets_its_compiler(
    platforms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chroots = sys.modules["chroots"]
    monkeypatch.setattr(chroots, "must_run", lambda command, log: None)  # mount
    helper, chroot = platforms.Chroot("trixie", "amd64"), platforms.Chroot("trixie", "arm64")
    helper.root, chroot.root = tmp_path / "native", tmp_path / "foreign"
    for name in ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/libc.so.6"):
        helper.path(name).parent.mkdir(parents=True)
        helper.path(name).touch()
    chroot.root.mkdir()
    chroot._use_compiler_of(helper)
    compiler = chroot.path("usr/local/bin/gcc")
    assert os.access(compiler, os.X_OK) and "aarch64-linux-gnu-gcc" in compiler.read_text()


def test_requirements_are_those_of_the_tests_and_of_every_extra(platforms: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = platforms.test_requirements(project)
    assert len(found) == len(set(found))
    extras = project["project"]["optional-dependencies"]
    for name in extras["all"][0].removeprefix("rtloop[").removesuffix("]").split(","):
        assert {item for item in extras[name] if not item.startswith("rtloop[")} <= set(found)
    assert {item for item in project["dependency-groups"]["test"] if isinstance(item, str)} <= set(found)
    # A wheel is built with a newer NumPy than it runs with.
    assert not any(item.startswith("numpy") for item in found)


def test_counts_are_read_from_the_report_of_pytest(platforms: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "results.xml"
    report.write_text(JUNIT)
    counts = platforms.read_junit(report)
    assert (counts["passed"], counts["skipped"]) == (1, 1)
    assert counts["failures"] == {
        "tests/unit/test_ring.py::test_b[1-x]": "assert 1 == 2",
        "tests/rt/test_pool.py::test_c": "fixture",
        "tests/unit/test_age.py": "collection failure",
    }
    twice = platforms.added(counts, {"passed": 10, "skipped": 0, "failures": {"x": "y"}})
    assert (twice["passed"], twice["skipped"], len(twice["failures"])) == (11, 1, 4)


def test_the_table_has_the_platforms_in_their_order_and_every_failure(platforms: ModuleType) -> None:
    failing = {**ROW, "failures": {"tests/unit/test_ring.py::test_b": "assert 1 == 2"}, "without": ["numba", "scipy"]}
    failing["unsteady"] = ["tests/rt/test_pool.py::test_c"]
    lines = platforms.table({"sid": failing, "trixie": ROW, "of a former list": ROW}).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == lines[3].count("|")
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["`trixie`", "`sid`"]
    assert "| 2,345 | 0 | 6 | 0 | - | 2026-01-02 |" in lines[2]
    assert "| 2,345 | 1 | 6 | 1 | numba, scipy | 2026-01-02 |" in lines[3]
    assert lines[4:8] == ["", "Failed on `sid`:", "", "- `tests/unit/test_ring.py::test_b`"]
    assert lines[8] == "" and lines[9].startswith("Not tested yet: `bookworm`, ") and len(lines) == 10


def test_what_passes_when_run_again_is_named(platforms: ModuleType) -> None:
    first = {"passed": 10, "skipped": 1, "failures": {"a": "why", "b": "why"}}
    again = platforms.second(first, {"passed": 1, "skipped": 0, "failures": {"b": "why again"}})
    assert again == {"passed": 11, "skipped": 1, "failures": {"b": "why again"}, "unsteady": ["a"]}
    third = platforms.second(again, {"passed": 1, "skipped": 0, "failures": {}})
    assert (third["passed"], third["failures"], third["unsteady"]) == (12, {}, ["a", "b"])


def test_a_test_with_other_parameters_is_run_by_its_function_and_judged_under_its_former_name(
    platforms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = "tests/unit/test_ring.py"
    kept, gone, other = f"{file}::test_kept[1]", f"{file}::test_gone", f"{file}::test_with[old]"
    listing = f"{kept}\n{file}::test_with[a b]\n{file}::test_with[c]\n{file}::test_without\n\n4 tests collected"
    runs: list[list[str]] = []
    answers = [{"failures": {}, "passed": 1, "skipped": 0}, {"failures": {}, "passed": 2, "skipped": 0}]

    class Shown(platforms.Bench):
        def run_tests(self, tests: tuple[str], arguments: tuple) -> dict:
            runs.append((tmp_path / tests[0].removeprefix("@/")).read_text().splitlines())
            return answers[len(runs) - 1]

    chroot = platforms.Chroot("trixie")
    chroot.root = tmp_path
    (tmp_path / "var/tmp").mkdir(parents=True)
    monkeypatch.setattr(platforms.Chroot, "read", lambda self, command, **variables: listing)
    bench = Shown(platforms.PLATFORMS[0], chroot)
    former = {"passed": 10, "skipped": 1, "failures": {kept: "why", other: "why", gone: "why"}}
    row = bench.run_again(former, bench.renamed(former["failures"]))
    assert runs == [[kept], [f"{file}::test_with[a b]", f"{file}::test_with[c]"]]
    assert row["failures"] == {gone: "there is no such test"}
    assert (row["passed"], row["skipped"], row["unsteady"]) == (12, 1, [kept, other])


def test_no_tests_are_not_all_tests(platforms: ModuleType, tmp_path: Path) -> None:
    """An emulated system has no tests to run one at a time."""
    chroot = platforms.Chroot("trixie")
    chroot.root = tmp_path
    for platform in platforms.PLATFORMS:
        counts = platforms.kind(platform)(platform, chroot).run_tests((), ())
        assert counts == {"passed": 0, "skipped": 0, "failures": {}}


def test_tests_that_replace_one_fail_together_and_are_skipped_together(platforms: ModuleType) -> None:
    failed = platforms.as_one("t[old]", {"passed": 3, "skipped": 1, "failures": {"t[a]": "assert 1 == 2"}})
    assert failed == {"passed": 0, "skipped": 0, "failures": {"t[old]": "t[a]: assert 1 == 2"}}
    assert platforms.as_one("t[old]", {"passed": 0, "skipped": 2, "failures": {}})["skipped"] == 1
    assert platforms.as_one("t[old]", {"passed": 1, "skipped": 2, "failures": {}})["passed"] == 1


def test_the_page_has_the_table_of_the_committed_results(platforms: ModuleType) -> None:
    results = platforms.read_results()
    assert results
    between = platforms.PAGE.read_text().split(platforms.BEGIN)[1].split(platforms.END)[0]
    assert between.strip() == platforms.table(results)


def test_a_command_that_fails_is_named_with_the_end_of_its_log(platforms: ModuleType, tmp_path: Path) -> None:
    chroots, log = sys.modules["chroots"], tmp_path / "log"
    with pytest.raises(platforms.FailedError) as failed:
        chroots.must_run(["sh", "-c", "echo no room left; exit 7"], log)
    assert "exit code 7: sh -c" in str(failed.value) and str(log) in str(failed.value)
    assert "no room left" in str(failed.value)


def test_a_command_whose_output_is_wanted_and_that_fails_is_shown_with_all_of_it(
    platforms: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    chroots = sys.modules["chroots"]
    monkeypatch.setattr(chroots.Chroot, "command", lambda self, command: command)
    with pytest.raises(chroots.FailedError, match=r"(?s)exit code 3: sh .*1 failed.*a warning"):
        chroots.Chroot("trixie").read(["sh", "-c", "echo 1 failed; echo a warning >&2; exit 3"])


def test_the_log_has_no_settings_of_the_network(
    platforms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chroots = sys.modules["chroots"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@example.org/")
    chroot = chroots.Chroot("trixie")
    assert chroot.environment({"A": "b"})["PIP_INDEX_URL"].endswith("example.org/")
    assert not any("secret" in word for word in chroot.command(["pip", "install"]))
    chroots.run(["true"], tmp_path / "log", environment=chroot.environment({}))
    assert "secret" not in (tmp_path / "log").read_text()


#: Prints the number of a process of its own session, whose parent ends, and then waits.
_ORPHANS = "( setsid sleep 61.25 & echo $! ); sleep 61.25"


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(platforms: ModuleType, tmp_path: Path) -> None:
    chroots, log = sys.modules["chroots"], tmp_path / "log"
    assert chroots.run(["sh", "-c", _ORPHANS], log, limit_s=2) == 124
    orphan = int(log.read_text().splitlines()[-2])
    assert "not done after 2 s" in log.read_text()
    assert not processes.is_alive(orphan)


def test_no_zombie_is_left_of_a_process_whose_parent_has_ended(platforms: ModuleType, tmp_path: Path) -> None:
    wait = "( sleep 0 & echo $! >orphan ); while [ -d /proc/$(cat orphan) ]; do sleep 0.05; done"
    assert sys.modules["chroots"].run(["sh", "-c", f"cd {tmp_path}; {wait}"], tmp_path / "log", limit_s=60) == 0


def test_what_a_command_leaves_behind_ends_with_it_and_nothing_else_does(platforms: ModuleType, tmp_path: Path) -> None:
    chroots, log = sys.modules["chroots"], tmp_path / "log"
    with subprocess.Popen(["sleep", "61.25"]) as other:
        assert chroots.run(["sh", "-c", "( setsid sleep 61.25 & echo $! ); exit 3"], log) == 3
        assert not processes.is_alive(int(log.read_text().splitlines()[-1]))
        assert other.poll() is None
        other.kill()


def test_the_project_is_copied_without_what_git_ignores(platforms: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    (target / "old" / "room").mkdir(parents=True)
    (target / "old" / "room" / "module.py").write_text("moved since")
    platforms.copy_project(target)
    assert (target / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()
    assert os.access(target / ".ci" / "run", os.X_OK)
    assert not (target / "old").exists() and not (target / ".venv").exists() and not list(target.rglob("*.so"))
    before = (target / "meson.build").stat().st_mtime_ns
    platforms.copy_project(target)
    assert (target / "meson.build").stat().st_mtime_ns == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_after_its_mounts_are_undone_and_without_a_traceback(number: signal.Signals) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT / ".ci")!r})
from chroots import end_by_exception, run_program

def main():
    end_by_exception()
    try:
        print("mounted", flush=True)
        time.sleep(60)
    finally:
        print("unmounted", flush=True)

run_program(main)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "mounted\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (128 + number, "unmounted\n", f"ended by {number.name}\n")


def test_a_system_is_ready_if_it_has_the_packages_and_perhaps_more(platforms: ModuleType, tmp_path: Path) -> None:
    chroots = sys.modules["chroots"]
    system = chroots.Chroot("trixie", packages=("make", "python3"))
    system.root = tmp_path
    (tmp_path / "var" / "lib").mkdir(parents=True)
    assert not system.is_ready()
    system._note_packages()
    other, smaller = chroots.Chroot("trixie", packages=("zlib1g-dev",)), chroots.Chroot("trixie")
    other.root = smaller.root = tmp_path
    assert system.is_ready() and smaller.is_ready() and not other.is_ready()
    smaller._note_packages()
    assert system.is_ready(), "what others need stays noted"


def test_a_free_threaded_python_has_the_source_of_debian_or_of_ubuntu(platforms: ModuleType) -> None:
    interpreters, mirror = sys.modules["interpreters"], sys.modules["chroots"].MIRROR
    of_debian = interpreters.FreeThreaded("3.13t", "trixie")
    assert of_debian.apt_source == f"deb-src {mirror} trixie main" and "ubuntu-keyring" not in of_debian.packages
    of_ubuntu = interpreters.FreeThreaded("3.14t", "sid", ubuntu="resolute")
    assert of_ubuntu.apt_source.endswith(f" {interpreters.UBUNTU_MIRROR} resolute main")
    assert "[signed-by=" in of_ubuntu.apt_source and "ubuntu-keyring" in of_ubuntu.packages


def test_a_python_of_this_machine_is_copied_whole_under_its_own_path(platforms: ModuleType, tmp_path: Path) -> None:
    interpreters = sys.modules["interpreters"]
    prefix = tmp_path / "python"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "include").mkdir()
    (prefix / "include" / "Python.h").touch()
    program = prefix / "bin" / "python3"
    program.write_text(f"#!/bin/sh\necho 3.99t\necho {prefix}\n")
    program.chmod(0o755)
    found = interpreters.find_python(str(program))
    assert (found.version, found.prefix, found.program) == ("3.99t", str(prefix), f"{prefix}/bin/python3.99t")
    system = sys.modules["chroots"].Chroot("trixie")
    system.root = tmp_path / "system"
    broken_off = system.path(f"{prefix}.part")
    broken_off.mkdir(parents=True)
    found.copy_to(system)
    assert system.path(f"{prefix}/include/Python.h").exists() and not broken_off.exists()


@pytest.mark.parametrize(
    ("text", "why"), [("exit 1", "is not a Python that runs"), ("echo 3.11; echo /usr", "is part of this system")]
)
def test_a_python_that_cannot_be_copied_is_refused(platforms: ModuleType, tmp_path: Path, text: str, why: str) -> None:
    program = tmp_path / "python3"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    with pytest.raises(sys.modules["chroots"].FailedError, match=why):
        sys.modules["interpreters"].find_python(str(program))
