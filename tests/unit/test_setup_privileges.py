"""``rtloop setup-privileges`` in a folder that looks like a machine's root: made, repeated, and taken back."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rtloop.errors import ConfigError, SetupError
from rtloop.machine import privileges
from rtloop.machine.doctor.checks.session import granted_by_pam
from rtloop.machine.privileges import Request, find_obstacle, make_commands, make_plan, perform, undo

LIMITS = "etc/security/limits.d/99-rtloop-realtime.conf"
RULE = "etc/udev/rules.d/99-rtloop-privileges.rules"
JOURNAL = "var/lib/rtloop/privileges.json"

pytestmark = pytest.mark.skipif(not shutil.which("groupadd", path="/usr/sbin:/sbin"), reason="no shadow utilities here")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with the users ada and bob; ada is in the group video."""
    for name, text in {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n"
        "bob:x:1001:1001::/home/bob:/bin/sh\n",
        "etc/group": "root:x:0:\nada:x:1000:\nbob:x:1001:\nvideo:x:44:ada\n",
        "etc/shadow": "", "etc/gshadow": "", "etc/security/limits.conf": "",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def no_commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Do what groupadd, usermod and groupdel do without them, because they need root; return what was called."""
    called: list[list[str]] = []

    def run(command: list[str]) -> None:
        called.append(command)
        file = Path(command[2], "etc/group")
        groups = dict(line.rsplit(":", 1) for line in file.read_text().splitlines())
        key = next((key for key in groups if key.split(":")[0] == command[-2].split(",")[-1]), "")
        if command[0] == "groupadd":
            groups[f"{command[-1]}:x:999"] = ""
        elif command[0] == "groupdel":
            groups = {key: users for key, users in groups.items() if key.split(":")[0] != command[-1]}
        elif "--append" in command:
            groups[key] = ",".join([*filter(None, groups[key].split(",")), command[-1]])
        else:
            wanted = command[-2].split(",")
            for key, text in groups.items():
                users = [user for user in text.split(",") if user and user != command[-1]]
                groups[key] = ",".join([*users, command[-1]] if key.split(":")[0] in wanted else users)
        file.write_text("".join(f"{key}:{users}\n" for key, users in groups.items()))

    monkeypatch.setattr(privileges, "_run", run)
    return called


def tree(root: Path) -> dict[str, str]:
    return {str(x.relative_to(root)): x.read_text() if x.is_file() else "" for x in root.rglob("*")
            if not x.name.endswith("-") and "var" not in x.relative_to(root).parts}  # fmt: skip


def states(changes: list[Any]) -> list[str]:
    return [change.state for change in changes]


def set_up(root: Path, *users: str, **request: Any) -> list[Any]:
    return perform(make_plan(Request(users, **request), str(root)), str(root))


def test_what_is_made_is_what_pam_grants(root: Path, no_commands: list[list[str]]) -> None:
    before = tree(root)
    assert states(set_up(root, "ada")) == ["done"] * 4
    files = {f"/{LIMITS}": (root / LIMITS).read_text()}
    assert granted_by_pam(files, "rtprio", "ada", {"realtime"}) == (95, f"/{LIMITS}")
    assert granted_by_pam(files, "memlock", "ada", {"realtime"})
    assert granted_by_pam(files, "rtprio", "bob", {"bob"}) is None
    assert 'GROUP="realtime", MODE="0660"' in (root / RULE).read_text()
    assert (root / LIMITS).stat().st_mode & 0o777 == 0o644
    assert "realtime:x:999:ada" in (root / "etc/group").read_text()
    assert states(undo(str(root))) == ["undone"] * 4
    assert tree(root) == before, "the undo restores everything, the folders too"
    assert not (root / JOURNAL).exists() and undo(str(root)) == []


def test_a_second_call_changes_nothing(root: Path, no_commands: list[list[str]]) -> None:
    set_up(root, "ada")
    before, count = tree(root), len(no_commands)
    assert states(set_up(root, "ada")) == ["already"] * 4
    assert tree(root) == before and len(no_commands) == count
    assert states(set_up(root, "ada", "bob")) == ["already", "already", "done", "already", "already"]
    assert "realtime:x:999:ada,bob" in (root / "etc/group").read_text()
    undo(str(root))
    assert "realtime" not in (root / "etc/group").read_text()
    assert "video:x:44:ada" in (root / "etc/group").read_text(), "the other groups of a user stay"


def test_what_was_there_before_stays(root: Path, no_commands: list[list[str]]) -> None:
    """A group with a member, and a file with other limits: neither is lost by the undo."""
    (root / "etc/group").write_text((root / "etc/group").read_text() + "realtime:x:990:bob\n")
    (root / LIMITS).parent.mkdir(parents=True)
    (root / LIMITS).write_text("@realtime - rtprio 10\n")
    before = tree(root)
    assert states(set_up(root, "ada", "bob")) == ["already", "done", "already", "done", "done"]
    set_up(root, "ada", priority=80)  # the same file once more
    undo(str(root))
    assert tree(root) == before


def test_what_somebody_has_changed_since_is_left_alone(root: Path, no_commands: list[list[str]]) -> None:
    set_up(root, "ada")
    (root / LIMITS).write_text("@realtime - rtprio 50\n")
    (root / "etc/group").write_text((root / "etc/group").read_text().replace("999:ada", "999:ada,bob"))
    found = {change.kind + change.target: change for change in undo(str(root))}
    assert found[f"file/{LIMITS}"].why == "somebody has changed it since"
    assert found["grouprealtime"].why == "the group has other members: bob"
    assert found["memberrealtime"].state == "undone" and not (root / RULE).exists()
    assert (root / LIMITS).read_text() == "@realtime - rtprio 50\n"
    kept = json.loads((root / JOURNAL).read_text())["changes"]
    assert [entry["kind"] for entry in kept] == ["group", "file"], "they stay in the journal"


def test_each_edit_by_somebody_else_stays(root: Path, no_commands: list[list[str]]) -> None:
    """One after two changes of a file, and one between them that the second change has replaced."""
    file = root / "etc/systemd/system/robot.service.d/rtloop.conf"
    for edited_first in (False, True):
        set_up(root, unit="robot.service", priority=90)
        if edited_first:
            file.write_bytes(b"# mine \xe9\r\n")
        set_up(root, unit="robot.service", priority=80)
        if not edited_first:
            file.write_bytes(b"# mine \xe9\r\n")
        planned, done = undo(str(root), is_dry=True), undo(str(root))
        assert [change.state for change in done] == (["undone", "left alone"] if edited_first else ["left alone"] * 2)
        assert [change.why for change in planned] == [change.why for change in done]
        assert file.read_bytes() == b"# mine \xe9\r\n", "every byte of it"
        (root / JOURNAL).unlink()
        file.unlink()


def test_what_has_changed_since_it_was_shown_is_not_replaced(root: Path, no_commands: list[list[str]]) -> None:
    before = tree(root)
    plan = make_plan(Request(("ada",)), str(root))
    (root / "etc/group").write_text((root / "etc/group").read_text() + "realtime:x:990:ada\n")
    (root / LIMITS).parent.mkdir(parents=True)
    (root / LIMITS).write_text("@realtime - rtprio 10\n")
    with pytest.raises(SetupError, match=r"realtime\.conf has been changed meanwhile"):
        perform(plan, str(root))
    assert no_commands == [] and undo(str(root)) == [], "the group and its member were made by somebody else"
    assert (root / LIMITS).read_text() == "@realtime - rtprio 10\n"
    shutil.rmtree(root / "etc/security/limits.d")
    assert states(perform(plan, str(root))) == ["already", "already", "done", "done"]
    undo(str(root))
    assert tree(root) == before | {"etc/group": before["etc/group"] + "realtime:x:990:ada\n"}


def test_a_group_that_could_not_be_made_is_not_removed_by_the_undo(
    root: Path, no_commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = privileges._run

    def refuse(command: list[str]) -> None:
        make(command)  # by somebody else, at the same time
        raise subprocess.CalledProcessError(9, command, stderr="group 'realtime' already exists")

    with monkeypatch.context() as patch, pytest.raises(SetupError, match="already exists"):
        patch.setattr(privileges, "_run", refuse)
        set_up(root, "ada")
    assert undo(str(root)) == []
    assert "realtime:x:" in (root / "etc/group").read_text()


def test_calls_at_the_same_time_wait_for_each_other(root: Path, no_commands: list[list[str]],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    before = tree(root)
    store, together = privileges._store, threading.Barrier(2)

    def wait(where: str, journal: list[dict[str, Any]]) -> None:
        with suppress(threading.BrokenBarrierError):
            together.wait(0.05)  # for a call that has read the same journal
        store(where, journal)

    monkeypatch.setattr(privileges, "_store", wait)
    units = [threading.Thread(target=set_up, args=(root,), kwargs={"unit": f"{name}.service"}) for name in "ab"]
    for thread in units:
        thread.start()
    for thread in units:
        thread.join(60)
    assert len(json.loads((root / JOURNAL).read_text())["changes"]) == 2
    assert states(undo(str(root))) == ["undone"] * 2
    assert tree(root) == before and not (root / JOURNAL).parent.exists()


def test_an_undo_that_was_killed_is_continued(root: Path, no_commands: list[list[str]],
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    before = tree(root)
    for priority in (90, 80):
        set_up(root, unit="robot.service", priority=priority)
    set_up(root, "ada")
    take_back, left = privileges._take_back, [4]

    def stop(*arguments: Any) -> None:
        take_back(*arguments)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(privileges, "_take_back", stop)
        undo(str(root))
    assert states(undo(str(root))) == ["undone"] * 3, "the one that was interrupted, and the rest"
    assert tree(root) == before


def test_names_and_links_of_real_machines(root: Path, no_commands: list[list[str]]) -> None:
    (root / "etc/passwd").write_text((root / "etc/passwd").read_text() + "Ada.King:x:1002:1002::/:/bin/sh\n")
    assert states(set_up(root, "Ada.King")) == ["done"] * 4
    (root / LIMITS).unlink()
    (root / LIMITS).symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="is a symbolic link to /etc/passwd"):
        set_up(root, "ada")


def test_a_change_that_fails_can_be_taken_back(root: Path, no_commands: list[list[str]],
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    before = tree(root)
    write = privileges._write

    def fail(path: str, text: str) -> None:
        if path.endswith(".rules"):
            raise PermissionError(13, "Permission denied")
        write(path, text)

    monkeypatch.setattr(privileges, "_write", fail)
    with pytest.raises(SetupError, match=r"99-rtloop-privileges\.rules: .*--undo reverts"):
        set_up(root, "ada")
    assert states(undo(str(root))) == ["undone"] * 4
    assert tree(root) == before


def test_a_service_gets_a_drop_in(root: Path, no_commands: list[list[str]]) -> None:
    before = tree(root)
    (change,) = set_up(root, unit="robot.service")
    text = (root / "etc/systemd/system/robot.service.d/rtloop.conf").read_text()
    assert change.state == "done" and no_commands == []
    assert text.splitlines()[1:] == ["[Service]", "LimitRTPRIO=95", "LimitMEMLOCK=infinity", "RestrictRealtime=no"]
    assert "DeviceAllow" not in text, "it would take away all other devices"
    undo(str(root))
    assert tree(root) == before


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(("nobody-here",)), "there is no user nobody-here"),
        (Request(("ada\n@all",)), "not a valid user name"),
        (Request(("ada",), "a b"), "not a valid group name"),
        (Request((), "realtime", "../x.service"), "not the name of a service"),
        (Request((), "realtime", "robot"), "ends with .service"),
    ],
)
def test_a_name_that_is_none_is_refused(root: Path, request_: Request, words: str) -> None:
    before = tree(root)
    with pytest.raises(ConfigError, match=words):
        make_plan(request_, str(root))
    assert tree(root) == before


def test_a_damaged_journal_is_not_believed(root: Path, no_commands: list[list[str]]) -> None:
    set_up(root, "ada")
    for text in ("{", "[]", '{"changes": [{"kind": "file"}]}'):
        (root / JOURNAL).write_text(text)
        with pytest.raises(SetupError, match="is damaged"):
            undo(str(root))
    assert (root / LIMITS).exists()


def test_the_commands_do_the_same(root: Path) -> None:
    commands = make_commands(make_plan(Request(("ada",)), str(root)), str(root))
    assert commands[:2] == ["groupadd --system realtime", "usermod --append --groups realtime ada"]
    assert "@realtime - rtprio 95" in commands and commands[-1] == "udevadm trigger --name-match=/dev/cpu_dma_latency"


def run(*args: str) -> int:
    from rtloop.tools.cli import main

    with pytest.raises(SystemExit) as exit_:
        main(["setup-privileges", *args])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_the_command_shows_asks_changes_and_takes_back(
    root: Path, no_commands: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("click", reason="the command line needs rtloop[cli]")
    before, there = tree(root), ("--root", str(root))
    assert run("--dry-run", "--user", "ada", *there) == 0
    assert "usermod --append --groups realtime ada" in capsys.readouterr().out and tree(root) == before
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr("rtloop.tools.setup_privileges._caller", lambda: "root")
    assert run("--dry-run", *there) == 0, "as root, and not through sudo"
    assert "warning: nobody is added to the group realtime; fix: --user NAME" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run("--user", "ada", *there) == 2, "without a terminal it does not ask, and does not change"
    assert "--yes" in capsys.readouterr().err and tree(root) == before
    assert run("--user", "ada", "--yes", *there) == 0
    assert "done        ada in group realtime" in capsys.readouterr().out
    assert run("--user", "ada", "--json", *there) == 0
    document = json.loads(capsys.readouterr().out)
    assert [change["state"] for change in document["changes"]] == ["already"] * 4
    assert run("--undo", "--dry-run", *there) == 0 and (root / LIMITS).exists()
    assert run("--undo", "--yes", *there) == 0 and tree(root) == before
    capsys.readouterr()
    assert run("--container") == 0
    assert "--ulimit rtprio=95 --ulimit memlock=-1:-1" in capsys.readouterr().out


def test_a_container_whose_root_cannot_raise_limits_is_told_so() -> None:
    assert "lacks CAP_SYS_RESOURCE" in find_obstacle("Name:\tinit\nCapBnd:\t000001fffeffffff\n")
    assert find_obstacle("Name:\tinit\nCapBnd:\t000001ffffffffff\n") == ""
    assert find_obstacle("Name:\tinit\n") == find_obstacle("CapBnd:\tx\n") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="groupadd needs root")
def test_the_systems_own_commands_do_it(root: Path) -> None:
    before = tree(root)
    set_up(root, "ada")
    assert "realtime:x:" in (root / "etc/group").read_text()
    assert (root / "etc/group").read_text().rstrip().endswith(":ada")
    assert states(undo(str(root))) == ["undone"] * 4
    assert tree(root) == before
