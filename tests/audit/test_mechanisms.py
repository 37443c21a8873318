"""Every mechanism, triggered at varied shapes and seeds, is found by its closed form, and no other is claimed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

import gradfunc as gf
from gradfunc._problem import read
from gradfunc._tree import subtract
from gradfunc.audit import MECHANISMS, ReductionReport
from gradfunc.audit._causes import Search, largest
from gradfunc.audit._examples import Example, example
from gradfunc.audit._measure import Measured, measure
from gradfunc.audit._mechanisms import BY_NAME, Mechanism
from gradfunc.audit._predict import Predictor

NAMES = [mechanism.name for mechanism in MECHANISMS]


def audited(made: Example, dtype: str = "float64") -> ReductionReport:
    return gf.audit.reductions(made.model, made.criterion, made.batch, yours=made.yours, dtype=dtype)


@pytest.mark.parametrize("seed", [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 6)]])
@pytest.mark.parametrize("n", [5, 8, 13])
@pytest.mark.parametrize("name", NAMES)
def test_found_to_rounding_and_alone(name: str, n: int, seed: int) -> None:
    made = example(name, n, seed)
    pair = audited(made).pair(*made.pair)
    assert pair.verdict == "wrong"
    assert [cause.mechanisms for cause in pair.causes] == [(name,)]
    # The closed form is exact, so what is left is the rounding of one float64 sum of n terms.
    assert pair.causes[0].relative_error <= 1e-12
    assert pair.causes[0].predicted == pytest.approx(pair.discrepancy, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_found_in_lower_precision_too(name: str, dtype: str) -> None:
    if name == "ctc_lengths" and dtype == "bfloat16":
        with pytest.raises(RuntimeError, match="not implemented for 'BFloat16'"):
            audited(example(name), dtype)
        return
    made = example(name)
    pair = audited(made, dtype).pair(*made.pair)
    assert pair.verdict == "wrong"
    assert [cause.mechanisms for cause in pair.causes] == [(name,)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_found_over_many_shapes_and_seeds(name: str) -> None:
    for seed in range(7, 19):
        for n in (5, 6, 9, 16, 21):
            test_found_to_rounding_and_alone(name, n, seed)


def test_the_list_is_complete_and_documented() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for mechanism in MECHANISMS:
        assert mechanism.kind in ("weight", "forward", "loop")
        assert all((mechanism.says, mechanism.formula, mechanism.remedy, mechanism.moves))
        assert (mechanism.loop is not None) == (mechanism.kind == "loop")
        assert (mechanism.intervene is not None) == (mechanism.kind == "forward")


def measured(made: Example) -> tuple[Measured, Measured]:
    problem = read("test", made.model, made.criterion, made.batch).cast(torch.float64)
    quiet = {"yours": made.yours, "seed": 0, "note": lambda stage: None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on broadcasting and on KLDivLoss's mean
        return measure(problem.cast(torch.float32), **quiet), measure(problem, **quiet)


def broken_versions() -> Iterator[tuple[str, dict[str, Mechanism]]]:
    """A closed form that is off: a mechanism that forgets its weight, its counting, its divisor, or its part."""

    def off_by_one(loop):  # type: ignore[no-untyped-def]
        return lambda case, parts, weights: [(d, c * 1.01) for d, c in loop(case, parts, weights)]

    for mechanism in MECHANISMS:
        if mechanism.weight is not None and mechanism.name != "sample_weights":
            yield mechanism.name, {"weight": lambda case, m=mechanism: m.weight(case) ** 2 + 0.5}
        if mechanism.counts and mechanism.weight is None:
            yield mechanism.name, {"counts": False}
        if mechanism.members is not None:
            yield mechanism.name, {"members": lambda case, parts: [torch.ones(case.size, case.size)] * len(parts)}
        if mechanism.divides is not None:
            yield mechanism.name, {"divides": lambda case, m=mechanism: m.divides(case) + 1}
        if mechanism.loop is not None and mechanism.name not in ("short_last_window", "no_division"):
            yield mechanism.name, {"loop": off_by_one(mechanism.loop)}
        if mechanism.kind == "forward":
            yield mechanism.name, {"intervene": lambda sizes, records: nullcontext()}


@pytest.mark.parametrize(("name", "change"), list(broken_versions()), ids=lambda value: str(value)[:24])
def test_a_broken_closed_form_is_not_claimed(name: str, change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: with its closed form broken, a mechanism must no longer be found, so matching is a real test."""
    made = example(name)
    low, high = measured(made)
    whole = [cause.mechanisms for cause in Search(low, high).causes(*made.pair)]
    assert whole == [(name,)]
    mutant = dataclasses.replace(BY_NAME[name], **change)
    monkeypatch.setitem(BY_NAME, name, mutant)
    mutated = tuple(mutant if m.name == name else m for m in MECHANISMS)
    monkeypatch.setattr("gradfunc.audit._causes.MECHANISMS", mutated)
    assert (name,) not in [cause.mechanisms for cause in Search(low, high).causes(*made.pair)]


def test_a_match_must_hold_at_both_precisions() -> None:
    """A candidate that is right in float32 but wrong in float64 by 1e-9 is not rounding."""
    made = example("class_weights")
    low, high = measured(made)
    nudged = {name: value * (1 + 1e-9) for name, value in high.grads("mean").items()}
    high.estimates["mean"] = dataclasses.replace(high.estimates["mean"], grads=nudged)
    assert Search(low, high).causes("none", "mean") == ()


def test_predictions_agree_with_estimators_without_mechanisms() -> None:
    """On a healthy problem the closed forms of all estimators are the same number."""
    made = example("aliased_first_sample")
    _, high = measured(made)
    predictor = Predictor(high)
    for name in ("none", "sum / n", "mean", "sliced", "re-fed"):
        difference = largest(subtract(predictor.estimate(name, frozenset()), high.grads(name)))
        assert difference <= 1e-12 * high.scale
