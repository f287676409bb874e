"""Fixtures for all tests: compiled probe loops, the real-time marker, a watchdog."""

from __future__ import annotations

import faulthandler
import importlib.util
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rtloop.system.privilege import CAP_IPC_LOCK, CAP_SYS_NICE, is_capable

#: How much longer than elsewhere a program may take before it counts as stuck: on an emulated machine.
SLOWNESS = 10 if os.environ.get("RTLOOP_TEST_SLOW") else 1
#: How long a test may take, with the fixtures that it is the first to ask for.
WATCHDOG_S = float(os.environ.get("RTLOOP_TEST_WATCHDOG_S", "180"))
_stderr_fd = -1


SUPPORT = Path(__file__).parent / "support"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"rtloop_test_{name}", SUPPORT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# From here on, every test file can import from it.
sys.modules["rtloop_test_ends"] = _load("ends")
sys.modules["rtloop_test_peer"] = _load("peer")
sys.modules["rtloop_test_processes"] = _load("processes")
sys.modules["rtloop_test_scope_page"] = _load("scope_page")
sys.modules["rtloop_test_waiting"] = _load("waiting")


def missing_privileges() -> list[str]:
    """Say what an `rt` test needs and this process lacks."""
    missing = []
    if not is_capable(CAP_SYS_NICE) and resource.getrlimit(resource.RLIMIT_RTPRIO)[0] < 80:
        missing.append("SCHED_FIFO 80 (CAP_SYS_NICE or RLIMIT_RTPRIO)")
    if not is_capable(CAP_IPC_LOCK) and resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY:
        missing.append("locked memory (CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK)")
    if not os.access("/dev/cpu_dma_latency", os.W_OK):
        missing.append("/dev/cpu_dma_latency")
    return missing


def pytest_configure() -> None:
    """Keep the real stderr: while a test runs, pytest has its own there, which is lost when the process is ended."""
    global _stderr_fd
    _stderr_fd = os.dup(sys.stderr.fileno())


def pytest_unconfigure() -> None:
    os.close(_stderr_fd)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """`--dist loadfile` keeps apart, and begins first, what tests/support/schedule.py says."""
    if config.getoption("dist") != "loadfile":
        return None
    return _load("schedule").Scheduling(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """A test that hangs prints every thread's stack and ends the run, instead of hanging it.

    By faulthandler, for pytest-timeout takes SIGALRM, which belongs to the programs under test, or a Python thread, for
    which a hang that holds the GIL is one, too. A worker of pytest-xdist that is ended so ends the run with the name of
    its test: `make test` has --max-worker-restart=0, without which `--dist loadfile` would wait for ever.
    """
    faulthandler.dump_traceback_later(WATCHDOG_S, exit=True, file=_stderr_fd)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_privileges()
    if missing:
        skip = pytest.mark.skip(reason="needs " + ", ".join(missing))
        for item in items:
            if item.get_closest_marker("rt"):
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _signals() -> Iterator[None]:
    """What a shell ignores in the background (nohup, &) would be ignored by the programs under test, too.

    A handler is not inherited: this process lives on, and they get the default.
    """
    ignored = [n for n in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        # As Python has it by itself for Ctrl-C, which tests send to their own process.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def wiped_children() -> None:
    """Skips where a forked child has its parent's memory in spite of MADV_WIPEONFORK, as under qemu-user 7.2."""
    madv_wipeonfork = 18
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(madv_wipeonfork)
        memory[0] = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there may be threads, and the child only ends
            child = os.fork()
        if child == 0:
            os._exit(memory[0])
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            pytest.skip("the kernel accepts MADV_WIPEONFORK, and has not wiped a forked child's memory")


@pytest.fixture(scope="session")
def tracefs() -> Iterator[Path]:
    """Mounts the kernel's trace if it is not mounted, and unmounts it at the end of the tests."""
    folder = Path("/sys/kernel/tracing")
    is_mounted = os.access(folder / "instances", os.W_OK)
    if not is_mounted:
        done = subprocess.run(["mount", "-t", "tracefs", "none", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"tracefs is not mounted, and cannot be mounted here: {done.stderr.strip()}")
    yield folder
    if not is_mounted:
        subprocess.run(["umount", folder], check=False)


@pytest.fixture(scope="session")
def warm_cython(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables with which `python -m cython` is a child of a process that has loaded Cython, one in a test run."""
    if importlib.util.find_spec("Cython") is None or os.environ.get("RTLOOP_TEST_SLOW"):
        return {}  # an emulated machine loads it slower than a test may take
    once, warm = _load("once"), _load("warm_cython")
    process = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = once.run_folder(tmp_path_factory.getbasetemp()) / "warm_cython"
    once.make_once(folder, lambda empty: (empty / "address").write_text(warm.start(process)))
    variables: dict[str, str] = warm.environment((folder / "address").read_text())
    return variables


@pytest.fixture(scope="session")
def compiler() -> list[str]:
    """The command of the C compiler; skips where there is none."""
    command = os.environ.get("CC", "cc").split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs a C compiler: there is no {command[0]}")
    return command


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, warm_cython: dict[str, str]) -> Callable[..., Path]:
    """Returns the folder with a compiled module of tests/support, by name: compiled once in a test run."""
    once, build = _load("once"), _load("build")
    made = once.run_folder(tmp_path_factory.getbasetemp(), is_shared=True) / "support"

    def compiled(name: str) -> Path:
        folder = made / name

        def compile_in(empty: Path) -> None:
            renamed = f"-fdebug-prefix-map={empty}={folder}"  # where a debugger, or a guard, looks for the C
            build.compile_pyx(SUPPORT / f"{name}.pyx", empty, *build.SHARED[name], renamed, environment=warm_cython)

        once.make_once(folder, compile_in)
        return folder

    return compiled


def _import(folder: Path) -> ModuleType:
    (path,) = folder.glob("*.so")
    module: ModuleType = _load("build").import_module(path)
    return module


@pytest.fixture(scope="session")
def probe_path(compiled: Callable[..., Path]) -> Path:
    """The folder with the compiled probe loops of tests/support/probes.pyx."""
    return compiled("probes")


@pytest.fixture(scope="session")
def probes(probe_path: Path) -> ModuleType:
    """The module of compiled probe loops."""
    return _import(probe_path)


@pytest.fixture(scope="session")
def support() -> Callable[[str], ModuleType]:
    """Loads a module of tests/support by its name."""
    return _load


@pytest.fixture(scope="session")
def waits(compiled: Callable[..., Path]) -> ModuleType:
    """The module of loops that sleep in their step, or wait by themselves: tests/support/waits.pyx."""
    return _import(compiled("waits"))


@pytest.fixture(scope="session")
def guilty_path(compiled: Callable[..., Path]) -> Path:
    """The folder with the compiled module of tests/support/guilty.pyx, with debug information and lazy binding."""
    return compiled("guilty")


@pytest.fixture(scope="session")
def guilty(guilty_path: Path) -> ModuleType:
    """The module of loops that break the rules of a step, each in its way; its symbols are bound when first used."""
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        return _import(guilty_path)
    finally:
        sys.setdlopenflags(before)


@pytest.fixture(scope="session")
def regions(compiled: Callable[..., Path]) -> Path:
    """The folder with the compiled module of tests/support/regions.pyx."""
    return compiled("regions")


@pytest.fixture(scope="session")
def exchange_path(compiled: Callable[..., Path]) -> Path:
    """The folder with the compiled module of tests/support/exchanges.pyx."""
    return compiled("exchanges")


@pytest.fixture(scope="session")
def exchanges(exchange_path: Path) -> ModuleType:
    """The module of loops that exchange data with Python."""
    return _import(exchange_path)


@pytest.fixture(scope="session")
def tuned_path(compiled: Callable[..., Path]) -> Path:
    """The folder with the compiled module of tests/support/tuned.pyx."""
    return compiled("tuned")


@pytest.fixture(scope="session")
def tuned(tuned_path: Path) -> ModuleType:
    """The module of loops with parameters."""
    return _import(tuned_path)


@pytest.fixture(scope="session")
def swaps_path(compiled: Callable[..., Path]) -> Path:
    """The folder with the compiled module of tests/support/swaps.pyx."""
    return compiled("swaps")


@pytest.fixture(scope="session")
def laws(swaps_path: Path) -> ModuleType:
    """The module of loops whose steps replace one another."""
    return _import(swaps_path)


@pytest.fixture(scope="session")
def signalled_path(compiled: Callable[..., Path]) -> Path:
    """The folder with the compiled module of tests/support/signalled.pyx."""
    return compiled("signalled")


@pytest.fixture(scope="session")
def signalled(signalled_path: Path) -> ModuleType:
    """The module of loops with signals."""
    return _import(signalled_path)


@pytest.fixture(scope="session")
def scoped_path(compiled: Callable[..., Path]) -> Path:
    """The folder with the compiled module of tests/support/scoped.pyx."""
    return compiled("scoped")


@pytest.fixture(scope="session")
def scoped(scoped_path: Path) -> ModuleType:
    """The module of a loop to look at."""
    return _import(scoped_path)


@pytest.fixture
def account() -> Callable[[], dict[str, Any]]:
    """What this process holds: a function, to be called before and after."""
    function: Callable[[], dict[str, Any]] = _load("account").account
    return function


@pytest.fixture
def ordinary() -> dict[str, Any]:
    """Settings of a loop that every user on every Linux machine may run."""
    return {"policy": "other", "lock_memory": "off", "dma_latency": None}


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts other processes that do as they are told, by a prefix of the command if there is one: a Peer each."""
    peers: list[Any] = []

    def begin(*prefix: str) -> Any:
        peers.append(sys.modules["rtloop_test_peer"].Peer(*prefix))
        return peers[-1]

    yield begin
    for peer in peers:
        peer.kill()


@pytest.fixture
def script(probe_path: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a process of its own, with the probes importable; returns the completed process."""

    def run(code: str, *, prefix: tuple[str, ...] = (), timeout: float = 60, **options: Any) -> Any:
        environment = {**os.environ, "PYTHONPATH": str(probe_path), **options.pop("env", {})}
        return subprocess.run(
            [*prefix, sys.executable, "-c", textwrap.dedent(code)],
            env=environment, cwd=tmp_path, timeout=SLOWNESS * timeout, capture_output=True, text=True, check=False,
            **options,
        )  # fmt: skip

    return run
