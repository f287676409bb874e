"""Measure `rtloop top`: the CPU time that it uses at its default rate, and the time to its first screen.

    python benchmarks/top.py [--loops 256] [--pairs 5] [--seconds 10] [--json FILE]

A quarter of the loops runs in each of four processes, with ordinary priority, ten times a second. `rtloop top` runs in
a terminal of 160 by 50 characters, whose output is read and discarded. The CPU time is that of the whole process
between two moments after the first screen, by the kernel's accounting (/proc/PID/stat, proc_pid_stat(5)). Beside it, if
it is installed, `top -H` of procps, which reads the threads of all processes.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import claim, exit_code, parser, positive, print_claims, run_script, say, write_json

PROCESSES = 4
SHARE_TARGET = 10.0
LIMIT_S = 60.0
LOOPS = """
import sys
from rtloop import RTLoop
loops = [RTLoop("100ms", name=f"watched {number}", policy="other", lock_memory="off", dma_latency=None, record=64)
         for number in range(int(sys.argv[1]))]
for loop in loops:
    loop.start()
print("running", flush=True)
sys.stdin.read()
for loop in loops:
    loop.stop()
"""


@contextmanager
def watched(count: int) -> Iterator[None]:
    """Run that many loops in a few processes."""
    processes = []
    try:
        for number in range(PROCESSES):
            share = (count + number) // PROCESSES
            command = [sys.executable, "-P", "-c", LOOPS, str(share)]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in processes:
            if process.stdout is None or process.stdout.readline() != "running\n":
                sys.exit("the loops did not start")
        yield
    finally:
        for process in processes:
            process.communicate()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, s."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Screen:
    """A program in a terminal.

    Parameters
    ----------
    command : list of str
        The program.
    sign : str
        Text that its first complete screen has.
    """

    def __init__(self, command: list[str], sign: str) -> None:
        self._sign = sign.encode()
        self._begin = time.perf_counter()
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 50, 160, 0, 0))
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
            os.execvp(command[0], command)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("4H", 50, 160, 0, 0))

    def wait(self) -> float:
        """Return the seconds until its first screen is complete."""
        seen = b""
        while self._sign not in seen:
            if time.perf_counter() - self._begin > LIMIT_S:
                sys.exit(f"no {self._sign.decode()} on the screen in {LIMIT_S:.0f} s")
            seen += self._read(0.1)
        return time.perf_counter() - self._begin

    def use(self, seconds: float) -> float:
        """Return the share of a CPU that it uses for a time, in per cent."""
        begin, before = time.perf_counter(), cpu_s(self.pid)
        while (passed := time.perf_counter() - begin) < seconds:
            self._read(seconds - passed)
        return 100 * (cpu_s(self.pid) - before) / passed

    def _read(self, timeout: float) -> bytes:
        if not select.select([self._terminal], [], [], timeout)[0]:
            return b""
        try:
            return os.read(self._terminal, 1 << 16)
        except OSError:  # the program has ended
            return b""

    def close(self) -> None:
        """End the program."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._terminal)


def look(command: list[str], sign: str, seconds: float) -> tuple[float, float]:
    """Return the seconds to the first screen of a program, and the share of a CPU that it uses from then on."""
    screen = Screen(command, sign)
    try:
        first = screen.wait()
        screen.use(2.0)  # it sees each loop for the first time
        return first, screen.use(seconds)
    finally:
        screen.close()


def main() -> int:
    options = parser(__doc__ or "", pairs=5, seconds=10.0, of="time for which the CPU time is counted")
    options.add_argument("--loops", type=positive, default=256, metavar="N", help="number of loops (256)")
    arguments = options.parse_args()
    ours, peers = [], []
    peer = shutil.which("top")
    with watched(arguments.loops):
        for number in range(arguments.pairs):
            say(f"pair {number + 1} of {arguments.pairs}")
            ours.append(look([sys.executable, "-P", "-m", "rtloop", "top"], "watched 0", arguments.seconds))
            if peer is not None:
                peers.append(look([peer, "-H", "-d", "1"], "COMMAND", arguments.seconds))
    say("")
    firsts, shares = zip(*ours, strict=True)
    claims = [
        claim(f"a refresh each second, {arguments.loops} loops", "% CPU", shares, target=SHARE_TARGET),
        claim("start to the first screen", "s", firsts),
    ]
    if peers:
        claims.append(claim("top -H, a refresh each second", "% CPU", [share for _, share in peers]))
    print_claims(f"rtloop top, median of {arguments.pairs}", claims)
    write_json(arguments.json, benchmark="top", options=vars(arguments), ours=ours, peers=peers, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)
