"""``rtloop setup-privileges``: give users or a service the privileges of a loop, and revert it."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from rtloop.tools.options import as_json_option

if TYPE_CHECKING:
    from rtloop.machine.privileges import Change

__all__ = ["setup_privileges"]


@click.command("setup-privileges")
@click.option("--user", "users", metavar="NAME", multiple=True, help="Add this user to the group. May be repeated. "
              "By default the user who runs the command, even through sudo.")  # fmt: skip
@click.option("--group", metavar="NAME", default="realtime", show_default=True,
              help="The group that gets the privileges; it is created if it is missing.")  # fmt: skip
@click.option("--unit", metavar="NAME.service", default="",
              help="Set up a systemd service instead; user@.service for desktop terminals.")  # fmt: skip
@click.option("--container", is_flag=True, help="Print the flags for a container, and change nothing.")
@click.option("--priority", type=click.IntRange(1, 98), default=95, show_default=True,
              help="The highest real-time priority to allow.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the changes as shell commands, and change nothing.")
@click.option("--undo", "is_undo", is_flag=True, help="Revert everything that this command has changed.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--root", metavar="DIR", default="", envvar="RTLOOP_ROOT", hidden=True,
              help="Folder that contains /etc and so on, instead of this machine.")  # fmt: skip
@as_json_option("with the changes and their states")
def setup_privileges(
    users: tuple[str, ...], group: str, unit: str, container: bool, priority: int, dry_run: bool, is_undo: bool,
    yes: bool, root: str, as_json: bool,
) -> int:  # fmt: skip
    """Give users or a service the privileges of a loop.

    Members of the group may use real-time priorities, lock memory without a limit, and open /dev/cpu_dma_latency. The
    command shows what it will change, and asks for confirmation. Users get the privileges when they log in again.

    The command changes the group, /etc/security/limits.d/99-rtloop-GROUP.conf and a udev rule; with --unit, a drop-in
    of the service. /var/lib/rtloop/privileges.json records the former state, for --undo.

    Exit code: 0 all is as requested, 1 something was refused or left alone, 2 the command line is wrong.
    """
    from rtloop.machine.privileges import (
        Request,
        container_flags,
        find_obstacle,
        make_commands,
        make_plan,
        perform,
        undo,
    )

    root = root.rstrip("/")
    if container:
        flags = container_flags(priority)
        if as_json:
            click.echo(json.dumps({"command": "setup-privileges", "container": flags}, indent=1))
        else:
            click.echo(f"docker:     docker run {flags['docker']} ...   # or podman run")
            click.echo(f"kubernetes: {flags['kubernetes']}")
        return 0
    if is_undo:
        changes = undo(root, is_dry=True)
        if dry_run or not any(change.state == "to do" for change in changes):
            return _show(changes, as_json, "nothing to undo")
        _require_root(root, "--undo")
        if not yes and not _ask(changes, as_json, "Undo this?"):
            return 1
        return _show(undo(root), as_json, "")
    if not root and (obstacle := find_obstacle()):
        click.echo(f"warning: {obstacle}", err=True)
    who = () if unit else users or ((_caller(),) if _caller() not in ("", "root") else ())
    changes = make_plan(Request(who, group, unit, priority), root)
    if not who and not unit:
        click.echo(f"warning: nobody is added to the group {group}; fix: --user NAME", err=True)
    if dry_run and not as_json:
        commands = make_commands(changes, root)
        click.echo("\n".join(commands) if commands else "nothing to change")
        return 0
    if dry_run or not any(change.state == "to do" for change in changes):
        return _show(changes, as_json, "nothing to change")
    _require_root(root, "")
    if not yes and not _ask(changes, as_json, "Change this?"):
        return 1
    code = _show(perform(changes, root), as_json, "")
    if not as_json:
        if unit:
            click.echo(f"now:   sudo systemctl restart {unit}   # then check its grants, or run rtloop doctor in it")
        else:
            names = ", ".join(who) or f"members of the group {group}"
            click.echo(f"{names}: log out of all sessions and in again, then run: rtloop doctor")
            if not root and not os.path.exists("/run/udev"):
                click.echo("/dev/cpu_dma_latency keeps its group until udev runs, which it does not here")
    return code


def _caller() -> str:
    """Return the user who runs the command, also through sudo; empty if the user has no name."""
    if name := os.environ.get("SUDO_USER"):
        return name
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def _require_root(root: str, option: str) -> None:
    if not root and os.geteuid():
        command = " ".join(["sudo $(which rtloop) setup-privileges", option]).strip()
        raise click.ClickException(f"only root may change this: {command}; --dry-run shows the changes without root")


def _ask(changes: list[Change], as_json: bool, question: str) -> bool:
    _show(changes, False, "", is_err=as_json)
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for confirmation; fix: --yes")
    return click.confirm(question, err=as_json)


def _show(changes: list[Change], as_json: bool, nothing: str, *, is_err: bool = False) -> int:
    """Print the changes; return 1 if one has failed or was left alone."""
    code = int(any(change.state in ("failed", "left alone") for change in changes))
    if as_json:
        document = {"command": "setup-privileges", "changes": [change.to_dict() for change in changes]}
        click.echo(json.dumps(document, indent=1), err=is_err)
        return code
    for change in changes:
        what = {
            "group": f"group {change.target}",
            "member": f"{change.after} in group {change.target}",
            "file": change.target,
        }[change.kind]
        click.echo(f"{change.state:10}  {what}" + (f": {change.why}" if change.why else ""), err=is_err)
        if change.kind == "file" and change.state == "to do":
            for line in change.after.splitlines()[1:]:
                click.echo(f"                {line}", err=is_err)
    if nothing and not any(change.state == "to do" for change in changes):
        click.echo(nothing, err=is_err)
    return code
