"""What stages on gradients and reductions say of themselves: how they read, defaults, guarantees, facts, states."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch
from oracle import same_bits
from problem import F64, plain, ran

import gradfunc as gf
from gradfunc._transform import Guarantee, Sensitivity, _stage
from gradfunc._transform._guarantee import NOTHING
from gradfunc._transform._reductions import _geometric

inf, nan = math.inf, math.nan
BOTH = {"nonfinite": "raise", "on_zero_weight": "raise"}

# Every factory, and its arguments where they are not given.
DEFAULTS = {
    gf.clip_by_value: {},
    gf.clip_by_global_norm: {"eps": 0.0, "nonfinite": "raise"},
    gf.clip_by_parameter_norm: {"nonfinite": "raise"},
    gf.adaptive_gradient_clip: {"clipping": 0.01, "eps": 1e-3, "nonfinite": "raise"},
    gf.clip_by_ema: {"factor": None, "decay": 0.99, "z_score": None, "warmup": 10, "nonfinite": "raise"},
    gf.skip_nonfinite: {"max_consecutive": None},
    gf.zero_nonfinite: {},
    gf.add_noise: {},
    gf.gaussian_mechanism: {"adjacency": "add_remove", "sensitivity": None},
    gf.ema: {"debias": False},
    gf.add_decayed_weights: {},
    gf.centralize: {},
    gf.sign: {},
    gf.sum: {},
    gf.mean: {"denominator": None, "on_zero_weight": "raise"},
    gf.median: BOTH,
    gf.trimmed_mean: {"trim": 0.1, **BOTH},
    gf.sign_vote: BOTH,
    gf.geometric_median: {"max_iterations": 200, "tolerance": 1e-6, "smoothing": 1e-6, **BOTH},
    gf.from_gram: BOTH,
    gf.accumulate: {},
}


@pytest.mark.parametrize("make", DEFAULTS, ids=lambda make: make.__name__)
def test_defaults(make):
    given = inspect.signature(make).parameters.values()
    assert {one.name: one.default for one in given if one.default is not one.empty} == DEFAULTS[make]


# Every stage as it is written, each of its options once; the numbers at the edges that are allowed among them.
GRADIENT_STAGES = [
    "clip_by_value(0.5)",
    "clip_by_global_norm(1.0)",
    "clip_by_global_norm(2.0, eps=1e-06)",
    "clip_by_global_norm(1.0, nonfinite='skip')",
    "clip_by_parameter_norm(1.0)",
    "clip_by_parameter_norm(1.0, nonfinite='zero')",
    "adaptive_gradient_clip(0.01)",
    "adaptive_gradient_clip(0.5, eps=0.25, nonfinite='keep')",
    "clip_by_ema(2.0)",
    "clip_by_ema(1.0, decay=0.0, warmup=1, nonfinite='skip')",
    "clip_by_ema(z_score=0.0)",
    "clip_by_ema(z_score=2.0, decay=0.5)",
    "skip_nonfinite()",
    "skip_nonfinite(max_consecutive=0)",
    "zero_nonfinite()",
    "add_noise(0.0, seed=1)",
    "gaussian_mechanism(0.0, seed=2, sensitivity=3.0)",
    "gaussian_mechanism(1.5, seed=2, adjacency='replace_one', sensitivity=3.0)",
    "ema(0.0)",
    "ema(0.9, debias=True)",
    "add_decayed_weights(0.0)",
    "centralize()",
    "sign()",
]
REDUCTIONS = [
    "sum()",
    "mean()",
    "mean(denominator=8.0)",
    "mean(on_zero_weight='zero')",
    "mean(denominator=8.0, on_zero_weight='zero')",
    "median()",
    "median(nonfinite='skip', on_zero_weight='zero')",
    "trimmed_mean(0.1)",
    "trimmed_mean(0.0, nonfinite='skip')",
    "sign_vote()",
    "sign_vote(on_zero_weight='zero')",
    "geometric_median()",
    "geometric_median(max_iterations=1, tolerance=0.0, smoothing=0.5, nonfinite='skip', on_zero_weight='zero')",
    "from_gram(weightings.krum(0, select=1))",
    "from_gram(weightings.krum(0, select=1), nonfinite='skip', on_zero_weight='zero')",
    "accumulate(mean(), every=1)",
    "accumulate(sum(), every=2)",
]


def made(text):
    return eval(text, dict(vars(gf)))


@pytest.mark.parametrize("text", [*GRADIENT_STAGES, *REDUCTIONS, "gaussian_mechanism(1.5, seed=2)"])
def test_a_stage_reads_as_it_is_written(text):
    stage = made(text)
    assert repr(stage) == text.replace("weightings.", "")
    assert stage.name == text.split("(")[0]
    assert made(text) == stage or "weightings" in text
    assert stage.takes is (gf.PerSampleGrads if text in REDUCTIONS else gf.Grads)
    assert stage.gives is gf.Grads


@pytest.mark.parametrize("text", [*GRADIENT_STAGES, *REDUCTIONS])
def test_what_is_no_gradient_is_refused_by_the_stage(text):
    stage = made(text)
    expected = "per-sample gradients" if text in REDUCTIONS else r"gradients \{name: tensor\}"
    with pytest.raises(TypeError, match=rf"^{re.escape(repr(stage))}\.update\(.*got an int; expected {expected}"):
        stage.update(3, stage.init({}), {})


# A stage whose number is a schedule, the argument's name, and a number that it may not become.
SCHEDULED = {
    "clip_by_value": (gf.clip_by_value, "limit", 0.0),
    "clip_by_global_norm": (gf.clip_by_global_norm, "max_norm", 0.0),
    "clip_by_parameter_norm": (gf.clip_by_parameter_norm, "max_norm", -1.0),
    "adaptive_gradient_clip": (gf.adaptive_gradient_clip, "clipping", 0.0),
    "clip_by_ema": (gf.clip_by_ema, "factor", 0.9),
    "clip_by_ema, z": (lambda number: gf.clip_by_ema(z_score=number), "z_score", -0.1),
    "add_noise": (lambda number: gf.add_noise(number, seed=0), "std", -1.0),
    "gaussian_mechanism": (
        lambda number: gf.gaussian_mechanism(number, seed=0, sensitivity=1.0), "noise_multiplier", -1.0),
    "ema": (gf.ema, "decay", 1.0),
    "add_decayed_weights": (gf.add_decayed_weights, "weight_decay", inf),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_number_out_of_a_schedule_is_told_by_stage_argument_and_step(name):
    make, argument, bad = SCHEDULED[name]
    good = 1.0 if name != "ema" else 0.5
    stage, params = make(lambda step: good if step == 0 else bad), {"w": torch.ones(2)}
    _, state = stage.update({"w": torch.ones(2)}, stage.init(params), params)
    assert state["count"] == 1
    with pytest.raises(ValueError, match=rf"^{re.escape(repr(stage))}.*{bad} from {argument}\(step=1\)"):
        stage.update({"w": torch.ones(2)}, state, params)
    fixed = make(good)
    if name != "gaussian_mechanism" and name != "add_noise" and name != "ema":  # which count for another reason
        assert "count" not in dict(fixed.init(params) or {})


# --- guarantees -------------------------------------------------------------------------------------

MOVED = Guarantee(bound=3.0, per_sample_independent=True, sensitivity=Sensitivity(2.0, 4.0, 1.0))
LOSES_IT = ("clip_by_ema", "skip_nonfinite", "ema", "sign")  # others are provably no expansion


@pytest.mark.parametrize("text", GRADIENT_STAGES)
def test_what_one_sample_moves_is_kept_or_unknown(text):
    kept = Guarantee(per_sample_independent=True, sensitivity=Sensitivity(2.0, 4.0, 1.0))
    keeps = not text.startswith(LOSES_IT) or text.startswith("skip_nonfinite")
    assert made(text).guarantee(MOVED) == (kept if keeps else NOTHING)


# --- facts ------------------------------------------------------------------------------------------

# norm 13; entries beyond 2: three of four; norms of the parameters: 5 and 12
GIVEN = {"a": torch.tensor([3.0, -4.0], dtype=F64), "b": torch.tensor([[0.0], [12.0]], dtype=F64)}
ODD = {"a": torch.tensor([nan, -inf], dtype=F64), "b": torch.tensor([[0.0], [12.0]], dtype=F64)}
WEIGHTS = {"a": torch.tensor([6.0, 8.0], dtype=F64), "b": torch.tensor([[1.0], [1.0]], dtype=F64)}

# stage -> what it says of GIVEN, of ODD, and of no gradients at all
FACTS = {
    "clip_by_value(2.0)": ({"clipped": 0.75}, {"clipped": 0.5}, {"clipped": 0.0}),
    "clip_by_value(12.0)": ({"clipped": 0.0}, {"clipped": 0.25}, {"clipped": 0.0}),
    "clip_by_global_norm(6.5, nonfinite='keep')": (
        {"norm": 13.0, "factor": 0.5, "clipped": 1.0, "nonfinite": 0.0},
        {"norm": nan, "factor": 1.0, "clipped": 0.0, "nonfinite": 1.0},
        {"norm": 0.0, "factor": 1.0, "clipped": 0.0, "nonfinite": 0.0},
    ),
    "clip_by_global_norm(13.0, nonfinite='zero')": (
        {"norm": 13.0, "factor": 1.0, "clipped": 0.0, "nonfinite": 0.0},
        {"norm": 12.0, "factor": 1.0, "clipped": 0.0, "nonfinite": 0.0},
        {"norm": 0.0, "factor": 1.0, "clipped": 0.0, "nonfinite": 0.0},
    ),
    "clip_by_parameter_norm(6.0, nonfinite='keep')": (
        {"norm": 13.0, "clipped": 0.5, "nonfinite": 0.0},
        {"norm": nan, "clipped": 0.5, "nonfinite": 1.0},
        {},
    ),
    # units: a as a whole, limit 5, and two rows of b, limits 0.5
    "adaptive_gradient_clip(0.5, nonfinite='keep')": ({"clipped": 1 / 3}, {"clipped": 1 / 3}, {"clipped": 0.0}),
    "clip_by_ema(2.0, nonfinite='keep')": (
        {"norm": 13.0, "factor": 1.0, "clipped": 0.0, "nonfinite": 0.0, "limit": inf},
        {"norm": nan, "factor": 1.0, "clipped": 0.0, "nonfinite": 1.0, "limit": inf},
        {"norm": 0.0, "factor": 1.0, "clipped": 0.0, "nonfinite": 0.0, "limit": inf},
    ),
    "skip_nonfinite()": (
        {"skipped": 0, "nonfinite": 0.0},
        {"skipped": 1, "nonfinite": 1.0},
        {"skipped": 0, "nonfinite": 0.0},
    ),
    "zero_nonfinite()": ({"nonfinite": 0}, {"nonfinite": 2}, {"nonfinite": 0.0}),
    "add_noise(0.5, seed=0)": ({"std": 0.5},) * 3,
    "gaussian_mechanism(0.5, seed=0, sensitivity=3.0)": ({"std": 1.5, "sensitivity": 3.0},) * 3,
    "ema(0.5)": (None,) * 3,
    "add_decayed_weights(0.5)": (None,) * 3,
    "centralize()": (None,) * 3,
    "sign()": (None,) * 3,
}


def said(stage, report):
    """The facts as numbers; None where the stage says nothing."""
    assert [name for name, _ in report.stages] in ([], [stage.name])
    return {key: float(value) for key, value in report.stages[0][1].items()} if report.stages else None


@pytest.mark.parametrize("text", FACTS)
def test_facts(text):
    stage = made(text)
    for grads, want in zip((GIVEN, ODD, {}), FACTS[text], strict=True):
        kept = {k: v.clone() for k, v in grads.items()}
        out, _, report = stage.update_with_report(grads, stage.init(WEIGHTS), WEIGHTS)
        got = said(stage, report)
        assert got == (want if want is None else pytest.approx(want, rel=1e-14, nan_ok=True))
        assert list(got or {}) == list(want or {})
        assert list(out) == list(grads)
        assert same_bits(grads, kept)


def test_every_stage_on_gradients_has_its_facts_here():
    assert {text.split("(")[0] for text in FACTS} == {text.split("(")[0] for text in GRADIENT_STAGES}


ROWS = torch.tensor([[1.0, 0.0, 2.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0], [nan, 0.0, 0.0]], dtype=F64)
OWN = torch.tensor([1.0, 2.0, 0.0, 4.0], dtype=F64)  # weights; the third sample is left out


def arithmetic(gram):
    return torch.tensor([3.0, -1.0], dtype=gram.dtype)


REDUCED = {
    "sum": (gf.sum(), {"samples": 4, "weight": 7.0}),
    "mean": (gf.mean(), {"samples": 4, "weight": 7.0}),
    "mean over a number": (gf.mean(denominator=2), {"samples": 4, "weight": 7.0}),
    "median": (gf.median(nonfinite="skip"), {"samples": 2, "nonfinite": 1.0}),
    "trimmed_mean": (gf.trimmed_mean(nonfinite="skip"), {"samples": 2, "nonfinite": 1.0}),
    "sign_vote": (gf.sign_vote(nonfinite="skip"), {"samples": 2, "nonfinite": 1.0}),
    "from_gram": (
        gf.from_gram(arithmetic, nonfinite="skip"),
        {"samples": 2, "nonfinite": 1.0, "coefficients_min": -1.0, "coefficients_max": 3.0, "coefficients_sum": 2.0},
    ),
    # of two rows alike the start is the minimum: one step finds nothing to move
    "geometric_median": (
        gf.geometric_median(nonfinite="skip"),
        {"samples": 2, "nonfinite": 1.0, "iterations": 1, "residual": 0.0},
    ),
    "accumulate": (
        gf.accumulate(gf.sum(), every=1),
        {"samples": 4, "gathered_weight": 7.0, "gathered_batches": 1},
    ),
}


@pytest.mark.parametrize("name", REDUCED)
def test_facts_of_reductions(name):
    stage, want = REDUCED[name]
    g, params = plain(ROWS, OWN)
    _, _, report = stage.update_with_report(g, stage.init(params), params)
    got = said(stage, report)
    assert got == pytest.approx(want, rel=1e-14, abs=1e-15)
    assert list(got) == list(want)


# --- states -----------------------------------------------------------------------------------------

STATES = {
    "clip_by_ema(2.0)": {"seen": torch.int64, "mean": F64, "variance": F64},
    "clip_by_ema(z_score=1.0)": {"seen": torch.int64, "mean": F64, "variance": F64},
    "skip_nonfinite()": {"skipped": torch.int64, "consecutive": torch.int64},
    "add_noise(1.0, seed=0)": {"count": int},
    "gaussian_mechanism(1.0, seed=0, sensitivity=1.0)": {"count": int},
    "ema(0.5)": {"ema/a": torch.float32, "ema/b": torch.float32, "count": int},
    "ema(0.5, debias=True)": {"ema/a": torch.float32, "ema/b": torch.float32, "count": int, "weight": float},
}


def types(state):
    """Of the leaves by path: what a number of Python is, or a tensor's dtype."""
    out = {}
    for key, value in (state or {}).items():
        nested = {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        out |= {k: v.dtype if isinstance(v, torch.Tensor) else type(v) for k, v in nested.items()}
    return out


@pytest.mark.parametrize("text", GRADIENT_STAGES + [text for text in STATES if text not in GRADIENT_STAGES])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_state_keeps_its_types(text, dtype):
    """What a step gives is what `init` gave, whatever the gradients' type: a state can be compiled for, and stored."""
    stage = made(text)
    grads, params = ({k: v.to(dtype) for k, v in values.items()} for values in (GIVEN, WEIGHTS))
    first = stage.init(params)
    assert text not in STATES or types(first) == STATES[text]
    _, state = stage.update(grads, first, params)
    _, state = stage.update(grads, state, params)
    assert types(state) == types(first)
    assert list(state) == list(first)


def test_what_gathers_is_wide():
    """257 is no number of bfloat16: two batches of that sum are 514, and the mean of their rows is 1."""
    g, params = plain(torch.ones(257, 2), dtype=torch.bfloat16)
    stage = gf.accumulate(gf.mean(), every=2)
    state = stage.init(params)
    want = {"count": int, "totals/a": torch.float32, "totals/b": torch.float32, "weight": F64}
    want |= {"seen/a": bool, "seen/b": bool}
    assert types(state) == want
    none, state = stage.update(g, state, params)
    assert none is None
    assert types(state) == want
    assert state["totals"]["a"].tolist() == [257.0]
    out, state = stage.update(g, state, params)
    assert [v.tolist() for v in out.values()] == [[1.0], [1.0]]
    assert {v.dtype for v in out.values()} == {torch.bfloat16}
    assert types(state) == want


# --- one by one -------------------------------------------------------------------------------------


def test_no_skipped_step_at_all():
    stage = gf.skip_nonfinite(max_consecutive=0)
    _, state = stage.update(GIVEN, stage.init(GIVEN))
    with pytest.raises(RuntimeError, match=r"1 steps in a row whose gradients are not finite, this one in \['a'\]"):
        stage.update(ODD, state)


def test_the_geometric_median_is_sought_in_float64():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 4, generator=generator)
    gram, stage = rows @ rows.T, gf.geometric_median(max_iterations=7, tolerance=0.0)
    c, _ = stage.coefficients("", gram)
    want, iterations, _ = _geometric.weiszfeld(gram.double(), 7, 0.0, 1e-6)
    assert iterations == 7
    assert torch.equal(c, want.float())
    assert not torch.equal(c, _geometric.weiszfeld(gram, 7, 0.0, 1e-6)[0])


def test_a_parameter_more_or_less_is_noticed():
    assert list(_stage.gathered("ab", GIVEN.values())) == ["a", "b"]
    for names in ("a", "abc"):
        with pytest.raises(ValueError, match="zip"):
            _stage.gathered(names, GIVEN.values())


def test_samples_with_a_graph_leave_one():
    """The numbers of a report have none."""
    leaf = {k: v.clone().requires_grad_() for k, v in GIVEN.items()}
    for text in FACTS:
        stage = made(text)
        _, _, report = stage.update_with_report(leaf, stage.init(WEIGHTS), WEIGHTS)
        for _, facts in report.stages:
            assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in facts.values()), text


def test_a_sum_of_no_options():
    g, _ = plain(ROWS[:3], OWN[:3])
    assert ran(gf.sum(), g)[0]["b"].tolist() == [4.0, 2.0]


# --- arguments --------------------------------------------------------------------------------------

# Every number that a factory takes, the other arguments that it needs, and whether it may be a schedule.
NUMBERS = {
    (gf.clip_by_value, "limit"): ({}, True),
    (gf.clip_by_global_norm, "max_norm"): ({}, True),
    (gf.clip_by_global_norm, "eps"): ({"max_norm": 1.0}, False),
    (gf.clip_by_parameter_norm, "max_norm"): ({}, True),
    (gf.adaptive_gradient_clip, "clipping"): ({}, True),
    (gf.adaptive_gradient_clip, "eps"): ({}, False),
    (gf.clip_by_ema, "factor"): ({}, True),
    (gf.clip_by_ema, "decay"): ({}, False),
    (gf.clip_by_ema, "z_score"): ({}, True),
    (gf.clip_by_ema, "warmup"): ({}, False),
    (gf.skip_nonfinite, "max_consecutive"): ({}, False),
    (gf.add_noise, "std"): ({"seed": 0}, True),
    (gf.add_noise, "seed"): ({"std": 1.0}, False),
    (gf.gaussian_mechanism, "noise_multiplier"): ({"seed": 0}, True),
    (gf.gaussian_mechanism, "seed"): ({"noise_multiplier": 1.0}, False),
    (gf.gaussian_mechanism, "sensitivity"): ({"noise_multiplier": 1.0, "seed": 0}, False),
    (gf.ema, "decay"): ({}, True),
    (gf.add_decayed_weights, "weight_decay"): ({}, True),
    (gf.mean, "denominator"): ({}, False),
    (gf.trimmed_mean, "trim"): ({}, True),
    (gf.geometric_median, "max_iterations"): ({}, False),
    (gf.geometric_median, "tolerance"): ({}, False),
    (gf.geometric_median, "smoothing"): ({}, False),
    (gf.accumulate, "every"): ({"reduction": gf.sum()}, False),
}


@pytest.mark.parametrize(("make", "argument"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_numbers_are_numbers_and_some_are_schedules(make, argument):
    others, schedule = NUMBERS[make, argument]
    for bad in ("1", [1], True, *([] if schedule else [lambda step: 1.0])):
        with pytest.raises(TypeError, match=rf"^gf\.{make.__name__}\(.*{argument}={re.escape(repr(bad))}"):
            make(**others, **{argument: bad})
    if schedule:
        assert "<lambda>" in repr(make(**others, **{argument: lambda step: 1.0}))


OPEN = {  # ends of ranges that are no part of them
    (gf.clip_by_value, "limit"): (0, nan),
    (gf.clip_by_global_norm, "max_norm"): (0, nan),
    (gf.clip_by_parameter_norm, "max_norm"): (0, nan),
    (gf.adaptive_gradient_clip, "clipping"): (0, nan),
    (gf.adaptive_gradient_clip, "eps"): (0, nan),
    (gf.clip_by_ema, "factor"): (1 - 2**-53, nan),
    (gf.clip_by_ema, "decay"): (1, -(2.0**-1074)),
    (gf.clip_by_ema, "z_score"): (-(2.0**-1074), nan),
    (gf.clip_by_ema, "warmup"): (0, -1),
    (gf.skip_nonfinite, "max_consecutive"): (-1, -2),
    (gf.add_noise, "std"): (-(2.0**-1074), nan),
    (gf.ema, "decay"): (1, -(2.0**-1074)),
    (gf.add_decayed_weights, "weight_decay"): (inf, nan),
    (gf.mean, "denominator"): (0, inf),
    (gf.trimmed_mean, "trim"): (0.5, -(2.0**-1074)),
    (gf.geometric_median, "max_iterations"): (0, -1),
    (gf.geometric_median, "tolerance"): (-(2.0**-1074), nan),
    (gf.geometric_median, "smoothing"): (0, nan),
    (gf.accumulate, "every"): (0, -1),
}


@pytest.mark.parametrize(("make", "argument"), OPEN, ids=lambda part: getattr(part, "__name__", part))
def test_ends_that_are_no_part_of_a_range(make, argument):
    for bad in OPEN[make, argument]:
        with pytest.raises(ValueError, match=rf"^gf\.{make.__name__}\(.*{argument}={re.escape(repr(bad))}"):
            make(**NUMBERS[make, argument][0], **{argument: bad})


@pytest.mark.parametrize("text", ["adaptive_gradient_clip(0.5)", "add_decayed_weights(0.1)"])
def test_what_needs_parameters_says_so_by_name(text):
    with pytest.raises(ValueError, match=rf"^{re.escape(text)}\.update\(grads, state, params\): got no params"):
        made(text).update(GIVEN, (), None)


@pytest.mark.parametrize("text", ["ema(0.5)", "adaptive_gradient_clip(0.5)", "add_decayed_weights(0.1)"])
def test_a_gradient_that_nobody_knows_is_refused_by_the_stage(text):
    stage, own = made(text), {"a": WEIGHTS["a"]}
    with pytest.raises(ValueError, match=rf"^{re.escape(text)}\.update\(.*\): got gradients of \['b'\]"):
        stage.update(GIVEN, stage.init(own), own)


@pytest.mark.parametrize("text", ["clip_by_global_norm(1.0)", "clip_by_ema(2.0)", "adaptive_gradient_clip(0.5)"])
def test_what_is_not_finite_is_refused_by_the_stage(text):
    with pytest.raises(ValueError, match=rf"^{re.escape(text)}\.update\(.*'a'"):
        made(text).update(ODD, made(text).init(WEIGHTS), WEIGHTS)


# --- where tensors lie ------------------------------------------------------------------------------


def tensors_in(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [t for value in tree.values() for t in tensors_in(value)] if isinstance(tree, dict) else []


@pytest.mark.parametrize("text", [*GRADIENT_STAGES, *REDUCTIONS])
def test_a_state_lies_where_the_parameters_do(text):
    """Asked of a device that every machine has: meta."""
    far = {k: torch.empty(2, device="meta") for k in "ab"}
    assert {t.device.type for t in tensors_in(made(text).init(far))} <= {"meta"}
    assert {t.device.type for t in tensors_in(made(text).init({}))} <= {"cpu"}


@pytest.mark.parametrize("text", GRADIENT_STAGES)
def test_gradients_that_are_given_away_are_overwritten(text):
    """The result lies where they lay; those that autograd follows stay as they are."""
    stage = made(text)
    grads = {"a": GIVEN["a"].clone(), "b": GIVEN["b"].clone()}
    want, _ = stage.update(grads, stage.init(WEIGHTS), WEIGHTS)
    where = {k: v.data_ptr() for k, v in grads.items()}
    out, _ = stage.update(dict(grads), stage.init(WEIGHTS), WEIGHTS, donate=True)
    assert {k: v.data_ptr() for k, v in out.items()} == where
    assert same_bits(out, want)
    followed = {"a": GIVEN["a"].clone().requires_grad_(), "b": GIVEN["b"].clone()}
    out, _ = stage.update(dict(followed), stage.init(WEIGHTS), WEIGHTS, donate=True)
    assert out["a"].data_ptr() != followed["a"].data_ptr()
    assert torch.equal(followed["a"], GIVEN["a"])
    assert same_bits({k: v.detach() for k, v in out.items()}, want)


# --- types and empty batches of reductions ------------------------------------------------------------


@pytest.mark.parametrize("text", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_a_reduction_gives_the_parameters_types(text, dtype):
    g, params = plain(ROWS[[0, 1, 2]], dtype=dtype)
    stage = made(text)
    out, state = stage.update(g, stage.init(params), params)
    if out is None:
        out, _ = stage.flush(state, params)
    assert {k: (v.dtype, v.shape) for k, v in out.items()} == {k: (v.dtype, v.shape) for k, v in params.items()}


@pytest.mark.parametrize("text", [text for text in REDUCTIONS if "'zero'" in text])
def test_facts_where_no_sample_is_left(text):
    stage = made(text)
    g, params = plain(ROWS[:2], torch.zeros(2, dtype=F64))
    out, _, report = stage.update_with_report(g, stage.init(params), params)
    if "denominator" not in text:
        assert not any(v.any() for v in out.values())
    want = {"samples": 2, "weight": 0.0} if stage.name == "mean" else {"samples": 0, "nonfinite": 0.0}
    assert said(stage, report) == want
