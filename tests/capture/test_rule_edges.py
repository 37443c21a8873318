"""Cases at the edge of what rules know: half precision, complex numbers, nothing there, rows too large."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import gradfunc as gf
from gradfunc import _factors
from gradfunc._factors import Gradient, Steps, Unfolded

from .graphs import Model, captured, exact
from .rules_table import B, I, O, drawn, scored

H = torch.float16


@pytest.mark.parametrize("norm", ["group", "layer", "batch"])
def test_scales_of_norms_in_half_precision_stay_finite(norm):
    """`(x - mean) g` is beyond float16 where x is large and rstd small; their product is not."""
    generator = torch.Generator().manual_seed(0)
    x, g = ((torch.randn(4, 6, 50, generator=generator) * k).to(H) for k in (1000, 100))
    stats = torch.zeros(6, dtype=H), torch.full((6,), 6e4, dtype=H)

    def losses(p, x, g):
        if norm == "group":
            out = F.group_norm(x, 2, p["w"])
        elif norm == "layer":
            out = F.layer_norm(x.mT, (6,), p["w"]).mT
        else:
            out = F.batch_norm(x, *stats, p["w"])
        return (out.float() * g.float()).sum((1, 2))

    params = {"w": torch.ones(6, dtype=H)}
    rows = gf.per_sample_grads(losses, batched=True, engine="factored")(params, x, g)
    wide = {"w": torch.ones(6)}
    stats = tuple(s.float() for s in stats)
    want = gf.per_sample_grads(losses, batched=True, engine="loop")(wide, x.float(), g.float()).materialize()["w"]
    got = rows.materialize()["w"].float()
    assert got.isfinite().all()
    assert rows.norms().isfinite().all()
    # every term is known to a few roundoffs of float16, which the operation's saved statistics have too
    terms = ((x.float() - x.float().mean()) / 900 * g.float()).abs().sum((1, 2))[:, None]
    assert bool(((got - want).abs() <= 8 * 2**-11 * terms).all())


def test_products_of_complex_weights_are_no_rules_case():
    def losses(p, x):
        w = torch.view_as_complex(p["w"])
        return scored(torch.view_as_real(torch.view_as_complex(x) @ w).flatten(1))

    model = Model(losses, {"w": drawn(I, O, 2)}, (drawn(B, I, 2),))
    exact(model)
    assert "mm" not in {use.rule for use in captured(model).uses["w"]}


def test_bags_that_are_all_empty():
    def losses(p, x):
        bags = F.embedding_bag(torch.zeros(0, dtype=torch.int64), p["w"], torch.zeros(B, dtype=torch.int64), mode="sum")
        return scored((bags + x) * p["s"])

    exact(Model(losses, {"w": drawn(7, I), "s": drawn(I)}, (drawn(B, I),)))


@pytest.mark.parametrize(("kernel", "formed"), [(5, True), (7, False)])
def test_rows_much_larger_than_what_is_held_are_not_formed(kernel, formed):
    """Windows are read k^2 times, and not held: by what is read alone, large kernels would be held as rows."""
    x = torch.randn(2, 1, 16, 8, 8)
    steps = Steps((16, 16, kernel, kernel), (1, 1), (kernel // 2,) * 2, (1, 1))
    factor = Unfolded(x, torch.randn(2, 1, 16, 8, 8), steps.weight, steps)
    like = torch.empty(steps.weight)
    assert like.numel() < factor.reads
    assert _factors.formed({"w": Gradient.of(like, 2, [factor])}) == ({"w"} if formed else set())
