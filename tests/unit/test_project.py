"""Facts about building and checking the project that stand in two places are the same in both."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_hooks_before_a_commit_have_the_versions_of_make_lint() -> None:
    hooks = re.findall(r'additional_dependencies: \["([^"]+)"\]', (ROOT / ".pre-commit-config.yaml").read_text())
    lint = {item for item in PYPROJECT["dependency-groups"]["lint"] if isinstance(item, str)}
    assert len(set(hooks)) == 3
    assert set(hooks) <= lint


def test_the_workflow_calls_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"run: make (\w+)", WORKFLOW))
    assert called == {"lint", "docs", "linkcheck", "test"}
    assert called <= targets


def test_the_workflow_tests_and_builds_for_the_pythons_that_are_promised() -> None:
    promised = {c.split()[-1] for c in PYPROJECT["project"]["classifiers"] if re.fullmatch(r".* :: 3\.\d+", c)}
    tested = set(re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", WORKFLOW)[1]))  # type: ignore[index]
    built = {f"3.{name[3:5]}" for name in PYPROJECT["tool"]["cibuildwheel"]["build"]}
    assert promised == tested == built


def test_the_tests_of_a_wheel_leave_out_what_there_is() -> None:
    script = (ROOT / ".ci/wheel_tests").read_text()
    left_out = re.findall(r"tests/unit/\w+\.py", script)
    assert len(left_out) == 6
    assert all((ROOT / path).exists() for path in left_out)
    (test,) = re.findall(r"::(\w+)", script)
    assert f"def {test}(" in (ROOT / left_out[-1]).read_text()


def test_actions_are_named_by_the_hash_of_a_commit_and_their_version() -> None:
    used = re.findall(r"uses: (.*)", WORKFLOW)
    assert len(used) > 10
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used)


def test_a_release_publishes_what_all_other_jobs_have_passed() -> None:
    jobs = re.findall(r"^  (\w+):$", WORKFLOW.partition("\njobs:\n")[2], re.MULTILINE)
    needed = re.search(r"publish:\n.*?needs: \[(.*?)\]", WORKFLOW, re.DOTALL)
    assert needed is not None and sorted([*needed[1].split(", "), "publish"]) == sorted(jobs)
    sed = WORKFLOW.partition('sed -n "s/')[2].partition("/")[0]  # finds the version that the tag is compared with
    version = re.search(sed.replace(r"\(", "(").replace(r"\)", ")"), (ROOT / "meson.build").read_text(), re.MULTILINE)
    assert version is not None and re.fullmatch(r"\d+\.\d+\.\d+", version[1])
