"""Every public name is on a page of the reference, documented, typed and exercised by the tests."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from _site.directives import documented
from _site.groups import GROUPS, group_of, top_level
from _site.names import Name, names, namespaces
from _site.signatures import made_by

import gradfunc as gf

TESTS = Path(__file__).parent
PAGES = "\n".join(path.read_text() for path in (TESTS.parent / "notebooks" / "reference").glob("*.md"))
AUDITS = ("test_name_audit.py", "test_public_names.py")  # which name them all


def untyped(value: object) -> list[str]:
    """Parameters of a function, or of a class's public methods, that are not annotated, and missing returns."""
    members = {"": value}
    if inspect.isclass(value):
        own = {key: member for key, member in vars(value).items() if not key.startswith("_")}
        members = {key: getattr(member, "fget", getattr(member, "func", member)) for key, member in own.items()}
    found = []
    for key, member in members.items():
        if not inspect.isfunction(member):
            continue
        signature = inspect.signature(member)
        given = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        found += [f"{key}({p.name})" for p in given if p.annotation is p.empty]
        found += [f"{key}()"] if signature.return_annotation is signature.empty else []
    return found


def on_a_page(name: Name, pages: str) -> bool:
    """Whether some page asks for the namespace of a name, or one around it, or for its group of gf's own names."""
    where = name.path.rpartition(".")[0]
    if where == "gradfunc":
        return f".. group:: {group_of(name)}\n" in pages
    parts = where.split(".")
    around = [".".join(parts[:k]) for k in range(2, len(parts) + 1)]
    return any(f".. namespace:: {path}\n" in pages for path in around)


def aliases(nodes: list[ast.AST]) -> dict[str, str]:
    """Names of a file that stand for something of gradfunc: `{name: path}`."""
    alias: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            alias |= {n.asname or "gradfunc": n.name for n in node.names if n.name.split(".")[0] == "gradfunc"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gradfunc":
            alias |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            path = _path(node.value, alias)
            if path in namespaces():
                alias[node.targets[0].id] = path
    return alias


def used(nodes: list[ast.AST], shared: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Paths from `gradfunc` that code mentions; `shared` are the aliases of files that it may import from."""
    alias = aliases(nodes)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module in shared:
            given = shared[node.module]
            alias |= {n.asname or n.name: given[n.name] for n in node.names if n.name in given}
    found = {*alias.values(), *(path for node in nodes if (path := _path(node, alias)))}
    yield from found
    # A table of names, asked for by getattr.
    if any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" for node in nodes):
        words = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
        yield from (f"{where}.{word}" for where in found & set(namespaces()) for word in words if word.isidentifier())


def _path(node: ast.AST, alias: dict[str, str]) -> str | None:
    chain: list[str] = []
    while isinstance(node, ast.Attribute):
        chain.append(node.attr)
        node = node.value
    return ".".join([alias[node.id], *reversed(chain)]) if isinstance(node, ast.Name) and node.id in alias else None


def values(path: str) -> Iterator[object]:
    """What the parts of a path name, as far as they are there."""
    parts = path.split(".")
    value: object = gf
    for k, part in enumerate(parts[1:], 2):
        if not hasattr(value, part):
            try:
                importlib.import_module(".".join(parts[:k]))
            except ImportError:
                return
        value = getattr(value, part)
        yield value


def exercised(sources: Mapping[str, str]) -> set[int]:
    """What tests `{module: source}` name, and the classes that what they name makes."""
    files = {name: list(ast.walk(ast.parse(source))) for name, source in sources.items()}
    shared = {name: aliases(nodes) for name, nodes in files.items()}
    paths = {path for nodes in files.values() for path in used(nodes, shared)}
    found = [value for path in paths for value in values(path)]
    made = made_by(value for value in found if inspect.isroutine(value) or inspect.isclass(value))
    return {id(value) for value in [*found, *made]}


SOURCES = {path.stem: path.read_text() for path in sorted(TESTS.rglob("*.py")) if path.name not in AUDITS}


def test_every_name_is_documented() -> None:
    assert [name.path for name in names().values() if not documented(name).strip()] == []


def test_every_name_is_typed() -> None:
    functions = [name for name in names().values() if name.kind != "data"]
    assert {name.path: found for name in functions if (found := untyped(name.value))} == {}


def test_every_name_is_on_a_page() -> None:
    assert [name.path for name in names().values() if not on_a_page(name, PAGES)] == []
    assert {group_of(name) for name in top_level()} == set(GROUPS)


@pytest.mark.slow
def test_every_name_is_exercised() -> None:
    seen = exercised(SOURCES)
    assert [name.path for name in names().values() if id(name.value) not in seen] == []


def test_names_are_found_in_what_modules_offer() -> None:
    found = names()
    for path in ("gradfunc.per_sample_grads", "gradfunc.losses.mse", "gradfunc.audit.MECHANISMS", "gradfunc.Grads"):
        assert path in found
    assert len(found) > 330
    assert not [path for path in found if re.search(r"\._|\.(torch|Tensor|annotations|message)$", path)]


def undocumented(x, y: int):
    return x


class Undocumented:
    def method(self, x) -> None:
        """Says little."""


def test_each_check_notices_what_it_is_for() -> None:
    planted = Name("gradfunc.planted.undocumented", undocumented)
    assert documented(planted) == ""
    assert untyped(undocumented) == ["(x)", "()"]
    assert untyped(Undocumented) == ["method(x)"]
    assert not on_a_page(planted, PAGES)
    assert not on_a_page(Name("gradfunc.losses.mse", gf.losses.mse), PAGES.replace(":: gradfunc.losses\n", "\n"))
    assert not on_a_page(Name("gradfunc.undocumented", undocumented), PAGES)
    assert id(gf.losses.mse) not in exercised({"test_x": "import gradfunc as gf\ngf.losses.l1(1, 2)"})


@pytest.mark.parametrize(
    "source",
    [
        "import gradfunc as gf\ngf.losses.mse(1, 2)",
        "import gradfunc\ngradfunc.losses.mse",
        "from gradfunc import losses as other\nother.mse",
        "from gradfunc.losses import mse",
        "import gradfunc as gf\nL = gf.losses\nL.mse",
        "from cases import L as other\nother.mse",
        "import gradfunc as gf\nfor name in ('mse',): getattr(gf.losses, name)",
    ],
)
def test_a_use_is_seen_however_it_is_written(source) -> None:
    assert id(gf.losses.mse) in exercised({"test_x": source, "cases": "import gradfunc as gf\nL = gf.losses"})
