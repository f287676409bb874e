"""Pythons that a Debian release does not have: free-threaded ones from source, and one of this machine's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from chroots import COMPILING, MIRROR, Chroot, FailedError, prepared, say

_PACKAGES = (
    "dpkg-dev", "make", "pkg-config", "zlib1g-dev", "libffi-dev", "libssl-dev", "libbz2-dev", "liblzma-dev",
    "libsqlite3-dev", "libreadline-dev", "xz-utils",
)  # fmt: skip
#: Ubuntu's mirror, and its keys in Debian's package.
UBUNTU_MIRROR = os.environ.get("RTLOOP_UBUNTU_MIRROR", "http://archive.ubuntu.com/ubuntu")
_UBUNTU_KEYS = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
#: Without optimization by profiles and at link time, which take an hour; the tests of Python itself are left out.
_COMPILE = """set -e
mkdir -p /var/tmp/python
cd /var/tmp/python
rm -rf {source}*
apt-get -qq -oAPT::Sandbox::User=root source --tar-only --download-only {source}
mkdir {source}-tree
tar xf {source}_*.orig.tar.xz -C {source}-tree --strip-components=1
cd {source}-tree
./configure --disable-gil --prefix={prefix} --disable-test-modules
make -j$(nproc)
make install DESTDIR=/var/tmp/python/{source}-installed
rm -rf {prefix}
mv /var/tmp/python/{source}-installed{prefix} {prefix}
cd ..
rm -rf {source}*
"""


@dataclass(frozen=True)
class FreeThreaded:
    """A free-threaded Python that is compiled from the source package of Debian, or of Ubuntu.

    Attributes
    ----------
    version : str
        Such as "3.13t".
    suite : str
        Debian's release, in which it is compiled.
    ubuntu : str
        Ubuntu's release whose source is taken, if not Debian's: both have the authors' archive. The mirror of Debian
        sid may list a source that it does not have.
    """

    version: str
    suite: str
    ubuntu: str = ""

    @property
    def prefix(self) -> str:
        """The folder that it is installed in."""
        return f"/opt/python{self.version}"

    @property
    def program(self) -> str:
        """The interpreter."""
        return f"{self.prefix}/bin/python3"

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian packages that it is compiled with."""
        return (*COMPILING, *_PACKAGES, *(("ubuntu-keyring",) if self.ubuntu else ()))

    @property
    def apt_source(self) -> str:
        """The line by which apt finds the source."""
        if self.ubuntu:
            return f"deb-src [signed-by={_UBUNTU_KEYS}] {UBUNTU_MIRROR} {self.ubuntu} main"
        return f"deb-src {MIRROR} {self.suite} main"

    def make_in(self, chroot: Chroot) -> None:
        """Compile it in a system that has its packages, if it is not there yet."""
        if chroot.path(self.program).exists():
            return
        say(f"{chroot.name}: compiling Python {self.version} (some minutes)")
        chroot.path("etc/apt/sources.list.d/rtloop-source.list").write_text(f"{self.apt_source}\n")
        chroot.apt("update")
        script = _COMPILE.format(source=f"python{self.version.removesuffix('t')}", prefix=self.prefix)
        chroot.must_run(["sh", "-c", script])

    def copy_to(self, chroot: Chroot) -> None:
        """Compile it in the system with a compiler, and copy it to one without."""
        if chroot.path(self.program).exists():
            return
        with prepared(Chroot(self.suite, packages=self.packages)) as compiling:
            self.make_in(compiling)
            copy_tree(compiling.path(self.prefix), chroot.path(self.prefix))


THREADED_313 = FreeThreaded("3.13t", "trixie")
THREADED_314 = FreeThreaded("3.14t", "sid", ubuntu="resolute")


@dataclass(frozen=True)
class OfThisMachine:
    """A Python of this machine, whose folder is copied to a system under the same path.

    Attributes
    ----------
    program : str
        The interpreter.
    version : str
        Such as "3.12".
    prefix : str
        The folder that it is installed in.
    """

    program: str
    version: str
    prefix: str

    def copy_to(self, chroot: Chroot) -> None:
        """Copy it to a system."""
        if not chroot.path(self.program).exists():
            copy_tree(Path(self.prefix), chroot.path(self.prefix))


def find_python(program: str) -> OfThisMachine:
    """Return the Python of this machine that a path names.

    Raises
    ------
    FailedError
        If it cannot be asked, or belongs to the system, whose folder is not for copying.
    """
    code = (
        "import sys, sysconfig; print('%d.%d' % sys.version_info[:2] "
        "+ ('t' if sysconfig.get_config_var('Py_GIL_DISABLED') else '')); print(sys.base_prefix)"
    )
    try:
        done = subprocess.run([program, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise FailedError(f"{program} is not a Python that runs: {error}") from None
    version, prefix = done.stdout.splitlines()
    if prefix in ("/usr", "/usr/local", "/"):
        raise FailedError(f"{program} is part of this system ({prefix}); name a Python in a folder of its own")
    return OfThisMachine(f"{prefix}/bin/python{version}", version, prefix)


def copy_tree(source: Path, target: Path) -> None:
    """Copy an installed Python; a copy that was broken off is not taken for one that is complete."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "test", "*.a"))
    part.rename(target)
