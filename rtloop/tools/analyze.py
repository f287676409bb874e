"""``rtloop analyze``: schedulability of loops, from a file of tasks or from measured runs."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rtloop.analysis.schedulability import analyze as analyze_tasks
from rtloop.analysis.schedulability import partition
from rtloop.analysis.task import Task
from rtloop.errors import ConfigError
from rtloop.tools.saved_runs import load_runs, write_output
from rtloop.units import parse_duration, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rtloop.stats.stats import Stats

__all__ = ["analyze"]

_CANNOT = 2
_FIELDS = tuple(field.name for field in fields(Task))
_REQUIRED = ("name", "period", "wcet")
_TEXTS = {".toml": tomllib.loads, ".json": json.loads}


def _to_times(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for value in values:
        name, equals, time = value.rpartition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r}; write NAME=TIME, such as current=20us", ctx, param)
        try:
            found[name] = parse_duration(time, name, minimum=1)
        except ConfigError as error:
            raise click.BadParameter(str(error), ctx, param) from None
    return found


def _to_cpus(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    from rtloop.system.cpu import parse_cpu_list

    try:
        return None if value is None else list(parse_cpu_list(value))
    except ValueError:
        raise click.BadParameter(f"{value!r}; write a list of CPUs, such as 2,3 or 2-5", ctx, param) from None


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="TASKS.toml|RUN.npz...")
@click.option("--policy", type=click.Choice(["fixed-priority", "edf"]), default=None,
              help="By default fixed-priority, or edf if every FILE is a run under SCHED_DEADLINE.")  # fmt: skip
@click.option("--wcet", multiple=True, metavar="NAME=TIME", callback=_to_times,
              help="Longest CPU time of a step of this task; overrides the file.")  # fmt: skip
@click.option("--percentile", type=click.FloatRange(0, 100), default=None,
              help="Use this percentile of a run, not its maxima; the result is not a bound.")  # fmt: skip
@click.option("--partition", "cpus", metavar="CPUS", callback=_to_cpus, default=None,
              help="Place tasks without a CPU on these, first-fit decreasing: 2,3.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the analysis as JSON, times in ns.")
def analyze(
    files: tuple[str, ...],
    policy: str | None,
    wcet: dict[str, int],
    percentile: float | None,
    cpus: list[int] | None,
    as_json: bool,
) -> int:
    """Check whether several loops always meet their deadlines.

    A FILE is a list of tasks in TOML or JSON, or the saved stats of a run: stats.save("run.npz"). A run's longest step
    becomes the task's wcet, its largest wake-up latency the jitter, and its longest response is shown beside the bound.
    The worst response includes the wake-up latency: it is counted from the release, not from the start of the step.

    \b
    tasks.toml, a table for each task; deadline, priority, cpu, jitter and blocking may be left out:

    \b
      [[task]]
      name = "current"
      period = "100us"
      wcet = "20us"

    Exit codes: 0 all deadlines are met, 1 not all are, 2 a file or an option cannot be used.

    \b
    Examples:
      rtloop analyze tasks.toml
      rtloop analyze current.npz velocity.npz plan.npz --wcet current=25us
      rtloop analyze tasks.toml --partition 2,3 --json | jq .is_schedulable
    """  # noqa: D301 - the backslash is for click
    try:
        tasks, policies = _load(files, percentile)
        if unknown := set(wcet) - {task.name for task in tasks}:
            names = ", ".join(task.name for task in tasks)
            raise ConfigError(f"--wcet: there is no task {show(min(unknown))}; there are {names}")
        tasks = [replace(task, wcet=wcet[task.name], note="") if task.name in wcet else task for task in tasks]
        if cpus is not None:
            tasks = partition(tasks, cpus)
        _check_cpus(tasks)
        found = analyze_tasks(tasks, policy=policy or ("edf" if policies == {"deadline"} else "fixed-priority"))
        write_output("-", (json.dumps(found.to_dict(), indent=2) if as_json else str(found)) + "\n")
    except (ConfigError, click.ClickException) as error:
        # A ClickException's own exit code is 1, which would say that deadlines are missed.
        click.echo(f"rtloop: {error.message if isinstance(error, click.ClickException) else error}", err=True)
        return _CANNOT
    return 0 if found else 1


def _load(files: Sequence[str], percentile: float | None) -> tuple[list[Task], set[str]]:
    """Return the tasks of all files, and the policies of the runs among them."""
    tasks: list[Task] = []
    policies = set()
    for file in files:
        if Path(file).suffix.lower() in _TEXTS:
            tasks += _read(Path(file))
            policies.add("")
            continue
        (run,) = load_runs([file])
        policies.add(_policy_of(file, run.stats))
        tasks.append(Task.from_stats(run.stats, percentile=percentile))
    if "deadline" in policies and "fixed-priority" in policies:
        raise ConfigError("some runs used SCHED_DEADLINE and some did not: they cannot be analysed together")
    return tasks, policies


def _check_cpus(tasks: Sequence[Task]) -> None:
    """Refuse tasks if it is not known which of them delay each other."""
    loose = [task.name for task in tasks if task.cpu is None]
    if loose and len(loose) < len(tasks):
        raise ConfigError(
            f"{', '.join(loose)}: not pinned to one CPU, unlike the others, so it is unknown which tasks delay each "
            "other; give all tasks a cpu, or none, or let --partition 2,3 place them"
        )


def _policy_of(file: str, stats: Stats) -> str:
    """Return the analysis that fits the policy of a run."""
    policy = stats.settings.get("policy")
    if policy in ("fifo", "rr"):
        return "fixed-priority"
    if policy == "deadline":
        return "deadline"
    raise ConfigError(f"{file}: {stats.name} ran with policy={show(policy)}, for which there is no analysis")


def _read(path: Path) -> list[Task]:
    """Return the tasks of a TOML or JSON file.

    Raises
    ------
    ConfigError
        If it cannot be read, or is not a list of tasks.
    """
    try:
        content: Any = _TEXTS[path.suffix.lower()](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # both decoders' errors are ValueErrors, and so is a wrong encoding
        raise ConfigError(f"{path}: {error}") from None
    if isinstance(content, dict):
        content = content.get("task")
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise ConfigError(f"{path}: give a list of tasks: [[task]] tables in TOML, a list of objects in JSON")
    return [_make(f"{path}: task {number}", entry) for number, entry in enumerate(content, 1)]


def _make(where: str, entry: Mapping[str, Any]) -> Task:
    if unknown := [key for key in entry if key not in _FIELDS]:
        raise ConfigError(f"{where}: {show(unknown[0])} is not one of {', '.join(_FIELDS)}")
    if missing := [key for key in _REQUIRED if key not in entry]:
        raise ConfigError(f"{where}: {' and '.join(missing)} missing; a task has name, period and wcet at least")
    for key in ("name", "note"):
        text = entry.get(key, "")
        if not isinstance(text, str) or not text.isprintable() or (key == "name" and not text.strip()):
            raise ConfigError(f"{where}: {key}={show(text)} must be text of printable characters")
    try:
        return Task(**entry)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
