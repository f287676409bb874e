"""The command line: what it lists, what it loads, and the exit codes that a script relies on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

import rtloop
from rtloop.tools.cli import COMMANDS, SUMMARIES, main

click = pytest.importorskip("click", reason="the command line needs rtloop[cli]")


def run(*args: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, or a piece of Python, in a process of its own."""
    command = ["-c", code] if code is not None else ["-m", "rtloop"]
    return subprocess.run([sys.executable, "-P", *command, *args], capture_output=True, text=True, timeout=60)


def exit_code(*args: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(args))
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"rtloop {rtloop.__version__}\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert "..." not in text.partition("Commands:")[2], "in 80 columns no description is cut"


def test_the_help_lists_what_the_commands_say_of_themselves() -> None:
    """It is written down once more, so that `rtloop --help` imports none of them."""
    assert list(SUMMARIES) == list(COMMANDS)
    for name, module in COMMANDS.items():
        command = getattr(import_module(module), name.replace("-", "_"))
        assert not command.hidden
        for width in (45, 200):
            assert click.Command(name, help=SUMMARIES[name]).get_short_help_str(width) == command.get_short_help_str(
                width
            )


def test_the_help_and_the_package_need_no_numpy() -> None:
    """NumPy takes longer to import than anything else, and a shell waits for `rtloop --help`."""
    code = "import sys; from rtloop.tools.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('numpy', 'rich', 'rtloop.loop.loop', 'fractions') if name in sys.modules])"
    done = run(code=code)
    assert "Make a project" in done.stdout and done.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = getattr(import_module(COMMANDS[name]), name.replace("-", "_"))
    assert isinstance(command, click.Command)
    assert exit_code(name, "--help") == 0
    assert capsys.readouterr().out.startswith(f"Usage: rtloop {name}")


def test_python_m_is_the_command() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"rtloop {rtloop.__version__}\n")


def test_an_output_that_takes_no_more_is_a_line_and_exit_code_1() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-u", "-P", "-m", "rtloop", "doctor"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert done.stderr.startswith("rtloop: ") and "Traceback" not in done.stderr


def test_a_terminal_that_knows_few_characters_gets_the_rest(tmp_path: Path) -> None:
    """After ten minutes of a measurement above all."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "rtloop",
        "latency",
        "--duration",
        "100ms",
        "--histogram",
        "--policy",
        "other",
    ]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "wake-ups in" in done.stdout and "???" in done.stdout, done.stderr


def test_help_loads_neither_rich_nor_matplotlib() -> None:
    code = """
import sys
from rtloop.tools.cli import main
try:
    main(["--help"])
finally:
    loaded = {"rich", "matplotlib", "rtloop.demo.trial"} & set(sys.modules)
    assert not loaded, loaded
"""
    result = run(code=code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("missing", "args", "extra"),
    [
        ("click", ["--help"], "cli"),
        ("rich", ["demo"], "cli"),
        ("matplotlib", ["demo", "--plot", "x.png"], "plot"),
        ("matplotlib", ["plot", "x.npz"], "plot"),
    ],
)
def test_a_missing_extra_is_named(missing: str, args: list[str], extra: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from rtloop.tools.cli import main; main({args!r})"
    result = run(code=code)
    assert result.returncode == 1
    assert f"pip install 'rtloop[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nothing"], "No such command"),
        (["demo", "--duration", "10"], "is not a duration"),
        (["demo", "--duration", "0s"], "must be more than zero"),
        (["demo", "--rate", "1kHzz"], "is not a rate or a duration"),
        (["demo", "--rate", "1MHz"], "must be at least 2 us"),
        (["demo", "--duration", "1ms", "--rate", "1kHz"], "less than four cycles"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--plot", "/nowhere/at/all.png"], "--plot"),
        (["demo", "--plot", "picture.docx"], "must end in"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(args: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--plot" in args:
        pytest.importorskip("matplotlib", reason="pictures need rtloop[plot]")
    assert exit_code(*args) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_an_rtloop_error_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*args: object, **keywords: object) -> None:
        raise rtloop.SetupError(1, "no such luck")

    monkeypatch.setattr("rtloop.demo.trial.run_trial", refuse)
    assert exit_code("demo", "--duration", "1s", "--json") == 1
    captured = capsys.readouterr()
    assert "no such luck" in captured.err
    assert captured.out == ""


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rtloop.demo.trial.run_trial", interrupt)
    assert exit_code("demo", "--duration", "1s", "--json") == 130
    assert capsys.readouterr().out == ""


def test_an_interrupt_in_an_executed_string_is_exit_code_130_too(tmp_path: Path) -> None:
    """After one, `python -m` ends by SIGINT, whatever exit code it is given; a shell shows both as 130."""
    (tmp_path / "interrupted.py").write_text("""
from rtloop.tools import cli
class Group:
    def main(self, **options): exec("raise KeyboardInterrupt")
cli.make_group = Group
cli.main()
""")
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "rtloop: interrupted\n")


def test_a_file_of_another_format_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("record", "nobody", "-o", "run.txt") == 2
    assert "run.txt: the name must end in .npy" in capsys.readouterr().err


def test_prose_in_a_file_is_not_wrapped_and_no_line_ends_with_blanks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.table import Table

    from rtloop.tools.options import make_out

    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    out, prose = make_out(), "word " * 60 + "end"
    out.print(prose)
    table = Table("a", "b", box=None)
    table.add_row("1", "longer")
    table.add_row("1", "2")
    out.print(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == prose and len(lines) == 4 and lines == [line.rstrip(" ") for line in lines]


def test_a_long_wait_says_what_it_waits_for_and_a_short_one_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from rtloop.tools.options import say_if_slow

    with say_if_slow("waiting for a bridge", after_s=60):
        pass
    assert capsys.readouterr().err == ""
    with say_if_slow("waiting for a bridge", after_s=0.01):
        limit, said = time.monotonic() + 10, ""
        while not said and time.monotonic() < limit:
            time.sleep(0.01)
            said = capsys.readouterr().err
    assert said == "waiting for a bridge (Ctrl-C ends)\n"
