"""Settings of the documentation: ``make docs`` builds it with Sphinx into docs/_build."""

import os
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

CHECKOUT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, CHECKOUT)  # agents and trainers
# Programs whose --help is shown run in this environment, with lines that fit the page.
os.environ |= {"PYTHONPATH": CHECKOUT, "COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

import igsearch_env.credit  # noqa: E402  # from this checkout

project = "igsearch-env"
author = "The igsearch-env maintainers"
html_title = "igsearch-env"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.programoutput",
]
exclude_patterns = ["_build", "_templates", "jupyter_execute"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "remove"  # warnings of libraries

packages = (igsearch_env, igsearch_env.credit)
autosummary_context = {  # a constant has no docstring for a table to show
    "public": {p.__name__: [n for n in p.__all__ if callable(getattr(p, n))] for p in packages}
}
autodoc_default_options = {"no-value": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_use_rtype = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"


def find_by_last_name(app: Sphinx, env: Any, node: Any, content: Any) -> nodes.Element | None:
    """Resolve a Python reference by the end of its name, if a single object ends so.

    So docstrings may say ``World``, and pages ``igsearch_env.World``, of igsearch_env.data.world's.
    """
    if node.get("refdomain") != "py" or app.builder is None:
        return None
    target = "." + node["reftarget"].removeprefix("igsearch_env.").lstrip(".")
    found = {
        (entry.docname, entry.node_id)
        for name, entry in env.domains.python_domain.objects.items()
        if name.endswith(target) and entry.objtype != "module"
    }
    if len(found) != 1:
        return None
    ((page, anchor),) = found
    return make_refnode(app.builder, node["refdoc"], page, anchor, [content], node["reftarget"])


def setup(app: Sphinx) -> None:
    """Register what is defined here."""
    app.connect("missing-reference", find_by_last_name)
