"""``rtloop isolate``: run a program on isolated CPUs, and undo everything at its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from rtloop.errors import RtloopError
from rtloop.machine.isolation.isolation import Isolation, missing_rights, stale_journals, undo
from rtloop.machine.isolation.kernel import Kernel
from rtloop.tools.options import as_json_option

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

__all__ = ["isolate"]

#: Signals that are passed on to the program; one from the terminal has reached it already.
_PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_SI_KERNEL = 0x80
#: Longest time between two checks for the program's end, in case SIGCHLD is lost.
_LOOK_S = 5.0


def complete_device(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a network device."""
    return [name for name in Kernel().names("/sys/class/net") if name.startswith(incomplete)]


def complete_cpus(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the number of a CPU; the last first, because CPU 0 has work that cannot be moved."""
    cpus = Kernel().cpus("/sys/devices/system/cpu/online")
    return [str(cpu) for cpu in reversed(cpus) if str(cpu).startswith(incomplete)]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--cpus", metavar="LIST", shell_complete=complete_cpus, help="The CPUs to isolate: 3, or 2-3, or 1,3.")
@click.option("--device", "devices", metavar="NAME", multiple=True, shell_complete=complete_device,
              help="Make the interrupt and NAPI threads of a network device, or of the interrupt with this name, "
              "SCHED_FIFO threads. May be repeated.")  # fmt: skip
@click.option("--device-priority", type=click.IntRange(1, 99), default=60, show_default=True,
              help="Priority for --device.")  # fmt: skip
@click.option("--idle-latency", "idle_latency_us", metavar="US", type=click.IntRange(0), default=10, show_default=True,
              help="Disable idle states of these CPUs that take more than US microseconds to leave.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the commands that do the same, and change nothing.")
@click.option("--undo", "is_undo", is_flag=True, help="Undo isolations whose processes were all killed.")
@as_json_option("instead of the table; with a program, on stderr")
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
def isolate(
    cpus: str | None, devices: tuple[str, ...], device_priority: int, idle_latency_us: int, dry_run: bool,
    is_undo: bool, as_json: bool, program: tuple[str, ...],
) -> int:  # fmt: skip
    """Run PROGRAM on isolated CPUs, without a reboot.

    It undoes everything at the program's end. It makes an isolated partition of these CPUs (cpuset of control
    groups, version 2; two cpusets where there is only version 1), moves unbound kernel work, interrupts and threads
    to the other CPUs, sets the governor, and disables deep idle states. The table shows each value that was asked
    for, the one before, and the one read back.

    All of it is undone when PROGRAM ends, and also if this command is killed: a process outside notices, ends PROGRAM
    with SIGTERM, and restores the settings. If that process is killed as well, --undo restores them from a journal in
    /run. A setting that somebody else has changed meanwhile is left alone and listed. It needs root.

    \b
    sudo rtloop isolate --cpus 3 -- python main.py
    sudo rtloop isolate --cpus 3 --device eth0 -- rtloop run main.py:Controller
    rtloop isolate --cpus 2-3 --dry-run -- python main.py       the commands, to read or to type
    sudo rtloop isolate --undo                                  after everything was killed

    Exit code: PROGRAM's, or 128 plus the number of the signal that ended it; 1 if the CPUs cannot be isolated, and then
    PROGRAM is not run.
    """  # noqa: D301 - the backslash is for click
    from rich.console import Console

    if is_undo:
        if cpus or program:
            raise click.UsageError("--undo takes neither --cpus nor a program")
        return _undo(Console(), as_json)
    if not cpus:
        raise click.UsageError("name the CPUs to isolate: --cpus 3; rtloop doctor shows this machine's")
    if not program and not dry_run:
        raise click.UsageError("name the program to run: rtloop isolate --cpus 3 -- python main.py")
    isolation = Isolation(cpus, devices=devices, device_priority=device_priority, idle_latency_us=idle_latency_us)
    if dry_run:
        return _dry_run(isolation, program, as_json)
    _report_stale(isolation.kernel)
    if missing := missing_rights(isolation.kernel):
        for text in missing:
            print(f"rtloop: missing: {text}", file=sys.stderr)
        print("rtloop: nothing was changed; --dry-run shows the commands", file=sys.stderr)
        return 1
    return _run(Console(stderr=True), isolation, program, as_json)


def _report_stale(kernel: Kernel) -> None:
    for journal in stale_journals(kernel):
        print(f"rtloop: CPU {journal.cpus} is still isolated by a run whose processes were all killed; "
              "restore it with: sudo $(which rtloop) isolate --undo", file=sys.stderr)  # fmt: skip


def _dry_run(isolation: Isolation, program: tuple[str, ...], as_json: bool) -> int:
    if as_json:
        isolation.steps = isolation.plan()
        click.echo(json.dumps(isolation.to_dict(), indent=1))
        return 0
    _print_script(isolation, program or ("python", "main.py"))
    for text in missing_rights(isolation.kernel):
        print(f"rtloop: missing: {text}", file=sys.stderr)
    return 0


def _print_script(isolation: Isolation, program: tuple[str, ...]) -> None:
    from rtloop.tools.isolate.show import make_script

    click.echo(make_script(isolation, program, isolation.plan()))


def _undo(console: Console, as_json: bool) -> int:
    from rtloop.tools.isolate.show import print_restored

    found = undo(Kernel())
    if as_json:
        click.echo(json.dumps({cpus: [dict(vars(result)) for result in results] for cpus, results in found.items()}))
    elif not found:
        console.print("no isolation was left behind")
    else:
        for cpus, results in found.items():
            console.print(f"CPU {cpus}:", highlight=False)
            print_restored(console, results)
    return int(any(result.verdict == "refused" for results in found.values() for result in results))


def _run(console: Console, isolation: Isolation, program: tuple[str, ...], as_json: bool) -> int:
    from rtloop.tools.isolate.show import print_restored, print_table

    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    handlers = {number: signal.getsignal(number) for number in _PASSED}
    try:
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:  # as under nohup(1)
                signal.signal(number, note)
        isolation.begin()
        if as_json:
            console.file.write(json.dumps(isolation.to_dict()) + "\n")
            console.file.flush()
        else:
            print_table(console, isolation)
        code = 128 + noted[0] if noted else _wait(isolation, program, noted)
    finally:
        restored = isolation.end()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if not as_json:
        print_restored(console, restored)
    else:
        console.file.write(json.dumps({"restored": [dict(vars(result)) for result in restored]}) + "\n")
    return code


def _wait(isolation: Isolation, program: tuple[str, ...], noted: list[int]) -> int:
    """Run the program inside, pass signals on to it, and return its exit code as a shell would."""
    from rtloop.tools.isolate.show import enter_command

    try:
        process = subprocess.Popen(enter_command(isolation, program))
    except OSError as error:
        raise RtloopError(f"{program[0]} cannot be run: {error.strerror}") from error
    isolation.watch_program(process.pid)
    waited = {*_PASSED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        for number in noted:
            process.send_signal(number)
        while process.poll() is None:
            info: Any = signal.sigtimedwait(waited, _LOOK_S)
            if info is not None and info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
                process.send_signal(info.si_signo)
            isolation.keep()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waited)
    code = process.returncode
    return 128 - code if code < 0 else code
