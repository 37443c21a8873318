"""`none`, `sum` and `mean` of every loss and option equal torch's own reductions: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import close
from torch.nn import functional as F

import gradfunc as gf

F64 = torch.float64


def agree(ours, torchs, leaf, *, samples, device="cpu") -> None:
    """Compare a batched loss, and the same loss sample by sample, with torch's three reductions.

    Args:
        ours: `ours(batched) -> Weighted` on the whole batch.
        torchs: `torchs(reduction) -> tensor`.
        leaf: the logits, which require grad.
        samples: `samples(i) -> Weighted` of sample i alone.
    """
    out = ours()
    elements = torchs("none")
    size = len(leaf)
    each = elements.reshape(size, -1).sum(1) if elements.numel() else elements.new_zeros(size)
    scale = elements.detach().abs().sum()
    close(out.numerator, each, scale, "numerators")
    assert out.weight.shape == (size,)
    assert not out.weight.requires_grad
    alone = [samples(i) for i in range(size)]
    for i, sample in enumerate(alone):
        assert sample.numerator.dim() == sample.weight.dim() == 0
        close(sample.numerator, out.numerator[i], scale, "numerator of one sample")
        assert sample.weight == out.weight[i]

    def gradient(value):
        (grad,) = torch.autograd.grad(value, leaf, retain_graph=True)
        return grad

    # A gradient of an element of these losses in its logit is bounded by its weights, all at most 4 here.
    want, got = torchs("sum"), out.numerator.sum()
    close(got, want, scale, "sum")
    close(gradient(got), gradient(want), 4.0, "gradient of sum")
    if not size:
        return
    if alone:
        close(gradient(sum(s.numerator for s in alone)), gradient(want), 4.0, "gradient of the samples' sum")
    total = out.weight.sum()
    if total > 0:
        want, got = torchs("mean"), out.numerator.sum() / total
        close(got, want, scale / total, "mean")
        close(gradient(got), gradient(want), 4.0 / float(total), "gradient of mean")
    else:
        # Where torch's mean is 0/0, everything of ours is an exact 0.
        assert torch.equal(out.numerator, torch.zeros_like(out.numerator))
        assert torch.equal(gradient(out.numerator.sum()), torch.zeros_like(leaf))


LAYOUTS = {"classes": (), "tokens": (3,), "no tokens": (0,), "images": (2, 3)}


@given(
    layout=st.sampled_from(list(LAYOUTS)),
    size=st.integers(0, 4),
    classes=st.integers(2, 4),
    weighted=st.booleans(),
    ignore=st.sampled_from([None, -100, -1, 0]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    probabilities=st.booleans(),
    seed=st.integers(0, 10_000),
)
@example("images", 3, 3, True, 0, 0.1, False, 0)  # all at once
@example("tokens", 2, 2, True, -100, 0.1, True, 0)
@example("classes", 1, 3, True, None, 0.0, False, 0)  # torch's own mean of one cancels the class weight
def test_cross_entropy(layout, size, classes, weighted, ignore, smoothing, probabilities, seed):
    generator = torch.Generator().manual_seed(seed)
    positions = LAYOUTS[layout]
    # torch wants the classes in dimension 1; tokens [B, T, C] keep them last.
    dim, shape = (0, (size, classes, *positions)) if layout == "images" else (-1, (size, *positions, classes))
    logits = torch.randn(shape, dtype=F64, generator=generator).mul(3).requires_grad_()
    weight = torch.rand(classes, dtype=F64, generator=generator) if weighted else None
    options = {"weight": weight, "label_smoothing": smoothing}
    if probabilities:
        target = torch.rand(shape, dtype=F64, generator=generator)
    else:
        target = torch.randint(classes, (size, *positions), generator=generator)
        if ignore is not None:
            options["ignore_index"] = ignore
            dropped = torch.rand(target.shape, generator=generator) < 0.4
            target = target.masked_fill(dropped, ignore)

    def classes_first(x):
        return x.movedim(1 if dim == 0 else -1, 1)

    agree(
        lambda: gf.losses.cross_entropy(logits, target, dim=dim, batched=True, **options),
        lambda reduction: F.cross_entropy(
            classes_first(logits),
            classes_first(target) if probabilities else target,
            reduction=reduction,
            **options,
        ),
        logits,
        samples=lambda i: gf.losses.cross_entropy(logits[i], target[i], dim=dim, **options),
    )


@given(
    shape=st.lists(st.integers(0, 3), min_size=0, max_size=2),
    size=st.integers(0, 4),
    kind=st.sampled_from(["mse", "bce", "bce weight", "bce pos_weight", "bce both"]),
    seed=st.integers(0, 10_000),
)
def test_elementwise_losses(shape, size, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(size, *shape, dtype=F64, generator=generator).requires_grad_()
    target = torch.rand(size, *shape, dtype=F64, generator=generator)
    if kind == "mse":
        ours, theirs, options = gf.losses.mse, F.mse_loss, {}
    else:
        ours, theirs = gf.losses.bce_with_logits, F.binary_cross_entropy_with_logits
        last = shape[-1:]
        options = {}
        if kind in ("bce weight", "bce both"):
            options["weight"] = torch.rand(last, dtype=F64, generator=generator) * 2
        if kind in ("bce pos_weight", "bce both"):
            options["pos_weight"] = torch.rand(last, dtype=F64, generator=generator) * 2
    agree(
        lambda: ours(output, target, batched=True, **options),
        lambda reduction: theirs(output, target, reduction=reduction, **options),
        output,
        samples=lambda i: ours(output[i], target[i], **options),
    )


def test_an_ignored_sample_is_exactly_zero_with_every_option(device):
    logits = torch.randn(3, 4, 5, dtype=F64, device=device).requires_grad_()
    target = torch.full((3, 4), -100, device=device)
    target[1, 2] = 3
    weight = torch.rand(5, dtype=F64, device=device)
    out = gf.losses.cross_entropy(logits, target, weight=weight, label_smoothing=0.2, batched=True)
    assert out.numerator[[0, 2]].tolist() == [0.0, 0.0]
    assert out.weight.tolist() == [0.0, float(weight[3]), 0.0]
    (grad,) = torch.autograd.grad(out.numerator.sum(), logits)
    assert torch.equal(grad[[0, 2]], torch.zeros_like(grad[[0, 2]]))


def test_a_class_of_weight_zero_counts_nothing():
    out = gf.losses.cross_entropy(torch.randn(3), torch.tensor(1), weight=torch.tensor([1.0, 0.0, 1.0]))
    assert out == (0.0, 0.0)


def test_weights_of_half_types_are_counted_in_float32():
    # bfloat16 cannot count beyond 256.
    target = torch.zeros(1, 1000, dtype=torch.long)
    logits = torch.zeros(1, 1000, 2, dtype=torch.bfloat16)
    assert gf.losses.cross_entropy(logits, target, batched=True).weight.item() == 1000
    weight = torch.ones(2, dtype=torch.bfloat16)
    assert gf.losses.cross_entropy(logits[0], target[0], weight=weight).weight.item() == 1000
    assert gf.losses.mse(logits, torch.ones_like(logits), batched=True).weight.item() == 2000
    assert gf.losses.bce_with_logits(logits[0], torch.ones_like(logits[0])).weight.item() == 2000


def test_a_narrow_integer_target_is_an_index():
    logits = torch.randn(4, 3)
    target = torch.tensor([0, 1, 2, 0])
    want = gf.losses.cross_entropy(logits, target, batched=True).numerator
    assert torch.equal(gf.losses.cross_entropy(logits, target.to(torch.uint8), batched=True).numerator, want)


def test_dim_may_be_negative_or_positive():
    x, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    a, b = (gf.losses.cross_entropy(x, y, dim=dim, batched=True) for dim in (0, -3))
    assert torch.equal(a.numerator, b.numerator)
    tokens, z = torch.randn(3, 5), torch.randint(5, (3,))
    assert gf.losses.cross_entropy(tokens, z, dim=1) == gf.losses.cross_entropy(tokens, z)


def test_inputs_are_left_alone():
    x, y = torch.randn(2, 3, 4), torch.tensor([[0, -100, 1], [2, 3, -100]])
    before = x.clone(), y.clone()
    gf.losses.cross_entropy(x, y, weight=torch.ones(4), label_smoothing=0.1, batched=True)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("fn", [gf.losses.mse, gf.losses.bce_with_logits])
def test_broadcasting_is_refused(fn):
    # (n, 1) against (n,) is n x n errors, and torch only warns.
    with pytest.raises(ValueError, match=r"output \(4, 1\) and target \(4,\); expected the same shape"):
        fn(torch.zeros(4, 1), torch.zeros(4), batched=True)


@pytest.mark.parametrize(
    ("output", "target", "options"),
    [
        ((4, 3), (4, 1), {"batched": True}),
        ((4, 3), (3,), {"batched": True}),
        ((4, 5, 3), (4, 3), {"batched": True}),  # classes last by default
        ((), (), {}),
    ],
)
def test_cross_entropy_names_both_shapes(output, target, options):
    with pytest.raises(ValueError, match=r"got output .* and target .*pass dim="):
        gf.losses.cross_entropy(torch.zeros(output), torch.zeros(target, dtype=torch.long), **options)


def test_whole_takes_functions_only():
    assert gf.whole(abs).fn is abs
    with pytest.raises(TypeError, match=r"gf\.whole\(fn\): got 'mean'"):
        gf.whole("mean")
