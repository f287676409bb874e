"""The other sides of exchanges: another process, which does as it is told, and threads that create one at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from rtloop import StateError

#: Evaluates one line of Python after the other, and answers with JSON.
_SERVER = """
import json, os, signal, sys, time, numpy, rtloop
for line in sys.stdin:
    code, names = json.loads(line), globals()
    try:
        answer = eval(code, names) if not code.startswith("!") else exec(code[1:], names)
        answer = answer.item() if isinstance(answer, numpy.generic) else answer
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer, default=str), flush=True)
"""


class Peer:
    """Another process; a prefix of its command makes it one of another user, or of a container."""

    def __init__(self, *prefix: str) -> None:
        command = [*prefix, sys.executable, "-P", "-W", "ignore", "-c", _SERVER]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd="/" if prefix else None)
        self.pid = self.process.pid

    def ask(self, code: str) -> None:
        """Send an expression, or with a ! before it a statement."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for its value."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def do(self, code: str) -> Any:
        """Evaluate an expression there, or with a ! before it execute a statement."""
        self.ask(code)
        return self.answer()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self._reap()

    def finish(self) -> None:
        """Let it end as a program does."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._reap()

    def _reap(self) -> None:
        self.process.wait(60)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def create_at_once(create: Callable[[], object], count: int = 6) -> tuple[list[object], list[str]]:
    """Create an exchange by several threads at once; return what was created, and the reasons of the refusals."""
    made: list[object] = []
    refused: list[str] = []
    barrier = threading.Barrier(count)

    def work() -> None:
        barrier.wait()
        try:
            made.append(create())
        except StateError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made, refused
