"""A small machine in QEMU: this Python, the installed rtloop and the tests, on any kernel, in memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent
EXAMPLE = TESTS.parent / "examples" / "can"
#: Distributions that the doctor and the tests need inside, with what they need.
DISTRIBUTIONS = (
    "rtloop", "numpy", "click", "rich", "pygments", "markdown-it-py", "mdurl", "pytest", "iniconfig", "packaging",
    "pluggy", "hypothesis", "sortedcontainers",
)  # fmt: skip
#: Distributions of the other side of the CAN bus, which are copied if they are installed here.
CAN = (
    "python-can", "canopen", "cantools", "argparse-addons", "bitstruct", "crccheck", "textparser", "typing-extensions",
    "wrapt",
)  # fmt: skip
#: Parts of the standard library that are large, and of no use inside.
LEFT_OUT = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages", "dist-packages",
    "pydoc_data", "config",
}  # fmt: skip
#: Programs that the tests call, if this machine has them. Busybox's sh would start its own setpriv instead.
PROGRAMS = (
    "cyclictest", "taskset", "chrt", "setpriv", "unshare", "prlimit", "mountpoint", "strace", "addr2line", "ip", "tc",
    "sh",
)  # fmt: skip
#: A busy host may keep the emulated timer from ticking while the kernel checks it, and the kernel panics.
ARGUMENTS = "console=ttyS0 quiet panic=-1 no_timer_check"


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


def compile_loops(shared: Path) -> None:
    """Compile the loops of the tests, because there is no compiler inside; or copy those in RTLOOP_TEST_SHARED."""
    left = Path(os.environ.get("RTLOOP_TEST_SHARED", "none"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if (left / "support" / "waits").exists():
        shutil.copytree(left / "support", shared / "support")
    else:
        command = [sys.executable, str(TESTS / "support" / "build.py"), str(shared / "support"), _include()]
        subprocess.run(command, env=environment, check=True)
    for source in (HERE / "planted.pyx", EXAMPLE / "motor.pyx"):
        if (left / source.stem).exists():
            shutil.copytree(left / source.stem, shared / source.stem)
            continue
        command = [sys.executable, "-P", "-c", _COMPILE, str(TESTS / "support"), str(source), str(shared / source.stem)]
        subprocess.run(command, env=environment, check=True)


def _include() -> str:
    import rtloop  # not before: this module is also read where there is none

    return rtloop.get_include()


_COMPILE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from build import compile_pyx
Path(sys.argv[3]).mkdir()
compile_pyx(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def make_root(root: Path) -> None:
    """Fill the root file system: busybox, this Python, its standard library, the tests, and what rtloop needs."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("no busybox: sudo apt install busybox-static")
    copy(Path(busybox), root, "/bin/busybox")
    python = Path(sys.executable).resolve()
    copied = [copy(python, root, "/usr/bin/python-inside")]
    for program in PROGRAMS:
        if found := shutil.which(program):
            copied.append(copy(Path(found), root, f"/usr/bin/{program}"))
    library = Path(sysconfig.get_path("stdlib"))

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name in LEFT_OUT or name.startswith("config-") or name.endswith(".a")}

    inside = root / f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(library, inside, ignore=ignore)
    present = {str(one.metadata["Name"]).lower().replace("_", "-") for one in metadata.distributions()}
    for name in (*DISTRIBUTIONS, *(name for name in CAN if name in present)):
        for file in metadata.files(name) or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file() and not {"tests", "test"} & set(file.parts):
                copy(source, root, Path("/site") / file)
    for name in ("site-packages", "dist-packages"):  # Debian's Python has the latter
        (inside / name).mkdir()
        (inside / name / "inside.pth").write_text("/site\n")
    native = [*inside.rglob("*.so"), *(root / "site").rglob("*.so*")]
    site, platlib = root / "site", Path(sysconfig.get_path("platlib"))
    for module in native:  # the libraries that a wheel brings are found from where it was installed
        origin = platlib / module.relative_to(site) if site in module.parents else module
        copied.append(origin if origin.exists() else module)
    for needed in libraries([python, *copied]):
        copy(needed, root)
    shutil.copytree(TESTS, root / "src" / "tests", ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    shutil.copytree(EXAMPLE, root / "src" / "examples" / "can", ignore=shutil.ignore_patterns("__pycache__"))
    copy(TESTS.parent / "pyproject.toml", root, "/src/pyproject.toml")
    compile_loops(root / "shared")
    copy(HERE / "init.sh", root, "/init").chmod(0o755)
    copy(HERE / "inside.py", root, "/inside.py")
    copy(TESTS / "unit" / "machines" / "capture.py", root, "/capture.py")
    environment = {
        "PYTHON": "/usr/bin/python-inside", "PYTHONHOME": "/usr", "HOME": "/tmp",
        "PATH": "/usr/bin:/bin", "TERM": "dumb", "COLUMNS": "110", "OPENBLAS_NUM_THREADS": "1", "NO_COLOR": "1",
        "RTLOOP_TEST_SHARED": "/shared", "RTLOOP_TEST_SLOW": "1", "RTLOOP_TEST_WATCHDOG_S": "900",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    text = "".join(f"export {name}={value}\n" for name, value in environment.items())
    (root / "environment").write_text(text)
    (root / "etc").mkdir(exist_ok=True)
    copy(Path("/etc/os-release"), root, "/etc/os-release")
    (root / "etc/passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


def pack(root: Path, image: Path) -> None:
    """Write a folder as an archive that the kernel unpacks into memory."""
    names = subprocess.run(["find", ".", "-print0"], cwd=root, capture_output=True, check=True).stdout
    with image.open("wb") as file:
        command = ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"]
        subprocess.run(command, cwd=root, input=names, stdout=file, check=True)


class Machine:
    """A machine that runs one script for sh and then ends.

    Parameters
    ----------
    folder : Path
        An empty folder for the archives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_root(folder / "root")
        self.image = folder / "image"
        pack(folder / "root", self.image)

    def run(
        self, kernel: Path, script: str, *, cpus: int = 2, arguments: str = "", timeout_s: float = 900,
        modules: Iterable[Path] = (), console: Path | None = None, counts_instructions: bool = False,
        beside: Callable[[int, Path], None] | None = None,
    ) -> str:  # fmt: skip
        """Boot a kernel, run the script, and return what the machine printed; the modules are in /modules there.

        If it `counts_instructions`, the machine's clocks advance by 1 ns for each instruction, and jump while all its
        CPUs are idle, so that its time limits do not depend on how busy this machine is. Its time is not real time.
        A function that is called `beside` it, on another thread, gets the id of QEMU's process and the console's file.
        """
        own_folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))  # others may run at the same time
        job, image = own_folder / "job", own_folder / "image"
        job.mkdir()
        (job / "job.sh").write_text(script)
        for module in modules:
            copy(module, job, f"/modules/{module.name}")
        pack(job, image)
        with image.open("r+b") as file, self.image.open("rb") as system:  # the kernel unpacks one after the other
            own = file.read()
            file.seek(0)
            shutil.copyfileobj(system, file)
            file.write(own)
        # One thread for all CPUs: with several, a CPU may run into an instruction that the kernel on another one is
        # replacing, for a trace event or a static key, which QEMU does not order.
        command = [
            "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", str(cpus), "-m", "2000",
            "-nographic", "-no-reboot", "-nic", "none", "-kernel", kernel, "-initrd", image,
            "-append", f"{ARGUMENTS} {arguments}",
            *(["-icount", "shift=0,sleep=off"] if counts_instructions else []),
        ]  # fmt: skip
        console = console or self.folder / "console"
        print(f"{kernel.name}: booting; console: {console}", flush=True)
        with console.open("wb") as output:
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            except FileNotFoundError:
                sys.exit("no qemu-system-x86_64: sudo apt install qemu-system-x86")
            with process, ThreadPoolExecutor(1) as pool:
                done = None if beside is None else pool.submit(beside, process.pid, console)
                try:
                    process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    print(f"the machine did not end within {timeout_s:g} s", flush=True)
                finally:
                    process.kill()
                if done is not None:
                    done.result()
        image.unlink()
        return console.read_text(errors="replace").replace("\r", "")


def section(text: str, name: str) -> tuple[str, int | None]:
    """Return what a part of the script printed, and its exit code; None if it did not come to its end."""
    after = text.partition(f"==begin {name}==\n")[2]
    inside, _, rest = after.partition(f"==end {name} ")
    code = re.match(r"(\d+)==", rest)
    return inside.strip(), int(code[1]) if code else None


def part(name: str, command: str) -> str:
    """Return the lines of a script that run a command as a part."""
    return f'echo "==begin {name}=="\n{command}\necho "==end {name} $?=="\n'
