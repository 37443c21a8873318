"""The public strategies reach every kind of model, loss and factor, every engine, and every method."""

from __future__ import annotations

import pytest
from coverage_of import MEASURED, missing, reach, shares
from strategies import FAMILIES, of

from gradfunc.testing.strategies import cases

DRAWN = {"the laws' families": [of(family) for family in FAMILIES], "cases()": [cases()]}


@pytest.mark.slow
@pytest.mark.parametrize("what", DRAWN)
def test_nothing_is_missing_in_two_thousand_examples(what):
    """No more than the suite asks at length; the shares are in its record."""
    reached = reach(DRAWN[what], 2000 // len(DRAWN[what]))
    MEASURED[what] = shares(reached)
    assert not missing(reached)


def test_what_is_missing_is_named():
    reached = reach([of(family, models=["linear"]) for family in FAMILIES], 2)
    assert missing(reached)["models"] >= {"lstm", "tied", "experts"}
    assert "pulled back" in missing(reached)["methods"]
