"""Every loss under every option: torch's own `sum` and `mean`, values and gradients; rows, engines and splits agree."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import oracle
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle import close, close_rows, flat
from tiers import every
from torch.nn import functional as F

import gradfunc as gf

F64 = torch.float64
CLASSES = 4


# --- what torch does, and batches to do it on -----------------------------------------------------------------


def randn(shape, g):
    return torch.randn(shape, dtype=F64, generator=g)


def rand(shape, g):
    return torch.rand(shape, dtype=F64, generator=g)


def signs(shape, g):
    return torch.randint(2, shape, generator=g) * 2 - 1


def per_class(shape, g):
    return rand((CLASSES,), g) + 0.1


def last(shape, g):
    """A factor that is broadcast over one sample."""
    return rand(shape[-1:], g) * 2


def whole_sample(shape, g):
    return rand(shape, g) * 2


@dataclass(frozen=True)
class Loss:
    """One loss of `gf.losses`.

    Attributes:
        theirs: `theirs(reduction, output, *targets, **options)` for "none", "sum" and "mean".
        draw: `draw(size, positions, options, generator)`: the raw output, which takes the gradient, and targets.
        options: for each option its values; a function of a sample's shape and a generator makes a tensor.
        output: from the raw output to what the loss takes.
    """

    theirs: Callable[..., Any]
    draw: Callable[..., Any]
    options: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    output: Callable[[torch.Tensor], torch.Tensor] = lambda raw: raw


PER = {"per": ("element", "sample")}


def of_elements(fn):
    """torch's reductions of a loss of elements, and the sum over n for `per="sample"`."""

    def theirs(reduction, output, *targets, per="element", **options):
        if reduction == "mean" and per == "sample":
            return fn(output, *targets, reduction="sum", **options) / len(output)
        return fn(output, *targets, reduction=reduction, **options)

    return theirs


def kl(reduction, output, target, *, per="sample", **options):
    reduction = "batchmean" if (reduction, per) == ("mean", "sample") else reduction
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "reduction: 'mean' divides the total loss by both", UserWarning)
        return F.kl_div(output, target, reduction=reduction, **options)


def classes_first(fn):
    def theirs(reduction, output, target, *, dim=-1, **options):
        first = 1 if dim == 0 else -1
        target = target.movedim(first, 1) if target.is_floating_point() else target
        options.pop("probabilities", None)
        # contiguous: torch's nll of images does not differentiate anything else
        return fn(output.movedim(first, 1).contiguous(), target, reduction=reduction, **options)

    return theirs


def next_token(reduction, logits, labels, *, shift=True, **options):
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.reshape(-1, CLASSES), labels.reshape(-1), reduction=reduction, **options)


def ctc(reduction, log_probs, targets, frames, labels, *, mean="target_length", **options):
    """torch's mean is of l / target length; its sum and its "none" are of l."""
    args = (log_probs.transpose(0, 1), targets, frames, labels)
    if mean == "sample":
        total = F.ctc_loss(*args, reduction="none" if reduction == "none" else "sum", **options)
        return total / len(log_probs) if reduction == "mean" else total
    if reduction == "none":
        return F.ctc_loss(*args, reduction="none", **options) / labels.clamp(min=1)
    return F.ctc_loss(*args, reduction="mean", **options) * (len(log_probs) if reduction == "sum" else 1)


def positions_flat(fn, dims=1):
    """torch wants one dimension of samples before the last `dims`."""

    def theirs(reduction, output, *targets, **options):
        n = math.prod(output.shape[:-1])
        rows = [t.reshape(n, *t.shape[output.dim() - 1 :]) for t in targets]
        return fn(output.reshape(n, output.shape[-1]), *rows, reduction=reduction, **options)

    return theirs


def draw_elements(target=randn, *more, shift=0.0):
    def draw(size, positions, options, g):
        shape = (size, *positions)
        return randn(shape, g) + shift, *(make(shape, g) for make in (target, *more))

    return draw


def draw_classes(size, positions, options, g):
    shape = (CLASSES, *positions) if options.get("dim") == 0 else (*positions, CLASSES)
    raw = randn((size, *shape), g)
    if options.get("probabilities"):
        return raw, rand(raw.shape, g)
    target = torch.randint(CLASSES, (size, *positions), generator=g)
    dropped = torch.rand(target.shape, generator=g) < 0.4
    return raw, target.masked_fill(dropped, options.get("ignore_index", -100))


def draw_tokens(size, positions, options, g):
    tokens = positions[0] if positions else 3
    return draw_classes(size, (tokens,), options, g)


def draw_kl(size, positions, options, g):
    raw, target = randn((size, *positions, CLASSES), g), randn((size, *positions, CLASSES), g).softmax(-1)
    return raw, target.log() if options.get("log_target") else target


def draw_poisson(size, positions, options, g):
    raw, target = draw_elements(rand)(size, positions, options, g)
    return raw if options["log_input"] else raw.abs(), torch.poisson(target * 5, generator=g)


def draw_gaussian(size, positions, options, g):
    raw, target, var = draw_elements(randn, rand)(size, positions, options, g)
    return raw, target, var


def draw_ctc(size, positions, options, g):
    frames, labels = positions[0] + 1 if positions else 7, positions[1] if len(positions) > 1 else 3
    symbols = [c for c in range(CLASSES) if c != options.get("blank", 0)]
    targets = torch.tensor(symbols)[torch.randint(len(symbols), (size, labels), generator=g)]
    input_length = torch.randint(1, frames + 1, (size,), generator=g)
    target_length = torch.randint(labels + 1, (size,), generator=g)
    if not options["zero_infinity"]:  # every target can be reached
        target_length = torch.minimum(target_length, (input_length - 1) // 2)
    return randn((size, frames, CLASSES), g), targets, input_length, target_length


def draw_labels(size, positions, options, g):
    """Right classes up to a first -1, in any order, perhaps all or none."""
    shape = (size, *positions, CLASSES)
    order = torch.rand(shape, generator=g).argsort(-1)
    ends = torch.randint(CLASSES + 1, (*shape[:-1], 1), generator=g)
    target = order.masked_fill(torch.arange(CLASSES) == ends, -1)
    return randn(shape, g), target


def draw_multiclass(size, positions, options, g):
    return randn((size, *positions, CLASSES), g), torch.randint(CLASSES, (size, *positions), generator=g)


def draw_multilabel(size, positions, options, g):
    shape = (size, *positions, CLASSES)
    return randn(shape, g), torch.randint(2, shape, generator=g)


def draw_triplet(size, positions, options, g):
    return tuple(randn((size, *positions, 3), g) for _ in range(3))


def draw_cosine(size, positions, options, g):
    return *(randn((size, *positions, 3), g) for _ in range(2)), signs((size, *positions), g)


IGNORE = {"ignore_index": (-100, -1, 0)}
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        classes_first(F.cross_entropy),
        draw_classes,
        {"weight": (None, per_class), **IGNORE, "label_smoothing": (0.0, 0.1, 1.0), "dim": (-1, 0)},
    ),
    "cross_entropy of probabilities": Loss(
        classes_first(F.cross_entropy),
        draw_classes,
        {"weight": (None, per_class), "label_smoothing": (0.0, 0.1), "dim": (-1, 0), "probabilities": (True,)},
    ),
    "nll": Loss(
        classes_first(F.nll_loss),
        draw_classes,
        {"weight": (None, per_class), **IGNORE, "dim": (-1,)},
        output=lambda raw: raw.log_softmax(-1),
    ),
    "nll of images": Loss(
        classes_first(F.nll_loss),
        draw_classes,
        {"weight": (None, per_class), "dim": (0,)},
        output=F.logsigmoid,  # nll need not be of a distribution
    ),
    "causal_lm": Loss(next_token, draw_tokens, {**IGNORE, "shift": (True, False), "label_smoothing": (0.0, 0.1)}),
    "mse": Loss(of_elements(F.mse_loss), draw_elements(), PER),
    "l1": Loss(of_elements(F.l1_loss), draw_elements(), PER),
    "huber": Loss(of_elements(F.huber_loss), draw_elements(), {**PER, "delta": (1.0, 0.3)}),
    "smooth_l1": Loss(of_elements(F.smooth_l1_loss), draw_elements(), {**PER, "beta": (1.0, 0.3, 0.0)}),
    "bce": Loss(
        of_elements(F.binary_cross_entropy),
        draw_elements(rand),
        {**PER, "weight": (None, last, whole_sample)},
        output=torch.sigmoid,
    ),
    "bce_with_logits": Loss(
        of_elements(F.binary_cross_entropy_with_logits),
        draw_elements(rand),
        {**PER, "weight": (None, last, whole_sample), "pos_weight": (None, last, whole_sample)},
    ),
    "kl_div": Loss(
        kl,
        draw_kl,
        {"per": ("sample", "element"), "log_target": (False, True)},
        output=lambda raw: raw.log_softmax(-1),
    ),
    "gaussian_nll": Loss(
        of_elements(F.gaussian_nll_loss), draw_gaussian, {**PER, "full": (False, True), "eps": (1e-6, 0.3)}
    ),
    "poisson_nll": Loss(
        of_elements(F.poisson_nll_loss),
        draw_poisson,
        {**PER, "log_input": (True, False), "full": (False, True), "eps": (1e-8, 0.1)},
    ),
    "ctc": Loss(
        ctc,
        draw_ctc,
        {"mean": ("target_length", "sample"), "zero_infinity": (False, True), "blank": (0, 3)},
        output=lambda raw: raw.log_softmax(-1),
    ),
    "soft_margin": Loss(of_elements(F.soft_margin_loss), draw_elements(signs)),
    "hinge_embedding": Loss(of_elements(F.hinge_embedding_loss), draw_elements(signs), {"margin": (1.0, 0.2)}),
    "margin_ranking": Loss(of_elements(F.margin_ranking_loss), draw_elements(randn, signs), {"margin": (0.0, 0.5)}),
    "multi_margin": Loss(
        positions_flat(F.multi_margin_loss),
        draw_multiclass,
        {"p": (1, 2), "margin": (1.0, 0.3), "weight": (None, per_class)},
    ),
    "multilabel_margin": Loss(positions_flat(F.multilabel_margin_loss), draw_labels),
    "multilabel_soft_margin": Loss(
        positions_flat(F.multilabel_soft_margin_loss), draw_multilabel, {"weight": (None, per_class)}
    ),
    "triplet_margin": Loss(
        positions_flat(F.triplet_margin_loss),
        draw_triplet,
        {"margin": (1.0, 3.0), "p": (2.0, 1.0), "eps": (1e-6, 0.1), "swap": (False, True)},
    ),
    "cosine_embedding": Loss(positions_flat(F.cosine_embedding_loss), draw_cosine, {"margin": (0.0, 0.3)}),
}
COMBINATIONS = {
    name: [dict(zip(loss.options, values, strict=True)) for values in itertools.product(*loss.options.values())]
    for name, loss in LOSSES.items()
}
EVERY = [(name, i) for name in LOSSES for i in range(len(COMBINATIONS[name]))]


class Case:
    """A loss with its options, a raw output `[B, ...]` and targets."""

    def __init__(self, name, options, size, positions, seed, device="cpu"):
        g = torch.Generator().manual_seed(seed)
        self.name, self.loss, self.device = name, LOSSES[name], device
        raw, *targets = self.loss.draw(size, tuple(positions), options, g)
        shape = raw.shape[1:]
        options = {k: v(shape, g) if callable(v) else v for k, v in options.items()}
        self.raw, *self.targets = (t.to(device) for t in (raw, *targets))
        self.options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        self.size = size
        self.params = {"a": (randn(shape, g) + 2).to(device), "b": randn(shape, g).to(device) / 4}

    def ours(self, raw, *targets, batched=False):
        # looked up by name at each call, so that a planted mistake is what runs
        fn = getattr(gf.losses, self.name.split()[0])
        options = {k: v for k, v in self.options.items() if k != "probabilities"}
        return fn(self.loss.output(raw), *targets, batched=batched, **options)

    def theirs(self, reduction, raw):
        return self.loss.theirs(reduction, self.loss.output(raw), *self.targets, **self.options)

    def model(self, params, raw):
        """A model whose output is the raw one; positive rates stay positive."""
        if self.options.get("log_input", True):
            return raw * params["a"] + params["b"]
        return raw * params["a"].square() + params["b"].square()


def gradient(value, leaf):
    (grad,) = torch.autograd.grad(value, leaf, retain_graph=True)
    return grad


# --- the laws -------------------------------------------------------------------------------------------------


def check_torch(case):
    """Batched: torch's elements summed row by row, torch's sum, torch's mean, with their gradients."""
    leaf = case.raw.clone().requires_grad_()
    out = case.ours(leaf, *case.targets, batched=True)
    assert out.numerator.shape == out.weight.shape == (case.size,)
    assert out.numerator.isfinite().all()
    assert not out.weight.requires_grad
    elements = case.theirs("none", leaf) if leaf.numel() else leaf.new_zeros(case.size)
    scale = elements.detach().abs().sum()
    close(out.numerator, elements.reshape(case.size, elements.numel() // max(case.size, 1)).sum(1), scale, "numerators")
    ours = gradient(out.numerator.sum(), leaf)
    norms = flat({"raw": ours}).norm(dim=1)
    if not leaf.numel():  # of nothing torch's own sums are not all defined
        assert not out.numerator.any()
        return
    want = case.theirs("sum", leaf)
    close(out.numerator.sum(), want, scale, "sum")
    close(ours, gradient(want, leaf), norms.sum(), "gradient of sum")
    total = out.weight.sum()
    if total > 0:
        want, got = case.theirs("mean", leaf), out.numerator.sum() / total
        close(got, want, scale / total, "mean")
        close(gradient(got, leaf), gradient(want, leaf), norms.sum() / total, "gradient of mean")
    uncounted = out.weight == 0
    assert not out.numerator[uncounted].any()
    assert not ours[uncounted].any()


def check_samples(case):
    """Row i of a batched loss is the loss of sample i, in value, weight and gradient."""
    leaf = case.raw.clone().requires_grad_()
    out = case.ours(leaf, *case.targets, batched=True)
    rows = gradient(out.numerator.sum(), leaf)
    for i in range(case.size):
        alone = case.raw[i].clone().requires_grad_()
        sample = case.ours(alone, *(t[i] for t in case.targets))
        assert sample.numerator.dim() == sample.weight.dim() == 0
        assert not sample.weight.requires_grad
        close(sample.numerator, out.numerator[i], out.numerator[i].detach().abs() + 1e-3, "numerator of one sample")
        assert sample.weight == out.weight[i]
        assert sample.weight.dtype == out.weight.dtype
        close(gradient(sample.numerator, alone), rows[i], rows[i].norm(), "gradient of one sample")


def check_engines(case):
    """Factors, vmap, a loop and natively batched, against one autograd call a sample."""

    def loss(p, raw, *targets):
        return case.ours(case.model(p, raw), *targets)

    def losses(p, raw, *targets):
        return case.ours(case.model(p, raw), *targets, batched=True)

    args = (case.raw, *case.targets)
    want = oracle.truth(loss, case.params, case.size, args)
    for engine, batched in (("factored", False), ("vmap", False), ("loop", False), ("factored", True), ("vmap", True)):
        fn = losses if batched else loss
        g = gf.per_sample_grads(fn, engine=engine, batched=batched)(case.params, *args)
        assert g.engine == engine
        what = f"{engine}, batched={batched}"
        assert g.losses.shape == g.weights.shape == (case.size,)
        close(g.losses, want.losses, want.losses.abs() + 1e-3, f"losses of {what}")
        close(g.weights, want.weights, want.weights, f"weights of {what}")
        close_rows(g.materialize(), want.rows, what)


def check_split(case, sizes, batched=False):
    """Any micro-batches through `gf.Accumulator`: torch's sum and mean of the whole batch."""
    f = gf.per_sample_grads(
        lambda p, raw, *targets: case.ours(case.model(p, raw), *targets, batched=batched), batched=batched
    )
    acc, norms, start = gf.Accumulator.init(case.params), 0.0, 0
    for size in sizes:
        g = f(case.params, *(t[start : start + size] for t in (case.raw, *case.targets)))
        acc, norms, start = acc.add(g), norms + float(g.norms().sum()), start + size
    assert start == case.size
    if not acc.weight > 0 or not case.raw.numel():
        return
    leaves = {name: value.clone().requires_grad_() for name, value in case.params.items()}
    for reduction, sums, scale in (("sum", acc.sum(), norms), ("mean", acc.mean(), norms / acc.weight)):
        want = torch.autograd.grad(case.theirs(reduction, case.model(leaves, case.raw)), list(leaves.values()))
        for got, value in zip(sums.values(), want, strict=True):
            close(got, value, scale, f"{reduction} over {sizes}")


def combination(name, i, *, size=3, positions=None, seed=0):
    positions = ((6, 2) if name == "ctc" else (3, 1)) if positions is None else positions
    return Case(name, COMBINATIONS[name][i], size, positions, seed)


@pytest.mark.parametrize(
    ("name", "i"),
    [pytest.param(name, i, id=f"{name}-{i}", marks=[pytest.mark.slow] if i % 9 else []) for name, i in EVERY],
)
def test_every_combination_of_options(name, i):
    case = combination(name, i)
    check_torch(case)
    check_samples(case)
    check_engines(case)
    check_split(case, [2, 1])


SHAPES = {
    "size": st.integers(0, 4),
    "positions": st.lists(st.integers(0, 3), max_size=2),
    "i": st.integers(0, 1000),
    "seed": st.integers(0, 10_000),
}


@pytest.mark.parametrize("name", every(3, LOSSES))
@given(**SHAPES)
@example(size=0, positions=[2], i=0, seed=0)
@example(size=2, positions=[0], i=0, seed=0)
@example(size=1, positions=[], i=0, seed=0)
def test_torchs_sum_and_mean(name, size, positions, i, seed):
    case = combination(name, i % len(COMBINATIONS[name]), size=size, positions=positions, seed=seed)
    check_torch(case)
    check_samples(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(**SHAPES)
@example(size=0, positions=[2], i=0, seed=0)
@example(size=2, positions=[0], i=0, seed=0)
def test_engines_agree(name, size, positions, i, seed):
    check_engines(combination(name, i % len(COMBINATIONS[name]), size=size, positions=positions, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=3), batched=st.booleans(), i=SHAPES["i"], seed=SHAPES["seed"]
)
@example(sizes=[0], batched=False, i=0, seed=0)
@example(sizes=[3, 0, 1], batched=True, i=0, seed=0)
def test_any_split_gives_torchs_sum_and_mean(name, sizes, batched, i, seed):
    case = combination(name, i % len(COMBINATIONS[name]), size=sum(sizes), seed=seed)
    check_split(case, sizes, batched)


@pytest.mark.parametrize("name", LOSSES)
def test_on_the_device(name, device):
    case = Case(name, COMBINATIONS[name][-1], 3, (3, 1), 0, device)
    check_torch(case)
    check_samples(case)
    check_engines(case)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0, 2])
def test_empty_batches_and_empty_positions(name, size):
    """Nothing is 0 of weight 0; only where a sample itself counts 1 does an empty one keep its weight."""
    for options in COMBINATIONS[name]:
        case = Case(name, options, size, (0, 0), 0)
        out = case.ours(case.raw, *case.targets, batched=True)
        assert out.numerator.shape == out.weight.shape == (size,)
        counts = name == "ctc" or options.get("per") == "sample"
        assert out.weight.tolist() == [float(counts)] * size
        if name != "ctc":  # one frame of blanks is likely, not certain
            assert out.numerator.tolist() == [0.0] * size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_types_keep_their_dtype_and_count_in_float32(name, dtype):
    case = combination(name, -1)
    raw, *targets = (t.to(dtype) if t.is_floating_point() else t for t in (case.raw, *case.targets))
    case.options = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in case.options.items()}
    out = case.ours(raw, *targets, batched=True)
    assert out.numerator.dtype == dtype
    assert out.weight.dtype == torch.float32
    wide = combination(name, -1)
    want = wide.ours(wide.raw, *wide.targets, batched=True)
    assert torch.allclose(out.weight.double(), want.weight, rtol=torch.finfo(dtype).eps)


def test_bfloat16_counts_beyond_256():
    logits = torch.zeros(1, 1000, 2, dtype=torch.bfloat16)
    target = torch.zeros(1, 1000, dtype=torch.long)
    assert gf.losses.cross_entropy(logits, target, batched=True).weight.item() == 1000
    weight = torch.ones(2, dtype=torch.bfloat16)
    assert gf.losses.cross_entropy(logits[0], target[0], weight=weight).weight.item() == 1000
    assert gf.losses.mse(logits, torch.ones_like(logits), batched=True).weight.item() == 2000
    assert gf.losses.bce_with_logits(logits[0], torch.ones_like(logits[0])).weight.item() == 2000
    assert gf.losses.causal_lm(logits[0], target[0]).weight.item() == 999


@pytest.mark.parametrize("name", LOSSES)
def test_inputs_are_left_alone(name):
    case = combination(name, -1)
    tensors = [case.raw, *case.targets, *(v for v in case.options.values() if isinstance(v, torch.Tensor))]
    before = [t.clone() for t in tensors]
    case.ours(case.raw, *case.targets, batched=True)
    assert oracle.same_bits(tensors, before)
