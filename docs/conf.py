"""How `make docs` builds these pages: Sphinx with MyST, both with a release in the month this was written.

(MkDocs, which would have done as well, has had no release since August 2024.) Plain Markdown is all that the pages use, so they
read the same where they lie.
"""

from __future__ import annotations

from typing import Any

project = "dinoforge"
extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
nitpicky = True
highlight_language = "none"
html_theme = "alabaster"
html_theme_options = {
    "description": "DINOv2 whole",
    "page_width": "1080px",
    "body_max_width": "none",
    "sidebar_width": "240px",
    "fixed_sidebar": True,
}
html_sidebars = {"**": ["about.html", "searchbox.html", "navigation.html"]}
html_copy_source = False
html_use_index = False
html_show_sphinx = False


def _read(_app: Any, _page: str, source: list[str]) -> None:
    """README is the first page of what is built; where the pages lie it is a file above them."""
    source[0] = source[0].replace("](../README.md", "](index.md")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
