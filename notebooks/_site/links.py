"""Names in code spans: each is looked up, and one that gradfunc does not have is a warning."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

import gradfunc as gf

from .names import names

logger = logging.getLogger(__name__)
WRITTEN = re.compile(r"(?<![\w.])gf((?:\.\w+)+)")
WHOLE = re.compile(r"gf((?:\.\w+)+)(?:\([^>]*\))?")
BARE = re.compile(r"(\w+)(?:\([^>]*\))?")


def exists(dotted: str) -> bool:
    """Whether `gf.<dotted>` is there: a name, or an attribute or field of one."""
    value: Any = gf
    for part in dotted.split("."):
        fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
        if not hasattr(value, part):
            return part in fields or part in getattr(value, "__annotations__", {})
        value = getattr(value, part)
    return True


class Links(SphinxTransform):
    """Code spans that are names become references to them."""

    default_priority = 600

    def apply(self, **kwargs: Any) -> None:
        """Change the document in place."""
        known = names()
        for span in list(self.document.findall(nodes.literal)):
            if isinstance(span.parent, addnodes.pending_xref | nodes.reference | nodes.title):
                continue
            text = span.astext()
            for match in WRITTEN.finditer(text):
                if not exists(match.group(1)[1:]):
                    logger.warning("gradfunc has no %s", match.group(0), location=span, type="gradfunc")
            if target := _target(span, text, known):
                refs = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refexplicit": True, "refwarn": True}
                link = addnodes.pending_xref("", span.deepcopy(), refdoc=self.env.docname, **refs)
                link.source, link.line = span.source, span.line
                span.replace_self(link)


def _target(span: nodes.literal, text: str, known: dict[str, Any]) -> str | None:
    if whole := WHOLE.fullmatch(text):
        found = known.get(f"gradfunc{whole.group(1)}")
        return found and (found.same or found.path)
    around: Any = span.parent
    while around is not None and not isinstance(around, addnodes.desc):
        around = around.parent
    bare = BARE.fullmatch(text)
    if bare is None or around is None:
        return None
    own = around[0].get("fullname", ""), around[0].get("module", "")
    word = bare.group(1)
    # Short words of `gf` itself (sum, mean, sign, scale) are more often mathematics than names.
    if own[1] == "gradfunc" and "_" not in word:
        return None
    path = f"{own[1]}.{word}"
    return path if path in known and word != own[0] else None


def resolve(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, inner: Any) -> Any:
    """What a signature names by the file it is in, or by nothing but its name (where only type checkers import it)."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    where, _, last = target.rpartition(".")
    value = getattr(sys.modules.get(where), last, None)
    if value is not None:
        fits = [name for name in names().values() if name.value is value]
    else:
        fits = [name for name in names().values() if target in (name.last, name.short) and name.same is None]
    if len(fits) != 1:
        return None
    args = env, node["refdoc"], app.builder, "obj", fits[0].path, node, inner
    return env.get_domain("py").resolve_xref(*args)


def shorten(app: Sphinx, doctree: nodes.document) -> None:
    """`gf.` before the names of signatures, and nothing before those of private files."""
    for prefix in doctree.findall(addnodes.desc_addname):
        path = prefix.astext()
        short = "" if "._" in path else path.replace("gradfunc.", "gf.", 1)
        prefix.children = [addnodes.desc_sig_name("", short)] if short else []
