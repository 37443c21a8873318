"""The public strategies reach every kind of model, loss and factor, every engine, and every method."""

from __future__ import annotations

import os
import subprocess
import sys

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


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "numbers"), [(None, "4 80"), ("nightly", "40 800"), ("other", "4 80")])
def test_a_nightly_run_asks_ten_times_as_many(profile, numbers):
    environment = {key: value for key, value in os.environ.items() if key != "GRADFUNC_PROFILE"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)} | ({"GRADFUNC_PROFILE": profile} if profile else {})
    code = "import examples; print(examples.EXAMPLES, examples.MANY)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == numbers, done.stderr
