"""Planted mistakes in stages, each with the test that must notice it."""

from __future__ import annotations

import dataclasses

import pytest
import test_chains
import test_clip
import test_step
import torch

import gradfunc as gf
from gradfunc import _factors
from gradfunc._transform import _chain, _guarantee, _step
from gradfunc._transform._reductions import _sums
from gradfunc._transform._rows import _by_norm, _clip
from gradfunc._transform._rules import _adam
from gradfunc._transform._stage import How
from gradfunc._tree import row_norms

quotient, sensitivity = _by_norm.quotient, _guarantee.sensitivity
rescaled, apply = gf.PerSampleGrads._rescaled, _chain.Chain.apply
guarantee = _clip.ClipPerSample.guarantee


def with_torchs_epsilon(norms, limit, unit, eps, *, least):
    return quotient(norms, limit, unit, eps or 1e-6, least=least)


def normalised(norms, limit, unit, eps, *, least):
    return (limit * unit).to(norms) / norms


def rounded_to_nearest(norms, limit, unit, eps, *, least):
    return ((limit * unit) / (norms.double() + eps * unit)).clamp(max=1).to(norms.dtype).nan_to_num(1.0)


def not_down(limit, like):
    return limit.to(like.dtype)


def nan_at_zero(norms, limit, unit, eps, *, least):
    return torch.where(norms == 0, torch.nan, quotient(norms, limit, unit, eps, least=least))


def weight_ignored(norms, limit, unit, eps, *, least):
    return quotient(norms, limit, torch.ones_like(unit), eps, least=least)


def weight_inverted(norms, limit, unit, eps, *, least):
    return quotient(norms, limit, 1 / unit, eps, least=least)


def infinite_rows_clipped(norms, limit, unit, eps, *, least):
    return (limit * unit / norms.double()).clamp(max=1).to(norms.dtype)


def losses_too(self, c, given=None):
    c = c if isinstance(c, torch.Tensor) else c(self.norms(), self.weights)
    return self.scaled(c)


def at_once(self, c, given=None):
    return rescaled(self, c if isinstance(c, torch.Tensor) else c(self.norms(), given))


def in_place(self, c, given=None):
    c = c if isinstance(c, torch.Tensor) else c(self.norms(), given)
    self._losses.mul_(0.5)
    return rescaled(self, c)


def never_refused(self, grads, state, params, how):
    return apply_of_clip(dataclasses.replace(self, nonfinite="keep"), grads, state, params, how)


def skip_is_zero(self, grads, state, params, how):
    policy = "zero" if self.nonfinite == "skip" else self.nonfinite
    return apply_of_clip(dataclasses.replace(self, nonfinite=policy), grads, state, params, how)


def reports_what_is_left(self, grads, state, params, how):
    out, state = apply_of_clip(self, grads, state, params, How())
    apply_of_clip(self, out, state, params, how)
    return out, state


apply_of_clip = _clip.ClipPerSample.apply


def rows_held(self, grads, state, params, how):
    result = apply(self, grads, state, params, how)
    return result if grads else None


def state_forgotten(self, grads, state, params, how):
    return apply(self, grads, state, params, how)[0], state


def uncopied(self, values, state, params, how):
    return [params[name].detach() for name in values]


def norms_of_rows(rows):
    return row_norms(_factors.dense(rows))


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


def subtracted(value, update, owned):
    return value - update


Function = type(gf.per_sample_grads(lambda p: p))
named = Function.at


def unnamed_draws(self, step, index=None):
    return named(self, 0)


CLIP = _clip.ClipPerSample
# mutant -> (where, attribute, the mistake, the test)
MUTANTS = {
    "1e-6 in the norm, always": (_clip, "quotient", with_torchs_epsilon, lambda: test_clip.check_oracle("kept")),
    "an eps that is not added": (
        _clip,
        "quotient",
        lambda n, c, unit, eps, *, least: quotient(n, c, unit, 0.0, least=least),
        test_clip.check_agreement_with_torch,
    ),
    "normalised rather than clipped": (_clip, "quotient", normalised, test_clip.check_small_rows_stay),
    "rounded to nearest": (_clip, "quotient", rounded_to_nearest, lambda: test_clip.check_bound(torch.float64)),
    "rounded to nearest, twice": (
        _clip,
        "quotient",
        rounded_to_nearest,
        lambda: test_clip.check_idempotent(torch.float64),
    ),
    "C rounded to nearest": (_by_norm, "_down", not_down, lambda: test_clip.check_bound(torch.float32)),
    "NaN at norm 0": (_clip, "quotient", nan_at_zero, lambda: test_clip.check_edge("norm 0")),
    "weights ignored": (_clip, "quotient", weight_ignored, test_clip.check_weights),
    "weights inverted": (_clip, "quotient", weight_inverted, test_clip.check_weights),
    "infinite rows clipped to nothing": (
        _clip,
        "quotient",
        infinite_rows_clipped,
        lambda: test_clip.check_policy("keep", value=torch.inf),
    ),
    "losses clipped too": (gf.PerSampleGrads, "_rescaled", losses_too, lambda: test_clip.check_oracle("kept")),
    "norms in a pass of their own": (gf.PerSampleGrads, "_rescaled", at_once, test_clip.check_one_pass),
    "a write to the losses": (gf.PerSampleGrads, "_rescaled", in_place, test_chains.check_purity),
    "nothing refused": (CLIP, "apply", never_refused, test_clip.check_raise),
    "nothing refused, streamed": (CLIP, "apply", never_refused, lambda: test_clip.check_raise("streamed")),
    "a skipped sample keeps its weight": (CLIP, "apply", skip_is_zero, lambda: test_clip.check_policy("skip")),
    "norms reported after clipping": (CLIP, "apply", reports_what_is_left, test_clip.check_report),
    "chains in chains": (_chain, "_flat", nested, test_chains.check_associativity),
    "stages back to front": (
        _chain,
        "_flat",
        lambda *stages: flat(*stages)[::-1],
        lambda: test_chains.check_order("two reductions"),
    ),
    "the state forgotten": (_chain.Chain, "apply", state_forgotten, test_chains.check_a_chain_is_its_stages_in_turn),
    "order unchecked": (
        _chain,
        "places",
        lambda stage: (None, None),
        lambda: test_chains.check_order("rows after a reduction"),
    ),
    "rows held to the end": (_chain.Chain, "apply", rows_held, test_step.check_rows_are_free_when_the_rule_runs),
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
        _chain,
        "guarantee_after",
        trusting,
        lambda: test_chains.check_guarantee("a user's stage after the clip"),
    ),
    "replacing costs as adding": (
        _sums,
        "sensitivity",
        replacing_is_adding,
        test_chains.check_sensitivity_is_attained_and_never_exceeded,
    ),
    "a realised mean accepted": (
        _sums,
        "sensitivity",
        mean_accepted,
        lambda: test_chains.check_guarantee("clip, mean"),
    ),
    "parameters stepped from without a copy": (_adam.Adam, "_start", uncopied, lambda: test_step.check_landing("adam")),
    "rows formed for their norms": (_factors, "norms", norms_of_rows, lambda: test_step.check_lean("clip")),
    "updates subtracted": (_step, "_sum", subtracted, test_step.check_training),
    "draws without a name": (
        Function,
        "at",
        unnamed_draws,
        test_step.check_draws,
    ),
}
flat = _chain._flat


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law()
