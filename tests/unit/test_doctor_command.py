"""``rtloop doctor``: exit codes, the page, Markdown and JSON."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rtloop.errors import SetupError
from rtloop.machine.doctor import measure, run_all
from rtloop.machine.doctor.report import remedies
from rtloop.machine.doctor.run_all import Evidence
from rtloop.system.checks import Check, worst
from rtloop.tools.cli import main

pytest.importorskip("click", reason="the command line needs rtloop[cli]")
pytest.importorskip("rich", reason="tables need rtloop[cli]")

LONG = "login:      echo 'ada - rtprio 95' | sudo tee -a /etc/security/limits.d/99-rtloop.conf   # then log in again"
OK = Check("kernel", "version", "6.12", "/proc", "ok", "it matters")
NOTE = Check("cpus", "isolated CPUs", "none", "/sys", "note", "it may matter", "boot: isolcpus=1")
WARN = Check("memory", "swap [red]|<b>", "a|b_c [bold]x[/]", "/proc/*/x", "warn", "it costs", LONG)
FAIL = Check("session", "priority", "0", "/proc/self/limits", "fail", "it stops", LONG.replace("rtprio", "memlock"))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Any:
    def plant(*checks: Check) -> None:
        monkeypatch.setattr(run_all, "gather", lambda machine: Evidence())
        monkeypatch.setattr(run_all, "examine", lambda machine, evidence: list(checks))

    return plant


def exit_code(*args: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", *args])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.mark.parametrize(
    ("checks", "code", "strict_code"),
    [((), 0, 0), ((OK,), 0, 0), ((OK, NOTE), 0, 0), ((WARN, OK), 0, 1), ((FAIL, WARN, OK), 1, 1)],
)
@pytest.mark.parametrize("form", [(), ("--json",), ("--markdown",), ("--verbose",)])
def test_the_exit_code_is_that_of_the_worst_verdict(
    plant: Any, checks: tuple[Check, ...], code: int, strict_code: int, form: tuple[str, ...]
) -> None:
    plant(*checks)
    assert exit_code(*form) == code
    assert exit_code("--strict", *form) == strict_code


def test_the_worst_verdict() -> None:
    assert worst([]) == "ok" and worst([OK, NOTE]) == "note" and worst([FAIL, WARN]) == "fail"


def test_the_page_says_what_to_do_the_worst_first(
    plant: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    plant(NOTE, WARN, FAIL)
    exit_code()
    page = capsys.readouterr().out
    assert page.index("FAIL:") < page.index("WARN:")
    assert "swap [red]|<b>" in page and "a|b_c [bold]x[/]" in page, "the findings are not taken for markup"
    assert f"    {LONG}\n" in page, "a line to paste stays whole, however narrow the terminal"
    assert "isolcpus=1" not in page, "the notes' fixes are for --verbose"
    assert "1 fail, 1 warn, 1 note, 0 ok: a loop with the default" in page
    exit_code("--verbose")
    page = capsys.readouterr().out
    assert "boot: isolcpus=1" in page and "it may matter" in page


def test_one_fix_for_several_checks_is_given_once(plant: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plant(FAIL, FAIL._replace(name="other", topic="probe"), FAIL._replace(name="third"))
    for form in ((), ("--markdown",)):
        exit_code(*form)
        page = capsys.readouterr().out
        assert page.count("memlock 95") == 1
        assert "other" in page and "third" in page


def test_a_fix_that_another_one_only_adds_to_is_the_same() -> None:
    more = FAIL._replace(name="more", fix=FAIL.fix + "\nor ask for less")
    mild = FAIL._replace(name="mild", verdict="note")
    assert remedies([mild, NOTE, FAIL, OK, more]) == [([FAIL, more, mild], more.fix), ([NOTE], NOTE.fix)]
    assert remedies([more, FAIL]) == [([more, FAIL], more.fix)]


def test_markdown_keeps_its_table(plant: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plant(OK, WARN)
    exit_code("--markdown")
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "swap" in line and line.startswith("| **")]
    assert row == r"| **warn** | swap \[red]\|\<b> | a\|b\_c \[bold]x\[/] | /proc/\*/x |"
    assert LONG in lines


def test_json_has_every_check_whole(plant: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plant(OK, WARN, FAIL)
    exit_code("--json")
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "fail" and document["counts"] == {"fail": 1, "warn": 1, "note": 0, "ok": 1}
    references = [check.pop("references") for check in document["checks"]]
    assert [Check(**check) for check in document["checks"]] == [OK, WARN, FAIL]
    assert references[0][0]["url"].startswith("https://docs.kernel.org/") and references[1] == []
    assert document["host"]["kernel"] and document["command"] == "doctor" and "measured" not in document


def measured(*latencies_us: float, missed: int = 0, grants: tuple[Any, ...] = ()) -> Any:
    import numpy as np

    latency = SimpleNamespace(count=len(latencies_us))
    if latencies_us:
        ns = np.array(latencies_us) * 1000
        latency = SimpleNamespace(count=ns.size, max=float(ns.max()), percentile=lambda q: float(np.percentile(ns, q)))
    return SimpleNamespace(cycles=len(latencies_us), missed=missed, latency=latency, grants=grants)


@pytest.mark.parametrize(
    ("stats", "verdict"),
    [
        (measured(10, 20, 100), "ok"),
        (measured(10, 400), "note"),
        (measured(10, 600), "warn"),
        (measured(10, 1600, missed=1), "warn"),
        (measured(10, missed=1), "warn"),
        (measured(), "fail"),
    ],
)
def test_the_measurement_is_judged_by_the_period(stats: Any, verdict: str) -> None:
    assert measure.judge(stats, 1_000_000).verdict == verdict


def test_the_measurement_says_what_it_had_to_do_without() -> None:
    refused = SimpleNamespace(ok=False, name="policy")
    assert "without policy" in measure.judge(measured(1.0, grants=(refused,)), 10**6).found


def test_the_verdict_of_the_measurement_joins_the_others(
    plant: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(OK)
    asked = []

    def run(period_ns: int, duration_ns: int) -> Any:
        asked.append((period_ns, duration_ns))
        stats = measured(10, 800)
        stats.to_dict = lambda: {"cycles": 2, "records": [1, 2]}
        return stats

    monkeypatch.setattr(measure, "run_measurement", run)
    assert exit_code("--measure", "--strict", "--json", "--rate", "2kHz", "--duration", "1s") == 1
    document = json.loads(capsys.readouterr().out)
    assert asked == [(500_000, 10**9)]
    assert document["verdict"] == "warn" and document["measured"] == {"cycles": 2}
    assert document["checks"][-1]["topic"] == "measured"


def test_a_measurement_that_fails_leaves_the_other_checks(
    plant: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(OK, WARN)

    def run(period_ns: int, duration_ns: int) -> Any:
        raise SetupError(errno.EFBIG, "telemetry block of 3441664 bytes:\nFile too large")

    monkeypatch.setattr(measure, "run_measurement", run)
    assert exit_code("--measure", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [check["verdict"] for check in document["checks"]] == ["ok", "warn", "fail"]
    assert "File too large" in document["checks"][-1]["found"] and "measured" not in document
    exit_code("--measure")
    assert "File too large" in capsys.readouterr().out


@pytest.mark.parametrize("args", [("--duration", "1ms"), ("--rate", "fast"), ("--duration", "10")])
def test_a_wrong_command_line_is_exit_code_2(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*args) == 2
    assert capsys.readouterr().out == ""


def test_this_machine_is_examined_and_measured_from_the_shell() -> None:
    command = [sys.executable, "-P", "-m", "rtloop", "doctor", "--json", "--measure", "--duration", "200ms"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    document = json.loads(done.stdout)
    assert done.returncode == (1 if document["verdict"] == "fail" else 0), done.stderr
    topics = [check["topic"] for check in document["checks"]]
    assert topics[-1] == "measured" and set(topics) == set(run_all.TOPICS)
    assert document["measured"]["cycles"] > 0
