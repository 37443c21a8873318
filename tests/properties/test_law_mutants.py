"""Each planted mistake against the law that must notice it, and without mistakes none complains; then all laws."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from claims import Law, check
from laws import LAWS, rows_are_plain_autograd
from matrix import MATRIX
from mutants import CASES, MUTANTS
from purity import PURITY

from gradfunc._per_sample import _function

EVERY = [*LAWS, *PURITY]


def verdicts(law: Law) -> Iterator[str]:
    """For each case that the law can be asked of: "" for green, "!" for an error, "x" for red."""
    for case in CASES:
        if law is rows_are_plain_autograd and case.dropout:
            continue
        try:
            check(law, case)
        except (AssertionError, pytest.fail.Exception):
            yield "x"
        except Exception:
            yield "!"
        else:
            yield ""


@pytest.mark.parametrize("law", EVERY, ids=lambda law: law.__name__)
def test_no_law_complains_without_a_mistake(law):
    assert not any(verdicts(law))


@pytest.mark.parametrize("name", MUTANTS)
def test_the_law_notices(name, monkeypatch):
    assert "x" in asked(name, [MUTANTS[name].law], monkeypatch)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_which_laws_notice(name, monkeypatch):
    """The table at the end of a run, and in its record."""
    row = MATRIX[name] = dict(zip([law.__name__ for law in EVERY], asked(name, EVERY, monkeypatch), strict=True))
    assert row[MUTANTS[name].law.__name__] == "x"


def asked(name: str, laws: list[Law], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The worst verdict of each law with a mistake planted."""
    # The laws are asked here, not the check that the engine makes of itself.
    monkeypatch.setattr(_function, "verify", lambda *given: None)
    MUTANTS[name].plant(monkeypatch)
    return [max(verdicts(law)) for law in laws]


def test_every_law_is_broken_by_a_mistake():
    assert {mutant.law for mutant in MUTANTS.values()} == set(EVERY)
