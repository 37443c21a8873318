"""No quantity touches what it is given, the global generators or `.grad`; what is added is one line to this list."""

from __future__ import annotations

import inspect

import pytest
import torch
from quantity_cases import F64, Q, draw
from torch.nn import functional as F

import gradfunc as gf
from gradfunc._rounding import unit_roundoff
from gradfunc.projections import gaussian

X, Y = draw(5, 4), torch.tensor([0, 1, 2, 1, 0])


def net(p, x):
    return F.linear(torch.tanh(F.linear(x, p["one"])), p["two"])


def loss(p, x, y):
    return F.cross_entropy(net(p, x), y) + sum(v.square().sum() for v in p.values())


def answers(params, x, y):
    """Everything that is asked of gradients or of a model, by name."""
    g = gf.per_sample_grads(loss)(params, x, y)
    batch, moments, phi = (x, y), Q.moments(g), g.project(gaussian(3))
    noise = Q.gradient_noise_scale(g)
    factors, corrected = (make(loss, params, batch) for make in (Q.kronecker_factors, Q.corrected_kronecker_factors))
    means = {k: v.detach() for k, v in g.mean().items()}
    first = {k: v.detach() for k, v in g.select([0]).sum().items()}
    return {
        "moments": moments.merge(moments).spread,
        "variance": Q.variance(g),
        "second_moment": Q.second_moment(g),
        "signal_to_noise": Q.signal_to_noise(g),
        "gradient_noise_scale": noise.scale,
        "two_batch_noise_scale": Q.two_batch_noise_scale(first, means, 1, 5).scale,
        "cosine_similarity": Q.cosine_similarity(g),
        "coherence": Q.coherence(g),
        "diversity": Q.diversity(g),
        "near_duplicates": Q.near_duplicates(g, threshold=0.0).cosine,
        "grand": Q.grand(g),
        "el2n": Q.el2n(net(params, x), y),
        "token_norms": Q.token_norms(net, params, x),
        "gram_blocks": [block.values for block in Q.gram_blocks(g, block_size=2)],
        "output_grads": Q.output_grads(net, params, x).norms(),
        "empirical_ntk": Q.empirical_ntk(net, params, x),
        "gradient_spectrum": Q.gradient_spectrum(g).values,
        "fisher_rows": Q.fisher_rows(net, params, x, samples=2).norms(),
        "fisher_diagonal": Q.fisher_diagonal(g),
        "fisher_product": Q.fisher_product(g, means),
        "kronecker_factors": factors.solve(means, damping=0.1),
        "corrected_kronecker_factors": corrected.solve(means, damping=0.1),
        "hessian_product": Q.hessian_product(loss, params, batch)(means),
        "ggn_product": Q.ggn_product(net, F.cross_entropy, params, batch)(means),
        "hutchinson_trace": torch.tensor(Q.hutchinson_trace(lambda v: v, params, samples=2).value),
        "grad_dot": Q.grad_dot(g, g),
        "grad_cos": Q.grad_cos(g, g),
        "tracin": Q.tracin([g], [g], [0.1]),
        "self_influence": Q.self_influence([g], [0.1]),
        "margin": Q.margin(net(params, x), y),
        "trak": Q.trak(phi, phi, damping=1.0),
        "influence_functions": Q.influence_functions(loss, params, batch, batch, damping=0.1),
        "self_influence_functions": Q.self_influence_functions(loss, params, batch, damping=0.1),
        "hessian_extremes": Q.hessian_extremes(loss, params, batch).largest[0].vector,
    }


# Of numbers alone.
PLAIN = {"batch_efficiency", "critical_batch_size"}


def test_every_quantity_is_listed():
    public = {name for name, value in vars(Q).items() if inspect.isfunction(value) and not name.startswith("_")}
    params = {"one": draw(6, 4), "two": draw(3, 6)}
    assert public == set(answers(params, X, Y)) | PLAIN


def tensors(nest):
    values = nest.values() if isinstance(nest, dict) else nest if isinstance(nest, list) else [nest]
    return list(values)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_nothing_is_touched_and_twice_is_once(requires_grad, device):
    params = {"one": draw(6, 4), "two": draw(3, 6)}
    params = {k: v.to(device).requires_grad_(requires_grad) for k, v in params.items()}
    x, y = X.to(device), Y.to(device)
    given = [*params.values(), x, y]
    before = [(t.detach().clone(), t._version) for t in given]
    state = torch.random.get_rng_state()
    once, again = answers(params, x, y), answers(params, x, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    for t, (value, version) in zip(given, before, strict=True):
        assert torch.equal(t, value)
        assert t._version == version
        assert t.grad is None
        assert not getattr(t, "_backward_hooks", None)
    own = {t.untyped_storage().data_ptr() for t in given}
    for name, answer in once.items():
        for a, b in zip(tensors(answer), tensors(again[name]), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), name
            assert a.untyped_storage().data_ptr() not in own, name
            assert bool(a.isfinite().all()) or name == "signal_to_noise", name


def test_a_planted_side_effect_is_noticed(monkeypatch):
    def drawing(g):
        torch.rand(())
        return grand(g)

    grand = Q.grand
    monkeypatch.setattr(Q, "grand", drawing)
    with pytest.raises(AssertionError):
        test_nothing_is_touched_and_twice_is_once(False, "cpu")


def test_float32_answers_keep_more_than_half_of_their_digits():
    params = {"one": draw(6, 4), "two": draw(3, 6)}
    low = answers({k: v.float() for k, v in params.items()}, X.float(), Y)
    high = answers({k: v.float().double() for k, v in params.items()}, X.float().double(), Y)
    for name in set(low) - {"hessian_extremes", "signal_to_noise", "fisher_rows", "near_duplicates"}:
        for a, b in zip(tensors(low[name]), tensors(high[name]), strict=True):
            scale = float(b.abs().max())
            assert float((a.to(F64) - b.to(F64)).abs().max()) <= unit_roundoff(torch.float32) ** 0.5 * scale, name
