"""``rtloop new``: make a starting project that builds and passes its tests."""

from __future__ import annotations

import keyword
import os
import shlex
import sys
import unicodedata
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rtloop.compiler.c_compiler import project_variables
from rtloop.compiler.packages import find_package
from rtloop.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

__all__ = ["FILES", "make_project", "new"]

#: A file of the template -> its place in the project.
FILES = {
    "pyproject.toml.in": "pyproject.toml",
    "meson.build.in": "meson.build",
    "README.md.in": "README.md",
    "gitignore.in": ".gitignore",
    "workflow.yml.in": ".github/workflows/test.yml",
    "run.py.in": "run.py",
    "src/__init__.py.in": "src/@NAME@/__init__.py",
    "src/control.pyx.in": "src/@NAME@/control.pyx",
    "tests/conftest.py.in": "tests/conftest.py",
    "tests/test_control.py.in": "tests/test_control.py",
}
_PLACE = "@NAME@"
#: Lines of meson.build for Python packages, whose files are found anew by each build.
_PACKAGES = """
# Python packages whose headers and libraries are used: those of the environment that builds this.
find = '''
import rtloop, sys
found = [rtloop.find_package(name) for name in sys.argv[2:]]
words = {
    "compiler": [f"-I{folder}" for package in found for folder in package.include],
    "linker": [word for package in found for word in package.libraries],
}
print(*words[sys.argv[1]], sep=chr(10))
'''
for_compiler = []
for_linker = []
foreach word : run_command(py, '-c', find, 'compiler', @NAMES@, check: true).stdout().split('\\n')
  for_compiler += word == '' ? [] : [word]
endforeach
foreach word : run_command(py, '-c', find, 'linker', @NAMES@, check: true).stdout().split('\\n')
  for_linker += word == '' ? [] : [word]
endforeach
"""
#: Installing a project of this name would replace a package that builds, tests or runs it.
_TAKEN = {
    *("rtloop", "numpy", "cython", "pytest", "tests", "src", "test", "pip", "setuptools", "wheel", "meson", "mesonpy"),
    *("meson_python", "ninja", "packaging", "click", "rich", "numba", "cffi", "scipy", "matplotlib", "textual"),
}


@click.command()
@click.argument("path", metavar="NAME")
@click.option(
    "--package", "packages", multiple=True, metavar="NAME",
    help="Python package whose headers and libraries its build uses, such as mujoco.",
)  # fmt: skip
def new(path: str, packages: tuple[str, ...]) -> None:
    """Make a project in the new folder NAME.

    The project has a controller, a simulated motor, tests, and a build. NAME is also the package's name: letters,
    digits and _. It builds and passes its tests as it is. --no-build-isolation builds it against the installed rtloop,
    with the tools of pip install 'rtloop[build]'.

    \b
    Examples:
      rtloop new arm && cd arm && pip install --no-build-isolation ".[test]" && pytest
      rtloop new ~/robots/gimbal
      rtloop new walker --package mujoco
    """  # noqa: D301 - the backslash is for click
    folder = Path(os.path.expanduser(path)).absolute()
    check_name(folder.name)
    for package in packages:
        try:
            find_package(package)
        except BuildError as error:
            raise click.BadParameter(str(error), param_hint="--package") from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.ClickException(f"{path} already exists, and is not an empty folder: give another name")
    try:
        made = make_project(folder, packages)
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename or path}: {error.strerror}") from None
    click.echo(f"{folder}: {len(made)} files")
    for file in made:
        click.echo(f"  {file}")
    # Without it, pip ends in a traceback about a module that the user has never heard of.
    first = "" if find_spec("mesonpy") else "  pip install 'rtloop[build]'   # the build backend is not installed yet\n"
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in project_variables().items())
    first += f"  export {variables}   # no C compiler in this system: zig's\n" if variables else ""
    click.echo(
        f'\nNext:\n{first}  cd {shlex.quote(path)} && pip install --no-build-isolation ".[test]" && pytest\n'
        f"Then make Motor in {made[-3]} yours."
    )


def check_name(name: str) -> None:
    """Refuse what cannot be a package's name, or would hide another package.

    Raises
    ------
    click.BadParameter
        With a name that would do.
    """
    if keyword.iskeyword(name):
        raise click.BadParameter(
            f"{name!r} is a keyword of Python, and cannot be a package's name; my_{name.lower()} would do",
            param_hint="NAME",
        )
    if not name.isascii() or not name.isidentifier() or name.startswith("_"):
        plain = "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))
        better = "".join(char if char.isascii() and char.isalnum() else "_" for char in plain)
        better = better.strip("_0123456789").lower()
        advice = f"; {better} would do" if better and better != name and not keyword.iskeyword(better) else ""
        raise click.BadParameter(
            f"{name!r} cannot be a package's name, which begins with a letter, and has letters, digits and _{advice}",
            param_hint="NAME",
        )
    if name in sys.stdlib_module_names or name.lower() in _TAKEN:  # names of distributions have no case
        raise click.BadParameter(f"{name!r} is the name of another package, which it would hide", param_hint="NAME")


def make_project(folder: Path, packages: Sequence[str] = ()) -> list[str]:
    """Write the project; returns its files. The folder is new or empty, and its name is the package's.

    Its build uses the headers and libraries of the given Python packages.
    """
    template = files("rtloop.tools.new").joinpath("template")
    words = {
        _PLACE: folder.name,
        "@PACKAGES@\n": f"{_PACKAGES}\n" if packages else "\n",
        "@NAMES@": ", ".join(f"'{name}'" for name in packages),
        "@INCLUDE@": "  c_args: for_compiler,\n" if packages else "",
        "@LIBRARIES@": ", for_linker" if packages else "",
    }
    texts = {}
    for source, target in FILES.items():
        text = _read(template, source)
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        texts[target.replace(_PLACE, folder.name)] = text
    for target, text in texts.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _read(template: Traversable, name: str) -> str:
    return template.joinpath(*name.split("/")).read_text(encoding="utf-8")
