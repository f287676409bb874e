"""The ``rtloop`` command: finds its subcommands, loads the one that is called, and turns errors into exit codes.

Exit codes: 0 all went well, 1 an error, 2 a wrong command line, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

__all__ = ["COMMANDS", "SUMMARIES", "main"]

# name -> module; the command is the module's attribute of the same name, with _ for -. Imported only when needed.
COMMANDS = {
    "demo": "rtloop.tools.demo.command",
    "doctor": "rtloop.tools.doctor",
    "latency": "rtloop.tools.latency.command",
    "isolate": "rtloop.tools.isolate.command",
    "setup-privileges": "rtloop.tools.setup_privileges",
    "new": "rtloop.tools.new.command",
    "run": "rtloop.tools.run.command",
    "analyze": "rtloop.tools.analyze",
    "top": "rtloop.tools.top.command",
    "get": "rtloop.tools.parameters",
    "set": "rtloop.tools.parameters",
    "exchanges": "rtloop.tools.exchanges",
    "record": "rtloop.tools.record.command",
    "scope": "rtloop.tools.scope.command",
    "report": "rtloop.tools.report.command",
    "plot": "rtloop.tools.plot",
    "export": "rtloop.tools.export.command",
    "lint": "rtloop.tools.lint.command",
}

# The first paragraph of each command's help, so that `rtloop --help` need not import the commands.
SUMMARIES = {
    "demo": "Keep a pole upright next to a busy Python thread.",
    "doctor": "Report what hinders real time here, with its fixes.",
    "latency": "Measure the wake-up latency of an empty loop.",
    "isolate": "Run PROGRAM on isolated CPUs, without a reboot.",
    "setup-privileges": "Give users or a service the privileges of a loop.",
    "new": "Make a project in the new folder NAME.",
    "run": "Run a step as a real-time loop, compiled if need be.",
    "analyze": "Check whether several loops always meet their deadlines.",
    "top": "Show all running loops, live.",
    "get": "Show the parameters and signals of a running loop.",
    "set": "Set parameters of a running loop, all before one step.",
    "exchanges": "Show the exchanges that processes share.",
    "record": "Record the signals of a running loop.",
    "scope": "Show signals of running loops in the browser.",
    "report": "Make an HTML page from saved stats.",
    "plot": "Draw saved stats.",
    "export": "Write saved stats in the format of another tool.",
    "lint": "Examine loops before they run: no GIL, heap or waiting.",
}

_EXTRAS = {"click": "cli", "rich": "cli", "matplotlib": "plot", "textual": "top", "hdrh": "export", "Cython": "build",
           "zenoh": "zenoh", "mcap": "mcap", "bokeh": "scope", "tornado": "scope",
           "foxglove": "foxglove"}  # fmt: skip


def make_group() -> click.Group:
    """Return the ``rtloop`` command group."""
    import click

    from rtloop import __version__

    class LazyGroup(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in COMMANDS:
                return None
            command: click.Command = getattr(import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
            return command

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            width = formatter.width - 6 - max(map(len, SUMMARIES))
            with formatter.section("Commands"):
                formatter.write_dl(
                    [
                        (name, click.Command(name, help=text).get_short_help_str(width))
                        for name, text in SUMMARIES.items()
                    ]
                )

    @click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(__version__, prog_name="rtloop", message="%(prog)s %(version)s")
    def rtloop() -> None:
        """Hard real-time periodic loops on Linux, from Python."""

    return rtloop


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        sys.exit(_run(args))
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        sys.exit(f"rtloop: {error.name} is not installed; pip install 'rtloop[{extra}]'")


def _run(args: list[str] | None) -> int:
    import click

    from rtloop.errors import RtloopError
    from rtloop.tools.interruption import exit_code

    for name in ("stdout", "stderr"):  # None if the descriptor was closed when Python started, as in some daemons
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without µ gets a ?, not a traceback after the run
    try:
        code: Any = make_group().main(args=args, prog_name="rtloop", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        print("rtloop: interrupted", file=sys.stderr)
        # If the interrupt came into a string that was executed, as dataclasses do, python -m ends by SIGINT, unless a
        # later one was not interrupted.
        exec("")
        return exit_code(error if isinstance(error, KeyboardInterrupt) else error.__cause__)
    except (RtloopError, OSError) as error:  # OSError: a file or an output that cannot be written
        print(f"rtloop: {error}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0
