"""Debian systems below a cache folder, made by debootstrap; needs root, apt and debootstrap.

Mounts are made in a mount namespace of this process, so they vanish with it, however it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
#: Folder of the systems; each takes 0.3 to 1.5 GB.
CACHE = Path(os.environ.get("RTLOOP_PLATFORMS", "/var/cache/rtloop-platforms"))
#: Debian's name of this machine's architecture.
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
#: Debian's mirror.
MIRROR = os.environ.get("RTLOOP_MIRROR", "http://deb.debian.org/debian")
#: The packages of every system: what the tests call.
PACKAGES = ("ca-certificates", "procps", "util-linux", "iproute2", "git")
COMPILING = ("python3-dev", "python3-venv", "libc6-dev")
#: Emulators of qemu-user by Debian's name of the architecture, and what the kernel knows its programs by.
EMULATORS = {"arm64": "qemu-aarch64-static"}
_MAGIC = {
    "arm64": (
        rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
        rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
    )
}
#: Names of the architectures in those of cross compilers.
CROSS = {"arm64": "aarch64-linux-gnu"}
_COMPILER = """#!/bin/sh
export LD_LIBRARY_PATH={libraries}
exec /native/usr/bin/ccache /native/usr/bin/{cross}-gcc "$@" -idirafter /usr/include -idirafter /usr/include/{cross}
"""
#: Settings of the network and of pip on this machine that hold inside, too.
_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
_FOLDERS = ("/etc/pip.conf", "/etc/xdg/pip", "~/.config/pip", "~/.pip")
_VARIABLES = ("PIP_", "SSL_CERT", "REQUESTS_CA", "CURL_CA", "http_proxy", "https_proxy", "no_proxy")
_IN_NAMESPACE = "RTLOOP_PLATFORMS_NAMESPACE"


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def enter_namespace() -> None:
    """Start this program again in a mount namespace of its own; return if it is in one."""
    if os.environ.get(_IN_NAMESPACE):
        return
    missing = [name for name in ("debootstrap", "unshare", "chroot") if not shutil.which(name)]
    if os.geteuid() != 0:
        sys.exit("the platforms need root: debootstrap, chroot and mount do")
    if missing:
        sys.exit(f"not found: {', '.join(missing)}; fix: apt install debootstrap util-linux")
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
    os.execvpe(command[0], command, {**os.environ, _IN_NAMESPACE: "1"})


class FailedError(Exception):
    """A command that failed, with the end of its log."""


_PR_SET_CHILD_SUBREAPER = 36


def children() -> set[int]:
    """Return the processes that this thread has started or been given, and not waited for."""
    return {int(number) for number in Path("/proc/thread-self/children").read_text().split()}


@contextmanager
def nothing_left() -> Iterator[set[int]]:
    """Kill, at the end of the block, what it has started and left, also in process groups and sessions of their own.

    ninja starts each compiler in a group of its own. A process that is orphaned is handed to this one meanwhile, so
    that it is found however deep it was. A PID namespace would do the same, but hide the kernel's threads from the
    tests. The value has the processes that there were before the block.
    """
    libc, before = ctypes.CDLL(None), children()
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield before
    finally:
        while left := children() - before:  # whose own children come to this process as they end
            for process in left:
                os.kill(process, signal.SIGKILL)
            for process in left:
                os.waitpid(process, 0)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def wait(process: subprocess.Popen[bytes], limit_s: float, others: set[int]) -> int:
    """Wait for a process's end as its `wait` does, and meanwhile for that of every child but it and some others."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(0.1)
        for orphan in children() - others - {process.pid}:  # it stays a zombie until it is waited for
            os.waitpid(orphan, os.WNOHANG)
    raise subprocess.TimeoutExpired(process.args, limit_s)


def run(
    command: Sequence[str], log: Path, *, limit_s: float = 3600, environment: Mapping[str, str] | None = None
) -> int:
    """Run a command with its output appended to a log, and return its exit code; its processes end with it.

    The environment is not part of the command, and so not of the log: an address of pip's may have a password in it.
    """
    with open(log, "ab") as output, nothing_left() as others:
        output.write(f"\n$ {shlex.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return wait(process, limit_s, others)
        except subprocess.TimeoutExpired:
            output.write(f"ended: not done after {limit_s:g} s\n".encode())
            return 124
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # all at once, so that none goes on when another has ended
            process.wait()


def must_run(
    command: Sequence[str], log: Path, *, limit_s: float = 3600, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command as `run` does, and raise if it fails."""
    code = run(command, log, limit_s=limit_s, environment=environment)
    if code:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        raise FailedError("\n".join([f"exit code {code}: {shlex.join(command)} (log: {log})", *tail]))


def extract(package: Path, folder: Path, log: Path) -> None:
    """Extract a Debian package into a folder and keep its links such as /bin, which dpkg-deb --extract replaces."""
    pipe = 'set -o pipefail; dpkg-deb --fsys-tarfile "$0" | tar --extract --keep-directory-symlink --directory "$1"'
    must_run(["bash", "-c", pipe, str(package), str(folder)], log)


def emulate(arch: str, log: Path) -> None:
    """Have the kernel run programs of another architecture by qemu-user.

    The kernel forgets it with the last mount of binfmt_misc, which is in this program's mount namespace, unless there
    was one before. The flags: F opens the emulator now, so that it need not be inside, and P hands on argv[0].
    """
    emulator, folder = shutil.which(EMULATORS[arch]), Path("/proc/sys/fs/binfmt_misc")
    if emulator is None:
        raise FailedError(f"{EMULATORS[arch]} is not installed; fix: apt install qemu-user-static")
    if not (folder / "register").exists():
        must_run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(folder)], log)
    names = (f"rtloop-{arch}", EMULATORS[arch].removesuffix("-static"))
    if not any((folder / name).exists() for name in names):
        magic, mask = _MAGIC[arch]
        (folder / "register").write_bytes(
            b":%s:M::%s:%s:%s:PF" % (names[0].encode(), magic, mask, emulator.encode()),
        )


class Chroot:
    """A Debian system in a folder.

    Parameters
    ----------
    suite : str
        Debian's release, such as "trixie".
    arch : str
        Debian's name of the architecture.
    packages : sequence of str
        Packages that are installed besides the smallest system.
    helper : Chroot, optional
        A system of this machine's architecture whose cross compiler an emulated system uses, because an emulated one
        takes twenty times as long. It is mounted as /native.
    """

    def __init__(
        self, suite: str, arch: str = NATIVE, packages: Sequence[str] = (), helper: Chroot | None = None
    ) -> None:
        self.suite, self.arch = suite, arch
        self.helper = helper
        self.packages = (*PACKAGES, *packages, *(() if helper else ("gcc", "ccache")))
        self.name = "-".join(filter(None, (suite, arch if arch != NATIVE else "")))
        self.root = CACHE / self.name
        self.log = CACHE / f"{self.name}.log"
        self._mounted: list[Path] = []
        self._lock = -1

    def path(self, inside: str | Path) -> Path:
        """Return the path, outside, of a path inside."""
        return self.root / str(inside).lstrip("/")

    def prepare(self) -> None:
        """Make the system if there is none, mount what it needs, and install its packages."""
        CACHE.mkdir(parents=True, exist_ok=True)
        if self.helper and not self.helper.is_ready():
            with prepared(self.helper):  # only its files are used after that, so other runs may have it
                pass
        self._lock = os.open(CACHE / f"{self.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{self.name}: in use by another run; waiting for its end")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.log.write_bytes(b"")
        if self.arch != NATIVE:
            if not self.is_ready():
                self._unpack_system()
            emulate(self.arch, self.log)
            self._mount()
        else:
            made = self.path("var/lib/rtloop-made")
            if not made.exists():
                self._debootstrap("--include=ca-certificates")
                made.touch()
            self._mount()
        self._copy_settings()
        if self.helper:
            self._use_compiler_of(self.helper)
        if not self.is_ready():
            say(f"{self.name}: installing packages")
            self.apt("update")
            self.apt("install", "--yes", "--no-install-recommends", *self.packages)
            self._copy_settings()
            self._note_packages()

    def _debootstrap(self, *options: str) -> None:
        say(f"{self.name}: debootstrap (some minutes)")
        shutil.rmtree(self.root, ignore_errors=True)
        scripts = Path("/usr/share/debootstrap/scripts")
        script = scripts / (self.suite if (scripts / self.suite).exists() else "sid")
        command = ["debootstrap", "--variant=minbase", f"--arch={self.arch}", *options]
        must_run([*command, self.suite, str(self.root), MIRROR, str(script)], self.log)

    def _unpack_system(self) -> None:
        """Make an emulated system of packages that are unpacked but not configured, which would take minutes.

        That is enough for programs such as Python. The few files that are needed of those that the packages' scripts
        would write are written here.
        """
        packages = ",".join(("ca-certificates", *self.packages))
        self._debootstrap("--foreign", f"--include={packages}")
        for package in sorted(self.path("var/cache/apt/archives").glob("*.deb")):
            extract(package, self.root, self.log)
            package.unlink()
        for name in ("passwd", "group"):
            shutil.copy(self.path(f"usr/share/base-passwd/{name}.master"), self.path(f"etc/{name}"))
        self.path("etc/apt/sources.list").write_text(f"deb {MIRROR} {self.suite} main\n")
        self._note_packages()

    @property
    def _stamp(self) -> Path:
        return self.path("var/lib/rtloop-packages")

    def _noted_packages(self) -> set[str]:
        return set(self._stamp.read_text().splitlines()) if self._stamp.exists() else set()

    def _note_packages(self) -> None:
        self._stamp.write_text("\n".join(sorted(self._noted_packages().union(self.packages))))

    def is_ready(self) -> bool:
        """Tell whether the system is made and has its packages."""
        return self._noted_packages().issuperset(self.packages)

    def apt(self, *arguments: str) -> None:
        """Call apt-get inside; a snapshot of a mirror may be older than Debian lets it be."""
        options = ["-qq", "-oAPT::Sandbox::User=root", "-oAcquire::Check-Valid-Until=false", "-oDpkg::Use-Pty=0"]
        self.must_run(["apt-get", *options, *arguments])

    def unpack(self, arch: str, packages: Sequence[str], folder: str, suite: str = "") -> None:
        """Unpack packages of any architecture and release into a folder inside, without installing them."""
        apt, debs = self._foreign_apt(arch, suite), f"/var/tmp/debs-{arch}"
        shutil.rmtree(self.path(debs), ignore_errors=True)
        shutil.rmtree(self.path(folder), ignore_errors=True)
        for name in (debs, folder):
            self.path(name).mkdir(parents=True)
        self.must_run(["apt-get", *apt, "download", *packages], debs)
        for file in sorted(self.path(debs).iterdir()):
            extract(file, self.path(folder), self.log)
            file.unlink()

    def depends(self, arch: str, package: str, suite: str = "") -> list[str]:
        """Return the packages of any architecture and release that a package depends on, directly or not."""
        options = ["--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces"]
        apt = self._foreign_apt(arch, suite)
        output = self.read(["apt-cache", *apt, "depends", *options, "--no-enhances", package])
        return [line for line in output.splitlines() if line and not line.startswith(" ")]

    def _foreign_apt(self, arch: str, suite: str = "") -> list[str]:
        """Return options that make apt use an architecture, or another release, that the system is not set up for."""
        state = "-".join(filter(None, ("/var/lib/rtloop-apt", arch, suite)))
        options = [f"-oAPT::Architecture={arch}", f"-oAPT::Architectures={arch}", f"-oDir::State={state}"]
        options += [f"-oDir::Cache={state}", f"-oDir::State::status={state}/status", "-oAPT::Sandbox::User=root"]
        options += ["-qq", "-oAcquire::Check-Valid-Until=false", "-oAcquire::Languages=none"]
        if not self.path(f"{state}/status").exists():
            for name in ("lists/partial", "archives/partial"):
                self.path(f"{state}/{name}").mkdir(parents=True, exist_ok=True)
            self.path(f"{state}/status").touch()  # nothing is installed
        if suite:
            self.path(f"{state}/sources.list").write_text(f"deb {MIRROR} {suite} main\n")
            options += [f"-oDir::Etc::sourcelist={state}/sources.list", "-oDir::Etc::sourceparts=/dev/null"]
        self.must_run(["apt-get", *options, "update"])
        return options

    def _mount(self) -> None:
        for name in ("proc", "sys", "dev"):
            if self.path(name).is_symlink():  # debootstrap can leave /proc -> /proc in a system for another processor
                self.path(name).unlink()
                self.path(name).mkdir()
            self._do_mount(["--rbind", "--make-rslave", f"/{name}"], self.path(name))
        for name, mode in (("dev/shm", "1777"), ("tmp", "1777"), ("run", "755")):
            if not self.path(name).is_dir():
                self.path(name).mkdir(parents=True)
            self._do_mount(["-t", "tmpfs", "-o", f"mode={mode}", "tmpfs"], self.path(name))
        for name in ("ccache", "pip"):
            (CACHE / name).mkdir(exist_ok=True)
            self.path(f"root/.cache/{name}").mkdir(parents=True, exist_ok=True)
            self._do_mount(["--bind", str(CACHE / name)], self.path(f"root/.cache/{name}"))

    def _use_compiler_of(self, helper: Chroot) -> None:
        cross, native = CROSS[self.arch], Path("/native")
        self.path(native).mkdir(exist_ok=True)
        self._do_mount(["--bind", str(helper.root)], self.path(native))
        loader = next(helper.path("usr/lib64").glob("ld-linux-*"))
        libraries = next(helper.path("usr/lib").glob("*-linux-gnu/libc.so.6")).parent
        for link, target in (
            (f"usr/lib64/{loader.name}", native / "usr/lib64" / loader.name),
            (f"usr/{cross}", native / "usr" / cross),
        ):
            path = self.path(link)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() and not path.is_symlink():
                path.symlink_to(target)
        if not self.path("lib64").exists():
            self.path("lib64").symlink_to("usr/lib64")
        for name in ("gcc", "cc"):
            script = self.path(f"usr/local/bin/{name}")
            script.parent.mkdir(parents=True, exist_ok=True)  # base-files makes it when it is configured
            script.write_text(_COMPILER.format(cross=cross, libraries=native / libraries.relative_to(helper.root)))
            script.chmod(0o755)

    def _copy_settings(self) -> None:
        """Copy the settings of the network and of pip, after whatever else writes them."""
        for name in (*_FILES, *_FOLDERS):
            source, target = Path(name).expanduser(), self.path(name.replace("~", "/root"))
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                shutil.copyfile(source, target)

    def _do_mount(self, arguments: Sequence[str], target: Path) -> None:
        must_run(["mount", *arguments, str(target)], self.log)
        self._mounted.append(target)

    def release(self) -> None:
        """Unmount everything, and let other runs use the system."""
        for target in reversed(self._mounted):
            subprocess.run(["umount", "--recursive", "--lazy", str(target)], check=False)
        self._mounted.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def command(self, command: Sequence[str], folder: str = "/") -> list[str]:
        """Return the command line that runs a command inside."""
        return ["chroot", str(self.root), "/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, *command]

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a command inside: the settings of pip and of the network, and the variables."""
        passed = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
        path = "/usr/lib/ccache:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        passed |= {"HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "PATH": path}
        return passed | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | dict(variables)

    def run(self, command: Sequence[str], folder: str = "/", *, limit_s: float = 3600, **variables: str) -> int:
        """Run a command inside; return its exit code."""
        environment = self.environment(variables)
        return run(self.command(command, folder), self.log, limit_s=limit_s, environment=environment)

    def must_run(self, command: Sequence[str], folder: str = "/", *, limit_s: float = 3600, **variables: str) -> None:
        """Run a command inside; raise if it fails."""
        environment = self.environment(variables)
        must_run(self.command(command, folder), self.log, limit_s=limit_s, environment=environment)

    def read(self, command: Sequence[str], **variables: str) -> str:
        """Return what a command prints inside."""
        with nothing_left():
            done = subprocess.run(
                self.command(command), env=self.environment(variables), capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise FailedError(f"exit code {done.returncode}: {shlex.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()


@contextmanager
def prepared(chroot: Chroot) -> Iterator[Chroot]:
    """Prepare a system, and release it at the end, whatever happens."""
    try:
        chroot.prepare()
        yield chroot
    finally:
        chroot.release()


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run a program and end with its exit code, also if a signal ends it, after every `finally`."""
    try:
        sys.exit(main())
    except KeyboardInterrupt as error:
        name = str(error) or "SIGINT"
        print(f"ended by {name}", file=sys.stderr)
        sys.exit(128 + signal.Signals[name])  # as a shell reports it


def end_by_exception() -> None:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does, so that every `finally` runs.

    SIGINT gets its handler, too: a shell's background job ignores it, and so would the tests, which then hang.
    """

    def end(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def copy_project(target: Path) -> None:
    """Copy what git tracks, or would, into a folder; files that did not change keep their time."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    wanted = {name for name in names if name and (ROOT / name).is_file()}
    if target.exists():
        for path in sorted(target.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # not empty
                    path.rmdir()
            elif str(path.relative_to(target)) not in wanted:
                path.unlink()
    for name in wanted:
        source, copy = ROOT / name, target / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
