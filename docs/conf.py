"""Sphinx builds these pages: `sphinx-build -W docs docs/_build`, with the extra `docs`."""

import rankexec

project = "rankexec"
author = "The rankexec developers"
copyright = author  # noqa: A001  # Sphinx's name for it
version = release = rankexec.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"rankexec {version}"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
myst_heading_anchors = 3
