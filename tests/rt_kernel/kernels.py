"""Debian's PREEMPT_RT kernels of several releases, downloaded without touching this machine's packages."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

#: Folder of the kernels, 15 MB each.
CACHE = Path(os.environ.get("RTLOOP_KERNELS", Path.home() / ".cache" / "rtloop-kernels"))
MIRROR = os.environ.get("RTLOOP_MIRROR", "http://deb.debian.org/debian")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGE = "linux-image-rt-amd64"
#: Debian's releases by the names of their kernels on the command line.
SUITES = {"6.1": "bookworm", "6.12": "trixie", "newest": "trixie-backports"}
NAMES = tuple(SUITES)
#: Modules that the tests of the CAN bus need: SocketCAN, a virtual interface, and a filter that limits its rate.
MODULES = ("can", "can-raw", "can-bcm", "vcan", "sch_tbf")


class Apt:
    """The packages of another release of Debian."""

    def __init__(self, suite: str, state: Path) -> None:
        for folder in ("lists/partial", "archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()  # nothing is installed
        (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
        options = {
            "Dir::State": state, "Dir::Cache": state, "Dir::State::status": state / "status",
            "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
            "APT::Architecture": "amd64", "APT::Architectures": "amd64", "APT::Sandbox::User": "root",
            "Acquire::Check-Valid-Until": "false", "Acquire::Languages": "none",
        }  # fmt: skip
        self.options = ["-qq", *(f"-o{name}={value}" for name, value in options.items())]
        subprocess.run(["apt-get", *self.options, "update"], check=True)

    def depends(self, package: str) -> list[str]:
        """Return the packages that a package depends on, directly or not."""
        more = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        command = ["apt-cache", *self.options, "depends", "--recurse", *(f"--no-{name}" for name in more), package]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [line for line in output.splitlines() if line and not line.startswith(" ")]

    def unpack(self, package: str, folder: Path) -> None:
        """Download a package and unpack it into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", *self.options, "download", package], cwd=folder, check=True)
        for file in folder.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg-deb", "-x", file, folder], check=True)
            file.unlink()


def keep_modules(tree: Path, folder: Path) -> None:
    """Unpack those of MODULES that are below a folder, with all that they depend on, numbered in the order to load."""
    found = {re.sub(r"\.ko.*", "", file.name).replace("_", "-"): file for file in tree.rglob("*.ko*")}
    kept: dict[str, bytes] = {}

    def keep(name: str) -> None:
        name = name.replace("_", "-")
        if name in kept or name not in found:
            return  # a module that is not there is built into the kernel
        data = found[name].read_bytes()
        code = lzma.decompress(data) if found[name].suffix == ".xz" else data
        (depends,) = re.findall(rb"\0depends=([^\0]*)\0", code)[:1] or [b""]
        for other in filter(None, depends.decode().split(",")):
            keep(other)
        kept[name] = code

    for name in MODULES:
        keep(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, (name, code) in enumerate(kept.items()):
        (folder / f"{number:02}-{name}.ko").write_bytes(code)


def modules_of(image: Path) -> list[Path]:
    """Return the modules that were kept with an image, in the order to load."""
    return sorted(image.with_suffix(".modules").glob("*.ko"))


def fetch(name: str) -> Path:
    """Return the image of a kernel by its name, which is downloaded with its modules unless it is in the cache."""
    image = CACHE / f"{name}.vmlinuz"
    if image.exists() and modules_of(image):
        return image
    folder = CACHE / name
    shutil.rmtree(folder, ignore_errors=True)
    apt = Apt(SUITES[name], CACHE / f"apt-{name}")
    print(f"{name}: downloading", flush=True)
    for package in apt.depends(PACKAGE):
        if re.match(r"linux-(image|binary|modules)-\d", package):  # newer releases have several packages
            apt.unpack(package, folder)
    keep_modules(folder, image.with_suffix(".modules"))
    shutil.copy(next(folder.rglob("vmlinuz*")), image)
    shutil.rmtree(folder)
    return image
