"""Refusals of requests on a command line: named before the first cycle, in the words of that line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner

from rtloop.errors import warn_of_setup
from rtloop.system.grant import Grant
from rtloop.tools.options import as_options, check_cpus, refusals_first
from rtloop.tools.run.command import run

EASY = ("--policy", "other", "--lock", "off", "-p", "dma_latency=none", "--duration", "50ms")
#: Its first cycle is on stderr, as are refusals.
STEP = """\
import sys

def step(cycle):
    if cycle.index == 0:
        print("first cycle", file=sys.stderr)
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "steps.py").write_text(STEP)
    return f"{tmp_path / 'steps.py'}:step"


def run_it(*options: str) -> Any:
    return CliRunner().invoke(run, options)


def no_trace(*args: Any, **kwargs: Any) -> Any:
    fix = "mount it\nor run without it: explain=False"
    return Grant("explain", "the worst delays", "no trace", False, "no tracefs", fix), None


@pytest.mark.parametrize("options", [("--explain",), ("-p", "explain=true"), ("--explain-above", "1ms")])
def test_a_refusal_of_what_was_asked_for_comes_before_the_first_cycle(
    target: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtloop.culprit.acquire.acquire", no_trace)
    result = run_it(target, *EASY, *options)
    before, _, after = result.stderr.partition("first cycle")
    assert result.exit_code == 0, result.output
    assert "explain: asked for the worst delays, granted no trace" in before
    assert "leave out --explain" in before and "explain=False" not in result.stderr
    assert "ran degraded" in after and "explain: asked for" in after, "and again at the end"


def test_a_refusal_of_what_was_not_asked_for_is_left_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    policy, cpu = Grant("policy", 80, 0, False, kind="priority"), Grant("cpu", 1, 0, False, kind="cpu")
    told: list[tuple[Grant, ...]] = []
    shown = warnings.showwarning.__qualname__
    with refusals_first(["priority", "name"], told.append):
        warn_of_setup("degraded", (policy, cpu))
        warn_of_setup("degraded", (policy,))
        warn_of_setup("lost")
    assert told == [(policy,)], "once"
    assert warnings.showwarning.__qualname__ == shown
    with pytest.warns(UserWarning, match="other"), refusals_first([], told.append):
        warnings.warn("other", UserWarning, stacklevel=1)


def test_explain_in_virtual_time_is_refused(target: str) -> None:
    for options in (("--explain",), ("--explain-above", "1ms"), ("-p", "explain=true")):
        result = run_it(target, "--simulate", "--cycles", "3", *options)
        assert result.exit_code == 2 and "in virtual time there is no kernel to trace" in result.stderr


def test_options_that_do_nothing_in_virtual_time_are_named(target: str) -> None:
    given = run_it(target, "--simulate", "--cycles", "3", "--guard", "count", "--cpu", "0", "--name", "pump")
    assert given.exit_code == 0 and "there is no thread: --cpu, --guard will have no effect" in given.stderr
    assert "no effect" not in run_it(target, "--simulate", "--cycles", "3", "--overrun", "catch-up").stderr


def test_a_cpu_that_does_not_exist_is_a_wrong_command_line(target: str) -> None:
    for options in (("--cpu", "4095"), ("--cpu", "0,4095"), ("-p", "cpu=4095")):
        result = run_it(target, *EASY, *options)
        assert result.exit_code == 2 and "CPU 4095 does not exist; online: " in result.stderr
    assert run_it(target, "--cpu", "4095", "--simulate", "--cycles", "3").exit_code == 0, "a plan for another machine"
    for fine in (None, "auto", "none", 0, [0]):
        check_cpus(fine, "--cpu")


def test_a_setting_that_is_missing_is_named_as_the_option_that_gives_it(target: str) -> None:
    result = run_it(target, "--policy", "deadline", "--cycles", "3")
    assert result.exit_code == 2 and "--policy deadline needs -p runtime=" in result.stderr
    assert "such as -p runtime=200us" in result.stderr


def test_settings_in_a_message_are_written_as_options() -> None:
    @click.command()
    @click.option("--cpu")
    @click.option("--policy")
    @click.option("--explain", is_flag=True)
    @click.option("--lock")
    def command(**_: Any) -> None:
        print(as_options("policy='fifo' explain=False explain=True cpu=(1,) cpu=[0, 2] cpu=None lock_memory=\"own\""))
        print(as_options("runtime='200us', record=65536; docker --cpuset-cpus=1 --pid=host, LimitRTPRIO=95"))

    first, second = CliRunner().invoke(command).output.splitlines()
    assert first == "--policy fifo leave out --explain --explain --cpu 1 --cpu 0,2 --cpu none --lock own"
    assert second == "-p runtime=200us, -p record=65536; docker --cpuset-cpus=1 --pid=host, LimitRTPRIO=95"
    assert as_options("cpu=3") == "cpu=3", "outside of a command"
