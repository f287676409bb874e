"""The strict build of ``make lint`` fails on what it says it fails on."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

CHECKER = Path(__file__).parents[2] / ".ci" / "strict_build.py"

MESON = """
project('small', 'c', 'cython', default_options: ['warning_level=2'])
py = import('python').find_installation(pure: false)
py.extension_module('small', 'small.pyx', 'helper.c', dependencies: py.dependency())
"""
GOOD = {
    "small.pyx": "cdef void f() noexcept nogil:\n    pass\ndef g():\n    with nogil:\n        f()\n    return 1\n",
    "helper.c": "int helper(int x);\nint helper(int x) { return x; }\n",
}
BAD = {
    # A nogil function that takes the GIL after every call, and a warning of Cython's.
    "small.pyx": GOOD["small.pyx"].replace(" noexcept", "") + "    return 2\n",
    "helper.c": GOOD["helper.c"].replace("return x", "unsigned y = 0; return x < y"),
}


def strict_build(folder, files):
    (folder / "meson.build").write_text(MESON)
    for name, text in files.items():
        (folder / name).write_text(text)
    command = [sys.executable, str(CHECKER), str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def test_clean_build_passes(tmp_path):
    result = strict_build(tmp_path, GOOD)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 complaints" in result.stderr


def test_hints_and_warnings_fail(tmp_path):
    result = strict_build(tmp_path, BAD)
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    for words in (("performance hint", "small.pyx"), ("warning", "small.pyx:7"), ("warning", "helper.c")):
        assert any(all(word in line for word in words) for line in lines), result.stdout + result.stderr


def test_build_that_fails_fails(tmp_path):
    result = strict_build(tmp_path, GOOD | {"small.pyx": "def f(:\n"})
    assert result.returncode == 1
    assert "compile failed" in result.stderr


def test_the_build_of_another_command_is_judged():
    clean = "print('  [1/2] Compiling C object loop.o');"
    warn = clean + "print('  ../rtloop/loop.pyx:3:1: warning: new'); print('  /usr/include/a.h:3:1: warning: old')"
    for code, status, words in (
        (clean, 0, "0 complaints"),
        (warn, 1, "1 complaints"),
        ("", 1, "nothing was built"),
        ("exit(3)", 1, "failed with 3"),
    ):
        command = [sys.executable, str(CHECKER), "--run", sys.executable, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert result.returncode == status, result.stdout + result.stderr
        assert words in result.stderr


def test_only_files_of_others_are_spared():
    complaints = runpy.run_path(str(CHECKER))["complaints"]
    others = [
        "/usr/include/stdio.h:3:1: warning: old",
        "performance hint: /opt/numpy/__init__.pxd:9:5: Exception check",
        "warning: /opt/numpy/__init__.pxd:9:5: unused",
        "WARNING: meson says",
    ]
    ours = [
        "../rtloop/loop/loop.pyx:3:1: warning: new",
        "performance hint: ../rtloop/loop/loop.pyx:9:5: Exception check",
        "/usr/bin/ld: warning: executable stack",
    ]
    assert complaints("\n".join(others + ours), ("/usr/include/", "/opt/")) == ours
