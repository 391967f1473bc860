"""Sphinx's settings. Sphinx and not MkDocs: docstrings become pages with checked cross-references, its search needs
neither server nor network, and it is kept up (Material for MkDocs is in maintenance, MkDocs 1 has no successor yet)."""

from __future__ import annotations

import re
from importlib import metadata

project = "mrisr"
author = "the mrisr developers"
copyright = author  # noqa: A001 - Sphinx's name for it
release = metadata.version("mrisr")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
nitpicky = False
smartquotes = False  # it would make one dash of the two of an option
default_role = "code"  # docstrings are written with single backticks

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them
autodoc_mock_imports: list[str] = []
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"mrisr {release}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_search_summary = False  # it would fetch pages, which a browser does not do from a folder
html_theme_options = {"footer_icons": []}


def _plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are prose for a terminal: `|det J|` and `*` in them are no markup."""
    for k, line in enumerate(lines):
        words = re.split(r"(`[^`]*`)", line)
        lines[k] = "".join(w if w.startswith("`") else re.sub(r"(?<!\\)([|*])", r"\\\1", w) for w in words)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _plain, priority=400)
