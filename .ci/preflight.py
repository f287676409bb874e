"""Tell in one sentence what this machine lacks to build rtloop; run by the Makefile before it makes its environment.

It is written for any Python, because it is the one to say that a Python is too old.
"""

import os
import shlex
import sys
import sysconfig


def is_command(name):
    """Tell whether a command can be found."""
    return any(os.access(os.path.join(folder, name), os.X_OK) for folder in ("/:" + os.environ["PATH"]).split(":"))


def missing():
    """Return what is missing, as (what, fix) pairs."""
    python = "Python %d.%d" % sys.version_info[:2]
    if not sys.platform.startswith("linux"):
        return [("Linux: this is %s" % sys.platform, "rtloop is built on SCHED_FIFO, mlockall and clock_nanosleep")]
    if sys.version_info < (3, 11):
        return [("Python 3.11 or newer: %s is %s" % (sys.executable, python), "make PYTHON=python3.12 ...")]
    found = []
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        found.append(("the venv and ensurepip modules of %s" % sys.executable, "apt install python3-venv"))
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.exists(header):
        found.append(("Python's C headers (%s)" % header, "apt install python3-dev"))
    compilers = [shlex.split(os.environ["CC"])[0]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    if not any(is_command(name) for name in compilers):
        found.append(("a C compiler (%s)" % " or ".join(compilers), "apt install gcc libc6-dev"))
    return found


if __name__ == "__main__":
    problems = missing()
    for what, fix in problems:
        sys.stderr.write("rtloop needs %s; fix: %s\n" % (what, fix))
    sys.exit(1 if problems else 0)
