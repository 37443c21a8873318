"""`TransformationConformance`: stages that are right pass, and each broken one breaks the law that it should."""

from __future__ import annotations

import dataclasses
import textwrap
import unittest

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.database import InMemoryExampleDatabase
from tiers import every

import gradfunc as gf

Conformance = gf.testing.strategies.TransformationConformance
QUICK = settings(max_examples=4, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
LONG = settings(QUICK, max_examples=200)
NO_ORDER = "gradients that are reduced have no order"
METHODS = [name for name in vars(Conformance) if name.startswith("test_")]


class Rows:
    """A user's stage from rows to rows, without a state."""

    takes = gives = gf.PerSampleGrads

    def init(self, params):
        return ()

    def update(self, g, state, params=None, /):
        return self.of(g), state


class Reduction(Rows):
    """A user's reduction."""

    gives = gf.Grads


class Batch(Rows):
    """A user's stage on gradients."""

    takes = gives = gf.Grads


def factor(g, bound=1.0):
    """min(1, C / norm), with 1 at norm 0."""
    norms = g.norms().double()
    return torch.where(norms > bound, bound / norms, torch.ones_like(norms))


# --- right ----------------------------------------------------------------------------------------------------------


class Clip(Rows):
    """Clips as the rows are asked for, and says so."""

    def of(self, g):
        ones = torch.ones_like(g.losses)
        return dataclasses.replace(g.scaled(factor(g)), _losses=g.losses * ones)

    def guarantee(self, before, /):
        return dataclasses.replace(before, bound=1.0, per_unit_weight=False)


class Undeclared:
    """Two methods, no places, no `>>`."""

    def init(self, params):
        return {"calls": 0}

    def update(self, g, state, params=None, /):
        return g.scaled(torch.full((g.batch_size,), 0.5)), {"calls": state["calls"] + 1}


class ClippedSum(Reduction):
    """One product for a clip and a sum."""

    def of(self, g):
        return g.weighted_sum(factor(g))

    def guarantee(self, before, /):
        guarded = gf.clip_per_sample(1.0) >> gf.sum()
        return guarded.guarantee(before)


class Momentum(Batch):
    """A running average as a user writes it."""

    def init(self, params):
        return {name: torch.zeros_like(value) for name, value in params.items()}

    def update(self, grads, state, params=None, /):
        state = {name: 0.5 * state[name] + value for name, value in grads.items()}
        return {name: value.clone() for name, value in state.items()}, state


class Descent:
    """An update rule as a user writes it."""

    takes, gives = gf.Grads, gf.Updates

    def init(self, params):
        return (0,)

    def update(self, grads, state, params=None, /):
        return {name: -value / (1 + state[0]) for name, value in grads.items()}, (state[0] + 1,)


RIGHT = {
    "clip": (lambda: gf.clip_per_sample(1.0), {"bound": 1.0, "idempotent": True}),
    "clip per unit": (lambda: gf.clip_per_sample(0.3, per_unit_weight=True), {"bound": 0.3, "per_unit_weight": True}),
    "normalise": (lambda: gf.normalize_per_sample(1.0), {"bound": 1.0}),
    "clip by value": (lambda: gf.clip_value_per_sample(0.3), {}),
    "clipped mean": (lambda: gf.clip_per_sample(1.0) >> gf.mean(denominator=5.0), {}),
    "median": (lambda: gf.median(), {}),
    "whole step": (lambda: gf.clip_per_sample(1.0) >> gf.mean() >> gf.add_noise(0.1, seed=0) >> gf.adam(1e-3), {}),
    "waits": (lambda: gf.clip_per_sample(1.0) >> gf.accumulate(gf.sum(), every=3) >> gf.sgd(0.1), {}),
    "global norm": (lambda: gf.clip_by_global_norm(1.0), {"bound": 1.0, "idempotent": True}),
    "ema": (lambda: gf.ema(0.9), {}),
    "scale": (lambda: gf.scale(0.5), {}),
    "my clip": (Clip, {"bound": 1.0, "idempotent": True}),
    "my two methods": (Undeclared, {}),
    "my clipped sum": (ClippedSum, {}),
    "my momentum": (Momentum, {}),
    "my rule": (Descent, {}),
}


def conformance(make, examples=QUICK, **attributes):
    """The class a user writes."""
    return type(
        "TestMine", (Conformance,), {"transformation": staticmethod(make), "settings": examples, **attributes}
    )()


def asked(one):
    """Which tests ran and do apply."""
    ran = []
    for name in METHODS:
        try:
            getattr(one, name)()
        except unittest.SkipTest:
            continue
        else:
            ran.append(name)
    return ran


@pytest.mark.parametrize("name", every(5, RIGHT))
def test_what_is_right_passes(name):
    make, attributes = RIGHT[name]
    ran = asked(conformance(make, **attributes))
    assert "test_transformation_laws" in ran
    assert ("test_norm_bounded" in ran) == ("bound" in attributes)
    assert ("test_guarantee_holds" in ran) == hasattr(make(), "guarantee")


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes_at_length(name):
    make, attributes = RIGHT[name]
    halves = {"dtypes": (torch.float64, torch.float32, torch.bfloat16)}
    assert asked(conformance(make, LONG, **halves, **attributes))


# --- broken ---------------------------------------------------------------------------------------------------------


class WritesToInput(Batch):
    def of(self, grads):
        for value in grads.values():
            value.mul_(0.5)
        return {name: value.clone() for name, value in grads.items()}


class WritesToState(Momentum):
    def update(self, grads, state, params=None, /):
        for name, value in grads.items():
            state[name].mul_(0.5).add_(value)
        return {name: value.clone() for name, value in state.items()}, state


class WritesToParameters(Batch):
    def update(self, grads, state, params=None, /):
        for name, value in grads.items():
            params[name].sub_(value)
        return {name: torch.zeros_like(value) for name, value in grads.items()}, state


class HandsOutItsState(Momentum):
    def update(self, grads, state, params=None, /):
        state = {name: 0.5 * state[name] + value for name, value in grads.items()}
        return dict(state), state


class RemembersInside(Batch):
    def __init__(self):
        self.count = 0

    def of(self, grads):
        self.count += 1
        return {name: value / self.count for name, value in grads.items()}


class RemembersAnObject(Batch):
    def init(self, params):
        return {"seen": {1, 2}}

    def of(self, grads):
        return {name: value.clone() for name, value in grads.items()}


class ByPosition(Rows):
    def of(self, g):
        return g.scaled(torch.arange(1, g.batch_size + 1).double())


class MeanOfMeans(Reduction):
    def of(self, g):
        means = [part.mean(on_zero_weight="zero") for part in g.split(2)]
        return {name: torch.stack([mean[name] for mean in means]).mean(0) for name in g.names}


class HalfTheBound(Clip):
    def guarantee(self, before, /):
        return dataclasses.replace(before, bound=0.5)


class HalfTheSensitivity(ClippedSum):
    def guarantee(self, before, /):
        true = super().guarantee(before)
        half = dataclasses.replace(true.sensitivity, add_remove=0.5, replace_one=1.0)
        return dataclasses.replace(true, sensitivity=half)


class NotIndependent(Rows):
    def of(self, g):
        return g.scaled(torch.where(g.norms() >= g.norms().max(), 1.0, 0.5))

    def guarantee(self, before, /):
        return before


class OverTheBound(Clip):
    def of(self, g):
        return g.scaled(factor(g) * (1 + 1e-5))


class Wider(Batch):
    def of(self, grads):
        return {
            name: value.double() if value.dtype != torch.float64 else value.float() for name, value in grads.items()
        }


class LosesOne(Reduction):
    def of(self, g):
        return dict(list(g.sum().items())[1:])


class LosesASample(Rows):
    def of(self, g):
        return g.select(g.norms() > 0)


class Draws(Batch):
    def of(self, grads):
        return {name: value + torch.randn_like(value) for name, value in grads.items()}


class SeedsAnew(Batch):
    def of(self, grads):
        torch.manual_seed(0)
        return {name: value + torch.randn_like(value) for name, value in grads.items()}


class ByNormOrNan(Batch):
    def of(self, grads):
        norm = torch.stack([value.double().norm() for value in grads.values()]).norm()
        return {name: (value / norm).to(value) for name, value in grads.items()}


class WithEpsilon(Clip):
    def of(self, g):
        return g.scaled((1 / (g.norms().double() + 1e-6)).clamp(max=1))


class OutOfPlace:
    takes = gives = gf.Grads

    def init(self, params):
        return ()

    def update(self, grads, state, params=None, /):
        return grads


BROKEN = {
    "writes to its input": (
        WritesToInput,
        "laws",
        "touches nothing",
        r"grads\['.*'\] (has other values|was written to)",
    ),
    "writes to its state": (WritesToState, "laws", "touches nothing", "the state"),
    "writes to parameters": (WritesToParameters, "laws", "touches nothing", r"params\['.*'\] "),
    "hands out its state": (HandsOutItsState, "laws", "touches nothing", "shares the memory of the next state"),
    "remembers inside": (RemembersInside, "laws", "remembers in its state alone", "other values: tensor 0 is"),
    "a state of objects": (RemembersAnObject, "laws", "has a plain state", "cannot be stored"),
    "by position": (ByPosition, "permutation", "permuting samples", "rows of '.*', sample .: .* apart on a scale of"),
    "mean of means": (MeanOfMeans, "permutation", "permuting samples", "the output of '.*': .* apart"),
    "half the bound": (HalfTheBound, "guarantee", "guaranteed bounds hold", "sample .: a norm of .* over 0.5"),
    "half the sensitivity": (HalfTheSensitivity, "guarantee", "guaranteed sensitivity holds", "left out|replaced"),
    "not independent": (
        NotIndependent,
        "guarantee",
        "guaranteed rows are independent",
        "with other samples beside sample",
    ),
    "over the bound": (OverTheBound, "norm", "norms are at most 1", r"allowed .*gamma_\d+"),
    "another dtype": (Wider, "laws", "keeps names shapes and dtypes", "not torch.float"),
    "loses a parameter": (LosesOne, "laws", "keeps names shapes and dtypes", "are lost"),
    "loses a sample": (LosesASample, "laws", "keeps names shapes and dtypes", "samples of .: leave one out by"),
    "draws globally": (Draws, "laws", "touches nothing", "torch's generator moved"),
    "seeds globally": (SeedsAnew, "laws", "touches nothing", "torch's generator moved"),
    "NaN at norm 0": (ByNormOrNan, "laws", "gives finite for finite", "of gradients of 0: .* is not finite"),
    "1e-6 in the norm": (WithEpsilon, "norm", "twice is once", "no rounding"),
    "no pair": (OutOfPlace, "laws", "keeps names shapes and dtypes", "not a pair"),
}
TESTS = {
    "laws": "test_transformation_laws",
    "permutation": "test_permutation_equivariant",
    "guarantee": "test_guarantee_holds",
    "norm": "test_norm_bounded",
}


@pytest.mark.parametrize("name", every(3, BROKEN))
def test_what_is_broken_breaks_its_law(name):
    make, test, law, how = BROKEN[name]
    kept = settings(QUICK, max_examples=60)  # it stops at the first
    options = {"bound": 1.0, "idempotent": True} if test == "norm" else {}
    with pytest.raises((AssertionError, TypeError), match=rf"(?s)broken: {law}.*{how}") as caught:
        getattr(conformance(make, kept, **options), TESTS[test])()
    assert "Replay: the same call" in str(caught.value)


def test_a_failing_example_is_what_a_person_reads():
    shrinking = settings(QUICK, phases=[Phase.generate, Phase.shrink], max_examples=60)
    with pytest.raises(AssertionError) as caught:
        conformance(LosesOne, shrinking).test_transformation_laws()
    # one sample of one entry, printed without what is at its default
    assert "TestMine_conforms(\n    drawn=Drawn(rows=SyntheticGrads())," in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize(
    "name", every(4, ["loses a parameter", "hands out its state", "over the bound", "by position"])
)
def test_its_replay_works_when_pasted(name):
    make, test, law, _ = BROKEN[name]
    shrinking = settings(QUICK, phases=[Phase.generate, Phase.shrink], max_examples=60)
    mine = conformance(make, shrinking, **({"bound": 1.0} if test == "norm" else {}))
    with pytest.raises(AssertionError) as caught:
        getattr(mine, TESTS[test])()
    first, _, lines = caught.value.__notes__[0].partition("\n")
    assert first == "Replay, beside TestMine:"
    with pytest.raises(AssertionError, match=rf"broken: {law}") as again:
        exec(textwrap.dedent(lines), {"gf": gf, "torch": torch, "TestMine": type(mine)})
    assert str(again.value) == str(caught.value)


@pytest.mark.slow
def test_classes_keep_failing_examples_of_their_own():
    """One that fails for four samples does not make another, which fails for one, show four."""

    class Small(Rows):
        def of(self, g):
            if g.batch_size > 3:
                raise RuntimeError("too many")
            return g

    kept = settings(database=InMemoryExampleDatabase(), deadline=None, derandomize=False)
    with pytest.raises(RuntimeError, match="too many"):
        conformance(Small, kept).test_transformation_laws()
    other = type("TestOther", (Conformance,), {"transformation": LosesOne, "settings": kept})
    with pytest.raises(AssertionError) as caught:
        other().test_transformation_laws()
    assert "drawn=Drawn(rows=SyntheticGrads())," in "\n".join(caught.value.__notes__)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my clip", "my two methods", "my momentum", "global norm"])
def test_what_is_right_passes_in_half_types(name):
    """2^30 times a row is no number of float16, nor is a thousand times a long one."""
    make, attributes = RIGHT[name]
    some = settings(QUICK, max_examples=60)
    assert asked(conformance(make, some, dtypes=(torch.float16, torch.bfloat16), **attributes))


def test_a_class_of_unittest():
    body = {"transformation": staticmethod(lambda: gf.scale(0.5)), "settings": QUICK}
    made = type("TestMine", (Conformance, unittest.TestCase), body)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(made).run(result)
    assert result.testsRun == len(METHODS)
    assert result.wasSuccessful()
    assert {reason for _, reason in result.skipped} == {"no bound is stated", NO_ORDER}


def test_a_method_or_a_class_makes_it_too():
    def make(self):
        return gf.scale(0.5)

    for given in (make, Undeclared, lambda: gf.scale(2.0)):
        body = {"transformation": given, "settings": settings(QUICK, max_examples=2)}
        type("TestMine", (Conformance,), body)().test_transformation_laws()


def test_it_takes_what_it_is_said_to_take():
    class Halved(Undeclared):
        def update(self, grads, state, params=None, /):
            return {name: value / 2 for name, value in grads.items()}, state

    with pytest.raises(AttributeError) as caught:
        conformance(Halved).test_transformation_laws()
    assert "For gradients: takes = gf.Grads." in caught.value.__notes__[1]
    conformance(Halved, takes=gf.Grads).test_transformation_laws()
    with pytest.raises(unittest.SkipTest, match="no order"):
        conformance(Halved, takes=gf.Grads).test_permutation_equivariant()
    with pytest.raises(unittest.SkipTest, match="False"):
        conformance(ByPosition, permutation_equivariant=False).test_permutation_equivariant()


CALL = "gf.testing.strategies.TransformationConformance (TestMine): got "
BAD = [
    ({"transformation": None}, TypeError, "None as transformation; expected a function that makes one. Write `"),
    ({"transformation": gf.scale(1.0)}, TypeError, "a Scale as transformation; expected a function that makes one"),
    ({"transformation": lambda: 3}, TypeError, "an int; expected an object with init(params) and update(grads, "),
    ({"transformation": lambda: Clip}, TypeError, "the class Clip; expected an object with init(params)"),
    ({"takes": dict}, TypeError, "takes=<class 'dict'>; expected gf.PerSampleGrads, gf.Grads, gf.Updates, or None"),
    ({"permutation_equivariant": 1}, TypeError, "permutation_equivariant=1; expected True or False"),
    ({"bound": "1"}, TypeError, "bound='1'; expected a number"),
    ({"bound": 0.0}, ValueError, "bound=0.0; expected a finite number > 0"),
    ({"bound": 1.0, "idempotent": None}, TypeError, "idempotent=None; expected True or False"),
    ({"dtypes": torch.float32}, TypeError, "dtypes=torch.float32; expected a list of torch dtypes"),
    ({"dtypes": ()}, TypeError, "dtypes=(); expected a list of torch dtypes"),
    ({"settings": 5}, TypeError, "settings=5; expected hypothesis.settings(...), or None"),
]


@pytest.mark.parametrize(
    ("attributes", "kind", "text"), BAD, ids=[f"{next(reversed(a))} {k}" for k, (a, *_) in enumerate(BAD)]
)
def test_bad_attributes(attributes, kind, text):
    body = {"transformation": staticmethod(lambda: gf.clip_per_sample(1.0)), "settings": QUICK, **attributes}
    made = type("TestMine", (Conformance,), body)()
    with pytest.raises(kind) as caught:
        asked(made)
    assert str(caught.value).startswith(CALL + text)
