"""Sphinx extension that includes parts of the source tree: examples, C headers, the text of --help."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.errors import ExtensionError
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
HEADERS = ROOT / "rtloop" / "include" / "rtloop"

#: Files of the repository that have a page of the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "SECURITY.md": "security.md",
}
LANGUAGES = {".pyx": "cython", ".pxd": "cython", ".py": "python", ".c": "c", ".h": "c", ".build": "meson"}
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FUNCTION = r"/\*((?:(?!\*/).)*)\*/\n((?:static inline )?[\w ]+?[ *]){name}(\([^{{]*?\)) *\{{"


def map_link(target: str, folder: Path) -> str:
    """Translate a link of a file in `folder` to the site, which has a page for some of the repository's files.

    Parameters
    ----------
    target : str
        The link as written in the file, where it works on a code-hosting site.
    folder : pathlib.Path
        Folder of the page, within DOCS.
    """
    if "://" in target or target.startswith(("#", "mailto:")):
        return target
    path = Path(os.path.normpath(folder / target))
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
    if name in PAGES:
        path = DOCS / PAGES[name]
    elif name.startswith("examples/") and (name.count("/") == 1 or name.endswith("/README.md")):
        path = DOCS / "examples" / f"{name.split('/')[1]}.md"
    else:
        return target
    return os.path.relpath(path, folder)


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links into the repository into links within the site."""
    folder = (DOCS / page).parent
    source[0] = LINK.sub(lambda m: f"{m[1]}{map_link(m[2], folder)}{m[3]}", source[0])


def example_page(example: Path) -> str:
    """Return the page of an example: its README and its files."""
    folder = DOCS / "examples"

    def move(match: re.Match[str]) -> str:
        target = match[2]
        if "://" not in target and not target.startswith("#"):
            target = os.path.relpath(example / target, folder)
        return f"{match[1]}{target}{match[3]}"

    parts = [LINK.sub(move, (example / "README.md").read_text())]
    for file in sorted(example.iterdir()):
        if file.suffix in LANGUAGES:
            where = os.path.relpath(file, folder)
            language = LANGUAGES[file.suffix]
            parts.append(f"## {file.name}\n\n```{{literalinclude}} {where}\n:language: {language}\n```\n")
    return "\n".join(parts)


def examples() -> Iterator[Path]:
    """Yield the folders of the examples, the beginner's first."""
    folders = (readme.parent for readme in (ROOT / "examples").glob("*/README.md"))
    yield from sorted(folders, key=lambda folder: (folder.name != "first_loop", folder.name))


def write_examples(app: Sphinx) -> None:
    """Write a page for each example into docs/examples, which git ignores; leave unchanged pages untouched."""
    folder = DOCS / "examples"
    folder.mkdir(exist_ok=True)
    pages = {f"{example.name}.md": example_page(example) for example in examples()}
    listed = "".join(f"{name.removesuffix('.md')}\n" for name in pages)
    pages["index.md"] = (
        "# Examples\n\nEach example is a folder of `examples/` in the repository. The tests build and run it.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{listed}```\n"
    )
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()


def c_function(header: str, name: str) -> tuple[str, list[str]]:
    """Return a function's prototype and the paragraphs of the comment above it.

    Raises
    ------
    ExtensionError
        If the header has no such function, or the function has no comment above it.
    """
    text = (HEADERS / header).read_text()
    found = re.search(FUNCTION.format(name=re.escape(name)), text, re.DOTALL)
    if not found:
        raise ExtensionError(f"{header}: no function {name} with a comment above it")
    comment, kind, arguments = found.groups()
    prototype = re.sub(r"\s+", " ", kind.removeprefix("static inline ") + name + arguments)
    lines = [re.sub(r"^ \* ?", "", line).strip() for line in comment.strip().splitlines()]
    return prototype, [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]


class Docstring(NumpyDocstring):
    """NumPy-style docstring that renders the types of attributes as text, like those of parameters."""

    def _parse_attributes_section(self, section: str) -> list[str]:
        return self._format_fields(section, self._consume_fields())  # type: ignore[no-any-return]


def read_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Convert a NumPy docstring to reStructuredText, except a property's, which has no sections."""
    if what not in ("attribute", "data", "property"):
        lines[:] = Docstring(lines, Config(napoleon_use_param=False, napoleon_use_rtype=False)).lines()


def skip_field(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Skip the fields of a named tuple if their docstrings are only Python's field numbers."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


class HeaderFunctions(SphinxDirective):
    """Directive for functions of a C header and their comments: ``{c-functions} ring.h``, then one name per line."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a description for each function."""
        header = self.arguments[0]
        self.env.note_dependency(str(HEADERS / header))
        made: list[nodes.Node] = []
        for name in "\n".join(self.content).split():
            prototype, paragraphs = c_function(header, name)
            parent = nodes.Element()
            source = StringList([f"```{{c:function}} {prototype}", "```"], source=header)
            self.state.nested_parse(source, self.content_offset, parent)
            content = next(iter(parent.findall(lambda n: n.tagname == "desc_content")))
            for paragraph in paragraphs:
                block = nodes.paragraph()
                for i, piece in enumerate(paragraph.split("`")):
                    block += nodes.literal(piece, piece) if i % 2 else nodes.Text(piece)
                content += block
            made += parent.children
        return made


class CommandHelp(SphinxDirective):
    """Directive for the --help text of a subcommand: ``{command-help} latency``."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the text, 80 columns wide."""
        text = command_help(*self.arguments)
        block = nodes.literal_block(text, text)
        block["language"] = "none"
        return [block]


def command_help(*command: str) -> str:
    """Return the output of ``rtloop COMMAND --help``."""
    import click

    from rtloop.tools.cli import make_group

    group = make_group()
    context = click.Context(group, info_name="rtloop", terminal_width=80, max_content_width=80)
    if not command:
        return group.get_help(context)
    found = group.get_command(context, command[0])
    if found is None:
        raise ExtensionError(f"rtloop has no command {command[0]}")
    return found.get_help(click.Context(found, info_name=command[0], parent=context))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers and directives with Sphinx."""
    app.connect("builder-inited", write_examples)
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-skip-member", skip_field)
    app.add_directive("c-functions", HeaderFunctions)
    app.add_directive("command-help", CommandHelp)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
