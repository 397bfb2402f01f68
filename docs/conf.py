"""The site's settings. ``make docs`` builds it; a warning is an error."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]  # the site is that of this checkout, whatever else is installed

import adapruner  # noqa: E402

project = "adapruner"
author = "the adapruner developers"
release = version = adapruner.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "attribute_docstrings",
    "sphinx.ext.mathjax",
    "option_pages",
    "repository_links",
    "names_by_import",
]
# results-remarks.md is a part of results.md, which has it in full.
exclude_patterns = ["_extensions", "results-remarks.md"]

# Two dollars are a formula, as on code hosts; every heading has the anchor that code hosts give it.
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"adapruner {version}"
html_copy_source = False
html_show_sphinx = False
