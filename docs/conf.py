"""Sphinx configuration of the documentation: furo and MyST, strict, and without anything from the network."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from trl_dpo_ext import __version__  # noqa: E402  (of this checkout)

project = "trl_dpo_ext"
author = "The trl_dpo_ext developers"
copyright = "The trl_dpo_ext developers, Apache License 2.0"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "tools.site",  # what is written when the site is built
]

# A heading that is linked to must exist: MyST warns of an anchor it does not know, and the build fails on warnings.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
nitpicky = True
nitpick_ignore_regex = [
    # Types of other libraries, because nothing is looked up in the network, and our own that no page describes.
    ("py:.*", r"(torch|transformers|trl|datasets|peft|numpy|collections|pathlib|typing|argparse|np|pa)\b.*"),
    ("py:.*", r"(PreTrained|Peft|Processor|Trainer|BitsAndBytes|Data|Iterable)\w*|Dataset\w*"),
    ("py:.*", r"(optional|Any|Self|T|LossFunction|Options|MissingSequenceError)"),
    ("py:.*", r"trl_dpo_ext\.\w+\..*"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_use_type_comments = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"  # docstrings mark code by single backticks
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "trl_dpo_ext"
html_static_path = ["_static"]
html_css_files = ["charts.css", "site.css"]
html_js_files = ["from_file.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5c8f",
        "color-brand-content": "#0b5c8f",
        "color-brand-visited": "#5b4a9a",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cbcf0",
        "color-brand-content": "#6cbcf0",
        "color-brand-visited": "#b9a8f2",
    },
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
