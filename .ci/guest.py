"""A Debian system of chroots.py on a kernel of Debian's, of any architecture, in QEMU without KVM."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from chroots import Chroot, FailedError, must_run, say

#: Emulators by Debian's name of the architecture: program, options, console, and the package that has it. One thread
#: runs all CPUs of x86-64: with several, QEMU does not order a CPU that runs code with another one that replaces it.
_MACHINES = {
    "amd64": ("qemu-system-x86_64", ("-accel", "tcg,thread=single", "-cpu", "max"), "ttyS0", "qemu-system-x86"),
    "arm64": (
        "qemu-system-aarch64",
        ("-accel", "tcg,thread=multi", "-M", "virt,gic-version=3", "-cpu", "cortex-a76"),
        "ttyAMA0",
        "qemu-system-arm",
    ),
}
#: Kernel arguments, which isolate two CPUs as a user would. A busy host may fail the kernel's check of the timer.
_ARGUMENTS = "quiet panic=-1 no_timer_check isolcpus=managed_irq,domain,1-2 rcu_nocbs=1-2"
#: Parts of a system that the copy in memory does not need.
_LEFT_OUT = (
    "boot", "dev", "native", "proc", "run", "sys", "tmp", "root/.cache", "usr/include", "usr/lib/gcc", "usr/lib/locale",
    "usr/libexec/gcc", "usr/share", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/lib/rtloop-*", "opt/*",
    "var/tmp/*", "*.a",
)  # fmt: skip
_INIT = """#!/bin/sh
mkdir -p /proc /sys /dev /run /tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
stty -onlcr
. /guest.sh </dev/null
echo "==end $?=="
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class Guest:
    """An emulated machine with three CPUs, two of them isolated, whose file system is a copy in memory of a system.

    Parameters
    ----------
    chroot : Chroot
        The system.
    package : str
        Debian's package of the kernel, such as "linux-image-rt-arm64", of the system's release.
    kept : sequence of str
        Paths below /opt and /var/tmp that the copy needs.
    suite : str
        The kernel's release, if not the system's.
    """

    def __init__(self, chroot: Chroot, package: str, kept: Sequence[str], suite: str = "") -> None:
        self.chroot, self.package, self.kept, self.suite = chroot, package, kept, suite
        self.folder = chroot.root.with_name("-".join(filter(None, (chroot.name, suite, package))))
        self.kernel = self.folder.with_suffix(".kernel")
        self.program, self.options, self.console, self.fix = _MACHINES[chroot.arch]

    def fetch(self, native: Chroot) -> None:
        """Download the kernel with apt of a system of this machine's architecture, unless it was before."""
        for program, package in ((self.program, self.fix), ("cpio", "cpio")):
            if shutil.which(program) is None:
                raise FailedError(f"{program} is not installed; fix: apt install {package}")
        if self.kernel.exists():
            return
        say(f"{self.package}: downloading the kernel")
        arch, folder = self.chroot.arch, "/var/tmp/kernel"
        names = [name for name in native.depends(arch, self.package, self.suite) if re.match(_KERNEL, name)]
        native.unpack(arch, names, folder, self.suite)
        shutil.copy(next(native.path(folder).rglob("vmlinuz*")), self.kernel)
        shutil.rmtree(native.path(folder))

    def names(self) -> bytes:
        """Return the paths that are copied, each followed by a NUL."""
        left_out = ["(", *" -o ".join(f"-path ./{name}" for name in _LEFT_OUT).split(), ")", "-prune", "-o"]
        find = ["find", ".", *left_out, "-print0"]
        found = subprocess.run(find, cwd=self.chroot.root, capture_output=True, check=True).stdout
        for name in filter(lambda name: self.chroot.path(name).exists(), self.kept):
            parents = [f"./{parent}" for parent in reversed(Path(name).parents) if parent.parts]
            find = ["find", f"./{name}", "-print0"]
            inner = subprocess.run(find, cwd=self.chroot.root, capture_output=True, check=True).stdout
            found += b"".join(parent.encode() + b"\0" for parent in parents) + inner
        return found

    def pack(self, script: str) -> Path:
        """Write the copy and the script as an archive that the kernel unpacks into memory; return its path."""
        shutil.rmtree(self.folder, ignore_errors=True)
        added = self.folder / "added"
        for name in ("proc", "sys", "dev", "run", "tmp"):
            (added / name).mkdir(parents=True)
        for name, text in (("init", _INIT), ("guest.sh", script)):
            (added / name).write_text(text)
            (added / name).chmod(0o755)
        image = self.folder / "image"
        create = ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"]
        with image.open("wb") as file:  # the kernel unpacks one archive after the other
            subprocess.run(create, cwd=self.chroot.root, input=self.names(), stdout=file, check=True)
            own = "".join(f"{path.name}\0" for path in added.iterdir()).encode()
            subprocess.run(create, cwd=added, input=own, stdout=file, check=True)
        return image

    def run(self, script: str, limit_s: float) -> str:
        """Boot, run a script for sh, and return what it printed; the machine ends with it."""
        image = self.pack(script)
        log = self.folder / "console"
        log.write_bytes(b"")
        command = [
            self.program, *self.options, "-smp", "3", "-m", "3000", "-display", "none",
            "-serial", f"file:{log}", "-no-reboot", "-nic", "none", "-kernel", str(self.kernel), "-initrd", str(image),
            "-append", f"console={self.console} {_ARGUMENTS}",
        ]  # fmt: skip
        say(f"{self.package}: booting, {image.stat().st_size >> 20} MiB; console: {log}")
        must_run(command, self.chroot.log, limit_s=limit_s)
        text = log.read_text(errors="replace").replace("\r", "")
        if "==end" not in text:
            raise FailedError(f"the machine did not end by itself (console: {log})\n{text[-3000:]}")
        return text


#: The packages that a kernel's metapackage stands for; newer releases have its image in one of its own.
_KERNEL = r"linux-(image|binary)-\d"
