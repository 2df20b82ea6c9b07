"""Settings of the documentation site: ``make docs`` builds it with Sphinx and MyST into ``build/docs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import open_clt

project = "OpenCLT"
author = "OpenCLT contributors"
project_copyright = "OpenCLT contributors, MIT licence"
version = release = open_clt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "tools.site.extension"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
add_module_names = False

html_theme = "furo"
html_title = "OpenCLT"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"sidebar_hide_name": False}
