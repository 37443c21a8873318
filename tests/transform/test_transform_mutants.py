"""Planted mistakes in stages, each with the test that must notice it."""

from __future__ import annotations

import dataclasses

import pytest
import test_chains
import test_clip
import test_step
import torch

import gradfunc as gf
from gradfunc._transform import _base, _clip, _guarantee, _reductions, _step

factors, sensitivity = _clip.factors, _guarantee.sensitivity
rescaled, telling = gf.PerSampleGrads._rescaled, _base.Chain.telling
guarantee = _clip.ClipPerSample.guarantee


def with_torchs_epsilon(norms, max_norm, unit, eps):
    return factors(norms, max_norm, unit, eps or 1e-6)


def normalised(norms, max_norm, unit, eps):
    return (max_norm * unit).to(norms) / norms


def rounded_to_nearest(norms, max_norm, unit, eps):
    return ((max_norm * unit) / (norms.double() + eps * unit)).clamp(max=1).to(norms.dtype).nan_to_num(1.0)


def not_down(limit, like):
    return limit.to(like.dtype)


def nan_at_zero(norms, max_norm, unit, eps):
    return torch.where(norms == 0, torch.nan, factors(norms, max_norm, unit, eps))


def weight_ignored(norms, max_norm, unit, eps):
    return factors(norms, max_norm, torch.ones_like(unit), eps)


def weight_inverted(norms, max_norm, unit, eps):
    return factors(norms, max_norm, 1 / unit, eps)


def infinite_rows_clipped(norms, max_norm, unit, eps):
    return (max_norm * unit / norms.double()).clamp(max=1).to(norms.dtype)


def losses_too(self, c, given=None):
    c = c if isinstance(c, torch.Tensor) else c(self.norms(), self.weights)
    return self.scaled(c)


def at_once(self, c, given=None):
    return rescaled(self, c if isinstance(c, torch.Tensor) else c(self.norms(), given))


def in_place(self, c, given=None):
    c = c if isinstance(c, torch.Tensor) else c(self.norms(), given)
    self._losses.mul_(0.5)
    return rescaled(self, c)


def never_refused(self, grads, state, params):
    return telling_of_clip(dataclasses.replace(self, nonfinite="keep"), grads, state, params)


def skip_is_zero(self, grads, state, params):
    policy = "zero" if self.nonfinite == "skip" else self.nonfinite
    return telling_of_clip(dataclasses.replace(self, nonfinite=policy), grads, state, params)


def reports_what_is_left(self, grads, state, params):
    out, state, _ = telling_of_clip(self, grads, state, params)
    return out, state, telling_of_clip(self, out, state, params)[2]


telling_of_clip = _clip.ClipPerSample.telling


def rows_held(self, grads, state, params):
    result = telling(self, grads, state, params)
    return result if grads else None


def state_forgotten(self, grads, state, params):
    out, _, say = telling(self, grads, state, params)
    return out, state, say


def nested(*stages):
    return stages


def kept_rows_bounded(self, before=_guarantee.SAMPLES):
    return guarantee(dataclasses.replace(self, nonfinite="raise"), before)


def last_clip_wins(self, before=_guarantee.SAMPLES):
    return dataclasses.replace(before, bound=self.max_norm, per_unit_weight=self.per_unit_weight)


def trusting(before, stage):
    return stage.guarantee(before) if hasattr(stage, "guarantee") else before


def replacing_is_adding(rows, denominator):
    right = sensitivity(rows, denominator)
    return dataclasses.replace(right, replace_one=right.add_remove)


def mean_accepted(rows, denominator):
    return sensitivity(rows, 1.0)


def subtracted(params, updates):
    return {k: v - updates[k] if k in updates else v for k, v in params.items()}


Function = type(gf.per_sample_grads(lambda p: p))
named = Function.at


def unnamed_draws(self, step, index=None):
    return named(self, 0)


CLIP = _clip.ClipPerSample
# mutant -> (where, attribute, the mistake, the test)
MUTANTS = {
    "1e-6 in the norm, always": (_clip, "factors", with_torchs_epsilon, lambda: test_clip.check_oracle("kept")),
    "an eps that is not added": (
        _clip,
        "factors",
        lambda n, c, unit, eps: factors(n, c, unit, 0.0),
        test_clip.check_agreement_with_torch,
    ),
    "normalised rather than clipped": (_clip, "factors", normalised, test_clip.check_small_rows_stay),
    "rounded to nearest": (_clip, "factors", rounded_to_nearest, lambda: test_clip.check_bound(torch.float64)),
    "rounded to nearest, twice": (
        _clip,
        "factors",
        rounded_to_nearest,
        lambda: test_clip.check_idempotent(torch.float64),
    ),
    "C rounded to nearest": (_clip, "_down", not_down, lambda: test_clip.check_bound(torch.float32)),
    "NaN at norm 0": (_clip, "factors", nan_at_zero, lambda: test_clip.check_edge("norm 0")),
    "weights ignored": (_clip, "factors", weight_ignored, test_clip.check_weights),
    "weights inverted": (_clip, "factors", weight_inverted, test_clip.check_weights),
    "infinite rows clipped to nothing": (
        _clip,
        "factors",
        infinite_rows_clipped,
        lambda: test_clip.check_policy("keep", value=torch.inf),
    ),
    "losses clipped too": (gf.PerSampleGrads, "_rescaled", losses_too, lambda: test_clip.check_oracle("kept")),
    "norms in a pass of their own": (gf.PerSampleGrads, "_rescaled", at_once, test_clip.check_one_pass),
    "a write to the losses": (gf.PerSampleGrads, "_rescaled", in_place, test_chains.check_purity),
    "nothing refused": (CLIP, "telling", never_refused, test_clip.check_raise),
    "nothing refused, streamed": (CLIP, "telling", never_refused, lambda: test_clip.check_raise("streamed")),
    "a skipped sample keeps its weight": (CLIP, "telling", skip_is_zero, lambda: test_clip.check_policy("skip")),
    "norms reported after clipping": (CLIP, "telling", reports_what_is_left, test_clip.check_report),
    "chains in chains": (_base, "_flat", nested, test_chains.check_associativity),
    "stages back to front": (
        _base,
        "_flat",
        lambda *stages: flat(*stages)[::-1],
        lambda: test_chains.check_order("two reductions"),
    ),
    "the state forgotten": (_base.Chain, "telling", state_forgotten, test_chains.check_a_chain_is_its_stages_in_turn),
    "order unchecked": (
        _base,
        "places",
        lambda stage: (None, None),
        lambda: test_chains.check_order("rows after a reduction"),
    ),
    "rows held to the end": (_base.Chain, "telling", rows_held, test_step.check_rows_are_free_when_the_rule_runs),
    "kept rows bounded": (
        CLIP,
        "guarantee",
        kept_rows_bounded,
        lambda: test_chains.check_guarantee("non-finite kept"),
    ),
    "the last clip's bound": (
        CLIP,
        "guarantee",
        last_clip_wins,
        lambda: test_chains.check_guarantee("the tighter clip, first"),
    ),
    "a user's stage trusted": (
        _base,
        "_guarantee_after",
        trusting,
        lambda: test_chains.check_guarantee("a user's stage after the clip"),
    ),
    "replacing costs as adding": (
        _reductions,
        "sensitivity",
        replacing_is_adding,
        test_chains.check_sensitivity_is_attained_and_never_exceeded,
    ),
    "a realised mean accepted": (
        _reductions,
        "sensitivity",
        mean_accepted,
        lambda: test_chains.check_guarantee("clip, mean"),
    ),
    "updates subtracted": (_step, "apply_updates", subtracted, test_step.check_training),
    "draws without a name": (
        Function,
        "at",
        unnamed_draws,
        test_step.check_draws,
    ),
}
flat = _base._flat


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law()
