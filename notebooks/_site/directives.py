"""Pages from code: a namespace, a group of `gf`'s own names, and the types that signatures mention."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from gradfunc._transform import Chain
from gradfunc._transform._stage import AnyStage
from gradfunc.cli import app

from .docstrings import parse, to_markdown
from .groups import of_group
from .names import Name, names, namespaces, public
from .signatures import BETWEEN, mentioned

STAGE = ("init", "update", "update_with_report", "flush", "takes", "gives", "name")  # of every stage: see Chain
CLASS = ["   :members:", "   :inherited-members: tuple, dict, BaseException, Exception, Protocol", ""]


class _Pages(SphinxDirective):
    """Directives that write reStructuredText for names."""

    def entries(self, found: Iterable[Name]) -> list[nodes.Node]:
        """A table of the names, each with its first line, and then all about each: functions, classes, data."""
        found = sorted(found, key=lambda name: ("function", "class", "data").index(name.kind))
        rows = [f"| `{name.short}` | {_first_line(name)} |" for name in found]
        table = parse(self, "\n".join(["| name | |", "|---|---|", *rows]))
        return [*table, *self.rst([line for name in found for line in _entry(name)])]

    def rst(self, lines: list[str]) -> list[nodes.Node]:
        """The nodes of some reStructuredText."""
        around = nodes.Element()
        self.state.nested_parse(StringList(lines, "generated"), 0, around)
        return around.children


class Namespace(_Pages):
    """`namespace:: gradfunc.losses`: its docstring and all its names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The module and all about its names; then the same of the modules inside it."""
        where = self.arguments[0]
        if where not in namespaces():
            raise self.error(f"gradfunc has no namespace {where}")
        inner = [path for path in namespaces() if path.startswith(f"{where}.")]
        return [*self.all_about(where), *(self.section(path) for path in inner)]

    def all_about(self, where: str) -> list[nodes.Node]:
        """A module's docstring, a table of its names, and each of them."""
        module, known = namespaces()[where], names()
        about = parse(self, to_markdown(inspect.getdoc(module).splitlines()))
        found = [known[f"{where}.{name}"] for name, _ in public(module)]
        return [*self.rst([f".. py:module:: {where}", ""]), *about, *self.entries(found)]

    def section(self, where: str) -> nodes.section:
        """A module inside the page's own."""
        title = where.replace("gradfunc", "gf", 1)
        out = nodes.section("", nodes.title("", title), ids=[nodes.make_id(title)], names=[title])
        out += self.all_about(where)
        return out


class Group(_Pages):
    """`group:: rules`: some of the names of `gf` itself."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """A table of the names, and each of them."""
        found = of_group(self.arguments[0])
        if not found:
            raise self.error(f"gf has no names of the group {self.arguments[0]}")
        return self.entries(found)


class CommandLine(SphinxDirective):
    """`command-line::`: every command, with its options."""

    def run(self) -> list[nodes.Node]:
        """What the commands' own help says."""
        text = app.generate_docs(output_format="markdown")
        text = text[text.index("\n## gradfunc ") :]  # behind its own title and contents
        return parse(self, re.sub(r"^#(#+) ", r"\1 ", text, flags=re.MULTILINE))


class Notebooks(SphinxDirective):
    """`notebooks`: those that are committed beside the pages, in order."""

    def run(self) -> list[nodes.Node]:
        """A table of contents."""
        found = sorted(doc for doc in self.env.found_docs if doc[:1].isdigit())
        return parse(self, "\n".join(["```{toctree}", ":maxdepth: 1", "", *found, "```"])) if found else []


class Types(_Pages):
    """`types::`: the classes that signatures mention and that have no public name."""

    def run(self) -> list[nodes.Node]:
        """Each class, with its public methods."""
        lines: list[str] = []
        for cls in mentioned():
            hidden = BETWEEN + (STAGE if issubclass(cls, AnyStage) and cls is not Chain else ())
            members = [f"   :exclude-members: {', '.join(hidden)}", *CLASS]
            lines += [f".. autoclass:: {cls.__module__}.{cls.__qualname__}", *members]
        return self.rst(lines)


def _first_line(name: Name) -> str:
    text = documented(name).strip().splitlines()
    return text[0].replace("|", "\\|") if text else ""


def documented(name: Name) -> str:
    """The docstring of a name; of a constant, the string below its assignment, in the file that makes it."""
    if name.kind != "data":
        return inspect.getdoc(name.value) or ""
    where = name.path.rpartition(".")[0]
    for path in _files(namespaces()[where]):
        if f"\n{name.last}" not in inspect.getsource(sys.modules[path]):
            continue
        docs = ModuleAnalyzer.for_module(path).find_attr_docs()
        if ("", name.last) in docs:
            return "\n".join(docs["", name.last])
    return ""


def _files(module: types.ModuleType) -> Iterator[str]:
    yield module.__name__
    for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
        if not info.name.startswith("gradfunc.cli"):
            importlib.import_module(info.name)
            yield info.name


def _entry(name: Name) -> list[str]:
    if name.same:
        return [f"``{name.short}`` is :py:obj:`{name.same}`.", ""]
    if name.kind != "data":
        return [f".. auto{name.kind}:: {name.path}", *(CLASS if name.kind == "class" else [""])]
    text = documented(name).strip() + _contents(name.value)
    where = name.path.rpartition(".")[0]
    return [
        f".. py:data:: {name.last}",
        f"   :module: {where}",
        "",
        "   .. markdown::",
        "",
        *(f"      {line}" for line in text.splitlines()),
        "",
    ]


def _contents(value: object) -> str:
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
    elif isinstance(value, tuple | list):
        keys = [str(getattr(entry, "name", entry)) for entry in value]
    else:
        return ""
    return f"\n\n{len(keys)} entries: {', '.join(f'`{key}`' for key in keys)}."
