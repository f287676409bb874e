"""Sphinx configuration of the documentation, built by `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import rtloop

project = "rtloop"
author = "The rtloop maintainers"
release = version = rtloop.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "rtloop_pages",
]
exclude_patterns = ["_ext", "outputs"]
highlight_language = "none"  # a fence without a language is text
smartquotes = False  # would turn the two hyphens of an option into a dash
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Types are in the docstrings, so that signatures stay short. Type names are plain text: every link that Sphinx reports
# as broken was written by hand.
autodoc_mock_imports = ["numba"]  # large, and not available for every Python
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
nitpick_ignore_regex = [
    ("c:identifier", r"u?int\d+_t|size_t|ssize_t|uintptr_t|off_t"),
]

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_title = f"rtloop {release}"
html_static_path = ["_static"]
html_css_files = ["rtloop.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

linkcheck_timeout = 15
linkcheck_retries = 1
linkcheck_workers = 4
