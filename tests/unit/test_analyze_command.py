"""``rtloop analyze``: reads task files and saved runs, writes a table or JSON, and sets an exit code for CI."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rtloop import RTLoop
from rtloop.tools.cli import main

TASKS = """
[[task]]
name = "current"
period = "100us"
wcet = "20us"

[[task]]
name = "plan"
period = "1ms"
wcet = "{wcet}"
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rtloop(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["analyze", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.toml"
    path.write_text(TASKS.format(wcet="400us"))
    return path


def save(folder: Path, name: str, period: str, **settings) -> Path:
    """Save a run in virtual time: steps of 200 us, each woken 40 us late."""
    loop = RTLoop(period, name=name, **settings)
    path = folder / f"{name}.npz"
    loop.simulate(cycles=100, execution="200us", latency="40us").save(path)
    return path


def test_a_file_of_tasks_is_analysed_and_the_exit_code_tells(rtloop: Run, tasks: Path) -> None:
    code, out, _ = rtloop(tasks)
    assert code == 0 and "500 us" in out and "meets" in out and "measured" not in out
    tasks.write_text(TASKS.format(wcet="900us"))
    code, out, _ = rtloop(tasks)
    assert code == 1 and "unbounded" in out


def test_json_comes_in_and_goes_out(rtloop: Run, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([{"name": "a", "period": "1ms", "wcet": "100us", "blocking": 5000, "cpu": 3}]))
    code, out, _ = rtloop(path, "--json")
    found = json.loads(out)
    assert code == 0 and found["is_schedulable"] and found["rows"][0]["response"] == 105_000
    assert found["rows"][0]["cpu"] == 3 and found["rows"][0]["measured"] is None


def test_saved_runs_show_what_was_measured_beside_the_bound(rtloop: Run, tmp_path: Path) -> None:
    slow, fast = save(tmp_path, "slow", "5ms", priority=70), save(tmp_path, "fast", "1ms", priority=79)
    code, out, _ = rtloop(slow, fast, "--json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert code == 0 and rows["fast"]["response"] == 240_000 and rows["slow"]["response"] == 440_000
    assert {row["measured"] for row in rows.values()} == {240_000} and not rows["fast"]["is_exceeded"]
    code, out, _ = rtloop(slow, fast, "--wcet", "slow=50us", "--wcet", "fast=50us")
    assert code == 0 and "fast: a response of 240 us was measured, which is over the bound" in out
    assert "percentile" in rtloop(fast, "--percentile", 99)[1]
    code, _, err = rtloop(fast, "--percentile", "nan")
    assert code == 2 and "percentile=nan must be a number from 0 to 100" in err


def test_runs_under_sched_deadline_are_analysed_as_edf(rtloop: Run, tmp_path: Path) -> None:
    settings = {"policy": "deadline", "runtime": "300us", "deadline": "350us", "cpu": None}
    paths = [save(tmp_path, name, "1ms", **settings) for name in "ab"]
    code, out, _ = rtloop(*paths, "--json")
    assert code == 1 and json.loads(out)["policy"] == "edf", "2 * 200 us are more than 350 us"
    code, out, err = rtloop(*paths, save(tmp_path, "c", "1ms"))
    assert code == 2 and "cannot be analysed together" in err


def test_tasks_are_put_on_cpus(rtloop: Run, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([{"name": name, "period": "1ms", "wcet": "600us"} for name in "ab"]))
    assert rtloop(path)[0] == 1
    code, out, _ = rtloop(path, "--partition", "2-3", "--json")
    assert code == 0 and [row["cpu"] for row in json.loads(out)["rows"]] == [2, 3]
    code, _, err = rtloop(path, "--partition", "2")
    assert code == 2 and "none has room" in err


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("task = 3", "give a list of tasks"),
        ("[[task]]\nname = 'a'", "period and wcet missing"),
        ("[[task]]\nname = 'a'\nperiod = '1ms'\nwcet = 'x'", "task 1: a: wcet"),
        ("[[task]]\nname = 'a'\nperiod = '1ms'\nwcet = '1us'\ncolour = 1", "'colour' is not one of name, period"),
        ("[[task]]\nname = 3\nperiod = '1ms'\nwcet = '1us'", "name=3 must be text"),
        ("[[task]]\nname = ' '\nperiod = '1ms'\nwcet = '1us'", "name=' ' must be text of printable"),
        ('[[task]]\nname = "\\u001b[2J"\nperiod = "1ms"\nwcet = "1us"', "must be text of printable"),
        ('[[task]]\nname = "a"\nperiod = "1ms"\nwcet = "1us"\nnote = "\\u001b[2J"', "note='"),
        ("[[task]\n", "tasks.toml: "),
        ("[[task]]\nname = 'a'\nperiod = 1.5\nwcet = '1us'", "a: period"),
    ],
)
def test_a_file_that_is_no_list_of_tasks_says_where(rtloop: Run, tasks: Path, content: str, word: str) -> None:
    tasks.write_text(content)
    code, out, err = rtloop(tasks)
    assert code == 2 and word in err and not out and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere.toml"], "nowhere.toml: No such file"),
        (["nowhere.npz"], "nowhere.npz: No such file"),
        (["{tasks}", "--wcet", "x=1us"], "there is no task 'x'; there are current, plan"),
        (["{tasks}", "--wcet", "plan"], "write NAME=TIME"),
        (["{tasks}", "--wcet", "plan=1"], "plan"),
        (["{tasks}", "--partition", "x"], "write a list of CPUs"),
        ([], "Missing argument"),
    ],
)
def test_wrong_options_say_what_would_be_right(rtloop: Run, tasks: Path, arguments: list[str], word: str) -> None:
    code, out, err = rtloop(*(argument.format(tasks=tasks) for argument in arguments))
    assert code == 2 and word in err and not out


def test_a_run_without_a_real_time_policy_is_refused(rtloop: Run, tmp_path: Path) -> None:
    code, _, err = rtloop(save(tmp_path, "ordinary", "1ms", policy="other"))
    assert code == 2 and "policy='other', for which there is no analysis" in err


def test_where_only_some_are_on_a_cpu_nobody_knows_what_delays_what(rtloop: Run, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    every = [{"name": name, "period": "1ms", "wcet": "600us", "cpu": cpu} for name, cpu in (("a", 2), ("b", None))]
    path.write_text(json.dumps(every))
    code, out, err = rtloop(path)
    assert code == 2 and "b: not pinned to one CPU" in err and not out, "each by itself, both would meet"
    assert rtloop(path, "--partition", "2,3")[0] == 0


def test_what_cannot_be_printed_does_not_say_that_deadlines_are_missed(tasks: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = [
        sys.executable,
        "-P",
        "-c",
        "from rtloop.tools.cli import main; import sys; main(['analyze', sys.argv[1]])",
        tasks,
    ]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 2 and b"No space left" in ended.stderr and b"Traceback" not in ended.stderr
