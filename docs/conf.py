"""Sphinx configuration. Build with ``make docs``: warnings are errors."""

from __future__ import annotations

from importlib.util import find_spec

import vfm_inverse

project = "vfm_inverse"
author = "The vfm_inverse developers"
copyright = "2026, the vfm_inverse developers"
release = vfm_inverse.__version__
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The pages show the docstrings as they are written; the heavy dependencies are only needed for the
# imports, so a machine without them builds the same site.
autodoc_mock_imports = [
    name for name in ("torch", "deepinv", "pyro", "skimage", "dask") if find_spec(name) is None
]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "pydata_sphinx_theme"
html_title = "vfm_inverse"
# Only the interface has pages below it.
html_sidebars = {"*": []}
html_static_path = ["_static"]
html_theme_options = {
    "navigation_with_keys": False,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
