"""Lower precision by precision-scaling, the cancellation of the Gram form, and squares that overflow."""

from __future__ import annotations

import pytest
import torch
from oracle import TOLERANCE, flat, truth_batched
from torch.nn import functional as F

import gradfunc as gf
from gradfunc._rounding import unit_roundoff

from .cases import Draw, problem
from .conftest import ENGINE, factored_only

F64 = torch.float64
NAMES = ["mlp", "tied embedding and head, modules", "layer norm between layers", "LoRA merged", "recurrence by hand"]


def cast(tree, dtype):
    if isinstance(tree, dict):
        return {k: cast(v, dtype) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(cast(v, dtype) for v in tree)
    return tree.to(dtype) if tree.is_floating_point() else tree


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_shrinks_with_the_precision(name, dtype):
    """Numbers that the low type holds, then in float64: what differs must be of the low type's roundoff."""
    p = problem(name, 4, 3)
    params, args = cast(cast((p.params, p.args(0)), dtype), F64)
    want = flat(truth_batched(p.batched, params, args).rows)
    norms = want.norm(dim=1)

    def error(dtype):
        g = gf.per_sample_grads(p.batched, engine=ENGINE, batched=True, verify=False)(*cast((params, *args), dtype))
        rows = flat(g.materialize())
        gram = want @ want.T
        return max(
            ((rows - want).norm(dim=1) / norms).max().item(),
            ((g.norms().double() - norms).abs() / norms).max().item(),
            ((g.gram().double() - gram).abs() / (norms[:, None] * norms)).max().item(),
            ((flat({k: v[None] for k, v in g.sum().items()})[0] - want.sum(0)).norm() / norms.sum()).item(),
        )

    assert error(F64) <= TOLERANCE
    assert error(dtype) <= 100 * unit_roundoff(dtype)


def cancelling(dtype, ratio, length=16):
    """Cotangents that sum to about 0 over positions, inputs far from 0: what the Gram form subtracts is huge."""
    draw = Draw(0)
    x = (draw(4, length, 8) + ratio).to(dtype)
    pull = draw(4, length, 8)
    pull = (pull - pull.mean(1, keepdim=True)).to(dtype)
    return {"w": (draw(8, 8) / 8).to(dtype)}, x, pull


@pytest.mark.parametrize("ratio", [1, 30, 1000])
@pytest.mark.parametrize("length", [4, 16])
def test_the_gram_form_does_not_cancel(ratio, length):
    params, x, pull = cancelling(torch.float32, ratio, length)

    def losses(p, x, pull):
        return (F.linear(x, p["w"]) * pull).sum((1, 2))

    want = torch.einsum("bto,bti->boi", pull.double(), x.double()).flatten(1).norm(dim=1)
    g = gf.per_sample_grads(losses, engine=ENGINE, batched=True, verify=False)(params, x, pull)
    direct = torch.einsum("bto,bti->boi", pull, x).flatten(1).double().norm(dim=1)
    # As good as the direct form in the same precision, but for a small factor; the Gram form alone is 9% off at 1000.
    allowed = 10 * (direct - want).abs().max() + 100 * unit_roundoff(torch.float32) * want.max()
    assert bool(((g.norms().double() - want).abs() <= allowed).all())


def test_the_gram_form_alone_would():
    """The test above can fail."""
    _, x, pull = cancelling(torch.float32, 1000)
    want = torch.einsum("bto,bti->boi", pull.double(), x.double()).flatten(1).norm(dim=1)
    gram = ((x @ x.transpose(1, 2)) * (pull @ pull.transpose(1, 2))).sum((1, 2)).clamp_min(0).sqrt()
    assert ((gram.double() - want).abs() / want).max() > 1e-3


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_norms_neither_overflow_nor_underflow(batched, length, scale):
    """Rows of 1e30 in float32 have norms; their squares are no numbers there."""
    params = {"w": torch.ones(3, 4), "b": torch.ones(3)}
    x = torch.randn(5, length, 4) * scale

    def losses(p, x):
        out = F.linear(x, p["w"], p["b"]).sum((-1, -2))
        return out * scale

    g = gf.per_sample_grads(losses, engine=ENGINE, batched=batched)(params, x)
    row = x.double().sum(1) * scale
    want = (3 * row.square().sum(1) + 3 * (length * scale) ** 2).sqrt()
    assert bool(((g.norms().double() - want).abs() <= 100 * unit_roundoff(torch.float32) * want).all())
    each = g.norms(per_parameter=True)
    assert bool(((each["b"].double() - 3**0.5 * length * scale).abs() <= 1e-5 * length * scale).all())


@pytest.mark.parametrize("batched", [False, pytest.param(True, marks=factored_only)])
def test_an_infinite_row_is_infinite_alone(batched):
    """Natively, plain autograd spreads it by 0 * inf; an engine that knows whose rows they are does not."""
    params, x = {"w": torch.ones(3, 4)}, torch.ones(3, 4)
    x[1, 2], x[2, 0] = torch.inf, torch.nan
    f = gf.per_sample_grads(lambda p, x: F.linear(x, p["w"]).sum(-1), engine=ENGINE, batched=batched, verify=False)
    norms = f(params, x).norms()
    assert norms[0].isfinite()
    assert norms[1] == torch.inf
    assert norms[2].isnan()
