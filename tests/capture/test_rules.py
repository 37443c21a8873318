"""Each rule alone, on graphs that meet it, against a backward pass a sample; and no rule without such a graph."""

from __future__ import annotations

import functools

import pytest

from gradfunc._capture import _pull, _rules

from .graphs import captured, exact
from .rules_table import PULL_GRAPHS, RULE_GRAPHS

RULES = {**_rules.RULES, **_rules.LATE}
ALONE = [(name, what) for name, graphs in RULE_GRAPHS.items() for what in graphs]
FEW = [(name, what) for name, what in ALONE if not what.startswith(("time ", "row ", "number ", "all "))]
SOME = [*FEW, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ALONE if pair not in FEW)]
PULLED = [(name, what) for name, graphs in PULL_GRAPHS.items() for what in graphs]
SINGLE = {"GroupedMmBackward0"}  # torch has it in single precision only: `test_grouped.py`
# No operation that torch offers in Python on plain tensors records these in this version: nested tensors, and forms
# that share the rule `view` with those above.
UNREACHED = {"SqueezeBackward3", "SqueezeBackward4", "SqueezeBackward5"}
# The structure is lost there, as it must be: rows stop, and one vector-Jacobian product carries them on.
STOPPED = {
    ("SqueezeBackward0", "all, rows"),
    ("ExpandBackward0", "a column, outer"),
    ("RepeatBackward0", "a matrix, outer"),
    ("MulBackward0", "by entry, outer"),
    ("MulBackward0", "broadcast, outer"),
}

INPUTS = {
    **{f"{name}Backward0": {0, 1} for name in ("Mm", "Bmm", "Add", "Sub", "Mul", "Rsub", "Div")},
    **{f"{name}Backward0": {0, 1} for name in ("Lerp", "Maximum", "Minimum", "Fmax", "Fmin")},
    **{f"{name}Backward0": {0, 1, 2} for name in ("Addmm", "Baddbmm", "Addcmul", "Addcdiv")},
    **{f"Native{name}NormBackward0": {1, 2} for name in ("Layer", "Group", "Batch")},
    "ConvolutionBackward0": {1, 2},
    "PowBackward1": {0, 1},
    "LerpBackward1": {0, 2},
    "WhereBackward0": {0, 1},
    "MvBackward0": {1},
    "TrilinearBackward0": {1},
}


class Spy:
    """A rule that counts how often it had an answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, table: dict, name: str) -> None:
        self.asked = self.answered = 0
        real = table[name]

        @functools.wraps(real)
        def spied(site):
            self.asked += 1
            found = real(site)
            self.answered += found is not None
            return found

        monkeypatch.setitem(table, name, spied)


@pytest.mark.parametrize(("name", "what"), SOME)
def test_a_rule_alone(name, what, monkeypatch):
    table = _rules.RULES if name in _rules.RULES else _rules.LATE
    spy, model = Spy(monkeypatch, table, name), RULE_GRAPHS[name][what]
    exact(model)
    assert spy.answered
    used = [use for uses in captured(model).uses.values() for use in uses if use.operation == name]
    assert all(use.rule != "generic" for use in used)


@pytest.mark.parametrize(("name", "what"), PULLED)
def test_a_pullback_alone(name, what, monkeypatch):
    spy = Spy(monkeypatch, _pull._PULLS, name)
    exact(PULL_GRAPHS[name][what])
    assert spy.answered or ((name, what) in STOPPED and spy.asked)


def test_every_rule_has_a_graph():
    assert set(RULE_GRAPHS) | SINGLE == set(RULES)
    assert set(PULL_GRAPHS) | UNREACHED == set(_pull._PULLS)


def test_every_input_of_a_rule_is_met(monkeypatch):
    """A product has its left and its right side, arithmetic either operand, a norm its scale and shift."""
    met: dict[str, set[int]] = {name: set() for name in RULES}
    for name in RULES:
        table = _rules.RULES if name in _rules.RULES else _rules.LATE
        real = table[name]

        def noting(site, real=real, name=name):
            found = real(site)
            if found is not None:
                met[name].add(site.input)
            return found

        monkeypatch.setitem(table, name, functools.wraps(real)(noting))
    for name, what in FEW:
        captured(RULE_GRAPHS[name][what])
    for name, inputs in INPUTS.items():
        assert met[name] >= inputs, name
