"""Docstrings are Markdown with Google's sections; autodoc expects reStructuredText."""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.docutils import SphinxDirective

NAPOLEON = Config(napoleon_use_ivar=True)
SEVERAL = re.compile(r":(param|ivar) (\w+(?:, \w+)+): (.*)")
RUBRIC = re.compile(r"\.\. rubric:: (\w+)")


def to_markdown(lines: list[str]) -> str:
    """What napoleon made of a docstring: its fields stay, examples become code, and all the rest is as it was."""
    out: list[str] = []
    code = False
    for line in inspect.cleandoc("\n".join(lines)).splitlines():
        starts = line.startswith(">>>")
        if starts and not code:
            out.append("```pycon")
            code = True
        elif code and not line.strip():
            out.append("```")
            code = False
        rubric = RUBRIC.fullmatch(line)
        out.append(f"**{rubric.group(1)}**" if rubric else line)
    return "\n".join([*out, "```"] if code else out)


def one_name_each(lines: list[str]) -> list[str]:
    """A field of several names, `:param a, b: text`, as one field for each: Sphinx would take `a,` for a type."""
    out: list[str] = []
    fields: list[list[str]] = []
    for line in lines:
        several = SEVERAL.fullmatch(line)
        if not (fields and line.startswith(" ")):
            out += [entry for field in fields for entry in field]
            fields = []
        if several:
            kind, names, text = several.groups()
            fields = [[f":{kind} {name}: {text}"] for name in names.split(", ")]
        elif fields:
            fields = [[*field, line] for field in fields]
        else:
            out.append(line)
    return out + [entry for field in fields for entry in field]


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Wrap a docstring into the `markdown` directive."""
    if any(line.strip() for line in lines):
        # As a method's: of a property's first line napoleon takes what is before a colon for its type.
        kind = "method" if what == "property" else what
        fields = GoogleDocstring(lines, NAPOLEON, app, kind, name, obj, options)
        text = to_markdown(one_name_each(fields.lines())).splitlines()
        lines[:] = [".. markdown::", "", *(f"   {line}".rstrip() for line in text), ""]


def parse(directive: SphinxDirective, text: str) -> list[nodes.Node]:
    """The nodes of some Markdown, at the place of a directive."""
    source = directive.get_source_info()[0]
    inner = new_document(source, directive.state.document.settings)
    inner.reporter = directive.state.document.reporter
    parser = MystParser()
    parser.parse(text, inner)
    return inner.children


class Markdown(SphinxDirective):
    """Markdown inside reStructuredText."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Its nodes."""
        return parse(self, "\n".join(self.content))
