"""Every number of every report of a stage on rows, against rows that are spelled out."""

from __future__ import annotations

import math

import pytest
import torch
from problem import F64, KINDS, plain

import gradfunc as gf
from gradfunc._transform import StepReport

INF, NAN = math.inf, math.nan
MATRIX = torch.tensor(
    [
        [0.3, 0.4, 0.0],  # of norm 1/2
        [0.0, 0.0, 0.0],
        [3.0, 0.0, 4.0],
        [0.0, INF, 1.0],
        [0.15, 0.0, 0.2],
        [6.0, 8.0, 0.0],
        [0.0, 0.0, 0.8],
    ],
    dtype=F64,
)
WEIGHTS = torch.tensor([2.0, 1.0, 4.0, 1.0, 0.5, 0.0, 0.25], dtype=F64)
FINITE = MATRIX.isfinite().all(1)
QUANTILES = {"min": 0.0, "median": 0.5, "max": 1.0}


def said(stage, matrix=MATRIX, weights=WEIGHTS, chunk_size=None, query=None):
    g, params = plain(matrix, weights, chunk_size=chunk_size)
    step = gf.chain(stage) if query is None else stage >> query
    _, _, report = step.update_with_report(g, step.init(params), params)
    assert list(report.to_dict()) == ["ok", "stages"]
    return report.ok, {fact: float(value) for fact, value in report[stage.name].items()}


def by_hand(pieces, n):
    """The facts, of `[norms, factors, finite]` a group; nothing to sort is NaN."""
    norms, c, finite = (torch.cat(each) for each in zip(*pieces, strict=True))
    facts = {
        "clipped": float(((c < 1) & (norms > 0) & finite).sum()) / max(len(c), 1),
        "nonfinite": float((~finite).sum()) / max(len(c), 1),
    }
    for name, values in {"norm": norms, "after": norms * c, "factor": c}.items():
        for which, q in QUANTILES.items():
            good = values[finite]
            facts[f"{name}_{which}"] = float(good.quantile(q)) if len(good) else NAN
    return facts


def same(got, want):
    assert list(got) == list(want)
    for fact, value in want.items():
        assert got[fact] == pytest.approx(value, rel=1e-14, abs=0, nan_ok=True), fact


def clips(c, eps=0.0):
    return lambda n, u: torch.where(n + eps * u > c * u, c * u / (n + eps * u), 1.0)


def normalizes(c, gamma):
    return lambda n, u: torch.where(n > 0, c * u / (n + gamma * u), 1.0)


# The stage (of the policy), whether it looks at norms per unit of weight, and its factors of norms and units.
STAGES = {
    "clip": (lambda **o: gf.clip_per_sample(0.4, **o), False, clips(0.4)),
    "clip, eps": (lambda **o: gf.clip_per_sample(0.4, eps=0.5, **o), False, clips(0.4, 0.5)),
    "clip per unit": (lambda **o: gf.clip_per_sample(0.4, per_unit_weight=True, **o), True, clips(0.4)),
    "normalise": (lambda **o: gf.normalize_per_sample(0.7, stability=0.2, **o), False, normalizes(0.7, 0.2)),
    "normalise per unit": (
        lambda **o: gf.normalize_per_sample(0.7, stability=0.2, per_unit_weight=True, **o),
        True,
        normalizes(0.7, 0.2),
    ),
    "adaptive clip": (lambda **o: gf.adaptive_clip_per_sample(0.4, **o), False, clips(0.4)),
    "adaptive clip, unit": (lambda **o: gf.adaptive_clip_per_sample(0.4, unit=True, **o), False, clips(0.4)),
}
ROWS = {"some": slice(None), "finite": FINITE, "none": slice(0, 0), "one": slice(5, 6), "not finite": slice(3, 4)}


def piece(matrix, weights, finite, per_unit, factor):
    """Of one group of parameters: lengths, factors and what is finite."""
    norms = torch.where(finite, matrix.norm(dim=1), 0.0)
    unit = weights if per_unit else torch.ones_like(weights)
    lengths = torch.where(unit > 0, norms / unit, 0.0)
    return lengths, torch.where(finite & (norms + unit > 0), factor(norms, unit), 1.0), finite


@pytest.mark.parametrize("which", ROWS)
@pytest.mark.parametrize("name", STAGES)
def test_what_is_done_to_norms(name, which):
    """With and without a query behind, of rows kept or streamed, by all policies that give a report."""
    make, per_unit, factor = STAGES[name]
    matrix, weights, finite = MATRIX[ROWS[which]], WEIGHTS[ROWS[which]], FINITE[ROWS[which]]
    want = by_hand([piece(matrix, weights, finite, per_unit, factor)], len(matrix))
    want = {"max_norm": 0.4, **want} if name.startswith("adaptive") else want
    policies = ["raise"] if bool(finite.all()) else ["skip", "zero", "keep"]
    for policy in policies:
        for chunk_size in KINDS.values():
            for query in (None, gf.sum()):
                ok, got = said(make(nonfinite=policy), matrix, weights, chunk_size, query)
                same(got, want)
                assert ok is bool(finite.all())


GROUPS = {"parameter": ("parameter", {"a": ([0], 0.4), "b": ([1, 2], 0.4)}), "regex": (
    {"b": 0.7}, {"b": ([1, 2], 0.7), "others": ([0], 0.4)},
)}  # fmt: skip


@pytest.mark.parametrize("per_unit", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("policy", ["skip", "zero", "raise"])
def test_what_is_done_to_groups(policy, groups, per_unit):
    """What was left out for one group's sake is not finite in all of them."""
    given, parts = GROUPS[groups]
    keep = FINITE if policy == "raise" else slice(None)
    matrix, weights, finite = MATRIX[keep], WEIGHTS[keep], FINITE[keep]
    units = torch.where(finite, weights, 0.0) if policy == "skip" else weights
    pieces = [piece(matrix[:, at], units, finite, per_unit, clips(c)) for at, c in parts.values()]
    want = by_hand(pieces, len(matrix))
    each = {
        f"clipped[{label}]": by_hand([one], len(matrix))["clipped"] for label, one in zip(parts, pieces, strict=True)
    }
    stage = gf.clip_per_sample(0.4, groups=given, per_unit_weight=per_unit, nonfinite=policy)
    for chunk_size in KINDS.values():
        for query in (None, gf.sum()):
            ok, got = said(stage, matrix, weights, chunk_size, query)
            same(got, {**want, **each})
            assert ok is bool(finite.all())


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_a_norm_is_a_samples_all_groups_together(policy):
    """Each of two groups is finite, and the sample is not."""
    g, _ = plain(torch.tensor([[1.7e308, 1.7e308], [3.0, 4.0]], dtype=F64))
    stage = gf.clip_per_sample(1.0, groups="parameter", nonfinite=policy)
    made, _, report = stage.update_with_report(g, stage.init({}))
    assert [v.tolist() for v in made.materialize().values()] == [[[0.0], [1.0]], [[0.0], [1.0]]]
    assert made.weights.tolist() == ([0, 1] if policy == "skip" else [1, 1])
    assert float(report["clip_per_sample"]["nonfinite"]) == 0.5


@pytest.mark.parametrize("which", ROWS)
def test_a_policy_says_how_many(which):
    matrix, finite = MATRIX[ROWS[which]], FINITE[ROWS[which]]
    for policy in ("skip", "zero") if not bool(finite.all()) else ("raise", "skip", "zero"):
        ok, got = said(gf.nonfinite_per_sample(policy), matrix, WEIGHTS[ROWS[which]])
        same(got, {"nonfinite": float((~finite).sum()) / max(len(finite), 1)})
        assert ok is bool(finite.all())
    g, _ = plain(matrix, WEIGHTS[ROWS[which]])
    assert gf.nonfinite_per_sample("keep").update_with_report(g, ())[2].stages == ()


NUMBERS = torch.tensor([0.5, 0.0, 2.0, 0.0, 3.0, 1.0], dtype=F64)


@pytest.mark.parametrize("size", [6, 1, 0])
def test_masks_and_weights_say_what_they_did(size):
    numbers, matrix = NUMBERS[:size], MATRIX[FINITE][:size]
    weighing = gf.reweight_per_sample(lambda g: numbers)
    masking = gf.mask_per_sample(lambda g: numbers > 0)
    n = max(size, 1)
    zeros, kept = float((numbers == 0).sum()), float((numbers > 0).sum())
    same(said(weighing, matrix, WEIGHTS[:size])[1], {"left_out": zeros / n, "mean_factor": float(numbers.sum()) / n})
    same(said(masking, matrix, WEIGHTS[:size])[1], {"left_out": zeros / n, "mean_factor": kept / n})


def test_the_noise_scaled_step_says_what_it_saw():
    g, params = plain(torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=F64))
    rule = gf.noise_scaled_step(0.5, beta=0.75)
    state = rule.init(params)
    for count, share in ((1, 0.25), (2, 0.25 + 0.75 * 0.25)):  # how far running means are from 0
        updates, state, report = rule.update_with_report(g, state, params)
        want = {"trace": 2.0 * share, "squared_norm": 3.0 * share, "noise_scale": 2 / 3, "step": 0.75}
        same({k: float(v) for k, v in report["noise_scaled_step"].items()}, want)
        assert state["count"] == count
        assert float(updates["a"]) == pytest.approx(-0.5 * 0.75 * 2, rel=1e-14)
    assert rule.init({})["trace"].dtype == rule.init(params)["squared_norm"].dtype == F64


def test_a_report_as_text_and_as_values():
    stages = (("one", {"clipped": 0.25, "nonfinite": torch.tensor(0.0)}), ("two", {}), ("one", {"clipped": 1.0}))
    report = StepReport(stages)
    assert report.ok
    assert report.to_dict() == {
        "ok": True,
        "stages": [
            {"stage": "one", "clipped": 0.25, "nonfinite": 0.0},
            {"stage": "two"},
            {"stage": "one", "clipped": 1.0},
        ],
    }
    assert report["one"]["clipped"] == 0.25  # the first of the name
    assert report["two"] == {}
    with pytest.raises(ValueError, match=r"^report\[stage\]: got stage='three'; .*one of 'one', 'two', 'one'"):
        report["three"]
    (table,) = report.parts()
    assert (table.title, list(table.columns)) == ("One update, stage by stage", ["stage", "fact", "value"])
    assert table.rows == [["one", "clipped", "0.25"], ["one", "nonfinite", "0"], ["one", "clipped", "1"]]
    bad = StepReport((*stages, ("three", {"nonfinite": torch.tensor(0.5)})))
    assert not bad.ok
    assert bad.to_dict()["ok"] is False
    assert StepReport().ok
    assert StepReport().stages == ()
