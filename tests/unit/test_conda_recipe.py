"""The recipe for conda agrees with pyproject.toml and meson.build."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "recipe" / "recipe.yaml").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: Packages with another name on conda-forge.
NAMES = {"matplotlib": "matplotlib-base"}


def listed(key: str) -> set[str]:
    """Return the items of the list below a key of two spaces, without comments."""
    block = re.search(rf"^  {key}:\n((?:    .*\n)+)", RECIPE, re.MULTILINE)
    assert block, key
    return {line.partition(" #")[0].strip("- ") for line in block[1].splitlines() if line.startswith("    - ")}


def in_conda(requirement: str) -> str:
    """Return a requirement as conda writes it."""
    name, bounds = re.match(r"([\w-]+)(.*)", requirement.partition(";")[0]).groups()  # type: ignore[union-attr]
    return f"{NAMES.get(name.lower(), name.lower())} {bounds}".strip()


def test_version_license_and_entry_point_are_those_of_the_package() -> None:
    version = re.search(r"^  version: '(.*)',", (ROOT / "meson.build").read_text(), re.MULTILINE)
    assert version and f'version: "{version[1]}"' in RECIPE
    assert f"license: {PROJECT['project']['license']}" in RECIPE
    assert PROJECT["project"]["description"] in RECIPE
    assert f"rtloop = {PROJECT['project']['scripts']['rtloop']}" in RECIPE
    assert f'match(python, "<{PROJECT["project"]["requires-python"].removeprefix(">=")}")' in RECIPE


def test_what_builds_it_is_in_the_host_environment() -> None:
    assert {in_conda(one) for one in PROJECT["build-system"]["requires"]} <= listed("host")


def test_the_command_has_what_it_needs_and_the_extras_have_their_bounds() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert {in_conda(one) for one in extras["cli"]} <= listed("run")
    bounds = {in_conda(one) for extra in extras.values() for one in extra}
    assert listed("run_constraints") <= bounds


def test_its_tests_import_modules_that_exist() -> None:
    imports = re.search(r"^      imports:\n((?:        - .*\n)+)", RECIPE, re.MULTILINE)
    assert imports
    for name in re.findall(r"- (\S+)", imports[1]):
        importlib.import_module(name)
