"""Build a meson project from scratch and fail on what a build usually lets pass.

Cython prints a "performance hint" where a nogil function takes the GIL after every call, and no flag makes that an
error; a C compiler's warning scrolls by. Both fail here, unless they come from outside the project's own files.

    python .ci/strict_build.py FOLDER [argument of meson setup ...]
    python .ci/strict_build.py --run COMMAND [argument ...]

The second form judges the build that a command does, such as the installation of what will be tested.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

_STEP = re.compile(r"^\s*\[\d+/\d+\] ", re.MULTILINE)  # of ninja
_COMPLAINT = re.compile(r"performance hint|\bwarning:")
# "performance hint: a.pyx:3:0: ...", "warning: a.pyx:3:0: ..." (Cython); "a.c:3:1: warning: ..." (a compiler).
_PLACE = re.compile(r"(?:^|hint: |warning: )(/[^:]+):\d+:")


def complaints(output: str, foreign: tuple[str, ...] = ()) -> list[str]:
    """Return the lines of a build's output that complain about our own files.

    Parameters
    ----------
    output : str
        What meson, ninja, Cython and the compiler printed.
    foreign : tuple of str
        Folders whose files are not ours; files of the project have relative paths.
    """
    found = []
    for line in map(str.strip, output.splitlines()):  # pip indents what it shows
        place = _PLACE.search(line)
        if _COMPLAINT.search(line) and not (place and place[1].startswith(foreign)):
            found.append(line)
    return found


def run(commands: dict[str, list[str]]) -> int:
    """Run the named commands of a build one after the other; print the build, then the verdict; return an exit code."""
    paths = sysconfig.get_paths()
    foreign = ("/usr/include/", "/usr/lib/", *(f"{paths[name]}/" for name in ("include", "platlib", "purelib")))
    # meson looks for cython and ninja on the PATH.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C"}
    lines = []
    for name, command in commands.items():
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        if process.returncode:
            print(f"\nstrict build: {name} failed with {process.returncode}", file=sys.stderr)
            return 1
    output = "".join(lines)
    if not _STEP.search(output):
        print("\nstrict build: nothing was built, or its output was not shown", file=sys.stderr)
        return 1
    found = complaints(output, foreign)
    for line in found:
        print(line, file=sys.stderr)
    print(f"strict build: {len(found)} complaints about our own files", file=sys.stderr)
    return 1 if found else 0


def build(folder: Path, arguments: list[str]) -> int:
    """Build the project in `folder`, and judge the build as `run` does."""
    meson = [sys.executable, "-m", "mesonbuild.mesonmain"]
    with tempfile.TemporaryDirectory(prefix="strict-build-") as target:
        setup = [*meson, "setup", target, str(folder), *arguments]
        return run({"setup": setup, "compile": [*meson, "compile", "-C", target]})


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1:] == ["--run"]:
        sys.exit(__doc__)
    if sys.argv[1] == "--run":
        sys.exit(run({sys.argv[2]: sys.argv[2:]}))
    sys.exit(build(Path(sys.argv[1]), sys.argv[2:]))
