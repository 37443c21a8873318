"""Every row of every loss's table, by hand; what is uncounted, at a kink, beyond its range or out of shape."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from oracle import close
from torch.nn import functional as F

import gradfunc as gf
from gradfunc import losses

F64 = torch.float64
LOSSES = {
    name: fn
    for name, fn in vars(losses).items()
    if inspect.isfunction(fn) and "batched" in inspect.signature(fn).parameters
}


def t(*values):
    return torch.tensor(values, dtype=F64)


def numbered(rows):
    return [f"{row[0]}-{i}" for i, row in enumerate(rows)]


# --- the tables, by hand ------------------------------------------------------------------------------------------

OUT, TARGET = t(0.3, -1.2, 2.0), t(0.25, 1.0, 0.0)
R = [0.05, -2.2, 2.0]  # OUT - T
LOGITS, W = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5], [0.2, 0.1, 0.7]], dtype=F64), t(0.5, 1.0, 3.0)
LOGS = LOGITS.log_softmax(-1)
Y, IGNORED = torch.tensor([2, 0, 1]), torch.tensor([2, -100, 1])
Q = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.5, 0.5, 0.5]], dtype=F64)
SIGNS, PROB = t(1, -1, 1), t(0.4, 0.8, 0.1)
L = [[float(v) for v in row] for row in LOGS]
NLL = [-L[0][2], -L[1][0], -L[2][1]]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def binary(p=1.0):
    return [
        -(p * target * math.log(sigmoid(o)) + (1 - target) * math.log(1 - sigmoid(o)))
        for o, target in zip(OUT.tolist(), TARGET.tolist(), strict=True)
    ]


def huber(r, delta):
    return r * r / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)


def gauss(var):
    return [(math.log(v) + r * r / v) / 2 for r, v in zip(R, var, strict=True)]


def hinge(x):
    return max(0.0, x)


def elements(name, values, **options):
    """The three rows of a loss of elements."""
    fn = LOSSES[name]
    return {
        (name, '`per="element"` (default; torch\'s mean)'): (fn(OUT, TARGET, **options), sum(values), 3),
        (name, '`per="sample"` (torch\'s sum over n)'): (fn(OUT, TARGET, per="sample", **options), sum(values), 1),
    }


def multi(o, y, *, p=1, margin=1.0, w=None):
    terms = [hinge(margin - o[y] + o[c]) ** p for c in range(len(o)) if c != y]
    return sum(terms) * (w[y] if w else 1) / len(o)


BINARY_LOGITS = [[math.log(sigmoid(v)) for v in row] for row in LOGITS.tolist()]
SOFT = [
    [-math.log(sigmoid(v if q else -v)) for v, q in zip(row, hot, strict=True)]
    for row, hot in zip(LOGITS.tolist(), [[1, 0, 1], [0, 0, 0], [1, 1, 1]], strict=True)
]
HOT = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
# two frames of a blank and one label: a-, -a and aa spell it
TWO_FRAMES = torch.tensor([[0.6, 0.4], [0.3, 0.7]], dtype=F64).log()
ONE_LABEL = -math.log(0.4 * 0.3 + 0.6 * 0.7 + 0.4 * 0.7)
AA = torch.tensor([1, 1])  # needs three frames, a-a
THREE_FRAMES = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]], dtype=F64).log()
TWO_LABELS = -math.log(0.4 * 0.3 * 0.5)
ANCHOR, NEAR, FAR = t(0.0, 0.0), t(3.0, 4.0), t(3.0, 5.5)

# (loss, first cell of the row) -> (what it returns, numerator, weight)
ROWS = {
    ("cross_entropy", "none"): (losses.cross_entropy(LOGITS, Y), sum(NLL), 3),
    ("cross_entropy", "`weight=w`"): (
        losses.cross_entropy(LOGITS, Y, weight=W),
        3 * NLL[0] + 0.5 * NLL[1] + 1 * NLL[2],
        4.5,
    ),
    ("cross_entropy", "`ignore_index`"): (losses.cross_entropy(LOGITS, IGNORED), NLL[0] + NLL[2], 2),
    ("cross_entropy", "`label_smoothing=e`"): (
        losses.cross_entropy(LOGITS, Y, weight=W, label_smoothing=0.3),
        sum(
            0.7 * float(W[y]) * nll + 0.1 * sum(-float(W[c]) * L[i][c] for c in range(3))
            for i, (y, nll) in enumerate(zip(Y.tolist(), NLL, strict=True))
        ),
        4.5,
    ),
    ("cross_entropy", "probabilities q"): (
        losses.cross_entropy(LOGITS, Q, weight=W),
        float(-(W * Q * LOGS).sum()),
        3,
    ),
    ("nll", "none"): (losses.nll(LOGS, Y), sum(NLL), 3),
    ("nll", "`weight=w`"): (losses.nll(LOGS, Y, weight=W), 3 * NLL[0] + 0.5 * NLL[1] + 1 * NLL[2], 4.5),
    ("nll", "`ignore_index`"): (losses.nll(LOGS, IGNORED), NLL[0] + NLL[2], 2),
    ("causal_lm", "none"): (losses.causal_lm(LOGITS, Y), -L[0][0] - L[1][1], 2),
    ("causal_lm", "`shift=False`"): (losses.causal_lm(LOGITS, Y, shift=False), sum(NLL), 3),
    ("causal_lm", "`ignore_index`"): (losses.causal_lm(LOGITS, IGNORED), -L[1][1], 1),
    ("causal_lm", "`label_smoothing=e`"): (
        losses.causal_lm(LOGITS, IGNORED, label_smoothing=0.3),
        -0.7 * L[1][1] - 0.1 * sum(L[1]),
        1,
    ),
    **elements("mse", [r * r for r in R]),
    **elements("l1", [abs(r) for r in R]),
    **elements("huber", [huber(r, 2.1) for r in R], delta=2.1),
    **elements("smooth_l1", [huber(r, 2.1) / 2.1 for r in R], beta=2.1),
    **elements("bce_with_logits", binary()),
    ("bce_with_logits", "`weight=w`"): (
        losses.bce_with_logits(OUT, TARGET, weight=W),
        sum(w * b for w, b in zip(W.tolist(), binary(), strict=True)),
        3,
    ),
    ("bce_with_logits", "`pos_weight=p`"): (
        losses.bce_with_logits(OUT, TARGET, pos_weight=t(2.5)),
        sum(binary(2.5)),
        3,
    ),
    ("bce", '`per="element"` (default; torch\'s mean)'): (losses.bce(OUT.sigmoid(), TARGET), sum(binary()), 3),
    ("bce", '`per="sample"` (torch\'s sum over n)'): (
        losses.bce(OUT.sigmoid(), TARGET, per="sample"),
        sum(binary()),
        1,
    ),
    ("bce", "`weight=w`"): (
        losses.bce(OUT.sigmoid(), TARGET, weight=W),
        sum(w * b for w, b in zip(W.tolist(), binary(), strict=True)),
        3,
    ),
    ("gaussian_nll", '`per="element"` (default; torch\'s mean)'): (
        losses.gaussian_nll(OUT, TARGET, PROB, eps=0.3),
        sum(gauss([0.4, 0.8, 0.3])),
        3,
    ),
    ("gaussian_nll", '`per="sample"` (torch\'s sum over n)'): (
        losses.gaussian_nll(OUT, TARGET, 0.5, per="sample"),
        sum(gauss([0.5] * 3)),
        1,
    ),
    ("gaussian_nll", "`full=True`"): (
        losses.gaussian_nll(OUT, TARGET, t(0.7), full=True),
        sum(gauss([0.7] * 3)) + 1.5 * math.log(2 * math.pi),
        3,
    ),
    **elements(
        "poisson_nll", [math.exp(o) - target * o for o, target in zip(OUT.tolist(), TARGET.tolist(), strict=True)]
    ),
    ("poisson_nll", "`log_input=False`"): (
        losses.poisson_nll(PROB, t(0, 2, 3), log_input=False, eps=0.1),
        sum(o - n * math.log(o + 0.1) for o, n in zip(PROB.tolist(), (0, 2, 3), strict=True)),
        3,
    ),
    ("poisson_nll", "`full=True`"): (
        losses.poisson_nll(OUT, t(0, 1, 4), full=True),
        sum(math.exp(o) - n * o for o, n in zip(OUT.tolist(), (0, 1, 4), strict=True))
        + (4 * math.log(4) - 4 + math.log(2 * math.pi * 4) / 2),
        3,
    ),
    ("kl_div", '`per="sample"` (default; torch\'s "batchmean")'): (
        losses.kl_div(LOGS, Q),
        sum(q * (math.log(q) - v) for q, v in zip(Q.flatten().tolist(), LOGS.flatten().tolist(), strict=True) if q),
        1,
    ),
    ("kl_div", '`per="element"` (torch\'s "mean")'): (
        losses.kl_div(LOGS, Q, per="element"),
        sum(q * (math.log(q) - v) for q, v in zip(Q.flatten().tolist(), LOGS.flatten().tolist(), strict=True) if q),
        9,
    ),
    ("kl_div", "`log_target=True`"): (
        losses.kl_div(LOGS, t(0.2, 0.3, 0.5).log().expand(3, 3), log_target=True),
        sum(q * (math.log(q) - row[c]) for row in L for c, q in enumerate((0.2, 0.3, 0.5))),
        1,
    ),
    ("ctc", '`mean="target_length"` (default; torch\'s mean)'): (losses.ctc(THREE_FRAMES, AA), TWO_LABELS / 2, 1),
    ("ctc", "`mean=\"sample\"` (torch's sum; the mean is torch's sum over n)"): (
        losses.ctc(THREE_FRAMES, AA, mean="sample"),
        TWO_LABELS,
        1,
    ),
    ("ctc", "`zero_infinity=True`"): (losses.ctc(TWO_FRAMES, AA, zero_infinity=True), 0, 1),
    ("soft_margin", "none"): (
        losses.soft_margin(OUT, SIGNS),
        sum(math.log(1 + math.exp(-s * o)) for s, o in zip(SIGNS.tolist(), OUT.tolist(), strict=True)),
        3,
    ),
    ("hinge_embedding", "none"): (losses.hinge_embedding(t(0.3, 0.4, 1.5), t(1, -1, -1)), 0.3 + 0.6, 3),
    ("margin_ranking", "none"): (losses.margin_ranking(OUT, TARGET, SIGNS, margin=0.5), 0.45 + 0 + 0, 3),
    ("multi_margin", "none"): (
        losses.multi_margin(LOGITS, Y, p=2, margin=2.0),
        sum(multi(o, y, p=2, margin=2.0) for o, y in zip(LOGITS.tolist(), Y.tolist(), strict=True)),
        3,
    ),
    ("multi_margin", "`weight=w`"): (
        losses.multi_margin(LOGITS, Y, weight=W),
        sum(multi(o, y, w=W.tolist()) for o, y in zip(LOGITS.tolist(), Y.tolist(), strict=True)),
        3,
    ),
    # 2 and 0 are right, 1 is wrong; then only 1 is right, what follows -1 is nothing
    ("multilabel_margin", "none"): (
        losses.multilabel_margin(LOGITS[:2], torch.tensor([[2, 0, -1], [1, -1, 0]])),
        (hinge(1 - 2 - 1) + hinge(1 - 0.5 - 1) + hinge(1 - 0 + 1) + hinge(1 - 0 - 0.5)) / 3,
        2,
    ),
    ("multilabel_soft_margin", "none"): (
        losses.multilabel_soft_margin(LOGITS, HOT),
        sum(map(sum, SOFT)) / 3,
        3,
    ),
    ("multilabel_soft_margin", "`weight=w`"): (
        losses.multilabel_soft_margin(LOGITS, HOT, weight=W),
        sum(w * b for row in SOFT for w, b in zip(W.tolist(), row, strict=True)) / 3,
        3,
    ),
    ("triplet_margin", "none"): (
        losses.triplet_margin(ANCHOR, NEAR, FAR, eps=0.0, margin=3.0),
        8 - math.hypot(3, 5.5),
        1,
    ),
    ("triplet_margin", "`swap=True`"): (losses.triplet_margin(ANCHOR, NEAR, FAR, eps=0.0, swap=True), 5 - 1.5 + 1, 1),
    ("cosine_embedding", "none"): (
        losses.cosine_embedding(t(1, 0, 1, 0).reshape(2, 2), t(0, 2, 3, 4).reshape(2, 2), t(1, -1), margin=0.1),
        1 + (0.6 - 0.1),
        2,
    ),
}


def documented():
    """First cells of the rows of every table in a docstring."""
    for name, fn in LOSSES.items():
        lines = [line.strip() for line in inspect.getdoc(fn).splitlines() if line.strip().startswith("|")]
        assert lines[0].split("|")[1].strip() == "option", name
        for line in lines[2:]:
            yield name, line.split("|")[1].strip()


@pytest.mark.parametrize(("name", "row"), list(documented()), ids=lambda v: v)
def test_a_row_of_the_table(name, row):
    out, numerator, weight = ROWS[name, row]
    close(out.numerator, t(numerator)[0], max(abs(numerator), 1.0), "numerator")
    assert out.weight == weight


def test_no_row_is_tested_that_is_not_documented():
    assert set(ROWS) == set(documented())


# --- what does not count ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cross_entropy", "nll", "causal_lm"])
def test_an_ignored_sample_is_exactly_zero(name, device):
    logits = torch.randn(3, 4, 5, dtype=F64, device=device).requires_grad_()
    target = torch.full((3, 4), -100, device=device)
    target[1, 2] = 3
    weight = torch.rand(5, dtype=F64, device=device)
    options = {"weight": weight} if name != "causal_lm" else {}
    if name != "nll":
        options["label_smoothing"] = 0.2
    out = LOSSES[name](logits.log_softmax(-1), target, batched=True, **options)
    assert out.numerator[[0, 2]].tolist() == [0.0, 0.0]
    assert out.weight.tolist() == [0.0, float(weight[3]) if "weight" in options else 1.0, 0.0]
    (grad,) = torch.autograd.grad(out.numerator.sum(), logits)
    assert not grad[[0, 2]].any()
    assert grad[1].any()


def test_a_class_of_weight_zero_counts_nothing():
    for fn in (losses.cross_entropy, losses.nll):
        assert fn(torch.randn(3), torch.tensor(1), weight=torch.tensor([1.0, 0.0, 1.0])) == (0.0, 0.0)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_sequence_without_a_next_token_counts_nothing(tokens):
    logits = torch.randn(tokens, 5, dtype=F64).requires_grad_()
    out = losses.causal_lm(logits, torch.zeros(tokens, dtype=torch.long))
    assert out == (0.0, 0.0)
    assert not torch.autograd.grad(out.numerator, logits)[0].any()


def test_causal_lm_is_the_mean_over_all_tokens_of_the_batch():
    """Not the mean of the sequences' means, whatever their padding."""
    logits, labels = torch.randn(3, 6, 5, dtype=F64), torch.randint(5, (3, 6))
    labels[0, 2:] = labels[1, :5] = -100
    out = losses.causal_lm(logits, labels, batched=True)
    assert out.weight.tolist() == [1.0, 1.0, 5.0]
    want = F.cross_entropy(logits[:, :-1].reshape(-1, 5), labels[:, 1:].reshape(-1))
    close(out.numerator.sum() / out.weight.sum(), want, want, "mean")


def test_a_mask_is_an_element_weight_of_each_sample():
    """Element weights may be data: batched one for each element, alone one for each of the sample's."""
    output, target, mask = (
        torch.randn(3, 4, dtype=F64),
        torch.rand(3, 4, dtype=F64),
        torch.rand(3, 4, dtype=F64).round(),
    )
    for fn, out in ((losses.bce, output.sigmoid()), (losses.bce_with_logits, output)):
        rows = fn(out, target, weight=mask, batched=True)
        for i in range(3):
            assert fn(out[i], target[i], weight=mask[i]).numerator == rows.numerator[i]


# --- kinks, infinities, what cannot be read -----------------------------------------------------------------------


KINKS = [
    ("l1", F.l1_loss, (t(1, 2), t(1, 2)), {}),
    ("huber", F.huber_loss, (t(1, -1), t(0, 0)), {}),
    ("smooth_l1", F.smooth_l1_loss, (t(1, -1), t(0, 0)), {}),
    ("bce", F.binary_cross_entropy, (t(0, 1, 0, 1), t(0, 0, 1, 1)), {}),
    ("hinge_embedding", F.hinge_embedding_loss, (t(1, 0), t(-1, 1)), {}),
    ("hinge_embedding", F.hinge_embedding_loss, (t(1, 0.5), t(0, 0)), {}),
    ("margin_ranking", F.margin_ranking_loss, (t(1, 1), t(1, 1), t(1, -1)), {}),
    ("multi_margin", F.multi_margin_loss, (t(0, 1, 1), torch.tensor(1)), {}),
    ("multi_margin", F.multi_margin_loss, (t(0, 1, 1), torch.tensor(0)), {"p": 2, "margin": -1.0}),
    ("multilabel_margin", F.multilabel_margin_loss, (t(0, 1, 1), torch.tensor([1, -1, 0])), {}),
    ("multilabel_margin", F.multilabel_margin_loss, (t(0, 1, 2), torch.tensor([1, 1, -1])), {}),
    ("cosine_embedding", F.cosine_embedding_loss, (t(0, 0), t(0, 0), torch.tensor(1)), {}),
    ("cosine_embedding", F.cosine_embedding_loss, (t(1, 0), t(0, 1), torch.tensor(-1)), {}),
    ("cosine_embedding", F.cosine_embedding_loss, (t(1, 0), t(0, 1), torch.tensor(0)), {}),
    ("triplet_margin", F.triplet_margin_loss, (t(0, 0), t(0, 0), t(1, 0)), {"eps": 0.0}),
    ("gaussian_nll", F.gaussian_nll_loss, (t(1, 2), t(0, 0), t(0, 1e-9)), {}),
    ("soft_margin", F.soft_margin_loss, (t(700, -700), t(1, 1)), {}),
]


@pytest.mark.parametrize(("name", "theirs", "args", "options"), KINKS, ids=numbered(KINKS))
def test_at_a_kink_the_derivative_is_torchs(name, theirs, args, options):
    differentiable = [i for i, a in enumerate(args) if a.is_floating_point() and i != len(args) - 1]
    if name in ("triplet_margin", "gaussian_nll"):  # the last is no target
        differentiable.append(len(args) - 1)
    ours, torchs = ([a.clone().requires_grad_(i in differentiable) for i, a in enumerate(args)] for _ in range(2))
    out, want = LOSSES[name](*ours, **options).numerator, theirs(*torchs, reduction="sum", **options)
    close(out, want, want.abs().clamp(min=1), "value")
    for i in differentiable:
        (got,) = torch.autograd.grad(out, ours[i], retain_graph=True)
        (wanted,) = torch.autograd.grad(want, torchs[i], retain_graph=True)
        close(got, wanted, wanted.abs().max().clamp(min=1), f"gradient in argument {i}")


def test_soft_margin_does_not_overflow():
    output = torch.tensor([-1000.0], requires_grad=True)
    out = losses.soft_margin(output, torch.ones(1)).numerator
    assert out == 1000
    assert torch.autograd.grad(out, output)[0] == -1
    assert F.soft_margin_loss(output, torch.ones(1)).isinf()  # torch's


def test_a_variance_may_be_shared_along_one_dimension():
    output, target, var = (
        torch.randn(2, 3, 4, dtype=F64),
        torch.randn(2, 3, 4, dtype=F64),
        torch.rand(2, 1, 4, dtype=F64),
    )
    want = F.gaussian_nll_loss(output, target, var, reduction="none").sum((1, 2))
    close(losses.gaussian_nll(output, target, var, batched=True).numerator, want, want.abs(), "shared")
    want = F.gaussian_nll_loss(output, target, 0.3, reduction="none").sum((1, 2))
    close(losses.gaussian_nll(output, target, 0.3, batched=True).numerator, want, want.abs(), "a number")


def test_what_torch_refuses_after_reading_it_is_nan():
    assert losses.gaussian_nll(t(1, 2), t(0, 0), t(1, -1)).numerator.isnan()
    with pytest.raises(ValueError, match="negative"):
        F.gaussian_nll_loss(t(1, 2), t(0, 0), t(1, -1))
    lengths = torch.tensor([3, 4, -1, 3, 3]), torch.tensor([2, 2, 2, 3, -1])  # of 3 frames and 2 labels
    batch = (THREE_FRAMES.expand(5, 3, 2), AA.expand(5, 2), *lengths)
    assert losses.ctc(*batch, batched=True).numerator.isnan().tolist() == [False, True, True, True, True]
    assert torch.vmap(losses.ctc)(*batch).numerator.isnan().tolist() == [False, True, True, True, True]


# --- CTC ----------------------------------------------------------------------------------------------------------


def ctc_batch(size=4, frames=8, classes=5, labels=3):
    raw = torch.randn(size, frames, classes, dtype=F64)
    return raw, torch.randint(1, classes, (size, labels)), torch.tensor([8, 7, 8, 5]), torch.tensor([3, 2, 0, 1])


def test_torchs_ctc_mean_and_sum_have_two_numerators():
    raw, *rest = ctc_batch()
    logs = raw.log_softmax(-1)
    total, mean = (F.ctc_loss(logs.transpose(0, 1), *rest, reduction=r) for r in ("sum", "mean"))
    assert not torch.isclose(total / 4, mean)
    by_length, by_sample = (losses.ctc(logs, *rest, mean=m, batched=True) for m in ("target_length", "sample"))
    close(by_length.numerator.sum() / by_length.weight.sum(), mean, mean, "mean")
    close(by_sample.numerator.sum(), total, total, "sum")


def test_ctc_gives_the_derivative_in_log_probabilities():
    """torch's own gives another: probabilities minus expected uses, right only behind log_softmax."""
    raw, *rest = ctc_batch()
    leaf = raw.log_softmax(-1).requires_grad_()

    def fn(logs):
        return losses.ctc(logs, *rest, mean="sample", batched=True).numerator.sum()

    (ours,) = torch.autograd.grad(fn(leaf), leaf)
    assert torch.autograd.gradcheck(fn, (leaf,), fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, (leaf,), fast_mode=True)
    (theirs,) = torch.autograd.grad(F.ctc_loss(leaf.transpose(0, 1), *rest, reduction="sum"), leaf)
    counted = (torch.arange(8) < rest[1].unsqueeze(1)).unsqueeze(2)
    close(ours.sum(-1), -counted.squeeze(2).double(), 1.0, "one symbol a frame")
    close(theirs, ours + leaf.exp() * counted, ours.norm(), "torch's")


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_ctc_of_a_target_that_no_alignment_reaches(zero_infinity):
    raw = torch.stack([TWO_FRAMES, TWO_FRAMES]).requires_grad_()
    targets, labels = torch.tensor([[1, 1], [1, 1]]), torch.tensor([2, 1])
    out = losses.ctc(raw.log_softmax(-1), targets, 2, labels, zero_infinity=zero_infinity, batched=True)
    (grad,) = torch.autograd.grad(out.numerator.sum(), raw)
    want = F.ctc_loss(
        raw.log_softmax(-1).transpose(0, 1),
        targets,
        torch.tensor([2, 2]),
        labels,
        reduction="none",
        zero_infinity=zero_infinity,
    )
    assert out.weight.tolist() == [1.0, 1.0]
    assert out.numerator[0] == want[0] / 2 == (0 if zero_infinity else torch.inf)
    close(out.numerator[1], want[1], want[1].detach(), "its neighbour")
    assert grad[0].isnan().any() != zero_infinity  # as torch's
    assert grad[1].isfinite().all()
    assert not (zero_infinity and grad[0].any())


def test_ctc_reads_nothing_beyond_the_lengths():
    raw, targets, frames, labels = ctc_batch()
    junk, padded = raw.clone(), targets.clone()
    for i in range(4):
        junk[i, frames[i] :] = torch.nan
        padded[i, labels[i] :] = -10
    leaf, clean = junk.requires_grad_(), raw.clone().requires_grad_()
    out = losses.ctc(leaf, padded, frames, labels, batched=True).numerator
    want = losses.ctc(clean, targets, frames, labels, batched=True).numerator
    assert torch.equal(out, want)
    assert torch.equal(torch.autograd.grad(out.sum(), leaf)[0], torch.autograd.grad(want.sum(), clean)[0])


def test_ctc_lengths_may_be_numbers_or_left_out():
    raw, targets, *_ = ctc_batch()
    logs = raw.log_softmax(-1)
    whole, numbers = losses.ctc(logs, targets, batched=True), losses.ctc(logs, targets, 8, 3, batched=True)
    assert torch.equal(whole.numerator, numbers.numerator)
    assert torch.equal(losses.ctc(logs[0], targets[0]).numerator, whole.numerator[0])
    short = losses.ctc(logs[0], targets[0], 5, torch.tensor(2)).numerator
    assert torch.equal(short, losses.ctc(logs[0, :5], targets[0, :2]).numerator)


def test_ctc_of_impossible_symbols_stays_finite():
    """A log probability of -inf: the alignments through it have probability 0."""
    logs = THREE_FRAMES.clone()
    logs[1, 0] = -torch.inf
    logs = torch.cat((logs, torch.full((3, 1), -torch.inf, dtype=F64)), 1).requires_grad_()
    out = losses.ctc(logs, torch.tensor([1])).numerator
    close(out.exp().reciprocal(), t(0.7 * (0.4 * 0.5 + 0.4 * 0.5 + 0.6 * 0.5 + 0.6 * 0.5))[0], 1.0, "probability")
    assert torch.autograd.grad(out, logs)[0].isfinite().all()


def test_ctc_without_frames():
    none = torch.zeros(0, 3, dtype=F64)
    assert losses.ctc(none, torch.zeros(0, dtype=torch.long)) == (0.0, 1.0)
    assert losses.ctc(none, torch.tensor([1])).numerator == torch.inf
    assert losses.ctc(none, torch.tensor([1]), zero_infinity=True) == (0.0, 1.0)


# --- indices, dimensions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", ["cross_entropy", "nll", "causal_lm", "multi_margin"])
def test_a_narrow_integer_target_is_an_index(name, dtype):
    logits, target = torch.randn(2, 4, 3), torch.tensor([[0, 1, 2, 0], [2, 2, 0, 1]])
    want = LOSSES[name](logits, target, batched=True)
    got = LOSSES[name](logits, target.to(dtype), batched=True)
    assert torch.equal(got.numerator, want.numerator)
    assert torch.equal(got.weight, want.weight)


def test_dim_may_be_negative_or_positive():
    x, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    for fn in (losses.cross_entropy, losses.nll):
        a, b = (fn(x, y, dim=dim, batched=True) for dim in (0, -3))
        assert torch.equal(a.numerator, b.numerator)
        tokens, z = torch.randn(3, 5), torch.randint(5, (3,))
        assert fn(tokens, z, dim=1) == fn(tokens, z)


# --- messages -----------------------------------------------------------------------------------------------------

Z = torch.zeros
INDEX = torch.zeros(4, dtype=torch.long)
PAIRS = ["mse", "l1", "huber", "smooth_l1", "bce", "bce_with_logits", "kl_div", "poisson_nll", "soft_margin"]
PAIRS += ["hinge_embedding", "multilabel_margin", "multilabel_soft_margin"]


@pytest.mark.parametrize("name", PAIRS)
def test_broadcasting_is_refused(name):
    # (n, 1) against (n,) is n x n errors, and torch at most warns.
    expected = rf"gf\.losses\.{name}\(output, target\): got output \(4, 1\) and target \(4,\); expected the same shape"
    with pytest.raises(ValueError, match=expected):
        LOSSES[name](Z(4, 1), Z(4), batched=True)
    with pytest.raises(ValueError, match="expected the same shape"):
        LOSSES[name](Z(4, 3), Z(3))


BAD = [
    ("cross_entropy", (Z(4, 3), Z(4, 1).long()), {"batched": True}, r"output \(4, 3\) and target \(4, 1\).*dim="),
    ("cross_entropy", (Z(4, 3), Z(3).long()), {"batched": True}, r"got output .* and target .*pass dim="),
    ("cross_entropy", (Z(4, 5, 3), Z(4, 3).long()), {"batched": True}, "pass dim="),  # classes last by default
    ("cross_entropy", (Z(()), Z(()).long()), {}, "pass dim="),
    ("cross_entropy", (Z(4, 3), Z(4).long()), {"dim": 2}, "pass dim="),
    ("cross_entropy", (Z(4, 3), Z(4).long()), {"dim": -3}, "pass dim="),
    ("nll", (Z(4, 3), Z(3).long()), {"batched": True}, r"gf\.losses\.nll\(output, target\): got .*pass dim="),
    ("causal_lm", (Z(4, 3), Z(3).long()), {}, r"logits \(4, 3\) and labels \(3,\); expected logits \[T, V\]"),
    ("causal_lm", (Z(4, 3), INDEX), {"batched": True}, r"expected logits \[B, T, V\] and labels \[B, T\]"),
    ("mse", (Z(()), Z(())), {"batched": True}, r"got output \(\); expected shape \[B, \.\.\.\]"),
    ("mse", (Z(2), Z(2)), {"per": "batch"}, r"got per='batch'; expected per to be one of 'element', 'sample'"),
    ("kl_div", (Z(2), Z(2)), {"per": "batchmean"}, "got per='batchmean'"),
    ("huber", (Z(2), Z(2)), {"delta": 0}, "got delta=0; expected delta > 0"),
    ("smooth_l1", (Z(2), Z(2)), {"beta": -1}, "got beta=-1; expected beta >= 0"),
    ("bce", (Z(4, 3), Z(4, 3)), {"weight": Z(4), "batched": True}, r"weight \(4,\) .*one sample's, \(3,\), or one"),
    ("bce", (Z(3), Z(3)), {"weight": Z(4, 3)}, r"weight \(4, 3\) for output \(3,\).*sample's, \(3,\)\."),
    ("bce", (Z(()), Z(())), {"weight": Z(4)}, r"weight \(4,\)"),
    ("bce_with_logits", (Z(4, 3), Z(4, 3)), {"pos_weight": Z(4, 3), "batched": True}, r"pos_weight \(4, 3\)"),
    ("bce_with_logits", (Z(4, 3), Z(4, 3)), {"weight": Z(2), "batched": True}, r"got weight \(2,\)"),
    ("gaussian_nll", (Z(4, 1), Z(4), Z(4)), {}, "output .* and target .*same shape"),
    ("gaussian_nll", (Z(4, 3), Z(4, 3), Z(4)), {}, r"var \(4,\); .*Write var\.unsqueeze\(-1\)"),
    ("gaussian_nll", (Z(4, 3), Z(4, 3), Z(1, 3)), {"batched": True}, r"var \(1, 3\)"),
    ("gaussian_nll", (Z(4, 3), Z(4, 3), Z(1, 1)), {}, r"var \(1, 1\)"),
    ("gaussian_nll", (Z(4, 3), Z(4, 3), Z(4, 2)), {}, r"var \(4, 2\)"),
    ("gaussian_nll", (Z(4), Z(4), Z(())), {}, r"var \(\)"),
    ("margin_ranking", (Z(4), Z(4, 1), Z(4)), {}, r"output1 \(4,\) and output2 \(4, 1\) and target \(4,\)"),
    ("multi_margin", (Z(4, 3), Z(4, 1).long()), {}, r"target \(4, 1\); expected the target .* \(4,\)"),
    ("multi_margin", (Z(4), Z(()).long()), {"batched": True}, r"output \(4,\); expected shape \[B, \.\.\., C\]"),
    ("multi_margin", (Z(4, 3), INDEX), {"p": 3}, "got p=3; expected p to be 1 or 2"),
    ("multi_margin", (Z(4, 3), INDEX), {"weight": Z(4)}, r"weight \(4,\) for output .*one factor a class, \(3,\)"),
    ("multilabel_margin", (Z(4).long(), Z(4).long()), {"batched": True}, r"shape \[B, \.\.\., C\]"),
    ("multilabel_soft_margin", (Z(4, 3), Z(4, 3)), {"weight": Z(4, 3)}, "one factor a class"),
    ("triplet_margin", (Z(4, 3), Z(4, 3), Z(3)), {}, r"positive \(4, 3\) and negative \(3,\); .*same shape"),
    ("triplet_margin", (Z(4), Z(4), Z(4)), {"batched": True}, r"anchor \(4,\); expected shape \[B, \.\.\., C\]"),
    ("triplet_margin", (Z(4), Z(4), Z(4)), {"margin": 0}, "got margin=0; expected margin > 0"),
    ("cosine_embedding", (Z(4, 3), Z(3), Z(4)), {}, "same shape"),
    ("cosine_embedding", (Z(4, 3), Z(4, 3), Z(3)), {}, r"output1 \(4, 3\) and target \(3,\)"),
    ("ctc", (Z(5, 4, 3), Z(4, 2).long()), {"batched": True}, r"targets \(4, 2\).*torch's layout"),
    ("ctc", (Z(4, 5, 3), Z(8).long()), {"batched": True}, "concatenated targets are to be padded"),
    ("ctc", (Z(4, 5, 3), Z(4, 2).long()), {}, "Pass batched=True"),
    ("ctc", (Z(5, 3), Z(2).long(), Z(4).long()), {}, r"got input_length \(4,\); expected an int or a tensor \(\)"),
    ("ctc", (Z(4, 5, 3), Z(4, 2).long(), 5, Z(3).long()), {"batched": True}, r"got target_length \(3,\)"),
    ("ctc", (Z(5, 3), Z(2).long()), {"blank": 3}, "got blank=3; expected blank to be a class, below 3"),
    (
        "ctc",
        (Z(5, 3), Z(2).long()),
        {"mean": "mean"},
        "got mean='mean'; expected mean to be one of 'target_length'",
    ),
]


@pytest.mark.parametrize(("name", "args", "options", "match"), BAD, ids=numbered(BAD))
def test_bad_shapes_and_options_are_named(name, args, options, match):
    with pytest.raises(ValueError, match=match) as error:
        LOSSES[name](*args, **options)
    assert str(error.value).startswith(f"gf.losses.{name}(")


@pytest.mark.parametrize("name", ["nll", "causal_lm", "multi_margin", "ctc", "multilabel_margin"])
def test_indices_are_integers(name):
    target = {"ctc": Z(2), "multilabel_margin": Z(4, 3)}.get(name, Z(4))
    with pytest.raises(TypeError, match=rf"gf\.losses\.{name}\(.*of dtype torch\.float32; expected integers"):
        LOSSES[name](Z(4, 3), target)


@pytest.mark.parametrize("name", LOSSES)
def test_options_are_keywords_and_documented(name):
    fn = LOSSES[name]
    parameters = inspect.signature(fn).parameters
    assert parameters["batched"].default is False
    data = {"output", "target", "log_probs", "logits", "labels", "targets", "input_length", "target_length", "var"}
    data |= {"output1", "output2", "anchor", "positive", "negative"}
    for key, parameter in parameters.items():
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (key not in data), key
        assert f"    {key}: " in inspect.getdoc(fn), f"{key} is not documented"
    assert fn.__module__ == "gradfunc.losses"
    assert name in losses.__doc__


def test_whole_takes_functions_only():
    assert gf.whole(abs).fn is abs
    with pytest.raises(TypeError, match=r"gf\.whole\(fn\): got 'mean'"):
        gf.whole("mean")
