"""A report as one HTML page: tables, figures, verdict, versions, command; nothing outside of the file is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from . import plot
from ._errors import kind_of, message
from ._report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { border-left: .4rem solid #0072b2; background: #eef5fa; padding: .6rem .9rem; white-space: pre-line; }
.verdict.fault { border-color: #d55e00; background: #fcf1e8; }
.verdict b { display: block; }
.told { white-space: pre-line; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e3e3e3; }
th { border-bottom-color: #888; white-space: nowrap; }
td:first-child { white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.note, figcaption, footer { color: #595959; font-size: .85rem; }
figure { margin: 2rem 0; }
figure svg { display: block; width: auto; height: auto; max-width: 100%; min-width: var(--least); }
footer { margin-top: 3rem; border-top: 1px solid #e3e3e3; }
code { overflow-wrap: anywhere; }
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  .wide { overflow: visible; }
  figure svg { min-width: 0; }
  figure, tr, .verdict { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

_SOURCE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ title }}</h1>
<div class="verdict{{ '' if ok else ' fault' }}"><b>{{ 'Fine.' if ok else 'A fault was found.' }}</b>{{ verdict }}</div>
{% for figure in figures %}
<figure id="figure-{{ figure.name }}">
<div class="wide" role="img" style="--least: {{ figure.least }}rem"
 aria-label="{{ figure.title }}. {{ figure.reading }}">
{{ figure.svg }}
</div>
<figcaption>Figure {{ loop.index }}. {{ figure.title }}.</figcaption>
</figure>
{% endfor %}
{% for part in parts %}
{% if part is string %}
<p class="told">{{ part }}</p>
{% else %}
<h2>{{ part.title }}</h2>
<div class="wide">
<table>
<thead><tr>{% for column in part.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in part.rows %}
<tr>{% for cell in row %}<td{{ numeric(cell) }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if part.note %}
<p class="note">{{ part.note }}</p>
{% endif %}
{% endif %}
{% endfor %}
<footer>
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
{% if command %}
<p>Made by <code>{{ command }}</code></p>
{% endif %}
{% if environment %}
<p>{% for name, value in environment.items() %}{{ name }} {{ value }}{{ '' if loop.last else ', ' }}{% endfor %}.</p>
{% endif %}
</footer>
</body>
</html>
"""
_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_SOURCE)


def page(
    title: str,
    report: Report,
    figures: Mapping[str, Figure] | None = None,
    *,
    environment: Mapping[str, Any] | None = None,
    command: str = "",
    notes: Sequence[str] = (),
) -> str:
    """A report as one self-contained page of HTML: no scripts, and nothing to be fetched.

    Args:
        title: of the page.
        report: its tables and paragraphs, in reading order, with the verdict on top.
        figures: `{name: figure}`, drawn as SVG between verdict and tables. Default: none; `gf.plot.figures(report)`
            gives those that fit.
        environment: `{name: version}`, said at the end.
        command: what made it.
        notes: lines before that.

    Raises:
        TypeError: no report.
        ImportError: figures are given, and matplotlib is not there.

    Example:
        >>> import torch, gradfunc as gf
        >>> report = gf.diagnose.recurrence(torch.eye(2) / 2, steps=10)
        >>> text = gf.page("Half the identity", report, gf.plot.figures(report))
        >>> text.count("<svg"), text.count("<table>"), "<script" in text
        (2, 3, False)
    """
    if not isinstance(report, Report):
        raise TypeError(message("gf.page(title, report)", got=kind_of(report), expected="a report"))
    parts = list(report.parts())
    verdict = [line for part in parts if isinstance(part, str) for line in part.splitlines()]
    verdict = [line.removeprefix("Verdict: ") for line in verdict if line.startswith("Verdict:")]
    return _TEMPLATE.render(
        title=title,
        style=Markup(_STYLE),
        ok=report.ok,
        verdict="\n".join(line[:1].upper() + line[1:] for line in verdict),
        figures=[_drawn(k, name, figure) for k, (name, figure) in enumerate((figures or {}).items(), 1)],
        parts=parts,
        numeric=_numeric,
        environment={name: value for name, value in (environment or {}).items() if value is not None},
        command=command,
        notes=notes,
    )


def _drawn(k: int, name: str, figure: Figure) -> dict[str, Any]:
    title = " ".join(figure.get_suptitle().split())
    svg = Markup(_inline(plot.svg(figure), f"f{k}-"))
    # no smaller than its text can be read at: on a narrow screen it is scrolled
    return {"name": name, "title": title, "reading": figure.get_label(), "svg": svg,
            "least": round(5.2 * figure.get_figwidth())}  # fmt: skip


def _inline(svg: str, prefix: str) -> str:
    """The `<svg>` element of a document, with names of its own: those of all figures of a page are one space."""
    element = svg[svg.index("<svg") :]

    def renamed(tag: re.Match[str]) -> str:
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", tag[0])

    return re.sub(r"<[^<>]*>", renamed, element)


def _numeric(cell: str) -> Markup:
    """A class for cells that are numbers."""
    try:
        float(cell.replace(",", "").rstrip("%x "))
    except ValueError:
        return Markup("")
    return Markup(' class="number"')
