"""The reference: `sphinx-build -W -n notebooks build/site`, where a broken reference is an error."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from _site import benchmarks, directives, docstrings, links, signatures  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.domains.python._object import PyObject  # noqa: E402

project = "gradfunc"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_site", "**.ipynb_checkpoints"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
html_theme = "pydata_sphinx_theme"
html_title = "gradfunc"
html_theme_options = {"show_nav_level": 1, "navigation_with_keys": False, "show_prev_next": False}
html_show_sourcelink = False
html_copy_source = False

nb_execution_mode = "off"  # notebooks come with their outputs; the tests run them
myst_enable_extensions = ["fieldlist", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

nitpicky = True
# No network, so no inventories: what Python, torch and matplotlib define has no page to link to.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|matplotlib|os|pathlib|collections|contextlib|types|typing|datetime|hypothesis)(\..*)?"),
    (r"py:.*", r"(nn|np|st|strategies)\..*"),
    (r"py:(class|obj)", r"gradfunc\..*\._\w+\.(In|Out|[A-Z])"),  # type variables
    (r"py:class", r"Tensors?"),  # named tuples and overloads keep their annotations as text
    (r"py:(class|exc|obj)", r"(Figure|Path|TracebackType|KeyboardInterrupt|[A-Z]\w*Error)"),
]


def setup(app: Sphinx) -> None:
    """Directives, links, and docstrings as Markdown."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("gradfunc.plot", "gradfunc._page")):
            vars(module).setdefault("Figure", Figure)  # which they import for type checkers only
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.add_directive("markdown", docstrings.Markdown)
    app.add_directive("namespace", directives.Namespace)
    app.add_directive("group", directives.Group)
    app.add_directive("command-line", directives.CommandLine)
    app.add_directive("notebooks", directives.Notebooks)
    app.add_directive("types", directives.Types)
    app.add_directive("benchmarks", benchmarks.Benchmarks)
    app.add_transform(links.Links)
    app.connect("autodoc-process-docstring", docstrings.process)
    app.connect("autodoc-process-signature", signatures.hide_constructor)
    app.connect("missing-reference", links.resolve)
    app.connect("doctree-read", links.shorten)
