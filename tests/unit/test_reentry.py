"""Calls that a signal handler, a finalizer or an audit hook may make, wherever it has interrupted rtloop."""

from __future__ import annotations

import socket
import subprocess
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rtloop.sharing import exchange_server

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PROLOGUE = """
import faulthandler, gc, os, signal, sys, threading, time, warnings
import rtloop, probes
faulthandler.dump_traceback_later(40, exit=True)
warnings.simplefilter("ignore")
def make(**settings):
    return probes.Probe("1ms", **{"policy": "other", "lock_memory": "own", "dma_latency": None, **settings})
"""


def dedent(code: str) -> str:
    lines = code.splitlines()
    return PROLOGUE + "\n".join(line[4:] if line.startswith("    ") else line for line in lines)


#: Operations in which a collection of garbage may run a finalizer that stops a loop, and the thread that is in them.
OPERATIONS = {
    "signals": ("with rtloop.stop_on_signals(): pass", "main"),
    "a simulation": ("make().simulate(cycles=3)", "main"),
    "a ring": ("rtloop.Ring('f8', 64)", "another"),
}


@pytest.mark.parametrize(("operation", "thread"), OPERATIONS.values(), ids=OPERATIONS)
def test_a_finalizer_may_stop_a_loop_at_any_collection_of_garbage(script: Script, operation: str, thread: str) -> None:
    """A finalizer stops a loop at the first, the second, ... collection of the operation, until it has no more."""
    done = script(dedent(f"""
    loop = make()
    loop.run(cycles=2)
    seen = 0
    def collect(phase, info):
        global seen
        seen += phase == "start"
        if phase == "start" and seen == wanted:
            loop.stop()
    def operate():
        {operation}
    operate()
    for wanted in range(1, 80):
        loop.start()
        gc.collect()
        gc.callbacks.append(collect)
        seen = 0
        gc.set_threshold(1)
        if {thread == "main"}:
            operate()
        else:
            one = threading.Thread(target=operate)
            one.start(); one.join()
        gc.set_threshold(700)
        gc.callbacks.remove(collect)
        loop.stop()
        assert loop.state == "stopped"
        if seen < wanted:
            break
    print(loop.state, wanted > 1)
    """), timeout=60)  # fmt: skip
    if sysconfig.get_config_var("Py_GIL_DISABLED") and done.stdout == "stopped False\n":
        pytest.skip("a free-threaded Python collects garbage after many more allocations, here not at all")
    assert done.stdout == "stopped True\n", done.stdout + done.stderr


#: Locks of memory that another thread than the main one holds while a finalizer runs on it, and a call that needs each.
HELD = {
    "locks": ("rtloop.memory.process_lock", "memory_lock._lock", "loop.stop()"),
    "limits": ("rtloop.memory.limits", "memlock_limit._lock", "loop.stop()"),
    "ranges": ("rtloop.memory.locking", "_registry", "(rtloop.memory.lock(data), rtloop.memory.unlock(data))"),
}


@pytest.mark.parametrize(("module", "lock", "call"), HELD.values(), ids=HELD)
def test_the_keeper_locks_memory_for_whoever_holds_that_lock(script: Script, module: str, lock: str, call: str) -> None:
    done = script(dedent(f"""
    import {module} as module
    from rtloop.process.signal_shield import shielded
    loop, data = make(cpu=None), bytearray(4096)
    loop.start()
    with module.{lock}:
        shielded(lambda: {call})
    loop.stop()
    print(loop.state)
    """), timeout=60)  # fmt: skip
    assert done.stdout == "stopped\n", done.stdout + done.stderr


def test_a_thread_may_be_started_in_the_middle_of_the_start_of_another(script: Script) -> None:
    """As by an audit hook, which is Python code in the middle of a start, or by the keeper while it waits for that."""
    done = script(dedent("""
    import _thread
    from rtloop.process.helper_thread import HelperThread
    from rtloop.process.signal_shield import shielded
    starts, sizes, start_new_thread = [], [], _thread.start_new_thread
    def start(): return HelperThread(lambda: starts.append(1), "rtloop-test", 1 << 18).join(20)
    def interrupted(*arguments):
        if not sizes:
            sizes.append(threading.stack_size())
            start()
            shielded(start)
        return start_new_thread(*arguments)
    shielded(int)
    _thread.start_new_thread = interrupted
    start()
    print(starts, sizes, threading.stack_size())
    """), timeout=60)  # fmt: skip
    assert done.stdout == "[1, 1, 1] [262144] 0\n", done.stdout + done.stderr


def test_a_signal_takes_effect_though_the_first_block_was_entered_in_a_finalizer(script: Script) -> None:
    done = script(dedent("""
    from rtloop.process.signal_shield import shielded
    class Node:
        def __del__(self):
            with rtloop.stop_on_signals(): os.write(1, b"entered ")
    def collect():
        node = Node(); node.me = node
        del node
        gc.collect()
    shielded(collect)
    with rtloop.stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    """), timeout=60)  # fmt: skip
    assert (done.returncode, done.stdout) == (-15, "entered "), done.stderr


class Listener:
    """Stands for the listener of an exchange: its file is one end of a pair of sockets."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.is_answered = threading.Event()

    def fileno(self) -> int:
        return self.ours.fileno()

    def answer(self) -> None:
        self.ours.recv(1)
        self.is_answered.set()


@pytest.mark.parametrize("fault", ["", "interrupted"])
def test_a_signal_handler_may_share_an_exchange_while_another_one_is_shared(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    server: Any = exchange_server._Server()
    listeners = [Listener() for _ in range(3)]
    start, starts = exchange_server.start_helper, [0]

    def interrupted(*arguments: Any) -> None:  # as by a handler
        starts[0] += 1
        if starts[0] == 1:
            server.add(listeners[1])
            if fault:
                raise InterruptedError
        start(*arguments)

    monkeypatch.setattr(exchange_server, "start_helper", interrupted)
    try:
        server.add(listeners[0])
    except InterruptedError:
        server.add(listeners[0])
    server.add(listeners[2])
    for one in listeners:
        one.theirs.send(b"x")
        assert one.is_answered.wait(20)
    assert starts[0] == (2 if fault else 1)
    for one in listeners:
        server.remove(one)
        one.ours.close()
        one.theirs.close()
