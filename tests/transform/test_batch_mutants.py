"""Planted mistakes in stages on gradients, each with the test that must notice it."""

from __future__ import annotations

import dataclasses

import pytest
import test_batch
import test_noise
import torch
from tiers import every

from gradfunc._transform._batch import _adaptive, _average, _clips, _entries, _noise, _nonfinite, _norms
from gradfunc._transform._guarantee import Sensitivity
from gradfunc._transform._stage import How

shrinking, gaussian = _norms.shrinking, _noise.gaussian
apply_of = {stage: stage.apply for stage in (_nonfinite.SkipNonfinite, _average.Ema)}


def clipped_to_nothing(norm, limit, eps=0.0):
    return (limit / (norm + eps)).clamp(max=1.0)


def torchs_eps(norm, limit, eps=0.0):
    return shrinking(norm, limit, eps or 1e-6)


def normalised(norm, limit, eps=0.0):
    return limit / norm


def plain_norm(value):
    return value.double().square().sum().sqrt()


def norm_in_the_own_type(value):
    return value.square().sum().sqrt().double()


def in_place(self, values):
    return list(values)


def whole(value):
    norm = torch.linalg.vector_norm(value.double())
    return norm if value.dim() < 2 else norm.expand(len(value), *[1] * (value.dim() - 1))


def columns(value):
    if value.dim() < 2:
        return norms_of_units(value)
    return torch.linalg.vector_norm(value.double(), dim=0, keepdim=True)


norms_of_units = _norms.unit_norms


def entries_only(kept, values):
    for value in values:
        value.nan_to_num_(0.0, 0.0, 0.0)


def never_reset(self, grads, state, params, how):
    out, after = apply_of[_nonfinite.SkipNonfinite](self, grads, state, params, how)
    return out, {**after, "consecutive": after["skipped"]}


def one_late(self, grads, state, params, how):
    if self.max_consecutive is not None:
        self = dataclasses.replace(self, max_consecutive=self.max_consecutive + 1)
    return apply_of[_nonfinite.SkipNonfinite](self, grads, state, params, how)


def the_state_itself(mean, value, how):
    return mean


def global_draws(like, *key):
    return torch.randn(like.shape, dtype=like.dtype)


def without(part):
    def draw(like, name, seed, count, parameter):
        parts = {"name": name, "seed": seed, "count": count, "parameter": parameter}
        return gaussian(like, *(value for key, value in parts.items() if key != part))

    return draw


def drawn_in_half(like, *key):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, dtype=like.dtype, generator=generator)


def uniform(like, *key):
    generator = torch.Generator().manual_seed(hash(key) & 0xFFFF)
    return (torch.rand(like.shape, generator=generator, dtype=like.dtype) * 2 - 1) * 3**0.5


def weights_ignored(self, state, norm):
    after = seen(self, state, norm)
    return {**after, "mean": state["mean"] + (1 - self.decay) * (norm - state["mean"])}


def unclipped_norms(self, grads, state, params, how):
    out, after = apply_of_ema(self, grads, state, params, how)
    norm = _norms.of_norms([_norms.parameter_norm(value) for value in grads.values()])
    return out, {**after, **self._seen(state, norm)}


def clipped_by_itself(self, grads, state, params, how):
    norm = _norms.of_norms([_norms.parameter_norm(value) for value in grads.values()])
    return apply_of_ema(self, grads, {**state, **self._seen(state, norm)}, params, how)


seen, apply_of_ema = _adaptive.ClipByEma._seen, _adaptive.ClipByEma.apply


def undecayed_weight(self, grads, state, params, how):
    out, after = apply_of[_average.Ema](self, grads, state, params, how)
    return out, ({**after, "weight": 1.0} if self.debias else after)


def over_all(self, grads, state, params, how):
    return {k: v - v.mean() if v.dim() > 1 else v for k, v in grads.items()}, state


def told_the_smaller(self, before, giver):
    return dataclasses.replace(self, told=before.sensitivity.add_remove)


def over_n_accepted(self, before, giver):
    s: Sensitivity = before.sensitivity
    return dataclasses.replace(self, told=s.add_remove or s.over_n or 1.0)


def keeps_all(self, before):
    return before


# mutant -> (where, attribute, the mistake, the test)
MUTANTS = {
    "1e-6 in the norm, always": (_clips, "shrinking", torchs_eps, test_batch.check_torchs),
    "normalised": (_clips, "shrinking", normalised, test_batch.check_global),
    "NaN at norm 0": (_clips, "shrinking", normalised, lambda: test_batch.check_edge("global, 0")),
    "inf clipped to NaN": (
        _clips,
        "shrinking",
        clipped_to_nothing,
        lambda: test_batch.check_edge("global, inf kept"),
    ),
    "an eps that is not added": (
        _clips,
        "shrinking",
        lambda norm, limit, eps=0.0: shrinking(norm, limit),
        lambda: test_batch.check_edge("global, above C with eps"),
    ),
    "a norm that overflows": (
        _clips,
        "parameter_norm",
        plain_norm,
        lambda: test_batch.check_edge("global, squares overflow"),
    ),
    "a norm that underflows": (
        _clips,
        "parameter_norm",
        plain_norm,
        lambda: test_batch.check_edge("global, squares underflow"),
    ),
    "a norm in the own type": (
        _clips,
        "parameter_norm",
        norm_in_the_own_type,
        lambda: test_batch.test_norms_of_smaller_types_neither_overflow_nor_underflow(torch.float32, 1e20),
    ),
    "norms added": (_clips, "of_norms", lambda norms: sum(norms), test_batch.check_global),
    "one norm for all parameters": (
        _clips.ClipByParameterNorm,
        "apply",
        lambda self, *a: _clips.ClipByGlobalNorm(self.max_norm, 0.0, "raise").apply(*a),
        test_batch.check_parameter_norms,
    ),
    "a write to the input": (How, "own", in_place, lambda: test_batch.check_pure("global")),
    "the state overwritten": (How, "own_state", in_place, lambda: test_batch.check_pure("ema")),
    "the average handed out": (_average, "_copy", the_state_itself, lambda: test_batch.check_pure("ema")),
    "nothing refused": (_norms, "check_finite", lambda call, norms: None, lambda: test_batch.check_raises("global")),
    "AGC with a norm a parameter": (_adaptive, "unit_norms", whole, test_batch.check_agc),
    "AGC by input": (_adaptive, "unit_norms", columns, test_batch.check_agc),
    "entries rather than the step": (_nonfinite, "zero_unless", entries_only, test_batch.check_skipping),
    "entries rather than the step, clipped": (
        _clips,
        "zero_unless",
        entries_only,
        lambda: test_batch.check_edge("global, NaN skipped"),
    ),
    "in a row is in all": (_nonfinite.SkipNonfinite, "apply", never_reset, test_batch.check_skipping),
    "one too many in a row": (_nonfinite.SkipNonfinite, "apply", one_late, test_batch.check_too_many),
    "averages biased to 0": (_adaptive.ClipByEma, "_seen", weights_ignored, test_batch.check_ema_clip),
    "a spike moves its limit": (_adaptive.ClipByEma, "apply", unclipped_norms, test_batch.check_ema_clip),
    "a norm is its own limit": (_adaptive.ClipByEma, "apply", clipped_by_itself, test_batch.check_ema_clip),
    "a weight that forgets": (_average.Ema, "apply", undecayed_weight, test_batch.check_ema),
    "the mean of all units": (_entries.Centralize, "apply", over_all, test_batch.check_centralize),
    "draws of the global generator": (_noise, "gaussian", global_draws, lambda: test_noise.check_draws("add_noise")),
    "one noise for all seeds": (_noise, "gaussian", without("seed"), lambda: test_noise.check_draws("add_noise")),
    "one noise for all steps": (_noise, "gaussian", without("count"), lambda: test_noise.check_draws("add_noise")),
    "one noise for all parameters": (
        _noise,
        "gaussian",
        without("parameter"),
        lambda: test_noise.check_draws("add_noise"),
    ),
    "one noise for two stages": (
        _noise,
        "gaussian",
        without("name"),
        test_noise.test_two_kinds_of_noise_with_one_seed_are_two,
    ),
    "drawn in half": (
        _noise,
        "gaussian",
        drawn_in_half,
        lambda: test_noise.test_half_types_draw_in_float32(torch.bfloat16),
    ),
    "uniform noise": (_noise, "gaussian", uniform, lambda: test_noise.check_draws("add_noise")),
    "replacing costs as adding": (
        _noise.GaussianMechanism,
        "after",
        told_the_smaller,
        lambda: test_noise.check_told("sum"),
    ),
    "a mean by weight accepted": (
        _noise.GaussianMechanism,
        "after",
        over_n_accepted,
        lambda: test_noise.check_refused("a mean by weight"),
    ),
    "anything accepted": (
        _noise.GaussianMechanism,
        "after",
        lambda self, before, giver: self,
        lambda: test_noise.check_refused("no clip"),
    ),
    "signs keep": (_entries.Sign, "guarantee", keeps_all, lambda: test_noise.check_keeper(_entries.Sign())),
    "a clip that normalises keeps": (
        _clips,
        "shrinking",
        normalised,
        lambda: test_noise.check_keeper(test_noise.KEEPERS["global"]),
    ),
    "a clip at twice the radius of its threshold keeps": (
        _clips,
        "shrinking",
        lambda norm, limit, eps=0.0: torch.where(norm > 2 * limit, limit / norm, 1.0),
        lambda: test_noise.check_keeper(test_noise.KEEPERS["global"]),
    ),
}


@pytest.mark.parametrize("name", every(3, MUTANTS))
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        law()
