"""Boot Debian's PREEMPT_RT kernel in QEMU and run the doctor and a loop inside; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = "linux-image-rt-amd64"
#: Distributions that the doctor needs inside, with what they need.
DISTRIBUTIONS = ("rtloop", "numpy", "click", "rich", "pygments", "markdown-it-py", "mdurl")
#: Parts of the standard library that are large, and of no use inside.
LEFT_OUT = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages", "dist-packages",
    "pydoc_data", "config",
}  # fmt: skip
ARGUMENTS = "console=ttyS0 quiet panic=-1 isolcpus=managed_irq,domain,1 rcu_nocbs=1"


def fetch_kernel(folder: Path) -> Path:
    """Download the newest PREEMPT_RT kernel of this Debian and unpack it."""
    depends = subprocess.run(["apt-cache", "depends", PACKAGE], capture_output=True, text=True, check=True).stdout
    names = [word for word in depends.split() if word.startswith("linux-image-")]
    name = next(name for name in names if name != PACKAGE)
    subprocess.run(["apt-get", "download", name], cwd=folder, check=True)
    subprocess.run(["dpkg-deb", "-x", next(folder.glob(f"{name}_*.deb")), folder / "kernel"], check=True)
    return next((folder / "kernel" / "boot").glob("vmlinuz-*"))


def libraries(files: Iterable[Path]) -> set[Path]:
    """Return the shared libraries, and the loader, that programs and modules need."""
    found = set()
    for file in files:
        listing = subprocess.run(["ldd", file], capture_output=True, text=True).stdout
        for line in listing.splitlines():
            paths = [word for word in line.split() if word.startswith("/")]
            found |= {Path(path) for path in paths[:1]}
    return found


def copy(file: Path, root: Path, name: str | Path | None = None) -> Path:
    """Copy a file below a root, to its own path or another one."""
    target = root / str(name or file).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(file.resolve(), target)
    return target


def make_root(root: Path) -> None:
    """Fill the root file system: busybox, this Python, its standard library, and what rtloop needs."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("no busybox: sudo apt install busybox-static")
    copy(Path(busybox), root, "/bin/busybox")
    python = Path(sys.executable).resolve()
    copied = [copy(python, root, "/usr/bin/python-inside")]
    library = Path(sysconfig.get_path("stdlib"))

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name in LEFT_OUT or name.startswith("config-") or name.endswith(".a")}

    inside = root / f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(library, inside, ignore=ignore)
    for name in DISTRIBUTIONS:
        for file in metadata.files(name) or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file() and not {"tests", "test"} & set(file.parts):
                copy(source, root, Path("/site") / file)
    native = [*inside.rglob("*.so"), *(root / "site").rglob("*.so*")]
    site, platlib = root / "site", Path(sysconfig.get_path("platlib"))
    for module in native:  # the libraries that a wheel brings are found from where it was installed
        origin = platlib / module.relative_to(site) if site in module.parents else module
        copied.append(origin if origin.exists() else module)
    for needed in libraries([python, *copied]):
        copy(needed, root)
    copy(HERE / "init.sh", root, "/init").chmod(0o755)
    copy(HERE / "inside.py", root, "/inside.py")
    copy(HERE.parent / "unit" / "machines" / "capture.py", root, "/capture.py")
    environment = {"PYTHON": "/usr/bin/python-inside", "PYTHONHOME": "/usr", "PYTHONPATH": "/site", "HOME": "/tmp",
                   "PATH": "/bin", "TERM": "dumb", "COLUMNS": "110", "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
    text = "".join(f"export {name}={value}\n" for name, value in environment.items())
    (root / "environment").write_text(text)
    (root / "etc").mkdir(exist_ok=True)
    copy(Path("/etc/os-release"), root, "/etc/os-release")
    (root / "etc/passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")


def pack(root: Path, image: Path) -> None:
    """Write the root file system as an archive that the kernel unpacks into memory."""
    names = subprocess.run(["find", ".", "-print0"], cwd=root, capture_output=True, check=True).stdout
    with image.open("wb") as file:
        command = ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"]
        subprocess.run(command, cwd=root, input=names, stdout=file, check=True)


def boot(kernel: Path, image: Path, timeout_s: float) -> str:
    """Boot, and return what the machine printed."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1500", "-nographic",
               "-no-reboot", "-nic", "none", "-kernel", kernel, "-initrd", image, "-append", ARGUMENTS]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except FileNotFoundError:
        sys.exit("no qemu-system-x86_64: sudo apt install qemu-system-x86")
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""
        print(text.decode(errors="replace") if isinstance(text, bytes) else text)
        sys.exit(f"the machine did not end within {timeout_s:g} s")
    return done.stdout.replace("\r", "") + done.stderr


def between(text: str, begin: str, end: str) -> str:
    return text.partition(f"=={begin}==")[2].partition(f"=={end}==")[0].strip()


def judge(doctor: dict[str, Any], stats: dict[str, Any]) -> list[str]:
    """Return what is not as it has to be."""
    checks = {f"{check['topic']}: {check['name']}": check for check in doctor["checks"]}
    wanted = {
        "kernel: preemption": ("ok", "PREEMPT_RT"),
        "cpus: isolated CPUs": ("ok", "1 of 0-1"),
        "cpus: nohz_full": ("ok", "none"),
        "probe: a real loop": ("ok", "ran 20 cycles"),
        "probe: real-time thread": ("ok", "fifo 80"),
        "machine: virtual machine": ("warn", "QEMU"),
    }
    wrong = [
        f"{name}: {checks.get(name)}"
        for name, (verdict, words) in wanted.items()
        if name not in checks or checks[name]["verdict"] != verdict or words not in checks[name]["found"]
    ]
    if not doctor["host"]["preempt_rt"]:
        wrong.append("host_facts does not know that this is PREEMPT_RT")
    grants = {grant["name"]: grant for grant in stats["grants"]}
    if grants.get("cpu", {}).get("granted") != "1":
        wrong.append(f"the loop was not on the isolated CPU: {grants.get('cpu')}")
    if not 95 <= stats["cycles"] + stats["missed"] <= 101:
        wrong.append(f"{stats['cycles']} cycles and {stats['missed']} missed are not the releases of 1 s at 100 Hz")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", type=Path, help="a PREEMPT_RT kernel image, instead of a download")
    parser.add_argument(
        "--capture", type=Path, metavar="FILE", help="write the machine as those of tests/unit/machines"
    )
    parser.add_argument("--timeout", type=float, default=300, help="how long the machine may take, in seconds")
    arguments = parser.parse_args()
    os.environ["LC_ALL"] = "C"
    with tempfile.TemporaryDirectory(prefix="rtloop-rt-kernel-") as name:
        folder = Path(name)
        kernel = arguments.kernel or fetch_kernel(folder)
        make_root(folder / "root")
        pack(folder / "root", folder / "image")
        size = (folder / "image").stat().st_size >> 20
        print(f"{kernel.name}, root file system {size} MiB", flush=True)
        begin = time.monotonic()
        text = boot(kernel, folder / "image", arguments.timeout)
    page = between(text, "page", "doctor")
    try:
        doctor, stats = json.loads(between(text, "doctor", "loop")), json.loads(between(text, "loop", "machine"))
    except ValueError:
        print(text[-8000:])
        sys.exit("the doctor or the loop did not come to its end inside")
    print(page)
    if arguments.capture is not None:
        arguments.capture.write_text(between(text, "machine", "end") + "\n")
    latency_ns = stats["latency"]["max_ns"]
    print(f"\n{stats['cycles']} cycles, {stats['missed']} missed, at most {latency_ns / 1e6:.1f} ms late")
    print(f"{doctor['host']['kernel']} {doctor['host']['kernel_version']}, {time.monotonic() - begin:.0f} s")
    if wrong := judge(doctor, stats):
        sys.exit("FAILED\n" + "\n".join(wrong))
    print("passed: PREEMPT_RT is recognised, and a loop runs on its isolated CPU")


if __name__ == "__main__":
    main()
