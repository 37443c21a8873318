"""`reduce`, and the law of the mean: any split of the batch, in any order, gives torch's own sum and mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import close, same_bits
from torch.nn import functional as F

import gradfunc as gf

F64 = torch.float64
CLASSES, FEATURES, TOKENS = 4, 3, 3


def tokens_target(size, generator):
    target = torch.randint(CLASSES, (size, TOKENS), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.4] = -100
    if size > 2:
        target[1] = -100  # one sample wholly ignored
    return target


W = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=F64)

# name -> (shape of x after B, target(size, generator), gradfunc's loss(out, y), torch's loss(out, y, reduction))
LOSSES = {
    "cross entropy": (
        (FEATURES,),
        lambda n, g: torch.randint(CLASSES, (n,), generator=g),
        lambda o, y, **k: gf.losses.cross_entropy(o, y, **k),
        lambda o, y, r: F.cross_entropy(o, y, reduction=r),
    ),
    "class weights": (
        (FEATURES,),
        lambda n, g: torch.randint(CLASSES, (n,), generator=g),
        lambda o, y, **k: gf.losses.cross_entropy(o, y, weight=W.to(o.device), label_smoothing=0.1, **k),
        lambda o, y, r: F.cross_entropy(o, y, weight=W.to(o.device), label_smoothing=0.1, reduction=r),
    ),
    "tokens": (
        (TOKENS, FEATURES),
        tokens_target,
        lambda o, y, **k: gf.losses.cross_entropy(o, y, weight=W.to(o.device), **k),
        lambda o, y, r: F.cross_entropy(o.movedim(-1, 1), y, weight=W.to(o.device), reduction=r),
    ),
    "probabilities": (
        (FEATURES,),
        lambda n, g: torch.rand(n, CLASSES, dtype=F64, generator=g),
        lambda o, y, **k: gf.losses.cross_entropy(o, y, weight=W.to(o.device), **k),
        lambda o, y, r: F.cross_entropy(o, y, weight=W.to(o.device), reduction=r),
    ),
    "mse": (
        (FEATURES,),
        lambda n, g: torch.randn(n, CLASSES, dtype=F64, generator=g),
        lambda o, y, **k: gf.losses.mse(o, y, **k),
        lambda o, y, r: F.mse_loss(o, y, reduction=r),
    ),
    "bce": (
        (TOKENS, FEATURES),
        lambda n, g: torch.rand(n, TOKENS, CLASSES, dtype=F64, generator=g),
        lambda o, y, **k: gf.losses.bce_with_logits(o, y, pos_weight=W.to(o.device), **k),
        lambda o, y, r: F.binary_cross_entropy_with_logits(o, y, pos_weight=W.to(o.device), reduction=r),
    ),
}


def check_split(kind, sizes, *, chunk_size=None, engine="vmap", batched=False, seed=0, device="cpu"):
    """Micro-batches of these sizes, each cut into chunks: sum and mean as torch gives them for the whole batch."""
    generator = torch.Generator().manual_seed(seed)
    shape, make_target, ours, theirs = LOSSES[kind]
    size = sum(sizes)
    params = {
        "w": torch.randn(CLASSES, FEATURES, dtype=F64, generator=generator).to(device),
        "b": torch.randn(CLASSES, dtype=F64, generator=generator).to(device),
    }
    x = torch.randn(size, *shape, dtype=F64, generator=generator).to(device)
    y = make_target(size, generator).to(device)

    def loss(p, x, y):
        return ours(F.linear(x, p["w"], p["b"]), y, **({"batched": True} if batched else {}))

    f = gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size, batched=batched)
    acc = gf.Accumulator.init(params)
    for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True):
        acc = acc.add(f(params, part_x, part_y))
    g = f(params, x, y)

    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    out = F.linear(x, leaves["w"], leaves["b"])
    scale = g.norms().sum() + 1e-300
    for reduction in ("sum", "mean"):
        if reduction == "mean" and not g.weights.sum() > 0:
            for mean in (g.mean, acc.mean):
                with pytest.raises(ValueError, match="total weight of 0"):
                    mean()
                assert all(not v.any() for v in mean(on_zero_weight="zero").values())
            continue
        grads = torch.autograd.grad(theirs(out, y, reduction), list(leaves.values()), retain_graph=True)
        want = dict(zip(leaves, grads, strict=True))
        unit = scale if reduction == "sum" else scale / g.weights.sum()
        for got in (gf.reduce(g, reduction), acc.sum() if reduction == "sum" else acc.mean()):
            for name, value in want.items():
                close(got[name], value, unit, f"{kind}, {reduction} of {name}")
    return g


@given(
    kind=st.sampled_from(list(LOSSES)),
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    chunk_size=st.one_of(st.none(), st.integers(1, 4)),
    how=st.sampled_from([(engine, batched) for engine in ("factored", "vmap", "loop") for batched in (False, True)]),
    seed=st.integers(0, 1000),
)
def test_any_split_gives_torchs_sum_and_mean(kind, sizes, chunk_size, how, seed):
    check_split(kind, sizes, chunk_size=chunk_size, engine=how[0], batched=how[1], seed=seed)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("sizes", [[0], [1], [3, 0, 2]])
def test_empty_and_single_batches(kind, sizes, device):
    check_split(kind, sizes, chunk_size=2, device=device)


@pytest.mark.parametrize("engine", ["factored", "vmap", "loop"])
def test_an_ignored_sample_has_a_row_of_exact_zeros(engine, device):
    g = check_split("tokens", [5], engine=engine, device=device)
    assert g.losses[1] == g.weights[1] == g.norms()[1] == 0
    assert all(not rows[1].any() for rows in g.materialize().values())
    assert all(rows.isfinite().all() for rows in g.materialize().values())


def test_order_of_the_samples_does_not_matter_beyond_rounding():
    f = gf.per_sample_grads(lambda p, x: gf.Weighted((p["w"] * x).sum().square(), x[0].abs()))
    params, x = {"w": torch.randn(3, dtype=F64)}, torch.randn(6, 3, dtype=F64)
    g, turned = f(params, x), f(params, x.flip(0))
    close(g.mean()["w"], turned.mean()["w"], g.norms().sum() / g.weights.sum(), "mean")


def test_reduce_is_the_method_of_that_name():
    f = gf.per_sample_grads(lambda p, x: gf.Weighted((p["w"] * x).sum(), 2))
    g = f({"w": torch.ones(2)}, torch.arange(6.0).reshape(3, 2))
    assert same_bits(gf.reduce(g, "none"), g.materialize())
    assert same_bits(gf.reduce(g, "sum"), g.sum())
    assert same_bits(gf.reduce(g, "mean"), g.mean())
    assert gf.reduce(g, "mean")["w"].tolist() == [1.0, 1.5]


def test_zero_total_weight_raises_unless_zeros_are_asked_for():
    f = gf.per_sample_grads(lambda p, x: gf.Weighted((p["w"] * x).sum(), 0))
    g = f({"w": torch.ones(2)}, torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"g\.mean\(\): got a total weight of 0.*on_zero_weight='zero'"):
        gf.reduce(g, "mean")
    assert gf.reduce(g, "mean", on_zero_weight="zero")["w"].tolist() == [0.0, 0.0]
    assert gf.reduce(g, "sum")["w"].tolist() == [3.0, 3.0]
    assert g.mean_loss.isnan()
