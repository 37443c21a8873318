"""README's page on rules: the rule that it shows, registered as it says, is asked, exact, and gone afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from gradfunc._capture import _rules

from .graphs import Model, captured, exact
from .rules_table import B, T, drawn, scored

README = Path(__file__).parents[2] / "README.md"
GRAPHS = {
    "of one sample's shape": Model(lambda p, x: scored(torch.atan2(p["w"], x)), {"w": drawn(T, 1)}, (drawn(B, T, 4),)),
    "broadcast to all": Model(lambda p, x: scored(torch.atan2(p["w"], x)), {"w": drawn(4)}, (drawn(B, T, 4),)),
}


def shown() -> dict:
    """What the page's code defines."""
    page = README.read_text().partition("## Adding a rule")[2]
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    scope: dict = {}
    exec(code.group(1), scope)
    return scope["RULES"]


@pytest.mark.parametrize("name", GRAPHS)
def test_a_rule_added_as_the_page_says(name, monkeypatch):
    before = [use.rule for use in captured(GRAPHS[name]).uses["w"]]
    for node, rule in shown().items():
        assert node not in _rules.RULES
        monkeypatch.setitem(_rules.RULES, node, rule)
    assert before == ["generic"]
    assert [use.rule for use in captured(GRAPHS[name]).uses["w"]] == ["atan2"]
    exact(GRAPHS[name])


def test_it_declines_what_it_does_not_know(monkeypatch):
    """The other input is not its case: generic, and exact."""
    monkeypatch.setitem(_rules.RULES, "Atan2Backward0", shown()["Atan2Backward0"])
    model = Model(lambda p, x: scored(torch.atan2(x, p["w"])), {"w": drawn(T, 1)}, (drawn(B, T, 4),))
    assert [use.rule for use in captured(model).uses["w"]] == ["generic"]
    exact(model)


def test_a_wrong_rule_is_seen(monkeypatch):
    right = shown()["Atan2Backward0"]

    def wrong(site):
        make = right(site)
        return None if make is None else lambda g: make(2 * g)

    monkeypatch.setitem(_rules.RULES, "Atan2Backward0", wrong)
    with pytest.raises(AssertionError):
        exact(GRAPHS["broadcast to all"])
