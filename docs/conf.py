"""Sphinx configuration of the guides and of the API reference from docstrings.

The source folder is the root, so that the pages beside README.md are part of the site:
`sphinx-build -c docs . OUT`.
"""

import vt_flax

project = "vt_flax"
release = vt_flax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md"]
html_theme = "furo"
# Links to headings, as GitHub resolves them.
myst_heading_anchors = 3
# Docstrings mark code by single backticks.
default_role = "code"
# Attributes of dataclasses are documented in their class, and found in it again.
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
