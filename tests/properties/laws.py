"""The identities of per-sample gradients: one function a law, which takes a case and yields what must be equal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from claims import F64, Claim, Rows, equal, rows, sums
from oracle import flat, truth, truth_batched
from torch import Tensor

import gradfunc as gf
from gradfunc.testing.strategies import Problem
from gradfunc.testing.strategies._kinds import Net, Tied


def sum_of_none_is_sum(b: Problem) -> Iterator[Claim]:
    """The rows of "none" add up to "sum"; the losses to the loss of the batch."""
    g = b.grads()
    none, total = gf.reduce(g, "none"), gf.reduce(g, "sum")
    assert set(total) == set(b.names)
    yield from sums("sum(none)", total, added(none), norms(none).sum(), of_rows(b))
    yield from sums("sum()", g.sum(), total, norms(none).sum(), terms(b))
    c = coefficients(b, 1)
    yield from sums("weighted_sum", g.weighted_sum(c), added(none, c), (c.abs() * norms(none)).sum(), of_rows(b))


def mean_times_weight_is_sum(b: Problem) -> Iterator[Claim]:
    """The mean times the total of the weights that the loss itself states is the sum."""
    g, weights = b.grads(), b.weights()
    yield equal("weights", g.weights.double(), weights)
    total, added_up, scale = weights.sum(), g.sum(), norms(g.materialize()).sum()
    if total == 0:
        with pytest.raises(ValueError, match="total weight of 0"):
            g.mean()
        yield from sums("mean without weight", g.mean(on_zero_weight="zero"), zeros(added_up), scale, 0)
        assert bool(g.mean_loss.isnan())
        return
    mean = {name: value.double() * total for name, value in gf.reduce(g, "mean").items()}
    yield from sums("mean * weight", mean, {k: v.double() for k, v in added_up.items()}, scale, terms(b))
    losses = g.losses.double()
    yield Claim("mean_loss * weight", g.mean_loss * total, losses.sum(), losses.abs().sum(), terms(b))


def any_split_gives_the_same_mean(b: Problem) -> Iterator[Claim]:
    """Micro-batches, parts of a value and chunks of any sizes: one sum, one weight, divided once."""
    g, weight = b.grads(), b.weights().sum()
    scale = norms(g.materialize()).sum()
    per_weight = scale / weight if weight else scale
    mean = g.mean(on_zero_weight="zero")
    micro, parts = (gf.Accumulator.init({name: b.params[name] for name in b.names}) for _ in range(2))
    for index in cuts(b, 1):
        micro = micro.add(b.grads(index))
    for part in g.split(draw(b, 2, 1, 4)):
        parts = parts.add(part)
    chunked = b.grads(chunk_size=draw(b, 3, 1, 4))
    yield from sums("mean of micro-batches", micro.mean(on_zero_weight="zero"), mean, per_weight)
    yield from sums("sum of micro-batches", micro.sum(), g.sum(), scale)
    yield from sums("mean of parts", parts.mean(on_zero_weight="zero"), mean, per_weight)
    yield from sums("mean in other chunks", chunked.mean(on_zero_weight="zero"), mean, per_weight)
    yield from rows("rows in other chunks", chunked.materialize(), g.materialize())


def permuting_the_batch_permutes_the_rows(b: Problem) -> Iterator[Claim]:
    """With the samples in another order, ids with them, the rows are the same in that order."""
    order = torch.randperm(len(b.samples), generator=b.generator(1))
    g, permuted = b.grads(), b.grads(order.tolist())
    yield from same_samples("permuted", permuted, g, order)


def scaling_the_loss_scales_the_gradient(b: Problem) -> Iterator[Claim]:
    """By one factor in the loss, by one a sample in the value, by a factor that is taken out again."""
    g, c = b.grads(), coefficients(b, 1)
    none, factor = g.materialize(), draw(b, 2, -8, 8) / 4

    def scaled_loss(params: Rows, *args: Tensor) -> gf.Weighted:
        out = b.loss(params, *args)
        return gf.Weighted(out.numerator * factor, out.weight)

    loud = b.grads(loss=scaled_loss)
    yield from rows("c * loss", loud.materialize(), times(none, factor), abs(factor) * norms(none))
    yield equal("weights of c * loss", loud.weights, g.weights)
    yield from rows("loss_scale", b.grads(loss_scale=2.0**4).materialize(), none)
    by_row, scale = g.scaled(c), (c.abs() * norms(none)).sum()
    yield from rows("scaled(c)", by_row.materialize(), times(none, c), c.abs() * norms(none), 1)
    yield from sums("sum of scaled(c)", by_row.sum(), added(none, c), scale, of_rows(b))
    yield equal("weights of scaled(c)", by_row.weights, g.weights)
    yield Claim("losses of scaled(c)", by_row.losses, g.losses.double() * c, (g.losses * c).abs(), 1)
    weighted, weight = g.weighted(c.abs()), (b.weights() * c.abs()).sum()
    yield equal("weights of weighted(c)", weighted.weights.double(), b.weights() * c.abs())
    want = {name: value / weight if weight else value * 0 for name, value in added(none, c.abs()).items()}
    mean = {k: v.double() for k, v in weighted.mean(on_zero_weight="zero").items()}
    yield from sums("mean of weighted(c)", mean, want, scale / weight if weight else scale, of_rows(b))


def a_sum_of_losses_gives_the_sum_of_gradients(b: Problem) -> Iterator[Claim]:
    """Gradients are linear in the loss, whatever the loss, and are the numerator's whatever the weight."""

    def other(output: Tensor) -> Tensor:
        return output.square().flatten(1).sum(1) if b.case.batched else output.square().sum()

    def second(params: Rows, *args: Tensor) -> Tensor:
        return other(b.output(params, args[0]))

    def both(params: Rows, *args: Tensor) -> gf.Weighted:
        output = b.output(params, args[0])
        one = b.read(output, *args[1:])
        return gf.Weighted(one.numerator * 2 - other(output) * 0.5, one.weight)

    one, two, sum_ = (b.grads(loss=loss) for loss in (b.plain, second, both))
    first, last = one.materialize(), two.materialize()
    want = {name: 2 * first[name].double() - 0.5 * last[name].double() for name in first}
    scale = 2 * norms(first) + 0.5 * norms(last)
    yield from rows("2 a - b / 2", sum_.materialize(), want, scale)
    yield from sums("sum of 2 a - b / 2", sum_.sum(), added(want), scale.sum())
    losses = 2 * one.losses.double() - 0.5 * two.losses.double()
    magnitude = 2 * one.losses.double().abs() + 0.5 * two.losses.double()
    yield Claim("losses of 2 a - b / 2", sum_.losses, losses, magnitude)


def joining_parts_gives_the_whole(b: Problem) -> Iterator[Claim]:
    """Values of parts of the batch, concatenated, are the value of the batch."""
    g, joined = b.grads(), gf.concatenate([b.grads(index) for index in cuts(b, 1)])
    yield from same_samples("joined", joined, g, torch.arange(len(b.samples)))
    none = g.materialize()
    scale = norms(none)
    yield Claim("gram of joined", joined.gram(), g.gram(), scale[:, None] * scale)
    yield from sums("sum of joined", joined.sum(), g.sum(), scale.sum())


def reducing_a_selection_reduces_its_rows(b: Problem) -> Iterator[Claim]:
    """A selection has the rows, losses and weights it names, and its sum is that of as many of each."""
    n = len(b.samples)
    index = torch.randint(n, (draw(b, 1, 0, 5),), generator=b.generator(2)) if n else torch.zeros(0, dtype=torch.int64)
    g = b.grads()
    none, chosen = g.materialize(), g.select(index)
    yield from same_samples("selected", chosen, g, index)
    c = torch.bincount(index, minlength=n).double().to(g.losses.device)
    scale = (c * norms(none)).sum()
    yield from sums("sum of a selection", chosen.sum(), g.weighted_sum(c), scale)
    weight = (b.weights() * c).sum()
    mean = {k: v.double() / weight if weight else v * 0 for k, v in g.weighted_sum(c, wide=True).items()}
    got = {k: v.double() for k, v in chosen.mean(on_zero_weight="zero").items()}
    yield from sums("mean of a selection", got, mean, scale / weight if weight else scale)
    mask = c > 0
    yield from same_samples("masked", g.select(mask), g, mask.nonzero()[:, 0].cpu())
    for i in range(min(n, 2)):
        own = flat({name: value[None] for name, value in g.select([i]).sum().items()}).norm(dim=1)
        yield Claim(f"norm of sample {i}", g.norms()[i : i + 1], own, own)


def unused_parameters_are_zero_and_listed(b: Problem) -> Iterator[Claim]:
    """Exact zeros in every answer; and nothing else is listed."""
    g = b.grads()
    unused = [name for name in b.names if name == "unused" or not b.samples]
    assert list(g.unused) == unused, f"unused {g.unused}, not {unused}"
    c = coefficients(b, 1)
    answers = {
        "none": g.materialize(),
        "sum": g.sum(),
        "weighted_sum": g.weighted_sum(c),
        "mean": g.mean(on_zero_weight="zero"),
        "norms": g.norms(per_parameter=True),
        "gram": g.gram(per_parameter=True),
        "scaled": g.scaled(c).materialize(),
    }
    for what, answer in answers.items():
        for name in unused:
            yield equal(f"{what} of {name}", answer[name], torch.zeros_like(answer[name]))


def frozen_parameters_are_absent(b: Problem) -> Iterator[Claim]:
    """So are those that `wrt` leaves out; the gradients of the others are what they are among all."""
    g, whole = b.grads(), b.grads(wrt=None)
    frozen = {name for name, p in b.module.named_parameters() if not p.requires_grad}
    assert not frozen & set(whole.names)
    assert set(whole.names) == {name for name, _ in b.module.named_parameters()} - frozen
    assert g.names == b.names
    none, every = g.materialize(), whole.materialize()
    for answer in (none, g.sum(), g.mean(on_zero_weight="zero"), g.norms(per_parameter=True)):
        assert tuple(answer) == b.names
    yield from rows("wrt", none, {name: every[name] for name in b.names}, norms(every))


def tied_is_the_sum_of_untied(b: Problem) -> Iterator[Claim]:
    """A parameter used in two places has the sum of the gradients it would have in each."""
    untied = {f"{place}.{name}": value for place in "ab" for name, value in b.params.items()}

    def twice(params: Rows, *args: Tensor) -> gf.Weighted:
        """The outputs of two models, multiplied: each place's gradient depends on the other."""
        outputs = [b.output({n: params[f"{place}.{n}"] for n in b.params}, args[0]) for place in "ab"]
        return b.read(outputs[0] * (1 + outputs[1].tanh()), *args[1:])

    def tied(params: Rows, *args: Tensor) -> gf.Weighted:
        return twice({f"{place}.{name}": params[name] for place in "ab" for name in params}, *args)

    one = b.grads(loss=tied).materialize()
    two = b.grads(loss=twice, params=untied, wrt=None).materialize()
    want = {name: two[f"a.{name}"].double() + two[f"b.{name}"].double() for name in b.names}
    scale = norms(two)
    yield from rows("tied", one, want, scale)
    if b.case.model != "tied" or b.case.frozen:
        return
    head, embedding = "body.head.weight", "body.embedding.weight"
    apart = Net(Tied(untied=True), b.case.dropout, b.case.unused)
    model = gf.stateless(apart.to(b.like[0].device, next(iter(b.params.values())).dtype))

    def separate(params: Rows, *args: Tensor) -> gf.Weighted:
        output = model(params, args[0]) if b.case.batched else model.sample(params, args[0])
        return b.read(output, *args[1:])

    assert head not in b.params
    params = {name: b.params.get(name, b.params[embedding]) for name in model.params}
    two = b.grads(loss=separate, params=params, wrt=None).materialize()
    want = {name: two[name].double() for name in b.params}
    want[embedding] = two[embedding].double() + two[head].double()
    yield from rows("embedding and head", b.grads(wrt=None).materialize(), want, norms(two))


def rows_are_plain_autograd(b: Problem) -> Iterator[Claim]:
    """The definition: row i is the gradient of sample i's numerator. Of deterministic losses."""
    each = []
    selected = {name: b.params[name] for name in b.names}

    def loss(params: Rows, *args: Tensor) -> gf.Weighted:
        return b.loss({**b.params, **params}, *args)

    for sample in b.samples:
        args = [t[None] for t in sample]
        each.append(truth_batched(loss, selected, args) if b.case.batched else truth(loss, selected, 1, args))
    g = b.grads()
    empty = {name: value.new_zeros((0, *value.shape)) for name, value in selected.items()}
    want = {name: torch.cat([t.rows[name] for t in each]) for name in selected} if each else empty
    yield from rows("rows", g.materialize(), want)
    if each:
        losses = torch.cat([t.losses for t in each])
        yield Claim("losses", g.losses, losses, losses.abs() + 1)
    scale = norms(want)
    yield Claim("norms", g.norms(), scale, scale)
    direction = {name: torch.ones_like(value) for name, value in selected.items()}
    flat_rows = flat(want)
    yield Claim("dot", g.dot(direction), flat_rows.sum(1), scale * flat_rows.shape[1] ** 0.5)


LAWS = [
    sum_of_none_is_sum,
    mean_times_weight_is_sum,
    any_split_gives_the_same_mean,
    permuting_the_batch_permutes_the_rows,
    scaling_the_loss_scales_the_gradient,
    a_sum_of_losses_gives_the_sum_of_gradients,
    joining_parts_gives_the_whole,
    reducing_a_selection_reduces_its_rows,
    unused_parameters_are_zero_and_listed,
    frozen_parameters_are_absent,
    tied_is_the_sum_of_untied,
    rows_are_plain_autograd,
]


def same_samples(what: str, g: gf.PerSampleGrads, whole: gf.PerSampleGrads, index: Tensor) -> Iterator[Claim]:
    """`g` is the samples `index` of `whole`: rows, losses, weights."""
    assert g.batch_size == len(index)
    here = index.to(whole.losses.device)
    want = {name: value[here] for name, value in whole.materialize().items()}
    yield from rows(f"rows, {what}", g.materialize(), want)
    losses = whole.losses[here]
    yield Claim(f"losses, {what}", g.losses, losses, losses.abs() + 1)
    yield equal(f"weights, {what}", g.weights, whole.weights[here])
    scale = norms(want)
    yield Claim(f"norms, {what}", g.norms(), whole.norms()[here], scale)


def norms(none: Rows) -> Tensor:
    """Of each row, `[B]`, in float64."""
    return flat(none).norm(dim=1)


def added(none: Rows, c: Tensor | None = None) -> Rows:
    """Rows, times coefficients, added in float64."""
    each = {k: v.double() for k, v in none.items()}
    return {k: v.sum(0) if c is None else torch.tensordot(c, v, 1) for k, v in each.items()}


def times(none: Rows, c: Tensor | float) -> Rows:
    """Rows times a factor, or one a row, in float64."""
    each = {k: v.double() for k, v in none.items()}
    return {k: v * (c.reshape(-1, *[1] * (v.dim() - 1)) if isinstance(c, Tensor) else c) for k, v in each.items()}


def zeros(like: Rows) -> Rows:
    """Zeros of these shapes and types."""
    return {name: torch.zeros_like(value) for name, value in like.items()}


def terms(b: Problem) -> int:
    """Additions and products in a sum over the batch, in whatever chunks."""
    return 2 * len(b.samples) + 2


def of_rows(b: Problem) -> int | None:
    """The same of a sum of rows as they are handed out; None where the sum is of factors, which no row has rounded."""
    return None if b.case.engine in ("factored", "auto", "batched factored") else terms(b)


def draw(b: Problem, stream: int, low: int, high: int) -> int:
    """An integer from low to high."""
    return int(torch.randint(low, high + 1, (), generator=b.generator(stream)))


def coefficients(b: Problem, stream: int) -> Tensor:
    """One quarter-integer a sample, `[B]`, some of them 0."""
    c = torch.randint(-6, 7, (len(b.samples),), generator=b.generator(stream)).to(F64) / 4
    return c.to(b.like[0].device)


def cuts(b: Problem, stream: int) -> list[list[int]]:
    """The batch in consecutive parts of any sizes, perhaps of none."""
    n = len(b.samples)
    inner = torch.randint(0, n + 1, (draw(b, stream + 10, 0, 3),), generator=b.generator(stream)).sort().values
    return [list(range(start, stop)) for start, stop in itertools.pairwise([0, *inner.tolist(), n])]
