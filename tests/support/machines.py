"""The machines of tests/unit/machines, and what the doctor finds on them."""

from __future__ import annotations

from pathlib import Path

from rtloop.machine.doctor.machine_files import Machine
from rtloop.system.checks import Check

FOLDER = Path(__file__).parents[1] / "unit" / "machines"
MACHINES = sorted(path for path in FOLDER.iterdir() if not path.suffix)


def files_of(path: Path) -> dict[str, str]:
    """Read a captured machine: the text of each file by its path, or what follows its path in the header."""
    files: dict[str, str] = {}
    for part in ("\n" + path.read_text()).split("\n==> ")[1:]:
        header, _, text = part.partition("\n")
        name, blank, rest = header.partition(" ")
        files[name] = f"\0{rest}" if blank else text
    return files


def unpack(files: dict[str, str], root: Path) -> Machine:
    """Write a machine's files below a folder, and return the machine there."""
    env = dict(line.partition("=")[::2] for line in files.get("env", "").splitlines())
    for name, text in files.items():
        if name.startswith("/"):
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("\0-> "):
                path.symlink_to(text[4:])
            elif text == "\0!":
                path.symlink_to(path.name)  # to itself: there, and nobody can read it, not even root
            else:
                path.write_text(text + "\n")
    return Machine(str(root), env, files.get("uname", "x86_64").strip())


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks if check.topic != "probe"}
    assert len(found) == len([check for check in checks if check.topic != "probe"]), "two checks with one name"
    return found
