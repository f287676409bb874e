"""Exchanges that are found by a socket: given by whoever has them, as long as anybody has, and to whom they are for."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rtloop_test_peer import Peer, create_at_once
from rtloop_test_processes import stat, thread_names
from rtloop_test_waiting import wait_until

from rtloop import AttachError, ConfigError, Latest, Ring, SetupError, StateError
from rtloop.errors import AttachPrivilegeError
from rtloop.sharing import exchange_file, exchange_server, path_lock, socket_exchanges, socket_users
from rtloop.sharing.exchange_server import GIVEN, MAGIC, MESSAGE, VERSION
from rtloop.sharing.socket_users import User, check_creator, may_open


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="rtloop-"))  # pytest's own is too long for a socket
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=["path", "abstract"])
def name(request: pytest.FixtureRequest, folder: Path) -> str:
    return f"{folder}/setpoint" if request.param == "path" else f"@{folder.name}/setpoint"


@pytest.fixture
def path(folder: Path) -> str:
    return f"{folder}/setpoint"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_exchanges, "PATIENCE_S", 0.2)
    monkeypatch.setattr(socket_exchanges, "_ANSWER_S", 0.05)


def test_another_process_is_the_other_side(name: str, folder: Path, start: Callable[[], Peer]) -> None:
    peer = start()
    writer, log = Latest("f8", share=name), Ring("i8", 100, share=f"{name}.log", role="consumer")
    assert peer.do(f"!value = rtloop.Latest.open({name!r})") is None
    assert peer.do(f"!log = rtloop.Ring.open('{name}.log', 'producer')") is None
    writer.write(1.5)
    assert peer.do("[value.read(), value.share, value.peers]") == [1.5, name, [os.getpid()]]
    assert peer.do("log.push([1, 2, 3])") == 3 and log.drain().tolist() == [1, 2, 3]
    assert (writer.share, writer.peers, log.peers) == (name, (peer.pid,), (peer.pid,))
    if name[0] == "/":
        assert sorted(os.listdir(folder)) == ["setpoint", "setpoint.log"]
        assert os.stat(name).st_mode & 0o777 == 0o600
    writer.close(), log.close()
    assert peer.do("[value.close(), log.close()]") == [None, None]
    assert os.listdir(folder) == []


def test_the_second_creator_takes_a_role_in_the_exchange_of_the_first(name: str) -> None:
    with Latest("f8", share=name) as writer, Latest("f8", share=name, role="reader") as reader:
        writer.write(2.5)
        assert reader.read() == 2.5
        with pytest.raises(StateError, match=rf"one writer already: process {os.getpid()}"):
            Latest("f8", share=name)
        with pytest.raises(ConfigError, match="exists and has items of float64, not int32"):
            Latest("i4", share=name, role="reader")
        with pytest.raises(ConfigError, match=r"is a Latest: use Latest\.open"):
            Ring.open(name)


def test_an_exchange_goes_on_if_its_creator_is_killed(path: str, folder: Path, start: Callable[[], Peer]) -> None:
    creator, other = start(), start()
    creator.do(f"!made = rtloop.Ring('i8', 100, share={path!r}); made.push(numpy.arange(5))")
    assert other.do(f"!ring = rtloop.Ring.open({path!r})") is None and other.do("int(ring.pop())") == 0
    creator.kill()
    assert other.do("[int(ring.pop()), ring.peers]") == [1, []]
    with Ring("i8", 100, share=path) as successor:  # it is given by the process that has never been its creator
        assert len(successor) == 3 and successor.peers == (other.pid,)
        successor.push([5])
        assert other.do("ring.drain().tolist()") == [2, 3, 4, 5]
    other.finish()
    assert os.listdir(folder) == []
    with pytest.raises(AttachError, match="no process has the exchange"):
        Ring.open(path)


def test_what_a_killed_process_leaves_at_a_path_is_replaced(path: str, folder: Path, start: Callable[[], Peer]) -> None:
    peer = start()
    peer.do(f"!made = rtloop.Latest('f8', share={path!r}); made.write(1.0)")
    peer.kill()
    assert os.listdir(folder) == ["setpoint"]
    with pytest.raises(AttachError, match="processes that were killed have left the socket there"):
        Latest.open(path)
    (folder / ".setpoint.lock").touch()  # and one that was killed while it held the lock
    with Latest("f8", share=path) as successor, Latest.open(path) as reader:
        assert (successor.written, reader.read()) == (0, 0.0)
        assert os.listdir(folder) == ["setpoint"]
    assert os.listdir(folder) == []


def test_of_many_processes_at_once_one_is_the_writer(path: str, folder: Path, start: Callable[[], Peer]) -> None:
    peers = [start() for _ in range(3)]
    for round_ in range(4):
        for peer in peers:
            peer.do("1")
        for peer in peers:
            peer.ask(f"!made = rtloop.Latest('i8', share={path!r})")
        answers = [peer.answer() for peer in peers]
        assert sum(answer is None for answer in answers) == 1, answers
        assert all(answer is None or "one writer already" in answer[1] for answer in answers)
        writer = peers[[answer is None for answer in answers].index(True)]
        writer.do(f"made.write({round_})")
        assert Latest.open(path).read() == round_, "there is one exchange"
        if round_ < 3:
            for peer in peers:
                peer.do("!made = None")
        if round_ == 2:  # the last time with a socket that nobody listens at
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
                left.bind(path)
    writer.finish()
    assert os.listdir(folder) == []


def test_of_many_threads_at_once_one_is_the_writer(name: str) -> None:
    made, refused = create_at_once(lambda: Latest("i8", share=name))
    assert len(made) == 1 and len(refused) == 5 and all("one writer already" in text for text in refused)


def held_files() -> Counter[str]:
    """Count the memory of exchanges and the epoll instances that this process holds, also those of other tests."""
    links = Counter[str]()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links[os.readlink(f"/proc/self/fd/{fd}")] += 1
    return Counter({link: count for link, count in links.items() if "exchange" in link or "eventpoll" in link})


def test_a_forked_child_does_not_keep_it(name: str, folder: Path) -> None:
    before = held_files()
    writer, reader = Latest("f8", share=name), Latest.open(name)
    (end, own_end), (done, is_done) = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        os.close(own_end)
        is_good = not held_files() - before
        writer.close()
        with suppress(StateError):
            Latest.open(name, "writer")  # which is still its parent's
            is_good = False
        with Latest("f8", share=f"{name}.own") as own:
            is_good = is_good and Latest.open(f"{name}.own").written == own.written
        os.write(is_done, b"x")
        os.read(end, 1)
        os._exit(not is_good)
    os.read(done, 1)
    assert reader.peers == (os.getpid(),)
    with pytest.raises(StateError, match="one writer already"):
        Latest("f8", share=name)
    writer.close()
    reader.close()
    with pytest.raises(AttachError, match="no process has"):
        Latest.open(name)
    for file in (own_end, end, done, is_done):
        os.close(file)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.listdir(folder) == []


def test_closing_and_failing_leave_no_descriptor(name: str) -> None:
    kept = Latest("f8", share=name)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with Latest.open(name):
            pass
        with pytest.raises(StateError):
            Latest("f8", share=name)
        with pytest.raises(ConfigError):
            Latest("f4", share=name)
        with pytest.raises(AttachError):
            Latest.open(name + ".nothing")
        with Latest("f8", share=name + ".other"):
            pass
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == before, "connections are closed when they are answered")
    assert kept.written == 0


def test_a_process_that_ends_without_closing_it_leaves_nothing(path: str, folder: Path) -> None:
    code = f"import rtloop; kept = rtloop.Latest('f8', share={path!r})"
    subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", code], check=True, timeout=60)
    assert os.listdir(folder) == []


def test_a_service_that_is_stopped_while_its_loop_runs_leaves_nothing(path: str, folder: Path) -> None:
    """By SIGTERM, as systemd and containers do it."""
    code = f"""
import rtloop
kept = rtloop.Latest("f8", share={path!r})
settings = dict(policy="other", lock_memory="off", dma_latency=None)
with rtloop.PyLoop(lambda cycle: None, "2ms", **settings) as loop:
    print("running", flush=True)
    loop.join()
"""
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None and service.stdout.readline() == "running\n"
        assert os.listdir(folder) == ["setpoint"]
        service.terminate()
        assert service.wait(60) == -signal.SIGTERM
    assert os.listdir(folder) == []


def test_clients_that_do_not_behave_delay_nobody(name: str, start: Callable[[], Peer]) -> None:
    writer, peer = Latest("f8", share=name), start()
    before = len(os.listdir("/proc/self/fd"))
    address = socket_exchanges._address(name)
    silent = []
    for n in range(200):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(address)
        if n % 2:
            with suppress(ConnectionError):
                client.send(b"x" * 1000)
            client.close()
        else:
            silent.append(client)
    assert peer.do(f"!reader = rtloop.Latest.open({name!r})") is None
    writer.write(1.0)
    assert peer.do("reader.read()") == 1.0
    for client in silent:
        client.close()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "nothing is kept about any of them")


def _stop(peer: Peer) -> None:
    os.kill(peer.pid, signal.SIGSTOP)
    threads = [f"{peer.pid}/task/{tid}" for tid in thread_names(peer.pid)]
    wait_until(lambda: all(stat(thread)[:1] == ["T"] for thread in threads), "it is stopped")


def test_a_stopped_process_answers_nobody_but_another_does(
    path: str, start: Callable[[], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    creator, other = start(), start()
    creator.do(f"!made = rtloop.Latest('f8', share={path!r}, readers=3)")
    _stop(creator)
    with monkeypatch.context() as impatient:
        impatient.setattr(socket_exchanges, "PATIENCE_S", 0.05)
        impatient.setattr(socket_exchanges, "_ANSWER_S", 0.02)
        with pytest.raises(AttachError, match=r"no process that has the exchange .* answers: .*stopped \(SIGSTOP\)"):
            Latest.open(path)
    os.kill(creator.pid, signal.SIGCONT)
    assert other.do(f"!reader = rtloop.Latest.open({path!r})") is None
    _stop(creator)
    assert Latest.open(path).peers == (creator.pid,)
    os.kill(creator.pid, signal.SIGCONT)


def test_the_socket_of_another_program_is_not_touched(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(path)
        other.listen()
        for call in (lambda: Latest("f8", share=path), lambda: Latest.open(path)):
            with pytest.raises(ConfigError, match="does not belong to an exchange"):
                call()
    os.unlink(path)
    Path(path).write_text("mine")
    for call in (lambda: Latest("f8", share=path), lambda: Latest.open(path)):
        with pytest.raises(ConfigError, match="exists and is not a socket"):
            call()
    assert Path(path).read_text() == "mine"


def _memfd(content: bytes, kind: int | str = "") -> int:
    file = os.memfd_create("planted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(file, content)
    if kind != "unsealed":
        more = fcntl.F_SEAL_WRITE if kind == "read only" else 0
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | more)
    return file


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("answer", "files", "words"),
    [
        (b"", 0, "answers"),
        (b"hello", 0, "is not an exchange"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN) + b"x", 2, "is not an exchange"),
        (MESSAGE.pack(MAGIC, 7, GIVEN), 2, "belongs to another version"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN), 0, "did not reach this process"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN), 1, "did not reach this process"),
        (MESSAGE.pack(MAGIC, VERSION, 9), 2, "did not reach this process"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN), 2, "is not one: it does not begin like an exchange"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN), 3, "is not one: it does not begin like an exchange"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN), "unsealed", "it is not sealed"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN), "read only", "it is sealed against writing"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN), "pipe", "cannot be opened for reading and writing|is not sealed"),
        (MESSAGE.pack(MAGIC, VERSION, GIVEN), "not listening", "is not an exchange"),
    ],
)
def test_an_answer_is_not_believed(path: str, answer: bytes, files: int | str, words: str) -> None:
    """Whoever has the name first is asked, and may be anybody."""
    planted = [_memfd(b"x" * 8192, files), *os.pipe()]
    is_over = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(socket_exchanges._address(path))
        server.listen()
        server.settimeout(0.05)
        given = [planted[0], server.fileno(), planted[1]]
        if files == "pipe":
            given[0] = planted[1]
        if files == "not listening":
            given[1] = planted[1]
        count = files if isinstance(files, int) else 2

        def work() -> None:
            while not is_over.is_set():
                with suppress(TimeoutError, ConnectionError):
                    connection, _ = server.accept()
                    with connection:
                        if answer:
                            socket.send_fds(connection, [answer], given[:count])

        thread = threading.Thread(target=work)
        thread.start()
        try:
            with pytest.raises(AttachError, match=words):
                Latest.open(path)
            with pytest.raises(AttachError, match=words):
                Latest("f8", share=path)
        finally:
            is_over.set()
            thread.join()
    for file in planted:
        os.close(file)


def test_what_was_given_is_opened_only_if_it_is_memory_and_never_waited_for(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open of a device may start it. One of a file with a lease (fcntl(2)) waits for its holder, for 45 s."""
    opened: list[int] = []
    own_open = os.open

    def note(name: str, flags: int, *more: int) -> int:
        opened.append(flags)
        return own_open(name, flags, *more)

    given = [os.open("/dev/null", os.O_PATH), _memfd(b"x" * 8192)]
    monkeypatch.setattr(os, "open", note)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        with pytest.raises(AttachError, match="is not sealed"):
            socket_exchanges._read(path, socket_exchanges._Given(given[0], listening))
        assert not opened
        with pytest.raises(AttachError, match="does not begin like an exchange"):
            socket_exchanges._read(path, socket_exchanges._Given(given[1], listening))
    assert len(opened) == 1 and opened[0] & os.O_NONBLOCK
    for file in given:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)


def test_a_description_with_a_role_is_never_given(name: str) -> None:
    """Whoever got it would have the role, and keep it beyond the end of its holder."""
    writer = Latest("f8", share=name)
    given = socket_exchanges._ask(name)
    assert given is not None
    assert exchange_file.holder(given.file, 0) is not None, "the lock is another's: that of the writer"
    writer.close()
    assert exchange_file.holder(given.file, 0) is None
    os.close(given.file)
    given.listening.close()


def test_a_child_forked_in_the_middle_of_a_call_keeps_nothing_of_it(
    path: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy of the socket would seem to listen at the path, and its copy of the file would keep the role."""
    writer = Latest("f8", share=path)
    before = set(os.listdir("/proc/self/fd"))
    is_open, may_go = threading.Event(), threading.Event()
    own_serve, opened = socket_exchanges.serve, list[Latest]()

    def hold(*arguments: Any) -> Any:  # the call has the file, the role and the socket, and no listener yet
        is_open.set()
        may_go.wait(60)
        return own_serve(*arguments)

    monkeypatch.setattr(socket_exchanges, "serve", hold)
    thread = threading.Thread(target=lambda: opened.append(Latest.open(path)))
    thread.start()
    is_open.wait(60)
    (end, own_end), (done, is_done) = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        os.close(own_end)
        kept = [os.readlink(f"/proc/self/fd/{fd}") for fd in set(os.listdir("/proc/self/fd")) - before
                if os.path.exists(f"/proc/self/fd/{fd}")]  # fmt: skip
        os.write(is_done, b"".join(f"{link} ".encode() for link in kept if "exchange" in link))
        os.close(is_done)
        os.read(end, 1)
        os._exit(0)
    os.close(is_done)
    assert os.read(done, 1000) == b"", "files of the exchange in the child"
    may_go.set()
    thread.join()
    opened[0].close()
    writer.close()
    assert os.listdir(folder) == [], "nobody seems to listen there, although the child lives"
    for file in (own_end, end, done):
        os.close(file)
    os.waitpid(child, 0)


@pytest.mark.parametrize("failing", ["_set_mode", "serve"])
def test_a_creation_that_fails_leaves_no_socket(
    path: str, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if failing == "serve":  # deeper in it
        monkeypatch.setattr(exchange_server._Server, "add", fail)
    else:
        monkeypatch.setattr(socket_exchanges, failing, fail)
    with pytest.raises(SetupError, match=r"cannot be (created|passed to other processes): Too many open files"):
        Latest("f8", share=path)
    assert os.listdir(folder) == []
    monkeypatch.undo()
    Latest("f8", share=path).close()


def test_a_role_can_be_taken_without_the_name_of_the_program(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: str) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(exchange_file, "read_text", fail)
    with Latest("f8", share=path) as writer, pytest.raises(StateError, match=rf"already: process {os.getpid()}$"):
        Latest.open(path, "writer")
    assert writer.peers == ()


def test_one_that_shuts_the_common_socket_down_costs_no_processor_time(name: str) -> None:
    writer = Latest("f8", share=name)
    given = socket_exchanges._ask(name)
    assert given is not None
    given.listening.shutdown(socket.SHUT_RDWR)
    server = exchange_server._server
    wait_until(lambda: not server._epoll.poll(0), "the thread waits for this socket no more")  # type: ignore[union-attr]
    os.close(given.file)
    given.listening.close()
    writer.close()
    with Latest("f8", share=name) as successor, Latest.open(name) as reader:
        assert successor.peers == reader.peers == (os.getpid(),)


def test_one_that_makes_the_common_socket_block_delays_no_close(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_server, "_CLOSE_S", 0.05)
    writer = Latest("f8", share=name)
    given = socket_exchanges._ask(name)
    assert given is not None
    is_held, may_go = threading.Event(), threading.Event()
    listener = next(one for one in exchange_server._server.listeners.values() if one._name == name)

    def hold() -> None:  # as an accept(2) that blocks does
        with listener._lock:
            is_held.set()
            may_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(60)
    before = time.monotonic()
    writer.close()
    assert time.monotonic() - before < 30 and listener._file >= 0
    may_go.set()
    thread.join()
    listener.answer()  # the thread that serves goes on, and closes the socket
    assert listener._file < 0
    os.close(given.file)
    given.listening.close()


@pytest.mark.parametrize(
    ("share", "words"),
    [
        ("/", "not the path"), ("/tmp/", "not the path"), ("/tmp//x", "not the path"), ("/tmp/../x", "not the path"),
        ("/tmp/./x", "not the path"), ("@", "give a name after it"), ("/" + "x" * 107, "107 bytes"),
        ("@" + "x" * 107, "107 bytes"),
    ],
)  # fmt: skip
def test_a_name_that_no_socket_can_have_is_refused(share: str, words: str) -> None:
    for call in (lambda: Latest("f8", share=share), lambda: Ring.open(share)):
        with pytest.raises(ConfigError, match=words):
            call()


def test_a_name_may_be_as_long_as_a_socket_allows(folder: Path) -> None:
    for share in (f"{folder}/".ljust(107, "x"), f"@{folder.name}".ljust(107, "x")):
        with Latest("f8", share=share), Latest.open(share) as reader:
            assert reader.share == share


def test_a_folder_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(SetupError, match=rf"Create the folder {folder}/none") as raised:
        Latest("f8", share=f"{folder}/none/x")
    assert raised.value.errno == 2
    with pytest.raises(AttachError, match="no process has"):
        Latest.open(f"{folder}/none/x")


@pytest.mark.parametrize("mode", [0o640, 0o644, 0o606, 0o777, 0, -1, True, "0o660", None])
def test_a_mode_without_a_meaning_is_refused(path: str, mode: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be one of 0o600 .* There is no read-only access"):
        Latest("f8", share=path, mode=mode)


@pytest.mark.parametrize("share", [None, "arm/setpoint", "@arm/setpoint"])
def test_a_mode_for_others_needs_a_path(share: str | None) -> None:
    with pytest.raises(ConfigError, match=r"mode=0o660 needs share=" if share is None else r"mode=0o660 needs a path"):
        Ring("f8", 4, share=share, mode=0o660)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_socket_has_the_mode_whatever_the_umask(path: str, mode: int, umask: int) -> None:
    former = os.umask(umask)
    try:
        writer = Latest("f8", share=path, mode=mode)
    finally:
        os.umask(former)
    assert os.stat(path).st_mode & 0o777 == mode
    other = 0o600 if mode == 0o666 else 0o666
    with pytest.raises(ConfigError, match=rf"was made with mode = {mode:#o}, not {other:#o}"):
        Latest("f8", share=path, role="reader", mode=other)
    writer.close()


@pytest.mark.parametrize(
    ("mode", "owner", "group", "user", "is_allowed"),
    [
        (0o600, 1000, 1000, User(1000, 1, ()), True),  # it is the owner's, also in a process of another user
        (0o600, 1000, 1000, User(0, 0, ()), True),
        (0o600, 1000, 50, User(1001, 50, (50,)), False),
        (0o660, 1000, 50, User(1001, 50, ()), True),
        (0o660, 1000, 50, User(1001, 7, (8, 50)), True),
        (0o660, 1000, 50, User(1001, 7, (8,)), False),
        (0o666, 1000, 50, User(1001, 7, ()), True),
    ],
)
def test_owner_group_and_mode_of_the_socket_decide(
    monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, group: int, user: User, is_allowed: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 2000)
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_mode=mode, st_uid=owner, st_gid=group))
    assert may_open(user, "/run/x") is is_allowed
    assert may_open(User(2000, 1, ()), "/run/x"), "this process's own user"
    assert may_open(User(1000, 1, ()), "@x") is False and may_open(User(2000, 1, ()), "@x")


def test_the_mode_of_a_link_is_not_that_of_the_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every link has the mode 0o777."""
    (folder / "link").symlink_to(folder / "setpoint")
    with Latest("f8", share=f"{folder}/setpoint"), Latest.open(f"{folder}/link") as reader:
        assert reader.share == f"{folder}/link"
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
        assert not may_open(User(own + 2, 7, (7,)), f"{folder}/link")


def test_a_user_that_the_namespace_does_not_know_is_not_taken_for_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows all of them as one, 65534, which may be this process's user as well."""
    files = {"/proc/sys/kernel/overflowuid": "65534\n", "/proc/self/uid_map": "0 100000 65536\n"}
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(socket_users, "read_text", files.__getitem__)
    assert not may_open(User(65534, 65534), "@x")
    with pytest.raises(AttachPrivilegeError):
        check_creator(User(65534, 65534), "@x")
    folder.chmod(0o1777)
    (folder / "x").touch()
    os.chown(folder / "x", 65534, 65534) if os.getuid() == 0 else folder.chmod(0o777)
    with pytest.raises(AttachPrivilegeError, match="any user may have put it"):
        check_creator(User(65534, 65534), f"{folder}/x")
    files["/proc/self/uid_map"] = "         0          0 4294967295\n"
    assert may_open(User(65534, 65534), "@x")
    check_creator(User(65534, 65534), "@x")


def test_a_user_who_may_have_put_a_socket_there_by_chance_is_not_the_exchange(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp anybody can have the name first. In a folder of its users nobody else can."""
    (folder / "x").touch()
    (folder / "link").symlink_to(folder / "public")
    (folder / "public").mkdir()
    (folder / "public" / "x").touch()
    check_creator(User(1001, 1), f"{folder}/x")
    folder.joinpath("public").chmod(0o777)
    check_creator(User(os.geteuid(), 1), f"{folder}/public/x")
    check_creator(User(0, 0), f"{folder}/public/x")
    for entry in ("public/x", "link/x"):
        with pytest.raises(AttachPrivilegeError, match=rf"to user 1001, and any user may have put it into {folder}"):
            check_creator(User(1001, 1), f"{folder}/{entry}")
    folder.joinpath("public").chmod(0o1777)
    check_creator(User(1001, 1), f"{folder}/public/x")  # root's, or this user's: nobody else can have replaced it
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(AttachPrivilegeError):
        check_creator(User(1001, 1), f"{folder}/public/x") if own else check_creator(User(1001, 1), "@x")
    with pytest.raises(AttachPrivilegeError, match="any user may take such a name"):
        check_creator(User(own, 1), "@x")


def test_a_process_of_another_pid_namespace_has_no_id_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Latest("f8", share=name)
    there = exchange_file.own_pid_namespace()
    monkeypatch.setattr(exchange_file, "own_pid_namespace", lambda: there + 1)
    with Latest.open(name) as reader:
        assert reader.peers == (0,) and writer.peers == (os.getpid(),)
        with pytest.raises(StateError, match=rf"process {os.getpid()} of another PID namespace \("):
            Latest("f8", share=name)


def test_the_lock_of_a_path_is_held_by_one_and_waited_for(path: str, folder: Path) -> None:
    with path_lock.locked(path, 0o600, 1):
        with pytest.raises(StateError, match=r"it has locked .*\.setpoint\.lock"), path_lock.locked(path, 0o600, 0.01):
            pass
        assert os.listdir(folder) == [".setpoint.lock"]
    assert os.listdir(folder) == []
    os.mkfifo(folder / ".setpoint.lock")
    with pytest.raises(SetupError, match="not a lock file"):
        Latest("f8", share=path)


def test_the_lock_of_another_user_is_waited_for(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock may be open to fewer users than the exchange: for a moment, or for a process that has been killed."""
    lock, own_open, tried = folder / ".setpoint.lock", os.open, list[str]()
    lock.touch()

    def refuse(name: str, *more: Any, **keywords: Any) -> int:
        if name == str(lock) and len(tried) < 3:
            tried.append(name)
            if len(tried) == 3:
                lock.unlink()
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return own_open(name, *more, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SetupError, match="must be able to write to the folder"):  # the third is about the folder
        Latest("f8", share=path)
    assert len(tried) == 3
    Latest("f8", share=path).close()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_whoever_may_open_an_exchange_may_lock_its_path(path: str, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    locks: list[tuple[int, int]] = []
    own_take = path_lock._take

    def note(file: str, asked: int) -> int | None:
        fd = own_take(file, asked)
        locks.append((asked, os.stat(file).st_mode & 0o777))
        return fd

    monkeypatch.setattr(path_lock, "_take", note)
    Latest("f8", share=path, mode=mode).close()
    assert locks == [(mode, mode)] * 2, "of its creation, and of its end"


def test_a_socket_whose_mode_is_about_to_be_set_is_asked_again(
    path: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that bind(2) creates has the mode that the umask leaves of the requested one."""
    lock, asked, own_ask = folder / ".setpoint.lock", list[bool](), socket_exchanges._ask_once

    def refuse(name: str) -> Any:
        asked.append(lock.exists())
        if len(asked) == 3:
            lock.unlink()
        if len(asked) <= refusals:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return own_ask(name)

    with Latest("f8", share=path, mode=0o666):
        monkeypatch.setattr(socket_exchanges, "_ask_once", refuse)
        lock.touch()
        refusals = 2
        Latest.open(path).close()
        assert asked == [True, True, True]
        asked.clear()
        refusals = 5
        with pytest.raises(AttachPrivilegeError, match="mode 0o666"):
            Latest.open(path)
        assert asked == [False, False], "the first one may have been just before the mode was set"


def test_its_thread_serves_all_exchanges_of_the_process(folder: Path) -> None:
    made = [Latest("f8", share=f"{folder}/{n}") for n in range(5)]
    server = exchange_server._server
    assert len(server.listeners) >= 5 and isinstance(server._epoll, select.epoll)
    for n in range(5):
        assert Latest.open(f"{folder}/{n}").written == 0
    for one in made:
        one.close()


def test_the_command_shows_the_exchange_of_a_socket(path: str, start: Callable[[], Peer]) -> None:
    pytest.importorskip("click", reason="the command line needs rtloop[cli]")
    ring = Ring("i8", 10, share=path, mode=0o660)
    ring.push([1, 2, 3])
    command = [sys.executable, "-P", "-m", "rtloop", "exchanges", "--over", "1ms", path]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=120)
    (found,) = [one for one in json.loads(done.stdout)["exchanges"] if one["name"] == path]
    assert (found["fill"], found["mode"], found["readers"]) == (3, "0660", [])
    assert found["writer"]["pid"] == os.getpid() and not found["writer"]["in_other_pid_namespace"]
    for wrong, words in (("arm/setpoint", "is not a socket"), (path + "x", "no process has")):
        failed = subprocess.run([*command[:-1], wrong], capture_output=True, text=True, check=False, timeout=120)
        assert failed.returncode != 0 and words in " ".join(failed.stderr.split())
