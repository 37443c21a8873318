"""The page: every table and figure, nothing from elsewhere, names as text and never as HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

import jinja2
import pytest
import torch
from torch import nn

import gradfunc as gf
from gradfunc import _page
from gradfunc._report import Report, Table

EVIL = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Said(Report):
    fine: bool = True
    name: str = EVIL

    @property
    def ok(self):
        return self.fine

    def parts(self):
        table = Table(f"Title {self.name}", ["layer", self.name], [[self.name, "1.5e-03"], ["a & b", "-"]], "note <b>")
        return [table, f"Some words {self.name}.\nVerdict: all is {self.name}."]

    def to_dict(self):
        return {}


class Read(HTMLParser):
    """Tags in order, with their attributes, and text; unbalanced tags raise."""

    VOID = ("meta", "br", "img", "link", "hr")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    net = nn.Module()
    for name in (EVIL, "plain"):
        net.add_module(name.replace(".", ""), nn.Linear(4, 4))
    net.forward = lambda x: torch.tanh(net.plain(torch.tanh(getattr(net, EVIL)(x))))
    x = torch.randn(8, 4)
    return gf.diagnose.gradient_flow(net, nn.MSELoss(), (x, x))


@pytest.fixture(scope="module")
def text(flow):
    return gf.page(
        "Flow", flow, gf.plot.figures(flow), environment={"torch": "2.13", "commit": None}, command="gradfunc <f>"
    )


def test_every_table_and_figure_is_there(flow, text):
    read = Read(text)
    assert read.tags.count("svg") == read.tags.count("figure") == len(gf.plot.figures(flow)) == 2
    tables = [part for part in flow.parts() if isinstance(part, Table)]
    assert read.tags.count("table") == len(tables)
    cells = [cell for table in tables for row in table.rows for cell in row if cell]
    for said in [*cells, *(table.title for table in tables), *(column for t in tables for column in t.columns)]:
        assert said in read.text
    for figure in gf.plot.figures(flow).values():
        assert " ".join(figure.get_suptitle().split()) in read.text


def test_nothing_from_elsewhere(text):
    read = Read(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(read.tags)
    for tag, key, value in read.attributes:
        if key in ("href", "src", "xlink:href"):
            assert value.startswith("#"), (tag, value)
        assert not key.startswith("on"), (tag, key)
        if key not in ("xmlns", "xmlns:xlink"):
            assert "//" not in (value or ""), (tag, key, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_ids_are_of_their_own_and_references_lead_somewhere(text):
    read = Read(text)
    ids = [value for _, key, value in read.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for _, key, value in read.attributes if key in ("href", "xlink:href")}
    used |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert used
    assert used <= set(ids)


def test_without_prefixes_ids_would_collide(flow, monkeypatch):
    """The law above can fail."""
    inline = _page._inline
    monkeypatch.setattr(_page, "_inline", lambda svg, prefix: inline(svg, ""))
    with pytest.raises(AssertionError):
        test_ids_are_of_their_own_and_references_lead_somewhere(gf.page("Flow", flow, gf.plot.figures(flow)))


def test_names_are_text(text):
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert Read(text).text.count(EVIL) >= 3, "in both tables, and in a figure"


def test_names_are_text_everywhere():
    made = gf.page(EVIL, Said(), environment={EVIL: EVIL}, command=EVIL, notes=[EVIL])
    assert "<script" not in made
    assert "<b>" not in made.replace("<b>Fine.</b>", "")
    assert Read(made).text.count(EVIL) == 12


def test_a_page_that_does_not_escape_is_caught(monkeypatch):
    source = _page._SOURCE
    monkeypatch.setattr(_page, "_TEMPLATE", jinja2.Environment(autoescape=False).from_string(source))
    with pytest.raises(AssertionError):
        test_names_are_text_everywhere()


def test_the_verdict_is_on_top():
    for fine, told in ((True, "Fine."), (False, "A fault was found.")):
        read = Read(gf.page("A page", Said(fine, "well")))
        assert read.text.index(told) < read.text.index("Title well")
        assert "All is well." in read.text
        assert (("div", "class", "verdict fault") in read.attributes) is not fine


def test_environment_command_and_notes(text):
    read = Read(text)
    assert "torch 2.13." in read.text
    assert "commit" not in read.text
    assert "Made by gradfunc <f>" in read.text
    assert "Because." in Read(gf.page("A page", Said(), notes=["Because."])).text


def test_numbers_are_marked_as_numbers():
    assert gf.page("A page", Said()).count('<td class="number">') == 1


def test_the_same_report_gives_the_same_page(flow, text):
    again = gf.page(
        "Flow", flow, gf.plot.figures(flow), environment={"torch": "2.13", "commit": None}, command="gradfunc <f>"
    )
    assert again == text


def test_no_report():
    with pytest.raises(TypeError, match=r"gf\.page\(title, report\): got a str; expected a report"):
        gf.page("A page", "report")
